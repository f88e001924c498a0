"""Shared by the tests: the repository on the import path, one command runner, tiny data sets."""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import pytest
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
# A process that has torch loaded and forks for each command: to import it anew would be most of the tests' time.
ZYGOTE = """
import json, os, runpy, sys, traceback
import numpy, scipy.stats, torch, torchvision
torch.set_num_threads(1)
for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if not pid:
        for fd, path in ((0, os.devnull), (1, job['out']), (2, job['err'])):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), fd)
        sys.stdin = open(0)
        os.chdir(job['cwd'])
        sys.argv, sys.path[0], code = job['args'], os.path.dirname(os.path.abspath(job['args'][0])), 0
        try:
            runpy.run_path(job['args'][0], run_name='__main__')
        except SystemExit as e:  # as the interpreter does it
            code = e.code if isinstance(e.code, int) else int(e.code is not None)
            if isinstance(e.code, str):
                print(e.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@functools.cache
def zygote():
    process = subprocess.Popen([sys.executable, '-c', ZYGOTE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(lambda: (process.stdin.close(), process.wait()))  # so that `time` counts what it did
    return process


def run(*args, ok=True, cwd=ROOT, env=None, threads=1):
    """Runs `python args...` -> what it printed. With ok=False it must fail with exit code 1 and one line on stderr.

    On one thread, forked off a running interpreter; env, or code by -c, starts a fresh one.
    """
    if env or str(args[0]).startswith('-'):
        done = subprocess.run([sys.executable, *map(str, args)], cwd=cwd, capture_output=True, text=True,
                              env={**os.environ, 'OMP_NUM_THREADS': '1', **(env or {})})
        code, out, err = done.returncode, done.stdout, done.stderr
    else:
        with tempfile.TemporaryDirectory() as folder:
            job = dict(args=[*map(str, args)], cwd=str(cwd), out=folder + '/out', err=folder + '/err')
            zygote().stdin.write(json.dumps(job) + '\n')
            zygote().stdin.flush()
            code = int(zygote().stdout.readline())
            out, err = (open(path, errors='replace').read() for path in (job['out'], job['err']))
    assert code == (0 if ok else 1), (code, out, err)
    assert ok or 'Traceback' not in err and len(err.strip().splitlines()) == 1, err
    return out + err if ok else err.strip()


def equal(a, b):
    """Dicts, lists, tensors, numbers: the same bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if torch.is_tensor(a) else a == b


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
        '--n_critic=2', '--max_iters=4', '--log_interval=2', '--sample_interval=2', '--ckpt_interval=2', '--device=cpu']
TINY_S = [arg for arg in TINY if not arg.startswith(('--attrs', '--conv_dim', '--d_'))] + ['--conv_dim=2']  # a student


@pytest.fixture(scope='session')
def teacher(data, tmp_path_factory):
    """A tiny trained teacher's folder."""
    out = tmp_path_factory.mktemp('teacher')
    run('train_teacher.py', f'--dataset={data}', f'--out_dir={out}', *TINY)
    return out
