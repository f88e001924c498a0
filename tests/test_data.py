"""The prepare scripts: same seed, same bytes; what they write is what they say; mistakes damage nothing."""

import importlib.util
import json
import os
import shutil
import zipfile

import numpy as np
import pytest
from conftest import ROOT, run
from PIL import Image


def script(name):
    """Imports data/<name>/prepare.py."""
    spec = importlib.util.spec_from_file_location('prepare_' + name, f'{ROOT}/data/{name}/prepare.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arrays(folder):
    return {name: np.load(os.path.join(folder, name)) for name in sorted(os.listdir(folder)) if name.endswith('.npy')}


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


# toyfaces


FACES = ['data/toyfaces/prepare.py', '--image_size=32', '--n_train=40', '--n_val=4', '--n_test=12']


def test_toyfaces(tmp_path):
    run(*FACES, f'--dst={tmp_path}/a', '--workers=1')
    run(*FACES, f'--dst={tmp_path}/b', '--workers=2')
    run(*FACES, f'--dst={tmp_path}/c', '--seed=7')
    a = arrays(tmp_path / 'a')
    assert same(a, arrays(tmp_path / 'b')) and not same(a, arrays(tmp_path / 'c'))
    meta = json.load(open(tmp_path / 'a' / 'meta.json'))
    assert meta['label'] == 'multi' and len(meta['attrs']) == 15 and meta['counts'] == dict(train=40, val=4, test=12)
    assert a['train_x.npy'].shape == (40, 32, 32, 3) and a['train_y.npy'].shape == (40, 15)
    assert a['test_m.npy'].shape == (12, 15, 32, 32) and a['test_m.npy'].any((2, 3)).all()  # every region is somewhere
    assert 'train_m.npy' not in a and not [f for f in os.listdir(tmp_path / 'a') if 'tmp' in f]
    assert 'already there' in run(*FACES, f'--dst={tmp_path}/a')
    before = (tmp_path / 'a' / 'train_x.npy').stat().st_mtime_ns
    assert '--force=True' in run(*FACES, f'--dst={tmp_path}/a', '--clutter=0.5', ok=False)
    assert (tmp_path / 'a' / 'train_x.npy').stat().st_mtime_ns == before
    run(*FACES, f'--dst={tmp_path}/a', '--clutter=0.5', '--force=True')
    assert json.load(open(tmp_path / 'a' / 'meta.json'))['config']['clutter'] == 0.5


def test_toyfaces_labels_keep_their_exclusions_and_balance():
    toy = script('toyfaces')
    for balance, low in ((0.0, 0.0), (1.0, 0.08)):
        labels = np.array([toy.draw_face(i, 'train', 32, 1, balance, regions=False)[1] for i in range(300)])
        col = {name: labels[:, k] for k, name in enumerate(toy.ATTRS)}
        assert (sum(col[n] for n in ('Black_Hair', 'Blond_Hair', 'Brown_Hair', 'Gray_Hair', 'Bald')) <= 1).all()
        assert (sum(col[n] for n in ('Straight_Hair', 'Wavy_Hair', 'Bald')) <= 1).all()
        assert ((col['Mustache'] | col['Goatee']) <= col['Male']).all()  # only men have them
        assert labels.mean(0).min() >= low


def test_toyfaces_change_lies_in_the_region():
    """The same person with and without an attribute differs where the attribute's region is."""
    toy = script('toyfaces')
    for name in ('Eyeglasses', 'Rosy_Cheeks', 'Blond_Hair', 'Goatee'):
        k, inside, n = toy.ATTRS.index(name), 0, 0
        for i in range(40):
            x, y, m = toy.draw_face(i, 'test', 64)
            has = dict(zip(toy.ATTRS, y))
            if has[name] or has['Bald'] or has['Wearing_Hat'] or not has['Male']:
                continue
            y2 = y.copy()
            if name == 'Blond_Hair':
                y2[[toy.ATTRS.index(c) for c in ('Black_Hair', 'Brown_Hair', 'Gray_Hair')]] = 0
            y2[k] = 1
            change = np.abs(toy.draw_face(i, 'test', 64, label=y2)[0].astype(int) - x).sum(2)
            assert change.sum() > 0
            inside, n = inside + (change * m[k]).sum() / change.sum(), n + 1
        assert n and inside / n > 0.7, (name, inside / n)


# celeba, on images made here in the official layout


@pytest.fixture
def celeba(tmp_path):
    src, rng = tmp_path / 'src', np.random.default_rng(0)
    os.makedirs(src / 'img_align_celeba')
    attrs = script_attrs = [f'attr{k}' for k in range(36)] + ['Black_Hair', 'Blond_Hair', 'Bald', 'Male']
    names, lines, parts = [f'{i:06d}.jpg' for i in range(1, 13)], [], []
    y = rng.integers(0, 2, (12, 40))
    for i, name in enumerate(names):
        ramp = np.broadcast_to(np.linspace(0, 255, 218)[:, None, None], (218, 178, 3)).astype(np.uint8)
        Image.fromarray(np.roll(ramp, i, 2)).save(src / 'img_align_celeba' / name, quality=95)
        lines.append(name + ' ' + ' '.join('1' if v else '-1' for v in y[i]))
        parts.append(f'{name} {0 if i < 6 else 1 if i < 9 else 2}')
    (src / 'list_attr_celeba.txt').write_text('\n'.join(['12', ' '.join(script_attrs), *lines]) + '\n')
    (src / 'list_eval_partition.txt').write_text('\n'.join(parts) + '\n')
    return src, attrs, y


CELEBA = ['data/celeba/prepare.py', '--image_size=16']


def test_celeba(celeba, tmp_path):
    src, attrs, y = celeba
    run(*CELEBA, f'--src={src}', f'--dst={tmp_path}/a')
    a, meta = arrays(tmp_path / 'a'), json.load(open(tmp_path / 'a' / 'meta.json'))
    assert meta['attrs'] == attrs and meta['counts'] == dict(train=6, val=3, test=3)
    for split, rows in (('train', slice(0, 6)), ('val', slice(6, 9)), ('test', slice(9, 12))):
        assert np.array_equal(a[f'{split}_y.npy'], y[rows])
    # the centre 178 of 218 rows of a grey ramp: rows 20 to 198
    column = a['train_x.npy'][0, :, 8, 0].astype(float)
    assert abs(column.mean() - 255 / 2) < 2 and abs(column[0] - 255 * (20 + 178 / 32) / 217) < 4
    with zipfile.ZipFile(src / 'img_align_celeba.zip', 'w') as z:
        for name in sorted(os.listdir(src / 'img_align_celeba')):
            z.write(src / 'img_align_celeba' / name, f'img_align_celeba/{name}')
    shutil.rmtree(src / 'img_align_celeba')
    run(*CELEBA, f'--src={src}', f'--dst={tmp_path}/b')
    assert same(a, arrays(tmp_path / 'b'))


@pytest.mark.parametrize('name,change,says', [
    ('list_attr_celeba.txt', lambda t: t.replace('12\n', '13\n', 1), '13'),
    ('list_attr_celeba.txt', lambda t: t.rsplit('\n', 2)[0] + '\n', '11'),
    ('list_attr_celeba.txt', lambda t: t.replace(' -1', ' 5', 1), '5'),
    ('list_eval_partition.txt', lambda t: t.replace('000003.jpg', '000004.jpg', 1), '00000'),
    ('list_eval_partition.txt', lambda t: t.replace(' 2\n', ' 7\n', 1), '7')])
def test_celeba_bad_lists(celeba, tmp_path, name, change, says):
    src = celeba[0]
    (src / name).write_text(change((src / name).read_text()))
    said = run(*CELEBA, f'--src={src}', f'--dst={tmp_path}/a', ok=False)
    assert name in said and says in said
    assert not os.path.exists(tmp_path / 'a' / 'meta.json') and not list((tmp_path / 'a').glob('*.npy'))


def test_celeba_bad_images_are_skipped_and_listed(celeba, tmp_path):
    src, _, y = celeba
    (src / 'img_align_celeba' / '000002.jpg').write_bytes(b'')
    path = src / 'img_align_celeba' / '000008.jpg'
    path.write_bytes(path.read_bytes()[:300])
    run(*CELEBA, f'--src={src}', f'--dst={tmp_path}/a')
    a = arrays(tmp_path / 'a')
    assert len(a['train_x.npy']) == 5 and len(a['val_x.npy']) == 2
    assert np.array_equal(a['train_y.npy'], y[[0, 2, 3, 4, 5]])
    skipped = (tmp_path / 'a' / 'skipped.txt').read_text()
    assert '000002.jpg' in skipped and '000008.jpg' in skipped
    assert 'max_bad' in run(*CELEBA, f'--src={src}', f'--dst={tmp_path}/b', '--max_bad=1', ok=False)
    assert not os.path.exists(tmp_path / 'b' / 'meta.json')


def test_celeba_missing(tmp_path):
    assert 'list_attr_celeba.txt' in run(*CELEBA, f'--src={tmp_path}', f'--dst={tmp_path}/a', ok=False)


# toyfruit


def test_toyfruit(tmp_path):
    args = ['data/toyfruit/prepare.py', '--image_size=32', '--n_train=20', '--n_test=6']
    run(*args, f'--dst={tmp_path}/a', '--workers=1')
    run(*args, f'--dst={tmp_path}/b', '--workers=2')
    a, meta = arrays(tmp_path / 'a'), json.load(open(tmp_path / 'a' / 'meta.json'))
    assert same(a, arrays(tmp_path / 'b')) and meta['domains'] == ['apple', 'orange'] and meta['label'] == 'unpaired'
    assert a['trainA_x.npy'].shape == (20, 32, 32, 3) and a['testB_m.npy'].shape == (6, 32, 32)
    for side in 'AB':
        share = a[f'test{side}_m.npy'].mean((1, 2))
        assert 0.05 < share.min() and share.max() < 0.6
    mean = [a[f'test{side}_x.npy'][a[f'test{side}_m.npy'] == 1].mean(0) for side in 'AB']
    assert mean[1][1] > mean[0][1] + 20  # oranges have more green in them than apples


# unpaired photos


def test_unpaired_modes_and_orientation(tmp_path):
    rng = np.random.default_rng(0)
    for split in ('trainA', 'trainB', 'testA', 'testB'):
        os.makedirs(tmp_path / 'src' / split)
        for mode in ('RGB', 'L', 'CMYK', 'RGBA', 'P', '1', 'I;16'):
            pixels = rng.integers(0, 255, (20, 30), dtype=np.uint8)  # all different: copies are dropped
            image = Image.fromarray(pixels).convert('RGB')
            image = Image.fromarray(pixels.astype(np.uint16) * 256) if mode == 'I;16' else image.convert(mode)
            ext = {'CMYK': 'jpg', 'RGB': 'jpg', 'I;16': 'tif'}.get(mode, 'png')
            image.save(tmp_path / 'src' / split / f"{mode.replace(';', '')}.{ext}")
    # red above, blue below, then told to be shown turned by 180 degrees
    photo = np.zeros((40, 40, 3), np.uint8)
    photo[:20, :, 0] = photo[20:, :, 2] = 255
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(photo).save(tmp_path / 'src' / 'testA' / 'a.png', exif=exif)
    run('data/unpaired/prepare.py', f'--src={tmp_path}/src', f'--dst={tmp_path}/a', '--image_size=16', '--domains=x,y')
    a, meta = arrays(tmp_path / 'a'), json.load(open(tmp_path / 'a' / 'meta.json'))
    assert meta['domains'] == ['x', 'y'] and meta['counts'] == dict(trainA=7, trainB=7, testA=8, testB=7)
    turned = a['testA_x.npy'][sorted(os.listdir(tmp_path / 'src' / 'testA')).index('a.png')]
    assert turned[2, :, 2].min() > 200 and turned[13, :, 0].min() > 200  # blue above now
    said = run('data/unpaired/prepare.py', f'--src={tmp_path}', f'--dst={tmp_path}/b', ok=False)
    assert 'src' in said and not os.path.exists(tmp_path / 'b' / 'meta.json')
