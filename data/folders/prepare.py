"""
Anybody's labelled photos as memory-mapped arrays: class folders, RaFD by its file names, or a table of 0/1 attributes.

    python data/folders/prepare.py --src=mydata                          # mydata/angry/*.jpg mydata/happy/*.jpg ...
    python data/folders/prepare.py --src=mydata.zip --dst=data/mine      # the same, zipped; read in place
    python data/folders/prepare.py --src=RafD                            # Rafd090_01_Caucasian_female_angry_frontal.jpg
    python data/folders/prepare.py --src=photos --csv=labels.csv --exclusive="black,blond;young,old"

Class folders (their subfolders belong to the class) and RaFD give single-label data, one-hot. If the folders are train/
test/ (val/) with the class folders in them, that split is kept and val, if missing, cut out of train. The table has a
header `file,attr1,attr2,...`, file names relative to --src and 0/1 or -1/1 values: multi-label data. Its columns named
`split` (train, val or test) and `identity`, if there, are no attributes: they decide the split.

Writes {train,val,test}_x.npy uint8 (N, H, W, 3), {train,val,test}_y.npy uint8 (N, n_attrs) and, last, meta.json (names
of the val and test photos included); skipped.txt names the photos that could not be read, if any. Some 100 to 1,000
photos a second and core, by their size. Interrupted, it leaves what was there before: start it again.
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
from csv import Error as CSVError
from csv import reader as csv_reader  # csv itself is a flag

import numpy as np
from PIL import Image

# -----------------------------------------------------------------------------
src = ''  # the folder that holds the class folders (or all RaFD files, or the table's files), or a zip of it
dst = ''  # where the arrays go; '': this script's folder, which is what --dataset=folders reads
image_size = 128  # pixels; 64 is a quarter of the disk and of the training time
fit = 'crop'  # 'crop': a square cut out, undistorted; 'squash': the whole photo, its shape ignored
crop = ''  # where 'crop' cuts: x,y of the centre and side, in parts of width, height, shorter side; '': 0.5,0.5,1 (the
#            centre square), but 0.5,0.44,0.9 (the face on RaFD's 681x1024) for RaFD's files outside class folders
classes = ''  # 'happy,sad': only these classes, in this order; '': all, sorted
csv = ''  # a table of labels: its path, absolute or relative to --src, or its name in the zip; '': labels are folders
exclusive = ''  # with csv: groups of attributes of which a photo has at most one, 'black,blond,gray;young,old'
identity = ''  # regular expression, one group: who is on the photo, from its name below the class folder, '(\d+)_';
#                nobody is in two splits. '': from the table's column or RaFD's names, else all photos are of others
angles = '045,090,135'  # RaFD cameras, as StarGAN: from half left to half right; '090': frontal; '': also both profiles
gazes = ''  # RaFD gazes, of frontal,left,right; '': all; looking aside is no expression, so more photos of each
val_share = 0.1  # of every class, unless the split is given; at least one photo
test_share = 0.1  # likewise; more gives steadier test figures, less leaves more to train on
seed = 0  # of the split and of the order of rows; both depend on it and on the names of the photos alone
workers = 0  # processes that decode; 0: one for each core; changes the time, never the result
force = False  # True: redo arrays that are there already, from these or from other settings
max_bad = 100  # unreadable photos to skip before giving up
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

SPLITS = ('train', 'val', 'test')
SPLIT_NAMES = {'train': 'train', 'training': 'train', 'val': 'val', 'valid': 'val', 'validation': 'val', 'dev': 'val',
               'test': 'test', 'testing': 'test'}  # folders of these names are splits, not classes
EXPRESSIONS = ('angry', 'contemptuous', 'disgusted', 'fearful', 'happy', 'neutral', 'sad', 'surprised')
ANGLES, GAZES = ('000', '045', '090', '135', '180'), ('frontal', 'left', 'right')
RAFD = re.compile(rf'Rafd(\d+)_(\d+)_[a-z]+_[a-z]+_({"|".join(EXPRESSIONS)})_([a-z]+)\.\w+', re.I)
Photo = collections.namedtuple('Photo', 'split label identity')  # split '': not given; label: class name or 0/1 values
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


def cut_square(img, image_size, box):
    """PIL RGB image of any size -> uint8 (image_size, image_size, 3): the square at box, or with box None all squashed.

    box: x and y of the centre and the side in parts of width, height, shorter side; moved inward where it would leave
    the photo. One resize, bicubic, which Pillow widens when it shrinks, so there is no aliasing.
    """
    if box:
        x, y, side = box[0] * img.width, box[1] * img.height, max(1, int(box[2] * min(img.size)))
        left, top = (min(max(int(c - side / 2), 0), n - side) for c, n in zip((x, y), img.size))
        img = img.crop((left, top, left + side, top + side))
    return np.asarray(img.resize((image_size, image_size), Image.Resampling.BICUBIC))


def decode(sources, image_size, box):
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
            out.append((cut_square(read_rgb(source), image_size, box), '', hashlib.sha256(source).digest()))
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
    """Folder or zip -> ZipFile or None, {name: ZipInfo or path}, its top folders [k], root, number of other files.

    Names are relative, with /. root is the folder in a zip that all photos are in, stripped from the names; for a
    folder it is ''. Hidden files are no files here, links to folders are followed once.
    """
    archive, entries, root, seen = None, {}, '', set()  # entries: also folders, {name/: None}; some may be empty
    if os.path.isdir(src):
        for folder, dirs, names in os.walk(src, followlinks=True, onerror=lambda e: sys.exit(f'cannot go on: {e}')):
            dirs.sort()
            if os.path.realpath(folder) in seen:
                dirs.clear()
                continue
            seen.add(os.path.realpath(folder))
            entries |= {os.path.join(folder, d, ''): None for d in dirs}
            entries |= {p: p for p in (os.path.join(folder, n) for n in names) if os.path.isfile(p)}
        entries = {p[len(os.path.join(src, '')):].replace(os.sep, '/'): v for p, v in entries.items()}
    elif os.path.isfile(src):
        archive, members = open_zip(src)
        entries = {n: None for n in (n.replace('\\', '/') for n in archive.namelist()) if n.endswith('/')} | members
    else:
        sys.exit(f'--src={src}: no such folder or zip')
    entries = {n: v for n, v in entries.items() if not any(p[:1] == '.' or p == '__MACOSX' for p in n.split('/'))}
    while archive:
        tops = {''.join(n.partition('/')[:2]) for n in entries if n.lower().endswith((*ENDINGS, '/'))}
        if len(tops) != 1 or not (top := tops.pop()).endswith('/'):
            break
        root += top
        entries = {n.removeprefix(top): v for n, v in entries.items() if n != top}
    files = {n: entries[n] for n in sorted(entries) if n.lower().endswith(ENDINGS)}
    if not files:
        sys.exit(f'--src={src}: no images in it; looked for {" ".join(ENDINGS)}')
    folders = sorted({n.rpartition('/')[0] for n in entries} - {''})
    return archive, files, folders, root, sum(v is not None for v in entries.values()) - len(files)


def check_names(where, names):
    """Exits unless names, of classes or attributes, are each there once and can stand in a comma list."""
    bad = [n for n in names if not n or ',' in n or n != n.strip() or not n.isprintable()]
    if bad:
        sys.exit(f'{where}: not a name to use in --attrs= lists: {few(bad)}: no comma, no space around it; rename it')
    if len(set(names)) < len(names):
        sys.exit(f'{where}: named more than once: {few(n for n, k in collections.Counter(names).items() if k > 1)}')


def read_classes(src, names, folders, classes, angles, gazes):
    """Class folders, or else RaFD's names -> attrs [n_attrs], {name: Photo}, whether RaFD's names gave the labels.

    Folders called train, test, val, ... around the class folders are the given split. Exits with what is wrong.
    """
    inner = {name: ('', name) for name in names}  # -> the given split, the rest of the name
    filled = {name.partition('/')[0] for name in names if '/' in name}
    splits = {top: SPLIT_NAMES[top.lower()] for top in sorted(filled) if top.lower() in SPLIT_NAMES}
    if len(splits) > 1 or splits and len(splits) == len(filled):  # one beside others: a class, say of vehicles
        if filled - set(splits):
            sys.exit(f'--src={src}: {few(splits)} look like splits, but beside them {few(filled - set(splits))} hold '
                     'photos too: move these or those elsewhere')
        if 'train' not in splits.values():
            sys.exit(f'--src={src}: {few(splits)}: a split, not classes, but there is no train folder beside')
        inner = {name: (splits[name.partition('/')[0]], name.partition('/')[2]) for name in names if '/' in name}
        folders = [f.partition('/')[2] for f in folders if f.partition('/')[0] in splits and '/' in f]
    tops = sorted({f.partition('/')[0] for f in folders})
    loose = [name for name, (_, rest) in inner.items() if '/' not in rest]
    match = {name: RAFD.fullmatch(name.rpartition('/')[2]) for name in inner}
    if by_name := len(loose) == len(inner) and all(match.values()):
        for values, k in ((angles, 1), (gazes, 4)):
            inner = {n: v for n, v in inner.items() if not values or match[n][k].lower() in values.split(',')}
        print(f'{len(inner):,} of {len(match):,} RaFD photos are of --angles={angles} --gazes={gazes}')
        label = {name: match[name][3].lower() for name in inner}
    elif len(tops) < 2:
        odd = [name for name in inner if not match[name]]
        deeper = any(name.count('/') > 1 or match[name] for name in inner if '/' in name) and not splits
        sys.exit(f'--src={src}: ' + (
            f'no class folders in it, one for each class, nor only RaFD file names: {few(odd)}' if not tops else
            f'one folder too high, try --src={os.path.join(src, tops[0])}' if deeper and os.path.isdir(src) else
            f'only one class folder, {tops[0]!r}, wanted at least two'))
    else:
        label = {name: rest.partition('/')[0] for name, (_, rest) in inner.items() if '/' in rest}
        if loose:
            print(f'note: {len(loose)} photos are in no class folder and are left out: {few(loose)}')
    there = sorted(set(label.values())) if by_name else tops
    attrs, where = ([c.strip() for c in classes.split(',')], f'--classes={classes}') if classes else (there, src)
    check_names(where, attrs)
    if unknown := set(attrs) - set(there):
        sys.exit(f'{where}: there is no {few(unknown)} in {src}, but {few(there)}')
    if empty := set(attrs) - set(label.values()):
        sys.exit(f'{src}: no photos in the class folder {few(empty)}: fill or remove it, or list the --classes= to use')
    if len(attrs) < 2:
        sys.exit(f'{where}: {len(attrs) or "no"} class, wanted at least two')
    return attrs, {name: Photo(inner[name][0], c, match[name] and match[name][2]) for name, c in label.items()
                   if c in attrs}, by_name


def read_table(src, csv, archive, files, root):
    """The table of labels -> attrs [n_attrs], {name: Photo} with label a tuple of 0/1, {name: ZipInfo or path}.

    Names are as in the table, made plain; in a zip they may lack any part of root. Exits with what is wrong.
    """
    tops = ['', *(root[:m.end()] for m in re.finditer('/', root))]  # '', 'mydata/', 'mydata/photos/'
    path = next((p for p in (os.path.join(src, csv), csv) if os.path.isfile(p)), None)
    if path:
        with open(path, 'rb') as f:
            data = f.read()
    elif inside := [top + csv for top in tops if archive and top + csv in archive.namelist()]:
        data = next(contents(archive, [archive.getinfo(inside[0])]))
        if isinstance(data, Exception):
            sys.exit(f'{csv}, in {src}: {data}')
    else:
        sys.exit(f'--csv={csv}: no such file, neither in {src} nor here')
    rows = csv_reader(io.StringIO(data.decode('utf-8-sig', 'replace'), newline=''))
    files, photos, paths, used, missing = {root + n: v for n, v in files.items()}, {}, {}, set(), []
    try:
        header = [h.strip() for h in next(rows, [])]
        attrs = [h for h in header[1:] if h not in ('split', 'identity')]
        if header[:1] != ['file'] or not attrs:
            sys.exit(f'{csv}: line 1 should be file,attr1,attr2,... with commas, but begins {",".join(header)[:60]!r}')
        check_names(f'{csv}: line 1', header)
        for row in rows:
            if not row:  # an empty line
                continue
            where, values = f'{csv}: line {rows.line_num}', dict(zip(header, (v.strip() for v in row)))
            if len(row) != len(header):
                sys.exit(f'{where} has {len(row) - 1} values, wanted {len(header) - 1}: {",".join(row)[:60]!r}')
            name = os.path.normpath(values['file']).replace('\\', '/')  # ./a.jpg, a\b.jpg
            if name in photos:
                sys.exit(f'{where}: {values["file"]!r} was listed before')
            for a in attrs:
                if values[a] not in ('0', '1', '-1'):
                    sys.exit(f'{where}: {a} is {values[a]!r}, wanted 1 or 0 (or 1 or -1)')
            if values.get('split', 'train') not in SPLITS:
                sys.exit(f'{where}: split is {values["split"]!r}, wanted {", ".join(SPLITS)}')
            if values.get('identity') == '':
                sys.exit(f'{where}: the identity is empty; one for everybody, or no such column')
            used |= {values[a] for a in attrs}
            paths[name] = next((files[top + name] for top in tops if top + name in files), None)
            missing += [] if paths[name] else [values['file']]
            photos[name] = Photo(values.get('split', ''), tuple(int(values[a] == '1') for a in attrs),
                                 values.get('identity'))
    except CSVError as e:
        sys.exit(f'{csv}: line {rows.line_num}: {e}')
    if missing:
        sys.exit(f'{csv}: {len(missing)} of {len(photos)} files are not in {src}: {few(missing)}')
    if {'0', '-1'} <= used:
        sys.exit(f'{csv}: has both 0 and -1; write no as one of them, and leave out rows that are not known')
    if not photos:
        sys.exit(f'{csv}: no rows below the header')
    if len(photos) < len(files):
        print(f'note: {len(files) - len(photos):,} photos have no row in {csv} and are left out')
    return attrs, photos, paths


def shuffled(names, seed):
    """names in an order that depends on nothing but each name and the seed."""
    return sorted(names, key=lambda name: hashlib.sha256(f'{seed} {name}'.encode('utf-8', 'surrogateescape')).digest())


def make_splits(photos, shares, seed):
    """{name: Photo} -> {name: split}: as given; a split not given is cut out of train, with nobody in two splits.

    shares: {'test': 0.1, 'val': 0.1}, of every class where the labels are classes, else of all. Identities are taken in
    a shuffled order: those of whose photos most are still wanted, and those with a class that has none yet.
    """
    split = {name: p.split or 'train' for name, p in photos.items()}
    given = set(split.values())
    kind = {name: p.label if isinstance(p.label, str) else '' for name, p in photos.items()}
    total = collections.Counter(kind[name] for name, s in split.items() if s == 'train')
    for part in [part for part in shares if part not in given]:
        want = {k: max(1, round(shares[part] * n)) for k, n in total.items()}
        need, people = dict(want), collections.defaultdict(list)
        for name, s in split.items():
            if s == 'train':
                people[photos[name].identity or name].append(name)
        for who in shuffled(people, seed):
            has = collections.Counter(kind[name] for name in people[who])
            if (2 * sum(min(n, need[k]) for k, n in has.items()) > has.total()
                    or any(need[k] == want[k] for k in has)):
                need |= {k: need[k] - n for k, n in has.items()}
                split |= dict.fromkeys(people[who], part)
    return split


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
    for key, known in (('angles', ANGLES), ('gazes', GAZES)):
        if config[key] and not set(config[key].split(',')) <= set(known):
            sys.exit(f'--{key}={config[key]}: wants some of {",".join(known)}, with commas')
    if not (val_share > 0 and test_share > 0 and val_share + test_share < 1):
        sys.exit(f'--val_share={val_share} --test_share={test_share}: want more than 0 each, less than 1 together')
    try:
        box = [float(v) for v in crop.split(',')] if crop else [0.5, 0.5, 1]
        if len(box) != 3 or not (min(box) >= 0 and max(box) <= 1 and box[2] > 0):
            raise ValueError
    except ValueError:
        sys.exit(f'--crop={crop}: wants x,y,side between 0 and 1, like 0.5,0.44,0.9')
    try:
        who = re.compile(identity)
    except re.error as e:
        sys.exit(f'--identity={identity}: not a regular expression: {e}')
    if identity and who.groups != 1:
        sys.exit(f'--identity={identity}: wants one group in brackets, has {who.groups}')
    if csv and classes or exclusive and not csv:
        sys.exit('--classes= goes with class folders, --exclusive= with --csv=, whose columns are the attributes')
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

        # the photos, their labels and their split, checked before anything is written
        archive, files, folders, root, others = find_images(src)
        if csv:
            attrs, photos, files = read_table(src, csv, archive, files, root)
            groups = [[a.strip() for a in group.split(',')] for group in exclusive.split(';') if group]
            for group in groups:
                if len(set(group)) < max(2, len(group)) or not set(group) <= set(attrs):
                    sys.exit(f'--exclusive={exclusive}: {",".join(group)!r}: wants two or more of {",".join(attrs)}')
                both = sum(sum(p.label[attrs.index(a)] for a in group) > 1 for p in photos.values())
                if both:
                    print(f'note: {both:,} of {len(photos):,} photos have more than one of {",".join(group)}')
        else:
            attrs, photos, by_name = read_classes(src, files, folders, classes, angles, gazes)
            groups, box = [attrs], [0.5, 0.44, 0.9] if by_name and not crop else box
        if identity:
            # who is searched in: for class folders the name below the (split and) class folder
            tail = {name: name.split('/', 1 + bool(p.split))[-1] if not csv else name for name, p in photos.items()}
            if odd := [name for name in photos if not who.search(tail[name])]:
                sys.exit(f'--identity={identity}: no match in {len(odd)} of {len(photos)} names: {few(odd)}')
            photos = {name: p._replace(identity=who.search(tail[name])[1]) for name, p in photos.items()}
        split = make_splits(photos, {'test': test_share, 'val': val_share}, seed)
        if given := {p.split for p in photos.values()} - {''}:
            cut = [s for s in SPLITS if s not in given]
            print('split as given' + (f', {" and ".join(cut)} cut out of train' if cut else ''))
        todo = shuffled(photos, seed)  # a mixed order, as samples are drawn of the first test photos
        for s in SPLITS:
            lacks = {p.label for p in photos.values()} - {photos[name].label for name in todo if split[name] == s}
            if s not in split.values() or lacks and not csv:
                sys.exit(f'{src}: {s} would have no photo{f" of {few(lacks)}" if not csv else ""}: more photos are '
                         'needed, fewer --classes=, or (where the split is not given) another --seed= or share')
        people = {s: {photos[name].identity for name in todo if split[name] == s} for s in SPLITS}
        known = None not in set().union(*people.values())
        print(f'{len(todo):,} photos, {len(attrs)} {"attributes" if csv else "classes"}, from {src}' +
              (f', identities: {", ".join(f"{len(people[s])} {s}" for s in SPLITS)}' if known else '') +
              (f', beside {others} files that are not {" ".join(ENDINGS)}' if others else ''))
        for s in ('val', 'test'):
            if known and people[s] & people['train']:
                print(f'note: the split as given has {len(people[s] & people["train"])} people in train and {s} alike')

        # room
        os.makedirs(dst, exist_ok=True)
        need = len(todo) * (image_size * image_size * 3 + len(attrs))
        writing = True
        for path in temp.values():  # of a run that was killed
            if os.path.exists(path):
                os.remove(path)
        free = shutil.disk_usage(dst).free  # what --force=True replaces stays until the new set is whole
        if free < need:
            sys.exit(f'{dst}: needs {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: '
                     'make room, or give another --dst= or a smaller --image_size=')

        # decode
        x_rows = {s: Rows(temp[f'{s}_x.npy'], len(todo), (image_size, image_size, 3)) for s in SPLITS}
        y_rows = {s: Rows(temp[f'{s}_y.npy'], len(todo), (len(attrs),)) for s in SPLITS}
        positive, hashes = ({s: start() for s in SPLITS} for start in (lambda: np.zeros(len(attrs), int), set))
        kept, skipped = {s: [] for s in SPLITS}, []
        t0 = shown = time.time()
        sources = contents(archive, (files[name] for name in todo))
        chunks = iter(lambda: list(itertools.islice(sources, 4)), [])  # 4 photos a job: they may be large
        cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
        workers = min(workers or cores, 61)  # Windows cannot wait for more
        with ProcessPoolExecutor(workers, initializer=start_worker) as pool:
            results = itertools.chain.from_iterable(in_order(pool, 4 * workers, decode, chunks, image_size,
                                                             box if fit == 'crop' else None))
            for i, (name, (x, reason, file_hash)) in enumerate(zip(todo, results)):
                if reason:
                    skipped.append(f'{name}\t{reason}')
                    if len(skipped) > max_bad:
                        first = '; '.join(map(repr, skipped[:3])).replace('\\t', ': ')
                        sys.exit(f'{src}: more than --max_bad={max_bad} photos cannot be read, the first: {first}')
                else:
                    s, label = split[name], photos[name].label
                    y = np.array(label if csv else [a == label for a in attrs], np.uint8)
                    x_rows[s].add(x)
                    y_rows[s].add(y)
                    positive[s] += y
                    hashes[s].add(file_hash)
                    kept[s].append(name)
                if time.time() - shown > 2:
                    shown = time.time()
                    rate = (i + 1) / (shown - t0)
                    eta = (len(todo) - i - 1) / rate
                    print(f'{i + 1:,}/{len(todo):,} | {rate:.0f} images/s | eta {eta:.0f} s', flush=True)
        counts = {s: rows.n for s, rows in x_rows.items()}
        if 0 in counts.values() or not csv and 0 in np.stack(list(positive.values())):
            first = repr(skipped[0]).replace('\\t', ': ')
            sys.exit(f'{src}: no photo of a whole split or class could be read: {counts}, the first: {first}')

        # into place, meta.json last
        for rows in (*x_rows.values(), *y_rows.values()):
            rows.close()
        if skipped:
            with open(temp['skipped.txt'], 'w', encoding='utf-8', errors='backslashreplace') as f:
                f.write('\n'.join(skipped) + '\n')
        made_by = 'python data/folders/prepare.py ' + shlex.join(sys.argv[1:])
        title = re.sub(r'\.zip$', '', os.path.basename(src), flags=re.I) or 'folders'
        with open(temp['meta.json'], 'w') as f:  # split: the names of the rows, in their order
            json.dump({'dataset': title, 'label': 'multi' if csv else 'single', 'image_size': image_size,
                       'attrs': attrs, 'exclusive': groups, 'counts': counts, 'made_by': made_by.strip(),
                       'config': config, 'split': {s: kept[s] for s in ('val', 'test')}}, f, indent=1)
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

    for row in (['', *SPLITS], *([a, *(f'{positive[s][k]:,}' for s in SPLITS)] for k, a in enumerate(attrs))):
        print(f'{row[0]:>{max(map(len, attrs))}}' + ''.join(f'{cell:>10}' for cell in row[1:]))
    if skipped:
        print(f'{len(skipped)} photos could not be read and were left out: {out["skipped.txt"]}')
    for s in ('val', 'test'):
        if both := len(hashes['train'] & hashes[s]):
            print(f'note: {both} photos are in train and in {s} alike, byte for byte: the {s} is not quite one')
    size = sum(os.path.getsize(p) for p in out.values() if os.path.exists(p))
    print(', '.join(f'{n:,} {split}' for split, n in counts.items()),
          f'| {image_size} px | {size / 1e9:.2f} GB in {dst} | {time.time() - t0:.0f} s')
