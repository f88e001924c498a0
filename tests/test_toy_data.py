"""The drawn sets: same seed, same bytes; what they write is what they say; mistakes and full disks damage nothing."""

import functools
import json
import os
import runpy
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, run

FACES = ['data/toyfaces/prepare.py', '--image_size=32', '--n_train=32', '--n_val=8', '--n_test=16']
EXPR = [*FACES, '--label=expressions']
FRUIT = ['data/toyfruit/prepare.py', '--image_size=32', '--n_train=10', '--n_test=6']
toy = SimpleNamespace(**runpy.run_path(f'{ROOT}/data/toyfaces/prepare.py'))
load = lambda folder: {f: np.load(folder / f) for f in sorted(os.listdir(folder)) if f.endswith('.npy')}  # noqa: E731
same = lambda a, b: a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)  # noqa: E731


def draw(index, split='test', y=None, regions=True, **settings):
    return toy.draw_face(toy.config | dict(image_size=32) | settings, index, split, y, regions)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    @functools.cache
    def make(*args):  # draws a set once with one worker
        run(*args, f'--dst={(folder := tmp_path_factory.mktemp("set"))}', '--workers=1')
        return load(folder), json.load(open(folder / 'meta.json'))
    return make


@pytest.mark.parametrize('args', [FACES, EXPR, FRUIT], ids=['faces', 'expressions', 'fruit'])
def test_the_seed_decides_and_nothing_there_is_lost(made, tmp_path, args):
    a, meta = made(*args)
    run(*args, f'--dst={tmp_path}', '--workers=2')
    assert same(a, load(tmp_path)) and sorted(os.listdir(tmp_path)) == sorted([*a, 'meta.json'])
    for split, n in meta['counts'].items():
        assert a[f'{split}_x.npy'].shape == (n, 32, 32, 3) and a[f'{split}_x.npy'].dtype == np.uint8
        assert (f'{split}_m.npy' in a) == ('train' not in split)
    x = [image.tobytes() for k in a if '_x' in k for image in a[k]]
    assert len(set(x)) == len(x)
    # already there, another one there, redone, incomplete
    stamp = (tmp_path / 'meta.json').stat().st_mtime_ns
    assert 'already there' in run(*args, f'--dst={tmp_path}', '--workers=1')
    assert 'seed' in (said := run(*args, f'--dst={tmp_path}', '--seed=7', ok=False)) and '--force=True' in said
    assert (tmp_path / 'meta.json').stat().st_mtime_ns == stamp and same(a, load(tmp_path))
    run(*args, f'--dst={tmp_path}', '--seed=7', '--force=True')
    assert not any(np.array_equal(a[k], v) for k, v in load(tmp_path).items() if '_y' not in k)
    os.remove(tmp_path / [k for k in a if '_m' in k][0])
    assert '_m.npy missing' in run(*args, f'--dst={tmp_path}', '--seed=7', ok=False)


@pytest.mark.parametrize('args', [FACES, FRUIT], ids=['faces', 'fruit'])
def test_full_disk(tmp_path, args):
    """A file may not grow beyond 20 kB here: one line, the set that was there is kept, and no temporary file."""
    (tmp_path / 'meta.json').write_text('{}')
    command = f'ulimit -f 20; exec "$@" --dst={tmp_path} --force=True'
    done = subprocess.run(['bash', '-c', command, '-', sys.executable, *args], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and 'no set was written' in done.stderr
    assert os.listdir(tmp_path) == ['meta.json'] and (tmp_path / 'meta.json').read_text() == '{}'


@pytest.mark.parametrize('arg', ['n_val=0', 'image_size=60', 'label=x', 'attrs=Bald,X', 'attrs=Male,Male', 'variety=2'])
def test_wrong_values(tmp_path, arg):
    said = run('data/toyfaces/prepare.py', f'--dst={tmp_path}/a', '--' + arg, ok=False)
    assert arg.split('=')[0] in said and ('attrs' not in arg or 'Wearing_Hat' in said) and not os.listdir(tmp_path)


def test_labels_keep_their_exclusions_and_balance():
    for balance, low in ((0.0, 0.0), (1.0, 0.08)):
        y = [toy.draw_label(np.random.default_rng(i), balance) for i in range(300)]
        for group in toy.EXCLUSIVE:
            assert max(sum(one[a] for a in group) for one in y) == 1
        assert all(one['Male'] or not one['Mustache'] | one['Goatee'] for one in y)  # only men have them
        assert min(np.mean([one[a] for one in y]) for a in toy.ATTRS) >= low
    with pytest.raises(ValueError):
        draw(0, y=[a in ('Bald', 'Gray_Hair') for a in toy.ATTRS])


def test_a_change_of_attribute_lies_in_its_region():
    for name in ('Eyeglasses', 'Rosy_Cheeks', 'Blond_Hair', 'Goatee'):
        k, inside = toy.ATTRS.index(name), []
        for i in range(30):
            x, y, m = draw(i)
            has = {a for a, v in zip(toy.ATTRS, y) if v}
            if not has & {name, 'Bald', 'Wearing_Hat'} and 'Male' in has:
                new = (has - set(toy.COLORS) if name == 'Blond_Hair' else has) | {name}
                change = np.abs(draw(i, y=[a in new for a in toy.ATTRS])[0].astype(int) - x).sum(2)
                inside.append((change * m[k]).sum() / change.sum())
        assert len(inside) > 2 and np.mean(inside) > .7, (name, inside)


def test_variety():
    spread = [np.stack([draw(i, y=[0] * 15, regions=False, variety=v)[0] for i in range(20)]).std(0).mean()
              for v in (0., .35, 1.)]
    assert spread[0] < 3 < spread[1] < .6 * spread[2], spread  # nothing but noise differs at 0
    assert all(np.array_equal(draw(i, variety=.35)[1], draw(i)[1]) for i in range(9))


def test_attrs(made, tmp_path):
    names = ['Goatee', 'Blond_Hair', 'Black_Hair', 'Straight_Hair']
    run(*FACES, f'--attrs={",".join(names)}', f'--dst={tmp_path}')
    meta, a = json.load(open(tmp_path / 'meta.json')), load(tmp_path)
    assert meta['attrs'] == names and meta['exclusive'] == [['Blond_Hair', 'Black_Hair']]
    assert a['test_m.npy'].shape == (16, 4, 32, 32) and a['test_m.npy'].any((2, 3)).all()
    columns = [toy.ATTRS.index(name) for name in names]
    assert all(np.array_equal(a[k], made(*FACES)[0][k][:, columns]) for k in a if '_y' in k)
    # what is not listed is not there
    bare, glasses = (draw(3, y=[v], attrs='Eyeglasses')[0] for v in (0, 1))
    assert (bare != glasses).any() and np.array_equal(bare, draw(3, y=[0, 0], attrs='Eyeglasses,Goatee')[0])


def test_expressions_on_disk(made, tmp_path):
    a, meta = made(*EXPR)
    assert meta['dataset'] == 'toyexpressions' and meta['label'] == 'single' and meta['exclusive'] == [meta['attrs']]
    assert meta['attrs'] == sorted(toy.EXPRESSIONS) and len(meta['attrs']) == 8
    assert 'multiples of 8' in run(*EXPR, '--n_train=27', f'--dst={tmp_path}', ok=False)
    for split, n in meta['counts'].items():  # everyone with each
        assert (a[f'{split}_y.npy'].sum(1) == 1).all() and (a[f'{split}_y.npy'].sum(0) == n // 8).all()
    for row, index in ((0, 0), (1, 9), (2, 1), (3, 10)):  # neighbours are other people
        assert np.array_equal(a['test_x.npy'][row], draw(index, label='expressions')[0])
    # another place or split, another person; eight images in a row, one person
    for i, s, j, t in (5, 'val', 13, 'val'), (5, 'train', 5, 'val'), (5, 'train', 5, 'test'), (5, 'val', 5, 'test'):
        assert np.abs(draw(i, s, label='expressions')[0].astype(int) - draw(j, t, label='expressions')[0]).mean() > 10
    x = a['train_x.npy'].reshape(4, 8, 32, 32, 3).astype(int)
    assert np.abs(x[:, 1:] - x[:, :1]).mean() < .6 * np.abs(x[1:] - x[:-1]).mean()


def test_an_expression_changes_its_region_and_nothing_else():
    for size, i in [(size, i) for size in (32, 64, 128) for i in range(0, 32 if size < 128 else 8, 8)]:
        photo = {a: draw(i, y=a, label='expressions', image_size=size) for a in toy.EXPRESSIONS}
        x, _, m = photo['neutral']
        assert np.array_equal(m[5], m.max(0)) and .03 < m.mean((1, 2)).min() < m.mean((1, 2)).max() < .5
        for k, (name, (x2, y2, m2)) in enumerate(photo.items()):
            assert y2[k] == y2.sum() == 1 and np.array_equal(m, m2)  # regions are the face's, whatever it shows
            change = (x2 != x).any(2)
            assert not change[m[k] == 0].any() and (change.mean() > .02 or name == 'neutral'), (i, name, change.mean())
            assert all(np.abs(x2.astype(int) - photo[a][0]).max() > 30 for a in photo if a != name)  # all are distinct


def test_fruit(made):
    a, meta = made(*FRUIT)
    x, m = (np.stack([a[f'test{side}_{k}.npy'] for side in 'AB']) for k in 'xm')
    assert meta['domains'] == ['apple', 'orange'] and meta['label'] == 'unpaired'
    assert 0.05 < m.mean((2, 3)).min() and m.mean((2, 3)).max() < 0.6
    assert x[1][m[1] == 1].mean(0)[1] > x[0][m[0] == 1].mean(0)[1] + 20  # oranges have more green in them than apples
