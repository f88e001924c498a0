"""train_uag.py: sizes of the nets, who sees which image with which map, the switch, and whole runs on tiny data."""

import itertools
import json
import os

import numpy as np
import pytest
import torch
from conftest import ROOT, run
from PIL import Image

from train_uag import (Attention, Discriminator, Generator, Pool, ResidualBlock, d_losses, g_losses, init_weights,
                       lsgan_loss, map_stats, random_crops, real_and_past, seen_by_d, switch, translate, whole_images)


def count(net):
    return sum(p.numel() for p in net.parameters())


def image(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# nets


def test_parameter_counts():
    assert (count(Generator()), count(Discriminator()), count(Attention())) == (2855811, 2766657, 154689)


@pytest.mark.parametrize('size', [16, 20, 32])
def test_shapes_and_ranges(size):
    x = image(2, 3, size, size)
    assert Generator(4, 1)(x).shape == x.shape
    a = init_weights(Attention(4))(x)
    assert a.shape == (2, 1, size, size) and 0 <= a.min() <= a.max() <= 1
    assert (a - 0.5).abs().max() < 0.45  # a fresh map is undecided
    assert Discriminator(4, 2)(x).shape == (2, 1, size // 4 - 2, size // 4 - 2)


def test_residual_block_ends_in_relu():
    assert ResidualBlock(4)(image(1, 4, 8, 8)).min() == 0


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


@pytest.mark.parametrize('gen_input', ['foreground', 'full'])
def test_composition(gen_input):
    x, G = image(2, 3, 16, 16), Generator(4, 1)
    nothing, everything = lambda x: torch.zeros_like(x[:, :1]), lambda x: torch.ones_like(x[:, :1])
    x_fake, a, x_f = translate(x, nothing, G, gen_input)
    assert torch.equal(x_fake, x) and not a.any() and not x_f.any()
    x_fake, a, x_f = translate(x, everything, G, gen_input)
    assert torch.equal(x_fake, G(x)) and torch.equal(x_f, x)
    half = torch.arange(16).expand(2, 1, 16, 16) < 8  # the generator's input: mid-grey where the map is 0, or all of x
    x_fake, a, x_f = translate(x, lambda x: half.float(), G, gen_input)
    assert torch.equal(x_f, x * half) and torch.equal(x_fake[..., 8:], x[..., 8:])
    assert torch.equal(x_fake[..., :8], G(x * half if gen_input == 'foreground' else x)[..., :8])


def test_without_attention_it_is_cyclegan():
    x, G = image(1, 3, 16, 16), Generator(4, 1)
    x_fake, a, x_f = translate(x, None, G)
    assert torch.equal(x_fake, G(x)) and torch.equal(x_f, x) and torch.equal(a, torch.ones(1, 1, 16, 16))


def test_hard_mask_passes_no_gradient_to_the_map():
    x, a = image(1, 3, 8, 8).requires_grad_(), torch.rand(1, 1, 8, 8, requires_grad=True)
    seen = seen_by_d(x, a, 0.5)
    assert torch.equal(seen == 0, (a < 0.5).expand_as(x)) and torch.equal(seen[seen != 0], x[seen != 0])
    g_x, g_a = torch.autograd.grad(seen.sum(), (x, a), allow_unused=True)
    assert g_a is None and torch.equal(g_x, (a >= 0.5).float().expand_as(x))
    assert seen_by_d(x, a, None) is x


def test_mask_threshold_is_inclusive_and_stats_agree():
    a = torch.tensor([0.1, 0.0999, 0.6, 0.0]).view(1, 1, 2, 2)
    assert seen_by_d(torch.ones(1, 3, 2, 2), a, 0.1)[0, 0].flatten().tolist() == [1, 0, 1, 0]
    assert map_stats(a, 0.1).tolist() == pytest.approx([0.199975, 0, 0.6, 0.5])


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


@pytest.mark.parametrize('tau', [None, 0.4])
def test_every_net_sees_the_right_domain_and_the_right_map(tau):
    N, x_s, x_t = spies(), image(2, 3, 8, 8, seed=1), image(2, 3, 8, 8, seed=2)
    f = {name: net.f for name, net in N.items()}

    def mask(a):
        return torch.ones_like(a) if tau is None else (a >= tau).float()
    s_a, t_a = f['A_s'](x_s), f['A_t'](x_t)
    s1 = s_a * f['G_st'](s_a * x_s) + (1 - s_a) * x_s  # s', to be taken for a t
    t1 = t_a * f['G_ts'](t_a * x_t) + (1 - t_a) * x_t
    s1_a, t1_a = f['A_t'](s1), f['A_s'](t1)
    s2 = s1_a * f['G_ts'](s1_a * s1) + (1 - s1_a) * s1
    t2 = t1_a * f['G_st'](t1_a * t1) + (1 - t1_a) * t1

    losses, x_fake, a = g_losses(N, x_s, x_t, 'foreground', tau, with_idt=True)
    want = {'G st': ((f['D_t'](s1 * mask(s_a)) - 1) ** 2).mean(), 'G ts': ((f['D_s'](t1 * mask(t_a)) - 1) ** 2).mean(),
            'G cyc_s': (s2 - x_s).abs().mean(), 'G cyc_t': (t2 - x_t).abs().mean(),
            'G idt_t': (f['G_st'](x_t) - x_t).abs().mean(), 'G idt_s': (f['G_ts'](x_s) - x_s).abs().mean()}
    assert losses.keys() == want.keys() and len({round(v.item(), 4) for v in want.values()}) == len(want)
    for name, value in want.items():
        torch.testing.assert_close(losses[name], value)
    assert torch.equal(x_fake['t'], s1) and torch.equal(x_fake['s'], t1)
    assert torch.equal(a['s'], s_a) and torch.equal(a['t'], t_a)
    assert torch.equal(N['D_t'].seen.pop(), s1 * mask(s_a)) and torch.equal(N['D_s'].seen.pop(), t1 * mask(t_a))
    for name, inputs in (('A_s', [x_s, t1]), ('A_t', [s1, x_t]), ('G_st', [s_a * x_s, x_t, t1_a * t1]),
                         ('G_ts', [s1_a * s1, t_a * x_t, x_s])):
        assert all(map(torch.equal, N[name].seen, inputs)) and len(N[name].seen) == len(inputs), name

    judged = real_and_past(x_s, x_t, x_fake, a, {'s': Pool(4), 't': Pool(4)}, tau)
    losses = d_losses(N, judged['s'], judged['t'])
    seen = {'D_t real': x_t * mask(t_a), 'D_t fake': s1 * mask(s_a),
            'D_s real': x_s * mask(s_a), 'D_s fake': t1 * mask(t_a)}
    assert losses.keys() == seen.keys()
    for k in 'st':
        assert torch.equal(torch.cat([seen[f'D_{k} real'], seen[f'D_{k} fake']]), N['D_' + k].seen.pop())
    for name, x in seen.items():
        torch.testing.assert_close(losses[name], ((f[name[:3]](x) - float(name.endswith('real'))) ** 2).mean() / 2)


def test_a_past_fake_is_seen_through_its_own_map():
    x, pools = image(1, 3, 8, 8), {'s': Pool(1), 't': Pool(1)}
    for k, pool in pools.items():  # full of fakes, unlike those to come, whose maps blank out the left half
        pool.items = [(torch.full((3, 8, 8), 0.5 if k == 's' else 0.7), (torch.arange(8) >= 4).float().expand(1, 8, 8))]
    torch.manual_seed(1)
    a = {k: torch.ones(1, 1, 8, 8) for k in 'st'}
    for _ in range(20):
        old = {k: pools[k].items[0] for k in 'st'}
        judged = real_and_past(x, x, {'s': x, 't': x}, a, pools, 0.5)
        for k in 'st':
            fake = judged[k][1]
            assert torch.equal(fake, x[0]) or torch.equal(fake, old[k][0] * old[k][1])
    assert all(torch.equal(pools[k].items[0][0], x[0]) for k in 'st')  # in the end both old ones have come out


def test_cycle_loss_is_zero_on_perfect_inverses():
    x_s, x_t = image(2, 3, 8, 8, seed=1), image(2, 3, 8, 8, seed=2)
    ones = Spy(lambda x: torch.ones_like(x[:, :1]))
    for maps in (ones, None):
        N = spies() | dict(G_st=Spy(lambda x: -x), G_ts=Spy(lambda x: -x), A_s=maps, A_t=maps)
        losses, _, _ = g_losses(N, x_s, x_t, 'foreground', None)
        assert losses['G cyc_s'] == losses['G cyc_t'] == 0 and losses['G st'] > 0
    nothing = Spy(lambda x: torch.zeros_like(x[:, :1]))  # the unattended always comes back
    losses, _, _ = g_losses(spies() | dict(A_s=nothing, A_t=nothing), x_s, x_t, 'foreground', None)
    assert losses['G cyc_s'] == losses['G cyc_t'] == 0


def test_lsgan_loss():
    assert lsgan_loss(torch.tensor([1., 3.]), 1) == 2 and lsgan_loss(torch.tensor([1., 3.]), 0) == 5


# pool


def test_pool_keeps_fakes_with_their_maps():
    torch.manual_seed(0)
    pool, returned = Pool(3), []
    for i in range(0, 80, 2):
        x = torch.arange(i, i + 2).float().view(2, 1, 1, 1).expand(2, 3, 4, 4).clone().requires_grad_()
        x_past, a_past = pool(x, -x[:, :1])
        assert x_past.shape == (2, 3, 4, 4) and a_past.shape == (2, 1, 4, 4) and not x_past.requires_grad
        assert torch.equal(a_past, -x_past[:, :1])  # each with its own
        returned += x_past[:, 0, 0, 0].tolist()
        assert len(pool.items) == min(3, i + 2) and all(torch.equal(a, -x[:1]) for x, a in pool.items)
        assert all(t.untyped_storage().nbytes() == t.numel() * 4 for item in pool.items for t in item)  # no views
    assert returned[:3] == [0, 1, 2]
    past = sum(v != i for i, v in enumerate(returned[3:], 3)) / 77
    assert 0.3 < past < 0.7 and max(map(returned.count, returned)) <= 2  # about half are past ones
    assert set(returned) | {x[0, 0, 0].item() for x, _ in pool.items} == set(range(80))  # and none got lost


def test_pool_of_size_0_returns_what_it_gets():
    x, a = image(2, 3, 4, 4), torch.rand(2, 1, 4, 4)
    pool = Pool(0)
    assert torch.equal(pool(x, a)[0], x) and torch.equal(pool(x, a)[1], a) and not pool.items


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
    assert crops.shape == (300, 3, 4, 4) and crops.min() >= -1 and crops.max() <= 1
    found = [parts[tuple(((c.permute(1, 2, 0) + 1) * 127.5).round().int().flatten().tolist())] for c in crops]
    assert all(len({f[k] for f in found}) == n for k, n in enumerate((2, 5, 5, 2)))  # all images, places, both sides
    whole = whole_images(x, 8)
    assert torch.equal(whole, x.permute(0, 3, 1, 2) / 127.5 - 1)
    assert whole_images(x, 4).shape == (2, 3, 4, 4) and torch.equal(whole_images(x, 4), whole_images(x, 4))


# the switch, and whole runs


def test_switch():
    nets = dict(A_s=Attention(2), A_t=Attention(2), D_s=Discriminator(2, 2), D_t=Discriminator(2, 2))
    switch(nets, True, False)
    assert not any(p.requires_grad for k in 'st' for p in nets['A_' + k].parameters())
    assert nets['D_s'].norm is nets['D_t'].norm is False
    switch(nets, False, True)
    assert all(p.requires_grad for k in 'st' for p in nets['A_' + k].parameters())
    assert nets['D_s'].norm is nets['D_t'].norm is True


TINY = ['--image_size=16', '--ngf=4', '--n_blocks=1', '--ndf=4', '--naf=4', '--d_n_layers=2', '--pool_size=3',
        '--lr=1e-3', '--log_interval=2', '--sample_interval=4', '--ckpt_interval=4', '--n_samples=2', '--device=cpu']


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Two domains of 20 px noise, one reddish and one bluish, 4 and 3 images: 4 iterations an epoch."""
    folder, rng = tmp_path_factory.mktemp('data') / 'unpaired', np.random.default_rng(0)
    folder.mkdir()
    for name, n, channel in (('trainA', 4, 0), ('trainB', 3, 2), ('testA', 2, 0), ('testB', 3, 2)):
        x = rng.integers(0, 128, (n, 20, 20, 3), dtype=np.uint8)
        x[..., channel] += 127
        np.save(folder / f'{name}_x.npy', x)
    meta = dict(dataset='unpaired', label='unpaired', image_size=20, domains=['red', 'blue'], counts={})
    (folder / 'meta.json').write_text(json.dumps(meta))
    return folder


@pytest.fixture(scope='module')
def runs(data, tmp_path_factory):
    """Three epochs with the switch amid the second, at once and in three pieces -> folder, ckpts by piece."""
    out, pieces = tmp_path_factory.mktemp('out'), []
    args = ['train_uag.py', f'--dataset={data}', '--switch_epoch=1.5', *TINY]
    run(*args, f'--out_dir={out}/whole', '--n_epochs=3', '--n_epochs_decay=1', threads=1)
    for n_epochs, decay in ((1, 0), (2, 0), (3, 1)):  # lr falls in the third epoch only
        run(*args, f'--out_dir={out}/parts', '--resume=True', f'--n_epochs={n_epochs}', f'--n_epochs_decay={decay}',
            threads=1)
        pieces.append(torch.load(out / 'parts/ckpt.pt', weights_only=True))
    return out, pieces


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_resume_across_the_switch_is_bit_exact(runs):
    out, pieces = runs
    whole, parts = torch.load(out / 'whole/ckpt.pt', weights_only=True), pieces[-1]
    assert [p['iter'] for p in pieces] == [4, 8, 12] and [p['switched'] for p in pieces] == [False, True, True]
    assert {'config'} == {k for k in whole if not same(whole[k], parts[k])}
    assert {k for k, v in whole['config'].items() if v != parts['config'][k]} == {'out_dir', 'resume'}
    assert len(whole['pools']['s']) == len(whole['pools']['t']) == 3
    for i in (4, 8, 12):
        assert (out / f'whole/samples/{i:06d}.png').read_bytes() == (out / f'parts/samples/{i:06d}.png').read_bytes()


def test_the_switch_freezes_attention_and_the_norm_of_d(runs):
    before, at, after = runs[1]
    for k in 'st':
        assert not same(before['A_' + k], at['A_' + k]) and same(at['A_' + k], after['A_' + k])
        for name, value in at['D_' + k].items():
            assert torch.equal(value, after['D_' + k][name]) == name.startswith('norms')
    assert not same(at['G_st'], after['G_st'])


def test_what_a_run_leaves_behind(runs):
    out, pieces = runs
    folder = out / 'whole'
    assert sorted(os.listdir(folder)) == ['ckpt.pt', 'log.txt', 'samples', 'train_uag.py']
    assert sorted(os.listdir(folder / 'samples')) == ['000004.png', '000008.png', '000012.png']
    with Image.open(folder / 'samples/000012.png') as grid:
        assert grid.size == (5 * 18 + 2, 4 * 18 + 2)  # five columns, two test images of each domain, 2 px apart
    text = (folder / 'log.txt').read_text()
    assert text.count('iter 6: switch: D now sees image * [A >= 0.1], without instance norm') == 1
    lines = [line for line in text.splitlines() if line.startswith('iter ') and '|' in line]
    assert len(lines) == 6 and lines[-1].startswith('iter     12/12 | D_s real ') and ' | A_t mean 0.' in lines[-1]
    assert 'WARNING: collapsed map: A_s marks everything (100.0% of pixels >= tau)' in text  # a fresh map is about 1/2
    ckpt = pieces[-1]
    with open(os.path.join(ROOT, 'train_uag.py')) as f:
        assert ckpt['source'] == f.read() and ckpt['script'] == 'train_uag.py'
    assert {k: ckpt[k] for k in ('kind', 'domains', 'image_size', 'gen_input')} == dict(
        kind='uag', domains=['red', 'blue'], image_size=16, gen_input='foreground')
    for letters, net, args in (('st', Generator, 'g_args'), ('s', Discriminator, 'd_args'), ('s', Attention, 'a_args')):
        net(**ckpt[args]).load_state_dict(ckpt[args[0].upper() + '_' + letters])


def test_evaluate_both_directions_with_and_without_attention(data, runs, tmp_path):
    for side, n in (('A', 2), ('B', 3)):  # the object: the left half
        m = np.zeros((n, 20, 20), np.uint8)
        m[:, :, :10] = 1
        np.save(data / f'test{side}_m.npy', m)
    run('train_uag.py', f'--dataset={data}', f'--out_dir={tmp_path}/plain', '--n_epochs=0.5', *TINY,
        '--attention=False', threads=1)
    args = ['evaluate.py', f'--ckpt={runs[0]}/whole/ckpt.pt,{tmp_path}/plain/ckpt.pt', '--device=cpu', '--clf_epochs=1',
            f'--out_dir={tmp_path}/e', f'--clf_dir={tmp_path}/clf', '--save_images=True', '--batch_size=2',
            '--inception=none']
    out = run(*args, threads=1)
    r = json.loads((tmp_path / 'e/results.json').read_text())['checkpoints']
    assert [(c['label'], c['n_fake'], c['n_real']) for c in r] == [
        ('whole -> blue', 2, 3), ('whole -> red', 3, 2), ('plain -> blue', 2, 3), ('plain -> red', 3, 2)]
    for c in r:
        assert 0 <= c['accuracy_mean'] <= 1 and c['leak'] > 0 and c['object'] > 0
        assert (0 < c['iou_tau'] <= 1 and 0 <= c['soft'] <= 1) if 'whole' in c['label'] else 'iou_tau' not in c
    assert sorted(os.listdir(tmp_path / 'e/images/whole/red')) == ['000000.png', '000001.png', '000002.png']
    assert (tmp_path / 'e/table.txt').read_text().strip() in out and (tmp_path / 'e/maps.png').exists()
    # the PNG is the translation that was measured, of the whole image, resized
    ckpt, x = runs[1][-1], torch.from_numpy(np.load(data / 'testA_x.npy'))
    G, A = Generator(**ckpt['g_args']), Attention(**ckpt['a_args'])
    G.load_state_dict(ckpt['G_st']), A.load_state_dict(ckpt['A_s'])
    want = ((translate(whole_images(x, 16), A, G)[0] + 1) * 127.5).round()[1].detach().permute(1, 2, 0).numpy()
    got = np.asarray(Image.open(tmp_path / 'e/images/whole/blue/000001.png')).astype(int)
    assert np.abs(got - want).max() <= 1
    teacher = tmp_path / 'no.pt'
    torch.save({'kind': 'stargan'}, teacher)
    assert 'in one list' in run('evaluate.py', f'--ckpt={runs[0]}/whole/ckpt.pt,{teacher}', ok=False, threads=1)


def test_ablations_never_switch(data, tmp_path):
    args = ['train_uag.py', f'--dataset={data}', '--switch_epoch=0', '--n_epochs=0.5', *TINY, '--lambda_idt=1']
    for flag in ('attention', 'masked_d'):
        text = run(*args, f'--{flag}=False', f'--out_dir={tmp_path}/{flag}', threads=1)
        ckpt = torch.load(tmp_path / flag / 'ckpt.pt', weights_only=True)
        assert 'switch: ' not in text and not ckpt['switched'] and ckpt['iter'] == 2 and ' idt_s ' in text
        assert ('A_s mean' in text) == (ckpt['A_s'] is not None) == (ckpt['a_args'] is not None) == (flag == 'masked_d')


def test_stops_on_a_loss_that_is_not_finite_before_any_checkpoint(data, tmp_path):
    said = run('train_uag.py', f'--dataset={data}', f'--out_dir={tmp_path}/o', *TINY, '--lr=1e30', ok=False, threads=1)
    assert 'not finite: the loss ' in said and said in (tmp_path / 'o/log.txt').read_text()
    assert not os.path.exists(tmp_path / 'o/ckpt.pt')


@pytest.mark.parametrize('args,says', [
    (['--n_epochs=4'], '--resume=True'), (['--resume=True', '--ngf=8'], "'ngf': 4"),
    (['--image_size=24'], 'at most 20')])
def test_a_users_mistake_is_one_line(data, runs, args, says):
    out = runs[0] / 'parts'
    assert says in run('train_uag.py', f'--dataset={data}', f'--out_dir={out}', *TINY, *args, ok=False, threads=1)
