"""The measures of evaluate.py against closed forms and a reference implementation; tables, figures and photos."""

import json
import os
import re
import shutil
import types

import numpy as np
import pytest
import scipy.linalg
import torch
import torchvision
from conftest import TINY, TINY_S, ckpt, make_data, run
from PIL import Image

import evaluate
from evaluate import bootstrap, cost, frechet_distance, kid, measure, merge_seeds, stats_of, table, to_uint8
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
    assert [*merge_seeds([row('a'), row('b', lr=2.0)])] == ['a', 'b']
    uag = [row(label, seed, target) for seed, label in enumerate(('u_0', 'u_1')) for target in 'xy']
    assert [*merge_seeds(uag)] == ['u -> x (2 seeds)', 'u -> y (2 seeds)']
    groups = {'one': [dict(a=0.5, b=float('nan'))], 'two': [dict(a=0.1), dict(a=0.3)]}
    text, = table('x', [('A', 'a', 100, 1), ('B', 'b', 1, 2)], groups)
    assert text.splitlines() == ['x              A', 'one         50.0', 'two  20.0 ± 14.1']
    assert table('x', [('B', 'b', 1, 2)], groups) == []


def test_cost_and_pixels(tmp_path):
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
    x = torch.rand(3, 4, 5) * 2 - 1
    evaluate.to_image(x).save(tmp_path / 'x.png')  # a PNG keeps just these
    assert np.array_equal(np.asarray(Image.open(tmp_path / 'x.png')), to_uint8(x).permute(1, 2, 0).numpy())


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


def test_pretrained_classifier(data, teacher, evaluation, tmp_path, monkeypatch):
    shutil.copytree(data, tmp_path / 'tiny')
    for split in ('train', 'val', 'test'):
        os.remove(tmp_path / f'tiny/{split}_m.npy')
    # without regions the data is not drawn; no weights, no network: a warning, and on with the other
    says = run('evaluate.py', f'--ckpt={teacher}/ckpt.pt', f'--dataset={tmp_path}/tiny', *evaluation,
               f'--out_dir={tmp_path}/e', env=dict(TORCH_HOME=str(tmp_path), https_proxy='http://127.0.0.1:9'))
    assert 'warning: no ImageNet weights' in says and 'classifier resnet18' in says and 'gradcam' not in says
    # a file of ImageNet's layout, 1,000 classes: what is trained starts from it
    weights = tmp_path / 'checkpoints' / os.path.basename(torchvision.models.ResNet50_Weights.IMAGENET1K_V2.url)
    weights.parent.mkdir()
    with torch.device('meta'):
        state = torchvision.models.resnet50().state_dict()
    torch.save({k: torch.full(v.shape, 0.01).to(v.dtype) for k, v in state.items()}, weights)
    for name, value in (('clf_arch', 'resnet50'), ('clf_epochs', 1), ('batch_size', 8)):
        monkeypatch.setattr(evaluate, name, value)
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    x, y = torch.zeros(4, 32, 32, 3).byte(), torch.ones(4, 3)
    clf = evaluate.get_classifier(x, y, lambda x: x.permute(0, 3, 1, 2) / 1, True, str(tmp_path / 'clf.pt'), 'cpu')
    assert clf.fc.out_features == 3 and (clf.conv1.weight - 0.01).abs().max() < 1e-3 and (tmp_path / 'clf.pt').exists()
