"""The drawn expressions: same seed, same bytes; every person with all eight; nothing changes outside the regions."""

import importlib.util
import json
import os

import numpy as np
import pytest
from conftest import ROOT, run

ARGS = ['data/toyexpressions/prepare.py', '--image_size=32', '--n_train=48', '--n_val=8', '--n_test=16']


@pytest.fixture(scope='module')
def toy():
    spec = importlib.util.spec_from_file_location('toyexpressions', f'{ROOT}/data/toyexpressions/prepare.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp('expressions') / 'a'
    run(*ARGS, f'--dst={folder}', '--workers=1')
    return folder


def arrays(folder):
    return {name: np.load(os.path.join(folder, name)) for name in sorted(os.listdir(folder)) if name.endswith('.npy')}


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_the_seed_decides_and_the_workers_do_not(made, tmp_path):
    run(*ARGS, f'--dst={tmp_path}/b', '--workers=3')
    run(*ARGS, f'--dst={tmp_path}/c', '--seed=7')
    a, c = arrays(made), arrays(tmp_path / 'c')
    assert same(a, arrays(tmp_path / 'b'))
    assert a.keys() == c.keys() and not any(np.array_equal(a[k], c[k]) for k in a if not k.endswith('_y.npy'))


def test_what_is_written(made, toy):
    a, meta = arrays(made), json.load(open(made / 'meta.json'))
    assert meta['dataset'] == 'toyexpressions' and meta['label'] == 'single' and meta['image_size'] == 32
    assert meta['attrs'] == sorted(toy.EXPRESSIONS) and meta['exclusive'] == [meta['attrs']]
    assert meta['counts'] == dict(train=48, val=8, test=16)
    assert sorted(os.listdir(made)) == sorted([*a, 'meta.json']) and 'train_m.npy' not in a
    for split, n in meta['counts'].items():
        x, y = a[f'{split}_x.npy'], a[f'{split}_y.npy']
        assert x.shape == (n, 32, 32, 3) and x.dtype == y.dtype == np.uint8
        assert (y.sum(1) == 1).all() and (y.sum(0) == n // 8).all()
        image = np.argsort(toy.row_of(np.arange(n), split, n))  # of each row
        assert np.array_equal(y, np.eye(8)[image % 8]) and sorted(image) == list(range(n))  # every person with each
        assert split != 'test' or (np.diff(image // 8) != 0).all()  # neighbours are other people
    for split in ('val', 'test'):
        share = a[f'{split}_m.npy'].mean((2, 3))
        assert a[f'{split}_m.npy'].max() == 1 and share.min() > .05 and share.max() < .5
    x, y, m = toy.draw_face(13, 'test', 32)
    row = toy.row_of(13, 'test', 16)
    assert np.array_equal(a['test_x.npy'][row], x) and np.array_equal(a['test_m.npy'][row], m) and y[13 % 8] == 1


def test_people(made, toy):
    a = arrays(made)
    x = np.concatenate([a[f'{split}_x.npy'] for split in toy.SPLITS])
    assert len(np.unique(x.reshape(len(x), -1), axis=0)) == len(x) == 72
    # the same place in two splits: another background and another person, not only another noise
    far = [np.abs(toy.draw_face(5, s, 32)[0].astype(int) - toy.draw_face(5, t, 32)[0]).mean()
           for s, t in (('train', 'val'), ('train', 'test'), ('val', 'test'))]
    one = [np.abs(toy.draw_face(5, s, 32)[0].astype(int) - toy.draw_face(13, s, 32)[0]).mean() for s in toy.SPLITS]
    assert min(far + one) > 10, (far, one)
    # but eight images in a row are one person
    x = a['train_x.npy'].reshape(6, 8, 32, 32, 3).astype(int)
    assert np.abs(x[:, 1:] - x[:, :1]).mean() < .6 * np.abs(x[1:] - x[:-1]).mean()


@pytest.mark.parametrize('size', [32, 64, 128])
def test_an_expression_changes_its_region_and_nothing_else(toy, size):
    for i in range(0, 40, 8) if size < 128 else (0,):
        neutral, _, m = toy.draw_face(i, 'test', size, expression='neutral')
        assert np.array_equal(m[toy.ATTRS.index('neutral')], m.max(0))
        for k, name in enumerate(toy.ATTRS):
            x, y, m2 = toy.draw_face(i, 'test', size, expression=name)
            assert y[k] == y.sum() == 1 and np.array_equal(m, m2)  # regions are the face's, whatever it shows
            change = (x != neutral).any(2)
            assert not change[m[k] == 0].any(), (i, name)
            assert change.mean() > .02 or name == 'neutral', (i, name, change.mean())


def test_already_there_and_force(made, tmp_path):
    stamp = (made / 'train_x.npy').stat().st_mtime_ns
    assert 'already there' in run(*ARGS, f'--dst={made}', '--workers=2')
    assert '--force=True' in run(*ARGS, f'--dst={made}', '--seed=7', ok=False)
    assert (made / 'train_x.npy').stat().st_mtime_ns == stamp
    small = ['data/toyexpressions/prepare.py', '--image_size=32', f'--dst={tmp_path}', '--n_val=8', '--n_test=8']
    run(*small, '--n_train=16')
    assert 'rounded up to 24' in run(*small, '--n_train=17', '--force=True')
    meta = json.load(open(tmp_path / 'meta.json'))
    assert meta['counts']['train'] == meta['config']['n_train'] == len(np.load(tmp_path / 'train_y.npy')) == 24
    assert 'already there' in run(*small, '--n_train=24')  # the same set, asked for otherwise
    os.remove(tmp_path / 'test_m.npy')
    assert 'test_m.npy' in run(*small, '--n_train=24', ok=False)


@pytest.mark.parametrize('arg', ['--n_train=0', '--n_test=-8', '--image_size=60', '--image_size=24', '--seed=-1'])
def test_wrong_values(tmp_path, arg):
    assert arg in run('data/toyexpressions/prepare.py', f'--dst={tmp_path}/a', arg, ok=False)
    assert not os.path.exists(tmp_path / 'a')
