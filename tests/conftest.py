"""Shared by the tests: the repository on the import path, one command runner, tiny data sets and trained nets."""

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
# A process that has torch loaded and forks for each command: importing, and timing nets, would be most of the time
ZYGOTE = """
import json, os, runpy, sys, traceback
import numpy, scipy.stats, torch, torchvision
from torch.utils.benchmark import Timer
timed = Timer.blocked_autorange
Timer.blocked_autorange = lambda timer, min_run_time: timed(timer, min_run_time=0.01)
torch.set_num_threads(1)
for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if not pid:
        for fd, path in ((0, os.devnull), (1, job['out']), (2, job['err'])):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), fd)
        sys.stdin = open(0)
        os.chdir(job['cwd'])
        os.environ.update(job['env'])
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


def run(*args, ok=True, cwd=ROOT, env=None):
    """Runs `python args...`, on one thread -> what it printed; with ok=False it must end in code 1 and one line."""
    with tempfile.TemporaryDirectory() as folder:
        job = dict(args=[*map(str, args)], cwd=str(cwd), out=folder + '/out', err=folder + '/err', env=env or {})
        zygote().stdin.write(json.dumps(job) + '\n')
        zygote().stdin.flush()
        code = int(zygote().stdout.readline())
        out, err = (open(path, errors='replace').read() for path in (job['out'], job['err']))
    assert code == (0 if ok else 1), (code, out, err)
    assert ok or 'Traceback' not in err and len(err.strip().splitlines()) == 1, err
    return out + err if ok else err.strip()


def ckpt(folder):
    """The checkpoint of a run."""
    return torch.load(os.path.join(folder, 'ckpt.pt'), map_location='cpu', weights_only=True)


def equal(a, b):
    """Dicts, lists, tensors, numbers: the same bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if torch.is_tensor(a) else a == b


class Evil:
    """Unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def make_data(folder, attrs='a,b,c', label='multi', n=24, size=16):
    """A tiny attribute set: column k of the labels brightens a quarter of the image, which is also its region."""
    rng, attrs = np.random.default_rng(0), attrs.split(',')
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


def make_pairs(folder):
    """Two domains of 20 px noise, reddish and bluish, the object their left half: 4 iterations of one are an epoch."""
    rng = np.random.default_rng(0)
    os.makedirs(folder)
    for name, n, channel in (('trainA', 4, 0), ('trainB', 3, 2), ('testA', 2, 0), ('testB', 3, 2)):
        x = rng.integers(0, 128, (n, 20, 20, 3), dtype=np.uint8)
        x[..., channel] += 127
        np.save(f'{folder}/{name}_x.npy', x)
        np.save(f'{folder}/{name}_m.npy', np.repeat([[[1] * 10 + [0] * 10] * 20], n, 0).astype(np.uint8))
    with open(f'{folder}/meta.json', 'w') as f:
        json.dump(dict(dataset='pairs', label='unpaired', image_size=20, domains=['red', 'blue'], counts={}), f)
    return str(folder)


TINY = ['--attrs=all', '--conv_dim=4', '--n_blocks=1', '--d_conv_dim=4', '--d_n_layers=3', '--batch_size=4',
        '--n_critic=2', '--max_iters=4', '--log_interval=2', '--sample_interval=2', '--ckpt_interval=2', '--device=cpu']
TINY_S = [arg for arg in TINY if not arg.startswith(('--attrs', '--conv_dim', '--d_'))] + ['--conv_dim=2']  # a student
TINY_U = ['--image_size=16', '--ngf=4', '--n_blocks=1', '--ndf=4', '--naf=4', '--d_n_layers=2', '--pool_size=3',
          '--lr=1e-3', '--log_interval=2', '--sample_interval=4', '--ckpt_interval=4', '--device=cpu', '--tau=0.45']


@pytest.fixture(scope='session')
def data(tmp_path_factory):
    return make_data(str(tmp_path_factory.mktemp('data') / 'tiny'))


@pytest.fixture(scope='session')
def pairs(tmp_path_factory):
    return make_pairs(str(tmp_path_factory.mktemp('data') / 'pairs'))


@pytest.fixture(scope='session')
def teacher(data, tmp_path_factory):
    """A tiny trained teacher's folder."""
    out = tmp_path_factory.mktemp('teacher')
    run('train_teacher.py', f'--dataset={data}', f'--out_dir={out}', *TINY)
    return out


@pytest.fixture(scope='session')
def student(teacher, tmp_path_factory):
    """Its tiny student's, with attention loss."""
    out = tmp_path_factory.mktemp('student')
    run('train_student.py', f'--teacher={teacher}/ckpt.pt', f'--out_dir={out}', *TINY_S)
    return out


@pytest.fixture(scope='session')
def evaluation(tmp_path_factory):
    """Flags that make evaluate.py quick; its classifiers are kept."""
    return ['--device=cpu', '--clf_epochs=1', '--inception=none', f"--clf_dir={tmp_path_factory.mktemp('clf')}"]
