"""train_uag.py: its nets, masks, losses and pools by themselves, and whole runs on tiny data.

test_step_uag.py holds what an iteration makes of them.
"""

import itertools
import os
import re
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, TINY_U, ckpt, equal, make_data, make_pairs, run
from PIL import Image

from train_uag import (
    Attention, Discriminator, Generator, ResidualBlock, answers_half, d_losses, g_losses, init_weights, load_domain,
    past_fakes, random_crops, seen_by_d, translate, whole_images)


with open(f'{ROOT}/train_uag.py', encoding='utf-8') as file:
    SOURCE = file.read()


def image(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator) * 2 - 1


# nets
def test_parameters_are_the_papers():
    assert sum(p.numel() for p in Generator().parameters()) == 2855811
    assert sum(p.numel() for p in Discriminator().parameters()) == 2766657
    assert sum(p.numel() for p in Attention().parameters()) == 154689


@pytest.mark.parametrize('size', [16, 20])
def test_shapes_and_ranges(size):
    x = image(2, 3, size, size)
    x_fake = Generator(4, 1)(x)
    assert x_fake.shape == x.shape and x_fake.abs().max() <= 1
    # A block ends with a ReLU.
    assert ResidualBlock(3)(x).shape == x.shape and ResidualBlock(3)(x).min() == 0
    # A fresh map is undecided.
    a = init_weights(Attention(4))(x)
    assert a.shape == (2, 1, size, size)
    assert 0.05 < a.min() <= a.max() < 0.95
    assert Discriminator(4, 2)(x).shape == (2, 1, size // 4 - 2, size // 4 - 2)


def test_names_of_weights_stay_so_that_old_checkpoints_fit():
    names = Generator(4, 1).state_dict()
    for name in ('down.4.0.weight', 'res.0.conv1.0.weight', 'up.0.weight', 'up.3.weight', 'out.0.bias'):
        assert name in names
    for name in ('up.1.0.weight', 'up.4.0.weight'):
        assert name in Attention(4).state_dict()
    for name in ('down.2.weight', 'norms.2.weight', 'out.bias'):
        assert name in Discriminator(4, 2).state_dict()


def test_fresh_weights():
    D = init_weights(Discriminator(16, 2))
    weights = torch.cat([conv.weight.flatten() for conv in D.down])
    assert weights.std().item() == pytest.approx(0.02, rel=0.05)
    assert D.out.bias == 0


def test_discriminator_without_norm_is_its_convolutions():
    D = Discriminator(4, 2)
    x = image(2, 3, 16, 16)
    with_norm = D(x)
    D.norm = False
    h = x
    for conv in D.down:
        h = F.leaky_relu(conv(h), 0.2)
    assert torch.equal(D(x), D.out(h))
    assert not torch.allclose(D(x), with_norm)


# composition and masks
ONES = torch.ones(2, 1, 16, 16)
HALF = (torch.arange(16) < 8).float().expand(2, 1, 16, 16)
COMPOSITIONS = {
    # A's map, tau, the map in use
    'nothing is translated': (0 * ONES, None, 0 * ONES),
    'all is translated': (ONES, None, ONES),
    'half is translated': (HALF, None, HALF),
    'without tau there are blends': (0.05 + 0.45 * HALF, None, 0.05 + 0.45 * HALF),
    'with tau there are none; tau itself is on': (0.1 + 0.4 * HALF, 0.5, HALF)}


@pytest.mark.parametrize('name', COMPOSITIONS)
def test_composition(name):
    A_of_x, tau, a = COMPOSITIONS[name]
    x = image(2, 3, 16, 16)
    G = Generator(4, 1)
    x_fake, map_in_use, foreground = translate(x, lambda x: A_of_x, G, tau)
    assert torch.equal(map_in_use, a)
    # Where the map is 0 G is shown mid-grey.
    assert torch.equal(foreground, a * x)
    torch.testing.assert_close(x_fake, a * G(a * x) + (1 - a) * x)


def test_without_attention_it_is_cyclegan():
    x = image(2, 3, 16, 16)
    G = Generator(4, 1)
    for tau in (None, 0.5):
        x_fake, a, foreground = translate(x, None, G, tau)
        assert torch.equal(x_fake, G(x))
        assert torch.equal(a, ONES)
        assert torch.equal(foreground, x)


def test_hard_mask_passes_no_gradient_to_the_map_and_its_threshold_is_inclusive():
    x = image(1, 3, 8, 8).requires_grad_()
    a = torch.rand(1, 1, 8, 8)
    a[0, 0, 0, :2] = torch.tensor([0.5, 0.4999])
    a.requires_grad_()
    seen = seen_by_d(x, a, 0.5)
    assert torch.equal(seen, x * (a >= 0.5))
    assert (seen[0, 0, 0, :2] != 0).tolist() == [True, False]
    assert seen_by_d(x, a, None) is x
    grad_x, grad_a = torch.autograd.grad(seen.sum(), (x, a), allow_unused=True)
    assert grad_a is None
    assert torch.equal(grad_x, (a >= 0.5).float().expand_as(x))


# losses: every net is a formula of its own that notes what it was shown
class Spy:
    def __init__(self, formula):
        self.formula = formula
        self.shown = []

    def __call__(self, x):
        self.shown.append(x.detach())
        return self.formula(x)


@pytest.mark.parametrize('tau_D,tau_G', [(None, None), (0.4, None), (0.4, 0.4)])
def test_every_net_sees_the_right_image_through_the_right_map(tau_D, tau_G):
    A = Spy(lambda x: torch.sigmoid(4 * x[:, :1]))
    A_back = Spy(lambda x: torch.sigmoid(3 * x[:, 1:2] - 1))
    G = Spy(lambda x: torch.tanh(2 * x))
    G_back = Spy(lambda x: torch.sin(3 * x + 1))
    D = Spy(lambda x: 0.7 * x[:, 1:2] + 0.1)
    s = image(2, 3, 8, 8, seed=1)

    def map_in_use(net, x):
        a = net.formula(x)
        return a if tau_G is None else (a >= tau_G).float()

    def mask(a):
        return torch.ones_like(a) if tau_D is None else (a >= tau_D).float()

    a = map_in_use(A, s)
    s1 = a * G.formula(a * s) + (1 - a) * s
    a1 = map_in_use(A_back, s1)
    s2 = a1 * G_back.formula(a1 * s1) + (1 - a1) * s1

    loss_adv, loss_cyc, x_fake, a_given = g_losses(s, A, G, D, A_back, G_back, tau_D, tau_G)
    torch.testing.assert_close(loss_adv, ((D.formula(s1 * mask(a)) - 1) ** 2).mean())
    torch.testing.assert_close(loss_cyc, (s2 - s).abs().mean())
    assert torch.equal(x_fake, s1)
    assert torch.equal(a_given, a)
    for net, x in ((A, s), (A_back, s1), (G, a * s), (G_back, a1 * s1), (D, s1 * mask(a))):
        assert len(net.shown) == 1 and torch.equal(net.shown[0], x)

    # D: real images through their own map, fakes through that of their source
    t = image(2, 3, 8, 8, seed=2)
    a_t = map_in_use(A_back, t)
    loss_real, loss_fake = d_losses(D, t, a_t, s1, a, tau_D)
    torch.testing.assert_close(loss_real, ((D.formula(t * mask(a_t)) - 1) ** 2).mean() / 2)
    torch.testing.assert_close(loss_fake, (D.formula(s1 * mask(a)) ** 2).mean() / 2)


# past fakes
def test_past_fakes_come_with_their_own_maps():
    """Fake i is the constant i, its map the constant -i."""
    torch.manual_seed(0)
    pool = []
    given = []
    for i in range(0, 80, 2):
        x = torch.tensor([i, i + 1.0]).view(2, 1, 1, 1).expand(2, 3, 4, 4)
        x_past, a_past = past_fakes(pool, 3, x, -x[:, :1])
        assert x_past.shape == (2, 3, 4, 4)
        assert torch.equal(a_past, -x_past[:, :1])
        given += x_past[:, 0, 0, 0].tolist()
        assert len(pool) == min(3, i + 2)
        for fake, a in pool:
            assert torch.equal(a, -fake[:1])
            # No view, which would keep, and save, the whole batch.
            assert fake.untyped_storage().nbytes() == fake.numel() * 4
            assert a.untyped_storage().nbytes() == a.numel() * 4
    assert given[:3] == [0, 1, 2]
    # From the fourth on about half are past ones, and none comes twice.
    assert 0.3 < sum(fake != i for i, fake in enumerate(given) if i >= 3) / 77 < 0.7
    assert len(set(given[3:])) == 77


def test_no_pool_gives_what_it_gets():
    x = image(2, 3, 4, 4)
    pool = []
    x_past, a_past = past_fakes(pool, 0, x, x[:, :1])
    assert torch.equal(x_past, x)
    assert torch.equal(a_past, x[:, :1])
    assert pool == []


# data
def test_crops_are_crops_and_flips():
    torch.manual_seed(0)
    x = torch.arange(2 * 8 * 8 * 3).remainder(256).to(torch.uint8).view(2, 8, 8, 3)
    origin = {}
    for i, top, left, flipped in itertools.product(range(2), range(5), range(5), range(2)):
        crop = x[i, top:top + 4, left:left + 4]
        if flipped:
            crop = crop.flip(1)
        origin[tuple(crop.flatten().tolist())] = (i, top, left, flipped)
    crops = random_crops(x, 300, 4, 'cpu')
    assert crops.shape == (300, 3, 4, 4) and crops.is_contiguous()
    pixels = ((crops + 1) * 127.5).round().int().permute(0, 2, 3, 1)
    origins = [origin[tuple(crop.flatten().tolist())] for crop in pixels]
    # All images, rows, columns, and both sides
    assert [len(set(values)) for values in zip(*origins)] == [2, 5, 5, 2]


def test_whole_images_are_resized():
    x = torch.arange(2 * 8 * 8 * 3).remainder(256).to(torch.uint8).view(2, 8, 8, 3)
    assert torch.equal(whole_images(x, 8), x.permute(0, 3, 1, 2) / 127.5 - 1)
    assert whole_images(x, 4).shape == (2, 3, 4, 4)
    assert torch.allclose(whole_images(0 * x + 255, 4), torch.tensor(1.0))


@pytest.mark.parametrize('shape,kind', [
    ((2, 8, 8, 3), 'float32'),
    ((2, 8, 6, 3), 'uint8'),
    ((0, 8, 8, 3), 'uint8'),
    ((3,), 'uint8')])
def test_a_damaged_array_ends_in_one_line(shape, kind, tmp_path):
    np.save(tmp_path / 'trainA_x.npy', np.zeros(shape, kind))
    with pytest.raises(SystemExit, match='prepare the data again'):
        load_domain(tmp_path, 'trainA')


# whole runs
@pytest.fixture(scope='module')
def runs(pairs, tmp_path_factory):
    """Three epochs of 4 iterations, the switch after 6, at once and in three pieces.

    -> folder, the checkpoints of the pieces, what the pieces said
    """
    out = tmp_path_factory.mktemp('out')
    flags = ['train_uag.py', f'--dataset={pairs}', *TINY_U, '--drop_norm=True']
    run(*flags, f'--out_dir={out}/whole', '--n_epochs=3', '--switch_at=0.5', '--decay_at=0.67')
    pieces = []
    said = []
    for n_epochs, switch_at, decay_at in ((1, 1, 1), (2, 0.75, 1), (3, 0.5, 0.67)):
        shares = [f'--n_epochs={n_epochs}', f'--switch_at={switch_at}', f'--decay_at={decay_at}']
        said.append(run(*flags, f'--out_dir={out}/parts', '--resume=True', *shares))
        pieces.append(ckpt(out / 'parts'))
    return out, pieces, said


def test_resume_across_the_switch_is_bit_exact(runs):
    out, pieces, _ = runs
    whole = ckpt(out / 'whole')
    assert [(piece['iter'], piece['switched']) for piece in pieces] == [(4, False), (8, True), (12, True)]
    different = {key for key in whole if not equal(whole[key], pieces[-1][key])}
    assert different == {'config'}
    assert len(whole['pools']['s']) == len(whole['pools']['t']) == 3
    for i in (4, 8, 12):
        name = f'samples/{i:06d}.png'
        assert (out / 'whole' / name).read_bytes() == (out / 'parts' / name).read_bytes()


def test_the_switch_freezes_the_maps_and_drops_the_norms_of_d(runs):
    before, at, after = runs[1]
    for domain in 'st':
        name = f'A_{domain}'
        assert not equal(before[name], at[name])
        assert equal(at[name], after[name])
        for name, weight in at[f'D_{domain}'].items():
            assert torch.equal(weight, after[f'D_{domain}'][name]) == ('norms' in name)
    assert not equal(at['G_st'], after['G_st'])


def test_what_a_run_leaves_behind(runs):
    folder = runs[0] / 'whole'
    saved = ckpt(folder)
    assert sorted(os.listdir(folder)) == ['ckpt.pt', 'log.txt', 'samples', 'train_uag.py']
    assert saved['source'] == (folder / 'train_uag.py').read_text(encoding='utf-8')
    assert saved['source'] == SOURCE
    assert saved['domains'] == ['red', 'blue']
    assert saved['image_size'] == 16
    for name in ('000004', '000012'):
        with Image.open(folder / f'samples/{name}.png') as grid:
            # Five columns below their names, two and three test images, each of 16 px six times enlarged
            assert grid.size == (5 * 96, 16 + 5 * 96)
            # The maps: soft ones before the switch, hard ones behind it
            values = set(np.asarray(grid)[16:, 96:192].flat)
            assert (values <= {0, 255}) == (name == '000012')


def test_samples_show_translations_and_the_way_back(runs, pairs):
    saved = ckpt(runs[0] / 'whole')
    nets = {}
    for name in ('G_st', 'G_ts', 'A_s', 'A_t'):
        nets[name] = Generator(4, 1) if name[0] == 'G' else Attention(4)
        nets[name].load_state_dict(saved[name])
    with Image.open(runs[0] / 'whole/samples/000012.png') as grid:
        pixels = torch.from_numpy(np.asarray(grid)[16::6, ::6].copy()).float() / 127.5 - 1
    # (rows, columns, 16, 16, 3)
    pixels = pixels.view(5, 16, 5, 16, 3).transpose(1, 2)
    for s, t, name, shown in (('s', 't', 'testA', pixels[:2]), ('t', 's', 'testB', pixels[2:])):
        x = whole_images(load_domain(pairs, name), 16)
        A = nets[f'A_{s}']
        G = nets[f'G_{s}{t}']
        A_back = nets[f'A_{t}']
        G_back = nets[f'G_{t}{s}']
        with torch.no_grad():
            x_fake, a, foreground = translate(x, A, G, 0.45)
            back, _, _ = translate(x_fake, A_back, G_back, 0.45)
        grey = (2 * a - 1).expand_as(x)
        for i, column in enumerate((x, grey, foreground, x_fake, back)):
            difference = shown[:, i] - column.permute(0, 2, 3, 1)
            assert difference.abs().max() < 0.01


def test_the_log(runs):
    lines = (runs[0] / 'whole/log.txt').read_text(encoding='utf-8').splitlines()
    assert lines[0].startswith('$ python train_uag.py --dataset=')
    assert 'G_st has 8,883 parameters, on cpu' in lines
    assert sum('iter 6: the switch: D now sees' in line for line in lines) == 1
    lines = [line for line in lines if 'it/s' in line]
    assert [line.split('|')[0] for line in lines] == [f'iter {i:6d}/12 ' for i in (2, 4, 6, 8, 10, 12)]
    names = [word for word in lines[-1].split('|')[1].split() if word[0].isalpha()]
    assert ' '.join(names) == 'D_s_real D_s_fake D_t_real D_t_fake G_st G_ts cyc_s cyc_t A_s A_t seen_s seen_t'
    assert 'nan' not in ''.join(lines)


def test_a_run_that_is_done_says_so_and_changes_nothing(runs, pairs):
    out = runs[0]
    before = (out / 'parts/ckpt.pt').read_bytes()
    flags = [f'--dataset={pairs}', *TINY_U, f'--out_dir={out}/parts', '--resume=True']
    said = run('train_uag.py', *flags, '--n_epochs=3', '--switch_at=0.5', '--decay_at=0.67')
    assert 'is of iteration 12: done' in said
    assert (out / 'parts/ckpt.pt').read_bytes() == before


def test_flags_that_differ_are_named(runs):
    said = runs[2]
    assert 'warning' not in said[0]
    assert re.findall('warning: --(.*) from here on', said[1]) == [
        'switch_at was 1.0, and is 0.75', 'n_epochs was 1.0, and is 2.0']
    assert re.findall('warning: --(.*) was', said[2]) == ['switch_at', 'n_epochs', 'decay_at']


def test_edited_nets_are_named(runs, pairs, tmp_path):
    shutil.copytree(runs[0] / 'parts', tmp_path / 'parts')
    (tmp_path / 'train_uag.py').write_text(SOURCE.replace('leaky_relu(x, 0.2)', 'leaky_relu(x, 0.1)'))
    flags = [f'--dataset={pairs}', *TINY_U, f'--out_dir={tmp_path}/parts', '--resume=True', '--n_epochs=3']
    assert 'the nets of train_uag.py have changed' in run(tmp_path / 'train_uag.py', *flags)


@pytest.fixture(scope='module')
def ablations(pairs, tmp_path_factory):
    """Half an epoch, all of which would be behind the switch -> folder, flag -> what the run said."""
    out = tmp_path_factory.mktemp('out')
    flags = [f'--dataset={pairs}', *TINY_U, '--switch_at=0', '--n_epochs=0.5']
    said = {}
    for flag in ('--tau=0.01', '--attention=False', '--masked_d=False'):
        said[flag] = run('train_uag.py', *flags, flag, f"--out_dir={out}/{flag.strip('-')}")
    return out, said


def test_the_switch_waits_while_a_map_is_all_or_nothing_and_ablations_never_switch(ablations):
    out, said = ablations
    for flag, text in said.items():
        saved = ckpt(out / flag.strip('-'))
        # A fresh map is about 1/2 everywhere.
        assert text.count('so the switch waits') == text.count('switch waits') == ('tau' in flag)
        assert 'the switch:' not in text
        assert not saved['switched'] and saved['iter'] == 2
        has_maps = 'attention' not in flag
        assert (saved['A_s'] is not None) == (saved['a_args'] is not None) == ('seen_t' in text) == has_maps


# a D that has stopped
@pytest.mark.parametrize('real,fake,stopped', [
    ([0.125, 0.125], [0.125, 0.125], True),
    ([0.1, 0.15], [0.14, 0.11], True),  # on the average
    ([0.127, 0.127], [0.125, 0.125], False),
    ([0.125, 0.125], [0.123, 0.123], False),
    ([0.1, 0.1], [0.15, 0.15], False)])
def test_losses_of_a_d_that_answers_one_half(real, fake, stopped):
    assert answers_half(torch.tensor([real, fake]).T) == stopped


def test_a_d_that_has_stopped_is_named_once(pairs, tmp_path):
    """Discriminators whose answer is a constant, at lr 0; one that is off 1/2 by 2 % has not stopped."""
    flags = [
        'train_uag.py', f'--dataset={pairs}', *TINY_U, f'--out_dir={tmp_path}/r', '--attention=False', '--lr=0',
        '--image_size=8', '--d_n_layers=1', '--ngf=1', '--ndf=1', '--log_interval=20', '--sample_interval=999',
        '--ckpt_interval=999', '--resume=True']
    run(*flags, '--n_epochs=0')
    changed = ckpt(tmp_path / 'r')
    for name, answer in (('D_s', 0.49), ('D_t', 0.5)):
        changed[name]['out.weight'].zero_()
        changed[name]['out.bias'].fill_(answer)
    torch.save(changed, tmp_path / 'r/ckpt.pt')
    said = run(*flags, '--n_epochs=51')
    assert said.count('answered 1/2') == 1
    # A line has means over its interval.
    assert said.count('D_t_real    0.125 D_t_fake    0.125 ') == 12
    assert said.index('iter    200/204') < said.index('answered 1/2') < said.index('iter    204/204')


# slips
SLIPS = {
    '--image_size=18': 'wants a multiple of 4 from 8 to 20',
    '--image_size=24': 'wants a multiple of 4 from 8 to 20',
    '--d_n_layers=3': '16 px are halved at most 2 times',
    '--n_blocks=0': 'at least 1',
    '--tau=2': 'want shares, from 0 to 1',
    '--dtype=half': 'wants float32 or bfloat16',
    '--dataset=nowhere': 'a prepare.py under data/ makes it'}


@pytest.mark.parametrize('flag', SLIPS)
def test_a_wrong_flag_ends_in_one_line(flag, pairs, tmp_path):
    out = run('train_uag.py', f'--dataset={pairs}', *TINY_U, f'--out_dir={tmp_path}/r', flag, ok=False)
    assert SLIPS[flag] in out and not os.path.exists(tmp_path / 'r')


METAS = {
    'missing': None,
    'empty': '',
    'damaged': '{"label": "unpaired",}',
    'a list': '[]',
    'without its size': '{"label": "unpaired", "domains": ["red", "blue"]}',
    'without its domains': '{"label": "unpaired", "image_size": 20}',
    'with one domain': '{"label": "unpaired", "image_size": 20, "domains": ["red"]}'}


@pytest.mark.parametrize('name', METAS)
def test_a_wrong_meta_json_ends_in_one_line(name, tmp_path):
    folder = make_pairs(tmp_path / 'pairs')
    os.remove(f'{folder}/meta.json')
    if METAS[name] is not None:
        (tmp_path / 'pairs/meta.json').write_text(METAS[name])
    assert f'--dataset={folder}: ' in run('train_uag.py', f'--dataset={folder}', *TINY_U, ok=False)


def test_data_with_labels_is_for_the_teacher(tmp_path):
    folder = make_data(tmp_path / 'attrs')
    assert 'train_teacher.py' in run('train_uag.py', f'--dataset={folder}', *TINY_U, ok=False)


def test_one_image_each_is_enough(tmp_path):
    folder = make_pairs(tmp_path / 'pairs')
    for name in ('trainA', 'trainB', 'testA', 'testB'):
        np.save(f'{folder}/{name}_x.npy', np.load(f'{folder}/{name}_x.npy')[:1])
    run('train_uag.py', f'--dataset={folder}', *TINY_U, f'--out_dir={tmp_path}/r', '--n_epochs=2')
    assert ckpt(tmp_path / 'r')['iter'] == 2


RESUMED = {
    '--image_size=20': 'images of another size',
    '--attention=False': 'parameter group',
    '--ngf=8': 'size mismatch'}


@pytest.mark.parametrize('flag', RESUMED)
def test_resuming_another_run_ends_in_one_line(flag, runs, pairs, tmp_path):
    shutil.copytree(runs[0] / 'parts', tmp_path / 'parts')
    flags = [f'--dataset={pairs}', *TINY_U, f'--out_dir={tmp_path}/parts', '--resume=True', '--n_epochs=4', flag]
    said = run('train_uag.py', *flags, ok=False)
    assert f'{tmp_path}/parts/ckpt.pt: cannot go on' in said and RESUMED[flag] in said
    assert equal(ckpt(tmp_path / 'parts'), runs[1][-1])


DAMAGES = {
    'switched': 1,
    'pools': [],
    'iter': '8',
    'rng': torch.zeros(3),
    'config': None,
    'A_t': None,
    'opt_G': {'state': {}}}


@pytest.mark.parametrize('key', DAMAGES)
def test_a_damaged_checkpoint_ends_in_one_line(key, runs, pairs, tmp_path):
    os.mkdir(tmp_path / 'r')
    torch.save(runs[1][-1] | {key: DAMAGES[key]}, tmp_path / 'r/ckpt.pt')
    flags = [f'--dataset={pairs}', *TINY_U, f'--out_dir={tmp_path}/r', '--resume=True', '--n_epochs=4']
    assert 'cannot go on' in run('train_uag.py', *flags, ok=False)


def test_a_pool_of_other_things_ends_in_one_line(runs, pairs, tmp_path):
    os.mkdir(tmp_path / 'r')
    torch.save(runs[1][-1] | {'pools': {'s': [1, 2], 't': []}}, tmp_path / 'r/ckpt.pt')
    flags = [f'--dataset={pairs}', *TINY_U, f'--out_dir={tmp_path}/r', '--resume=True', '--n_epochs=4']
    said = run('train_uag.py', *flags, ok=False)
    assert 'cannot go on' in said


def test_weights_that_are_not_finite_are_not_saved(pairs, tmp_path):
    flags = ['--n_epochs=2', '--lr=1e18']
    said = run('train_uag.py', f'--dataset={pairs}', *TINY_U, f'--out_dir={tmp_path}/r', *flags, ok=False)
    assert 'weights are not finite, lower --lr' in said
    assert f'{tmp_path}/r/ckpt.pt is of iteration 0' in said
    assert ckpt(tmp_path / 'r')['iter'] == 0
