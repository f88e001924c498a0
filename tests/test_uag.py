"""train_uag.py: sizes of the nets, who sees which image with which map, the switch, and whole runs on tiny data."""

import itertools
import json
import os

import numpy as np
import pytest
import torch
from conftest import TINY_U, ckpt, equal, run
from PIL import Image

from evaluate import measure, to_uint8
from train_student import load_nets
from train_uag import (Attention, Discriminator, Generator, ResidualBlock, d_losses, g_losses, init_weights, past_fakes,
                       random_crops, real_and_past, seen_by_d, translate, whole_images)


def image(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# nets
def test_sizes_shapes_and_ranges():
    counts = [sum(p.numel() for p in net().parameters()) for net in (Generator, Discriminator, Attention)]
    assert counts == [2855811, 2766657, 154689]
    for size in (16, 20):
        x = image(2, 3, size, size)
        assert Generator(4, 1)(x).shape == x.shape and ResidualBlock(3)(x).min() == 0  # ends in a ReLU
        a = init_weights(Attention(4))(x)
        assert a.shape == (2, 1, size, size) and 0.05 < a.min() <= a.max() < 0.95  # a fresh map is undecided
        assert Discriminator(4, 2)(x).shape == (2, 1, size // 4 - 2, size // 4 - 2)


def test_discriminator_without_norm_is_its_convolutions():
    D, x = Discriminator(4, 2), image(2, 3, 16, 16)
    h, with_norm, D.norm = x, D(x), False
    for down in D.down:
        h = torch.nn.functional.leaky_relu(down(h), 0.2)
    assert torch.equal(D(x), D.out(h)) and not torch.allclose(D(x), with_norm)


# composition and masks
def test_composition():
    x, G, one = image(2, 3, 16, 16), Generator(4, 1), torch.ones(2, 1, 16, 16)
    half = torch.arange(16).expand(2, 1, 16, 16) < 8
    for A, tau, a in ((lambda x: 0 * one, None, 0 * one),  # nothing is translated
                      (lambda x: one, None, one), (None, None, one),  # all; without attention it is CycleGAN
                      (lambda x: half.float(), None, half), (lambda x: torch.where(half, 0.5, 0.05), None, None),
                      (lambda x: torch.where(half, 0.5, 0.1), 0.5, half)):  # given tau: no blends; tau itself is on
        x_fake, found, x_f = translate(x, A, G, tau)
        a = A(x) if a is None else a.float()
        assert torch.equal(found, a) and torch.equal(x_f, a * x)  # G's input: mid-grey where the map is 0
        torch.testing.assert_close(x_fake, a * G(a * x) + (1 - a) * x)


def test_hard_mask_passes_no_gradient_to_the_map_and_its_threshold_is_inclusive():
    x, a = image(1, 3, 8, 8).requires_grad_(), torch.rand(1, 1, 8, 8)
    a[0, 0, 0, :2] = torch.tensor([0.5, 0.4999])
    seen = seen_by_d(x, a.requires_grad_(), 0.5)
    assert torch.equal(seen, x * (a >= 0.5)) and (seen[0, 0, 0, :2] != 0).tolist() == [True, False]
    assert seen_by_d(x, a, None) is x
    g_x, g_a = torch.autograd.grad(seen.sum(), (x, a), allow_unused=True)
    assert g_a is None and torch.equal(g_x, (a >= 0.5).float().expand_as(x))


# losses: every net is a spy with a formula of its own, and what should have been seen is written out by hand
class Spy(torch.nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f, self.seen = f, []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        return self.f(x)


def spies():
    return dict(G_st=Spy(lambda x: torch.tanh(2 * x)), G_ts=Spy(lambda x: torch.sin(3 * x + 1)),
                A_s=Spy(lambda x: torch.sigmoid(4 * x[:, :1])), A_t=Spy(lambda x: torch.sigmoid(3 * x[:, 1:2] - 1)),
                D_s=Spy(lambda x: 0.5 * x[:, :1] - 0.2), D_t=Spy(lambda x: 0.7 * x[:, 1:2] + 0.1))


@pytest.mark.parametrize('tau_D,tau_G', [(None, None), (0.4, None), (0.4, 0.4)])
def test_every_net_sees_the_right_domain_and_the_right_map(tau_D, tau_G):
    N, x_s, x_t = spies(), image(2, 3, 8, 8, seed=1), image(2, 3, 8, 8, seed=2)
    f = {name: net.f for name, net in N.items()}

    def mask(a):
        return torch.ones_like(a) if tau_D is None else (a >= tau_D).float()

    def A(name, x):
        return f[name](x) if tau_G is None else (f[name](x) >= tau_G).float()
    s_a, t_a = A('A_s', x_s), A('A_t', x_t)
    s1 = s_a * f['G_st'](s_a * x_s) + (1 - s_a) * x_s  # s', to be taken for a t
    t1 = t_a * f['G_ts'](t_a * x_t) + (1 - t_a) * x_t
    s1_a, t1_a = A('A_t', s1), A('A_s', t1)
    s2 = s1_a * f['G_ts'](s1_a * s1) + (1 - s1_a) * s1
    t2 = t1_a * f['G_st'](t1_a * t1) + (1 - t1_a) * t1

    x = {'s': x_s, 't': x_t}
    losses, x_fake, a = g_losses(N, x, tau_D, tau_G)
    want = [((f['D_t'](s1 * mask(s_a)) - 1) ** 2).mean(), ((f['D_s'](t1 * mask(t_a)) - 1) ** 2).mean(),
            (s2 - x_s).abs().mean(), (t2 - x_t).abs().mean()]
    assert len({round(v.item(), 4) for v in want}) == 4
    torch.testing.assert_close(losses, want)
    assert torch.equal(x_fake['t'], s1) and torch.equal(x_fake['s'], t1)
    assert torch.equal(a['s'], s_a) and torch.equal(a['t'], t_a)
    assert torch.equal(N['D_t'].seen.pop(), s1 * mask(s_a)) and torch.equal(N['D_s'].seen.pop(), t1 * mask(t_a))
    for name, inputs in (('A_s', [x_s, t1]), ('A_t', [s1, x_t]), ('G_st', [s_a * x_s, t1_a * t1]),
                         ('G_ts', [s1_a * s1, t_a * x_t])):
        assert all(map(torch.equal, N[name].seen, inputs)) and len(N[name].seen) == len(inputs), name

    seen = {'t': [x_t * mask(t_a), s1 * mask(s_a)], 's': [x_s * mask(s_a), t1 * mask(t_a)]}  # real, fake
    judged = real_and_past(x, a, {'t': (s1, s_a), 's': (t1, t_a)}, tau_D)
    for k, images in zip('st', judged):
        assert torch.equal(images, torch.cat(seen[k]))
        want = [((f['D_' + k](v) - target) ** 2).mean() / 2 for v, target in zip(seen[k], (1, 0))]
        torch.testing.assert_close(d_losses(N['D_' + k], images), want)


# past fakes
def test_past_fakes_come_with_their_own_maps():
    torch.manual_seed(0)
    pool, returned = [], []
    for i in range(0, 80, 2):
        x = torch.arange(i, i + 2).float().view(2, 1, 1, 1).expand(2, 3, 4, 4).clone()
        x_past, a_past = past_fakes(pool, 3, x, -x[:, :1])
        assert x_past.shape == (2, 3, 4, 4) and torch.equal(a_past, -x_past[:, :1])  # each with its own
        returned += x_past[:, 0, 0, 0].tolist()
        assert len(pool) == min(3, i + 2) and all(torch.equal(a, -x[:1]) for x, a in pool)
        assert all(t.untyped_storage().nbytes() == t.numel() * 4 for item in pool for t in item)  # no views
    assert returned[:3] == [0, 1, 2]
    assert 0.3 < sum(v != i for i, v in enumerate(returned[3:], 3)) / 77 < 0.7  # about half are past ones
    pool, a = [], x[:, :1]
    assert all(map(torch.equal, past_fakes(pool, 0, x, a), (x, a))) and not pool  # of size 0: what it gets


# data
def test_crops_are_crops_and_flips_and_test_images_are_fixed():
    torch.manual_seed(0)
    x, parts = torch.arange(2 * 8 * 8 * 3).remainder(256).to(torch.uint8).view(2, 8, 8, 3), {}
    for i, top, left, flip in itertools.product(range(2), range(5), range(5), range(2)):
        crop = x[i, top:top + 4, left:left + 4]
        parts[tuple((crop.flip(1) if flip else crop).flatten().tolist())] = i, top, left, flip
    crops = random_crops(x, 300, 4, 'cpu')
    assert crops.shape == (300, 3, 4, 4) and crops.is_contiguous()
    found = [parts[tuple(c.flatten().tolist())] for c in ((crops + 1) * 127.5).round().int().permute(0, 2, 3, 1)]
    assert [len(set(of)) for of in zip(*found)] == [2, 5, 5, 2]  # all images, places, both sides
    assert torch.equal(whole_images(x, 8), x.permute(0, 3, 1, 2) / 127.5 - 1)
    assert whole_images(x, 4).shape == (2, 3, 4, 4)


# the switch, and whole runs
@pytest.fixture(scope='module')
def runs(pairs, tmp_path_factory):
    """Three epochs with the switch amid the second, at once and in three pieces -> folder, checkpoints by piece."""
    out, pieces = tmp_path_factory.mktemp('out'), []
    args = ['train_uag.py', f'--dataset={pairs}', *TINY_U]
    run(*args, f'--out_dir={out}/whole', '--n_epochs=3', '--switch_at=0.5', '--decay_at=0.67')
    for n_epochs, switch_at, decay_at in ((1, 1, 1), (2, 0.75, 1), (3, 0.5, 0.67)):  # lr falls in the third epoch only
        run(*args, f'--out_dir={out}/parts', '--resume=True', f'--n_epochs={n_epochs}', f'--switch_at={switch_at}',
            f'--decay_at={decay_at}')
        pieces.append(ckpt(out / 'parts'))
    return out, pieces


def test_resume_across_the_switch_is_bit_exact(runs):
    (out, pieces), whole = runs, ckpt(runs[0] / 'whole')
    assert [p['iter'] for p in pieces] == [4, 8, 12] and [p['switched'] for p in pieces] == [False, True, True]
    assert {'config'} == {k for k in whole if not equal(whole[k], pieces[-1][k])}
    assert {k for k, v in whole['config'].items() if v != pieces[-1]['config'][k]} == {'out_dir', 'resume'}
    assert len(whole['pools']['s']) == len(whole['pools']['t']) == 3
    for i in (4, 8, 12):
        assert (out / f'whole/samples/{i:06d}.png').read_bytes() == (out / f'parts/samples/{i:06d}.png').read_bytes()


def test_the_switch_freezes_attention_and_the_norm_of_d(runs):
    before, at, after = runs[1]
    for k in 'st':
        assert not equal(before['A_' + k], at['A_' + k]) and equal(at['A_' + k], after['A_' + k])
        assert all(torch.equal(w, after['D_' + k][name]) == ('norms' in name) for name, w in at['D_' + k].items())
    assert not equal(at['G_st'], after['G_st'])


def test_what_a_run_leaves_behind(runs):
    folder, c = runs[0] / 'whole', runs[1][-1]
    assert sorted(os.listdir(folder)) == ['ckpt.pt', 'log.txt', 'samples', 'train_uag.py']
    for name, hard in (('000004', False), ('000012', True)):  # before and behind the switch
        with Image.open(folder / f'samples/{name}.png') as grid:
            assert grid.size == (5 * 18 + 2, 5 * 18 + 2)  # five columns, two and three test images, 2 px apart
            assert ({*np.asarray(grid)[2:18, 20:36].flat} <= {0, 255}) == hard  # the map
    text = (folder / 'log.txt').read_text()
    assert text.count('iter 6: the switch: maps >= tau on') == 1
    assert 'iter     12/12 | D_s real ' in text and text.count('| A mean ') == 6
    assert c['source'] == (folder / 'train_uag.py').read_text() and c['domains'] == ['red', 'blue']


@pytest.fixture(scope='module')
def ablations(pairs, tmp_path_factory):
    """Half an epoch, of which all would be behind the switch -> folder, what the runs said."""
    out, args = tmp_path_factory.mktemp('out'), [f'--dataset={pairs}', *TINY_U, '--switch_at=0', '--n_epochs=0.5']
    return out, {flag: run('train_uag.py', *args, flag, f"--out_dir={out}/{flag.strip('-')}")
                 for flag in ('--tau=0.01', '--attention=False', '--masked_d=False')}


def test_the_switch_waits_while_a_map_is_all_or_nothing_and_ablations_never_switch(ablations):
    out, said = ablations
    for flag, text in said.items():
        c, waits = ckpt(out / flag.strip('-')), 'warning: maps of all or nothing, the switch waits: maps >= tau on 100'
        assert text.count(waits) == text.count('switch') == ('tau' in flag)  # a fresh map is about 1/2 everywhere
        assert not c['switched'] and c['iter'] == 2
        assert (c['A_s'] is not None) == (c['a_args'] is not None) == ('attention' not in flag)


def test_evaluate_both_directions_with_and_without_attention(pairs, runs, ablations, evaluation, tmp_path):
    paths = f'{runs[0]}/whole/ckpt.pt,{ablations[0]}/attention=False/ckpt.pt'
    out = run('evaluate.py', f'--ckpt={paths}', f'--out_dir={tmp_path}/e', '--batch_size=2', *evaluation)
    r = json.loads((tmp_path / 'e/results.json').read_text())['checkpoints']
    assert [(c['name'], c['n_fake']) for c in r] == [
        ('whole -> blue', 2), ('whole -> red', 3), ('attention=False -> blue', 2), ('attention=False -> red', 3)]
    assert out.index('A inside') < out.index('accuracy, %')  # of masks first
    for c in r:
        assert 0 <= c['accuracy'] <= 1 and c['leak'] > 0 and c['object'] > 0
        assert 0 <= c['A inside'] <= 1 if 'whole' in c['label'] else 'IoU' not in c
    # the change and the masks, by hand, of the images as a PNG keeps them; the map in use is [A >= tau]
    c, x = runs[1][-1], whole_images(torch.from_numpy(np.load(f'{pairs}/testA_x.npy')), 16)
    nets, inside = load_nets(f'{runs[0]}/whole/ckpt.pt', 'uag')[1], torch.arange(16).expand(2, 16, 16) < 8
    tau = c['config']['tau']
    x_fake, a, _ = translate(x, nets['A_s'], nets['G_st'], tau)
    want = measure(x, to_uint8(x_fake) / 127.5 - 1, [a[:, 0]], inside, tau)
    assert {k: r[0][k] for k in want} == pytest.approx({k: v.mean().item() for k, v in want.items()}, rel=1e-4)
    with Image.open(tmp_path / 'e/maps.png') as figure:  # input, whole, its map, the other, which has none
        assert figure.width < 150 + 4 * 132
