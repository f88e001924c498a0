"""The measures of evaluate.py against closed forms and a reference implementation."""

import json
import os
import re

import numpy as np
import pytest
import scipy.linalg
import torch
import torchvision
from conftest import TINY, TINY_S, make_data, run
from PIL import Image

import evaluate
from evaluate import (Moments, as_markdown, as_text, bootstrap, cost, frechet_distance, kid, measure, merge_seeds,
                      table, to_uint8)
from gradcam import GradCAM
from train_student import Discriminator, Generator, overlay


def gaussian(d, seed):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((d, d))
    return torch.from_numpy(rng.standard_normal(d)), torch.from_numpy(a @ a.T / d)


def test_frechet_distance_is_sqrtms():
    (m1, c1), (m2, c2) = gaussian(20, 0), gaussian(20, 1)
    root = scipy.linalg.sqrtm((c1 @ c2).numpy()).real
    want = ((m1 - m2) ** 2).sum() + c1.trace() + c2.trace() - 2 * np.trace(root)
    assert frechet_distance(m1, c1, m2, c2) == pytest.approx(want.item(), rel=1e-9)


def test_frechet_distance_closed_forms():
    (m1, c1), (m2, _) = gaussian(8, 0), gaussian(8, 1)
    assert frechet_distance(m1, c1, m2, c1) == pytest.approx(((m1 - m2) ** 2).sum().item(), rel=1e-9)
    assert frechet_distance(m1, c1, m1, c1) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(m1, c1, m1, 4 * c1) == pytest.approx(c1.trace().item(), rel=1e-9)  # (2 - 1)^2 tr C
    low = torch.diag(torch.tensor([1., 2, 0, 0, 0, 0, 0, 0], dtype=torch.float64))  # singular
    assert frechet_distance(m1, low, m1, 9 * low) == pytest.approx(4 * 3, rel=1e-9)


def test_moments_in_batches():
    x = torch.randn(50, 6, dtype=torch.float64)
    moments = Moments()
    for batch in x.split(7):
        moments.add(batch)
    stats = moments.stats()
    assert torch.allclose(stats['mu'], x.mean(0)) and torch.allclose(stats['sigma'], x.T.cov()) and stats['n'] == 50


def test_kid_is_the_double_loop_and_unbiased():
    x, y = torch.randn(9, 4, dtype=torch.float64), torch.randn(9, 4, dtype=torch.float64) + 1
    k = lambda a, b: (float(a @ b) / 4 + 1) ** 3
    pairs = [(i, j) for i in range(9) for j in range(9)]
    want = sum(k(x[i], x[j]) + k(y[i], y[j]) for i, j in pairs if i != j) / 72
    want -= 2 * sum(k(x[i], y[j]) for i, j in pairs) / 81
    mean, std = kid(x, y, torch.Generator().manual_seed(0))
    assert mean == pytest.approx(want) and np.isnan(std)  # there is one subset, the whole
    x, y = torch.randn(2, 3000, 8, dtype=torch.float64)
    mean, std = kid(x, y, torch.Generator().manual_seed(0))
    assert abs(mean) < 0.02 and 0 < std < 0.02  # the same distribution: 0 but for noise
    assert kid(x, y + 1, torch.Generator().manual_seed(0))[0] > 1


def test_measure():
    m = torch.zeros(4, 8, 8, dtype=torch.bool)
    m[:, :4, :4] = True  # a quarter of the image
    A = torch.zeros(4, 8, 8)
    A[0] = 1  # knows nothing
    A[1, :4, :4] = 1  # the region itself
    A[2, 4:, 4:] = 1  # elsewhere; A[3] is dead
    x = torch.zeros(4, 3, 8, 8)
    x_fake = 0.5 * m[:, None].float() + x
    v = measure(x, x_fake, A, m, 0)
    assert torch.allclose(v['energy'][:3], torch.tensor([1., 4, 0]).double()) and v['energy'][3].isnan()
    assert v['point'][1:3].tolist() == [1, 0] and v['iou'][1:3].tolist() == [1, 0] and v['point'][3].isnan()
    assert v['dead'].tolist() == [0, 0, 0, 1] and v['leak'].tolist() == [0] * 4 and v['object'].tolist() == [0.5] * 4
    assert 'iou_tau' not in v
    half = torch.zeros(1, 8, 8)
    half[:, :4, 2:6] = 1  # as large as the region, half of it inside: 8 / (16 + 8)
    assert measure(x[:1], x_fake[:1], half, m[:1], 0)['iou'].item() == pytest.approx(1 / 3)
    v = measure(x[:1], x_fake[:1], 0.4 * half, m[:1], 0.1)  # an attention net's
    assert v['iou_tau'].item() == pytest.approx(1 / 3) and v['iou_half'].item() == 0 and v['soft'].item() == 0.25
    assert set(measure(x, x_fake, None, m, 0.1)) == {'leak', 'object'}  # no attention


def test_merge_seeds_names_rows():
    def row(label, seed=0, target=None, lr=1.0):
        return dict(label=label, name=f'{label} -> {target}' if target else label, targets=[target],
                    c=dict(script='t.py', iter=1, config=dict(seed=seed, out_dir=label, lr=lr)))
    names = lambda *rows: [group['name'] for group in merge_seeds(rows)]
    assert names(row('T', lr=3.0), row('S-s10', 10), row('S-s11', 11)) == ['T', 'S (2 seeds)']
    assert names(row('S-att10-s0'), row('S-att10-s1', 1)) == ['S-att10 (2 seeds)']
    assert names(row('a'), row('b', lr=2.0)) == ['a', 'b']
    uag = [row(label, seed, target) for seed, label in enumerate(('u_0', 'u_1')) for target in 'xy']
    assert names(*uag) == ['u -> x (2 seeds)', 'u -> y (2 seeds)']
    assert names(row('0_with', 0), row('1_with', 1), row('0_no', 0, lr=2.0), row('1_no', 1, lr=2.0)) == [
        '0_with (2 seeds)', '0_no (2 seeds)']  # nothing in common: the first one's name


def test_small_maps_are_enlarged():
    A, m = torch.zeros(1, 2, 2), torch.zeros(1, 8, 8, dtype=torch.bool)
    A[0, 0, 0], m[0, :3, :3] = 1, True
    v = measure(torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8), A, m, 0)
    assert v['energy'] > 2 and v['point'] == 1 and v['leak'] == 1


def test_to_uint8_is_what_a_png_keeps(tmp_path):
    x = to_uint8(torch.linspace(-1, 1, 10001))
    assert x.dtype == torch.uint8 and x.min() == 0 and x.max() == 255 and len(x.unique()) == 256
    x = torch.rand(3, 4, 5) * 2 - 1
    evaluate.to_image(x).save(tmp_path / 'x.png')
    assert np.array_equal(np.asarray(Image.open(tmp_path / 'x.png')), to_uint8(x).permute(1, 2, 0).numpy())


def test_bootstrap():
    """Against numpy, resampling rows of the table one by one; and the same images for both."""
    rng, nan = np.random.default_rng(0), float('nan')
    a, b = (torch.from_numpy((rng.random((60, 3)) < p).astype(np.float32)) for p in (0.8, 0.6))
    a[rng.random((60, 3)) < 0.3] = nan
    d, low, high = bootstrap(a, b, torch.Generator().manual_seed(0), n=4000)
    diff = (a - b).numpy()
    assert d == pytest.approx(np.nanmean(diff, 0).mean(), abs=1e-6)
    means = [np.nanmean(diff[rng.integers(0, 60, 60)], 0).mean() for _ in range(4000)]
    assert (low, high) == pytest.approx(tuple(np.quantile(means, (0.025, 0.975))), abs=0.015)
    assert bootstrap(a, a, torch.Generator().manual_seed(0)) == (0, 0, 0)
    a[:, 2] = nan  # an attribute that only one of them knows does not count
    assert bootstrap(a, b, torch.Generator())[0] == pytest.approx(np.nanmean(diff[:, :2], 0).mean(), abs=1e-6)


def test_table_merges_seeds_and_leaves_out_empty_columns():
    groups = [('one', [dict(a=0.5, b=float('nan'))]), ('two', [dict(a=0.1), dict(a=0.3)])]
    rows = table('x', [('A', 'a', 100, 1), ('B', 'b', 1, 2)], groups)
    assert rows == [['x', 'A'], ['one', '50.0'], ['two', '20.0 ± 14.1']]
    assert as_text(rows).splitlines()[1] == 'one         50.0'
    assert as_markdown(rows).splitlines()[:2] == ['| x | A |', '|---|---:|']
    assert table('x', [('B', 'b', 1, 2)], groups) == []


class Net:
    """As evaluate.py sees a checkpoint: enough of it for cost()."""

    def __init__(self):
        self.G = Generator(4, 2, 1)
        self.params = sum(p.numel() for p in self.G.parameters())

    def fake(self, x, y, name):
        return self.G(x, y)


def test_cost():
    net = Net()
    c = cost(net, torch.zeros(3, 3, 8, 8), torch.zeros(3, 2), 'a')
    want = 0  # multiply-adds of the convolutions: positions of the output (input, if transposed) x weights
    for name, positions in (('down.0', 64), ('down.3', 16), ('down.6', 4), ('res.0.conv1', 4), ('res.0.conv2', 4),
                            ('up.0', 4), ('up.3', 16), ('out.0', 64)):
        want += positions * net.G.get_submodule(name).weight.numel()
    assert c['params'] == net.params and c['macs'] == want and c['latency_ms'] > 0 and c['images_per_s'] > 0


def test_overlay_shows_the_maximum_brightest_whatever_the_scale():
    x, A = torch.zeros(1, 3, 16, 16), torch.zeros(1, 4, 4)
    A[0, 1, 2] = 3e-9
    shown = overlay(x, A)
    assert shown.shape == x.shape and shown.abs().max() <= 1 and torch.isfinite(overlay(x, 0 * A)).all()
    assert shown.mean(1)[0].argmax() in [(r * 16 + c) for r in range(4, 8) for c in range(8, 12)]
    assert torch.allclose(shown, overlay(x, 1e9 * A), atol=1e-5)


# whole runs


@pytest.fixture(scope='module')
def runs(data, teacher, tmp_path_factory):
    """Two seeds of a student and a "pseudo"-attention student of other attributes -> folder with s_0, s_1, p."""
    out = tmp_path_factory.mktemp('runs')
    for seed in (0, 1):
        run('train_student.py', f'--teacher={teacher}/ckpt.pt', f'--out_dir={out}/s_{seed}', f'--seed={seed}', *TINY_S)
    run('train_teacher.py', f'--dataset={data}', f'--out_dir={out}/t_a', '--attrs=a', *TINY[1:])
    run('train_student.py', f'--teacher={out}/t_a/ckpt.pt', f'--out_dir={out}/p', '--attrs=c', '--pseudo=a', *TINY_S)
    return out


COMMON = ['--device=cpu', '--clf_epochs=1', '--clf_arch=resnet18', '--inception=none']


def test_seeds_are_merged_and_differences_have_an_interval(teacher, runs, tmp_path):
    paths = ','.join(f'{p}/ckpt.pt' for p in (teacher, runs / 's_0', runs / 's_1'))
    out = run('evaluate.py', f'--ckpt={paths}', f'--out_dir={tmp_path}/e', f'--clf_dir={tmp_path}/clf', *COMMON)
    r = json.loads((tmp_path / 'e/results.json').read_text())
    assert [(row['label'], len(row['ckpts'])) for row in r['rows']] == [(teacher.name, 1), ('s (2 seeds)', 2)]
    means = [c['accuracy_mean'] for c in r['checkpoints']]
    line = next(line for line in out.splitlines() if line.startswith('s (2 seeds)'))
    assert f'{50 * (means[1] + means[2]):.1f}' in line and '±' in line
    d = 100 * ((means[1] + means[2]) / 2 - means[0])
    assert f's (2 seeds) - {teacher.name}: {d:+.1f} points' in out and '95 % interval' in out
    assert (tmp_path / 'e/table.txt').read_text().strip() in out
    assert (tmp_path / 'e/table.md').read_text().startswith('| accuracy, % |')
    page = (tmp_path / 'e/report.html').read_text()
    assert page.count('data:image/png;base64,') == 3 and '<script' not in page  # all in it, nothing fetched
    assert not re.findall(r'(?:src|href)=(?!"data:)', page) and 'python evaluate.py' in page
    for name in ('translations', 'maps', 'stages'):
        assert Image.open(tmp_path / f'e/{name}.png').width > 300
    assert Image.open(tmp_path / 'e/stages.png').height == 20 + 3 * 100  # a row for each attribute
    assert not [name for name in os.listdir(tmp_path / 'e') if 'tmp' in name or name.startswith('.')]
    common = [f'--ckpt={teacher}/ckpt.pt,{runs}/s_0/ckpt.pt,{runs}/t_a/ckpt.pt', f'--out_dir={tmp_path}/e',
              f'--clf_dir={tmp_path}/clf', *COMMON]
    out = run('evaluate.py', *common, f'--baseline={teacher.name}', '--split=val', '--n_rows=1')  # replaces the above
    assert f's_0 - {teacher.name}: ' in out and f't_a - {teacher.name}: ' in out and 't_a - s_0' not in out
    assert 'val images' in out and Image.open(tmp_path / 'e/maps.png').height == 20 + 3 * 100
    assert 'no row of that name' in run('evaluate.py', *common, '--baseline=s', ok=False)
    assert 'twice' in run('evaluate.py', f'--ckpt={teacher}/ckpt.pt,{teacher}/ckpt.pt', *COMMON, ok=False)


def test_regions_at_a_smaller_size_and_an_attribute_that_all_have(tmp_path):
    data = make_data(str(tmp_path / 'data'), 'a,b,c')
    y = np.load(f'{data}/test_y.npy')
    y[:, 2] = 1
    np.save(f'{data}/test_y.npy', y)
    m = np.zeros((24, 3, 16, 16), np.uint8)
    m[:, 0, 3:6, 2:7] = 1  # at 8 px: pixels 2 to 5 of rows 4 and 5 are full, row 3 is half of its pixel: not more
    np.save(f'{data}/test_m.npy', m)
    run('train_teacher.py', f'--dataset={data}', f'--out_dir={tmp_path}/t', '--image_size=8', *TINY)
    out = run('evaluate.py', f'--ckpt={tmp_path}/t/ckpt.pt', f'--out_dir={tmp_path}/e', f'--clf_dir={tmp_path}/clf',
              *COMMON)
    assert 'left out, every test image has it: c' in out
    r = json.loads((tmp_path / 'e/results.json').read_text())['checkpoints'][0]
    assert set(r['accuracy']) == {'a', 'b'} and r['measures']['b']['energy'] is None  # b's region is nowhere
    assert r['measures']['b']['dead'] < 1
    c = torch.load(tmp_path / 't/ckpt.pt', weights_only=True)
    G, D = Generator(**c['g_args']), Discriminator(**c['d_args'])
    G.load_state_dict(c['G']), D.load_state_dict(c['D'])
    rows = (y[:, 0] == 0).nonzero()[0]
    x = torch.from_numpy(np.load(f'{data}/test_x.npy')[rows]).permute(0, 3, 1, 2).float()
    x = torch.nn.functional.avg_pool2d(x, 2) / 127.5 - 1
    target = torch.from_numpy(y[rows]).float()
    target[:, 0], target[:, 1] = 1, 0  # a and b are exclusive
    hook = GradCAM(G.res[-1])
    x_fake = G(x, target)
    A = hook(D(x_fake)[1][:, 0])
    at_8px = torch.zeros(len(rows), 8, 8, dtype=torch.bool)
    at_8px[:, 2, 1:3] = True  # half of pixel (2, 3) only, half of row 1
    want = measure(x, to_uint8(x_fake.detach()) / 127.5 - 1, A, at_8px, 0)
    for k in ('energy', 'iou', 'leak'):
        assert r['measures']['a'][k] == pytest.approx(want[k].nanmean().item(), rel=1e-4), k


def test_pseudo_maps_are_scored_by_the_teachers_class(runs, data, tmp_path):
    run('evaluate.py', f'--ckpt={runs}/t_a/ckpt.pt,{runs}/p/ckpt.pt', f'--out_dir={tmp_path}/e',
        f'--clf_dir={tmp_path}/clf', *COMMON)
    r = json.loads((tmp_path / 'e/results.json').read_text())['checkpoints'][1]
    assert set(r['accuracy']) == {'c'} and (tmp_path / 'e/pseudo.png').exists()
    # by hand: the student's map of c by the teacher's score of a, over all test images without c
    t, s = (torch.load(runs / name / 'ckpt.pt', weights_only=True) for name in ('t_a', 'p'))
    D, G = Discriminator(**t['d_args']), Generator(**s['g_args'])
    D.load_state_dict(t['D']), G.load_state_dict(s['G'])
    x, y, m = (torch.from_numpy(np.load(f'{data}/test_{k}.npy')) for k in 'xym')
    rows = (y[:, 2] == 0).nonzero().flatten()
    hook = GradCAM(G.res[-1])
    x = x[rows].permute(0, 3, 1, 2) / 127.5 - 1
    x_fake = G(x, torch.ones(len(rows), 1))
    A = hook(D(x_fake)[1][:, 0])
    want = measure(x, to_uint8(x_fake.detach()) / 127.5 - 1, A, m[rows, 2].bool(), 0)
    for k in ('energy', 'point', 'iou', 'dead', 'leak'):
        assert r[k] == pytest.approx(want[k].nanmean().item(), rel=1e-4, nan_ok=True), k


def test_photos(teacher, tmp_path):
    os.makedirs(tmp_path / 'in/deep')
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(photo).save(tmp_path / 'in/a.png')
    Image.fromarray(photo).convert('CMYK').save(tmp_path / 'in/a.jpg')  # the same stem, another mode
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(photo).save(tmp_path / 'in/deep/b.jpg', exif=turned)
    (tmp_path / 'in/broken.jpg').write_text('no image')
    args = ['evaluate.py', f'--ckpt={teacher}/ckpt.pt', '--device=cpu']
    out = run(*args, f'--input={tmp_path}/in', f'--out={tmp_path}/o', '--attrs=a,b+c')
    assert 'broken.jpg' in out and 'centre square' in out and 'put back' in out and '6 images' in out
    found = sorted(os.path.relpath(os.path.join(folder, n), tmp_path / 'o') for folder, _, ns in os.walk(tmp_path / 'o')
                   for n in ns)
    assert found == ['a_jpg_a.png', 'a_jpg_b+c.png', 'a_png_a.png', 'a_png_b+c.png', 'deep/b_a.png', 'deep/b_b+c.png']
    result = np.asarray(Image.open(tmp_path / 'o/a_png_a.png'))
    assert np.array_equal(result[:5], photo[:5]) and np.array_equal(result[35:], photo[35:])  # outside the square
    assert not np.array_equal(result[5:35], photo[5:35])
    assert Image.open(tmp_path / 'o/deep/b_a.png').size == (40, 30)  # upright
    run(*args, f'--input={tmp_path}/in/a.png', f'--out={tmp_path}/one.png', '--attrs=b', '--paste=False')
    assert Image.open(tmp_path / 'one.png').size == (16, 16)
    # the square is G's, for what D takes the photo for
    c = torch.load(teacher / 'ckpt.pt', weights_only=True)
    G, D = Generator(**c['g_args']), Discriminator(**c['d_args'])
    G.load_state_dict(c['G']), D.load_state_dict(c['D'])
    x = np.array(Image.open(tmp_path / 'in/a.png').crop((0, 5, 30, 35)).resize((16, 16), Image.Resampling.BICUBIC))
    x = torch.from_numpy(x).permute(2, 0, 1)[None] / 127.5 - 1
    y = (D(x)[1] > 0).float()
    y[:, 0], y[:, 1] = 0, 1  # a and b are exclusive
    want = to_uint8(G(x, y))[0].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(np.asarray(Image.open(tmp_path / 'one.png')).astype(int) - want).max() <= 1
    before = (tmp_path / 'in/a.png').read_bytes()
    for wrong, says in (([f'--input={tmp_path}/no.jpg'], 'no such'),
                        ([f'--input={tmp_path}/in', '--attrs=x'], 'a, b, c'),
                        ([f'--input={tmp_path}/in/broken.jpg'], 'no photo'),
                        ([f'--input={tmp_path}/in', f'--out={tmp_path}/x.png'], 'folder'),
                        ([f'--input={tmp_path}/in/a.png', '--attrs=a', f'--out={tmp_path}/in/a.png'], 'overwrite')):
        assert says in run(*args, *wrong, ok=False)
    assert (tmp_path / 'in/a.png').read_bytes() == before


def test_pretrained_classifier(teacher, tmp_path):
    args = ['evaluate.py', f'--ckpt={teacher}/ckpt.pt', '--device=cpu', '--inception=none', '--clf_arch=resnet50',
            '--clf_epochs=1', f'--out_dir={tmp_path}/e', f'--clf_dir={tmp_path}/clf']
    env = dict(TORCH_HOME=str(tmp_path), https_proxy='http://127.0.0.1:9')
    says = run(*args, ok=False, env=env)  # no weights, no network: what to do
    assert '--clf_pretrained=False' in says and 'resnet50' in says and f'{tmp_path}/hub/checkpoints' in says
    weights = tmp_path / 'hub/checkpoints' / os.path.basename(torchvision.models.ResNet50_Weights.IMAGENET1K_V2.url)
    os.makedirs(weights.parent, exist_ok=True)
    torch.save(torchvision.models.resnet50().state_dict(), weights)  # of ImageNet's layout: 1,000 classes
    assert 'classifier resnet50' in run(*args, env=env)
    weights.unlink()
    run(*args, env=env)  # the fine-tuned one is kept
    kept, = os.listdir(tmp_path / 'clf')
    (tmp_path / 'clf' / kept).write_bytes(b'damaged')
    assert 'delete it' in run(*args, ok=False, env=env)
