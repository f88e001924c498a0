"""evaluate.py: its measures against closed forms, its figures recomputed by hand from files, and what users bring."""

import functools
import json
import math
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
from conftest import ROOT, TINY, TINY_S, TINY_U, ckpt, make_data, make_pairs, run
from PIL import Image, ImageCms
from pytest import approx

import evaluate
import train_student
import train_uag
from evaluate import (
    FID_URL, Images, agreement, cam_measures, change_measures, choose_images, cost, frechet_distance,
    inception_features, kid, list_files, load_inception, mask_measures, read_losses, table, to_uint8)
from gradcam import GradCAM, overlay

CAMS = ('gradcam', 'hirescam')
# Columns of the labels of the tests' data
COLUMNS = {'a': 0, 'b': 1, 'c': 2}


def noise(*shape, dtype=np.uint8):
    """A photo of random pixels."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)
    return Image.fromarray(pixels)


def pixels_of(x):
    """An image (1, 3, H, W) in [-1, 1] -> array (H, W, 3) of the integers that a PNG has."""
    return to_uint8(x.detach())[0].permute(1, 2, 0).numpy().astype(int)


def as_png(x):
    """Images in [-1, 1] -> those that a PNG keeps."""
    return to_uint8(x.detach()) / 127.5 - 1


# -----------------------------------------------------------------------------
# measures
def frechet(x, y):
    """The distance of a few features (N, d) and (M, d), without a matrix of d x d.

    tr (C1 C2)^(1/2) is the sum of the singular values of X Y^T, centred, over the root of (N - 1)(M - 1).
    """
    x_c = x - x.mean(0)
    y_c = y - y.mean(0)
    n = len(x) - 1
    m = len(y) - 1
    both = torch.linalg.svdvals(x_c @ y_c.T).sum() / (n * m) ** 0.5
    same = x_c.square().sum() / n + y_c.square().sum() / m
    means = (x.mean(0) - y.mean(0)).square().sum()
    return (means + same - 2 * both).item()


def test_frechet_distance_is_sqrtms_and_has_its_closed_forms():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 20, generator=generator).double()
    y = torch.randn(50, 20, generator=generator).double()
    # As pytorch-fid does it
    cov_x = x.T.cov()
    cov_y = y.T.cov()
    root = scipy.linalg.sqrtm((cov_x @ cov_y).numpy()).real
    want = (x.mean(0) - y.mean(0)).square().sum()
    want += cov_x.trace() + cov_y.trace() - 2 * np.trace(root)
    assert frechet_distance(x, y) == approx(float(want), rel=1e-9)
    assert frechet_distance(x, y) == approx(frechet(x, y), rel=1e-9)
    # The same covariance: the squared distance of the means. Twice the deviation: (2 - 1)^2 tr C.
    assert frechet_distance(x, x + 3) == approx(20 * 3 ** 2)
    centred = x - x.mean(0)
    assert frechet_distance(centred, 2 * centred) == approx(cov_x.trace().item())
    assert frechet_distance(x, x) == approx(0, abs=1e-9)
    # Covariances without an inverse
    few = x[:5]
    assert frechet_distance(few, 3 * few) == approx(frechet(few, 3 * few), rel=1e-6)
    assert math.isnan(frechet_distance(x[:1], y))
    assert math.isnan(frechet_distance(x, y[:1]))


def test_kid_is_the_double_loop_and_unbiased():
    x, y = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0)).double()

    def k(a, b):
        return (float(a @ b) / 4 + 1) ** 3

    within = 0
    between = 0
    for i in range(9):
        for j in range(9):
            between += k(x[i], y[j]) / 81
            if i != j:
                within += (k(x[i], x[j]) + k(y[i], y[j])) / 72
    mean, std = kid(x, y, 0)
    # There is one subset, the whole.
    assert mean == approx(within - 2 * between)
    assert math.isnan(std)
    x, y = torch.randn(2, 1200, 8, generator=torch.Generator().manual_seed(0))
    mean, std = kid(x, y, 0)
    # The same distribution: 0 but for noise
    assert abs(mean) < 0.02
    assert 0 < std < 0.02
    x = x[:50]
    y = y[:99]
    assert kid(x, y + 1, 0)[0] > 1
    assert kid(x, y, 0) != kid(x, y, 1)
    assert math.isnan(kid(x[:1], y, 0)[0])


def test_measures_of_change_and_maps():
    region = torch.zeros(4, 8, 8, dtype=torch.bool)
    # A quarter of the image
    region[:, :4, :4] = True
    x = torch.zeros(4, 3, 8, 8)
    found = change_measures(x, x + 0.5 * region[:, None], region)
    assert found['leak'].tolist() == [0] * 4
    assert found['object'].tolist() == [0.5] * 4
    found = change_measures(x, x - 0.5 * ~region[:, None], region)
    assert found['leak'].tolist() == [0.5] * 4
    assert found['object'].tolist() == [0] * 4

    # Maps that know nothing, are the region itself, lie elsewhere, are dead
    A = torch.zeros(4, 8, 8)
    A[0] = 1
    A[1, :4, :4] = 1
    A[2, 4:, 4:] = 1
    found = cam_measures('hirescam', A, region)
    assert found['hirescam energy'][:3].tolist() == [1, 4, 0]
    assert found['hirescam point'][1:3].tolist() == [1, 0]
    assert found['hirescam energy'][3].isnan()
    assert found['hirescam point'][3].isnan()
    assert cam_measures('gradcam', A, region & False)['gradcam energy'].isnan().all()
    # Half of it inside, and a small one that is enlarged
    half = torch.zeros(4, 8, 8)
    half[:, :4, 2:6] = 1
    assert cam_measures('gradcam', half, region)['gradcam energy'].tolist() == [2] * 4
    small = torch.zeros(4, 2, 2)
    small[:, 0, 0] = 1
    found = cam_measures('gradcam', small, region)
    assert found['gradcam energy'].min() > 2
    assert found['gradcam point'].tolist() == [1] * 4

    # An attention net's: of 24 pixels in region or mask 8 are in both.
    found = mask_measures(0.4 * half + 0.1, region, 0.3)
    assert found['IoU'].tolist() == approx([1 / 3] * 4)
    assert found['A inside'].tolist() == approx([0.3] * 4)
    assert found['A outside'].tolist() == approx([0.1 + 0.4 / 6] * 4)


def test_agreement():
    A = torch.rand(5, 4, 4, generator=torch.Generator().manual_seed(0))
    # Whatever their scales, and as small as Grad-CAM's are
    assert agreement(A, 1e-9 * A).tolist() == approx([1] * 5)
    left = A.clone()
    left[:, :, 2:] = 0
    assert agreement(left, A - left).tolist() == [0] * 5
    assert agreement(A, 0 * A).tolist() == [0] * 5
    # The cosine of a vector with a part of itself
    want = left.flatten(1).norm(dim=1) / A.flatten(1).norm(dim=1)
    assert agreement(A, left).tolist() == approx(want.tolist())


def test_cost_and_pixels():
    G = train_student.Generator(4, 2, 1)
    net = types.SimpleNamespace(parts=torch.nn.ModuleList([G]))
    net.translate = lambda x, y, name: G(x, y)
    x = torch.zeros(3, 3, 8, 8)
    found = cost(net, x, torch.zeros(3, 2), 'a')
    # Multiply-adds: positions of the output, of a transposed convolution those of the input, times weights
    want = 0
    positions = {
        'down.0': 64, 'down.3': 16, 'down.6': 4, 'res.0.main.0': 4, 'res.0.main.3': 4,
        'up.0': 4, 'up.3': 16, 'out.0': 64}
    for name, n in positions.items():
        want += n * G.get_submodule(name).weight.numel()
    assert found['macs'] == want
    assert found['params'] == sum(p.numel() for p in G.parameters())
    assert found['latency_ms'] > 0
    assert found['images_per_s'] > 0
    x = to_uint8(torch.linspace(-1, 1, 10001))
    assert x.dtype == torch.uint8
    assert x.min() == 0
    assert x.max() == 255
    assert len(x.unique()) == 256


def test_tables_have_deviations_and_say_what_is_unknown():
    groups = {
        'one': [{'accuracy': 0.5, 'fid': math.nan}],
        'two': [{'accuracy': 0.1}, {'accuracy': 0.3}]}
    rows = table('x', ['accuracy', 'fid', 'kid', '-> Bald'], groups)
    # Of kid nothing is known, so there is no column of it.
    assert rows[0] == ['x', 'accuracy %', 'FID']
    assert rows[1:] == [['one', '50.0', '-'], ['two', '20.0 ± 14.1', '-']]
    lines = evaluate.text_table(rows).splitlines()
    assert lines == ['x     accuracy %  FID', 'one         50.0    -', 'two  20.0 ± 14.1    -']
    assert evaluate.html_table(rows).count('<th>') == 3


def test_losses_are_read_from_logs(tmp_path):
    log = tmp_path / 'log.txt'
    log.write_text('$ python train_student.py --lr=1 | D_real 7 |\n'
                   'iter     10/200000 | D_real -1.23 D_gp 4e-05 G_fake nan | 14.2 it/s | eta 221 min\n'
                   'iter     20/200000 | D_real   2.5 D_gp 0.04 G_fake -0.9 | 14.2 it/s | eta 221 min\n')
    losses = read_losses(log)
    assert losses == {
        'D_real': {10: -1.23, 20: 2.5},
        'D_gp': {10: 4e-5, 20: 0.04},
        'G_fake': {20: -0.9}}
    svg = evaluate.draw_curves(losses)
    assert svg.count('<polyline') == 3
    assert '>G_fake</text>' in svg
    # Greater is higher up, later is further right.
    points = re.search(r'points="([\d.]+),([\d.]+) ([\d.]+),([\d.]+)"', svg)
    x1, y1, x2, y2 = [float(text) for text in points.groups()]
    assert x1 < x2
    assert y1 > y2


# -----------------------------------------------------------------------------
# figures of whole runs, by hand from files
class Net:
    """The nets of a StarGAN's checkpoint of attributes among a, b, c, of which a and b exclude each other."""

    def __init__(self, folder):
        saved = ckpt(folder)
        self.attrs = saved['attrs']
        self.G = train_student.Generator(**saved['g_args'])
        self.G.load_state_dict(saved['G'])
        self.D = train_student.Discriminator(**saved['d_args'])
        self.D.load_state_dict(saved['D'])

    def translate(self, x, y, name):
        """Images, and their labels (N, 3) of a, b, c -> images that should have `name`."""
        y = y.clone().float()
        if name in 'ab':
            y[:, :2] = 0
        y[:, COLUMNS[name]] = 1
        return self.G(x, y[:, [COLUMNS[attr] for attr in self.attrs]])

    def map(self, x, y, name, cam, D, column):
        """The map of a translation by the score D(x_fake)[column]."""
        hook = GradCAM(self.G.res[-1], cam)
        A = hook(D(self.translate(x, y, name))[1][:, column])
        hook.remove()
        return A


def arrays(data, split='test'):
    """-> images as nets take them, labels, regions."""
    x = torch.from_numpy(np.load(f'{data}/{split}_x.npy')).permute(0, 3, 1, 2) / 127.5 - 1
    y = torch.from_numpy(np.load(f'{data}/{split}_y.npy'))
    m = torch.from_numpy(np.load(f'{data}/{split}_m.npy')).bool()
    return x, y, m


@functools.cache
def load_judge(clf_dir):
    """The only classifier in a folder; it appends features to a list."""
    name, = os.listdir(clf_dir)
    state = torch.load(f'{clf_dir}/{name}', weights_only=True)
    clf = torchvision.models.resnet18(num_classes=len(state['fc.bias'])).eval()
    clf.load_state_dict(state)
    features = []
    clf.avgpool.register_forward_hook(lambda module, args, out: features.append(out.flatten(1)))
    return clf, features


def judge(clf_dir, x):
    """-> logits and features of images."""
    clf, features = load_judge(clf_dir)
    with torch.no_grad():
        return clf(x), features.pop().double()


def results(folder):
    return json.loads((folder / 'results.json').read_text())


def cosine(A, A_T):
    """Of maps (B, h, w); 0 where one of them is dead."""
    product = (A * A_T).sum((1, 2)).double()
    found = product / A.norm(dim=(1, 2)) / A_T.norm(dim=(1, 2))
    return torch.where(product == 0, 0, found)


def by_hand(net, teacher, x, y, m, scored=None, names=None):
    """Measures of the maps and changes of `net`: means over the images without an attribute, then over attributes.

    scored: the class that the teacher scores, if it is another one
    """
    found = {}
    for name in names or net.attrs:
        rows = y[:, COLUMNS[name]] == 0
        x_name = x[rows]
        y_name = y[rows]
        region = m[rows, COLUMNS[name]]
        x_fake = as_png(net.translate(x_name, y_name, name))
        of_name = change_measures(x_name, x_fake, region)
        i = teacher.attrs.index(scored or name)
        for cam in CAMS:
            A = net.map(x_name, y_name, name, cam, teacher.D, i)
            of_name |= cam_measures(cam, A, region)
            if net is not teacher:
                A_T = teacher.map(x_name, y_name, scored or name, cam, teacher.D, i)
                of_name[f'{cam} agreement'] = cosine(A, A_T)
        for key, values in of_name.items():
            found.setdefault(key, []).append(values.nanmean().item())
    return {key: np.nanmean(values) for key, values in found.items()}


@pytest.fixture(scope='module')
def runs(data, teacher, tmp_path_factory):
    """Students: two seeds by hirescam, one without the loss; a teacher of a and c, and students of b for its c."""
    out = tmp_path_factory.mktemp('runs')
    students = {
        'S-s0': ['--cam=hirescam'],
        'S-s1': ['--cam=hirescam', '--seed=1'],
        'S0': ['--lambda_att=0'],
        'S_c': ['--attrs=c', '--max_iters=0']}
    for name, flags in students.items():
        flags.append(f'--teacher={teacher}/ckpt.pt')
        run('train_student.py', *TINY_S, f'--out_dir={out}/{name}', *flags)
    # As they start: what is tested is whose maps are compared.
    flags = [f'--dataset={data}', '--attrs=a,c', '--max_iters=0']
    run('train_teacher.py', *TINY, *flags, f'--out_dir={out}/T_ac')
    for name, flag in (('P', '--pseudo=c'), ('P0', '--lambda_att=0')):
        flags = [f'--teacher={out}/T_ac/ckpt.pt', '--attrs=b', flag, '--max_iters=0', '--seed=1']
        run('train_student.py', *TINY_S, f'--out_dir={out}/{name}', *flags)
    return out


@pytest.fixture(scope='module')
def trio(data, teacher, runs, evaluation, tmp_path_factory):
    """An evaluation of a teacher, two seeds of a student, and one without the loss -> its folder, what it said."""
    out = tmp_path_factory.mktemp('trio')
    paths = f'{teacher}/ckpt.pt,{runs}/S-s0/ckpt.pt+{runs}/S-s1/ckpt.pt,{runs}/S0/ckpt.pt'
    flags = [*evaluation, f'--clf_dir={out}/clf', '--batch_size=7']
    said = run('evaluate.py', f'--ckpt={paths}', f'--out_dir={out}', *flags)
    return out, said


def test_figures_of_the_tables_by_hand(data, teacher, runs, trio):
    out, _ = trio
    x, y, m = arrays(data)
    T = Net(teacher)
    found = results(out)
    calls = {}
    logits, real = judge(out / 'clf', x)
    for i, name in enumerate('abc'):
        logits_name = logits[y[:, i] == 1, i]
        calls[name] = (logits_name > 0).float().mean().item()
        assert found['real'][f'-> {name}'] == approx(calls[name])
    assert found['real']['accuracy'] == approx(np.mean(list(calls.values())))
    assert [row['name'] for row in found['checkpoints']] == [teacher.name, 'S-s0', 'S-s1', 'S0']

    nets = [T]
    nets += [Net(runs / name) for name in ('S-s0', 'S-s1', 'S0')]
    for row, net in zip(found['checkpoints'], nets):
        fakes = []
        right = []
        for i, name in enumerate('abc'):
            rows = y[:, i] == 0
            fakes.append(as_png(net.translate(x[rows], y[rows], name)))
            logits, _ = judge(out / 'clf', fakes[-1])
            right.append((logits[:, i] > 0).float().mean().item())
            assert row[f'-> {name}'] == row['measures'][name]['accuracy'] == approx(right[-1])
        assert row['accuracy'] == approx(np.mean(right))
        assert row['n_fake'] == (y == 0).sum()
        _, fake = judge(out / 'clf', torch.cat(fakes))
        assert row['fd_clf'] == approx(frechet(real, fake), rel=1e-3)
        for key, value in by_hand(net, T, x, y, m).items():
            # Changes are exact enough to show that they are those of a PNG's pixels.
            tolerance = 1e-6 if key in ('leak', 'object') else 1e-3
            assert row[key] == approx(value, rel=tolerance, nan_ok=True), key
        assert ('gradcam agreement' in row) == (net is not T)


def test_judge_is_trained_on_the_training_images(data, trio):
    out, _ = trio
    x, y, _ = arrays(data, 'val')
    x = torch.from_numpy(np.load(f'{data}/train_x.npy')).permute(0, 3, 1, 2) / 127.5 - 1
    y = torch.from_numpy(np.load(f'{data}/train_y.npy')).float()
    # One epoch of 24 images is one step.
    torch.manual_seed(0)
    clf = torchvision.models.resnet18(num_classes=3)
    opt = torch.optim.AdamW(clf.parameters(), 2e-3, weight_decay=0.01)
    torch.optim.lr_scheduler.OneCycleLR(opt, 2e-3, total_steps=1)
    rows = torch.randperm(24)
    flip = torch.rand(24, 1, 1, 1) < 0.5
    logits = clf(torch.where(flip, x[rows].flip(3), x[rows]))
    F.binary_cross_entropy_with_logits(logits, y[rows], reduction='sum').div(24).backward()
    opt.step()
    name, = os.listdir(out / 'clf')
    kept = torch.load(out / 'clf' / name, weights_only=True)
    for key, value in clf.state_dict().items():
        assert torch.allclose(kept[key], value, atol=1e-6), key


def test_seeds_make_a_row_and_a_run_ends_with_what_it_shows(teacher, trio):
    out, said = trio
    found = results(out)
    rows = found['checkpoints']
    assert [row['row'] for row in rows] == [teacher.name, 'S (2 seeds)', 'S (2 seeds)', 'S0']
    text = (out / 'table.txt').read_text()
    head, *lines = text.split('\n\n')[0].splitlines()
    columns = re.split(r'  +', head)
    assert columns == ['summary', 'accuracy %', 'hirescam agreement', 'hirescam energy', 'FD-clf']
    for key, column, decimals in (('fd_clf', 4, 2), ('hirescam agreement', 2, 2)):
        a, b = [row[key] for row in rows[1:3]]
        cell = re.split(r'  +', lines[1])[column]
        assert cell == f'{(a + b) / 2:.{decimals}f} ± {abs(a - b) / 2 ** 0.5:.{decimals}f}'
    agree = np.mean([row['hirescam agreement'] for row in rows[1:3]])
    right = np.mean([row['accuracy'] for row in rows[1:3]])
    points = 100 * (right - rows[3]['accuracy'])
    last_lines = said.strip().splitlines()[-2:]
    assert 'S (2 seeds) was trained to look where the teacher looks: its hirescam maps agree' in last_lines[0]
    assert f"{agree:.2f}, those of S0" in last_lines[0]
    assert f"{rows[3]['hirescam agreement']:.2f}" in last_lines[0]
    assert f'{points:+.1f} points; one seed proves neither' in last_lines[1]
    assert found['summary'] == last_lines
    assert '\n'.join(last_lines) in text
    assert text.split('\n\n')[0] in said


def test_report_is_one_page(trio):
    out, _ = trio
    assert sorted(os.listdir(out)) == ['clf', 'maps.png', 'report.html', 'results.json', 'stages.png', 'table.txt']
    page = (out / 'report.html').read_text()
    assert page.count('data:image/png;base64,') == 2
    assert page.count('<table>') == 4
    # Two charts for each row; the first seed's of two
    assert page.count('<svg') == 6
    assert 'S-s0, generator' in page
    assert 'S-s1, generator' not in page
    # Nothing is fetched, nothing runs.
    assert '<script' not in page
    assert not re.findall(r'(?:src|href)=(?!"data:)', page)
    assert 'python evaluate.py' in page
    assert results(out)['summary'][0] in page.replace('&#x27;', "'")


def sheet_cell(path, row, column, left):
    """A picture of a figure, at the size of 16 px images."""
    x = left + 132 * column
    y = 22 + 132 * row
    cell = Image.open(path).crop((x, y, x + 128, y + 128))
    return np.asarray(cell.resize((16, 16), Image.NEAREST)).astype(int)


def differ(picture, x):
    """How far a picture is from an image in [-1, 1], in pixel values."""
    return np.abs(picture - pixels_of(x)).max()


def test_figures_show_what_their_headers_say(data, teacher, runs, trio, evaluation, tmp_path):
    """Each net's translation and its map, of the kind that it or, without the loss, the first other was trained by."""
    out, _ = trio
    x, y, _ = arrays(data)
    T = Net(teacher)
    nets = [T, Net(runs / 'S-s0'), Net(runs / 'S0')]
    names = ['a', 'b', 'c', 'a']
    used = []
    for k, name in enumerate(names):
        # An image without it that has the fewest others and has not been taken yet
        rows = [row for row in range(24) if y[row, COLUMNS[name]] == 0 and row not in used]
        used.append(min(rows, key=lambda row: y[row].sum()))
    left = Image.open(out / 'maps.png').width - 7 * 132
    shown = [('a', used[0]), ('a', used[3]), ('b', used[1]), ('c', used[2])]
    for r, (name, row) in enumerate(shown):
        x_row = x[row:row + 1]
        y_row = y[row:row + 1]
        want = [x_row]
        for net in nets:
            A = net.map(x_row, y_row, name, 'hirescam', T.D, COLUMNS[name])
            want += [net.translate(x_row, y_row, name), overlay(x_row, A)]
        for c, picture in enumerate(want):
            assert differ(sheet_cell(out / 'maps.png', r, c, left), picture) <= 1, (r, c)
    # The last stage of res, behind the input and three of down
    x_row = x[used[:1]]
    y_row = y[used[:1]]
    left = Image.open(out / 'stages.png').width - 8 * 132
    want = overlay(x_row, T.map(x_row, y_row, 'a', 'hirescam', T.D, 0))
    found = [differ(sheet_cell(out / 'stages.png', 0, c, left), want) for c in range(8)]
    assert found.index(min(found)) == 4
    assert min(found) <= 1
    # A student that was trained by the other map
    saved = ckpt(runs / 'S-s0')
    saved['config']['cam'] = 'gradcam'
    torch.save(saved, tmp_path / 'ckpt.pt')
    paths = f'{teacher}/ckpt.pt,{tmp_path}/ckpt.pt'
    flags = [*evaluation, f'--clf_dir={out}/clf', '--n_rows=1']
    run('evaluate.py', f'--ckpt={paths}', f'--out_dir={tmp_path}/e', *flags)
    want = overlay(x_row, nets[1].map(x_row, y_row, 'a', 'gradcam', T.D, 0))
    left = Image.open(tmp_path / 'e/maps.png').width - 5 * 132
    assert differ(sheet_cell(tmp_path / 'e/maps.png', 0, 4, left), want) <= 1
    # From the classifier that is kept, with other batches
    row = results(tmp_path / 'e')['checkpoints'][1]
    want = results(out)['checkpoints'][1]
    for key in ('accuracy', 'fd_clf', 'leak', 'gradcam agreement'):
        assert row[key] == approx(want[key], rel=1e-3), key


def test_pseudo_maps_are_scored_by_the_teachers_class(data, teacher, runs, evaluation, tmp_path):
    x, y, m = arrays(data, 'val')
    for names, scored in ((('T_ac', 'P', 'P0'), 'c'), ((teacher, 'S_c'), None)):
        paths = ','.join(f'{runs / name}/ckpt.pt' for name in names)
        said = run('evaluate.py', f'--ckpt={paths}', f'--out_dir={tmp_path}', '--split=val', *evaluation)
        assert f'24 val images of {data}' in said
        T = Net(runs / names[0])
        for row, name in zip(results(tmp_path)['checkpoints'][1:], names[1:]):
            for key, value in by_hand(Net(runs / name), T, x, y, m, scored).items():
                assert row[key] == approx(value, rel=1e-3, nan_ok=True), (name, key)


def test_regions_at_a_smaller_size(evaluation, tmp_path):
    data = make_data(str(tmp_path / 'data'))
    x, y, m = arrays(data)
    # At 8 px pixels 1 and 2 of row 2 are full; others half or less.
    m[:] = False
    m[:, 0, 3:6, 2:7] = True
    np.save(f'{data}/test_m.npy', m.byte())
    run('train_teacher.py', f'--dataset={data}', f'--out_dir={tmp_path}/t', *TINY, '--image_size=8', '--max_iters=0')
    run('evaluate.py', f'--ckpt={tmp_path}/t/ckpt.pt', f'--out_dir={tmp_path}/e', *evaluation)
    row, = results(tmp_path / 'e')['checkpoints']
    # b's region is nowhere.
    assert row['measures']['b']['gradcam energy'] is None
    at_8px = torch.zeros(24, 3, 8, 8, dtype=torch.bool)
    at_8px[:, 0, 2, 1:3] = True
    T = Net(tmp_path / 't')
    x = F.avg_pool2d(x, 2)
    for key, value in by_hand(T, T, x, y, at_8px, names=['a']).items():
        assert row['measures']['a'][key] == approx(value, rel=1e-3), key


def test_single_label_sets(evaluation, tmp_path):
    """Images of classes that no net knows are left out; a call is the largest logit, not a positive one."""
    data = make_data(str(tmp_path / 'data'), label='single')
    run('train_teacher.py', f'--dataset={data}', f'--out_dir={tmp_path}/t', *TINY, '--attrs=a,b', '--max_iters=0')
    flags = [*evaluation, f'--clf_dir={tmp_path}/clf', f'--out_dir={tmp_path}/e']
    run('evaluate.py', f'--ckpt={tmp_path}/t/ckpt.pt', *flags)
    x, y, _ = arrays(data)
    row, = results(tmp_path / 'e')['checkpoints']
    T = Net(tmp_path / 't')
    fakes = []
    for i, name in enumerate('ab'):
        rows = y[:, 1 - i] == 1
        target = torch.eye(2)[i].expand(rows.sum(), 2)
        fakes.append(as_png(T.G(x[rows], target)))
        logits, _ = judge(tmp_path / 'clf', fakes[-1])
        calls = logits.argmax(1) == i
        assert row[f'-> {name}'] == approx(calls.float().mean().item())
    _, real = judge(tmp_path / 'clf', x[y[:, 2] == 0])
    _, fake = judge(tmp_path / 'clf', torch.cat(fakes))
    assert row['fd_clf'] == approx(frechet(real, fake), rel=1e-3)


def test_images_for_figures_have_few_other_attributes():
    test = types.SimpleNamespace(names=['a', 'b', 'c'])
    labels = ['011', '001', '100', '000', '010']
    test.y = torch.tensor([[int(digit) for digit in label] for label in labels])
    test.without = lambda name: (test.y[:, COLUMNS[name]] == 0).nonzero()[:, 0]
    # First one for each, then a second; none twice, and in the order of the names
    assert choose_images(['a', 'b'], test, 2) == [('a', 1), ('b', 3)]
    pairs = choose_images(['a', 'b', 'c'], test, 5)
    assert pairs == [('a', 3), ('a', 4), ('b', 1), ('c', 2)]


# -----------------------------------------------------------------------------
# FID and KID: the Inception net against a plain reimplementation, files, folders, both directions of UAG
@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """A file in the layout of the published one (old format, torchvision's keys), with random weights."""
    with torch.device('meta'):
        net = torchvision.models.inception_v3(num_classes=1008, aux_logits=False, init_weights=False)
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, value in net.state_dict().items():
        w = torch.randn(value.shape, generator=generator) * 0.2
        if name.endswith(('bn.weight', 'running_var')):
            w += 1
        if name.endswith('running_var'):
            w = w.abs() + 0.3
        if value.dim() == 4:
            # Activations keep their size from layer to layer.
            w *= 5 * (2 / value[0].numel()) ** 0.5
        if not name.endswith('num_batches_tracked'):
            state[name] = w
    path = tmp_path_factory.mktemp('inception') / 'random.pth'
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return str(path)


@pytest.fixture(scope='module')
def net(weights):
    return load_inception(weights, 'cpu')


def bilinear(x, size):
    """(H, W, 3) array -> (size, size, 3): between the centres of the four nearest pixels, whatever the scale."""
    for axis in (0, 1):
        at = ((np.arange(size) + 0.5) * x.shape[axis] / size - 0.5).clip(0, x.shape[axis] - 1)
        low = np.floor(at).astype(int)
        high = (low + 1).clip(max=x.shape[axis] - 1)
        part = np.moveaxis((at - low)[:, None, None], 0, axis)
        x = x.take(low, axis) * (1 - part) + x.take(high, axis) * part
    return x


def pool(x, kind):
    if kind == 'max/2':
        return F.max_pool2d(x, 3, 2)
    if kind == 'max':
        return F.max_pool2d(x, 3, 1, 1)
    # Of 9 pixels under the window 4, 6 or 9 are the image's.
    return F.avg_pool2d(x, 3, 1, 1) / F.avg_pool2d(torch.ones_like(x), 3, 1, 1)


class Reference:
    """The 2048 features of one image (H, W, 3) uint8, in float64, out of nothing but the file's tensors."""

    def __init__(self, state):
        self.state = state

    def layer(self, x, name, padded):
        """Convolution, batch norm, ReLU. With /2 it has stride 2 and no padding, others keep the size."""
        stride = 2 if name.endswith('/2') else 1
        name = name.removesuffix('/2')
        weight = self.state[f'{name}.conv.weight'].double()
        padding = [size // 2 if padded and stride == 1 else 0 for size in weight.shape[2:]]
        x = F.conv2d(x, weight, None, stride, padding)
        mean, var, scale, shift = [self.state[f'{name}.bn.{key}'].double()[:, None, None]
                                   for key in ('running_mean', 'running_var', 'weight', 'bias')]
        return ((x - mean) / (var + 0.001).sqrt() * scale + shift).clamp_min(0)

    def chain(self, x, names, padded=True, block=''):
        for name in names.split():
            if name in ('average', 'max', 'max/2'):
                x = pool(x, name)
            else:
                x = self.layer(x, block + name, padded)
        return x

    def branches(self, x, block, *chains):
        return torch.cat([self.chain(x, names, block=f'{block}.') for names in chains], 1)

    def features(self, image):
        x = torch.from_numpy(bilinear(image / 255, 299)).permute(2, 0, 1)[None] * 2 - 1
        x = self.chain(x, 'Conv2d_1a_3x3/2')
        x = self.chain(x, 'Conv2d_2a_3x3', padded=False)
        x = self.chain(x, 'Conv2d_2b_3x3 max/2 Conv2d_3b_1x1')
        x = self.chain(x, 'Conv2d_4a_3x3', padded=False)
        x = pool(x, 'max/2')
        for block in ('Mixed_5b', 'Mixed_5c', 'Mixed_5d'):
            x = self.branches(x, block, 'branch1x1', 'branch5x5_1 branch5x5_2',
                              'branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3', 'average branch_pool')
        x = self.branches(x, 'Mixed_6a', 'branch3x3/2', 'branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3/2', 'max/2')
        for block in ('Mixed_6b', 'Mixed_6c', 'Mixed_6d', 'Mixed_6e'):
            x = self.branches(x, block, 'branch1x1', 'branch7x7_1 branch7x7_2 branch7x7_3',
                              'branch7x7dbl_1 branch7x7dbl_2 branch7x7dbl_3 branch7x7dbl_4 branch7x7dbl_5',
                              'average branch_pool')
        x = self.branches(x, 'Mixed_7a', 'branch3x3_1 branch3x3_2/2',
                          'branch7x7x3_1 branch7x7x3_2 branch7x7x3_3 branch7x7x3_4/2', 'max/2')
        for block, kind in (('Mixed_7b', 'average'), ('Mixed_7c', 'max')):
            x = self.branches(x, block, 'branch1x1', 'branch3x3_1 branch3x3_2a', 'branch3x3_1 branch3x3_2b',
                              'branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3a',
                              'branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3b', f'{kind} branch_pool')
        return x.mean((2, 3))[0]


def test_features_are_those_of_the_published_net(weights, net):
    state = torch.load(weights, weights_only=True)
    plain = torchvision.models.inception_v3(num_classes=1008, aux_logits=False, init_weights=False).eval()
    plain.load_state_dict(state)
    plain.fc = torch.nn.Identity()
    # One side is enlarged, one shrunk, where antialiasing would show.
    image = np.array(noise(30, 420, 3))
    x = torch.from_numpy(image).permute(2, 0, 1)[None]
    want = Reference(state).features(image)
    found = inception_features(net, x)
    assert found.dtype == torch.float64
    assert found.shape == (1, 2048)
    assert (found[0] - want).norm() < 1e-4 * want.norm()
    assert (found[0] - want).abs().max() < 1e-4 * want.abs().max()
    # torchvision's pools: not these
    assert (inception_features(plain, x)[0] - want).norm() > 0.01 * want.norm()
    # A net whose units are alive
    assert (want > 0).double().mean() > 0.5
    assert 0.01 < want.mean() < 100


def test_weights_are_checked_and_found(weights, tmp_path, monkeypatch, capsys):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / 'resnet.pth')
    (tmp_path / 'cut.pth').write_bytes(open(weights, 'rb').read(100_000))
    (tmp_path / 'page.pth').write_bytes(b'<html>not found</html>')
    for name in ('cut.pth', 'page.pth', 'resnet.pth', 'missing.pth'):
        with pytest.raises(SystemExit) as end:
            load_inception(str(tmp_path / name), 'cpu')
        message = end.value.code
        assert name in message
        assert len(message.splitlines()) == 1
        assert 'weights_only' not in message
    asked = []

    def download(url, path, hash_prefix, progress):
        asked.append((url, hash_prefix))
        if len(asked) == 1:
            raise urllib.error.URLError('no route\nto host')
        os.link(weights, path)

    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    random_state = torch.random.get_rng_state()
    assert load_inception('', 'cpu') is None
    line = capsys.readouterr().out.splitlines()[-1]
    assert 'no route to host' in line
    assert FID_URL in line
    assert '--inception=' in line
    assert load_inception('', 'cpu') is not None
    assert asked[1] == (FID_URL, '6726825d')
    # From the cache
    assert load_inception('', 'cpu') is not None
    assert len(asked) == 2
    # What is trained later does not depend on it.
    assert torch.equal(random_state, torch.random.get_rng_state())


class FewFeatures(torch.nn.Module):
    """In place of Inception: 48 features of an image, quickly."""

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return F.adaptive_avg_pool2d(x, 4).flatten(1)


def test_fid_of_folders_reads_files_as_pytorch_fid_does(tmp_path):
    folder = tmp_path / 'a'
    (folder / 'deep').mkdir(parents=True)
    photo = noise(20, 30, 3)
    photo.save(folder / '0.png')
    photo.convert('L').save(folder / 'grey.PNG')
    photo.convert('CMYK').save(folder / 'cmyk.jpg')
    photo.convert('P').save(folder / 'deep/palette.bmp')
    noise(9, 9, dtype=np.uint16).save(folder / 'word.png')
    noise(9, 9, 4).save(folder / 'veil.png')
    turned = Image.Exif()
    turned[0x0112] = 6
    photo.save(folder / 'turned.jpg', exif=turned)
    # No images, for pytorch-fid; hidden, and thumbnails
    photo.save(folder / 'moving.gif')
    (folder / 'notes.txt').write_text('no image')
    (folder / '._0.png').write_text('no image')
    for hidden in ('@eaDir', '.thumbnails', '__MACOSX'):
        (folder / hidden).mkdir()
        photo.save(folder / hidden / '0.png')
    want = []
    for name in ('0.png', 'cmyk.jpg', 'deep/palette.bmp', 'grey.PNG', 'turned.jpg', 'veil.png', 'word.png'):
        pixels = np.array(Image.open(folder / name).convert('RGB'))
        pixels = torch.from_numpy(pixels).permute(2, 0, 1)
        want.append(inception_features(FewFeatures(), [pixels]))
    files, _ = list_files(str(folder), evaluate.FID_ENDINGS)
    found = evaluate.folder_features(files, 'files', FewFeatures())
    assert len(files) == 7
    assert torch.allclose(found, torch.cat(want))
    # A damaged one is named.
    (folder / 'cut.png').write_bytes((folder / '0.png').read_bytes()[:300])
    with pytest.raises(SystemExit, match='cut.png: cannot be read'):
        evaluate.folder_features([folder / '0.png', folder / 'cut.png'], 'files', FewFeatures())


def test_fid_of_folders(net, weights, tmp_path):
    rng = np.random.default_rng(0)
    features = {}
    for name, n in (('a', 2), ('b', 2), ('one', 1), ('empty', 0)):
        (tmp_path / name).mkdir()
        images = torch.from_numpy(rng.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8))
        for i, image in enumerate(images):
            Image.fromarray(image.numpy()).save(tmp_path / name / f'{i}.png')
        if n > 1:
            features[name] = inception_features(net, images.permute(0, 3, 1, 2))
    flags = ['evaluate.py', f'--inception={weights}', '--device=cpu', '--batch_size=2']
    said = run(*flags, f'--real_dir={tmp_path}/a', f'--fake_dir={tmp_path}/b')
    figures = re.search(r'fid ([\d.e+-]+) \| kid ([\d.e+-]+)', said)
    a = features['a']
    b = features['b']
    assert float(figures[1]) == approx(frechet(a, b), rel=1e-3)
    assert float(figures[2]) == approx(kid(a, b, 0)[0], rel=1e-3)
    assert f'{tmp_path}/a: 2 images' in said
    assert f'{tmp_path}/b: 2 images' in said
    for name, words in (('empty', 'no image there'), ('missing', 'no image there'), ('one', 'want two images')):
        message = run(*flags, f'--real_dir={tmp_path}/a', f'--fake_dir={tmp_path}/{name}', ok=False)
        assert f'{tmp_path}/{name}: ' in message
        assert words in message
    assert '--fake_dir=' in run('evaluate.py', f'--real_dir={tmp_path}/a', ok=False)


def test_both_directions_of_uag_by_hand(pairs, tmp_path, monkeypatch, capsys):
    """Accuracy; FD-clf, FID and KID against the real images of the target; regions and maps."""
    run('train_uag.py', f'--dataset={pairs}', f'--out_dir={tmp_path}/u', *TINY_U, '--n_epochs=1')
    flags = dict(ckpt=f'{tmp_path}/u/ckpt.pt', out_dir=f'{tmp_path}/e', clf_dir=f'{tmp_path}/clf', clf_epochs=1)
    for key, value in flags.items():
        monkeypatch.setattr(evaluate, key, value)
    net = FewFeatures()
    monkeypatch.setattr(evaluate, 'load_inception', lambda path, device: net)
    # How long a translation takes is of no interest here.
    monkeypatch.setattr(evaluate, 'cost', lambda *args: {})
    evaluate.compare_checkpoints()
    said = capsys.readouterr().out
    rows = results(tmp_path / 'e')['checkpoints']
    assert [row['row'] for row in rows] == ['u -> blue', 'u -> red']
    assert 'below 2,048 images' in said
    assert 'KID x100' in said
    real = {}
    for name, side in (('red', 'A'), ('blue', 'B')):
        x = torch.from_numpy(np.load(f'{pairs}/test{side}_x.npy')).permute(0, 3, 1, 2).float()
        real[name] = F.interpolate(x, (16, 16), mode='bilinear', antialias=True) / 127.5 - 1
    region = torch.zeros(3, 16, 16, dtype=torch.bool)
    region[:, :, :8] = True
    saved = ckpt(tmp_path / 'u')
    directions = [('red', 'blue', 'st'), ('blue', 'red', 'ts')]
    for row, (source, name, letters) in zip(rows, directions):
        G = train_uag.Generator(**saved['g_args'])
        G.load_state_dict(saved[f'G_{letters}'])
        A = train_uag.Attention(**saved['a_args'])
        A.load_state_dict(saved[f'A_{letters[0]}'])
        x = real[source]
        with torch.no_grad():
            a = A(x)
            if saved['switched']:
                a = (a >= 0.45).float()
            fake = as_png(a * G(a * x) + (1 - a) * x)
        logits, features = judge(tmp_path / 'clf', fake)
        calls = logits.argmax(1) == ['red', 'blue'].index(name)
        assert row['accuracy'] == approx(calls.float().mean().item())
        _, real_features = judge(tmp_path / 'clf', real[name])
        assert row['fd_clf'] == approx(frechet(real_features, features), rel=1e-3)
        real_features = inception_features(net, to_uint8(real[name]))
        features = inception_features(net, to_uint8(fake))
        assert row['fid'] == approx(frechet(real_features, features), rel=1e-3)
        assert row['kid'] == approx(kid(real_features, features, 0)[0], rel=1e-3)
        of_x = region[:len(x)]
        measures = mask_measures(a[:, 0], of_x, 0.45)
        measures |= change_measures(x, fake, of_x)
        for key, values in measures.items():
            assert row[key] == approx(values.mean().item(), rel=1e-3, abs=1e-6), key
        assert 'gradcam energy' not in row
        assert 'gradcam agreement' not in row
    # Seeds
    shutil.copytree(tmp_path / 'u', tmp_path / 'u-s0')
    shutil.copytree(tmp_path / 'u', tmp_path / 'u-s1')
    paths = f'{tmp_path}/u-s0/ckpt.pt+{tmp_path}/u-s1/ckpt.pt,{tmp_path}/u/ckpt.pt'
    nets = evaluate.load_checkpoints(paths, 'cpu')
    assert [net.row for net in nets] == ['u (2 seeds)', 'u (2 seeds)', 'u']


# -----------------------------------------------------------------------------
# photos
def test_photos(teacher, tmp_path):
    folder = tmp_path / 'in'
    (folder / 'deep').mkdir(parents=True)
    photo = noise(40, 30, 3)
    photo.save(folder / 'me.v2.png')
    photo.save(folder / 'me_v2.png')
    photo.convert('CMYK').save(folder / 'me.v2.jpg')
    turned = Image.Exif()
    turned[0x0112] = 6
    photo.save(folder / 'deep/b.JFIF', 'JPEG', exif=turned)
    (folder / 'deep/up').symlink_to(folder)
    grey = np.arange(40 * 30, dtype=np.uint16).reshape(40, 30) * 54
    Image.fromarray(grey).save(folder / 'word.png')
    Image.fromarray((grey / 65535).astype(np.float32)).save(folder / 'real.tif')
    # Profiles of three colour spaces; that of RGB alone may stay.
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes())
    for mode, space in (('RGB', b'RGB '), ('L', b'GRAY'), ('CMYK', b'CMYK')):
        profile[16:20] = space
        photo.convert(mode).save(folder / f'{mode}.jpg', icc_profile=bytes(profile))
    # What is no photo, said or, if systems put it there, not
    (folder / 'broken.jpg').write_text('no image')
    (folder / 'phone.HEIC').write_text('no image')
    (folder / '.hidden.jpg').write_text('no image')
    for hidden in ('@eaDir', '.thumbnails', '__MACOSX'):
        (folder / hidden).mkdir()
        photo.save(folder / hidden / 'thumb.jpg')
    flags = ['evaluate.py', f'--ckpt={teacher}/ckpt.pt', '--device=cpu']
    said = run(*flags, f'--input={folder}', f'--out={tmp_path}/o', '--attrs=a,b+c')
    assert 'broken.jpg: left out' in said
    assert 'phone.HEIC: left out' in said
    assert 'hidden' not in said
    assert 'centre square' in said
    assert '18 images' in said
    names = ['CMYK.jpg', 'L.jpg', 'RGB.jpg', 'deep/b.JFIF', 'me.v2.jpg', 'me.v2.png', 'me_v2.png', 'real.tif']
    names.append('word.png')
    results_of = tmp_path / 'o'
    found = [str(path.relative_to(results_of)) for path in results_of.rglob('*.png')]
    want = [f'{name}_{target}.png' for name in names for target in ('a', 'b+c')]
    assert sorted(found) == sorted(want)

    def result(name):
        image = Image.open(tmp_path / 'o' / name)
        return np.asarray(image).astype(int), image.info.get('icc_profile')

    # Outside the square all is as it was.
    same = result('me.v2.png_a.png')[0] == np.asarray(photo)
    assert same[:5].all()
    assert same[35:].all()
    assert not same[5:35].all()
    assert result('deep/b.JFIF_a.png')[0].shape == (30, 40, 3)
    for name in ('word.png_a.png', 'real.tif_a.png'):
        above = result(name)[0][:5, :, 0]
        assert np.abs(above - grey[:5] / 257).max() <= 1
    for mode in ('RGB', 'L', 'CMYK'):
        profile = result(f'{mode}.jpg_a.png')[1]
        assert profile is None or profile[16:20] == b'RGB '
    assert result('RGB.jpg_a.png')[1]


def test_pixels_of_a_translated_photo(teacher, tmp_path):
    """The square is G's, of what D takes the photo for, with all of the attributes of a target."""
    photo = noise(40, 30, 3)
    photo.save(tmp_path / 'me.png')
    flags = [f'--ckpt={teacher}/ckpt.pt', f'--input={tmp_path}/me.png', f'--out={tmp_path}', '--device=cpu']
    run('evaluate.py', *flags, '--attrs=a,b,b+c,c+a', '--paste=False')
    T = Net(teacher)
    square = photo.crop((0, 5, 30, 35)).resize((16, 16), Image.BICUBIC)
    x = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None] / 127.5 - 1
    guess = (T.D(x)[1] > 0).float()
    for target in ('a', 'b', 'b+c', 'c+a'):
        y = guess.clone()
        if 'a' in target or 'b' in target:
            y[:, :2] = 0
        for name in target.split('+'):
            y[:, COLUMNS[name]] = 1
        found = Image.open(tmp_path / f'me.png_{target}.png')
        assert differ(np.asarray(found), T.G(x, y)) <= 1, target


def test_links_between_folders_end(tmp_path):
    (tmp_path / 'a').mkdir()
    Image.new('RGB', (2, 2)).save(tmp_path / 'a/0.png')
    (tmp_path / 'a/up').symlink_to(tmp_path)
    (tmp_path / 'b').symlink_to(tmp_path / 'a')
    images, others = list_files(str(tmp_path), ('.png',))
    assert len(images) == 1
    assert not others


# -----------------------------------------------------------------------------
# what users bring: too little data, slips, things that fail late
@pytest.fixture(scope='module')
def odd(tmp_path_factory):
    """Test sets: `all`: everyone has a, nobody b; `smile`: everyone has the only attribute; `pairs`: one image each."""
    out = tmp_path_factory.mktemp('odd')
    for name, attrs in (('all', 'a,b,c'), ('smile', 'smile')):
        data = make_data(str(out / name), attrs)
        y = np.load(f'{data}/test_y.npy')
        y[:, 0] = 1
        y[:, 1:2] = 0
        np.save(f'{data}/test_y.npy', y)
        run('train_teacher.py', f'--dataset={data}', f'--out_dir={out}/T-{name}', *TINY, '--max_iters=0')
    data = make_pairs(str(out / 'pairs'))
    for name in ('testA_x', 'testA_m', 'testB_x', 'testB_m'):
        array = np.load(f'{data}/{name}.npy')
        np.save(f'{data}/{name}.npy', array[:1])
    run('train_uag.py', f'--dataset={data}', f'--out_dir={out}/U', *TINY_U, '--n_epochs=0.3')
    return out


def test_too_little_data_is_shown_as_far_as_it_goes(odd, evaluation, tmp_path):
    said = run('evaluate.py', f'--ckpt={odd}/T-all/ckpt.pt', f'--out_dir={tmp_path}', *evaluation)
    assert 'no test image has b: ' in said
    assert 'every test image has a: ' in said
    found = results(tmp_path)
    row, = found['checkpoints']
    assert row['targets'] == ['b', 'c']
    assert row['accuracy'] == row['-> c']
    assert found['real']['-> b'] is None
    assert found['real']['accuracy'] == found['real']['-> c']
    # One image of each domain
    said = run('evaluate.py', f'--ckpt={odd}/U/ckpt.pt', f'--out_dir={tmp_path}/u', *evaluation)
    assert 'U -> blue: distances to real images want two images or more' in said
    row = results(tmp_path / 'u')['checkpoints'][0]
    assert row['fd_clf'] is None
    assert row['n_fake'] == 1
    assert row['accuracy'] in (0, 1)


def test_nothing_to_translate_is_said_before_anything_is_trained(odd, tmp_path):
    flags = [f'--ckpt={odd}/T-smile/ckpt.pt', f'--out_dir={tmp_path}/e', f'--clf_dir={tmp_path}/clf', '--device=cpu']
    assert 'nothing to translate' in run('evaluate.py', *flags, ok=False)
    assert not os.path.exists(tmp_path / 'clf')


@pytest.mark.parametrize('flag', ['--n_rows=0', '--clf_epochs=0', '--split=train', '--clf_arch=resnet', '--ckpt='])
def test_flags_that_cannot_be(flag):
    assert flag in run('evaluate.py', '--ckpt=none.pt', flag, ok=False)


@pytest.mark.parametrize('flags, words', [
    (dict(device='nonsense'), '--device=nonsense'),
    (dict(dataset='nowhere'), '--dataset=nowhere'),
    (dict(ckpt=','), '--ckpt='),
    (dict(ckpt='T/nothing.pt'), 'T/nothing.pt'),
    (dict(ckpt='T/ckpt.pt,T/ckpt.pt'), 'two of one name'),
    (dict(ckpt='T/ckpt.pt+T2/ckpt.pt,T-0/ckpt.pt+T-1/ckpt.pt'), 'two of one name'),
    (dict(ckpt='T/ckpt.pt,U/ckpt.pt'), 'U/ckpt.pt is of another kind'),
    (dict(ckpt='T/ckpt.pt,ac/ckpt.pt+T/ckpt.pt'), 'T/ckpt.pt is of another kind, or of other attributes'),
    (dict(ckpt='U/ckpt.pt', split='val'), '--split=val'),
    (dict(ckpt='U/ckpt.pt', dataset='data'), 'do not go with'),
    (dict(ckpt='cut/ckpt.pt'), '--ckpt=cut/ckpt.pt'),
    (dict(ckpt='text/ckpt.pt'), '--ckpt=text/ckpt.pt'),
    (dict(ckpt='list/ckpt.pt'), '--ckpt=list/ckpt.pt'),
    (dict(ckpt='kind/ckpt.pt'), '--ckpt=kind/ckpt.pt'),
    (dict(ckpt='iter/ckpt.pt'), '--ckpt=iter/ckpt.pt'),
    (dict(ckpt='attrs/ckpt.pt'), '--ckpt=attrs/ckpt.pt'),
    (dict(ckpt='groups/ckpt.pt'), '--ckpt=groups/ckpt.pt'),
    (dict(ckpt='tau/ckpt.pt'), '--ckpt=tau/ckpt.pt'),
    (dict(clf_dir='text/ckpt.pt/clf'), 'text/ckpt.pt/clf: cannot write there'),
    (dict(out_dir='text/ckpt.pt/e'), 'text/ckpt.pt/e: cannot write there'),
    (dict(input='nowhere'), 'nowhere: no image there'),
    (dict(input='text/ckpt.pt'), 'no photo there that can be read'),
    (dict(input='photos', attrs='a+d'), '--attrs=a+d'),
    (dict(input='photos', ckpt='U/ckpt.pt', attrs='red+blue'), 'one at a time'),
    (dict(input='photos', out='text/ckpt.pt/o'), 'text/ckpt.pt/o: cannot write there'),
])
def test_slips_end_in_one_line(flags, words, slips, tmp_path, monkeypatch):
    monkeypatch.chdir(slips)
    common = dict(ckpt='T/ckpt.pt', out_dir=f'{tmp_path}/e', clf_dir=f'{tmp_path}/clf', out=f'{tmp_path}/o')
    for key, value in (common | flags).items():
        monkeypatch.setattr(evaluate, key, value)
    monkeypatch.setattr(evaluate, 'inception', 'none')
    # Nothing is trained for it.
    monkeypatch.setattr(evaluate, 'train_classifier', None)
    with pytest.raises(SystemExit) as end:
        if 'input' in flags:
            evaluate.translate_photos()
        else:
            evaluate.compare_checkpoints()
    assert words in end.value.code
    assert len(end.value.code.splitlines()) == 1


@pytest.fixture(scope='module')
def slips(data, teacher, runs, odd, tmp_path_factory):
    """A folder of checkpoints, some of them damaged."""
    out = tmp_path_factory.mktemp('slips')
    for name in ('T', 'T2', 'T-0', 'T-1'):
        shutil.copytree(teacher, out / name)
    for name, path in (('ac', runs / 'T_ac'), ('U', odd / 'U'), ('data', data)):
        shutil.copytree(path, out / name)
    saved = {name: ckpt(out / name) for name in 'TU'}
    contents = {
        'list': [1, 2],
        'kind': saved['T'] | {'kind': 'other'},
        'iter': saved['T'] | {'iter': 'ten'},
        'attrs': saved['T'] | {'attrs': ['a', 'b']},
        'groups': saved['T'] | {'exclusive': [[0, 9]]},
        'tau': saved['U'] | {'config': saved['U']['config'] | {'tau': 'x'}},
    }
    for name, content in contents.items():
        (out / name).mkdir()
        torch.save(content, out / name / 'ckpt.pt')
    for name in ('cut', 'text', 'photos'):
        (out / name).mkdir()
    (out / 'cut/ckpt.pt').write_bytes((out / 'T/ckpt.pt').read_bytes()[:1000])
    (out / 'text/ckpt.pt').write_text('no checkpoint')
    Image.new('RGB', (20, 20)).save(out / 'photos/0.png')
    return out


def run_after(setup, tmp_path, *flags, ok=True, env=None):
    """Runs evaluate.py in a process in which `setup` has run before."""
    script = tmp_path / 'setup.py'
    script.write_text(f'import sys, runpy, torch\nsys.path.insert(0, {ROOT!r})\n{setup}\n'
                      f"sys.argv[0] = '{ROOT}/evaluate.py'\nrunpy.run_path(sys.argv[0], run_name='__main__')\n")
    return run(script, *flags, ok=ok, env=env)


def test_what_happens_late(teacher, runs, evaluation, tmp_path):
    """Ctrl-C while the classifier is trained, a full disk, figures that fail: one line, or a warning."""
    flags = [f'--ckpt={teacher}/ckpt.pt', *evaluation, f'--out_dir={tmp_path}/e']
    setup = ('import os, signal\n'
             'torch.optim.AdamW = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGINT)')
    message = run_after(setup, tmp_path, *flags, f'--clf_dir={tmp_path}/clf', ok=False)
    assert message.startswith('stopped')
    assert not os.listdir(tmp_path / 'clf')
    setup = 'import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (900, 900))'
    message = run_after(setup, tmp_path, *flags, ok=False)
    assert f'{tmp_path}/e/results.json: cannot write it' in message
    assert not os.listdir(tmp_path / 'e')
    # Results are there before anything is drawn, and an ASCII terminal shows what it can.
    setup = 'from PIL import ImageFont\nImageFont.load_default = None'
    paths = f'{runs}/S-s0/ckpt.pt+{runs}/S-s1/ckpt.pt'
    said = run_after(setup, tmp_path, *flags, f'--ckpt={paths}', env=dict(PYTHONIOENCODING='ascii'))
    assert 'warning: no draw_maps' in said
    assert 'warning: no draw_stages' in said
    assert r'\xb1' in said
    assert sorted(os.listdir(tmp_path / 'e')) == ['report.html', 'results.json', 'table.txt']
    assert '±' in (tmp_path / 'e/table.txt').read_text(encoding='utf-8')


def test_judge_that_is_kept_is_used_without_imagenet_weights(data, teacher, evaluation, tmp_path, monkeypatch):
    """Data without regions is not drawn: it wants a ResNet-50. No weights: a warning, and on with the other."""
    shutil.copytree(data, tmp_path / 'tiny')
    for split in ('train', 'val', 'test'):
        os.remove(tmp_path / f'tiny/{split}_m.npy')
    offline = dict(TORCH_HOME=str(tmp_path), https_proxy='http://127.0.0.1:9')
    flags = [f'--ckpt={teacher}/ckpt.pt', f'--dataset={tmp_path}/tiny', *evaluation, f'--out_dir={tmp_path}/e',
             f'--clf_dir={tmp_path}/clf']
    said = run('evaluate.py', *flags, env=offline)
    assert 'warning: no ImageNet weights' in said
    assert 'classifier resnet18' in said
    assert 'gradcam energy' not in said
    name, = os.listdir(tmp_path / 'clf')
    (tmp_path / 'clf' / name).write_bytes(b'damaged')
    message = run('evaluate.py', *flags, '--clf_arch=resnet18', ok=False)
    assert f'{name}: the classifier kept there is damaged' in message

    # One that was trained on another day is used. (A ResNet-18 stands in for it.)
    def resnet50(weights=None):
        if weights and os.path.exists(tmp_path / 'kept'):
            raise urllib.error.URLError('no route to host')
        return torchvision.models.resnet18()

    monkeypatch.setattr(torchvision.models, 'resnet50', resnet50)
    monkeypatch.setattr(evaluate, 'train_classifier', lambda *args: None)
    monkeypatch.setattr(evaluate, 'clf_dir', str(tmp_path / 'kept'))
    folder, meta = train_student.find_data(str(tmp_path / 'tiny'))
    train = Images(folder, meta, 'train', 'cpu')
    first, arch = evaluate.get_classifier('resnet50', train, types.SimpleNamespace(size=16))
    assert arch == 'resnet50'
    again, arch = evaluate.get_classifier('resnet50', train, types.SimpleNamespace(size=16))
    assert arch == 'resnet50'
    assert torch.equal(first.fc.weight, again.fc.weight)
    assert not again.training
