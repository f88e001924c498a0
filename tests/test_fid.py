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


@pytest.fixture(scope='session')
def weights(tmp_path_factory):
    """A file in the layout of the published one (old format, torchvision's keys), with random weights."""
    with torch.device('meta'):
        net = torchvision.models.inception_v3(num_classes=1008, aux_logits=False, init_weights=False)
    generator, state = torch.Generator().manual_seed(0), {}
    for name, v in net.state_dict().items():
        if name.endswith('num_batches_tracked'):
            continue
        state[name] = torch.randn(v.shape, generator=generator) * 0.2 + name.endswith(('bn.weight', 'running_var'))
        if name.endswith('running_var'):
            state[name] = state[name].abs() + 0.3
        if v.dim() == 4:  # keeps the size of activations about the same from layer to layer
            state[name] *= 5 * (2 / v[0].numel()) ** 0.5
    path = tmp_path_factory.mktemp('inception') / 'random.pth'
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return str(path)


@pytest.fixture(scope='session')
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


def reference(state, image):
    """The 2048 features of one image (H, W, 3) uint8, in float64, out of nothing but the file's tensors."""
    def conv(x, name, stride=1, padding=0):
        mean, var, scale, shift = (state[f'{name}.bn.{k}'].double()[:, None, None]
                                   for k in ('running_mean', 'running_var', 'weight', 'bias'))
        x = F.conv2d(x, state[name + '.conv.weight'].double(), stride=stride, padding=padding)
        return ((x - mean) / (var + 0.001).sqrt() * scale + shift).clamp_min(0)

    def chain(x, block, *layers):
        for name, *how in layers:
            x = conv(x, f'{block}.{name}', *how)
        return x

    def average(x):
        count = F.avg_pool2d(torch.ones_like(x), 3, 1, 1) * 9  # pixels under the window: 4, 6 or 9
        return F.avg_pool2d(x, 3, 1, 1) * 9 / count

    def split(x, block, stem):  # the fork of the last two blocks
        return torch.cat([chain(x, block, (stem + 'a', 1, (0, 1))), chain(x, block, (stem + 'b', 1, (1, 0)))], 1)

    wide, tall = (1, (0, 3)), (1, (3, 0))
    x = torch.from_numpy(bilinear(image / 255, 299)).permute(2, 0, 1)[None] * 2 - 1
    x = conv(conv(conv(x, 'Conv2d_1a_3x3', 2), 'Conv2d_2a_3x3'), 'Conv2d_2b_3x3', 1, 1)
    x = conv(conv(F.max_pool2d(x, 3, 2), 'Conv2d_3b_1x1'), 'Conv2d_4a_3x3')
    x = F.max_pool2d(x, 3, 2)
    for block in ('Mixed_5b', 'Mixed_5c', 'Mixed_5d'):
        x = torch.cat([chain(x, block, ('branch1x1',)), chain(x, block, ('branch5x5_1',), ('branch5x5_2', 1, 2)),
                       chain(x, block, ('branch3x3dbl_1',), ('branch3x3dbl_2', 1, 1), ('branch3x3dbl_3', 1, 1)),
                       chain(average(x), block, ('branch_pool',))], 1)
    x = torch.cat([chain(x, 'Mixed_6a', ('branch3x3', 2)),
                   chain(x, 'Mixed_6a', ('branch3x3dbl_1',), ('branch3x3dbl_2', 1, 1), ('branch3x3dbl_3', 2)),
                   F.max_pool2d(x, 3, 2)], 1)
    for block in ('Mixed_6b', 'Mixed_6c', 'Mixed_6d', 'Mixed_6e'):
        x = torch.cat([chain(x, block, ('branch1x1',)),
                       chain(x, block, ('branch7x7_1',), ('branch7x7_2', *wide), ('branch7x7_3', *tall)),
                       chain(x, block, ('branch7x7dbl_1',), ('branch7x7dbl_2', *tall), ('branch7x7dbl_3', *wide),
                             ('branch7x7dbl_4', *tall), ('branch7x7dbl_5', *wide)),
                       chain(average(x), block, ('branch_pool',))], 1)
    x = torch.cat([chain(x, 'Mixed_7a', ('branch3x3_1',), ('branch3x3_2', 2)),
                   chain(x, 'Mixed_7a', ('branch7x7x3_1',), ('branch7x7x3_2', *wide), ('branch7x7x3_3', *tall),
                         ('branch7x7x3_4', 2)), F.max_pool2d(x, 3, 2)], 1)
    for block, pool in (('Mixed_7b', average), ('Mixed_7c', lambda x: F.max_pool2d(x, 3, 1, 1))):
        deep = chain(x, block, ('branch3x3dbl_1',), ('branch3x3dbl_2', 1, 1))
        x = torch.cat([chain(x, block, ('branch1x1',)), split(chain(x, block, ('branch3x3_1',)), block, 'branch3x3_2'),
                       split(deep, block, 'branch3x3dbl_3'), chain(pool(x), block, ('branch_pool',))], 1)
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


def test_distances():
    x = torch.randn(60, 12, generator=torch.Generator().manual_seed(0)).double()
    measured = [distances(stats_of([x]), stats_of([x + d])) for d in (0.1, 1)]
    assert [m['fid'] for m in measured] == pytest.approx([12 * 0.1 ** 2, 12])
    assert measured[0]['kid'] < measured[1]['kid']
    assert 'kid' not in distances((*stats_of([x])[:2], None), stats_of([x]))


def frechet(x, y):
    """The distance of features (N, d) and (M, d), few of them: tr (C1 C2)^(1/2) is the sum of the singular values of
    X Y^T, centred, over the root of (N - 1)(M - 1). No matrix of d x d."""
    x_c, y_c = x - x.mean(0), y - y.mean(0)
    both = torch.linalg.svdvals(x_c @ y_c.T).sum() / ((len(x) - 1) * (len(y) - 1)) ** 0.5
    same = x_c.square().sum() / (len(x) - 1) + y_c.square().sum() / (len(y) - 1)
    return ((x.mean(0) - y.mean(0)).square().sum() + same - 2 * both).item()


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
    assert f'{tmp_path}/a.npz: statistics' in out and f'{b}: 2 images' in out and 'below 2,048' in out and 'kid ' not in out
    (tmp_path / 'cut/0.png').write_bytes((tmp_path / 'cut/0.png').read_bytes()[:500])
    (tmp_path / 'empty').mkdir()
    np.savez(tmp_path / 'small.npz', mu=np.zeros(64), sigma=np.zeros((64, 64)))
    (tmp_path / 'no.npz').write_bytes(b'no archive')
    assert '--fake_dir=' in run('evaluate.py', f'--real_dir={b}', *common, ok=False)
    for name in ('empty', 'missing', 'missing.npz', 'cut', 'small.npz', 'no.npz'):
        assert f'{tmp_path}/{name}' in run('evaluate.py', f'--real_dir={tmp_path}/{name}', f'--fake_dir={b}', *common,
                                           ok=False)


def test_tables_with_fid(net, weights, tmp_path):
    """FID and KID of a checkpoint's translations are those of the same images as features made by hand."""
    data = make_data(str(tmp_path / 'data'), n=5)
    run('train_teacher.py', f'--dataset={data}', f'--out_dir={tmp_path}/t', *TINY, '--max_iters=0')
    out = run('evaluate.py', f'--ckpt={tmp_path}/t/ckpt.pt', f'--inception={weights}', '--device=cpu', '--clf_epochs=1',
              f'--out_dir={tmp_path}/e', f'--clf_dir={tmp_path}/clf')
    assert 'FID' in out and 'KID x100' in out and 'below 2,048 images' in out
    row, = json.loads((tmp_path / 'e/results.json').read_text())['checkpoints']
    c, nets = load_nets(f'{tmp_path}/t/ckpt.pt', 'stargan')
    x, y = (torch.from_numpy(np.load(f'{data}/test_{k}.npy')) for k in 'xy')
    x, fakes = x.permute(0, 3, 1, 2), []
    for i in range(3):
        rows = (y[:, i] == 0).nonzero().flatten()
        fakes.append(to_uint8(nets['G'](x[rows] / 127.5 - 1, set_attr(y[rows].float(), i, c['exclusive']))))
    real, fake = (inception_features(net, part) for part in (x, torch.cat(fakes)))
    assert row['fid'] == pytest.approx(frechet(real, fake), rel=1e-3)
    assert row['kid'] == pytest.approx(evaluate.kid(real, fake, torch.Generator().manual_seed(0))[0], rel=1e-3)
