"""
Anybody's labelled photos as memory-mapped arrays: class folders, RaFD by its names, or a table of attributes.

    python data/folders/prepare.py --src=mydata  # mydata/angry/*.jpg mydata/happy/*.jpg ..., or a zip of it
    python data/folders/prepare.py --src=RafD --dst=data/rafd  # Rafd090_01_Caucasian_female_angry_frontal.jpg
    python data/folders/prepare.py --src=photos --csv=labels.csv --exclusive="black,blond;young,old"

Class folders (subfolders belong to the class) and RaFD give single-label data; train/ test/ (val/) around
them are kept as the split. The table, multi-label, has a header `file,attr1,attr2,...`, file names relative
to --src and 0/1 or -1/1; its columns `split` (train, val or test) and `identity` are no attributes, they
decide the split. Writes {train,val,test}_x.npy uint8 (N, H, W, 3), _y.npy uint8 (N, n_attrs), skipped.txt
if there are photos that cannot be read and, last, meta.json, with the names of the val and test photos.
"""

import collections
import contextlib
import difflib
import hashlib
import io
import itertools
import json
import os
import pathlib
import re
import shlex
import shutil
import sys
import time
import unicodedata
import warnings
import zipfile
# csv itself is a flag
from csv import Error as CsvError
from csv import reader as csv_reader
from multiprocessing.pool import ThreadPool

import numpy as np
from PIL import Image, ImageOps

# -----------------------------------------------------------------------------
src = ''  # the folder that holds the class folders (or RaFD's or the table's files), or a zip of it
dst = ''  # where the arrays go; '': this script's folder, which is what --dataset=folders reads
image_size = 128  # pixels; 64 is a quarter of the disk and of the training time
fit = 'crop'  # 'crop': a square cut out, undistorted; 'squash': the whole photo, its shape ignored
crop = ''  # centre and side, parts of width, height, shorter side; '': 0.5,0.5,1; RaFD's faces 0.5,0.44,0.9
classes = ''  # 'happy,sad': only these classes, in this order; '': all, sorted
csv = ''  # a table of labels: its path, absolute or relative to --src, or its name in the zip; '': labels are folders
exclusive = ''  # with csv: attributes of which a photo has at most one, in groups, 'black,blond,gray;young,old'
identity = ''  # regular expression: who is on it, in its name, '(\d+)_'; nobody is in two splits
angles = '045,090,135'  # RaFD cameras, as StarGAN; '090': frontal only; '': all five, with both profiles
gazes = ''  # RaFD gazes, of frontal,left,right; '': all; looking aside is no expression, so more photos of each
val_share = 0.1  # of every class, unless the split is given; at least one photo
test_share = 0.1  # likewise; more gives steadier test figures, less leaves more to train on
seed = 0  # of the split and of the order of rows; both depend on it and on the names of the photos alone
force = False  # True: redo arrays that are there already, from these or from other settings
max_bad = 100  # unreadable photos to skip before giving up
# -----------------------------------------------------------------------------
# On the command line --key=value overrides a global of this block, and keeps its type.
config_keys = [k for k, v in globals().items() if k[0] != '_' and isinstance(v, (int, float, str))]
options = sys.argv[1:] if __name__ == '__main__' else []
for option in options:
    if option in ('-h', '--help'):
        print(__doc__ or '', open(__file__, encoding='utf-8').read().split('# ' + '-' * 77)[1])
        sys.exit()
    key, equals, value = option.removeprefix('--').partition('=')
    if not option.startswith('--') or key not in config_keys:
        similar = difflib.get_close_matches(key, config_keys) or config_keys
        sys.exit(f"{option}: not a --key=value of this script. Similar: {', '.join(similar)}")
    default = globals()[key]
    if not equals:
        sys.exit(f'{option}: wants a value, say --{key}={True if default is False else default}')
    try:
        if isinstance(default, bool):
            value = {'True': True, 'False': False}[value]
        elif isinstance(default, str):
            # The shell leaves the ~ of --key=~/folder as it is.
            value = ','.join(os.path.expanduser(part) for part in value.split(','))
        else:
            value = type(default)(value)
    except (KeyError, ValueError):
        wanted = 'True or False' if isinstance(default, bool) else f'a number like {default}'
        sys.exit(f'{option}: wants {wanted}')
    # Numbers are finite and at least 0; those that count something, at least 1.
    may_be_0 = default == 0 or key in ('max_iters', 'pool_size', 'max_bad', 'seed')
    lowest = 1 if type(default) is int and not may_be_0 else 0
    if not isinstance(value, str) and not lowest <= value < 2 ** 63:
        sys.exit(f'{option}: wants a finite number, at least {lowest}, below 2^63')
    globals()[key] = value
# -----------------------------------------------------------------------------
HERE = pathlib.Path(__file__).resolve().parent
# What systems and network drives put beside photos
SYSTEM_FOLDERS = ('__macosx', '@eadir', '@__thumb', '@recently-snapshot', '@recycle', '@tmp', '#recycle',
                  '#snapshot', '$recycle.bin', 'lost+found', 'system volume information', '__pycache__')
SPLITS = ('train', 'val', 'test')
# How the folders of a split may be called
SPLIT_NAMES = {'train': 'train', 'training': 'train', 'test': 'test', 'testing': 'test',
               'val': 'val', 'valid': 'val', 'validation': 'val', 'dev': 'val'}
RAFD = re.compile(r'Rafd(?P<camera>\d+)_(?P<person>\d+)_[a-z]+_[a-z]+_(?P<expression>angry|contemptuous|disgusted|'
                  r'fearful|happy|neutral|sad|surprised)_(?P<gaze>[a-z]+)\.\w+', re.I)
ENDINGS = ('.jpg', '.jpeg', '.jfif', '.png', '.webp', '.bmp', '.gif', '.tif', '.tiff', '.ppm', '.pgm')
# file: its name in src; split: '' if it is not given; label: the class, or 0/1 values; identity: None if not known
Photo = collections.namedtuple('Photo', 'file split label identity')
# The kinds of photos that are read. Not all of Pillow's: EPS, for one, would start another program.
FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'TIFF', 'PPM')


def read_photo(file):
    """The path, or the open file, of a photo -> PIL image in RGB with 8 bits, upright. Greys of 16 bits
    and floats in [0, 1] are scaled, what is transparent becomes white. Pillow's errors if damaged."""
    image = Image.open(file, formats=FORMATS)
    image.load()
    with contextlib.suppress(Exception):
        # A mangled EXIF block says nothing about the pixels.
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode[0] in 'IF':
        scale = 255 if image.mode == 'F' else 1 / 257
        grey = np.asarray(image).astype(np.float64) * scale
        image = Image.fromarray(np.clip(np.rint(grey), 0, 255).astype(np.uint8))
    elif image.has_transparency_data:
        white = Image.new('RGBA', image.size, 'white')
        image = Image.alpha_composite(white, image.convert('RGBA'))
    return image.convert('RGB')


def is_hidden(name):
    """Is it hidden, or in a folder where systems and network drives keep thumbnails or deleted files?"""
    parts = name.lower().split('/')
    return any(part.startswith('.') or part in SYSTEM_FOLDERS for part in parts)


def list_folder(path):
    """-> {name: path} of all below a folder. Names are relative, with /; those of folders end in /."""
    def stop(error):
        sys.exit(f'cannot go on: {error}')

    where = {}
    visited = set()
    # os.walk follows no links. They are appended here, and read when all other folders have been.
    starts = [path]
    for start in starts:
        for folder, subfolders, files in os.walk(start, onerror=stop):
            real = os.path.realpath(folder)
            if real in visited:
                subfolders.clear()
                continue
            visited.add(real)
            prefix = (folder + os.sep).removeprefix(path + os.sep).replace(os.sep, '/')
            for name in files:
                where[prefix + name] = os.path.join(folder, name)
            subfolders[:] = [name for name in subfolders if not is_hidden(name)]
            for name in subfolders:
                inner = os.path.join(folder, name)
                target = os.path.realpath(inner)
                # A link up the tree leads to nothing new.
                if os.path.commonpath([real, target]) != target:
                    where[f'{prefix}{name}/'] = inner
                    if os.path.islink(inner):
                        starts.append(inner)
    return where


def open_src(path):
    """Folder or zip -> read(name), the sorted names of what is visible in it, as list_folder has them."""
    is_folder = os.path.isdir(path)
    if is_folder:
        where = list_folder(path)
    else:
        try:
            archive = zipfile.ZipFile(path)
        except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
            sys.exit(f'{path}: no such folder, nor a whole zip file: {error}')
        where = {info.filename.replace('\\', '/'): info for info in archive.infolist()}

    def read(name):
        with open(where[name], 'rb') if is_folder else archive.open(where[name]) as file:
            # A larger file is no photo. Cut off here, it counts as damaged.
            return file.read(2**28)

    return read, sorted(name for name in where if not is_hidden(name))


def decode(read, name):
    """A photo -> uint8 (image_size, image_size, 3); or a str, why it cannot be read."""
    try:
        image = read_photo(io.BytesIO(read(name)))
    except Exception as error:
        # Pillow and zipfile raise nearly every kind on damaged files.
        return ' '.join(str(error).partition(' <_io')[0].split()) or type(error).__name__
    # One resize. Pillow widens the bicubic kernel when it shrinks: no aliasing.
    return np.asarray(cut(image).resize((image_size, image_size), Image.Resampling.BICUBIC))


def decode_all(read, names, skipped):
    """Yields (name, uint8 (H, W, 3)) in the order of names; others go to skipped: {name: why}."""
    started = time.time()
    shown = started
    # Threads are enough, as Pillow decodes without Python's lock. In pieces, memory stays small.
    with ThreadPool() as pool:
        for start in range(0, len(names), 256):
            piece = names[start:start + 256]
            for name, x in zip(piece, pool.map(lambda name: decode(read, name), piece)):
                if isinstance(x, str):
                    skipped[name] = x
                else:
                    yield name, x
            if len(skipped) > max_bad:
                sys.exit(f'more than --max_bad={max_bad} photos cannot be read: {first_of(skipped)}')
            if time.time() - shown > 2:
                shown = time.time()
                done = start + len(piece)
                rate = done / (shown - started)
                left = (len(names) - done) / rate
                print(f'{done:,}/{len(names):,} | {rate:.0f} images/s | eta {left:.0f} s', flush=True)


def first_of(skipped):
    """{name: why} -> the first three as text."""
    return '; '.join(f'{name}: {skipped[name]}' for name in sorted(skipped)[:3])


def write_rows(path, photos):
    """(name, uint8 (H, W, 3)) one by one -> a .npy of them all; returns the names."""
    names = []
    # No memory map: on a full disk that would kill the process, with no word said.
    with open(path, 'wb') as file:
        # The header comes last: what is skipped leaves no gap.
        file.seek(128)
        for name, x in photos:
            file.write(x)
            names.append(name)
        file.seek(0)
        header = dict(descr='|u1', fortran_order=False, shape=(len(names), *x.shape))
        np.lib.format.write_array_header_1_0(file, header)
    return names


def stop_if_there():
    """Returns if out holds no set; else exits: with 0 if these settings made it and it is whole."""
    if force or not (out / 'meta.json').exists():
        return
    try:
        meta = json.loads((out / 'meta.json').read_text(encoding='utf-8'))
        for key, value in config.items():
            # These change no array.
            if key not in ('dst', 'force', 'max_bad') and value != meta['config'].get(key):
                raise ValueError(f'made with --{key}={meta["config"].get(key)}')
        kinds = 'x' if meta['label'] == 'unpaired' else 'xy'
        for split, n in meta['counts'].items():
            for kind in kinds:
                rows = len(np.load(out / f'{split}_{kind}.npy', mmap_mode='r'))
                if rows != n:
                    raise ValueError(f'damaged: {rows} rows in {split}_{kind}.npy, not {n}')
    except (OSError, EOFError, LookupError, ValueError, TypeError, AttributeError) as error:
        sys.exit(f'{out}: there is another set ({error}): '
                 '--force=True replaces it, --dst= puts this one elsewhere')
    print(f'already there: {out}, {show(meta["counts"])}')
    sys.exit()


def show(counts):
    return ', '.join(f'{n:,} {split}' for split, n in counts.items())


def make_temp(n_photos):
    """Makes out, and in it an empty folder: all is written there, and moved when it is whole."""
    out.mkdir(parents=True, exist_ok=True)
    need = n_photos * image_size**2 * 3
    free = shutil.disk_usage(out).free
    if need > free:
        sys.exit(f'--dst={out}: needs {need / 1e9:.3g} GB, but {free / 1e9:.3g} GB are free: make room')
    temp = out / '.prepare.tmp'
    # There may be one of a run that was killed.
    shutil.rmtree(temp, ignore_errors=True)
    temp.mkdir()
    return temp


def put_in_place(meta, skipped):
    """Moves all from temp to out, meta.json last: without it nothing there looks complete."""
    if skipped:
        lines = [f'{name}\t{skipped[name]}\n' for name in sorted(skipped)]
        (temp / 'skipped.txt').write_text(''.join(lines), encoding='utf-8', errors='backslashreplace')
        print(f'{len(skipped)} photos could not be read and were left out, see skipped.txt: '
              f'{first_of(skipped)}')
    made_by = shlex.join(['python', f'data/{HERE.name}/prepare.py', *sys.argv[1:]])
    meta = {**meta, 'made_by': made_by, 'config': config}
    (temp / 'meta.json').write_text(json.dumps(meta, indent=1))
    for name in ('meta.json', 'skipped.txt'):
        (out / name).unlink(missing_ok=True)
    for path in sorted(temp.iterdir(), key=lambda path: path.name == 'meta.json'):
        os.replace(path, out / path.name)


def cut(image):
    """PIL image -> the square at box, moved inward where it would leave the photo; or all of it."""
    if fit == 'squash':
        return image
    side = max(1, int(box[2] * min(image.size)))
    left = max(int(box[0] * image.width - side / 2), 0)
    top = max(int(box[1] * image.height - side / 2), 0)
    left = min(left, image.width - side)
    top = min(top, image.height - side)
    return image.crop((left, top, left + side, top + side))


def as_text(name):
    """A name as one types it: what is no UTF-8 is read as Latin-1, accents of a Mac are composed."""
    data = name.encode('utf-8', 'surrogateescape')
    try:
        text = data.decode('utf-8')
    except UnicodeDecodeError:
        text = data.decode('latin-1')
    return unicodedata.normalize('NFC', text)


def split_folders(images):
    """Names of photos -> {name: (its split, '' if not given, and the name below that folder)}."""
    tops = {name.partition('/')[0] for name in images if '/' in name}
    splits = {top for top in tops if top.lower() in SPLIT_NAMES}
    # One beside other folders is a class: of vehicles, say.
    if not splits or len(splits) == 1 and splits < tops:
        return {name: ('', name) for name in images}
    if splits < tops or 'train' not in {SPLIT_NAMES[top.lower()] for top in splits}:
        sys.exit(f'--src={src}: {sorted(splits)} look like splits, but there is no train, or others '
                 'are beside')
    inner = {}
    for name in images:
        top, slash, rest = name.partition('/')
        if slash:
            inner[name] = (SPLIT_NAMES[top.lower()], rest)
    return inner


def check_folders(names, images, depth):
    """Ends the script if a folder that should be a class or a split has no photo in it."""
    good = set()
    for name in images:
        parts = name.split('/')[:-1]
        good.update('/'.join(parts[:k]) for k in range(depth + 1))
    for name in names:
        folder = '/'.join(name.split('/')[:-1][:depth])
        # A set that was made inside its source is no class.
        if folder in good or os.path.exists(f'{src}/{folder}/meta.json'):
            continue
        if not classes or as_text(os.path.basename(folder)) in as_text(classes).split(','):
            sys.exit(f'--src={src}: no photo in {folder}/, by its place a class or a split: convert what '
                     'is in it to jpg or png, remove it, or name the others in --classes=')


def read_classes(files, root):
    """Class folders, or else RaFD's names -> attrs, {name: Photo}, whether RaFD's names gave the labels."""
    names = [file.removeprefix(root) for file in files if file.startswith(root)]
    images = [name for name in names if name.lower().endswith(ENDINGS)]
    inner = split_folders(images)
    rafd = {name: RAFD.fullmatch(os.path.basename(name)) for name in inner}
    by_name = all(rafd.values()) and not any('/' in rest for _, rest in inner.values())
    photos = {}
    for name, (split, rest) in inner.items():
        match = rafd[name]
        person = match['person'] if match else None
        if by_name:
            seen_from = not angles or match['camera'] in angles.split(',')
            if seen_from and (not gazes or match['gaze'].lower() in gazes.split(',')):
                photos[name] = Photo(root + name, split, match['expression'].lower(), person)
        elif '/' in rest:
            photos[name] = Photo(root + name, split, as_text(rest.partition('/')[0]), person)
    there = sorted({photo.label for photo in photos.values()})
    if there and not by_name:
        has_splits = all(split for split, _ in inner.values())
        check_folders(names, images, depth=2 if has_splits else 1)
    if len(there) < 2:
        odd = [name for name in images if not RAFD.fullmatch(name)] or images
        sys.exit(f'--src={src}: wanted two class folders, or only RaFD names, of --angles= and --gazes=, '
                 f'got {there or "none"}, and {odd[:3]}: one folder too high or too low?')
    where = '--angles= and --gazes=' if by_name else 'class folders'
    print(f'{len(photos):,} of {len(images):,} photos are in {where}')
    attrs = there
    if classes:
        attrs = [name.strip() for name in as_text(classes).split(',')]
    odd = any(',' in name or name != name.strip() for name in attrs)
    if odd or len(set(attrs) & set(there)) < max(2, len(attrs)):
        sys.exit(f'--src={src} --classes={classes}: wants two or more, each once, no commas in the names, '
                 f'of {there}')
    return attrs, {name: photo for name, photo in photos.items() if photo.label in attrs}, by_name


def read_table(read, files, root):
    """The table -> attrs, {name: Photo} with labels [n_attrs], False. Its names may lack a zip's root."""
    # '', 'mydata/', 'mydata/photos/'
    tops = [''] + [root[:match.end()] for match in re.finditer('/', root)]
    named = {as_text(file): file for file in files}

    def find(name):
        for top in tops:
            if top + name in named:
                return named[top + name]

    inside = find(as_text(csv))
    if not inside and not os.path.isfile(csv):
        sys.exit(f'--csv={csv}: no such file, neither in {src} nor here')
    try:
        data = read(inside) if inside else pathlib.Path(csv).read_bytes()
    except Exception as error:
        # zipfile raises nearly every kind on damaged and encrypted files.
        sys.exit(f'--csv={csv}: cannot be read: {error}')
    lines = io.StringIO(as_text(data.decode('utf-8-sig', 'surrogateescape')), newline=None)
    photos = {}
    used = set()
    header = None
    for number, line in enumerate(lines, 1):
        where = f'{csv}: line {number}: {line.strip()[:60]!r}'
        try:
            # Line by line: a stray quote does not swallow the lines that follow.
            row = [value.strip() for value in next(csv_reader([line], strict=True), [])]
        except CsvError as error:
            sys.exit(f'{where}: {error}: a stray quote?')
        if header is None:
            header = row
            attrs = [name for name in row[1:] if name not in ('split', 'identity')]
            once = len(set(row)) == len(row)
            if row[:1] != ['file'] or not attrs or not once or any(',' in a or not a for a in attrs):
                sys.exit(f'{where}: should be file,attr1,attr2,..., each once, with commas')
        elif any(row):
            values = dict(zip(header, row))
            right = len(row) == len(header) and {values[a] for a in attrs} <= {'0', '1', '-1'}
            if not right or values.get('split', 'train') not in SPLITS or values.get('identity') == '':
                sys.exit(f'{where}: wanted {len(header)} values, labels 1 or 0 (or 1 or -1), '
                         'split train, val or test')
            # ./a.jpg, a\b.jpg
            name = os.path.normpath(values['file'].replace('\\', '/'))
            file = find(name)
            if not file:
                sys.exit(f'{where}: no such file in {src}')
            if name in photos:
                sys.exit(f'{where}: was listed before')
            used.update(values[a] for a in attrs)
            labels = [values[a] == '1' for a in attrs]
            photos[name] = Photo(file, values.get('split', ''), labels, values.get('identity'))
    if not photos:
        sys.exit(f'{csv}: no rows below the header')
    if {'0', '-1'} <= used:
        sys.exit(f'{csv}: has both 0 and -1; write no as one of them')
    return attrs, photos, False


def shuffled(names):
    """names in an order that depends on nothing but each name and the seed."""
    def key(name):
        return hashlib.sha256(f'{seed} {name}'.encode('utf-8', 'surrogateescape')).digest()

    return sorted(names, key=key)


def make_splits(photos):
    """{name: Photo} -> {name: split}: as given, or cut out of train, with nobody in two splits."""
    split = {name: photo.split or 'train' for name, photo in photos.items()}
    given = set(split.values())
    # A share is taken of every class; with a table, of all.
    kind = {name: '' if csv else photo.label for name, photo in photos.items()}
    total = collections.Counter(kind[name] for name in split if split[name] == 'train')
    for part, share in (('test', test_share), ('val', val_share)):
        if part in given:
            continue
        want = {k: max(1, round(share * n)) for k, n in total.items()}
        need = dict(want)
        people = collections.defaultdict(list)
        for name in split:
            if split[name] == 'train':
                people[photos[name].identity or name].append(name)
        for person in shuffled(people):
            has = collections.Counter(kind[name] for name in people[person])
            wanted = sum(min(n, need[k]) for k, n in has.items())
            first = any(need[k] == want[k] for k in has)
            # Taken if most of their photos are still wanted, or if a class has none yet.
            if first or 2 * wanted > has.total():
                need.update({k: need[k] - n for k, n in has.items()})
                split.update(dict.fromkeys(people[person], part))
    return split


def identify(photos):
    """{name: Photo} -> the same with identities, taken from the names, as --identity says."""
    identified = {}
    for name, photo in photos.items():
        # For class folders, the name below the class folder and the split
        depth = 0 if csv else 2 if photo.split else 1
        match = re.search(identity, name.split('/', depth)[-1])
        if not match:
            sys.exit(f'--identity={identity}: no match in {name}')
        identified[name] = photo._replace(identity=match[match.re.groups])
    return identified


if __name__ == '__main__':
    sys.stdout.reconfigure(errors='backslashreplace')
    started = time.time()
    if fit not in ('squash', 'crop'):
        sys.exit(f'--fit={fit}: wants squash or crop')
    if not 0 < val_share < 1 - test_share < 1:
        sys.exit(f'--val_share={val_share} --test_share={test_share}: want more than 0, less than 1 together')
    if classes and csv:
        sys.exit('--classes= goes with class folders; with --csv= the columns are the attributes')
    try:
        re.compile(identity)
    except re.error as error:
        sys.exit(f'--identity={identity}: {error}')
    if not re.fullmatch(r'|(1|0|0?\.\d+)(,(1|0|0?\.\d+)){2}', crop):
        sys.exit(f'--crop={crop}: wants x,y,side between 0 and 1, like 0.5,0.44,0.9')
    src = os.path.abspath(src or HERE)
    out = pathlib.Path(os.path.abspath(dst or HERE))
    temp = None
    config = {key: globals()[key] for key in config_keys}
    # Over 89 megapixels: no photo
    warnings.simplefilter('error', Image.DecompressionBombWarning)
    try:
        stop_if_there()

        # The photos, their labels and their split, checked before anything is written
        read, files = open_src(src)
        images = [name for name in files if name.lower().endswith(ENDINGS)]
        if not images:
            sys.exit(f'--src={src}: no images in it; looked for {" ".join(ENDINGS)}')
        root = ''
        if not os.path.isdir(src):
            # A zip may have all in one folder.
            root = ''.join(os.path.commonprefix(images).rpartition('/')[:2])
        attrs, photos, by_name = read_table(read, files, root) if csv else read_classes(files, root)
        box = [0.5, 0.44, 0.9] if by_name else [0.5, 0.5, 1]
        if crop:
            box = [float(part) for part in crop.split(',')]
        groups = [attrs]
        if csv:
            groups = [group.split(',') for group in as_text(exclusive).split(';') if group]
        for group in groups:
            if len(set(group) & set(attrs)) < max(2, len(group)):
                sys.exit(f'--exclusive={exclusive}: {group}: wants two or more of {",".join(attrs)}')
        if identity:
            photos = identify(photos)
        split = make_splits(photos)
        # Mixed within each split
        todo = sorted(shuffled(photos), key=lambda name: SPLITS.index(split[name]))
        label = {name: 'all' if csv else photo.label for name, photo in photos.items()}
        wanted = set(itertools.product(SPLITS, label.values()))
        lacks = wanted - {(split[name], label[name]) for name in todo}
        if lacks:
            sys.exit(f'{src}: no photo would be in {sorted(lacks)[:3]}: more are needed, or another --seed=')
        people = {s: set() for s in SPLITS}
        for name in todo:
            if photos[name].identity:
                people[split[name]].add(photos[name].identity)
        people = {s: len(people[s]) for s in SPLITS}
        print(f'{len(todo):,} photos, {len(attrs)} attributes, people (where known): {people}')

        temp = make_temp(len(todo))
        digest = {}
        skipped = {}
        kept = {s: [] for s in SPLITS}
        y = {}

        def read_and_hash(name):
            data = read(photos[name].file)
            digest[name] = hashlib.sha256(data).digest()
            return data

        decoded = decode_all(read_and_hash, todo, skipped)
        for s, rows in itertools.groupby(decoded, lambda photo: split[photo[0]]):
            kept[s] = write_rows(temp / f'{s}_x.npy', rows)
            labels = [photos[name].label for name in kept[s]]
            if not csv:
                labels = [[attr == name for attr in attrs] for name in labels]
            y[s] = np.array(labels, np.uint8)
            np.save(temp / f'{s}_y.npy', y[s])
        counts = {s: len(names) for s, names in kept.items()}
        empty = [s for s in SPLITS if not counts[s]]
        if not csv and not empty:
            empty = [f'{attrs[k]} ({s})' for s in SPLITS for k in np.flatnonzero(~y[s].any(0))]
        if empty:
            sys.exit(f'{src}: no photo that can be read is left of {", ".join(empty)}: {first_of(skipped)}')
        width = max(len(attr) for attr in attrs)
        print(' ' * width + ''.join(f'{s:>10}' for s in SPLITS))
        for k, attr in enumerate(attrs):
            print(f'{attr:>{width}}' + ''.join(f'{y[s][:, k].sum():>10}' for s in SPLITS))
        for s in ('val', 'test'):
            both = {digest[name] for name in kept['train']} & {digest[name] for name in kept[s]}
            if both:
                print(f'note: {len(both)} photos are in train and in {s} alike, byte for byte')
        title = re.sub(r'\.zip$', '', os.path.basename(src), flags=re.I) or 'folders'
        # The names of the rows
        names = {s: [as_text(name) for name in kept[s]] for s in ('val', 'test')}
        meta = {'dataset': title, 'label': 'multi' if csv else 'single', 'image_size': image_size,
                'attrs': attrs, 'exclusive': groups, 'split': names, 'counts': counts}
        put_in_place(meta, skipped)
    except KeyboardInterrupt:
        sys.exit('interrupted, no set was written: start again')
    except OSError as error:
        sys.exit(f'--dst={out}: no set was written: {error}')
    finally:
        if temp:
            shutil.rmtree(temp, ignore_errors=True)
    print(f'{show(counts)} | {image_size} px | {out} | {time.time() - started:.0f} s')
