"""
What only a GPU can show: each training script in float32, in bfloat16 and resumed; and evaluate.py.

On a CPU all of it is skipped.
"""

import math
import re

import pytest
import torch
from conftest import TINY, TINY_S, TINY_U, ckpt, run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU, and there is none here')

ON_GPU = '--device=cuda'
SCRIPTS = ['teacher', 'student', 'uag']


@pytest.fixture
def flags(data, pairs, teacher):
    """Of each script, for 4 iterations: UAG switches after 2. Of two values of a flag the last counts."""
    return {
        'teacher': [f'--dataset={data}', *TINY, ON_GPU],
        'student': [f'--teacher={teacher}/ckpt.pt', *TINY_S, ON_GPU],
        'uag': [f'--dataset={pairs}', *TINY_U, '--n_epochs=1', '--switch_at=0.5', ON_GPU],
    }


def nets_of(made):
    """The nets of a checkpoint: name -> weights."""
    names = ['G', 'D', 'G_st', 'G_ts', 'A_s', 'A_t', 'D_s', 'D_t']
    return {name: made[name] for name in names if name in made}


def check(out, iters):
    """The run has come to this iteration, and its losses and weights are finite -> its checkpoint."""
    made = ckpt(out)
    assert made['iter'] == iters
    for weights in nets_of(made).values():
        assert all(weight.isfinite().all() for weight in weights.values())
    lines = re.findall(r'^iter +\d+/\d+ \|(.*) \| .* it/s', (out / 'log.txt').read_text(), re.M)
    assert lines
    for line in lines:
        losses = re.findall(r'\w+ +(\S+)', line)
        assert losses
        assert all(math.isfinite(float(loss)) for loss in losses)
    return made


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('script', SCRIPTS)
def test_a_run_and_its_resumption(script, dtype, flags, tmp_path):
    command = [f'train_{script}.py', *flags[script], f'--dtype={dtype}', f'--out_dir={tmp_path}']
    run(*command)
    first = check(tmp_path, 4)
    run(*command, '--resume=True', '--n_epochs=2' if script == 'uag' else '--max_iters=8')
    second = check(tmp_path, 8)
    # G and D have learnt on, in the precision that weights always have.
    before = nets_of(first)
    for name, weights in nets_of(second).items():
        assert all(weight.dtype == torch.float32 for weight in weights.values())
        moved = any(not torch.equal(weights[key], before[name][key]) for key in weights)
        # UAG's attention nets stay as they are from the switch on.
        assert moved or name in ('A_s', 'A_t')


def test_a_gpu_trains_as_a_cpu_does(data, tmp_path):
    """Both start from the same nets. Their random numbers differ, so the losses are only alike."""
    losses = {}
    for device in ('cpu', 'cuda'):
        out = tmp_path / device
        run('train_teacher.py', f'--dataset={data}', *TINY, '--max_iters=60', '--log_interval=60',
            '--batch_size=16', f'--device={device}', f'--out_dir={out}')
        log = (out / 'log.txt').read_text()
        losses[device] = [float(value) for value in re.findall(r'(?:D_cls|G_rec) +(\S+)', log)]
    assert losses['cuda'] == pytest.approx(losses['cpu'], rel=0.2)


@pytest.mark.parametrize('script', SCRIPTS)
def test_a_checkpoint_of_the_gpu_goes_on_on_a_cpu(script, flags, tmp_path):
    command = [f'train_{script}.py', *flags[script], f'--out_dir={tmp_path}']
    run(*command)
    more = '--n_epochs=2' if script == 'uag' else '--max_iters=8'
    run(*command, '--resume=True', '--device=cpu', more)
    check(tmp_path, 8)


@pytest.mark.parametrize('script', SCRIPTS)
def test_evaluate_on_the_gpu(script, flags, evaluation, tmp_path):
    run(f'train_{script}.py', *flags[script], f'--out_dir={tmp_path}/{script}')
    command = ['evaluate.py', f'--ckpt={tmp_path}/{script}/ckpt.pt', *evaluation]
    for device in ('cuda', 'cpu'):
        run(*command, f'--device={device}', f'--out_dir={tmp_path}/{device}')
    # The judge is the same one, so the figures agree but for rounding; the names of rows do exactly.
    first_words = {}
    for device in ('cuda', 'cpu'):
        table = (tmp_path / device / 'table.txt').read_text()
        first_words[device] = [line.split()[:1] for line in table.splitlines()]
    assert first_words['cuda'] == first_words['cpu']
