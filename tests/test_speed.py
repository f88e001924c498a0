"""The fast paths against the plain ones: the same losses, gradients and weights; and bench.py itself."""

import functools
import json
import os
import shutil

import bench
import numpy as np
import pytest
import torch
import train_teacher
from conftest import ROOT, TINY, TINY_S, run
from without_gpu import GpuCounter

AOT = functools.partial(torch.compile, backend='aot_eager', fullgraph=True)  # all of torch.compile but making kernels
# a training script whose torch.compile is that one: `python -c AOT_SCRIPT script --key=value ...`
AOT_SCRIPT = f"""
import functools, runpy, sys, torch
torch.compile = functools.partial(torch.compile, backend='aot_eager', fullgraph=True)
sys.argv, sys.path[0] = sys.argv[1:], {ROOT!r}
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def steps(script, *opts, n=1, n_critic=2, compiled=None):
    """n cycles of D and DG iterations of tiny nets -> losses of the last, weights, and gradients of the first."""
    by_name, cycle, nets = bench.stargan_steps(script, set(opts), 'tiny', 16, 4, n_critic, 'cpu', compiled)
    torch.manual_seed(1)  # of the penalty's alpha and the map's class
    params, grads = [p for net in nets for p in net.parameters()], None
    for _ in range(n):
        losses = [by_name[name]() for name in cycle][-1]
        grads = grads or [p.grad.clone() for p in params]
    return torch.as_tensor(losses), [p.detach() for p in params], grads


def close(a, b, rtol):
    """Lists of tensors: |a - b| <= rtol |a| for each."""
    return len(a) == len(b) and all((x - y).norm() <= rtol * x.norm() for x, y in zip(a, b))


def test_published_step_has_the_losses_of_the_scripts_step():
    """In the tenth iteration still: what is timed against each other is the same training."""
    for script in ('teacher', 'student'):
        ours, published = steps(script, n_critic=10), steps(script, 'published', n_critic=10)
        assert len(ours[0]) == 7 and torch.allclose(ours[0], published[0], atol=1e-4)


def test_no_zeros_leaves_out_a_third_of_the_penalty_and_nothing_else():
    torch.manual_seed(0)
    D = train_teacher.Discriminator(16, 4, 3, 3)
    x, alpha = torch.rand(2, 4, 3, 16, 16), torch.rand(4, 1, 1, 1)
    seen = []
    for _ in range(2):
        D.zero_grad()
        with GpuCounter('cpu') as counter:
            out = [*D(x[0]), train_teacher.gradient_penalty(D, *x, alpha)]
            sum(o.square().sum() for o in out).backward()
        seen.append((counter.flops, [*out, *(p.grad for p in D.parameters())]))
        train_teacher.no_zeros(D)
    assert all(map(torch.equal, seen[0][1], seen[1][1]))
    with GpuCounter('cpu') as counter:
        D(x[0])
    assert 1.5 < (seen[0][0] - seen[1][0]) / counter.flops < 2.1  # input's and weight's gradients of the zeros


def test_flop_counter():
    with GpuCounter('cpu') as counter:
        torch.nn.Conv2d(3, 5, 3, padding=1)(torch.zeros(2, 3, 8, 8))
    assert counter.flops == 2 * 2 * 5 * 64 * 27


@pytest.mark.parametrize('script,opts', [('teacher', ()), ('student', ('att',))])
def test_compiled_steps_train_as_the_plain_ones(script, opts):
    """Parameter gradients of a cycle, then the weights after 20 iterations."""
    torch._dynamo.reset()
    (loss, weights, grads), fast = steps(script, *opts, n=10), steps(script, *opts, 'compile', n=10, compiled=AOT)
    assert torch.allclose(loss, fast[0], rtol=1e-3, atol=1e-5)
    assert close(weights, fast[1], 1e-4) and close(grads, fast[2], 1e-5)
    assert not close(weights, steps(script, *opts)[1], 1e-3)  # they did train


@pytest.mark.skipif(not (shutil.which('c++') or shutil.which('g++')), reason='torch.compile needs a C++ compiler')
def test_compiled_kernels_of_the_penalty_have_its_gradients():
    torch._dynamo.reset()
    torch.manual_seed(0)
    D = train_teacher.no_zeros(train_teacher.Discriminator(16, 4, 3, 2))
    x, alpha, grads = torch.rand(2, 4, 3, 16, 16), torch.rand(4, 1, 1, 1), []
    for penalty in (train_teacher.gradient_penalty, torch.compile(train_teacher.gradient_penalty, fullgraph=True)):
        D.zero_grad()
        penalty(D, *x, alpha).backward()
        grads.append([p.grad for p in D.parameters() if p.grad is not None])
    assert len(grads[0]) == 3 and close(*grads, 1e-5)  # weights of two layers and out_src; biases and out_cls have none


def test_compile_flag_of_the_scripts(teacher, tmp_path):
    """The student with the attention loss, and UAG across its switch: the same checkpoint as without --compile."""
    rng, data = np.random.default_rng(0), tmp_path / 'unpaired'
    data.mkdir()
    for name in ('trainA', 'trainB', 'testA', 'testB'):
        np.save(data / f'{name}_x.npy', rng.integers(0, 256, (4, 20, 20, 3), dtype=np.uint8))
    (data / 'meta.json').write_text(json.dumps(dict(dataset='unpaired', label='unpaired', image_size=20,
                                                    domains=['a', 'b'], counts={})))
    for args in (['train_student.py', f'--teacher={teacher}/ckpt.pt', *TINY_S],
                 ['train_uag.py', f'--dataset={data}', '--image_size=16', '--ngf=4', '--n_blocks=1', '--ndf=4',
                  '--naf=4', '--d_n_layers=2', '--pool_size=3', '--n_epochs=2', '--n_epochs_decay=1',
                  '--switch_epoch=1', '--n_samples=2', '--device=cpu']):
        plain, fast = tmp_path / f'{args[0]}-plain', tmp_path / f'{args[0]}-fast'
        run(*args, f'--out_dir={plain}')
        run('-c', AOT_SCRIPT, *args, f'--out_dir={fast}', '--compile=True')
        plain, fast = (torch.load(p / 'ckpt.pt', weights_only=True) for p in (plain, fast))
        assert fast['config']['compile'] and not plain['config']['compile']
        for net in [k for k in plain if k.split('_')[0] in ('G', 'D', 'A')]:
            assert plain[net].keys() == fast[net].keys()
            assert close([*plain[net].values()], [*fast[net].values()], 1e-4), net


def test_images_are_laid_out_as_convolutions_want_them():
    x = torch.zeros(5, 16, 16, 3, dtype=torch.uint8)
    for size in (16, 8):
        assert train_teacher.get_batch(x, torch.zeros(5, 2), torch.tensor([1, 3]), size, 'cpu')[0].is_contiguous()


def test_bench_counts_and_profiles(tmp_path):
    args = ['tests/bench.py', '--nets=tiny', '--image_size=32', '--batch_size=2', f'--out_dir={tmp_path}']
    out = run(*args, '--count=True', '--scripts=teacher', '--variants=published,bf16')
    rows = json.load(open(tmp_path / 'count.json'))['rows']
    assert 'not measured' in out and '4.6 .item()' in out and [len(r['syncs']) for r in rows] == [23, 0]
    assert 0 < rows[1]['seconds'] < rows[0]['seconds'] < 1 and rows[1]['flops'] < rows[0]['flops']
    assert 'compile' in run(*args, '--count=True', '--variants=compile', ok=False)
    out = run(*args, '--profile=True', '--device=cpu', '--scripts=student,uag', '--variants=att,float32')
    rows = json.load(open(tmp_path / 'profile.json'))['rows']
    assert [(r['script'], r['variant']) for r in rows] == [('student', 'att'), ('uag', 'float32')]
    for row in rows:
        assert 'aten::convolution_backward' in [op['op'] for op in row['ops'][:12]]
        assert all(op['op'][:85] in out and op['calls'] > 0 for op in row['ops'][:12])


def test_bench_measures_and_writes(tmp_path):
    args = ['tests/bench.py', '--nets=tiny', '--batch_size=2', '--repeats=2', '--device=cpu', f'--out_dir={tmp_path}']
    out = run(*args, '--image_size=16', '--variants=float32,bf16+nhwc,att', '--scripts=student,uag,teacher')
    result = json.load(open(tmp_path / 'bench.json'))
    assert [(r['script'], r['variant']) for r in result['rows']][:4] == [
        ('student', 'float32'), ('student', 'bf16+nhwc'), ('student', 'att'), ('uag', 'float32')]
    for row in result['rows']:
        n = 1 if row['script'] == 'uag' else 5
        assert len(row['cycles']) == 2 and row['it_s'] == pytest.approx(2 * n / sum(row['cycles']), rel=1e-6)
        assert row['flops'] > 0 and row['d_ms'] > 0 and row['gb'] > 0 and f"{row['it_s']:8.2f}" in out
    flops = [row['flops'] * np.median(row['cycles']) for row in result['rows'][:3]]
    assert flops[0] == pytest.approx(flops[1]) and flops[2] > 1.05 * flops[0]  # attention has its price
    assert result['bf16_peak'] > 1e9 and 0 < result['loading']['memory map'] < 0.1 and 'batches/s' in out
    run(*args, '--scaling=True', '--sizes=16,32', '--batches=2,4')
    rows = json.load(open(tmp_path / 'scaling.json'))['rows']
    assert [(r['size'], r['batch']) for r in rows[::2]] == [(16, 2), (16, 4), (32, 2), (32, 4)]


@pytest.mark.parametrize('arg,says', [
    ('--variants=bf17', 'bf17'), ('--variants=graph', 'without a GPU'), ('--scripts=evaluate', '--scripts'),
    ('--nets=huge', '--nets'), ('--device=gpu', '--device=gpu'), ('--repeat=3', 'repeats')])
def test_bench_errors(arg, says):
    assert says in run('tests/bench.py', '--device=cpu', arg, ok=False)


def test_bench_has_the_override_block_of_the_scripts():
    banner = '# ' + '-' * 77
    texts = [open(os.path.join(ROOT, path)).read() for path in ('tests/bench.py', 'train_teacher.py')]
    assert texts[0].split(banner)[2] == texts[1].split(banner)[2]
    assert max(map(len, texts[0].splitlines())) <= 120
