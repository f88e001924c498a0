"""Shared by the tests: the repository on the import path, one command runner, tiny data sets."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)


def run(*args, ok=True, cwd=ROOT, env=None):
    """Runs `python args...` -> what it printed. With ok=False it must fail with exit code 1 and one line on stderr."""
    done = subprocess.run([sys.executable, *map(str, args)], cwd=cwd, capture_output=True, text=True,
                          env={**os.environ, **(env or {})})
    if ok:
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    assert 'Traceback' not in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    return done.stderr.strip()


def make_data(folder, attrs='a,b,c', label='multi', n=24, size=16, seed=0):
    """A tiny attribute set: column k of the labels brightens a quarter of the image, which is also its region."""
    rng, attrs = np.random.default_rng(seed), attrs.split(',')
    os.makedirs(folder, exist_ok=True)
    for split in ('train', 'val', 'test'):
        y = rng.integers(0, 2, (n, len(attrs)), dtype=np.uint8)
        if label == 'single':
            y = np.eye(len(attrs), dtype=np.uint8)[rng.integers(0, len(attrs), n)]
        x, m = rng.integers(0, 128, (n, size, size, 3), dtype=np.uint8), np.zeros((n, len(attrs), size, size), np.uint8)
        for k in range(len(attrs)):
            top, left = k // 2 * size // 2, k % 2 * size // 2
            rows, cols = slice(top, top + size // 2), slice(left, left + size // 2)
            m[:, k, rows, cols] = 1
            x[:, rows, cols] += y[:, k, None, None, None] * 127
        for name, array in (('x', x), ('y', y), ('m', m)):
            np.save(os.path.join(folder, f'{split}_{name}.npy'), array)
    with open(os.path.join(folder, 'meta.json'), 'w') as f:
        json.dump(dict(dataset=os.path.basename(folder), label=label, image_size=size, attrs=attrs,
                       exclusive=[attrs] if label == 'single' else [attrs[:2]], counts=dict(train=n, val=n, test=n)), f)
    return str(folder)


@pytest.fixture(scope='session')
def data(tmp_path_factory):
    return make_data(str(tmp_path_factory.mktemp('data') / 'tiny'))


TINY = ['--attrs=all', '--conv_dim=4', '--n_blocks=1', '--d_conv_dim=4', '--d_n_layers=3', '--batch_size=4',
        '--n_critic=2', '--max_iters=4', '--log_interval=2', '--sample_interval=2', '--ckpt_interval=2',
        '--n_samples=2', '--device=cpu']
TINY_S = [arg for arg in TINY if not arg.startswith(('--attrs', '--conv_dim', '--d_'))] + ['--conv_dim=2']  # a student


@pytest.fixture(scope='session')
def teacher(data, tmp_path_factory):
    """A tiny trained teacher's folder."""
    out = tmp_path_factory.mktemp('teacher')
    run('train_teacher.py', f'--dataset={data}', f'--out_dir={out}', *TINY)
    return out
