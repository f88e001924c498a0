"""evaluate.py: its measures against closed forms and reference implementations; tables, figures, photos, FID, KID."""

import json
import os
import re
import shutil
import types
import urllib.error

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
import torchvision
from conftest import TINY, TINY_S, ckpt, make_data, run
from PIL import Image

import evaluate
from evaluate import (FID_URL, bootstrap, cost, distances, frechet_distance, inception_features, kid, load_inception,
                      measure, merge_seeds, stats_of, table, to_uint8)
from gradcam import GradCAM
from train_student import Generator, load_nets, set_attr


def test_frechet_distance_is_sqrtms_and_has_its_closed_forms():
    (m1, m2), (x, y) = torch.randn(2, 20).double(), torch.randn(2, 40, 20).double()
    c1, c2 = x.T.cov(), y.T.cov()
    root = scipy.linalg.sqrtm((c1 @ c2).numpy()).real  # as pytorch-fid does it
    low = torch.diag(torch.tensor([1., 2] + [0] * 18, dtype=torch.float64))  # singular
    mean = (m1 - m2).square().sum()
    for got, want in ((frechet_distance(m1, c1, m2, c2), mean + (c1 + c2).trace() - 2 * np.trace(root)),
                      (frechet_distance(m1, c1, m2, c1), mean),
                      (frechet_distance(m1, c1, m1, 4 * c1), c1.trace()),  # (2 - 1)^2 tr C
                      (frechet_distance(m1, low, m1, 9 * low), 4 * 3)):
        assert got == pytest.approx(float(want), rel=1e-9)
    assert frechet_distance(m1, c1, m1, c1) == pytest.approx(0, abs=1e-9)
    mean, cov, features = stats_of(x.split(7))
    assert torch.allclose(mean, x.mean(0)) and torch.allclose(cov, c1) and torch.equal(features, x)


def test_kid_is_the_double_loop_and_unbiased():
    (x, y), rng = torch.randn(2, 9, 4).double(), lambda: torch.Generator().manual_seed(0)
    k = lambda a, b: (float(a @ b) / 4 + 1) ** 3
    pairs = [(i, j) for i in range(9) for j in range(9)]
    want = sum(k(x[i], x[j]) + k(y[i], y[j]) for i, j in pairs if i != j) / 72
    want -= 2 * sum(k(x[i], y[j]) for i, j in pairs) / 81
    mean, std = kid(x, y, rng())
    assert mean == pytest.approx(want) and np.isnan(std)  # there is one subset, the whole
    x, y = torch.randn(2, 1200, 8, generator=rng())
    mean, std = kid(x, y, rng())
    assert abs(mean) < 0.02 and 0 < std < 0.02  # the same distribution: 0 but for noise
    assert kid(x, y[:99] + 1, rng())[0] > 1


def test_measure():
    m = torch.zeros(4, 8, 8, dtype=torch.bool)
    m[:, :4, :4] = True  # a quarter of the image
    A, half, x, small = torch.zeros(4, 8, 8), torch.zeros(4, 8, 8), torch.zeros(4, 3, 8, 8), torch.zeros(4, 2, 2)
    A[0] = 1  # knows nothing
    A[1, :4, :4] = 1  # the region itself
    A[2, 4:, 4:] = 1  # elsewhere; A[3] is dead
    half[:, :4, 2:6] = 1  # as large as the region, half of it inside: 8 / (16 + 8)
    v = measure(x, x + 0.5 * m[:, None], [A, half], m)
    assert torch.allclose(v['gradcam energy'][:3], torch.tensor([1., 4, 0]).double()) and v['gradcam energy'][3].isnan()
    assert v['gradcam point'][1:3].tolist() == [1, 0] and v['gradcam IoU'][1:3].tolist() == [1, 0]
    assert v['gradcam point'][3].isnan() and v['gradcam dead'].tolist() == [0, 0, 0, 1]
    assert v['leak'].tolist() == [0] * 4 and v['object'].tolist() == [0.5] * 4
    assert v['hirescam IoU'].tolist() == pytest.approx([1 / 3] * 4) and v['hirescam energy'].tolist() == [2] * 4
    small[:, 0, 0] = 1  # enlarged to the region's size
    v = measure(x, x + 1, [small], m)
    assert v['gradcam energy'].min() > 2 and v['gradcam point'].min() == 1 and v['leak'].min() == 1
    v = measure(x, x, [0.4 * half + 0.1], m, 0.3)  # an attention net's
    assert v['IoU'].tolist() == pytest.approx([1 / 3] * 4) and v['A inside'].tolist() == pytest.approx([0.3] * 4)
    assert v['A outside'].tolist() == pytest.approx([0.1 + 0.4 / 6] * 4) and 'gradcam energy' not in v
    assert set(measure(x, x, [], m, 0.1)) == {'leak', 'object'}  # no attention


def test_bootstrap():
    """Against numpy, resampling rows of the table one by one; and the same images for both."""
    rng, nan = np.random.default_rng(0), float('nan')
    a, b = (torch.from_numpy((rng.random((60, 3)) < p).astype(np.float32)) for p in (0.8, 0.6))
    a[rng.random((60, 3)) < 0.3] = nan
    d, low, high = bootstrap(a, b)
    diff = (a - b).numpy()
    assert d == pytest.approx(np.nanmean(diff, 0).mean(), abs=1e-6)
    means = [np.nanmean(diff[rng.integers(0, 60, 60)], 0).mean() for _ in range(2000)]
    assert (low, high) == pytest.approx(tuple(np.quantile(means, (0.025, 0.975))), abs=0.02)
    a[:, 2] = nan  # an attribute that only one of them knows does not count
    assert bootstrap(a, b, 50)[0] == pytest.approx(np.nanmean(diff[:, :2], 0).mean(), abs=1e-6)


def test_merge_seeds_names_rows_and_tables_have_deviations_and_no_empty_columns():
    def row(label, seed=0, target=None, lr=1.0):
        return dict(name=f'{label} -> {target}' if target else label, targets=[target], script='t.py', iter=1,
                    config=dict(seed=seed, out_dir=label, lr=lr, log_interval=seed))
    assert [*merge_seeds([row('T', lr=3.0), row('S-s10', 10), row('S-s11', 11)])] == ['T', 'S (2 seeds)']
    assert [*merge_seeds([row('a'), row('b', lr=2.0), row('edited'), row('c', 1)])] == ['a', 'edited', 'c', 'b']
    assert [*merge_seeds([row('s0'), row('s1', 1), row('x', 0, 'y')])] == ['s (2 seeds)', 'x -> y']
    uag = [row(label, seed, target) for seed, label in enumerate(('u_0', 'u_1')) for target in 'xy']
    assert [*merge_seeds(uag)] == ['u -> x (2 seeds)', 'u -> y (2 seeds)']
    groups = {'one': [dict(a=0.5, b=float('nan'))], 'two': [dict(a=0.1), dict(a=0.3)]}
    text, = table('x', [('A', 'a', 100, 1), ('B', 'b', 1, 2)], groups)
    assert text.splitlines() == ['x              A', 'one         50.0', 'two  20.0 ± 14.1']
    assert table('x', [('B', 'b', 1, 2)], groups) == []


def test_cost_and_pixels():
    G, want = Generator(4, 2, 1), 0  # multiply-adds: positions of output (input, if transposed) x weights
    net = types.SimpleNamespace(parts=[G], translate=lambda x, y, name: G(x, y))
    found = cost(net, torch.zeros(3, 3, 8, 8), torch.zeros(3, 2), 'a')
    for name, positions in (('down.0', 64), ('down.3', 16), ('down.6', 4), ('res.0.main.0', 4), ('res.0.main.3', 4),
                            ('up.0', 4), ('up.3', 16), ('out.0', 64)):
        want += positions * G.get_submodule(name).weight.numel()
    assert found['params'] == sum(p.numel() for p in G.parameters()) and found['macs'] == want
    assert found['latency_ms'] > 0 and found['images_per_s'] > 0
    x = to_uint8(torch.linspace(-1, 1, 10001))
    assert x.dtype == torch.uint8 and x.min() == 0 and x.max() == 255 and len(x.unique()) == 256


# whole runs
@pytest.fixture(scope='module')
def runs(data, teacher, tmp_path_factory):
    """Two seeds of a student, by hirescam, and two of "pseudo"-attention, of other attributes -> s_0, s_1, p, p0."""
    out, S = tmp_path_factory.mktemp('runs'), ['train_student.py', *TINY_S]
    for seed in (0, 1):
        run(*S, f'--teacher={teacher}/ckpt.pt', f'--out_dir={out}/s_{seed}', f'--seed={seed}', '--cam=hirescam')
    run('train_teacher.py', f'--dataset={data}', f'--out_dir={out}/t_a', *TINY, '--attrs=a')
    run(*S, f'--teacher={out}/t_a/ckpt.pt', f'--out_dir={out}/p', '--attrs=c', '--pseudo=a')
    run(*S, f'--teacher={out}/t_a/ckpt.pt', f'--out_dir={out}/p0', '--attrs=c', '--lambda_att=0')
    return out


def arrays(data, split='test'):
    """-> images as nets take them, labels, regions."""
    x, y, m = (torch.from_numpy(np.load(f'{data}/{split}_{k}.npy')) for k in 'xym')
    return x.permute(0, 3, 1, 2) / 127.5 - 1, y, m.bool()


def results(folder):
    return json.loads((folder / 'results.json').read_text())['checkpoints']


def by_hand(G, D, x, y, m, i, score):
    """Measures of the translations of all images without attribute i of labels y: both maps, by D's class `score`."""
    rows = (y[:, i] == 0).nonzero().flatten()
    target = y[rows].float()
    target[:, [0, 1] if i < 2 else [i]] = 0  # a and b are exclusive
    target[:, i] = 1
    maps = []
    for cam in ('gradcam', 'hirescam'):
        hook = GradCAM(G.res[-1], cam)
        x_fake = G(x[rows], target if G.down[0].in_channels > 4 else target[:, [i]])
        maps.append(hook(D(x_fake)[1][:, score]))
        hook.remove()
    v = measure(x[rows], to_uint8(x_fake.detach()) / 127.5 - 1, maps, m[rows])
    return {k: w.nanmean().item() for k, w in v.items()}


def test_tables_figures_and_report(teacher, runs, data, evaluation, tmp_path):
    paths, e = [f'{p}/ckpt.pt' for p in (teacher, runs / 's_0', runs / 's_1')], tmp_path / 'e'
    args = ['evaluate.py', *evaluation, f'--clf_dir={tmp_path}/clf']
    out = run(*args, f"--ckpt={','.join(paths)}", f'--out_dir={e}', '--batch_size=7')
    rows, (x, y, m) = results(e), arrays(data)
    assert [row['name'] for row in rows] == [teacher.name, 's_0', 's_1'] and rows[0]['n_fake'] == (y == 0).sum()
    both = 50 * (rows[1]['accuracy'] + rows[2]['accuracy'])
    assert re.search(rf'^s \(2 seeds\) .* {both:.1f} ± ', out, re.M) and '95 % interval' in out
    assert f"s (2 seeds) - {teacher.name}: {both - 100 * rows[0]['accuracy']:+.1f} points" in out
    assert (e / 'table.txt').read_text().strip() in out
    page = (e / 'report.html').read_text()
    assert page.count('data:image/png;base64,') == 2 and '<script' not in page  # all in it, nothing fetched
    assert not re.findall(r'(?:src|href)=(?!"data:)', page) and 'python evaluate.py' in page
    assert sorted(os.listdir(e)) == ['maps.png', 'report.html', 'results.json', 'stages.png', 'table.txt']
    assert Image.open(e / 'stages.png').height == 22 + 3 * 132  # a row for each attribute
    # both maps of the teacher and a student, by hand
    (_, T), (_, S) = (load_nets(path, 'stargan') for path in paths[:2])
    for row, G in zip(rows, (T['G'], S['G'])):
        want = [by_hand(G, T['D'], x, y, m[:, i], i, i) for i in range(3)]
        for k in want[0]:
            assert row[k] == pytest.approx(np.nanmean([w[k] for w in want]), rel=1e-4), k
    # again, from the classifier's cache, another batch size, of students trained by the other map: only that is drawn
    for name in ('s_0', 's_1'):
        c = ckpt(runs / name)
        (tmp_path / name).mkdir()
        torch.save(c | {'config': c['config'] | {'cam': 'gradcam'}}, tmp_path / name / 'ckpt.pt')
    paths[1:] = f'{tmp_path}/s_0/ckpt.pt', f'{tmp_path}/s_1/ckpt.pt'
    assert 'epoch' not in run(*args, f"--ckpt={','.join(paths)}", f'--out_dir={e}2', '--batch_size=20')
    for row, row2 in zip(rows, results(tmp_path / 'e2')):
        assert row['accuracy'] == row2['accuracy'] and row['fd_clf'] == pytest.approx(row2['fd_clf'], rel=1e-3)
    a, b = (np.asarray(Image.open(folder / 'maps.png'))[22:, -264:] for folder in (e, tmp_path / 'e2'))
    assert np.array_equal(a[:, :132], b[:, :132]) and not np.array_equal(a[:, 132:], b[:, 132:])  # translation, its map
    (tmp_path / 'clf' / os.listdir(tmp_path / 'clf')[0]).write_bytes(b'damaged')
    assert 'delete it' in run(*args, f'--ckpt={paths[0]}', f'--out_dir={e}2', ok=False)


def test_pseudo_maps_are_scored_by_the_teachers_class(runs, data, evaluation, tmp_path):
    paths = ','.join(f'{runs}/{name}/ckpt.pt' for name in ('t_a', 'p', 'p0'))
    out = run('evaluate.py', f'--ckpt={paths}', f'--out_dir={tmp_path}', '--split=val', '--n_rows=1', *evaluation)
    (x, y, m), D = arrays(data, 'val'), load_nets(f'{runs}/t_a/ckpt.pt', 'stargan')[1]['D']
    assert f'24 val images of {data}' in out
    for row, name in zip(results(tmp_path)[1:], ('p', 'p0')):  # c by the score of a, also without attention loss
        G = load_nets(f'{runs}/{name}/ckpt.pt', 'stargan')[1]['G']
        assert set(row['measures']) == {'c'}
        for k, v in by_hand(G, D, x, y, m[:, 2], 2, 0).items():
            assert row[k] == pytest.approx(v, rel=1e-4, nan_ok=True), k


def test_regions_at_a_smaller_size_and_an_attribute_that_all_have(evaluation, tmp_path):
    data = make_data(str(tmp_path / 'data'))
    x, y, m = arrays(data)
    y[:, 2], m[:] = 1, False
    m[:, 0, 3:6, 2:7] = True  # at 8 px: pixels 1 and 2 of row 2 are full; others half or less
    np.save(f'{data}/test_y.npy', y)
    np.save(f'{data}/test_m.npy', m.byte())
    run('train_teacher.py', f'--dataset={data}', f'--out_dir={tmp_path}/t', *TINY, '--image_size=8')
    run('evaluate.py', f'--ckpt={tmp_path}/t/ckpt.pt', f'--out_dir={tmp_path}/e', *evaluation)
    row, = results(tmp_path / 'e')
    assert set(row['measures']) == {'a', 'b'} and row['measures']['b']['gradcam energy'] is None  # b's is nowhere
    nets, at_8px = load_nets(f'{tmp_path}/t/ckpt.pt', 'stargan')[1], torch.zeros(24, 8, 8, dtype=torch.bool)
    at_8px[:, 2, 1:3] = True
    want = by_hand(nets['G'], nets['D'], torch.nn.functional.avg_pool2d(x, 2), y, at_8px, 0, 0)
    for k, v in want.items():
        assert row['measures']['a'][k] == pytest.approx(v, rel=1e-4), k


def test_photos(teacher, tmp_path):
    (tmp_path / 'in/deep').mkdir(parents=True)
    photo, turned = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8), Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(photo).save(tmp_path / 'in/a.png')
    Image.fromarray(photo).convert('CMYK').save(tmp_path / 'in/a.jpg')  # the same stem, another mode
    Image.fromarray(photo).save(tmp_path / 'in/deep/b.jpg', exif=turned)
    (tmp_path / 'in/broken.jpg').write_text('no image')
    args = ['evaluate.py', f'--ckpt={teacher}/ckpt.pt', '--device=cpu']
    said = run(*args, f'--input={tmp_path}/in', f'--out={tmp_path}/o', '--attrs=a,b+c')
    assert 'broken.jpg: left out' in said and 'centre square' in said and '6 images' in said
    assert {str(path.relative_to(tmp_path / 'o')) for path in (tmp_path / 'o').rglob('*.png')} == {
        f'{name}_{target}.png' for name in ('a_jpg', 'a_png', 'deep/b_jpg') for target in ('a', 'b+c')}
    result = np.asarray(Image.open(tmp_path / 'o/a_png_a.png')) == photo
    assert result[:5].all() and result[35:].all() and not result[5:35].all()  # outside the square
    assert Image.open(tmp_path / 'o/deep/b_jpg_a.png').size == (40, 30)  # upright
    # the square is G's, for what D takes the photo for
    run(*args, f'--input={tmp_path}/in/a.png', f'--out={tmp_path}/o', '--attrs=b', '--paste=False')
    nets = load_nets(f'{teacher}/ckpt.pt', 'stargan')[1]
    x = np.array(Image.open(tmp_path / 'in/a.png').crop((0, 5, 30, 35)).resize((16, 16), Image.Resampling.BICUBIC))
    x = torch.from_numpy(x).permute(2, 0, 1)[None] / 127.5 - 1
    y = set_attr((nets['D'](x)[1] > 0).float(), 1, [[0, 1]])  # a and b are exclusive
    want = to_uint8(nets['G'](x, y))[0].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(np.asarray(Image.open(tmp_path / 'o/a_png_b.png')) - want).max() <= 1


def test_without_imagenet_weights(data, teacher, evaluation, tmp_path):
    shutil.copytree(data, tmp_path / 'tiny')
    for split in ('train', 'val', 'test'):
        os.remove(tmp_path / f'tiny/{split}_m.npy')
    # without regions the data is not drawn; no weights, no network: a warning, and on with the other
    says = run('evaluate.py', f'--ckpt={teacher}/ckpt.pt', f'--dataset={tmp_path}/tiny', *evaluation,
               f'--out_dir={tmp_path}/e', env=dict(TORCH_HOME=str(tmp_path), https_proxy='http://127.0.0.1:9'))
    assert 'warning: no ImageNet weights' in says and 'classifier resnet18' in says and 'gradcam' not in says


# FID and KID: the Inception net against a plain reimplementation, files, folders, the command
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
