"""
CelebA as memory-mapped arrays: square, upright RGB photos, all 40 attributes as 0/1, the official split.

Needs a folder with list_attr_celeba.txt, list_eval_partition.txt and the aligned photos, either img_align_celeba.zip
(read in place, nothing is unpacked; wins if both are there) or a folder img_align_celeba/. readme.md says where from.

    python data/celeba/prepare.py --src=/where/they/are                      # 128 px, 10 GB, into data/celeba/
    python data/celeba/prepare.py --src=/where/they/are --image_size=64 --dst=data/celeba64       # 2.5 GB
    python data/celeba/prepare.py --src=/where/they/are --force=True         # once more, over what is there

Writes {train,val,test}_x.npy uint8 (N, H, W, 3), {train,val,test}_y.npy uint8 (N, 40) and, last, meta.json; skipped.txt
names the photos that could not be read, if any. Expect 162,770 train / 19,867 val / 19,962 test, after a few minutes
(about 1,000 photos a second and core). Interrupted, it leaves what was there before: start it again.
"""

import collections
import difflib
import io
import itertools
import json
import multiprocessing
import os
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
src = ''  # the folder with the three originals; also looks into its Anno/, Eval/, Img/; '': this script's folder
dst = ''  # where the arrays go; '': this script's folder, which is what --dataset=celeba reads
image_size = 128  # pixels; 64 is a quarter of the disk and of the training time, 256 is more than the photos hold
crop = 178  # centre square cut out first, pixels; 178 is the full width; smaller (say 140) cuts closer to the face
workers = 0  # processes that decode; 0: one for each core; changes the time, never the result
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
        globals()[key] = cast[type(globals()[key])](val)
    except (KeyError, ValueError):
        sys.exit(f"{arg}: wants a {type(globals()[key]).__name__}, like {globals()[key]!r}")
config = {k: globals()[k] for k in config_keys}  # saved with whatever this script makes
# -----------------------------------------------------------------------------

SPLITS = ('train', 'val', 'test')  # 0, 1, 2 in list_eval_partition.txt
EXCLUSIVE = [['Black_Hair', 'Blond_Hair', 'Brown_Hair', 'Gray_Hair', 'Bald'], ['Straight_Hair', 'Wavy_Hair']]
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


def crop_resize(img, image_size, crop):
    """PIL RGB image of any size -> uint8 (image_size, image_size, 3): its centre square of <= crop pixels, resized.

    One resize, so one loss of sharpness. Bicubic, which Pillow widens when it shrinks (so no aliasing): sharper than
    bilinear, and without the halos that Lanczos' wider lobes draw around hair and glasses.
    """
    side = min(crop, *img.size)
    left, top = (img.width - side) // 2, (img.height - side) // 2
    img = img.crop((left, top, left + side, top + side))
    return np.asarray(img.resize((image_size, image_size), Image.Resampling.BICUBIC))


def decode(sources, image_size, crop):
    """A list of paths, file contents (bytes) or exceptions -> a list of (uint8 (H, W, 3), '') or (None, reason).

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
            out.append((crop_resize(read_rgb(source), image_size, crop), ''))
        except Exception as e:  # Pillow raises nearly every kind on damaged files
            out.append((None, ' '.join(str(e).split()) or type(e).__name__))
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


def read_attributes(path):
    """list_attr_celeba.txt -> names [N], attrs [n_attrs], y uint8 (N, n_attrs) in {0, 1}. Exits with what is wrong.

    Also reads the comma-separated form in which the lists circulate: no count, 'image_id' before the attributes' names.
    """
    with open(path, encoding='utf-8-sig', errors='replace') as f:
        lines = f.read().rstrip().replace(',', ' ').split('\n')
    attrs = (lines[0] if lines[0].startswith('image_id ') else ''.join(lines[1:2])).split()
    if attrs[:1] == ['image_id']:
        attrs, first = attrs[1:], 1
    else:
        first = 2
        if not lines[0].strip().isdecimal() or int(lines[0]) != len(lines) - 2:
            sys.exit(f'{path}: line 1 should be the number of rows below the names, {max(len(lines) - 2, 0)}, '
                     f'but is {lines[0][:40]!a}: cut short or edited? Get the file again')
    if not attrs or len(set(attrs)) < len(attrs):
        sys.exit(f'{path}: line {first} should name the attributes, each once, but begins {" ".join(attrs)[:60]!r}')
    names, y, bit = [], np.empty((len(lines) - first, len(attrs)), np.uint8), {'1': 1, '-1': 0}
    for i, line in enumerate(lines[first:]):
        name, *values = line.split() or ['']
        if len(values) != len(attrs):
            sys.exit(f'{path}: line {i + first + 1} has {len(values)} values, wanted {len(attrs)}: {line[:60]!r}')
        try:
            y[i] = [bit[v] for v in values]
        except KeyError as e:
            sys.exit(f'{path}: line {i + first + 1}, {name!r}: the value {e} is neither 1 nor -1')
        names.append(name)
    if len(set(names)) < len(names):
        sys.exit(f'{path}: listed more than once: {few(k for k, n in collections.Counter(names).items() if n > 1)}')
    return names, attrs, y


def read_partition(path, names):
    """list_eval_partition.txt -> [N] of 0, 1, 2 (train, val, test) in the order of names. Exits with what is wrong."""
    with open(path, encoding='utf-8-sig', errors='replace') as f:
        lines = f.read().rstrip().replace(',', ' ').split('\n')
    part, first = {}, int(lines[0].startswith('image_id '))
    for i, line in enumerate(lines[first:], first + 1):
        fields = line.split()
        if len(fields) != 2 or fields[1] not in ('0', '1', '2'):
            sys.exit(f'{path}: line {i} should be a file name and 0, 1 or 2, but is {line[:60]!r}')
        if fields[0] in part:
            sys.exit(f'{path}: line {i}: {fields[0]!r} was listed before')
        part[fields[0]] = int(fields[1])
    both = {'has no row for': set(names) - set(part), 'has rows the attribute file has not:': set(part) - set(names)}
    for text, odd in both.items():
        if odd:
            sys.exit(f'{path}: {text} {few(odd)}: the two lists must be of one download')
    for i, split in enumerate(SPLITS):
        if i not in part.values():
            sys.exit(f'{path}: no image is marked {i} ({split}), all three splits are needed')
    return [part[name] for name in names]


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


def find(folder, stem, *endings):
    """-> path of the first stem + ending in folder or in the official download's subfolders. Exits if there is none."""
    for ending in endings:
        for sub in ('', 'Anno', 'Eval', 'Img'):
            path = os.path.join(folder, sub, stem + ending)
            if os.path.exists(path):
                return path
    if not os.path.isdir(folder):
        sys.exit(f'--src={folder}: not a folder; it should hold the image zip and the two lists, see readme.md')
    sys.exit(f'--src={folder}: no {stem}{endings[0]} there, but {few(os.listdir(folder)) or "nothing"}; see readme.md')


def find_images(path):
    """img_align_celeba.zip or folder -> ZipFile or None, {file name: ZipInfo or path}. Exits on a name found twice."""
    archive, found = None, {}
    if path.endswith('.zip'):
        archive, members = open_zip(path)
        for name, info in members.items():
            base = name.rpartition('/')[2]
            if base in found:
                sys.exit(f'{path}: {base!r} is in it twice, as {found[base].filename!r} and as {name!r}')
            found[base] = info
    else:
        inner = os.path.join(path, 'img_align_celeba')  # a zip unpacked into a folder of its own name
        found = {e.name: e.path for e in os.scandir(inner if os.path.isdir(inner) else path) if e.is_file()}
    found = {k: v for k, v in found.items() if k.lower().endswith(('.jpg', '.jpeg', '.png')) and k[0] != '.'}
    if not found:
        sys.exit(f'{path}: no .jpg in it')
    return archive, found


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
    for key, least in (('image_size', 1), ('crop', 1), ('workers', 0), ('max_bad', 0)):
        if config[key] < least:
            sys.exit(f'--{key}={config[key]}: wants at least {least}')
    here = os.path.dirname(os.path.abspath(__file__))
    config['src'] = src = os.path.abspath(src or here)
    dst = os.path.abspath(dst or here)
    names_out = [f'{split}_{kind}.npy' for split in SPLITS for kind in 'xy'] + ['skipped.txt', 'meta.json']
    out = {name: os.path.join(dst, name) for name in names_out}
    temp = {name: os.path.join(dst, f'.{name}.tmp') for name in names_out}
    writing = False
    try:
        if not force:
            stop_if_there(dst, config, names_out[:-2])

        # the originals, checked against each other before anything is written
        names, attrs, y = read_attributes(find(src, 'list_attr_celeba', '.txt', '.csv'))
        part = read_partition(find(src, 'list_eval_partition', '.txt', '.csv'), names)
        archive, images = find_images(find(src, 'img_align_celeba', '.zip', ''))
        for text, odd in (('lacks', set(names) - set(images)), ('has, unlisted,', set(images) - set(names))):
            if odd:
                sys.exit(f'the image {"zip" if archive else "folder"} in {src} {text} {few(odd)}: '
                         'not all unpacked, or lists and photos of different downloads')
        planned = [part.count(i) for i in range(3)]
        print(f'{len(names):,} photos, {len(attrs)} attributes, from the {"zip" if archive else "folder"} in {src}')

        # room
        os.makedirs(dst, exist_ok=True)
        need = len(names) * (image_size * image_size * 3 + len(attrs))
        writing = True
        for path in temp.values():  # of a run that was killed
            if os.path.exists(path):
                os.remove(path)
        free = shutil.disk_usage(dst).free  # what --force=True replaces stays until the new set is whole
        if free < need:
            sys.exit(f'{dst}: needs {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: '
                     'make room, or give another --dst= or a smaller --image_size=')

        # decode
        x_rows = [Rows(temp[f'{s}_x.npy'], n, (image_size, image_size, 3)) for s, n in zip(SPLITS, planned)]
        y_rows = [Rows(temp[f'{s}_y.npy'], n, (len(attrs),)) for s, n in zip(SPLITS, planned)]
        positive, skipped, t0, shown = np.zeros((3, len(attrs)), int), [], time.time(), time.time()
        sources = contents(archive, (images[name] for name in names))
        chunks = iter(lambda: list(itertools.islice(sources, 32)), [])  # 32 photos a job: few messages, little memory
        cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
        workers = min(workers or cores, 61)  # Windows cannot wait for more
        with ProcessPoolExecutor(workers, initializer=start_worker) as pool:
            results = itertools.chain.from_iterable(in_order(pool, 4 * workers, decode, chunks, image_size, crop))
            for i, (x, reason) in enumerate(results):
                if reason:
                    skipped.append(f'{names[i]}\t{reason}')
                    if len(skipped) > max_bad:
                        first = '; '.join(skipped[:3]).replace('\t', ': ')
                        sys.exit(f'{src}: more than --max_bad={max_bad} photos cannot be read, the first: {first}')
                else:
                    x_rows[part[i]].add(x)
                    y_rows[part[i]].add(y[i])
                    positive[part[i]] += y[i]
                if time.time() - shown > 2:
                    shown = time.time()
                    rate = (i + 1) / (shown - t0)
                    eta = (len(names) - i - 1) / rate
                    print(f'{i + 1:,}/{len(names):,} | {rate:.0f} images/s | eta {eta:.0f} s', flush=True)
        counts = {split: rows.n for split, rows in zip(SPLITS, x_rows)}
        if 0 in counts.values():
            first = skipped[0].replace('\t', ': ')
            sys.exit(f'{src}: no photo of a whole split could be read: {counts}, the first: {first}')

        # into place, meta.json last
        for rows in x_rows + y_rows:
            rows.close()
        if skipped:
            with open(temp['skipped.txt'], 'w', encoding='utf-8', errors='backslashreplace') as f:
                f.write('\n'.join(skipped) + '\n')
        made_by = 'python data/celeba/prepare.py ' + shlex.join(sys.argv[1:])
        with open(temp['meta.json'], 'w') as f:
            json.dump({'dataset': 'celeba', 'label': 'multi', 'image_size': image_size, 'attrs': attrs,
                       'exclusive': [g for g in EXCLUSIVE if set(g) <= set(attrs)],
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

    for row in range(0, len(attrs), 4):  # how many of each attribute the training set has
        print('  '.join(f'{a:>19} {n:<7,}' for a, n in zip(attrs[row:row + 4], positive[0][row:row + 4])))
    if skipped:
        print(f'{len(skipped)} photos could not be read and were left out: {out["skipped.txt"]}')
    size = sum(os.path.getsize(p) for p in out.values() if os.path.exists(p))
    print(', '.join(f'{n:,} {split}' for split, n in counts.items()),
          f'| {image_size} px | {size / 1e9:.2f} GB in {dst} | {time.time() - t0:.0f} s')
