"""Shared by the tests: a runner of commands, tiny data sets, and tiny trained nets."""

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


@functools.cache
def server():
    """The process that runs scripts, server.py. It is started when the first test wants it."""
    command = [sys.executable, f'{ROOT}/tests/server.py']
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def stop():
        # Waited for, so that `time pytest` counts what its scripts took.
        process.stdin.close()
        process.wait()

    atexit.register(stop)
    return process


def run(*args, ok=True, cwd=ROOT, env=None):
    """Runs `python args...` on one thread -> what it printed.

    With ok=False it must end in exit code 1, and the answer is the one line of its error.
    """
    with tempfile.TemporaryDirectory() as folder:
        job = dict(args=[str(arg) for arg in args], cwd=str(cwd), env=env or {})
        job.update(out=f'{folder}/out', err=f'{folder}/err')
        server().stdin.write(json.dumps(job) + '\n')
        server().stdin.flush()
        code = int(server().stdout.readline())
        with open(job['out'], encoding='utf-8', errors='replace') as file:
            out = file.read()
        with open(job['err'], encoding='utf-8', errors='replace') as file:
            err = file.read()
    assert code == (0 if ok else 1), (code, out, err)
    if ok:
        return out + err
    assert 'Traceback' not in err and len(err.strip().splitlines()) == 1, err
    return err.strip()


def ckpt(folder):
    """The checkpoint of a run."""
    return torch.load(os.path.join(folder, 'ckpt.pt'), map_location='cpu', weights_only=True)


def equal(a, b):
    """Dicts, lists, tensors, numbers: the same bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    if torch.is_tensor(a):
        return torch.equal(a, b)
    return a == b


class Evil:
    """Unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def make_data(folder, attrs='a,b,c', label='multi', n=24, size=16):
    """A tiny set: attribute k brightens a quarter of the image, which is also its region."""
    rng = np.random.default_rng(0)
    attrs = attrs.split(',')
    half = size // 2
    os.makedirs(folder, exist_ok=True)
    for split in ('train', 'val', 'test'):
        y = rng.integers(0, 2, (n, len(attrs)), dtype=np.uint8)
        if label == 'single':
            y = np.eye(len(attrs), dtype=np.uint8)[rng.integers(0, len(attrs), n)]
        x = rng.integers(0, 128, (n, size, size, 3), dtype=np.uint8)
        m = np.zeros((n, len(attrs), size, size), np.uint8)
        for k in range(len(attrs)):
            top = k // 2 * size // 2
            left = k % 2 * size // 2
            m[:, k, top:top + half, left:left + half] = 1
            x[:, top:top + half, left:left + half] += y[:, k, None, None, None] * 127
        for name, array in (('x', x), ('y', y), ('m', m)):
            np.save(os.path.join(folder, f'{split}_{name}.npy'), array)
    meta = dict(dataset=os.path.basename(folder), label=label, image_size=size, attrs=attrs)
    meta['exclusive'] = [attrs] if label == 'single' else [attrs[:2]]
    meta['counts'] = dict(train=n, val=n, test=n)
    with open(os.path.join(folder, 'meta.json'), 'w', encoding='utf-8') as file:
        json.dump(meta, file)
    return str(folder)


def make_pairs(folder):
    """Two domains of 20 px noise, reddish and bluish, whose left half is the object.

    Four iterations of batch 1 are an epoch.
    """
    rng = np.random.default_rng(0)
    os.makedirs(folder)
    for name, n, channel in (('trainA', 4, 0), ('trainB', 3, 2), ('testA', 2, 0), ('testB', 3, 2)):
        x = rng.integers(0, 128, (n, 20, 20, 3), dtype=np.uint8)
        x[..., channel] += 127
        m = np.zeros((n, 20, 20), np.uint8)
        m[..., :10] = 1
        np.save(f'{folder}/{name}_x.npy', x)
        np.save(f'{folder}/{name}_m.npy', m)
    meta = dict(dataset='pairs', label='unpaired', image_size=20, domains=['red', 'blue'], counts={})
    with open(f'{folder}/meta.json', 'w', encoding='utf-8') as file:
        json.dump(meta, file)
    return str(folder)


# Flags that make a run tiny: of a teacher, a student and of train_uag.py
TINY = [
    '--attrs=all', '--conv_dim=4', '--n_blocks=1', '--d_conv_dim=4', '--d_n_layers=3', '--batch_size=4',
    '--n_critic=2', '--max_iters=4', '--log_interval=2', '--sample_interval=2', '--ckpt_interval=2',
    '--device=cpu']
TINY_S = [
    '--conv_dim=2', '--n_blocks=1', '--batch_size=4', '--n_critic=2', '--max_iters=4',
    '--log_interval=2', '--sample_interval=2', '--ckpt_interval=2', '--device=cpu']
TINY_U = [
    '--image_size=16', '--ngf=4', '--n_blocks=1', '--ndf=4', '--naf=4', '--d_n_layers=2', '--pool_size=3',
    '--lr=1e-3', '--log_interval=2', '--sample_interval=4', '--ckpt_interval=4', '--device=cpu',
    '--tau=0.45']


@pytest.fixture(scope='session')
def data(tmp_path_factory):
    return make_data(str(tmp_path_factory.mktemp('data') / 'tiny'))


@pytest.fixture(scope='session')
def pairs(tmp_path_factory):
    return make_pairs(str(tmp_path_factory.mktemp('data') / 'pairs'))


@pytest.fixture(scope='session')
def teacher(data, tmp_path_factory):
    """The folder of a tiny trained teacher."""
    out = tmp_path_factory.mktemp('teacher')
    run('train_teacher.py', f'--dataset={data}', f'--out_dir={out}', *TINY)
    return out


@pytest.fixture(scope='session')
def student(teacher, tmp_path_factory):
    """The folder of its tiny student, trained with attention loss."""
    out = tmp_path_factory.mktemp('student')
    run('train_student.py', f'--teacher={teacher}/ckpt.pt', f'--out_dir={out}', *TINY_S)
    return out


@pytest.fixture(scope='session')
def evaluation(tmp_path_factory):
    """Flags that make evaluate.py quick; its classifiers are kept."""
    clf_dir = tmp_path_factory.mktemp('clf')
    return ['--device=cpu', '--clf_epochs=1', '--inception=none', f'--clf_dir={clf_dir}']
