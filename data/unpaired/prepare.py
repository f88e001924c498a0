"""
Two unpaired sets of photos as memory-mapped arrays: trainA/ trainB/ testA/ testB/, as a folder tree or a CycleGAN zip.

    python data/unpaired/prepare.py --src=horse2zebra.zip                # 286 px, 0.7 GB, into data/unpaired/
    python data/unpaired/prepare.py --src=apple2orange.zip --dst=data/apple2orange
    python data/unpaired/prepare.py --src=/my/photos --dst=data/mine --domains=summer,winter --fit=crop

Photos may have any size, mode (grey, CMYK, palette, transparency on white, 16 bits) and EXIF orientation. By default
each is squashed to a square, its shape ignored, as CycleGAN loads it; training then cuts random 256 px out of the 286.

Writes {trainA,trainB,testA,testB}_x.npy uint8 (N, H, W, 3) in the order of the file names, skipped.txt if there are
photos that cannot be read and, last, meta.json. Seconds to a minute. Expect for horse2zebra 1067 trainA / 1334 trainB /
120 testA / 140 testB, for apple2orange 995 / 1019 / 266 / 248.
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
image_size = 286  # pixels: the load size, training crops it at random; a bit (1.12x) more than the size to train at
fit = 'squash'  # 'squash': the whole photo, its shape ignored, CycleGAN's way; 'crop': the centre square, undistorted
domains = ''  # names of A and B, 'horse,zebra'; '': from the name of the set (horse2zebra), else A,B
force = False  # True: redo arrays that are there already, from these or from other settings
max_bad = 100  # unreadable photos to skip before giving up; more than a few mean a broken download
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

SPLITS = ('trainA', 'trainB', 'testA', 'testB')
ENDINGS = ('.jpg', '.jpeg', '.jfif', '.png', '.webp', '.bmp', '.gif', '.tif', '.tiff', '.ppm', '.pgm')
FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'TIFF', 'PPM')  # not all of Pillow's: EPS would start ghostscript


def cut(img):
    """PIL image of any size -> its centre square, or all of it, to be squashed."""
    side = min(img.size)
    left, top = (img.width - side) // 2, (img.height - side) // 2
    return img.crop((left, top, left + side, top + side)) if fit == 'crop' else img


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


def without_twins(photos, digest):
    """Leaves out photos whose file is, byte for byte, that of one before: they would count double."""
    seen = set()
    for name, x in photos:
        if digest[name] not in seen:
            seen.add(digest[name])
            yield name, x


if __name__ == '__main__':
    image_size > 0 or sys.exit('--image_size=0: wants at least 1')
    fit in ('squash', 'crop') or sys.exit(f'--fit={fit}: wants squash or crop')
    src = os.path.abspath(src or os.path.dirname(__file__))
    out = pathlib.Path(os.path.abspath(dst or os.path.dirname(__file__)))
    config, temp, t0 = {k: globals()[k] for k in config_keys}, None, time.time()
    warnings.simplefilter('error', Image.DecompressionBombWarning)  # over 89 megapixels: no photo
    try:
        stop_if_there()

        # the photos, checked before anything is written
        read, files = open_src(src)
        match = [re.fullmatch(r'((?:.*?/)??)(((?:train|test)[AB])/.+)', name) for name in files]
        match = [m for m in match if m and m[0].lower().endswith(ENDINGS)]
        roots = {m[1] for m in match}
        root = '' if '' in roots else min(roots, default='')
        split = {m[2]: m[3] for m in match if m[1] == root}  # {'trainA/1.jpg': 'trainA'}
        if len(set(split.values())) < 4 or '' not in roots and len(roots) > 1:
            there = sorted(roots)[:3] if len(roots) > 1 else sorted(set(split.values())) or files[:5]
            sys.exit(f'--src={src}: wanted trainA/ trainB/ testA/ testB/ in it, with images, once; there is {there}')
        title = os.path.basename(root[:-1]) or re.sub(r'\.zip$', '', os.path.basename(src), flags=re.I)
        named = re.fullmatch(r'([A-Za-z]+)2([A-Za-z]\w*)', title)  # horse2zebra
        pair = [d.strip() for d in domains.split(',')] if domains else list(named.groups()) if named else ['A', 'B']
        if len(pair) != 2 or not all(pair) or pair[0] == pair[1]:
            sys.exit(f'--domains={domains or ",".join(pair)}: wants two different names, like horse,zebra')
        todo = sorted(split, key=lambda name: (SPLITS.index(split[name]), name))
        print(f'{len(todo):,} photos of {pair[0]} (A) and {pair[1]} (B) in {src}')

        out.mkdir(parents=True, exist_ok=True)
        need, free = len(todo) * image_size ** 2 * 3 / 1e9, shutil.disk_usage(out).free / 1e9
        need < free or sys.exit(f'--dst={out}: needs {need:.2f} GB, but {free:.2f} GB are free: make room')
        temp = out / '.prepare.tmp'  # all is written there, and moved when it is whole
        shutil.rmtree(temp, ignore_errors=True)  # of a run that was killed
        temp.mkdir()

        # decode
        def hashed(name):
            digest[name] = hashlib.sha256(data := read(root + name)).digest()
            return data
        digest, skipped, kept = {}, {}, {s: [] for s in SPLITS}
        for s, photos in itertools.groupby(decode_all(hashed, todo, skipped), lambda photo: split[photo[0]]):
            kept[s] = write_rows(temp / f'{s}_x.npy', without_twins(photos, digest))
        counts = {s: len(names) for s, names in kept.items()}
        0 in counts.values() and sys.exit(f'{src}: no photo of a whole split: {counts}, {list(skipped.items())[:3]}')
        if twins := len(todo) - len(skipped) - sum(counts.values()):
            print(f'{twins} photos left out, byte for byte the same as another of their split')
        for d in 'AB':
            both = {digest[name] for name in kept[f'train{d}']} & {digest[name] for name in kept[f'test{d}']}
            both and print(f'note: {len(both)} photos are in train{d} and in test{d} alike: the test is not quite one')
        meta = {'dataset': title, 'label': 'unpaired', 'image_size': image_size, 'domains': pair}

        # into place, meta.json last
        if skipped:
            text = ''.join(f'{name}\t{skipped[name]}\n' for name in sorted(skipped))
            (temp / 'skipped.txt').write_text(text, encoding='utf-8', errors='backslashreplace')
            print(f'{len(skipped)} photos could not be read and were left out, see skipped.txt')
        meta |= {'counts': counts, 'made_by': shlex.join(['python', 'data/unpaired/prepare.py', *sys.argv[1:]])}
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
