"""
Two unpaired sets of photos as memory-mapped arrays: trainA/ trainB/ testA/ testB/, as a folder tree or a CycleGAN zip.

    python data/unpaired/prepare.py --src=horse2zebra.zip                # 286 px, 0.7 GB, into data/unpaired/
    python data/unpaired/prepare.py --src=apple2orange.zip --dst=data/apple2orange
    python data/unpaired/prepare.py --src=/my/photos --dst=data/mine --domains=summer,winter --fit=crop

Photos may have any size, mode (grey, CMYK, palette, transparency on white, 16 bits) and EXIF orientation. By default
each is squashed to a square, its shape ignored, as CycleGAN loads it; training then cuts random 256 px out of the 286.

Writes {trainA,trainB,testA,testB}_x.npy uint8 (N, H, W, 3) in the order of the file names and, last, meta.json;
skipped.txt names the photos that could not be read, if any. Seconds to a minute. Expect for horse2zebra 1067 trainA /
1334 trainB / 120 testA / 140 testB. Interrupted, it leaves what was there before: start it again.
"""

import collections
import difflib
import hashlib
import io
import itertools
import json
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
import warnings
import zipfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
from PIL import Image

# -----------------------------------------------------------------------------
src = ''  # the folder that holds trainA/ trainB/ testA/ testB/, or a zip of it; '': this script's folder
dst = ''  # where the arrays go; '': this script's folder, which is what --dataset=unpaired reads
image_size = 286  # pixels: the load size, training crops it at random; a bit (1.12x) more than the size to train at
fit = 'squash'  # 'squash': the whole photo, its shape ignored, CycleGAN's way; 'crop': the centre square, undistorted
domains = ''  # names of A and B, 'horse,zebra'; '': from the name of the set (horse2zebra), else A,B
workers = 0  # processes that decode; 0: one for each core; changes the time, never the result
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
        globals()[key] = cast[type(globals()[key])](val)
    except (KeyError, ValueError):
        sys.exit(f"{arg}: wants a {type(globals()[key]).__name__}, like {globals()[key]!r}")
config = {k: globals()[k] for k in config_keys}  # saved with whatever this script makes
# -----------------------------------------------------------------------------

SPLITS = ('trainA', 'trainB', 'testA', 'testB')
KNOWN = {'horse2zebra': (1067, 1334, 120, 140), 'apple2orange': (995, 1019, 266, 248)}  # files of the released sets
ENDINGS = ('.jpg', '.jpeg', '.jfif', '.png', '.webp', '.bmp', '.gif', '.tif', '.tiff', '.ppm', '.pgm')
FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'TIFF', 'PPM')  # not all of Pillow's: EPS would start ghostscript
MAX_BYTES = 2**28  # of one image file
UPRIGHT = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF orientation -> PIL.Image.Transpose


def read_rgb(data):
    """The bytes of an image file -> PIL RGB image, upright by its EXIF orientation, transparency on white.

    Raises ValueError, OSError or one of Pillow's errors where it is no image, is cut short, or is absurdly large.
    """
    if not data:
        raise ValueError('empty file')
    warnings.simplefilter('error', Image.DecompressionBombWarning)  # over 89 megapixels
    try:
        img = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.UnidentifiedImageError:
        raise ValueError('not an image, or of a kind not read here') from None
    img.load()
    try:
        orientation = img.getexif().get(0x0112, 1)
    except Exception:  # a mangled EXIF block: the pixels are still good
        orientation = 1
    if img.mode[0] in 'IF':  # 16 bits, or floats in [0, 1]; convert() would clip rather than scale them
        grey = np.asarray(img).astype(np.float64) * (255 if img.mode == 'F' else 1 / 257)
        img = Image.fromarray(np.clip(np.rint(grey), 0, 255).astype(np.uint8))
    elif img.has_transparency_data:
        img = img.convert('RGBA')
        img = Image.alpha_composite(Image.new('RGBA', img.size, 'white'), img)
    img = img.convert('RGB')
    return img.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else img


def fit_square(img, image_size, fit):
    """PIL RGB image of any size -> uint8 (image_size, image_size, 3), all of it squashed or its centre square.

    Bicubic as CycleGAN's loader; Pillow widens it when it shrinks, so there is no aliasing.
    """
    if fit == 'crop':
        side = min(img.size)
        left, top = (img.width - side) // 2, (img.height - side) // 2
        img = img.crop((left, top, left + side, top + side))
    return np.asarray(img.resize((image_size, image_size), Image.Resampling.BICUBIC))


def decode(sources, image_size, fit):
    """A list of paths, file contents (bytes) or exceptions -> a list of (uint8 (H, W, 3) or None, reason, hash).

    Runs in the worker processes, which know no flags: all settings are arguments.
    """
    out = []
    for source in sources:
        try:
            if isinstance(source, Exception):
                raise source
            if isinstance(source, str):
                if os.path.getsize(source) > MAX_BYTES:
                    raise ValueError(f'larger than {MAX_BYTES >> 20} MB')
                with open(source, 'rb') as f:
                    source = f.read()
            out.append((fit_square(read_rgb(source), image_size, fit), '', hashlib.sha256(source).digest()))
        except Exception as e:  # Pillow raises nearly every kind on damaged files
            out.append((None, ' '.join(str(e).split()) or type(e).__name__, b''))
    return out


def start_worker():
    """Ctrl-C is the parent's affair; a parent that was killed takes its workers along."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def in_order(pool, n, func, jobs, *args):
    """Yields func(job, *args) for each job, in the order of jobs; never more than n under way, so memory is bounded."""
    waiting = collections.deque()
    for job in jobs:
        waiting.append(pool.submit(func, job, *args))
        if len(waiting) >= n:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def few(names):
    """'a.jpg', 'b.jpg', 'c.jpg' and 7 more"""
    names = sorted(names)
    return ', '.join(map(repr, names[:3])) + (f' and {len(names) - 3} more' if len(names) > 3 else '')


def open_zip(path):
    """-> ZipFile, {name: ZipInfo} of its visible files. Exits on what is no zip, is encrypted or points outside."""
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as e:
        sys.exit(f'{path}: not a zip file, or cut short ({e}): download it again')
    members = {}
    for info in archive.infolist():
        name = info.filename.replace('\\', '/')
        parts = name.split('/')
        if name.startswith('/') or '..' in parts or ':' in parts[0]:
            sys.exit(f'{path}: holds {name!r}, a path that leads outside: not the original file, not used')
        if name.endswith('/') or parts[0] == '__MACOSX' or parts[-1].startswith('.'):
            continue
        if info.flag_bits & 1:
            sys.exit(f'{path}: {name!r} is encrypted: unpack it with its password and give the folder')
        if name in members:
            sys.exit(f'{path}: holds {name!r} twice')
        members[name] = info
    return archive, members


def find_images(src):
    """Folder or zip -> name of the set, ZipFile or None, {split: {file name: ZipInfo or path}}, number of other files.

    File names are relative to the split's folder, subfolders included. Exits, saying what is there instead, unless all
    of trainA, trainB, testA and testB are found: in a folder directly, in a zip at any depth but once.
    """
    if os.path.isdir(src):
        archive, root, files = None, '', {}
        for split in SPLITS:
            missing = not os.path.isdir(os.path.join(src, split))  # that is said below; what cannot be read, here
            onerror = None if missing else lambda e: sys.exit(f'cannot go on: {e}')
            for folder, _, names in os.walk(os.path.join(src, split), onerror=onerror):
                paths = [os.path.join(folder, name) for name in names]
                files |= {os.path.relpath(p, src).replace(os.sep, '/'): p for p in paths if os.path.isfile(p)}
        missing = [split for split in SPLITS if not os.path.isdir(os.path.join(src, split))]
        if missing:
            inner = [e.name for e in os.scandir(src) if e.is_dir() and os.path.isdir(os.path.join(e.path, 'trainA'))]
            if inner:
                sys.exit(f'--src={src}: one folder too high, try --src={os.path.join(src, sorted(inner)[0])}')
            if os.path.isdir(os.path.join(src, os.pardir, 'trainA')):
                sys.exit(f'--src={src}: one folder too deep, try --src={os.path.dirname(src)}')
            there = few(os.listdir(src)) or 'nothing'
            sys.exit(f'--src={src}: no folder {" or ".join(missing)} in it; there is {there}')
    elif os.path.isfile(src):
        archive, files = open_zip(src)
        roots = {m[1] for m in (re.match(r'((?:.*?/)??)(?:train|test)[AB]/', name) for name in files) if m}
        if len(roots) != 1:
            tops = {'/'.join(name.split('/')[:2]) for name in files}
            sys.exit(f'{src}: wanted trainA/ trainB/ testA/ testB/ in it, once; ' +
                     (f'they are in {few(roots)}' if roots else f'there is {few(tops) or "nothing"}'))
        root = roots.pop()
    else:
        sys.exit(f'--src={src}: no such folder or zip; see readme.md for where to get the sets')
    title = os.path.basename(root.rstrip('/')) or re.sub(r'\.zip$', '', os.path.basename(src), flags=re.I)
    found, others = {split: {} for split in SPLITS}, 0
    for name in sorted(files):
        split, _, rest = name.removeprefix(root).partition('/')
        if split in SPLITS and name.startswith(root) and not rest.rpartition('/')[2].startswith('.'):
            if rest.lower().endswith(ENDINGS):
                found[split][rest] = files[name]
            else:
                others += 1
    for split in SPLITS:
        if not found[split]:
            sys.exit(f'{src}: no images in {root}{split}/; looked for {" ".join(ENDINGS)}')
    return title, archive, found, others


def name_domains(title, domains):
    """('horse2zebra', '') -> ['horse', 'zebra']; a name without such a 2 -> ['A', 'B']; domains='x,y' goes first."""
    match = re.fullmatch(r'([A-Za-z]+)2([A-Za-z]\w*)', title)
    pair = [d.strip() for d in domains.split(',')] if domains else list(match.groups()) if match else ['A', 'B']
    if len(pair) != 2 or not all(pair) or pair[0] == pair[1]:
        sys.exit(f'--domains={domains or ",".join(pair)}: wants two different names, like horse,zebra')
    return pair


def contents(archive, infos):
    """Yields what decode() wants for each ZipInfo or path: the bytes, or why there are none; a path as it is."""
    for info in infos:
        try:
            if archive and info.file_size > MAX_BYTES:
                raise ValueError(f'larger than {MAX_BYTES >> 20} MB')
            yield archive.read(info) if archive else info
        except Exception as e:  # zipfile raises a dozen kinds on a damaged member
            yield ValueError(f'{type(e).__name__}: {e}')


class Rows:
    """A .npy of uint8 rows, written one by one; how many is known only at the end, as skipped images leave no gap.

    Plain writes, not a memory map: on a full disk these raise an OSError, where a map would kill the process.
    """

    def __init__(self, path, planned, shape):
        self.file, self.shape, self.n = open(path, 'wb'), shape, 0
        self.header(planned)

    def header(self, n):
        about = {'descr': '|u1', 'fortran_order': False, 'shape': (n, *self.shape)}
        np.lib.format.write_array_header_1_0(self.file, about)  # padded, so that a shorter n takes the same room

    def add(self, row):
        self.file.write(row.tobytes())
        self.n += 1

    def close(self):
        self.file.seek(0)
        self.header(self.n)
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()


def stop_if_there(dst, config, arrays):
    """Returns if dst holds no finished set; else exits: 0 if it was made with this config and is all there, else 1."""
    path = os.path.join(dst, 'meta.json')
    if not os.path.exists(path):
        return
    remedy = '--force=True redoes it, --dst= puts this one elsewhere'
    try:
        with open(path) as f:
            meta = json.load(f)
        counts, old = meta['counts'], meta['config']
        keys = sorted((set(old) | set(config)) - {'dst', 'workers', 'force', 'max_bad'})  # those change no array
        differ = [f'--{k}={old.get(k)}, now {config.get(k)}' for k in keys if old.get(k) != config.get(k)]
        if differ:
            sys.exit(f'{dst}: there is a set made with other settings ({"; ".join(differ)}): {remedy}')
        for name in arrays:
            if len(np.load(os.path.join(dst, name), mmap_mode='r')) != counts[name.partition('_')[0]]:
                raise ValueError(f'{name} has another length')
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        sys.exit(f'{dst}: there is a meta.json, but the set is not complete ({e}): {remedy}')
    print(f'already there: {dst}, {", ".join(f"{n:,} {split}" for split, n in counts.items())}')
    sys.exit()


# -----------------------------------------------------------------------------
if __name__ == '__main__':
    for key, least in (('image_size', 1), ('workers', 0), ('max_bad', 0)):
        if config[key] < least:
            sys.exit(f'--{key}={config[key]}: wants at least {least}')
    if fit not in ('squash', 'crop'):
        sys.exit(f'--fit={fit}: wants squash or crop')
    here = os.path.dirname(os.path.abspath(__file__))
    config['src'] = src = os.path.abspath(src or here)
    dst = os.path.abspath(dst or here)
    names_out = [f'{split}_x.npy' for split in SPLITS] + ['skipped.txt', 'meta.json']
    out = {name: os.path.join(dst, name) for name in names_out}
    temp = {name: os.path.join(dst, f'.{name}.tmp') for name in names_out}
    writing = False
    try:
        if not force:
            stop_if_there(dst, config, names_out[:-2])
        title, archive, images, others = find_images(src)
        pair = name_domains(title, domains)
        todo = [(split, name) for split in SPLITS for name in images[split]]
        print(f'{len(todo):,} photos of {pair[0]} (A) and {pair[1]} (B) in {src}' +
              (f', beside {others} files that are not {" ".join(ENDINGS)}' if others else ''))

        # room
        os.makedirs(dst, exist_ok=True)
        need = len(todo) * image_size * image_size * 3
        writing = True
        for path in temp.values():  # of a run that was killed
            if os.path.exists(path):
                os.remove(path)
        free = shutil.disk_usage(dst).free  # what --force=True replaces stays until the new set is whole
        if free < need:
            sys.exit(f'{dst}: needs {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: '
                     'make room, or give another --dst= or a smaller --image_size=')

        # decode
        rows = {s: Rows(temp[f'{s}_x.npy'], len(images[s]), (image_size, image_size, 3)) for s in SPLITS}
        hashes, twins, skipped = {s: set() for s in SPLITS}, [], []
        t0 = shown = time.time()
        sources = contents(archive, (images[split][name] for split, name in todo))
        chunks = iter(lambda: list(itertools.islice(sources, 4)), [])  # 4 photos a job: they may be large
        cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
        workers = min(workers or cores, 61)  # Windows cannot wait for more
        with ProcessPoolExecutor(workers, initializer=start_worker) as pool:
            results = itertools.chain.from_iterable(in_order(pool, 4 * workers, decode, chunks, image_size, fit))
            for i, ((split, name), (x, reason, file_hash)) in enumerate(zip(todo, results)):
                if reason:
                    skipped.append(f'{split}/{name}\t{reason}')
                    if len(skipped) > max_bad:
                        first = '; '.join(map(repr, skipped[:3])).replace('\\t', ': ')
                        sys.exit(f'{src}: more than --max_bad={max_bad} photos cannot be read, the first: {first}')
                elif file_hash in hashes[split]:  # the same file under a second name would count double
                    twins.append(f'{split}/{name}')
                else:
                    hashes[split].add(file_hash)
                    rows[split].add(x)
                if time.time() - shown > 2:
                    shown = time.time()
                    rate = (i + 1) / (shown - t0)
                    eta = (len(todo) - i - 1) / rate
                    print(f'{i + 1:,}/{len(todo):,} | {rate:.0f} images/s | eta {eta:.0f} s', flush=True)
        counts = {split: rows[split].n for split in SPLITS}
        if 0 in counts.values():
            first = repr(skipped[0]).replace('\\t', ': ')
            sys.exit(f'{src}: no photo of a whole split could be read: {counts}, the first: {first}')

        # into place, meta.json last
        for split in SPLITS:
            rows[split].close()
        if skipped:
            with open(temp['skipped.txt'], 'w', encoding='utf-8', errors='backslashreplace') as f:
                f.write('\n'.join(skipped) + '\n')
        made_by = 'python data/unpaired/prepare.py ' + shlex.join(sys.argv[1:])
        with open(temp['meta.json'], 'w') as f:
            json.dump({'dataset': title, 'label': 'unpaired', 'image_size': image_size, 'domains': pair,
                       'counts': counts, 'made_by': made_by.strip(), 'config': config}, f, indent=1)
        for name in ('meta.json', 'skipped.txt'):  # the old ones: a mix of old and new must not look complete
            if os.path.exists(out[name]):
                os.remove(out[name])
        for name in names_out:
            if name != 'skipped.txt' or skipped:
                os.replace(temp[name], out[name])
    except KeyboardInterrupt:
        sys.exit('interrupted, no set was written: start again')
    except BrokenProcessPool:
        sys.exit('a worker process was killed, most likely for want of memory: try fewer --workers=')
    except OSError as e:
        sys.exit(f'--dst={dst}: no set was written: {e}')
    finally:
        for path in temp.values():
            if writing and os.path.exists(path):
                os.remove(path)

    if skipped:
        print(f'{len(skipped)} photos could not be read and were left out: {out["skipped.txt"]}')
    if twins:
        print(f'{len(twins)} photos dropped, byte for byte the same as another of their split: {few(twins)}')
    for d in 'AB':
        if both := len(hashes['train' + d] & hashes['test' + d]):
            print(f'note: {both} photos are in train{d} and in test{d} alike: the test is not quite one')
    if title in KNOWN and (n := tuple(len(images[s]) for s in SPLITS)) != KNOWN[title]:
        print(f'note: {title} as released has {KNOWN[title]} files in {SPLITS}, here are {n}')
    size = sum(os.path.getsize(p) for p in out.values() if os.path.exists(p))
    print(', '.join(f'{n:,} {split}' for split, n in counts.items()),
          f'| {image_size} px | {size / 1e9:.2f} GB in {dst} | {time.time() - t0:.0f} s')
