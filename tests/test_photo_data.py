"""data/celeba, data/folders, data/unpaired: every kind of input gives the arrays that it should."""

import ast
import hashlib
import json
import os
import shutil
import unicodedata
import zipfile

import numpy as np
import pytest
from conftest import ROOT, run
from PIL import Image

CELEBA = 'data/celeba/prepare.py'
FOLDERS = 'data/folders/prepare.py'
UNPAIRED = 'data/unpaired/prepare.py'
UNPAIRED_SPLITS = ('trainA', 'trainB', 'testA', 'testB')


def photo(path, colour):
    """A photo of one colour, but for one pixel: no two are alike."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    image = Image.new('RGB', (12, 10), colour)
    digest = hashlib.sha256(os.fsencode(path)).digest()
    image.putpixel((0, 0), tuple(digest[:3]))
    image.save(path)


def class_folders(src, n=10):
    """angry/ red (some in a subfolder), happy/ green, sad/ blue: n, 2n and n photos, two of each person."""
    for i in range(2 * n):
        name = f'{i // 2}_{i}.png'
        photo(src / 'happy' / name, 'lime')
        if i < n:
            photo(src / 'sad' / name, 'blue')
            photo(src / 'angry' / ('more' if i % 2 else '') / name, 'red')
    return src


def pack(path, src):
    return shutil.make_archive(path.with_suffix(''), 'zip', src.parent, src.name)


def prepare(script, src, dst, *args, **options):
    """-> {name: array}, meta.json, what was printed; all else in dst must be arrays."""
    said = run(script, f'--src={src}', f'--dst={dst}', '--image_size=8', *args, **options)
    arrays = {}
    for name in os.listdir(dst):
        if name not in ('meta.json', 'skipped.txt'):
            arrays[name] = np.load(dst / name)
    return arrays, json.loads((dst / 'meta.json').read_text()), said


def snapshot(folder):
    """{name in folder: what is in it, None for a folder}"""
    files = {}
    for path in folder.rglob('*'):
        files[str(path.relative_to(folder))] = path.read_bytes() if path.is_file() else None
    return files


def same(a, b):
    if a.keys() != b.keys():
        return False
    return all(np.array_equal(a[name], b[name]) for name in a)


def test_functions_of_one_name_are_the_same_text():
    own = {'cut'}
    kinds = [('celeba', 'folders', 10), ('celeba', 'unpaired', 10), ('toyfaces', 'toyfruit', 3)]
    for *names, at_least in kinds:
        functions = []
        for name in names:
            with open(f'{ROOT}/data/{name}/prepare.py', encoding='utf-8') as file:
                source = file.read()
            lines = source.splitlines()
            found = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
            texts = {}
            for node in found:
                texts[node.name] = lines[node.lineno - 1:node.end_lineno]
            functions.append(texts)
        a, b = functions
        shared = a.keys() & b.keys() - own - {'draw_rows'}
        assert len(shared) >= at_least
        assert [name for name in shared if a[name] != b[name]] == []


# celeba
@pytest.fixture(scope='module')
def celeba(tmp_path_factory):
    """12 photos, a gradient each, 40 attributes -> the folder of the download, labels, the arrays made of it."""
    src = tmp_path_factory.mktemp('celeba') / 'src'
    os.makedirs(src / 'img_align_celeba')
    y = np.arange(480).reshape(12, 40) % 7 % 2
    rows = []
    for i in range(12):
        gradient = Image.linear_gradient('L').resize((178, 218))
        gradient.convert('RGB').save(src / f'img_align_celeba/{i}.jpg')
        values = ' '.join(str(2 * value - 1) for value in y[i])
        rows.append(f'{i}.jpg {values}')
    attrs = [f'attr{k}' for k in range(38)] + ['Straight_Hair', 'Wavy_Hair']
    lines = ['12', ' '.join(attrs), *rows, '']
    (src / 'list_attr_celeba.txt').write_text('\n'.join(lines))
    # 0 to 5 are train, then val and test by turns.
    lines = [f'{i}.jpg {0 if i < 6 else 1 + i % 2}\n' for i in range(12)]
    (src / 'list_eval_partition.txt').write_text(''.join(lines))
    return src, attrs, y, prepare(CELEBA, src, src.parent / 'made')


def test_celeba_pixels_labels_and_split(celeba):
    src, attrs, y, (arrays, meta, _) = celeba
    assert meta['attrs'] == attrs
    assert meta['exclusive'] == [['Straight_Hair', 'Wavy_Hair']]
    assert meta['label'] == 'multi'
    assert meta['counts'] == dict(train=6, val=3, test=3)
    assert np.array_equal(arrays['train_y.npy'], y[:6])
    assert np.array_equal(arrays['val_y.npy'], y[6::2])
    assert np.array_equal(arrays['test_y.npy'], y[7::2])
    assert arrays['train_y.npy'].dtype == np.uint8
    # The centre 178 px, resized once
    image = Image.open(src / 'img_align_celeba/0.jpg').crop((0, 20, 178, 198))
    image = image.resize((8, 8), Image.Resampling.BICUBIC)
    assert np.array_equal(arrays['train_x.npy'][0], image)


def test_celeba_as_csv_in_a_zip_nested_crlf(celeba, tmp_path):
    src, _, _, (arrays, _, _) = celeba
    for name, folder, header in (('list_attr_celeba', '', ''), ('list_eval_partition', 'Eval/', 'partition\n')):
        text = header + (src / f'{name}.txt').read_text().removeprefix('12\n')
        os.makedirs(tmp_path / 'src' / folder, exist_ok=True)
        text = '\ufeffimage_id,' + text.replace(' ', ',').replace('\n', '\r\n')
        (tmp_path / f'src/{folder}{name}.csv').write_bytes(text.encode())
    nested = tmp_path / 'src/img_align_celeba/img_align_celeba'
    shutil.copytree(src / 'img_align_celeba', nested)
    assert same(arrays, prepare(CELEBA, tmp_path / 'src', tmp_path / 'a')[0])
    pack(tmp_path / 'src/img_align_celeba.zip', nested)
    shutil.rmtree(nested)
    assert same(arrays, prepare(CELEBA, tmp_path / 'src', tmp_path / 'b')[0])


def test_celeba_damaged_photos_are_left_out_and_named(celeba, tmp_path):
    src, _, y, (arrays, _, _) = celeba
    src = shutil.copytree(src, tmp_path / 'src')
    images = src / 'img_align_celeba'
    (images / '2.jpg').write_bytes(b'')
    os.truncate(images / '6.jpg', 300)
    # 100 megapixels in 12 kB
    Image.new('1', (10000, 10000)).save(images / '9.jpg', 'png')
    less, meta, said = prepare(CELEBA, src, tmp_path / 'a', '--max_bad=3')
    assert meta['counts'] == dict(train=5, val=2, test=2)
    left = [0, 1, 3, 4, 5]
    assert np.array_equal(less['train_x.npy'], arrays['train_x.npy'][left])
    assert np.array_equal(less['train_y.npy'], y[left])
    assert np.array_equal(less['test_y.npy'], y[[7, 11]])
    assert '3 photos could not be read' in said
    lines = (tmp_path / 'a/skipped.txt').read_text().splitlines()
    names = [line.partition('\t')[0] for line in lines]
    assert [os.path.basename(name) for name in names] == ['2.jpg', '6.jpg', '9.jpg']
    assert 'bomb' in lines[2]
    # One more than is allowed
    said = run(CELEBA, f'--src={src}', f'--dst={tmp_path}/b', '--image_size=8', '--max_bad=2', ok=False)
    assert '--max_bad=2' in said
    assert os.listdir(tmp_path / 'b') == []


# class folders
def test_class_folders(tmp_path):
    src = class_folders(tmp_path / 'mine')
    (src / 'angry' / 'notes.txt').write_text('no photo')
    # Of a run that was killed
    os.makedirs(tmp_path / 'a/.prepare.tmp/left')
    arrays, meta, said = prepare(FOLDERS, src, tmp_path / 'a')
    assert meta['attrs'] == ['angry', 'happy', 'sad']
    assert meta['exclusive'] == [meta['attrs']]
    assert meta['label'] == 'single'
    assert meta['counts'] == dict(train=32, val=4, test=4)
    assert 'happy        16         2         2' in said
    for split in meta['counts']:
        # The colours are red, green, blue.
        assert np.array_equal(arrays[f'{split}_x.npy'][:, 4, 4] // 250, arrays[f'{split}_y.npy'])
    for split, names in meta['split'].items():
        rows = [meta['attrs'].index(name.partition('/')[0]) for name in names]
        assert arrays[f'{split}_y.npy'].argmax(1).tolist() == rows
    # A zip of it
    again, meta_zip, _ = prepare(FOLDERS, pack(tmp_path / 'mine.zip', src), tmp_path / 'b')
    assert same(arrays, again)
    assert meta_zip['split'] == meta['split']
    assert meta_zip['dataset'] == meta['dataset'] == 'mine'


def test_classes_identity_and_a_set_that_is_there(tmp_path):
    src = class_folders(tmp_path / 'mine')
    prepare(FOLDERS, src, tmp_path / 'a')
    assert 'already there' in prepare(FOLDERS, src, tmp_path / 'a')[2]
    flags = '--seed=1', '--force=True', '--classes=sad,angry', r'--identity=^(?:more/)?(\d+)_'
    arrays, meta, _ = prepare(FOLDERS, src, tmp_path / 'a', *flags)
    assert meta['attrs'] == ['sad', 'angry']
    blue_and_red = arrays['test_x.npy'][:, 4, 4, [2, 0]]
    assert np.array_equal(blue_and_red // 250, arrays['test_y.npy'])
    people = {}
    for split in ('val', 'test'):
        names = [os.path.basename(name) for name in meta['split'][split]]
        people[split] = {name.split('_')[0] for name in names}
        # Whole people: two photos in each class
        assert meta['counts'][split] == 4 * len(people[split]) > 0
    assert not people['val'] & people['test']


def test_split_folders(tmp_path):
    src = class_folders(tmp_path / 'src' / 'train')
    class_folders(tmp_path / 'src' / 'Test', 3)
    shutil.copy(src / 'sad/0_0.png', tmp_path / 'src/Test/sad/twin.png')
    (src / 'sad' / 'broken.png').write_bytes(b'no image')
    _, meta, said = prepare(FOLDERS, tmp_path / 'src', tmp_path / 'a')
    assert 'note: 1 photos are in train and in test alike' in said
    assert meta['attrs'] == ['angry', 'happy', 'sad']
    # val is cut out of train.
    assert meta['counts'] == dict(train=36, val=4, test=13)
    assert {name.partition('/')[0] for name in meta['split']['val']} == {'train'}
    assert {name.partition('/')[0] for name in meta['split']['test']} == {'Test'}
    assert (tmp_path / 'a' / 'skipped.txt').read_text().startswith('train/sad/broken.png\t')


def test_one_damaged_photo_among_many_is_named(tmp_path):
    """More photos than are decoded in one go: none is lost, none is in another's place."""
    for i in range(600):
        photo(tmp_path / f'src/{"ab"[i % 2]}/{i}.png', (i % 2 * 255, i // 16 * 6, i % 16 * 16))
    os.truncate(tmp_path / 'src/b/77.png', 60)
    arrays, meta, said = prepare(FOLDERS, tmp_path / 'src', tmp_path / 'a', '--fit=squash')
    assert 'b/77.png' in said
    assert (tmp_path / 'a/skipped.txt').read_text().startswith('b/77.png\t')
    assert sum(meta['counts'].values()) == 599
    for split in ('val', 'test'):
        shown = arrays[f'{split}_x.npy'][:, 4, 4].tolist()
        for name, pixel in zip(meta['split'][split], shown):
            i = int(name[2:-4])
            assert pixel == [i % 2 * 255, i // 16 * 6, i % 16 * 16]


def test_rafd(tmp_path):
    """681 x 1024 in small: yellow where the face is, black elsewhere: a cut off the face is noticed."""
    face = Image.new('RGB', (68, 102))
    face.paste('yellow', (3, 14, 65, 76))
    for i in range(90):
        expression = ('angry', 'happy', 'sad')[i // 3 % 3]
        angle = ('000', '045', '090')[i % 3]
        face.putpixel((30, 40), (i // 9, i % 9, 0))
        face.save(tmp_path / f'Rafd{angle}_{i // 9:02d}_Caucasian_female_{expression}_frontal.png')
    arrays, meta, _ = prepare(FOLDERS, tmp_path, tmp_path / 'a')
    assert meta['label'] == 'single'
    assert meta['attrs'] == ['angry', 'happy', 'sad']
    # 8, 1 and 1 people, 3 expressions, 2 of 3 angles
    assert meta['counts'] == dict(train=48, val=6, test=6)
    assert arrays['test_y.npy'].sum(0).tolist() == [2, 2, 2]
    assert arrays['train_x.npy'][..., 0].min() > 240
    val = {name.split('_')[1] for name in meta['split']['val']}
    test = {name.split('_')[1] for name in meta['split']['test']}
    assert len(val) == len(test) == 1
    assert val != test
    meta = prepare(FOLDERS, tmp_path, tmp_path / 'b', '--angles=090', '--classes=sad,happy')[1]
    assert meta['counts'] == dict(train=16, val=2, test=2)


# a table
@pytest.fixture(scope='module')
def table(tmp_path_factory):
    """12 photos, red, green or both, and labels.csv that says so -> the folder, the rows, the arrays."""
    src = tmp_path_factory.mktemp('table') / 'src'
    rows = []
    for i in range(12):
        red = i % 2
        green = int(i % 3 == 0)
        photo(src / f'photos/{i}.png', (200 * red, 200 * green, 0))
        rows.append(f'photos/{i}.png,{red},{green}')
    (src / 'labels.csv').write_text('\n'.join(['file,red,green', *rows]) + '\n')
    return src, rows, prepare(FOLDERS, src, src.parent / 'made', '--csv=labels.csv', '--exclusive=red,green')


def test_table(table):
    _, _, (arrays, meta, _) = table
    assert meta['label'] == 'multi'
    assert meta['attrs'] == ['red', 'green']
    assert meta['exclusive'] == [['red', 'green']]
    assert meta['counts'] == dict(train=10, val=1, test=1)
    for split in meta['counts']:
        red_and_green = arrays[f'{split}_x.npy'][:, 4, 4, :2]
        assert np.array_equal(red_and_green > 100, arrays[f'{split}_y.npy'])


def test_table_with_columns_split_and_identity_in_a_zip(table, tmp_path):
    """-1/1, a spreadsheet's line ends, mark and empty lines, ./, columns in another order."""
    src, rows, _ = table
    src = shutil.copytree(src, tmp_path / 'src')
    lines = []
    for i, row in enumerate(rows):
        lines.append('./' + row.replace(',0', ',-1') + f',{"train" if i < 8 else "test"},{i // 4}')
    text = '\r\n'.join(['\ufefffile,red,green,split,identity', *lines[::-1], ',,,,', ''])
    (src / 'labels.csv').write_bytes(text.encode())
    arrays, meta, said = prepare(FOLDERS, src, tmp_path / 'a', '--csv=labels.csv')
    assert "{'train': 1, 'val': 1, 'test': 1}" in said
    assert meta['counts'] == dict(train=4, val=4, test=4)
    assert sorted(meta['split']['test']) == sorted(f'photos/{i}.png' for i in range(8, 12))
    counts = [arrays[f'{split}_y.npy'].sum(0) for split in meta['counts']]
    assert sum(counts).tolist() == [6, 4]
    zipped = pack(tmp_path / 'set.zip', src)
    assert same(arrays, prepare(FOLDERS, zipped, tmp_path / 'b', '--csv=labels.csv')[0])


@pytest.mark.parametrize('kind', ['backslashes', 'dots', 'quotes', 'a Mac of old'])
def test_table_as_other_programs_write_it(table, tmp_path, kind):
    src, _, (arrays, _, _) = table
    text = (src / 'labels.csv').read_text()
    if kind == 'backslashes':
        text = text.replace('photos/', '.\\photos\\')
    elif kind == 'dots':
        text = text.replace('photos/', 'photos/../photos//')
    elif kind == 'quotes':
        text = '"' + text.strip().replace(',', '","').replace('\n', '"\n"') + '"'
    else:
        text = text.replace('\n', '\r')
    (tmp_path / 'other.csv').write_bytes(text.encode())
    assert same(arrays, prepare(FOLDERS, src, tmp_path / 'a', f'--csv={tmp_path}/other.csv')[0])


# names, links, folders that are no classes
@pytest.mark.parametrize('encoding', ['utf-8', 'latin-1'])
@pytest.mark.parametrize('form', ['NFC', 'NFD'])
def test_accents_are_the_same_however_they_are_written(tmp_path, form, encoding):
    folder = unicodedata.normalize(form, 'b\u00f6se')
    for i in range(10):
        photo(tmp_path / f'src/{folder}/{i}.png', 'red')
        photo(tmp_path / f'src/froh/{i}.png', 'lime')
    rows = [f'b\u00f6se/{i}.png,{i % 2},1' for i in range(10)]
    (tmp_path / 'labels.csv').write_bytes('\n'.join(['file,gr\u00fcn,x', *rows]).encode(encoding))
    _, meta, _ = prepare(FOLDERS, tmp_path / 'src', tmp_path / 'a', '--classes=b\u00f6se,froh')
    assert meta['attrs'] == ['b\u00f6se', 'froh']
    assert meta['counts'] == dict(train=16, val=2, test=2)
    _, meta, _ = prepare(FOLDERS, tmp_path / 'src', tmp_path / 'b', f'--csv={tmp_path}/labels.csv')
    assert meta['attrs'] == ['gr\u00fcn', 'x']


def test_names_that_are_no_utf8(tmp_path):
    """Latin-1 bytes in names, and one photo that is damaged: all that is printed and written is text."""
    for i in range(10):
        photo(str(tmp_path / 'src') + f'/b\udcf6se/{i}\udce9.png', 'red')
        photo(str(tmp_path / 'src') + f'/froh/{i}\udce9.png', 'lime')
    (tmp_path / 'src/froh/\udce4.png').write_bytes(b'no image')
    shares = ['--val_share=0.3', '--test_share=0.3']
    terminal = {'PYTHONIOENCODING': 'ascii'}
    _, meta, _ = prepare(FOLDERS, tmp_path / 'src', tmp_path / 'a', *shares, env=terminal)
    assert meta['attrs'] == ['b\u00f6se', 'froh']
    json.dumps(meta, ensure_ascii=False).encode()
    (tmp_path / 'a/skipped.txt').read_text(encoding='utf-8')
    pairs = tmp_path / 'm\udcf6nch2nonne'
    for i, split in enumerate(UNPAIRED_SPLITS):
        photo(pairs / split / '\udce9.png', (i, 0, 0))
    _, meta, _ = prepare(UNPAIRED, pairs, tmp_path / 'b')
    assert meta['counts'] == dict.fromkeys(UNPAIRED_SPLITS, 1)


def test_every_folder_is_read_once_wherever_links_lead(tmp_path):
    src = class_folders(tmp_path / 'src')
    # A class that lies elsewhere
    shutil.move(src / 'sad', tmp_path / 'elsewhere')
    os.symlink('../elsewhere', src / 'sad')
    plain, _, _ = prepare(FOLDERS, src, tmp_path / 'a')
    # Up, to itself, to each other, above all of it
    os.symlink('..', src / 'angry/up')
    os.symlink('..', src / 'happy/up')
    os.symlink('.', src / 'happy/self')
    os.symlink('..', src / 'up')
    os.symlink('../happy', src / 'angry/a_happy')
    os.symlink('../angry', src / 'happy/an_angry')
    os.symlink('../src/angry', tmp_path / 'elsewhere/back')
    os.symlink('/', src / 'angry/root')
    _, meta, said = prepare(FOLDERS, src, tmp_path / 'b')
    assert '40 of 40 photos' in said
    assert same(plain, prepare(FOLDERS, src, tmp_path / 'c')[0])
    assert meta['counts'] == dict(train=32, val=4, test=4)


SYSTEM = ('@eaDir', '.thumbnails', '__MACOSX', '.ipynb_checkpoints', '#recycle', '@Recycle', '$RECYCLE.BIN')


def test_thumbnails_and_wastebaskets_are_no_photos(tmp_path):
    src = class_folders(tmp_path / 'src')
    plain, _, _ = prepare(FOLDERS, src, tmp_path / 'a')
    for name in SYSTEM:
        photo(src / name / 'x.png', 'white')
        photo(src / 'happy' / name / 'deep/x.png', 'white')
    photo(src / 'sad/._0_0.png', 'white')
    (src / 'sad/Thumbs.db').write_text('x')
    assert same(plain, prepare(FOLDERS, src, tmp_path / 'b')[0])
    assert same(plain, prepare(FOLDERS, pack(tmp_path / 'z.zip', src), tmp_path / 'c')[0])


def test_a_zip_with_backslashes(tmp_path):
    src = class_folders(tmp_path / 'src')
    with zipfile.ZipFile(tmp_path / 'b.zip', 'w') as archive:
        for path in sorted(src.rglob('*')):
            info = zipfile.ZipInfo('x')
            info.filename = str(path.relative_to(src.parent)).replace('/', '\\')
            if path.is_dir():
                info.filename += '\\'
                archive.writestr(info, b'')
            else:
                archive.writestr(info, path.read_bytes())
    plain, _, _ = prepare(FOLDERS, src, tmp_path / 'a')
    assert same(plain, prepare(FOLDERS, tmp_path / 'b.zip', tmp_path / 'b')[0])


def test_tilde_is_home_in_every_path(tmp_path):
    class_folders(tmp_path / 'src')
    (tmp_path / 'labels.csv').write_text('file,a,b\n' + ''.join(f'happy/{i // 2}_{i}.png,1,0\n' for i in range(9)))
    flags = ['--src=~/src', '--dst=~/made', '--csv=~/labels.csv', '--image_size=8']
    run(FOLDERS, *flags, env={'HOME': str(tmp_path)})
    assert (tmp_path / 'made/meta.json').exists()


# two domains
# EXIF orientations 2 to 8 -> what makes the photo upright, a PIL.Image.Transpose
TURNS = dict(zip(range(2, 9), [0, 3, 1, 5, 4, 6, 2]))


def every_kind_of_photo(rng):
    """-> (name, what is saved, its EXIF orientation, what is shown), in the order of the names."""
    grey = rng.integers(0, 256, (8, 8), dtype=np.uint8)
    rgb = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    alpha = np.where(grey < 128, 0, 255).astype(np.uint8)[..., None]
    three = np.dstack([grey, grey, grey])
    words = grey.astype(np.uint16) * 257
    floats = grey.astype(np.float32) / 255
    image = Image.fromarray(rgb)
    cmyk = image.convert('CMYK')
    transparent = Image.fromarray(np.dstack([rgb, alpha]))
    photos = [
        ('a_L.png', Image.fromarray(grey), 1, three),
        ('b_16.tif', Image.fromarray(words), 1, three),
        ('c_F.tif', Image.fromarray(floats), 1, three),
        ('deep/CMYK.tif', cmyk, 1, np.asarray(cmyk.convert('RGB'))),
        ('e_RGBA.png', transparent, 1, np.where(alpha, rgb, 255))]
    for ending in ('png', 'tif'):
        for orientation, turn in TURNS.items():
            name = f'o_{ending}{orientation}.{ending}'
            photos.append((name, image, orientation, np.asarray(image.transpose(turn))))
    return photos


def test_unpaired_modes_orientations_twins_shapes(tmp_path):
    src = tmp_path / 'apple2orange'
    rng = np.random.default_rng(0)
    shown = {}
    for split in UNPAIRED_SPLITS:
        os.makedirs(src / split / 'deep')
        shown[split] = []
        for name, image, orientation, pixels in every_kind_of_photo(rng):
            exif = Image.Exif()
            exif[0x0112] = orientation
            image.save(src / split / name, exif=exif)
            shown[split].append(pixels)
        # A twin is left out. The last is wide, green in the middle.
        shutil.copy(src / split / 'o_png3.png', src / split / 'o_png3_twin.png')
        wide = np.zeros((8, 24, 3), np.uint8)
        wide[:, :8, 0] = 255
        wide[:, 8:16, 1] = 255
        Image.fromarray(wide).save(src / split / 'wide.png')
    squashed, meta, said = prepare(UNPAIRED, src, tmp_path / 'a')
    n = len(shown['trainA'])
    assert meta['label'] == 'unpaired'
    assert meta['domains'] == ['apple', 'orange']
    assert meta['counts'] == dict.fromkeys(UNPAIRED_SPLITS, n + 1)
    assert '4 photos left out' in said
    zipped = pack(tmp_path / 'z.zip', src)
    cropped, meta, _ = prepare(UNPAIRED, zipped, tmp_path / 'b', '--domains=x,z', '--fit=crop')
    assert meta['dataset'] == 'apple2orange'
    assert meta['domains'] == ['x', 'z']
    for split in UNPAIRED_SPLITS:
        assert np.array_equal(squashed[f'{split}_x.npy'][:n], shown[split])
        assert np.array_equal(cropped[f'{split}_x.npy'][:n], shown[split])
        assert (cropped[f'{split}_x.npy'][n] == [0, 255, 0]).all()
        assert squashed[f'{split}_x.npy'][n, 4, 0, 0] > 200


# the order in which files come into place
# A disk that fails at the n-th time that a folder is made, or a file in it opened to be written or moved.
FAIL = """
import os, runpy, sys
script, dst, n = sys.argv[1], os.path.realpath(sys.argv[2]), int(sys.argv[3])
count = 0
def watch(event, args):
    global count
    if event == 'os.rename':
        path = args[1]
    elif event == 'os.mkdir' and not os.path.exists(args[0]):
        path = args[0]
    elif event == 'open' and args[2] & (os.O_WRONLY | os.O_RDWR):
        path = args[0]
    else:
        return
    if str(path).startswith(dst):
        count += 1
        if count == n:
            raise OSError(28, 'No space left on device')
sys.addaudithook(watch)
sys.argv = [script, '--dst=' + dst, *sys.argv[4:]]
runpy.run_path(script, run_name='__main__')
print(count)
"""
DRAW = ['--image_size=32', '--n_train=2', '--n_test=1', '--clutter=0', '--workers=1']


@pytest.mark.parametrize('script', [FOLDERS, 'data/toyfruit/prepare.py'])
def test_wherever_the_disk_fails_there_is_the_old_set_or_no_meta_json(tmp_path, script):
    (tmp_path / 'fail.py').write_text(FAIL)
    flags = DRAW
    if script == FOLDERS:
        src = class_folders(tmp_path / 'src')
        (src / 'sad/broken.png').write_bytes(b'no image')
        flags = [f'--src={src}', '--image_size=8']
    old = tmp_path / 'old'
    run(script, f'--dst={old}', *flags)
    command = [tmp_path / 'fail.py', script, tmp_path / 'made']
    other = [*flags, '--seed=1', '--force=True']
    shutil.copytree(old, tmp_path / 'made')
    times = int(run(*command, 0, *other).split()[-1])
    # What is drawn takes longer: only the moves, which come last, are tried there.
    first = 1 if script == FOLDERS else times - 6
    lost = 0
    for n in range(first, times + 1):
        shutil.rmtree(tmp_path / 'made')
        shutil.copytree(old, tmp_path / 'made')
        assert 'no set was written' in run(*command, n, *other, ok=False)
        made = snapshot(tmp_path / 'made')
        assert made == snapshot(old) or 'meta.json' not in made
        lost += 'meta.json' not in made
    # All files are moved, each at once, when they are whole.
    assert lost == len(os.listdir(old)) > 5
