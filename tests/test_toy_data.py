"""The drawn sets: same seed, same bytes; masks lie on what they mask; what is written is what is said."""

import functools
import itertools
import json
import os
import runpy
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, run
from scipy.ndimage import binary_dilation

DRAW_FACES = ['data/toyfaces/prepare.py', '--image_size=32']
FACES = [*DRAW_FACES, '--n_train=10', '--n_val=4', '--n_test=6']
EXPRESSIONS = [*DRAW_FACES, '--n_train=32', '--n_val=8', '--n_test=16', '--label=expressions']
FRUIT = ['data/toyfruit/prepare.py', '--image_size=32', '--n_train=8', '--n_test=6']
toy = SimpleNamespace(**runpy.run_path(f'{ROOT}/data/toyfaces/prepare.py'))
fruit = SimpleNamespace(**runpy.run_path(f'{ROOT}/data/toyfruit/prepare.py'))


def draw(index, split='test', y=None, regions=True, **settings):
    """-> image, labels, masks of a face."""
    return toy.draw_face(toy.config | {'image_size': 32} | settings, index, split, y, regions)


def draw_scene(domain, index, **settings):
    """-> image, mask of apples or oranges."""
    return fruit.draw_scene(fruit.config | {'image_size': 32} | settings, domain, index, 'test')


def labels(has):
    """Names of attributes -> the label."""
    return [name in has for name in toy.ATTRS]


def load(folder):
    names = [name for name in os.listdir(folder) if name.endswith('.npy')]
    return {name: np.load(folder / name) for name in names}


def same(a, b):
    if a.keys() != b.keys():
        return False
    return all(np.array_equal(a[name], b[name]) for name in a)


def overlap(a, b):
    """Intersection over union of two regions."""
    return (a & b).sum() / (a | b).sum()


def pixels(masks, size):
    """(N, H, W) -> (N, size, size, k): what falls into each pixel if the masks are made smaller."""
    k = masks.shape[1] // size
    blocks = masks.reshape(-1, size, k, size, k).swapaxes(2, 3)
    return blocks.reshape(-1, size, size, k * k)


def moved(mask):
    """A mask, one pixel to each side."""
    up_and_down = [np.roll(mask, step, 0) for step in (-1, 1)]
    return up_and_down + [np.roll(mask, step, 1) for step in (-1, 1)]


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    @functools.cache
    def make(*args):
        """Draws a set once, with one worker -> arrays, meta.json."""
        folder = tmp_path_factory.mktemp('set')
        run(*args, f'--dst={folder}', '--workers=1')
        return load(folder), json.loads((folder / 'meta.json').read_text())
    return make


# what is on disk
@pytest.mark.parametrize('args', [FACES, FRUIT], ids=['faces', 'fruit'])
def test_the_seed_decides(made, tmp_path, args):
    arrays, meta = made(*args)
    run(*args, f'--dst={tmp_path}', '--workers=2')
    assert same(arrays, load(tmp_path))
    assert sorted(os.listdir(tmp_path)) == sorted([*arrays, 'meta.json'])
    images = []
    for split, n in meta['counts'].items():
        x = arrays[f'{split}_x.npy']
        assert x.shape == (n, 32, 32, 3)
        assert x.dtype == np.uint8
        assert (f'{split}_m.npy' in arrays) == ('train' not in split)
        images += [image.tobytes() for image in x]
    assert len(set(images)) == len(images)


@pytest.mark.parametrize('args', [FACES, FRUIT], ids=['faces', 'fruit'])
def test_what_is_there_is_not_lost(made, tmp_path, args):
    old, meta = made(*args)
    for name, array in old.items():
        np.save(tmp_path / name, array)
    (tmp_path / 'meta.json').write_text(json.dumps(meta))
    stamp = (tmp_path / 'meta.json').stat().st_mtime_ns
    assert 'already there' in run(*args, f'--dst={tmp_path}')
    said = run(*args, f'--dst={tmp_path}', '--seed=7', ok=False)
    assert 'seed' in said and '--force=True' in said
    assert (tmp_path / 'meta.json').stat().st_mtime_ns == stamp
    assert same(old, load(tmp_path))
    run(*args, f'--dst={tmp_path}', '--seed=7', '--force=True', '--workers=2')
    new = load(tmp_path)
    assert old.keys() == new.keys()
    for name in old:
        assert '_y' in name or not np.array_equal(old[name], new[name])
    # Arrays or meta.json that are no longer whole
    masks = next(name for name in old if '_m' in name)
    for name in (masks, 'meta.json'):
        (tmp_path / name).write_bytes(b'')
        said = run(*args, f'--dst={tmp_path}', '--seed=7', ok=False)
        assert '--force=True' in said
    os.remove(tmp_path / masks)
    assert masks in run(*args, f'--dst={tmp_path}', '--seed=7', ok=False)


@pytest.mark.parametrize('args', [FACES, FRUIT], ids=['faces', 'fruit'])
def test_full_disk(tmp_path, args):
    """A file may not grow beyond 20 kB here: one line, the set that was there is kept, no temporary file."""
    (tmp_path / 'meta.json').write_text('{}')
    command = f'ulimit -f 20; exec "$@" --dst={tmp_path} --force=True'
    command = ['bash', '-c', command, '-', sys.executable, *args]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True)
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
    assert b'no set was written' in ended.stderr
    assert os.listdir(tmp_path) == ['meta.json']
    assert (tmp_path / 'meta.json').read_text() == '{}'


@pytest.mark.parametrize('script,flag', [
    ('toyfaces', '--n_val=0'), ('toyfaces', '--image_size=60'), ('toyfaces', '--label=x'),
    ('toyfaces', '--attrs=Bald,X'), ('toyfaces', '--attrs=Male,Male'), ('toyfaces', '--variety=2'),
    ('toyfruit', '--n_test=0'), ('toyfruit', '--image_size=60'), ('toyfruit', '--clutter=2')])
def test_wrong_values(tmp_path, script, flag):
    said = run(f'data/{script}/prepare.py', f'--dst={tmp_path}/a', flag, ok=False)
    assert flag.partition('=')[0] in said
    assert 'attrs' not in flag or 'Wearing_Hat' in said
    assert os.listdir(tmp_path) == []


def test_faces_on_disk_have_their_own_labels_and_masks(made):
    arrays, meta = made(*FACES)
    assert meta['attrs'] == toy.ATTRS
    for split, n in meta['counts'].items():
        for i in range(0, n, 3):
            x, y, m = draw(i, split)
            assert np.array_equal(arrays[f'{split}_x.npy'][i], x)
            assert np.array_equal(arrays[f'{split}_y.npy'][i], y)
            if split != 'train':
                assert np.array_equal(arrays[f'{split}_m.npy'][i], m)


def test_attrs(made, tmp_path):
    names = ['Goatee', 'Blond_Hair', 'Black_Hair', 'Straight_Hair']
    run(*FACES, f'--attrs={",".join(names)}', f'--dst={tmp_path}')
    meta = json.loads((tmp_path / 'meta.json').read_text())
    arrays = load(tmp_path)
    assert meta['attrs'] == names
    assert meta['exclusive'] == [['Blond_Hair', 'Black_Hair']]
    assert arrays['test_m.npy'].shape == (6, 4, 32, 32)
    assert arrays['test_m.npy'].any((2, 3)).all()
    columns = [toy.ATTRS.index(name) for name in names]
    for split in ('train', 'val', 'test'):
        of_all = made(*FACES)[0][f'{split}_y.npy']
        assert np.array_equal(arrays[f'{split}_y.npy'], of_all[:, columns])
    # What is not listed is not there.
    bare = draw(3, y=[0], attrs='Eyeglasses')[0]
    glasses = draw(3, y=[1], attrs='Eyeglasses')[0]
    assert not np.array_equal(bare, glasses)
    again = draw(3, y=[0, 0], attrs='Eyeglasses,Goatee')[0]
    assert np.array_equal(bare, again)


def test_expressions_on_disk(made, tmp_path):
    arrays, meta = made(*EXPRESSIONS)
    assert meta['dataset'] == 'toyexpressions'
    assert meta['label'] == 'single'
    assert meta['attrs'] == sorted(toy.EXPRESSIONS)
    assert meta['exclusive'] == [meta['attrs']]
    assert len(meta['attrs']) == 8
    assert 'multiples of 8' in run(*EXPRESSIONS, '--n_train=27', f'--dst={tmp_path}', ok=False)
    for split, n in meta['counts'].items():
        # Everyone is there with each.
        y = arrays[f'{split}_y.npy']
        assert (y.sum(1) == 1).all()
        assert (y.sum(0) == n // 8).all()
    # In the test images neighbours are other people.
    for row, index in enumerate([0, 9, 1, 10]):
        x, y, m = draw(index, label='expressions')
        assert np.array_equal(arrays['test_x.npy'][row], x)
        assert np.array_equal(arrays['test_y.npy'][row], y)
        assert np.array_equal(arrays['test_m.npy'][row], m)
    # In another place or split there is another person.
    places = [(5, 'val'), (13, 'val'), (5, 'train'), (5, 'test')]
    people = [draw(i, split, label='expressions')[0] for i, split in places]
    for a, b in itertools.combinations(people, 2):
        assert np.abs(a.astype(int) - b).mean() > 10
    # Eight images in a row are of one person.
    x = arrays['train_x.npy'].reshape(4, 8, 32, 32, 3).astype(int)
    within = np.abs(x[:, 1:] - x[:, :1]).mean()
    assert within < .6 * np.abs(x[1:] - x[:-1]).mean()


# faces: labels and regions
def test_labels_keep_their_exclusions_and_balance():
    for balance, low in ((0.0, 0.0), (1.0, 0.08)):
        drawn = [toy.draw_label(np.random.default_rng(i), balance) for i in range(300)]
        for y in drawn:
            assert all(sum(y[name] for name in group) <= 1 for group in toy.EXCLUSIVE)
            # Only men have them.
            assert y['Male'] or not y['Mustache'] and not y['Goatee']
        for name in toy.ATTRS:
            assert np.mean([y[name] for y in drawn]) >= low
    with pytest.raises(ValueError):
        draw(0, y=labels({'Bald', 'Gray_Hair'}))


@pytest.mark.parametrize('name', toy.ATTRS[:-1])
def test_a_region_lies_on_what_the_attribute_changes(name):
    """The same face is drawn with the attribute and without: no mask but its own fits the difference."""
    k = toy.ATTRS.index(name)
    fits = []
    others = []
    last = None
    for i in range(7):
        has = {toy.ATTRS[k] for k in draw(i, regions=False)[1].nonzero()[0]}
        for group in toy.EXCLUSIVE:
            if name in group:
                has -= set(group)
        has -= {name}
        if name in ('Goatee', 'Mustache'):
            has |= {'Male'}
        without, _, masks = draw(i, y=labels(has))
        having = draw(i, y=labels(has | {name}), regions=False)[0]
        change = np.abs(having.astype(int) - without).max(2) > 12
        mask = masks[k] > 0
        # A hat may hide it all.
        if change.any():
            fits.append([overlap(place, change) for place in (mask, *moved(mask))])
            if last is not None:
                others.append(overlap(last, change))
            last = mask
    own, *beside = np.mean(fits, 0)
    assert len(fits) > 3
    assert own > .55
    assert own > max(beside)
    # Nor does the mask of the face before.
    assert own > np.mean(others) + .1


def test_regions_are_no_pixel_too_wide_at_any_size():
    """At 32 px a region is that at 256 px, made smaller; a pixel more around it would be seen."""
    multi = []
    single = []
    for i in range(0, 40, 8):
        small = draw(i)[2] > 0
        large = draw(i, image_size=256)[2]
        large = pixels(large, 32).mean(-1) >= .5
        multi.append([overlap(a, b) for a, b in zip(small, large)])
        small = draw(i, label='expressions')[2] > 0
        # For expressions, a pixel counts if any of it may change.
        large = draw(i, label='expressions', image_size=256)[2]
        large = pixels(large, 32).any(-1)
        single.append([overlap(a, b) for a, b in zip(small, large)])
    assert np.mean(multi) > .9
    assert np.mean(multi, 0).min() > .7
    assert np.min(single) > .93


def test_variety():
    spread = []
    for variety in (0., .35, 1.):
        faces = []
        for i in range(20):
            faces.append(draw(i, y=labels([]), regions=False, variety=variety)[0])
        spread.append(np.std(faces, 0).mean())
    # Nothing but noise differs at 0.
    assert spread[0] < 3 < spread[1] < .6 * spread[2], spread
    for i in range(9):
        assert np.array_equal(draw(i, variety=.35)[1], draw(i)[1])


@pytest.mark.parametrize('size', [32, 64, 128])
def test_an_expression_changes_its_region_and_nothing_else(size):
    for i in range(0, 32 if size < 128 else 8, 8):
        drawn = {}
        for name in toy.EXPRESSIONS:
            drawn[name] = draw(i, y=name, label='expressions', image_size=size)
        neutral, _, masks = drawn['neutral']
        assert np.array_equal(masks[5], masks.max(0))
        assert .03 < masks.mean((1, 2)).min()
        assert masks.mean((1, 2)).max() < .5
        for k, (name, (x, y, m)) in enumerate(drawn.items()):
            assert y[k] == y.sum() == 1
            # Regions are the face's, whatever it shows.
            assert np.array_equal(m, masks)
            change = (x != neutral).any(2)
            assert not change[masks[k] == 0].any()
            assert change.mean() > .02 or name == 'neutral'
            # All are distinct.
            for other, (x2, _, _) in drawn.items():
                assert other == name or np.abs(x.astype(int) - x2).max() > 30


# fruit
def test_fruit_on_disk(made):
    arrays, meta = made(*FRUIT)
    assert meta['domains'] == ['apple', 'orange']
    assert meta['label'] == 'unpaired'
    for side, domain in zip('AB', meta['domains']):
        for i in range(6):
            x, m = draw_scene(domain, i)
            assert np.array_equal(arrays[f'test{side}_x.npy'][i], x)
            assert np.array_equal(arrays[f'test{side}_m.npy'][i], m)
    # Oranges have more green in them than apples.
    apples = arrays['testA_x.npy'][arrays['testA_m.npy'] == 1].mean(0)
    oranges = arrays['testB_x.npy'][arrays['testB_m.npy'] == 1].mean(0)
    assert oranges[1] > apples[1] + 20


@pytest.mark.parametrize('domain', ['apple', 'orange'])
def test_a_mask_lies_on_the_fruit(domain):
    """Before a plain wall the fruit is what has another colour; its shadow is only darker."""
    for i in range(6):
        x, m = draw_scene(domain, i, clutter=0., image_size=64)
        colour = x / x.sum(2, keepdims=True)
        border = np.median([*colour[0], *colour[-1], *colour[:, 0], *colour[:, -1]], 0)
        seen = np.abs(colour - border).max(2) > .03
        mask = m > 0
        own = overlap(mask, seen)
        assert own > .92
        assert own > max(overlap(beside, seen) for beside in moved(mask))
        # Neither too wide: the same at every size.
        large = draw_scene(domain, i, clutter=0., image_size=256)[1]
        large = pixels(large[None], 64)[0].mean(-1) >= .5
        assert overlap(mask, large) > .96 > overlap(binary_dilation(mask), large)
        assert .05 < mask.mean() < .6


def test_domains_are_unpaired(made):
    """Image i of A has neither the place nor the background of image i of B."""
    arrays, meta = made(*FRUIT)
    masks = zip(arrays['testA_m.npy'], arrays['testB_m.npy'])
    assert np.mean([overlap(a > 0, b > 0) for a, b in masks]) < .6
    for split in ('train', 'test'):
        a = arrays[f'{split}A_x.npy'].astype(int)
        b = arrays[f'{split}B_x.npy']
        # The corners show no fruit, mostly.
        corners = np.abs(a - b)[:, :4, :4]
        assert np.median(corners.mean((1, 2, 3))) > 10
