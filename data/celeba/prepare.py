"""
CelebA as memory-mapped arrays: square, upright RGB photos, all 40 attributes as 0/1, the official split.

    python data/celeba/prepare.py --src=/where/they/are                      # 128 px, 10 GB, into data/celeba/
    python data/celeba/prepare.py --src=/where/they/are --image_size=64 --dst=data/celeba64       # 2.5 GB

Writes {train,val,test}_x.npy uint8 (N, H, W, 3), _y.npy uint8 (N, 40), skipped.txt if there are photos that cannot be
read and, last, meta.json. Expect 162,770 train / 19,867 val / 19,962 test photos, after a few minutes.
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
src = ''  # a folder with img_align_celeba.zip (or a folder of that name) and the two lists, see readme.md; '': this one
dst = ''  # where the arrays go; '': this script's folder, which is what --dataset=celeba reads
image_size = 128  # pixels; 64 is a quarter of the disk and of the training time, 256 is more than the photos hold
crop = 178  # centre square cut out first, pixels; 178 is the full width; smaller (say 140) cuts closer to the face
force = False  # True: redo arrays that are there already, from these or from other settings
max_bad = 100  # unreadable photos to skip before giving up; the released set should have none
# -----------------------------------------------------------------------------
config_keys = [k for k, v in globals().items() if k[0] != '_' and type(v) in (bool, int, float, str)]
cast = {bool: {'True': True, 'False': False}.__getitem__, int: int, float: float, str: str}
for arg in sys.argv[1:] if __name__ == '__main__' else []:  # --key=value overrides the block above
    if arg in ('-h', '--help'):
        print(__doc__ + open(__file__).read().split('# ' + '-' * 77)[1])
        sys.exit()
    key, eq, val = arg.removeprefix('--').partition('=')
    if not arg.startswith('--') or not eq or key not in config_keys:
        close = difflib.get_close_matches(key, config_keys) or config_keys
        sys.exit(f"{arg}: not a --key=value of this script, closest: {', '.join(close)}")
    try:
        val = cast[type(globals()[key])](val)
        assert isinstance(val, str) or key.endswith(('_interval', 'n_critic', 'batch_size')) <= val < float('inf')
        globals()[key] = val
    except (KeyError, ValueError, AssertionError):
        sys.exit(f"{arg}: wants a {type(globals()[key]).__name__}, finite, 0 or 1 at least, like {globals()[key]!r}")
# -----------------------------------------------------------------------------

SPLITS = ('train', 'val', 'test')  # 0, 1, 2 in list_eval_partition.txt
EXCLUSIVE = [['Black_Hair', 'Blond_Hair', 'Brown_Hair', 'Gray_Hair', 'Bald'], ['Straight_Hair', 'Wavy_Hair']]
FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'TIFF', 'PPM')  # not all of Pillow's: EPS would start ghostscript


def cut(img):
    """PIL image of any size -> its centre square, of `crop` pixels if it has so many."""
    side = min(crop, *img.size)
    left, top = (img.width - side) // 2, (img.height - side) // 2
    return img.crop((left, top, left + side, top + side))


def open_src(path):
    """Folder or zip -> read(name), the names of the visible files in it, sorted; relative, with /."""
    if folder := os.path.isdir(path):
        walk = os.walk(path, followlinks=True, onerror=lambda e: sys.exit(f'cannot go on: {e}'))
        paths = [os.path.join(inner, name) for inner, _, names in walk for name in names]
        where = {os.path.relpath(p, path).replace(os.sep, '/'): p for p in paths}
    else:
        try:
            archive = zipfile.ZipFile(path)
        except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as e:
            sys.exit(f'{path}: no such folder, nor a whole zip file: {e}')
        where = {info.filename.replace('\\', '/'): info for info in archive.infolist() if not info.is_dir()}

    def read(name):
        with open(where[name], 'rb') if folder else archive.open(where[name]) as f:
            return f.read(2**28)  # a larger file is no photo; cut off here, it counts as damaged

    return read, sorted(name for name in where if not re.search(r'(^|/)(\.|__MACOSX/)', name))


def decode(read, name):
    """A photo of any kind -> uint8 (image_size, image_size, 3), upright, transparency on white; or a str, why not."""
    try:
        img = Image.open(io.BytesIO(read(name)), formats=FORMATS)
        img.load()
        with contextlib.suppress(Exception):  # a mangled EXIF block: the pixels are still good
            ImageOps.exif_transpose(img, in_place=True)
        if img.mode[0] in 'IF':  # 16 bits, or floats in [0, 1]; convert() would clip rather than scale them
            grey = np.asarray(img).astype(np.float64) * (255 if img.mode == 'F' else 1 / 257)
            img = Image.fromarray(np.clip(np.rint(grey), 0, 255).astype(np.uint8))
        elif img.has_transparency_data:
            img = Image.alpha_composite(Image.new('RGBA', img.size, 'white'), img.convert('RGBA'))
        img = cut(img.convert('RGB'))  # then one resize; bicubic, which Pillow widens when it shrinks: no aliasing
        return np.asarray(img.resize((image_size, image_size), Image.Resampling.BICUBIC))
    except Exception as e:  # Pillow and zipfile raise nearly every kind on damaged files
        return ' '.join(str(e).partition(' <_io')[0].split()) or type(e).__name__


def decode_all(read, names, skipped):
    """Yields (name, uint8 (image_size, image_size, 3)) in the order of names; others go to skipped: {name: why}."""
    t0 = shown = time.time()
    with ThreadPool() as pool:  # of threads: Pillow decodes without Python's lock
        pieces = (names[i:i + 256] for i in range(0, len(names), 256))  # memory stays small however slow the disk
        arrays = itertools.chain.from_iterable(pool.imap(lambda name: decode(read, name), piece) for piece in pieces)
        for i, (name, x) in enumerate(zip(names, arrays), 1):
            if isinstance(x, str):
                skipped[name] = x
                if len(skipped) > max_bad:
                    sys.exit(f'more than --max_bad={max_bad} photos cannot be read: {list(skipped.items())[:3]}')
            else:
                yield name, x
            if time.time() - shown > 2:
                shown = time.time()
                rate = i / (shown - t0)
                print(f'{i:,}/{len(names):,} | {rate:.0f} images/s | eta {(len(names) - i) / rate:.0f} s', flush=True)


def write_rows(path, photos):
    """(name, uint8 (H, W, 3)) one by one -> a .npy of them all; returns the names."""
    names = []
    with open(path, 'wb') as f:  # no memory map: on a full disk that would kill the process, with no word said
        f.seek(128)  # the header comes last: what is skipped leaves no gap
        for name, x in photos:
            f.write(x)
            names.append(name)
        f.seek(0)
        np.lib.format.write_array_header_1_0(f, dict(descr='|u1', fortran_order=False, shape=(len(names), *x.shape)))
    return names


def stop_if_there():
    """Returns if out holds no finished set; else exits: 0 if these settings made it and it is whole, else 1."""
    if force or not (out / 'meta.json').exists():
        return
    try:
        meta = json.loads((out / 'meta.json').read_text())
        old, rows = meta['config'], {s: len(np.load(out / f'{s}_x.npy', mmap_mode='r')) for s in meta['counts']}
        keys = config.keys() - {'dst', 'force', 'max_bad'}  # these change no array
        differ = ', '.join(f'--{k}={old.get(k)}' for k in sorted(keys) if config[k] != old.get(k))
        assert not differ and rows == meta['counts'], differ or f'damaged, {rows} photos'
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as e:
        sys.exit(f'{out}: there is another set ({e}): --force=True replaces it, --dst= puts this one elsewhere')
    print(f'already there: {out}, {", ".join(f"{n:,} {split}" for split, n in rows.items())}')
    sys.exit()


def find(*names):
    """-> path of the first of names that is in src or in the subfolders of the official download."""
    paths = [os.path.join(src, sub, name) for name in names for sub in ('', 'Anno', 'Eval', 'Img')]
    return next(filter(os.path.exists, paths), None) or sys.exit(f'--src={src}: no {names[0]} there, see readme.md')


def read_list(path, allowed):
    """A list of the download, .txt or .csv -> the names of its columns, {photo: its values}; checks these."""
    with open(path, encoding='utf-8-sig', errors='replace') as f:
        lines = f.read().rstrip().replace(',', ' ').split('\n')
    columns, rows = ['partition'], {}
    if lines[0].startswith('image_id '):
        columns = lines.pop(0).split()[1:]
    elif len(lines[0].split()) == 1 < len(lines):  # the number of rows, then the names of the attributes
        n, columns, *lines = lines[0].strip(), lines[1].split(), *lines[2:]
        n == str(len(lines)) or sys.exit(f'{path}: line 1 says {n[:40]!r}, but {len(lines)} rows follow: cut short?')
    for name, *values in map(str.split, filter(str.strip, lines)):
        if len(values) != len(columns) or not allowed.issuperset(values) or name in rows:
            said = 'is there twice' if name in rows else f'has {len(values)} values: {" ".join(values)[:60]}'
            sys.exit(f'{path}: {name!r} {said}; wanted once, with {len(columns)} of {" or ".join(sorted(allowed))}')
        rows[name] = np.array(values).astype(np.int8)
    return columns, rows


if __name__ == '__main__':
    min(image_size, crop) > 0 or sys.exit(f'--image_size={image_size} --crop={crop}: want at least 1')
    src = os.path.abspath(src or os.path.dirname(__file__))
    out = pathlib.Path(os.path.abspath(dst or os.path.dirname(__file__)))
    config, temp, t0 = {k: globals()[k] for k in config_keys}, None, time.time()
    warnings.simplefilter('error', Image.DecompressionBombWarning)  # over 89 megapixels: no photo
    try:
        stop_if_there()

        # the originals, checked against each other before anything is written
        attrs, y = read_list(find('list_attr_celeba.txt', 'list_attr_celeba.csv'), {'-1', '1'})
        _, part = read_list(find('list_eval_partition.txt', 'list_eval_partition.csv'), {'0', '1', '2'})
        split = {name: SPLITS[i] for name, (i,) in part.items()}
        read, files = open_src(find('img_align_celeba.zip', 'img_align_celeba'))
        where = {os.path.basename(name): name for name in files if name.lower().endswith(('.jpg', '.jpeg', '.png'))}
        for text, others in (('list_eval_partition', split), ('img_align_celeba', where)):
            if odd := sorted(y.keys() ^ others.keys()):
                sys.exit(f'{src}: {len(odd)} photos are not in both list_attr_celeba and {text}, such as {odd[:3]}: '
                         'not all unpacked, or of different downloads')
        todo = sorted(y, key=lambda name: SPLITS.index(split[name]))
        print(f'{len(todo):,} photos, {len(attrs)} attributes, from {src}')

        out.mkdir(parents=True, exist_ok=True)
        need, free = len(todo) * image_size ** 2 * 3 / 1e9, shutil.disk_usage(out).free / 1e9
        need < free or sys.exit(f'--dst={out}: needs {need:.2f} GB, but {free:.2f} GB are free: make room')
        temp = out / '.prepare.tmp'  # all is written there, and moved when it is whole
        shutil.rmtree(temp, ignore_errors=True)  # of a run that was killed
        temp.mkdir()

        # decode
        skipped, counts = {}, dict.fromkeys(SPLITS, 0)
        photos = decode_all(lambda name: read(where[name]), todo, skipped)
        for s, rows in itertools.groupby(photos, lambda photo: split[photo[0]]):
            kept = write_rows(temp / f'{s}_x.npy', rows)
            labels = np.stack([y[name] for name in kept]) == 1
            np.save(temp / f'{s}_y.npy', labels.astype(np.uint8))
            counts[s] = len(kept)
            s == 'train' and print(', '.join(f'{n:,} {a}' for a, n in zip(attrs, labels.sum(0))))
        0 in counts.values() and sys.exit(f'{src}: no photo of a whole split: {counts}, {list(skipped.items())[:3]}')
        meta = {'dataset': 'celeba', 'label': 'multi', 'image_size': image_size, 'attrs': attrs,
                'exclusive': [group for group in EXCLUSIVE if set(group) <= set(attrs)]}

        # into place, meta.json last
        if skipped:
            text = ''.join(f'{name}\t{skipped[name]}\n' for name in sorted(skipped))
            (temp / 'skipped.txt').write_text(text, encoding='utf-8', errors='backslashreplace')
            print(f'{len(skipped)} photos could not be read and were left out, see skipped.txt')
        meta |= {'counts': counts, 'made_by': shlex.join(['python', 'data/celeba/prepare.py', *sys.argv[1:]])}
        (temp / 'meta.json').write_text(json.dumps({**meta, 'config': config}, indent=1))
        for name in ('meta.json', 'skipped.txt'):  # the old ones: a mix of old and new must not look complete
            (out / name).unlink(missing_ok=True)
        for path in sorted(temp.iterdir(), key=lambda path: path.name == 'meta.json'):
            path.replace(out / path.name)
    except KeyboardInterrupt:
        sys.exit('interrupted, no set was written: start again')
    except OSError as e:
        sys.exit(f'--dst={out}: no set was written: {e}')
    finally:
        temp and shutil.rmtree(temp, ignore_errors=True)
    print(', '.join(f'{n:,} {s}' for s, n in counts.items()), f'| {image_size} px | {out} | {time.time() - t0:.0f} s')
