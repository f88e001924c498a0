"""data/celeba, data/folders, data/unpaired: every kind of input gives the arrays that it should."""

import hashlib
import json
import os
import shutil

import numpy as np
from conftest import run
from PIL import Image

CELEBA, FOLDERS, UNPAIRED = (f'data/{name}/prepare.py' for name in ('celeba', 'folders', 'unpaired'))


def photo(path, colour):
    """A photo of one colour, no two alike."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    img = Image.new('RGB', (12, 10), colour)
    img.putpixel((0, 0), tuple(hashlib.sha256(str(path).encode()).digest()[:3]))
    img.save(path)


def class_folders(src, n=10):
    """angry/ red (some in a subfolder), happy/ green, sad/ blue: n, 2n and n photos, 2 of each person in each."""
    for name, colour, k in (('angry/', 'red', n), ('happy/', 'lime', 2 * n), ('sad/', 'blue', n)):
        for i in range(k):
            photo(src / (name + 'more' * (colour == 'red' and i % 2)) / f'{i // 2}_{i}.png', colour)
    return src


def pack(path, src):
    return shutil.make_archive(path.with_suffix(''), 'zip', src.parent, src.name)


def prepare(script, src, dst, *args):
    """-> {name: array}, meta.json, what was printed; all else in dst must be arrays."""
    said = run(script, f'--src={src}', f'--dst={dst}', '--image_size=8', *args)
    names = set(os.listdir(dst)) - {'meta.json', 'skipped.txt'}
    return {name: np.load(dst / name) for name in names}, json.loads((dst / 'meta.json').read_text()), said


def same(a, b):
    return a.keys() == b.keys() and all(map(np.array_equal, a.values(), (b[k] for k in a)))


def test_celeba_and_damaged_photos(tmp_path):
    src, attrs = tmp_path / 'src', [f'attr{k}' for k in range(38)] + ['Straight_Hair', 'Wavy_Hair']
    images, names, y = src / 'img_align_celeba', [f'{i}.jpg' for i in range(12)], np.arange(480).reshape(12, 40) % 7 % 2
    os.makedirs(images)
    for name in names:
        Image.linear_gradient('L').resize((178, 218)).convert('RGB').save(images / name)
    rows = [f'{name} {" ".join("1" if v else "-1" for v in row)}\n' for name, row in zip(names, y)]
    (src / 'list_attr_celeba.txt').write_text(f'12\n{" ".join(attrs)}\n{"".join(rows)}')
    (src / 'list_eval_partition.txt').write_text(''.join(f'{i}.jpg {0 if i < 6 else 1 + i % 2}\n' for i in range(12)))
    a, meta, _ = prepare(CELEBA, src, tmp_path / 'a')
    assert meta['attrs'] == attrs and meta['exclusive'] == [['Straight_Hair', 'Wavy_Hair']] and meta['label'] == 'multi'
    assert meta['counts'] == dict(train=6, val=3, test=3) and a['train_y.npy'].dtype == np.uint8
    assert all((a[f'{s}_y.npy'] == rows).all() for s, rows in (('train', y[:6]), ('val', y[6::2]), ('test', y[7::2])))
    img = Image.open(images / '0.jpg').crop((0, 20, 178, 198))  # the centre 178, one resize
    assert np.array_equal(a['train_x.npy'][0], img.resize((8, 8), Image.Resampling.BICUBIC))
    # the subfolders of the download, the comma-separated lists, the zip: the same bytes
    os.makedirs(src / 'Eval')
    for name, to, head in (('list_attr_celeba', '', ''), ('list_eval_partition', 'Eval/', 'partition\n')):
        text = (src / f'{name}.txt').rename(src / name).read_text().removeprefix('12\n').replace(' ', ',')
        (src / f'{to}{name}.csv').write_text(f'image_id,{head}{text}')
    zipped = pack(src / 'img_align_celeba.zip', images)
    assert same(a, prepare(CELEBA, src, tmp_path / 'b')[0])
    # damaged photos are skipped and listed, bombs refused
    os.remove(zipped)
    (images / '2.jpg').write_bytes(b'')
    (images / '6.jpg').write_bytes((images / '6.jpg').read_bytes()[:300])
    Image.new('1', (10000, 10000)).save(images / '9.jpg', 'png')  # 100 megapixels in 12 kB
    c, meta, said = prepare(CELEBA, src, tmp_path / 'c')
    assert meta['counts'] == dict(train=5, val=2, test=2) and '3 photos could not be read' in said
    assert np.array_equal(c['train_y.npy'], y[[0, 1, 3, 4, 5]]) and np.array_equal(c['test_y.npy'], y[[7, 11]])
    skipped = dict(line.split('\t') for line in (tmp_path / 'c/skipped.txt').read_text().splitlines())
    assert list(skipped) == ['2.jpg', '6.jpg', '9.jpg'] and 'bomb' in skipped['9.jpg']


def test_class_folders(tmp_path):
    src = class_folders(tmp_path / 'mine')
    (src / 'angry' / 'notes.txt').write_text('no photo')
    os.makedirs(tmp_path / 'a/.prepare.tmp/left')  # of a run that was killed
    a, meta, said = prepare(FOLDERS, src, tmp_path / 'a')
    assert 'happy        16         2         2' in said and meta['counts'] == dict(train=32, val=4, test=4)
    assert meta['dataset'] == 'mine' and meta['label'] == 'single' and meta['image_size'] == 8
    assert meta['attrs'] == ['angry', 'happy', 'sad'] and meta['exclusive'] == [meta['attrs']]
    for split, n in (('train', 8), ('val', 1), ('test', 1)):  # stratified
        x, y = a[f'{split}_x.npy'], a[f'{split}_y.npy']
        assert y.sum(0).tolist() == [n, 2 * n, n] and (y == np.eye(3)[x[:, 4, 4].argmax(1)]).all()  # red is angry, ...
    test = [n.split('/')[0] for n in meta['split']['test']]
    assert test == [meta['attrs'][k] for k in a['test_y.npy'].argmax(1)] and test != sorted(test)  # mixed
    b, meta_b, _ = prepare(FOLDERS, pack(tmp_path / 'mine.zip', src), tmp_path / 'b')
    assert same(a, b) and meta['split'] == meta_b['split'] and meta_b['dataset'] == 'mine'
    # once more: nothing to do; other settings by force; whole people in a split
    assert 'already there' in prepare(FOLDERS, src, tmp_path / 'a')[2]
    flags = '--seed=1', '--force=True', '--classes=sad,angry', r'--identity=^(?:more/)?(\d+)_'
    c, meta, _ = prepare(FOLDERS, src, tmp_path / 'a', *flags)
    assert meta['attrs'] == ['sad', 'angry'] and (c['test_x.npy'][:, 4, 4, [2, 0]] // 250 == c['test_y.npy']).all()
    people = {s: {os.path.basename(n).split('_')[0] for n in meta['split'][s]} for s in ('val', 'test')}
    assert not people['val'] & people['test'] and all(4 * len(who) == meta['counts'][s] for s, who in people.items())


def test_split_folders(tmp_path):
    src = class_folders(tmp_path / 'src' / 'train')
    class_folders(tmp_path / 'src' / 'Test', 3)
    shutil.copy(src / 'sad/0_0.png', tmp_path / 'src/Test/sad/twin.png')
    (src / 'sad' / 'broken.png').write_bytes(b'no image')
    _, meta, said = prepare(FOLDERS, tmp_path / 'src', tmp_path / 'a')
    assert 'note: 1 photos are in train and in test alike' in said and meta['attrs'] == ['angry', 'happy', 'sad']
    assert meta['counts'] == dict(train=36, val=4, test=13)  # val is cut out of train
    assert {n.partition('/')[0] for n in meta['split']['test']} == {'Test'}
    assert (tmp_path / 'a' / 'skipped.txt').read_text().startswith('train/sad/broken.png\t')


def test_rafd(tmp_path):
    """681 x 1024 in small: yellow where the face is, black elsewhere, so that a cut off the face is noticed."""
    face = Image.new('RGB', (68, 102))
    face.paste('yellow', (3, 14, 65, 76))
    for i in range(90):
        who, expression, angle = i // 9, ('angry', 'happy', 'sad')[i // 3 % 3], ('000', '045', '090')[i % 3]
        face.putpixel((30, 40), (who, i % 9, 0))
        face.save(tmp_path / f'Rafd{angle}_{who:02d}_Caucasian_female_{expression}_frontal.png')
    a, meta, _ = prepare(FOLDERS, tmp_path, tmp_path / 'a')
    assert meta['label'] == 'single' and meta['attrs'] == ['angry', 'happy', 'sad']
    assert meta['counts'] == dict(train=48, val=6, test=6)  # 8, 1 and 1 people, 3 expressions, 2 of 3 angles
    assert a['test_y.npy'].sum(0).tolist() == [2, 2, 2] and a['train_x.npy'][..., 0].min() > 240  # all face
    val, test = ({n.split('_')[1] for n in meta['split'][s]} for s in ('val', 'test'))
    assert len(val) == len(test) == 1 and val != test  # 6 photos are all there are of one person
    b = prepare(FOLDERS, tmp_path, tmp_path / 'b', '--angles=090', '--classes=sad,happy')
    assert b[1]['counts'] == dict(train=16, val=2, test=2)


def test_table(tmp_path):
    src, rows = tmp_path / 'src', []
    for i in range(12):
        photo(src / 'photos' / f'{i}.png', (200 * (i % 2), 200 * (i % 3 == 0), 0))
        rows.append(f'photos/{i}.png,{i % 2},{int(i % 3 == 0)}')
    (src / 'labels.csv').write_text('\n'.join(['file,red,green', *rows]) + '\n')
    a, meta, _ = prepare(FOLDERS, src, tmp_path / 'a', '--csv=labels.csv', '--exclusive=red,green')
    assert meta['label'] == 'multi' and meta['attrs'] == ['red', 'green'] and meta['exclusive'] == [['red', 'green']]
    assert meta['counts'] == dict(train=10, val=1, test=1)
    assert all(((a[f'{s}_x.npy'][:, 4, 4, :2] > 100) == a[f'{s}_y.npy']).all() for s in meta['counts'])
    # -1/1, a spreadsheet's line ends and mark, ./, columns in the file's own order, a given split: from a zip
    lines = [f'./{r.replace(",0", ",-1")},{"train" if i < 8 else "test"},{i // 4}' for i, r in enumerate(rows)]
    (src / 'labels.csv').write_bytes('\r\n'.join(['\ufefffile,red,green,split,identity', *lines[::-1]]).encode())
    b, meta, said = prepare(FOLDERS, pack(tmp_path / 'set.zip', src), tmp_path / 'b', '--csv=labels.csv')
    assert "{'train': 1, 'val': 1, 'test': 1}" in said and meta['counts'] == dict(train=4, val=4, test=4)
    assert sorted(meta['split']['test']) == sorted(f'photos/{i}.png' for i in range(8, 12))
    assert sum(b[f'{s}_y.npy'].sum(0) for s in ('train', 'val', 'test')).tolist() == [6, 4]
    assert same(b, prepare(FOLDERS, src, tmp_path / 'c', '--csv=labels.csv')[0])


def test_unpaired_modes_orientations_twins_shapes(tmp_path):
    src, rng, want = tmp_path / 'apple2orange', np.random.default_rng(0), {}
    upright = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF orientation -> PIL.Image.Transpose
    for split in ('trainA', 'trainB', 'testA', 'testB'):
        os.makedirs(src / split / 'deep')
        grey, rgb = rng.integers(0, 256, (8, 8), dtype=np.uint8), rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        alpha, three = np.where(grey < 128, 0, 255).astype(np.uint8)[..., None], np.dstack([grey] * 3)
        cmyk = Image.fromarray(np.dstack([rgb, grey]), 'CMYK')
        photos = [('a_L.png', grey, three), ('b_16.tif', grey.astype(np.uint16) * 257, three),  # by name
                  ('c_F.tif', grey.astype(np.float32) / 255, three), ('deep/CMYK.tif', cmyk, cmyk.convert('RGB')),
                  ('e_RGBA.png', np.dstack([rgb, alpha]), np.where(alpha, rgb, 255))]
        for o, turn in upright.items():
            photos.append((f'o{o}.png', rgb, rgb if turn is None else Image.fromarray(rgb).transpose(turn)))
        for i, (name, pixels, shown) in enumerate(photos):
            exif = Image.Exif()
            exif[0x0112] = int(name[1]) if name[0] == 'o' else 1
            (pixels if pixels is cmyk else Image.fromarray(pixels)).save(src / split / name, exif=exif)
            want[split, i] = np.asarray(shown)
        shutil.copy(src / split / 'o3.png', src / split / 'o3_twin.png')  # left out
        Image.fromarray(np.repeat([[255, 0, 255]] * 8, 8, axis=1).astype(np.uint8)).save(src / split / 'wide.png')
    a, meta, said = prepare(UNPAIRED, src, tmp_path / 'a')
    assert meta['label'] == 'unpaired' and meta['domains'] == ['apple', 'orange'] and '4 photos left out' in said
    assert set(meta['counts'].values()) == {14} and all((a[f'{s}_x.npy'][i] == x).all() for (s, i), x in want.items())
    b, meta, _ = prepare(UNPAIRED, pack(tmp_path / 'z.zip', src), tmp_path / 'b', '--domains=x,z', '--fit=crop')
    assert meta['dataset'] == 'apple2orange' and meta['domains'] == ['x', 'z']
    for name in a:  # the last: its centre square, or squashed
        assert (a[name][:13] == b[name][:13]).all() and b[name][13].max() == 0 and a[name][13, :, 0].min() > 200
