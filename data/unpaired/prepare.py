"""
Two unpaired sets of photos as memory-mapped arrays: trainA/ trainB/ testA/ testB/ or a CycleGAN zip.

    python data/unpaired/prepare.py --src=horse2zebra.zip  # 286 px, 0.7 GB, into data/unpaired/
    python data/unpaired/prepare.py --src=apple2orange.zip --dst=data/apple2orange
    python data/unpaired/prepare.py --src=/my/photos --dst=data/mine --domains=summer,winter --fit=crop

Photos may have any size, mode (grey, CMYK, palette, transparency on white, 16 bits) and EXIF orientation.
By default each is squashed to a square, its shape ignored, as CycleGAN loads it; training then cuts random
256 px out of the 286.

Writes {trainA,trainB,testA,testB}_x.npy uint8 (N, H, W, 3) in the order of the file names, skipped.txt if
there are photos that cannot be read and, last, meta.json. Seconds to a minute. Expect for horse2zebra
1067 trainA / 1334 trainB / 120 testA / 140 testB, for apple2orange 995 / 1019 / 266 / 248.
"""

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
import warnings
import zipfile
from multiprocessing.pool import ThreadPool

import numpy as np
from PIL import Image, ImageOps

# -----------------------------------------------------------------------------
src = ''  # the folder that holds trainA/ trainB/ testA/ testB/, or a zip of it; '': this script's folder
dst = ''  # where the arrays go; '': this script's folder, which is what --dataset=unpaired reads
image_size = 286  # pixels to load; training crops it at random; 1.12 x the size to train at
fit = 'squash'  # 'squash': the whole photo, its shape ignored, as CycleGAN; 'crop': the centre square
domains = ''  # names of A and B, 'horse,zebra'; '': from the name of the set (horse2zebra), else A,B
force = False  # True: redo arrays that are there already, from these or from other settings
max_bad = 100  # unreadable photos to skip before giving up; more than a few mean a broken download
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
SPLITS = ('trainA', 'trainB', 'testA', 'testB')
ENDINGS = ('.jpg', '.jpeg', '.jfif', '.png', '.webp', '.bmp', '.gif', '.tif', '.tiff', '.ppm', '.pgm')
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
    """PIL image of any size -> its centre square, or all of it, to be squashed."""
    if fit == 'squash':
        return image
    side = min(image.size)
    left = (image.width - side) // 2
    top = (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def find_splits(files):
    """Names in src -> the folder that holds trainA/ ..., its name ending in /, {photo: its split}."""
    splits = {}
    for name in files:
        match = re.fullmatch(r'((?:.*?/)??)(train[AB]|test[AB])/.+', name)
        if match and name.lower().endswith(ENDINGS):
            splits.setdefault(match[1], {})[name] = match[2]
    root = '' if '' in splits else min(splits, default='')
    if root and len(splits) > 1:
        sys.exit(f'--src={src}: wanted trainA/ trainB/ testA/ testB/ in it once, '
                 f'they are in {sorted(splits)[:3]}')
    split = splits.get(root, {})
    there = sorted(set(split.values()))
    if len(there) < 4:
        sys.exit(f'--src={src}: wanted trainA/ trainB/ testA/ testB/ in it, with images; '
                 f'there is {there or files[:5]}')
    return root, split


def name_domains(title):
    """The names of A and B: those of --domains, or as the title of the set has them: horse2zebra."""
    match = re.fullmatch(r'([A-Za-z]+)2([A-Za-z]\w*)', title)
    if domains:
        pair = [name.strip() for name in domains.split(',')]
    else:
        pair = list(match.groups()) if match else ['A', 'B']
    if len(pair) != 2 or not all(pair) or pair[0] == pair[1]:
        sys.exit(f'--domains={domains or ",".join(pair)}: wants two different names, like horse,zebra')
    return pair


def without_twins(photos, digest):
    """Leaves out photos whose file is, byte for byte, that of one before: they would count double."""
    seen = set()
    for name, x in photos:
        if digest[name] not in seen:
            seen.add(digest[name])
            yield name, x


if __name__ == '__main__':
    sys.stdout.reconfigure(errors='backslashreplace')
    started = time.time()
    if fit not in ('squash', 'crop'):
        sys.exit(f'--fit={fit}: wants squash or crop')
    src = os.path.abspath(src or HERE)
    out = pathlib.Path(os.path.abspath(dst or HERE))
    temp = None
    config = {key: globals()[key] for key in config_keys}
    # Over 89 megapixels: no photo
    warnings.simplefilter('error', Image.DecompressionBombWarning)
    try:
        stop_if_there()

        # The photos, checked before anything is written
        read, files = open_src(src)
        root, split = find_splits(files)
        title = os.path.basename(root[:-1]) or re.sub(r'\.zip$', '', os.path.basename(src), flags=re.I)
        pair = name_domains(title)
        todo = sorted(split, key=lambda name: (SPLITS.index(split[name]), name))
        print(f'{len(todo):,} photos of {pair[0]} (A) and {pair[1]} (B) in {src}')

        temp = make_temp(len(todo))
        digest = {}
        skipped = {}
        kept = {s: [] for s in SPLITS}

        def read_and_hash(name):
            data = read(name)
            digest[name] = hashlib.sha256(data).digest()
            return data

        photos = decode_all(read_and_hash, todo, skipped)
        for s, rows in itertools.groupby(photos, lambda photo: split[photo[0]]):
            kept[s] = write_rows(temp / f'{s}_x.npy', without_twins(rows, digest))
        counts = {s: len(names) for s, names in kept.items()}
        if 0 in counts.values():
            sys.exit(f'{src}: no photo of a whole split: {counts}; not read: {first_of(skipped) or "none"}')
        twins = len(todo) - len(skipped) - sum(counts.values())
        if twins:
            print(f'{twins} photos left out, byte for byte the same as another of their split')
        for domain in 'AB':
            train = {digest[name] for name in kept[f'train{domain}']}
            both = train & {digest[name] for name in kept[f'test{domain}']}
            if both:
                print(f'note: {len(both)} photos are in train{domain} and in test{domain} alike')
        meta = {'dataset': title, 'label': 'unpaired', 'image_size': image_size, 'domains': pair,
                'counts': counts}
        put_in_place(meta, skipped)
    except KeyboardInterrupt:
        sys.exit('interrupted, no set was written: start again')
    except OSError as error:
        sys.exit(f'--dst={out}: no set was written: {error}')
    finally:
        if temp:
            shutil.rmtree(temp, ignore_errors=True)
    print(f'{show(counts)} | {image_size} px | {out} | {time.time() - started:.0f} s')
