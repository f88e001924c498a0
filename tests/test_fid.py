"""FID and KID of evaluate.py: the Inception net against a plain reimplementation, files, folders, the command."""

import json
import os
import types
import urllib.error

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import run
from PIL import Image

import evaluate
from evaluate import (INCEPTION, Moments, distances, find_inception, inception_features, inception_stats,
                      load_inception, load_stats_file, save_stats_file)
from train_student import to_float


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


@pytest.fixture(scope='session')
def folders(tmp_path_factory):
    """Two folders of a few noisy images: a, of several sizes, modes and depths; b, darker."""
    root, rng = tmp_path_factory.mktemp('folders'), np.random.default_rng(0)
    for path, size, top in (('a/0.png', (40, 32), 256), ('a/1.PNG', (40, 32), 256), ('a/deep/2.bmp', (20, 30), 256),
                            ('a/3.webp', (40, 32), 256), ('b/0.png', (16, 16), 128), ('b/1.png', (16, 16), 128),
                            ('b/2.png', (16, 16), 128)):
        os.makedirs(root / os.path.dirname(path), exist_ok=True)
        Image.fromarray(rng.integers(0, top, (*size, 3), dtype=np.uint8)).save(root / path, lossless=True)
    Image.fromarray(rng.integers(0, 256, (9, 9), dtype=np.uint8)).save(root / 'a' / 'gray.png')
    Image.fromarray(rng.integers(0, 256, (9, 9, 4), dtype=np.uint8)).save(root / 'a' / 'veil.png')  # part transparent
    (root / 'a' / 'notes.txt').write_text('no image')
    (root / 'a' / '._0.png').write_text('no image')  # as macOS leaves them
    return root


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


def error(call, *args):
    """The one line that call(*args) exits with."""
    with pytest.raises(SystemExit) as e:
        call(*args)
    assert isinstance(e.value.code, str) and len(e.value.code.splitlines()) == 1, e.value.code
    return e.value.code


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


def test_weights_are_checked(weights, tmp_path, capsys):
    with open(weights, 'rb') as f:
        start = f.read(100_000)
    for name, content in (('cut.pth', start), ('page.pth', b'<html>not found</html>'), ('empty.pth', b'')):
        (tmp_path / name).write_bytes(content)
        line = error(load_inception, str(tmp_path / name), 'cpu')
        assert name in line and 'weights_only' not in line  # no advice to load it unsafely
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / 'resnet.pth')
    assert 'resnet.pth' in error(load_inception, str(tmp_path / 'resnet.pth'), 'cpu')
    assert 'No such file' in error(load_inception, str(tmp_path / 'missing.pth'), 'cpu')
    os.symlink(weights, tmp_path / INCEPTION)  # loads, but is not what its name says
    assert 'sha256' in error(load_inception, str(tmp_path / INCEPTION), 'cpu')
    capsys.readouterr()
    before = torch.random.get_rng_state()
    load_inception(weights, 'cpu')
    assert 'not the published weights' in capsys.readouterr().out
    assert torch.equal(before, torch.random.get_rng_state())  # what is trained later does not depend on it


def test_weights_are_found(tmp_path, monkeypatch, capsys):
    asked = []

    def download(url, path, hash_prefix, progress):
        asked.append((url, hash_prefix))
        if len(asked) == 1:
            raise urllib.error.URLError('no route to host')
        with open(path, 'wb') as f:
            f.write(b'it')

    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    assert find_inception(__file__) == __file__ and not asked
    assert find_inception('') is None
    line = capsys.readouterr().out.splitlines()[-1]
    assert 'no route to host' in line and str(tmp_path / 'checkpoints') in line and '--inception=' in line
    cached = str(tmp_path / 'checkpoints' / INCEPTION)
    assert find_inception('') == cached and asked[1][0].endswith(INCEPTION) and asked[1][1] == '6726825d'
    assert find_inception('') == cached and len(asked) == 2  # from the cache


def test_stats_of_batches(net):
    x = torch.randint(0, 256, (5, 3, 20, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    stats = inception_stats(iter([x[:3], x[3:4, :, :9], x[4:, :, :, :7]]), 5, net, 'x')  # any size
    alone = torch.cat([inception_features(net, i) for i in (x[:1], x[1:2], x[2:3], x[3:4, :, :9], x[4:, :, :, :7])])
    assert stats['n'] == 5 and torch.allclose(stats['features'].double(), alone, rtol=1e-4, atol=1e-5)
    assert torch.allclose(stats['mu'], alone.mean(0), rtol=1e-4, atol=1e-5)
    assert torch.allclose(stats['sigma'], alone.T.cov(), rtol=1e-3, atol=1e-4 * alone.T.cov().abs().max().item())


def test_moments_keep_a_sample_of_many():
    moments = Moments()
    for rows in torch.arange(50_000, dtype=torch.float64)[:, None].split(777):
        moments.add(rows)
    stats = moments.stats()
    kept = stats['features'][:, 0]
    assert stats['n'] == 50_000 and 10_000 <= len(kept) <= 20_000 and len((kept[1:] - kept[:-1]).unique()) == 1
    assert stats['mu'].item() == 49999 / 2 and stats['sigma'].item() == pytest.approx(50_000 * 50_001 / 12)


def test_stats_files(tmp_path):
    path, moments = str(tmp_path / 'x.npz'), Moments()
    moments.add(torch.randn(3, 2048, generator=torch.Generator().manual_seed(0)).double())
    stats = moments.stats()
    save_stats_file(path, stats)
    back = load_stats_file(path)
    assert os.listdir(tmp_path) == ['x.npz'] and back.keys() == stats.keys()
    assert all(torch.equal(torch.as_tensor(back[k]), torch.as_tensor(stats[k])) for k in stats)
    np.savez_compressed(path, mu=stats['mu'].numpy(), sigma=stats['sigma'].numpy())  # as pytorch-fid does
    back = load_stats_file(path)
    assert torch.equal(back['sigma'], stats['sigma']) and back['n'] is back['features'] is None
    for content in (dict(mu=np.zeros(2048)), dict(mu=np.zeros(64), sigma=np.zeros((64, 64))),
                    dict(mu=np.zeros(2048), sigma=np.full((2048, 2048), np.nan))):
        np.savez(path, **content)
        assert 'x.npz' in error(load_stats_file, path)
    for content in (b'no archive', b'PK no archive either', b''):
        (tmp_path / 'x.npz').write_bytes(content)
        assert 'x.npz' in error(load_stats_file, path)
    assert 'no.npz' in error(load_stats_file, str(tmp_path / 'no.npz'))


def test_real_images_are_cached(net, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, 'stats_dir', str(tmp_path))
    x = torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    shows, rows = types.SimpleNamespace(size=8, to_x=lambda x: to_float(x, 8)), torch.tensor([0, 2, 3])
    stats = evaluate.real_stats(x, rows, shows, net, 'tiny', 'cpu')
    pixels = ((to_float(x[rows], 8) + 1) * 127.5).round().byte()  # what the nets are shown, as a PNG keeps it
    assert torch.allclose(stats['features'].double(), inception_features(net, pixels), rtol=1e-4, atol=1e-5)
    [name] = os.listdir(tmp_path)
    save_stats_file(str(tmp_path / name), dict(stats, mu=stats['mu'] + 1))
    assert torch.equal(evaluate.real_stats(x, rows, shows, net, 'tiny', 'cpu')['mu'], stats['mu'] + 1)  # read back
    evaluate.real_stats(255 - x, rows, shows, net, 'tiny', 'cpu')  # other images, or other rows: another file
    evaluate.real_stats(x, rows[1:], shows, net, 'tiny', 'cpu')
    assert len(os.listdir(tmp_path)) == 3


def test_distances():
    def stats(x):
        moments = Moments()
        moments.add(x)
        return moments.stats()

    x = torch.randn(60, 12, generator=torch.Generator().manual_seed(0)).double()
    measured = [distances(stats(x), stats(x + d), 'cpu') for d in (0.1, 1)]
    assert [m['fid'] for m in measured] == pytest.approx([12 * 0.1 ** 2, 12])
    assert measured[0]['kid'] < measured[1]['kid']
    assert 'kid' not in distances(dict(stats(x), features=None), stats(x), 'cpu')


def test_folders(net, folders, weights, tmp_path):
    a, b, stats = folders / 'a', folders / 'b', tmp_path / 'sub' / 'a.npz'
    common = [f'--inception={weights}', '--device=cpu', '--batch_size=2']
    assert '6 images' in run('evaluate.py', f'--real_dir={a}', f'--save_stats={stats}', *common)
    out = run('evaluate.py', f'--real_dir={stats}', f'--fake_dir={b}', *common)
    files = [[a / name for name in ('0.png', '1.PNG', '3.webp', 'deep/2.bmp', 'gray.png', 'veil.png')], b.iterdir()]
    pixels = lambda path: torch.from_numpy(np.array(Image.open(path).convert('RGB'))).permute(2, 0, 1)[None]
    x, y = (torch.cat([inception_features(net, pixels(path)) for path in paths]) for paths in files)
    saved, x_c, y_c = load_stats_file(str(stats)), x - x.mean(0), y - y.mean(0)
    assert saved['n'] == 6 and torch.allclose(saved['mu'], x.mean(0), rtol=1e-4, atol=1e-5)
    # tr (C1 C2)^(1/2) is the sum of the singular values of X Y^T, over the root of (n - 1)(m - 1)
    want = (x.mean(0) - y.mean(0)).square().sum() + x_c.square().sum() / 5 + y_c.square().sum() / 2
    want -= 2 * torch.linalg.svdvals(x_c @ y_c.T).sum() / (5 * 2) ** 0.5
    assert float(out.split('FID ')[1].split()[0]) == pytest.approx(want.item(), rel=1e-3, abs=0.006)
    assert '6 images' in out and '3 images' in out and 'below 2,048' in out and 'KID x100' in out


def test_folder_mistakes(folders, weights, tmp_path):
    common = [f'--real_dir={folders}/b', f'--inception={weights}', '--device=cpu']
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'one').mkdir()
    (tmp_path / 'cut').mkdir()
    for name, size in (('one/0.png', None), ('cut/0.png', None), ('cut/1.png', 500)):
        (tmp_path / name).write_bytes((folders / 'b' / name[4:]).read_bytes()[:size])
    assert 'save_stats' in run('evaluate.py', *common, ok=False)
    assert '.npz' in run('evaluate.py', *common, f'--save_stats={tmp_path}/x.txt', ok=False)
    for name in ('empty', 'one', 'missing', 'missing.npz'):
        assert f'{tmp_path}/{name}' in run('evaluate.py', *common, f'--fake_dir={tmp_path}/{name}', ok=False)
    assert 'cut/1.png' in run('evaluate.py', *common, f'--fake_dir={tmp_path}/cut', ok=False)


def test_tables_with_fid(teacher, weights, tmp_path):
    """FID and KID of a checkpoint's translations are those of the same images in two folders."""
    args = ['evaluate.py', f'--ckpt={teacher}/ckpt.pt', f'--inception={weights}', '--device=cpu', '--clf_epochs=1',
            f'--out_dir={tmp_path}/e', f'--clf_dir={tmp_path}/clf', f'--stats_dir={tmp_path}/stats',
            '--save_images=True']
    out = run(*args)
    assert 'FID' in out and 'KID x100' in out and 'below 2,048 images' in out and 'not the published weights' in out
    r = json.loads((tmp_path / 'e/results.json').read_text())['checkpoints'][0]
    c = torch.load(teacher / 'ckpt.pt', weights_only=True)
    os.makedirs(tmp_path / 'real')
    for k, x in enumerate(np.load(os.path.join(c['config']['dataset'], 'test_x.npy'))):
        Image.fromarray(x).save(tmp_path / f'real/{k:02d}.png')
    out = run('evaluate.py', f'--real_dir={tmp_path}/real', f'--fake_dir={tmp_path}/e/images/{teacher.name}',
              f'--inception={weights}', '--device=cpu')
    assert f'FID {r["fid"]:.3f} | KID x100 {100 * r["kid"]:.4f}' in out
    kept, = os.listdir(tmp_path / 'stats')
    before = (tmp_path / 'stats' / kept).stat().st_mtime_ns
    run(*args)
    assert (tmp_path / 'stats' / kept).stat().st_mtime_ns == before  # read, not made again
