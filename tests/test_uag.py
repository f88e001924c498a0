"""train_uag.py: sizes of the nets, who sees which image with which map, the switch, and whole runs on tiny data."""

import itertools
import json
import os

import numpy as np
import pytest
import torch
from conftest import equal, run
from PIL import Image

from train_uag import (Attention, Discriminator, Generator, ResidualBlock, d_losses, g_losses, init_weights, lsgan_loss,
                       past_fakes, random_crops, real_and_past, seen_by_d, translate, whole_images)


def image(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# nets
def test_parameter_counts():
    counts = [sum(p.numel() for p in net().parameters()) for net in (Generator, Discriminator, Attention)]
    assert counts == [2855811, 2766657, 154689]


@pytest.mark.parametrize('size', [16, 20])
def test_shapes_and_ranges(size):
    x = image(2, 3, size, size)
    assert Generator(4, 1)(x).shape == x.shape and ResidualBlock(3)(x).min() == 0  # ends in a ReLU
    a = init_weights(Attention(4))(x)
    assert a.shape == (2, 1, size, size) and 0 <= a.min() <= a.max() <= 1
    assert (a - 0.5).abs().max() < 0.45  # a fresh map is undecided
    assert Discriminator(4, 2)(x).shape == (2, 1, size // 4 - 2, size // 4 - 2)


def test_discriminator_without_norm_is_its_convolutions():
    D, x = Discriminator(4, 2), image(2, 3, 16, 16)
    with_norm = D(x)
    D.norm = False
    h = x
    for down in D.down:
        h = torch.nn.functional.leaky_relu(down(h), 0.2)
    assert torch.equal(D(x), D.out(h)) and not torch.allclose(D(x), with_norm)
    D(x).sum().backward()
    assert all(p.grad is None for p in D.norms.parameters()) and all(p.grad is not None for p in D.down.parameters())


# composition and masks
def test_composition():
    x, G = image(2, 3, 16, 16), Generator(4, 1)
    nothing, everything = lambda x: torch.zeros_like(x[:, :1]), lambda x: torch.ones_like(x[:, :1])
    x_fake, a, x_f = translate(x, nothing, G)
    assert torch.equal(x_fake, x) and not a.any() and not x_f.any()
    x_fake, a, x_f = translate(x, everything, G)
    assert torch.equal(x_fake, G(x)) and torch.equal(x_f, x)
    half = torch.arange(16).expand(2, 1, 16, 16) < 8  # the generator's input: mid-grey where the map is 0
    x_fake, a, x_f = translate(x, lambda x: half.float(), G)
    assert torch.equal(x_f, x * half) and torch.equal(x_fake[..., 8:], x[..., 8:])
    assert torch.equal(x_fake[..., :8], G(x * half)[..., :8])
    x_fake, a, x_f = translate(x, None, G)  # without attention it is CycleGAN
    assert torch.equal(x_fake, G(x)) and torch.equal(x_f, x) and torch.equal(a, torch.ones(2, 1, 16, 16))
    soft = lambda x: torch.where(half, 0.5, 0.05)  # given tau the mask is hard: no blends
    x_fake, a, x_f = translate(x, soft, G, 0.1)
    assert torch.equal(a, half.float()) and torch.equal(x_fake, torch.where(half, G(x * half), x))


def test_hard_mask_passes_no_gradient_to_the_map_and_its_threshold_is_inclusive():
    x, a = image(1, 3, 8, 8).requires_grad_(), torch.rand(1, 1, 8, 8, requires_grad=True)
    seen = seen_by_d(x, a, 0.5)
    assert torch.equal(seen == 0, (a < 0.5).expand_as(x)) and torch.equal(seen[seen != 0], x[seen != 0])
    g_x, g_a = torch.autograd.grad(seen.sum(), (x, a), allow_unused=True)
    assert g_a is None and torch.equal(g_x, (a >= 0.5).float().expand_as(x))
    assert seen_by_d(x, a, None) is x
    a = torch.tensor([0.1, 0.0999, 0.6, 0.0]).view(1, 1, 2, 2)
    assert seen_by_d(torch.ones(1, 3, 2, 2), a, 0.1)[0, 0].flatten().tolist() == [1, 0, 1, 0]


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


def test_cycle_loss_is_zero_on_perfect_inverses():
    x = {'s': image(2, 3, 8, 8, seed=1), 't': image(2, 3, 8, 8, seed=2)}
    ones = Spy(lambda x: torch.ones_like(x[:, :1]))
    for maps in (ones, None):
        N = spies() | dict(G_st=Spy(lambda x: -x), G_ts=Spy(lambda x: -x), A_s=maps, A_t=maps)
        losses = g_losses(N, x, None, None)[0]
        assert losses[2] == losses[3] == 0 and losses[0] > 0
    nothing = Spy(lambda x: torch.zeros_like(x[:, :1]))  # the unattended always comes back
    losses = g_losses(spies() | dict(A_s=nothing, A_t=nothing), x, None, None)[0]
    assert losses[2] == losses[3] == 0
    assert lsgan_loss(torch.tensor([1., 3.]), 1) == 2 and lsgan_loss(torch.tensor([1., 3.]), 0) == 5


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
    past = sum(v != i for i, v in enumerate(returned[3:], 3)) / 77
    assert 0.3 < past < 0.7 and max(map(returned.count, returned)) <= 2  # about half are past ones
    assert set(returned) | {x[0, 0, 0].item() for x, _ in pool} == set(range(80))  # and none got lost
    pool, a = [], x[:, :1]
    assert all(map(torch.equal, past_fakes(pool, 0, x, a), (x, a))) and not pool  # of size 0: what it gets


# data
def test_crops_are_crops_and_flips_and_test_images_are_fixed():
    torch.manual_seed(0)
    x = torch.arange(2 * 8 * 8 * 3).remainder(256).to(torch.uint8).view(2, 8, 8, 3)
    parts = {}  # every crop there is -> where it is from
    for where in itertools.product(range(2), range(5), range(5), range(2)):
        i, top, left, flip = where
        crop = x[i, top:top + 4, left:left + 4]
        parts[tuple((crop.flip(1) if flip else crop).flatten().tolist())] = where
    crops = random_crops(x, 300, 4, 'cpu')
    assert crops.shape == (300, 3, 4, 4) and crops.min() >= -1 and crops.max() <= 1 and crops.is_contiguous()
    found = [parts[tuple(((c.permute(1, 2, 0) + 1) * 127.5).round().int().flatten().tolist())] for c in crops]
    assert all(len({f[k] for f in found}) == n for k, n in enumerate((2, 5, 5, 2)))  # all images, places, both sides
    assert torch.equal(whole_images(x, 8), x.permute(0, 3, 1, 2) / 127.5 - 1)
    assert whole_images(x, 4).shape == (2, 3, 4, 4) and torch.equal(whole_images(x, 4), whole_images(x, 4))


# the switch, and whole runs
TINY = ['--image_size=16', '--ngf=4', '--n_blocks=1', '--ndf=4', '--naf=4', '--d_n_layers=2', '--pool_size=3',
        '--lr=1e-3', '--log_interval=2', '--sample_interval=4', '--ckpt_interval=4', '--device=cpu', '--tau=0.45']


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Two domains of 20 px noise, one reddish and one bluish, 4 and 3 images: 4 iterations an epoch; the object is the
    left half."""
    folder, rng = tmp_path_factory.mktemp('data') / 'unpaired', np.random.default_rng(0)
    folder.mkdir()
    for name, n, channel in (('trainA', 4, 0), ('trainB', 3, 2), ('testA', 2, 0), ('testB', 3, 2)):
        x = rng.integers(0, 128, (n, 20, 20, 3), dtype=np.uint8)
        x[..., channel] += 127
        np.save(folder / f'{name}_x.npy', x)
        np.save(folder / f'{name}_m.npy', np.repeat([[[1] * 10 + [0] * 10] * 20], n, 0).astype(np.uint8))
    meta = dict(dataset='unpaired', label='unpaired', image_size=20, domains=['red', 'blue'], counts={})
    (folder / 'meta.json').write_text(json.dumps(meta))
    return folder


@pytest.fixture(scope='module')
def runs(data, tmp_path_factory):
    """Three epochs with the switch amid the second, at once and in three pieces -> folder, ckpts by piece."""
    out, pieces = tmp_path_factory.mktemp('out'), []
    args = ['train_uag.py', f'--dataset={data}', *TINY]
    run(*args, f'--out_dir={out}/whole', '--n_epochs=3', '--switch_at=0.5', '--decay_at=0.67')
    for n_epochs, switch_at, decay_at in ((1, 1, 1), (2, 0.75, 1), (3, 0.5, 0.67)):  # lr falls in the third epoch only
        run(*args, f'--out_dir={out}/parts', '--resume=True', f'--n_epochs={n_epochs}', f'--switch_at={switch_at}',
            f'--decay_at={decay_at}')
        pieces.append(torch.load(out / 'parts/ckpt.pt', weights_only=True))
    return out, pieces


def test_resume_across_the_switch_is_bit_exact(runs):
    out, pieces = runs
    whole, parts = torch.load(out / 'whole/ckpt.pt', weights_only=True), pieces[-1]
    assert [p['iter'] for p in pieces] == [4, 8, 12] and [p['switched'] for p in pieces] == [False, True, True]
    assert {'config'} == {k for k in whole if not equal(whole[k], parts[k])}
    assert {k for k, v in whole['config'].items() if v != parts['config'][k]} == {'out_dir', 'resume'}
    assert len(whole['pools']['s']) == len(whole['pools']['t']) == 3
    for i in (4, 8, 12):
        assert (out / f'whole/samples/{i:06d}.png').read_bytes() == (out / f'parts/samples/{i:06d}.png').read_bytes()


def test_the_switch_freezes_attention_and_the_norm_of_d(runs):
    before, at, after = runs[1]
    for k in 'st':
        assert not equal(before['A_' + k], at['A_' + k]) and equal(at['A_' + k], after['A_' + k])
        for name, value in at['D_' + k].items():
            assert torch.equal(value, after['D_' + k][name]) == name.startswith('norms')
    assert not equal(at['G_st'], after['G_st'])


def test_what_a_run_leaves_behind(runs):
    folder, ckpt = runs[0] / 'whole', runs[1][-1]
    assert sorted(os.listdir(folder)) == ['ckpt.pt', 'log.txt', 'samples', 'train_uag.py']
    with Image.open(folder / 'samples/000012.png') as grid:
        assert grid.size == (5 * 18 + 2, 5 * 18 + 2)  # five columns, two and three test images, 2 px apart
    text = (folder / 'log.txt').read_text()
    assert text.count('iter 6: the switch: maps >= tau on') == 1
    lines = [line for line in text.splitlines() if line.startswith('iter ') and '|' in line]
    assert len(lines) == 6 and lines[-1].startswith('iter     12/12 | D_s real ') and '| A mean ' in lines[-1]
    assert ckpt['source'] == (folder / 'train_uag.py').read_text() and ckpt['domains'] == ['red', 'blue']


def test_the_switch_waits_while_a_map_is_all_or_nothing_and_ablations_never_switch(data, tmp_path):
    args = ['train_uag.py', f'--dataset={data}', '--switch_at=0', '--n_epochs=0.5', *TINY]
    text = run(*args, '--tau=0.01', f'--out_dir={tmp_path}/all')  # a fresh map is about 1/2 everywhere
    assert text.count('warning: maps of all or nothing, the switch waits: maps >= tau on 100 % of S, 100 % of T') == 1
    assert not torch.load(tmp_path / 'all/ckpt.pt', weights_only=True)['switched']
    for flag in ('attention', 'masked_d'):
        text = run(*args, f'--{flag}=False', f'--out_dir={tmp_path}/{flag}')
        ckpt = torch.load(tmp_path / flag / 'ckpt.pt', weights_only=True)
        assert 'switch' not in text and not ckpt['switched'] and ckpt['iter'] == 2
        assert (ckpt['A_s'] is not None) == (ckpt['a_args'] is not None) == (flag == 'masked_d')


@pytest.mark.parametrize('args,says', [
    (['--n_epochs=4'], '--resume=True'), (['--resume=True', '--ngf=8'], 'size mismatch'),
    (['--resume=True', '--attention=False'], 'another script or net'), (['--image_size=24'], 'to 20, the data'),
    (['--switch_at=30'], 'want shares'), (['--resume=True', '--lr=1e30', '--n_epochs=9'], 'weights are not finite')])
def test_a_users_mistake_is_one_line(data, runs, args, says):
    out = runs[0] / 'parts'
    assert says in run('train_uag.py', f'--dataset={data}', f'--out_dir={out}', *TINY, *args, ok=False)
    assert equal(torch.load(out / 'ckpt.pt', weights_only=True)['G_st'], runs[1][-1]['G_st'])


def test_evaluate_both_directions_with_and_without_attention(data, runs, tmp_path):
    run('train_uag.py', f'--dataset={data}', f'--out_dir={tmp_path}/plain', '--n_epochs=0.5', *TINY,
        '--attention=False')
    out = run('evaluate.py', f'--ckpt={runs[0]}/whole/ckpt.pt,{tmp_path}/plain/ckpt.pt', '--device=cpu', '--clf_epochs=1',
              f'--out_dir={tmp_path}/e', f'--clf_dir={tmp_path}/clf', '--batch_size=2', '--inception=none')
    r = json.loads((tmp_path / 'e/results.json').read_text())['checkpoints']
    assert [(c['name'], c['n_fake']) for c in r] == [
        ('whole -> blue', 2), ('whole -> red', 3), ('plain -> blue', 2), ('plain -> red', 3)]
    assert out.index('A inside') < out.index('accuracy, %')  # of masks first
    for c in r:
        assert 0 <= c['accuracy'] <= 1 and c['leak'] > 0 and c['object'] > 0
        assert 0 <= c['A inside'] <= 1 if 'whole' in c['label'] else 'IoU' not in c
    # the change and the masks, by hand, of the images as a PNG keeps them; the map in use is [A >= tau] if `hard`
    ckpt, x = runs[1][-1], whole_images(torch.from_numpy(np.load(data / 'testA_x.npy')), 16)
    G, A = Generator(**ckpt['g_args']), Attention(**ckpt['a_args'])
    G.load_state_dict(ckpt['G_st']), A.load_state_dict(ckpt['A_s'])
    tau = ckpt['config']['tau']
    x_fake, a, _ = translate(x, A, G, tau if ckpt['config']['hard'] else None)
    inside = torch.arange(16).expand(2, 16, 16) < 8
    change = (((x_fake + 1) * 127.5).round() / 127.5 - 1 - x).abs().mean(1)
    assert r[0]['leak'] == pytest.approx(change[~inside].mean().item(), abs=1e-4)
    assert r[0]['A inside'] == pytest.approx(a[:, 0][inside].mean().item(), abs=1e-4)
    on = a[:, 0] >= tau
    assert r[0]['IoU'] == pytest.approx(((on & inside).sum((1, 2)) / (on | inside).sum((1, 2))).mean().item(), abs=1e-4)
    with Image.open(tmp_path / 'e/maps.png') as figure:  # input, whole and its map, plain: no column for a map it has not
        assert figure.width < 150 + 4 * 132
