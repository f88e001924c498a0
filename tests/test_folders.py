"""data/folders: three ways in, nobody in two splits, mistakes damage nothing, shared helpers are the same text."""

import ast
import hashlib
import json
import os
import zipfile

import numpy as np
import pytest
from conftest import ROOT, run
from PIL import Image

PREPARE = ['data/folders/prepare.py', '--image_size=8', '--workers=1']


def photo(path, colour, size=(12, 10)):
    """A photo of one colour, no two alike."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    img = Image.new('RGB', size, colour)
    img.putpixel((0, 0), tuple(hashlib.sha256(str(path).encode()).digest()[:3]))
    img.save(path)


def class_folders(src, n=20):
    """angry/ red (some in a subfolder), happy/ green, sad/ blue: n, 2n and n photos."""
    for name, colour, k in (('angry', 'red', n), ('happy', 'lime', 2 * n), ('sad', 'blue', n)):
        for i in range(k):
            photo(src / name / ('more' if name == 'angry' and i % 2 else '') / f'{i // 4}_{i % 4}.png', colour)
    return src


def pack(path, src, top=''):
    with zipfile.ZipFile(path, 'w') as z:
        for folder, _, names in os.walk(src):
            for name in names:
                full = os.path.join(folder, name)
                z.write(full, os.path.join(top, os.path.relpath(full, src)))
    return path


def load(dst):
    """-> {name: array}, meta.json; nothing else may lie there."""
    assert not [f for f in os.listdir(dst) if f.endswith('.tmp')]
    return ({f: np.load(os.path.join(dst, f)) for f in sorted(os.listdir(dst)) if f.endswith('.npy')},
            json.load(open(os.path.join(dst, 'meta.json'))))


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_class_folders(tmp_path):
    src = class_folders(tmp_path / 'mine')
    (src / 'angry' / 'notes.txt').write_text('no photo')
    said = run(*PREPARE, f'--src={src}', f'--dst={tmp_path}/a')
    assert '1 files that are not' in said and 'happy        32         4         4' in said
    a, meta = load(tmp_path / 'a')
    assert meta['dataset'] == 'mine' and meta['label'] == 'single' and meta['image_size'] == 8
    assert meta['attrs'] == ['angry', 'happy', 'sad'] and meta['exclusive'] == [meta['attrs']]
    assert meta['counts'] == dict(train=64, val=8, test=8)
    for split, per_class in (('train', [16, 32, 16]), ('val', [2, 4, 2]), ('test', [2, 4, 2])):  # stratified
        x, y = a[f'{split}_x.npy'], a[f'{split}_y.npy']
        assert y.dtype == np.uint8 and (y.sum(1) == 1).all() and y.sum(0).tolist() == per_class
        assert (x[:, 4, 4].argmax(1) == y.argmax(1)).all()  # red is angry, green happy, blue sad
    assert [n.split('/')[0] for n in meta['split']['test']] == [meta['attrs'][k] for k in a['test_y.npy'].argmax(1)]
    assert len(set(meta['split']['val'] + meta['split']['test'])) == 16
    assert meta['split']['test'] != sorted(meta['split']['test'])  # mixed: the first few rows show every class
    # neither processes nor packing change a byte; another seed does
    pack(tmp_path / 'mine.zip', src, 'mine')
    with zipfile.ZipFile(tmp_path / 'mine.zip', 'a') as z:
        z.writestr('about.txt', 'beside the folder')
    run(PREPARE[0], PREPARE[1], '--workers=2', f'--src={tmp_path}/mine.zip', f'--dst={tmp_path}/b')
    b, meta_b = load(tmp_path / 'b')
    assert same(a, b) and meta['split'] == meta_b['split'] and meta_b['dataset'] == 'mine'
    # once more: nothing to do; with other settings: only by force
    assert 'already there' in run(*PREPARE, f'--src={src}', f'--dst={tmp_path}/a')
    assert '--force=True' in run(*PREPARE, f'--src={src}', f'--dst={tmp_path}/a', '--seed=1', ok=False)
    assert same(a, load(tmp_path / 'a')[0])
    run(*PREPARE, f'--src={src}', f'--dst={tmp_path}/a', '--seed=1', '--force=True', '--classes=sad,angry',
        r'--identity=^(?:more/)?(\d+)_')
    c, meta_c = load(tmp_path / 'a')
    assert meta_c['attrs'] == ['sad', 'angry']
    assert (c['test_x.npy'][:, 4, 4].argmax(1) == 2 - 2 * c['test_y.npy'].argmax(1)).all()
    people = {os.path.basename(n).split('_')[0] for n in meta_c['split']['test']}
    assert len(people) * 4 * 2 == meta_c['counts']['test']  # whole identities: 4 photos of each class of each of them
    assert not people & {os.path.basename(n).split('_')[0] for n in meta_c['split']['val']}


def test_split_folders(tmp_path):
    src = class_folders(tmp_path / 'src' / 'train')
    class_folders(tmp_path / 'src' / 'Test', 3)
    photo(src / 'angry' / 'twin.png', 'red')
    os.link(src / 'angry' / 'twin.png', tmp_path / 'src' / 'Test' / 'sad' / 'twin.png')
    (src / 'sad' / 'broken.png').write_bytes(b'no image')
    said = run(*PREPARE, f'--src={tmp_path}/src', f'--dst={tmp_path}/a')
    assert 'split as given, val cut out of train' in said and 'note: 1 photos are in train and in test alike' in said
    a, meta = load(tmp_path / 'a')
    assert meta['attrs'] == ['angry', 'happy', 'sad'] and meta['counts'] == dict(train=73, val=8, test=13)
    assert all(n.startswith('Test/') for n in meta['split']['test'])
    assert all(n.startswith('train/') for n in meta['split']['val'])
    assert (tmp_path / 'a' / 'skipped.txt').read_text().startswith('train/sad/broken.png\t')


def test_rafd(tmp_path):
    """681 x 1024 in small: yellow where the face is, black elsewhere, so that a cut off the face is noticed."""
    face = Image.new('RGB', (68, 102))
    face.paste('yellow', (3, 14, 65, 76))
    for who in range(10):
        for k, expression in enumerate(('angry', 'happy', 'sad')):
            for angle in ('000', '045', '090'):
                face.putpixel((30, 40), (who, k, int(angle)))
                os.makedirs(tmp_path / 'up' / 'RafD', exist_ok=True)
                face.save(tmp_path / 'up' / 'RafD' / f'Rafd{angle}_{who:02d}_Caucasian_female_{expression}_frontal.png')
    run(*PREPARE, f'--src={tmp_path}/up/RafD', f'--dst={tmp_path}/a')
    a, meta = load(tmp_path / 'a')
    assert meta['label'] == 'single' and meta['attrs'] == ['angry', 'happy', 'sad']
    assert meta['counts'] == dict(train=48, val=6, test=6)  # 8, 1 and 1 people, 3 expressions, 2 of 3 angles
    assert a['test_y.npy'].sum(0).tolist() == [2, 2, 2] and a['train_x.npy'][..., 0].min() > 240  # all face
    who = {s: {n.split('_')[1] for n in meta['split'][s]} for s in ('val', 'test')}
    assert len(who['val']) == len(who['test']) == 1 and not who['val'] & who['test']
    run(*PREPARE, f'--src={tmp_path}/up/RafD', f'--dst={tmp_path}/b', '--angles=090', '--classes=sad,happy')
    assert load(tmp_path / 'b')[1]['counts'] == dict(train=16, val=2, test=2)
    for args, says in ((['--angles=90'], '045,090'), (['--gazes=left'], 'no class, wanted at least two'),
                       ([f'--src={tmp_path}/up'], f'too high, try --src={tmp_path}/up/RafD')):
        assert says in run(*PREPARE, f'--src={tmp_path}/up/RafD', f'--dst={tmp_path}/c', *args, ok=False)
    (tmp_path / 'up' / 'RafD' / 'cover.png').write_bytes(b'')
    assert "'cover.png'" in run(*PREPARE, f'--src={tmp_path}/up/RafD', f'--dst={tmp_path}/c', ok=False)
    assert not os.path.exists(tmp_path / 'c')


@pytest.fixture
def table(tmp_path):
    """12 photos in photos/, the rows of their table, two attributes on one photo that exclude each other."""
    rows = []
    for i in range(12):
        photo(tmp_path / 'src' / 'photos' / f'{i}.png', (200 * (i % 2), 200 * (i % 3 == 0), 0))
        rows.append(f'photos/{i}.png,{i % 2},{int(i % 3 == 0)},{int(i == 5)}')
    return tmp_path / 'src', ['file,red,green,odd', *rows]


def test_table(table, tmp_path):
    src, rows = table
    (src / 'labels.csv').write_text('\n'.join(rows) + '\n')
    said = run(*PREPARE, f'--src={src}', f'--dst={tmp_path}/a', '--csv=labels.csv', '--exclusive=red,odd;green,odd')
    assert 'note: 1 of 12 photos have more than one of red,odd' in said
    a, meta = load(tmp_path / 'a')
    assert meta['label'] == 'multi' and meta['attrs'] == ['red', 'green', 'odd']
    assert meta['exclusive'] == [['red', 'odd'], ['green', 'odd']] and meta['counts'] == dict(train=10, val=1, test=1)
    for s in ('train', 'val', 'test'):
        assert ((a[f'{s}_x.npy'][:, 4, 4, :2] > 100) == a[f'{s}_y.npy'][:, :2]).all()
    (src / 'labels.csv').write_text('\n'.join([rows[0], *rows[:0:-1]]) + '\n')  # the order of the rows says nothing
    run(*PREPARE, f'--src={src}', f'--dst={tmp_path}/d', '--csv=labels.csv')
    assert same(a, load(tmp_path / 'd')[0])
    # -1/1, a spreadsheet's line ends and mark, ./, columns in the file's own order, a given split: from a zip
    given = ['train'] * 8 + ['test'] * 4
    lines = ['./' + r.replace(',0', ',-1') + f',{s},{i // 4}' for i, (r, s) in enumerate(zip(rows[1:], given))]
    (src / 'labels.csv').write_bytes('\r\n'.join(['\ufefffile,red,green,odd,split,identity', *lines[::-1]]).encode())
    pack(tmp_path / 'set.zip', src, 'top')
    said = run(*PREPARE, f'--src={tmp_path}/set.zip', f'--dst={tmp_path}/b', '--csv=labels.csv')
    run(*PREPARE, f'--src={src}', f'--dst={tmp_path}/c', '--csv=labels.csv')
    assert 'val cut out of train' in said and 'identities: 1 train, 1 val, 1 test' in said
    b, meta = load(tmp_path / 'b')
    assert same(b, load(tmp_path / 'c')[0]) and meta['split'] == load(tmp_path / 'c')[1]['split']
    assert meta['counts'] == dict(train=4, val=4, test=4) and meta['attrs'] == ['red', 'green', 'odd']
    assert sorted(meta['split']['test']) == sorted(f'photos/{i}.png' for i in range(8, 12))
    assert (np.concatenate([b[f'{s}_y.npy'] for s in ('train', 'val', 'test')]).sum(0) == [6, 4, 1]).all()


@pytest.mark.parametrize('change,flags,says', [
    (lambda r: r, ['--csv=none.csv'], '--csv=none.csv: no such file'),
    (lambda r: r + [r[3]], [], "line 14: 'photos/2.png' was listed before"),
    (lambda r: r + ['photos/x.png,0,0,0'], [], "1 of 13 files are not in"),
    (lambda r: r[:2] + [r[2].replace(',1', ',2')] + r[3:], [], "line 3: red is '2'"),
    (lambda r: r[:2] + [r[2].replace(',1', ',-1')] + r[3:], [], 'both 0 and -1'),
    (lambda r: r[:2] + [r[2] + ',1'] + r[3:], [], 'line 3 has 4 values, wanted 3'),
    (lambda r: r[1:], [], 'line 1 should be file,attr1'),
    (lambda r: ['file,red,green,red'] + r[1:], [], "more than once: 'red'"),
    (lambda r: r, ['--exclusive=red,gren'], "'red,gren': wants two or more of red,green,odd"),
    (lambda r: ['file,red,green,split'] + r[1:], [], "split is '0'"),
    (lambda r: r[:1], [], 'no rows')])
def test_table_mistakes(table, tmp_path, change, flags, says):
    src, rows = table
    (src / 'labels.csv').write_text('\n'.join(change(rows)) + '\n')
    assert says in run(*PREPARE, f'--src={src}', f'--dst={tmp_path}/a', '--csv=labels.csv', *flags, ok=False)
    assert not os.path.exists(tmp_path / 'a')


def test_folder_mistakes(tmp_path):
    src = class_folders(tmp_path / 'outer' / 'src', 4)
    for i in range(2):
        photo(tmp_path / 'few' / 'a' / f'{i}.png', 'red'), photo(tmp_path / 'few' / 'b' / f'{i}.png', 'red')
        photo(tmp_path / 'one' / 'a' / f'{i}.png', 'red'), photo(tmp_path / 'none' / f'{i}.png', 'red')
        photo(tmp_path / 'comma' / 'a,b' / f'{i}.png', 'red'), photo(tmp_path / 'comma' / 'c' / f'{i}.png', 'red')
        photo(tmp_path / 'notrain' / 'val' / 'a' / f'{i}.png', 'red'), photo(tmp_path / 'mix' / 'a' / f'{i}.png', 'red')
        photo(tmp_path / 'mix' / 'train' / f'{i}.png', 'red'), photo(tmp_path / 'mix' / 'test' / f'{i}.png', 'red')
    cases = [(tmp_path / 'outer', [], f'one folder too high, try --src={src}'),
             (tmp_path / 'one', [], 'only one class'),
             (tmp_path / 'none', [], 'no class folders'), (tmp_path / 'nowhere', [], 'no such folder or zip'),
             (tmp_path / 'few', [], "train would have no photo of 'a', 'b'"), (tmp_path / 'comma', [], "'a,b'"),
             (tmp_path / 'notrain', [], 'no train folder'), (tmp_path / 'mix', [], 'look like splits'),
             (src, ['--classes=angry,hapy'], "no 'hapy'"), (src, ['--classes=sad'], 'at least two'),
             (src, ['--identity=(x)'], 'no match in 16 of 16'), (src, ['--identity=x'], 'one group'),
             (src, ['--identity=('], 'not a regular expression'), (src, ['--crop=1,2'], 'wants x,y,side'),
             (src, ['--val_share=0.5', '--test_share=0.5'], 'less than 1 together'),
             (src, ['--exclusive=a,b'], '--csv')]
    for folder, flags, says in cases:
        assert says in run(*PREPARE, f'--src={folder}', f'--dst={tmp_path}/a', *flags, ok=False), (folder, flags)
    os.makedirs(src / 'bored')
    assert "no photos in the class folder 'bored'" in run(*PREPARE, f'--src={src}', f'--dst={tmp_path}/a', ok=False)
    assert not os.path.exists(tmp_path / 'a')
    run(*PREPARE, f'--src={src}', f'--dst={tmp_path}/a', '--classes=angry,happy,sad')


PHOTOS = {'read_rgb', 'start_worker', 'in_order', 'few', 'open_zip', 'contents', 'Rows', 'stop_if_there', 'FORMATS',
          'MAX_BYTES', 'UPRIGHT'}
DRAWN = {'lerp', 'hsv', 'pick', 'oval', 'Canvas', 'start_worker', 'temporary'}


@pytest.mark.parametrize('one,other,common,own_ways', [
    ('folders', 'celeba', PHOTOS, {'decode', 'find_images', 'SPLITS'}),
    ('folders', 'unpaired', PHOTOS, {'decode', 'find_images', 'SPLITS'}),
    ('toyexpressions', 'toyfaces', DRAWN, {'draw_face', 'paint', 'ATTRS', 'HAIR', 'SKIN', 'FRAMES', 'EYES'}),
    ('toyexpressions', 'celeba', {'stop_if_there'}, {'start_worker', 'SPLITS'})])
def test_helpers_of_one_name_are_the_same_text(one, other, common, own_ways):
    """Functions, classes and constants that the standalone data scripts have in common, but for what is their own."""
    def definitions(name):
        with open(f'{ROOT}/data/{name}/prepare.py') as f:
            text = f.read().split('# ' + '-' * 77)[3]
        return {getattr(n, 'name', None) or n.targets[0].id: ast.get_source_segment(text, n)
                for n in ast.parse(text).body
                if isinstance(n, (ast.FunctionDef, ast.ClassDef)) or isinstance(n, ast.Assign) and len(n.targets) == 1
                and isinstance(n.targets[0], ast.Name)}

    mine, theirs = definitions(one), definitions(other)
    shared = (mine.keys() & theirs.keys()) - own_ways
    assert common <= shared
    for name in shared:
        assert mine[name] == theirs[name], f'{name} differs between data/{one} and data/{other}'
