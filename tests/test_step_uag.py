"""One iteration of train_uag.py, recomputed from the equations alone; how lr falls; when it switches.

A run is resumed for one iteration. The test repeats the random draws from the checkpoint before it,
writes the losses out again, and imports nothing but the nets. Adam with betas (0.5, 0.999) keeps
exp_avg, half of the last one plus half of the gradient: that shows what was differentiated.
"""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY_U, ckpt, equal, run

from train_uag import Attention, Discriminator, Generator

B = 2
TAU = 0.45
POOL = 3
# Batches of 2 of 4 images: an epoch is 2 iterations. The weight of the cycle loss is none of 0 and 1.
STEP = ['train_uag.py', *TINY_U, f'--batch_size={B}', '--lambda_cyc=3', f'--tau={TAU}', f'--pool_size={POOL}']
CASES = {
    'before the switch': ['--switch_at=1'],
    'behind it': [],
    'behind it, soft': ['--hard=False'],
    'behind it, without norms': ['--drop_norm=True'],
    'Ours-D': ['--masked_d=False'],
    'CycleGAN': ['--attention=False']}


def load(net, weights):
    net.load_state_dict(weights)
    return net


def strengthen(out_dir):
    """Makes all convolutions of a checkpoint ten times as strong, or gradients would be near 0."""
    changed = ckpt(out_dir)
    for name in ('G_st', 'G_ts', 'D_s', 'D_t', 'A_s', 'A_t'):
        for weight in (changed[name] or {}).values():
            if weight.dim() == 4:
                weight *= 10
    torch.save(changed, out_dir / 'ckpt.pt')
    return changed


def nets_of(checkpoint):
    """Name -> net. Without attention nets A is a function that answers 1 everywhere."""
    nets = {}
    for name in ('G_st', 'G_ts'):
        nets[name] = load(Generator(**checkpoint['g_args']), checkpoint[name])
    for name in ('D_s', 'D_t'):
        nets[name] = load(Discriminator(**checkpoint['d_args']), checkpoint[name])
    for name in ('A_s', 'A_t'):
        nets[name] = lambda x: torch.ones_like(x[:, :1])
        if checkpoint['a_args']:
            nets[name] = load(Attention(**checkpoint['a_args']), checkpoint[name])
    return nets


def draw_crops(pairs, name):
    """What the script draws of a domain: images, flips, corners of 16 px crops of 20 px images."""
    x = torch.from_numpy(np.load(f'{pairs}/train{name}_x.npy'))
    i = torch.randint(len(x), (B,))
    flip = torch.rand(B, 1, 1, 1) < 0.5
    top, left = torch.randint(20 - 16 + 1, (2, B)).tolist()
    crops = []
    for b in range(B):
        crop = x[i[b], top[b]:top[b] + 16, left[b]:left[b] + 16].permute(2, 0, 1) / 127.5 - 1
        crops.append(crop.flip(2) if flip[b] else crop)
    return torch.stack(crops)


def draw_past(pool, fakes, maps):
    """Fakes with their maps for D: if the pool is full, half of the time one of its takes the place."""
    given = []
    for pair in zip(fakes, maps):
        if len(pool) < POOL:
            pool.append(pair)
        elif torch.rand(()) < 0.5:
            j = int(torch.randint(POOL, ()))
            past_pair = pool[j]
            pool[j] = pair
            pair = past_pair
        given.append(pair)
    return [torch.stack(tensors) for tensors in zip(*given)]


def judge(D, x, with_norm):
    """D(x), layer by layer."""
    for conv, norm in zip(D.down, D.norms):
        x = conv(x)
        if with_norm:
            mean = x.mean((2, 3), keepdim=True)
            variance = x.var((2, 3), correction=0, keepdim=True)
            x = (x - mean) / (variance + 1e-5).sqrt()
            x = x * norm.weight[:, None, None] + norm.bias[:, None, None]
        x = F.leaky_relu(x, 0.2)
    return D.out(x)


def iteration(old, pairs, switched, hard, with_norm):
    """-> the loss of G and A, that of D, the nets, and the pools after an iteration from `old`."""
    nets = nets_of(old)
    G_st, G_ts, D_s, D_t, A_s, A_t = nets.values()

    def paint(x, A, G):
        a = A(x)
        if switched and hard:
            a = (a >= TAU).float()
        return a * G(a * x) + (1 - a) * x, a

    def shown(x, a):
        return x * (a >= TAU) if switched else x

    torch.set_rng_state(old['rng'])
    s = draw_crops(pairs, 'A')
    t = draw_crops(pairs, 'B')
    s1, a_s = paint(s, A_s, G_st)
    t1, a_t = paint(t, A_t, G_ts)
    s2, _ = paint(s1, A_t, G_ts)
    t2, _ = paint(t1, A_s, G_st)
    fool_t = ((judge(D_t, shown(s1, a_s), with_norm) - 1) ** 2).mean()
    fool_s = ((judge(D_s, shown(t1, a_t), with_norm) - 1) ** 2).mean()
    loss_G = fool_t + fool_s + 3 * (s2 - s).abs().mean() + 3 * (t2 - t).abs().mean()

    pools = {name: list(pool) for name, pool in old['pools'].items()}
    past_t, past_a_s = draw_past(pools['t'], s1.detach(), a_s.detach())
    past_s, past_a_t = draw_past(pools['s'], t1.detach(), a_t.detach())
    real_s = ((judge(D_s, shown(s, a_s), with_norm) - 1) ** 2).mean()
    real_t = ((judge(D_t, shown(t, a_t), with_norm) - 1) ** 2).mean()
    fake_s = (judge(D_s, shown(past_s, past_a_t), with_norm) ** 2).mean()
    fake_t = (judge(D_t, shown(past_t, past_a_s), with_norm) ** 2).mean()
    loss_D = (real_s + real_t + fake_s + fake_t) / 2
    if switched:
        for a in (a_s, a_t, past_a_s, past_a_t):
            assert 0.01 < (a >= TAU).float().mean() < 0.99
    return loss_G, loss_D, nets, pools


@pytest.mark.parametrize('case', CASES)
def test_an_iteration_is_what_the_equations_say(case, pairs, tmp_path):
    # The switch comes after 2 iterations. That the resumed one is behind it only its checkpoint says.
    flags = [*STEP, f'--dataset={pairs}', f'--out_dir={tmp_path}/r', '--resume=True']
    flags += ['--switch_at=0.6', '--log_interval=5']
    run(*flags, '--n_epochs=2', *CASES[case])
    old = strengthen(tmp_path / 'r')
    run(*flags, '--n_epochs=2.5', *CASES[case])
    new = ckpt(tmp_path / 'r')
    switched = case.startswith('behind')
    with_norm = not switched or 'without norms' not in case
    assert (old['iter'], new['iter'], old['switched'], new['switched']) == (4, 5, switched, switched)

    loss_G, loss_D, nets, pools = iteration(old, pairs, switched, 'soft' not in case, with_norm)
    n_checked = 0
    trained = {'opt_G': ['G_st', 'G_ts'], 'opt_D': ['D_s', 'D_t']}
    if case != 'CycleGAN':
        trained['opt_G'] += ['A_s', 'A_t']
    for key, loss in (('opt_G', loss_G), ('opt_D', loss_D)):
        weights = {}
        for name in trained[key]:
            for part, weight in nets[name].named_parameters():
                weights[f'{name}.{part}'] = weight
        grads = torch.autograd.grad(loss, weights.values(), allow_unused=True)
        assert len(grads) == len(new[key]['state'])
        for n, (name, grad) in enumerate(zip(weights, grads)):
            before = old[key]['state'][n]
            after = new[key]['state'][n]
            # From the switch on the maps stay as they are, and so do norms that are dropped.
            if switched and name.startswith('A_') or not with_norm and 'norms' in name:
                assert equal(before, after), name
            else:
                expected = before['exp_avg'] / 2 + grad / 2
                # Biases in front of a norm have no gradient but that of rounding, below 1e-5.
                torch.testing.assert_close(after['exp_avg'], expected, rtol=1e-3, atol=1e-4, msg=name)
                n_checked += grad.abs().max() > 0.01
    assert n_checked >= 30
    if switched and case != 'CycleGAN':
        for name in ('A_s', 'A_t'):
            assert equal(old[name], new[name])
    # Each fake lies in the pool of the domain that it should belong to, with its source's map.
    for domain in 'st':
        assert len(new['pools'][domain]) == POOL
        torch.testing.assert_close(new['pools'][domain], pools[domain])


@pytest.mark.parametrize('decay_at,factor', [(0, 0.25), (0.5, 0.5), (0.75, 1), (0.9, 1), (1, 1)])
def test_lr_is_constant_and_then_falls_linearly_to_0(decay_at, factor, pairs, tmp_path):
    """The last of four iterations, for which a fourth of the run is left."""
    run(*STEP, f'--dataset={pairs}', f'--out_dir={tmp_path}/r', '--n_epochs=2', f'--decay_at={decay_at}')
    for opt in ('opt_G', 'opt_D'):
        for group in ckpt(tmp_path / 'r')[opt]['param_groups']:
            assert group['lr'] == pytest.approx(factor * 1e-3)


def test_a_switch_that_waits_comes_as_soon_as_both_maps_are_good(pairs, tmp_path):
    """Fresh maps are about 1/2 everywhere, and sink. They are looked at with every line of the log."""
    flags = ['--tau=0.33', '--lr=3e-3', '--switch_at=0.2', '--n_epochs=3', '--log_interval=1']
    said = run(*STEP, f'--dataset={pairs}', *flags, f'--out_dir={tmp_path}/r')
    good = {}
    for it, seen_s, seen_t in re.findall(r'iter +(\d+)/6 .* seen_s (\d+) seen_t (\d+)', said):
        good[int(it)] = 1 < int(seen_s) < 99 and 1 < int(seen_t) < 99
    first = min(it for it in good if good[it])
    assert not good[1] and 1 < first < 6
    assert f'iter {first}: the switch' in said and said.count('the switch:') == 1
    assert said.count('the switch waits') == 1
    assert said.index('iter      1/6') < said.index('the switch waits') < said.index('iter      2/6')
    assert ckpt(tmp_path / 'r')['switched']
