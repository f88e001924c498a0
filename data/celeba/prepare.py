"""
CelebA as memory-mapped arrays: square RGB photos, all 40 attributes as 0/1, the official split.

    python data/celeba/prepare.py --src=/where/they/are  # 128 px, 10 GB, into data/celeba/
    python data/celeba/prepare.py --src=/where/they/are --image_size=64 --dst=data/celeba64  # 2.5 GB

Writes {train,val,test}_x.npy uint8 (N, H, W, 3), _y.npy uint8 (N, 40), skipped.txt if there are photos
that cannot be read and, last, meta.json. Expect 162,770 train / 19,867 val / 19,962 test photos, after a
few minutes.
"""

import contextlib
import difflib
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
src = ''  # a folder with img_align_celeba (.zip or folder) and the two lists, see readme.md; '': this one
dst = ''  # where the arrays go; '': this script's folder, which is what --dataset=celeba reads
image_size = 128  # pixels; 64 is a quarter of the disk and of the training time, 256 more than the photos hold
crop = 178  # centre square cut out first, pixels; 178 is the full width; 140, say, cuts closer to the face
force = False  # True: redo arrays that are there already, from these or from other settings
max_bad = 100  # unreadable photos to skip before giving up; the released set should have none
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
SPLITS = ('train', 'val', 'test')  # 0, 1, 2 in list_eval_partition.txt
EXCLUSIVE = [['Black_Hair', 'Blond_Hair', 'Brown_Hair', 'Gray_Hair', 'Bald'],
             ['Straight_Hair', 'Wavy_Hair']]
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
    """PIL image of any size -> its centre square, of `crop` pixels if it has so many."""
    side = min(crop, *image.size)
    left = (image.width - side) // 2
    top = (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def find(*names):
    """-> path of the first of names that is in src or in the subfolders of the official download."""
    for name in names:
        for subfolder in ('', 'Anno', 'Eval', 'Img'):
            path = os.path.join(src, subfolder, name)
            if os.path.exists(path):
                return path
    sys.exit(f'--src={src}: no {names[0]} there, see readme.md')


def read_list(path, allowed):
    """A list of the download, .txt or .csv -> the names of its columns, {photo: its values}."""
    with open(path, encoding='utf-8-sig', errors='replace') as file:
        lines = [re.findall(r'[^\s,"]+', line) for line in file]
    lines = [words for words in lines if words]
    columns = ['partition']
    if lines and lines[0][0] == 'image_id':
        columns = lines.pop(0)[1:]
    elif len(lines) > 1 and len(lines[0]) == 1:
        # The number of rows, then the names of the attributes
        n = lines.pop(0)[0]
        columns = lines.pop(0)
        if n != str(len(lines)):
            sys.exit(f'{path}: line 1 says {n[:40]!r}, but {len(lines)} rows follow: cut short?')
    rows = {}
    for name, *values in lines:
        if len(values) != len(columns) or not allowed.issuperset(values):
            sys.exit(f'{path}: {name!r} has {len(values)} values: {" ".join(values)[:60]}; '
                     f'wanted {len(columns)} of {" or ".join(sorted(allowed))}')
        if name in rows:
            sys.exit(f'{path}: {name!r} is there twice')
        rows[name] = np.array(values).astype(np.int8)
    return columns, rows


if __name__ == '__main__':
    sys.stdout.reconfigure(errors='backslashreplace')
    started = time.time()
    src = os.path.abspath(src or HERE)
    out = pathlib.Path(os.path.abspath(dst or HERE))
    temp = None
    config = {key: globals()[key] for key in config_keys}
    # Over 89 megapixels: no photo
    warnings.simplefilter('error', Image.DecompressionBombWarning)
    try:
        stop_if_there()

        # The originals, checked against each other before anything is written
        attrs, y = read_list(find('list_attr_celeba.txt', 'list_attr_celeba.csv'), {'-1', '1'})
        _, part = read_list(find('list_eval_partition.txt', 'list_eval_partition.csv'), {'0', '1', '2'})
        split = {name: SPLITS[values[0]] for name, values in part.items()}
        read, files = open_src(find('img_align_celeba.zip', 'img_align_celeba'))
        images = [name for name in files if name.lower().endswith(('.jpg', '.jpeg', '.png'))]
        where = {os.path.basename(name): name for name in images}
        for text, others in (('list_eval_partition', split), ('img_align_celeba', where)):
            odd = sorted(y.keys() ^ others.keys())
            if odd:
                sys.exit(f'{src}: {len(odd)} photos are not in both list_attr_celeba and {text}, such as '
                         f'{odd[:3]}: not all unpacked, or of different downloads')
        todo = sorted(y, key=lambda name: SPLITS.index(split[name]))
        print(f'{len(todo):,} photos, {len(attrs)} attributes, from {src}')

        temp = make_temp(len(todo))
        skipped = {}
        counts = dict.fromkeys(SPLITS, 0)
        photos = decode_all(lambda name: read(where[name]), todo, skipped)
        for s, rows in itertools.groupby(photos, lambda photo: split[photo[0]]):
            names = write_rows(temp / f'{s}_x.npy', rows)
            labels = np.stack([y[name] for name in names]) == 1
            np.save(temp / f'{s}_y.npy', labels.astype(np.uint8))
            counts[s] = len(names)
            if s == 'train':
                print(', '.join(f'{n:,} {attr}' for attr, n in zip(attrs, labels.sum(0))))
        if 0 in counts.values():
            sys.exit(f'{src}: no photo of a whole split: {counts}; not read: {first_of(skipped) or "none"}')
        exclusive = [group for group in EXCLUSIVE if set(group) <= set(attrs)]
        meta = {'dataset': 'celeba', 'label': 'multi', 'image_size': image_size, 'attrs': attrs,
                'exclusive': exclusive, 'counts': counts}
        put_in_place(meta, skipped)
    except KeyboardInterrupt:
        sys.exit('interrupted, no set was written: start again')
    except OSError as error:
        sys.exit(f'--dst={out}: no set was written: {error}')
    finally:
        if temp:
            shutil.rmtree(temp, ignore_errors=True)
    print(f'{show(counts)} | {image_size} px | {out} | {time.time() - started:.0f} s')
