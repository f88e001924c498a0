"""FID and KID of evaluate.py: the Inception net against a plain reimplementation, files, folders, the command."""

import json
import os
import urllib.error

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import TINY, make_data, run
from PIL import Image

import evaluate
from evaluate import FID_URL, distances, inception_features, load_inception, stats_of, to_uint8
from train_student import load_nets, set_attr


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """A file in the layout of the published one (old format, torchvision's keys), with random weights."""
    with torch.device('meta'):
        net = torchvision.models.inception_v3(num_classes=1008, aux_logits=False, init_weights=False)
    generator, state = torch.Generator().manual_seed(0), {}
    for name, v in net.state_dict().items():
        w = torch.randn(v.shape, generator=generator) * 0.2 + name.endswith(('bn.weight', 'running_var'))
        if not name.endswith('num_batches_tracked'):  # 5 and the root keep activations of a size from layer to layer
            w = w.abs() + 0.3 if name.endswith('running_var') else w
            state[name] = w * 5 * (2 / v[0].numel()) ** 0.5 if v.dim() == 4 else w
    path = tmp_path_factory.mktemp('inception') / 'random.pth'
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return str(path)


@pytest.fixture(scope='module')
def net(weights):
    return load_inception(weights, 'cpu')


def bilinear(x, size):
    """(H, W, 3) array to (size, size, 3): between the centres of the four nearest pixels, whatever the scale."""
    for axis in (0, 1):
        at = ((np.arange(size) + 0.5) * x.shape[axis] / size - 0.5).clip(0, x.shape[axis] - 1)
        low = np.floor(at).astype(int)
        high, part = (low + 1).clip(max=x.shape[axis] - 1), np.moveaxis((at - low)[:, None, None], 0, axis)
        x = x.take(low, axis) * (1 - part) + x.take(high, axis) * part
    return x


def average(x):
    count = F.avg_pool2d(torch.ones_like(x), 3, 1, 1)  # of 9 pixels under the window: 4, 6 or 9 are the image's
    return F.avg_pool2d(x, 3, 1, 1) / count


POOLS = {'average': average, 'max': lambda x: F.max_pool2d(x, 3, 1, 1), 'max/2': lambda x: F.max_pool2d(x, 3, 2)}


def reference(state, image):
    """The 2048 features of one image (H, W, 3) uint8, in float64, out of nothing but the file's tensors."""
    def chain(x, path, padded=True):  # of layers; those with /2 have stride 2, no padding, the others keep the size
        for name in path.split():
            if name.split('.')[-1] in POOLS:
                x = POOLS[name.split('.')[-1]](x)
                continue
            name, stride = name.removesuffix('/2'), 1 + name.endswith('/2')
            mean, var, scale, shift = (state[f'{name}.bn.{k}'].double()[:, None, None]
                                       for k in ('running_mean', 'running_var', 'weight', 'bias'))
            w = state[name + '.conv.weight'].double()
            x = F.conv2d(x, w, None, stride, [k // 2 * (padded and stride == 1) for k in w.shape[2:]])
            x = ((x - mean) / (var + 0.001).sqrt() * scale + shift).clamp_min(0)
        return x

    def cat(x, block, *branches):
        return torch.cat([chain(x, ' '.join(f'{block}.{layer}' for layer in path.split())) for path in branches], 1)

    def numbered(name, *layers):
        return ' '.join(f'branch{name}_{k}' for k in layers)
    x = torch.from_numpy(bilinear(image / 255, 299)).permute(2, 0, 1)[None] * 2 - 1
    x = chain(chain(chain(x, 'Conv2d_1a_3x3/2'), 'Conv2d_2a_3x3', False), 'Conv2d_2b_3x3 max/2 Conv2d_3b_1x1')
    x = chain(chain(x, 'Conv2d_4a_3x3', False), 'max/2')
    for block in ('Mixed_5b', 'Mixed_5c', 'Mixed_5d'):
        x = cat(x, block, 'branch1x1', numbered('5x5', 1, 2), numbered('3x3dbl', 1, 2, 3), 'average branch_pool')
    x = cat(x, 'Mixed_6a', 'branch3x3/2', numbered('3x3dbl', 1, 2, '3/2'), 'max/2')
    for block in ('Mixed_6b', 'Mixed_6c', 'Mixed_6d', 'Mixed_6e'):
        chains = numbered('7x7', 1, 2, 3), numbered('7x7dbl', 1, 2, 3, 4, 5)
        x = cat(x, block, 'branch1x1', *chains, 'average branch_pool')
    x = cat(x, 'Mixed_7a', numbered('3x3', 1, '2/2'), numbered('7x7x3', 1, 2, 3, '4/2'), 'max/2')
    for block, pool in (('Mixed_7b', 'average'), ('Mixed_7c', 'max')):
        forks = [numbered('3x3', 1, f) for f in ('2a', '2b')] + [numbered('3x3dbl', 1, 2, f) for f in ('3a', '3b')]
        x = cat(x, block, 'branch1x1', *forks, pool + ' branch_pool')
    return x.mean((2, 3))[0]


def test_features_are_those_of_the_published_net(weights, net):
    state, rng = torch.load(weights, weights_only=True), np.random.default_rng(0)
    plain = torchvision.models.inception_v3(num_classes=1008, aux_logits=False, init_weights=False).eval()
    plain.load_state_dict(state)
    plain.fc = torch.nn.Identity()
    for size in ((30, 50), (420, 310)):  # one to be enlarged, one to be shrunk, where antialiasing would show
        image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        x, want = torch.from_numpy(image).permute(2, 0, 1)[None], reference(state, image)
        got = inception_features(net, x)
        assert got.dtype == torch.float64 and got.shape == (1, 2048)
        assert (got[0] - want).norm() < 1e-4 * want.norm() and (got[0] - want).abs().max() < 1e-4 * want.abs().max()
        assert (inception_features(plain, x)[0] - want).norm() > 0.01 * want.norm()  # torchvision's pools: not these
    assert (want > 0).double().mean() > 0.5 and 0.01 < want.mean() < 100  # a net whose units are alive


def test_weights_are_checked_and_found(weights, tmp_path, monkeypatch, capsys):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / 'resnet.pth')
    (tmp_path / 'cut.pth').write_bytes(open(weights, 'rb').read(100_000))
    (tmp_path / 'page.pth').write_bytes(b'<html>not found</html>')
    for name in ('cut.pth', 'page.pth', 'resnet.pth', 'missing.pth'):
        with pytest.raises(SystemExit) as e:
            load_inception(str(tmp_path / name), 'cpu')
        assert name in e.value.code and len(e.value.code.splitlines()) == 1 and 'weights_only' not in e.value.code
    asked, before = [], torch.random.get_rng_state()

    def download(url, path, hash_prefix, progress):
        asked.append((url, hash_prefix))
        if len(asked) == 1:
            raise urllib.error.URLError('no route to host')
        os.link(weights, path)
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    assert load_inception('', 'cpu') is None
    line = capsys.readouterr().out.splitlines()[-1]
    assert 'no route to host' in line and FID_URL in line and '--inception=' in line
    assert load_inception('', 'cpu') is not None and asked[1] == (FID_URL, '6726825d')
    assert load_inception('', 'cpu') is not None and len(asked) == 2  # from the cache
    assert torch.equal(before, torch.random.get_rng_state())  # what is trained later does not depend on it


def frechet(x, y):
    """The distance of features (N, d) and (M, d), few of them: tr (C1 C2)^(1/2) is the sum of the singular values of
    X Y^T, centred, over the root of (N - 1)(M - 1). No matrix of d x d."""
    x_c, y_c = x - x.mean(0), y - y.mean(0)
    both = torch.linalg.svdvals(x_c @ y_c.T).sum() / ((len(x) - 1) * (len(y) - 1)) ** 0.5
    same = x_c.square().sum() / (len(x) - 1) + y_c.square().sum() / (len(y) - 1)
    return ((x.mean(0) - y.mean(0)).square().sum() + same - 2 * both).item()


def test_distances():
    x = torch.randn(60, 12, generator=torch.Generator().manual_seed(0)).double()
    near, far = (distances(stats_of([x]), stats_of([x + d])) for d in (0.1, 1))
    assert (near['fid'], far['fid']) == pytest.approx((12 * 0.1 ** 2, 12)) and near['kid'] < far['kid']
    assert far['fid'] == pytest.approx(frechet(x, x + 1))


def test_folders_npz_and_mistakes(net, weights, tmp_path):
    """Two folders of a few noisy images, one of several sizes, modes and depths; what else may lie there."""
    rng, a, b = np.random.default_rng(0), tmp_path / 'a', tmp_path / 'b'
    for path, shape in ((a / '0.png', (40, 32, 3)), (a / '1.PNG', (40, 32, 3)), (a / 'deep/2.bmp', (20, 30, 3)),
                        (a / 'gray.png', (9, 9)), (a / 'veil.png', (9, 9, 4)), (b / '0.png', (16, 16, 3)),
                        (b / '1.png', (16, 16, 3)), (tmp_path / 'cut/0.png', (16, 16, 3))):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)
    (a / 'notes.txt').write_text('no image')
    (a / '._0.png').write_text('no image')  # as macOS leaves them
    common = [f'--inception={weights}', '--device=cpu', '--batch_size=2']
    evaluate.inception = weights
    files = [[a / name for name in ('0.png', '1.PNG', 'deep/2.bmp', 'gray.png', 'veil.png')], sorted(b.iterdir())]
    pixels = lambda path: torch.from_numpy(np.array(Image.open(path).convert('RGB'))).permute(2, 0, 1)
    x, y = (inception_features(net, map(pixels, paths)) for paths in files)
    (_, _, found), said = evaluate.stats_of_files(str(a), 'cpu')
    assert torch.allclose(found, x, rtol=1e-4, atol=1e-5) and said == f'{a}: 5 images'
    np.savez_compressed(tmp_path / 'a.npz', mu=x.mean(0).numpy(), sigma=x.T.cov().numpy())  # as pytorch-fid does
    out = run('evaluate.py', f'--real_dir={tmp_path}/a.npz', f'--fake_dir={b}', *common)
    assert float(out.split('fid ')[1].split()[0]) == pytest.approx(frechet(x, y), rel=1e-3)
    assert f'{tmp_path}/a.npz: statistics' in out and f'{b}: 2 images' in out and 'kid ' not in out
    (tmp_path / 'cut/0.png').write_bytes((tmp_path / 'cut/0.png').read_bytes()[:500])
    (tmp_path / 'empty').mkdir()
    np.savez(tmp_path / 'small.npz', mu=np.zeros(64), sigma=np.zeros((64, 64)))
    (tmp_path / 'no.npz').write_bytes(b'no archive')
    assert '--fake_dir=' in run('evaluate.py', f'--real_dir={b}', *common, ok=False)
    for name in ('empty', 'missing', 'missing.npz', 'cut', 'small.npz', 'no.npz'):
        args = [f'--real_dir={tmp_path}/{name}', f'--fake_dir={b}', *common]
        assert f'{tmp_path}/{name}' in run('evaluate.py', *args, ok=False)


def test_tables_with_fid(net, weights, evaluation, tmp_path):
    """FID and KID of a checkpoint's translations are those of the same images as features made by hand."""
    data = make_data(str(tmp_path / 'data'), n=4)
    run('train_teacher.py', f'--dataset={data}', f'--out_dir={tmp_path}/t', *TINY, '--max_iters=0')
    args = [f'--ckpt={tmp_path}/t/ckpt.pt', *evaluation, f'--inception={weights}', f'--out_dir={tmp_path}/e']
    out, row = run('evaluate.py', *args), json.loads((tmp_path / 'e/results.json').read_text())['checkpoints'][0]
    assert 'FID' in out and 'KID x100' in out and 'below 2,048 images' in out
    c, nets = load_nets(f'{tmp_path}/t/ckpt.pt', 'stargan')
    x, y = (torch.from_numpy(np.load(f'{data}/test_{k}.npy')) for k in 'xy')
    x, fakes = x.permute(0, 3, 1, 2), []
    for i in range(3):
        rows = (y[:, i] == 0).nonzero().flatten()
        fakes.append(to_uint8(nets['G'](x[rows] / 127.5 - 1, set_attr(y[rows].float(), i, c['exclusive']))))
    real, fake = (inception_features(net, part) for part in (x, torch.cat(fakes)))
    assert row['fid'] == pytest.approx(frechet(real, fake), rel=1e-3)
    assert row['kid'] == pytest.approx(evaluate.kid(real, fake, torch.Generator().manual_seed(0))[0], rel=1e-3)
