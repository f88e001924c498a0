"""
Anybody's labelled photos as memory-mapped arrays: class folders, RaFD by its file names, or a table of 0/1 attributes.

    python data/folders/prepare.py --src=mydata            # mydata/angry/*.jpg mydata/happy/*.jpg ..., or a zip of it
    python data/folders/prepare.py --src=RafD --dst=data/rafd        # Rafd090_01_Caucasian_female_angry_frontal.jpg ...
    python data/folders/prepare.py --src=photos --csv=labels.csv --exclusive="black,blond;young,old"

Class folders (subfolders belong to the class) and RaFD give single-label data; train/ test/ (val/) around them are kept
as the split. The table, multi-label, has a header `file,attr1,attr2,...`, file names relative to --src and 0/1 or -1/1;
its columns `split` (train, val or test) and `identity` are no attributes, they decide the split. Writes
{train,val,test}_x.npy uint8 (N, H, W, 3), _y.npy uint8 (N, n_attrs), skipped.txt if there are photos that cannot be
read and, last, meta.json, with the names of the val and test photos.
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
import warnings
import zipfile
from csv import reader as csv_reader  # csv itself is a flag
from multiprocessing.pool import ThreadPool

import numpy as np
from PIL import Image, ImageOps

# -----------------------------------------------------------------------------
src = ''  # the folder that holds the class folders (or all RaFD files, or the table's files), or a zip of it
dst = ''  # where the arrays go; '': this script's folder, which is what --dataset=folders reads
image_size = 128  # pixels; 64 is a quarter of the disk and of the training time
fit = 'crop'  # 'crop': a square cut out, undistorted; 'squash': the whole photo, its shape ignored
crop = ''  # centre and side of the cut, parts of width, height, shorter side; '': 0.5,0.5,1; RaFD's faces 0.5,0.44,0.9
classes = ''  # 'happy,sad': only these classes, in this order; '': all, sorted
csv = ''  # a table of labels: its path, absolute or relative to --src, or its name in the zip; '': labels are folders
exclusive = ''  # with csv: groups of attributes of which a photo has at most one, 'black,blond,gray;young,old'
identity = ''  # regular expression: who is on it, in its name below the class folder, '(\d+)_'; nobody is in two splits
angles = '045,090,135'  # RaFD cameras, as StarGAN: from half left to half right; '090': frontal; '': also both profiles
gazes = ''  # RaFD gazes, of frontal,left,right; '': all; looking aside is no expression, so more photos of each
val_share = 0.1  # of every class, unless the split is given; at least one photo
test_share = 0.1  # likewise; more gives steadier test figures, less leaves more to train on
seed = 0  # of the split and of the order of rows; both depend on it and on the names of the photos alone
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
        val = cast[type(globals()[key])](val)
        assert isinstance(val, str) or key.endswith(('_interval', 'n_critic', 'batch_size')) <= val < float('inf')
        globals()[key] = val
    except (KeyError, ValueError, AssertionError):
        sys.exit(f"{arg}: wants a {type(globals()[key]).__name__}, finite, 0 or 1 at least, like {globals()[key]!r}")
# -----------------------------------------------------------------------------

SPLITS = ('train', 'val', 'test')
GIVEN = {s: s for s in SPLITS} | dict(training='train', valid='val', validation='val', dev='val', testing='test')
RAFD = re.compile(r'Rafd(\d+)_(\d+)_[a-z]+_[a-z]+_'  # camera, person
                  r'(angry|contemptuous|disgusted|fearful|happy|neutral|sad|surprised)_([a-z]+)\.\w+', re.I)  # gaze
Photo = collections.namedtuple('Photo', 'file split label identity')  # split '': not given; label: class or 0/1 values
ENDINGS = ('.jpg', '.jpeg', '.jfif', '.png', '.webp', '.bmp', '.gif', '.tif', '.tiff', '.ppm', '.pgm')
FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'TIFF', 'PPM')  # not all of Pillow's: EPS would start ghostscript


def cut(img):
    """PIL image -> the square at box, moved inward where it would leave the photo; or all of it, to be squashed."""
    x, y, side = box[0] * img.width, box[1] * img.height, max(1, int(box[2] * min(img.size)))
    left, top = (min(max(int(c - side / 2), 0), n - side) for c, n in zip((x, y), img.size))
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


def read_classes(images, root):
    """Class folders, or else RaFD's names -> attrs, {name: Photo}, whether RaFD's names gave the labels."""
    names = [name.removeprefix(root) for name in images]
    inner, tops = {name: ('', name) for name in names}, {name.partition('/')[0] for name in names if '/' in name}
    splits = {top for top in tops if top.lower() in GIVEN}
    if len(splits) > 1 or splits and splits == tops:  # one beside others: a class, say of vehicles
        if splits < tops or 'train' not in {GIVEN[top.lower()] for top in splits}:
            sys.exit(f'--src={src}: {sorted(splits)} look like splits, but there is no train, or others are beside')
        inner = {name: (GIVEN[top.lower()], rest) for name in names for top, sep, rest in [name.partition('/')] if sep}
    rafd = {name: RAFD.fullmatch(os.path.basename(name)) for name in inner}
    by_name = all(rafd.values()) and not any('/' in rest for _, rest in inner.values())
    if by_name:
        label = {name: m[3].lower() for name, m in rafd.items() if (not angles or m[1] in angles.split(','))
                 and (not gazes or m[4].lower() in gazes.split(','))}
    else:
        label = {name: rest.partition('/')[0] for name, (_, rest) in inner.items() if '/' in rest}
    there = sorted(set(label.values()))
    if len(there) < 2:
        odd = [name for name in names if not RAFD.fullmatch(name)][:3] or names[:3]
        sys.exit(f'--src={src}: wanted two class folders, or only RaFD names, of --angles= and --gazes=, got '
                 f'{there or "none"}, and {odd}: one folder too high or too low?')
    print(f'{len(label):,} of {len(names):,} photos are in {"--angles= and --gazes=" if by_name else "class folders"}')
    attrs = [c.strip() for c in classes.split(',')] if classes else there
    if len(set(attrs) & set(there)) < max(2, len(attrs)) or any(',' in a or a != a.strip() for a in attrs):
        sys.exit(f'--src={src} --classes={classes}: wants two or more, each once, no commas in the names, of {there}')
    photos = {name: Photo(root + name, inner[name][0], c, rafd[name] and rafd[name][2]) for name, c in label.items()}
    return attrs, {name: p for name, p in photos.items() if p.label in attrs}, by_name


def read_table(read, files, root):
    """The table -> attrs, {name: Photo} with labels [n_attrs], False. Its names may lack root, a zip's folder."""
    tops = ['', *(root[:m.end()] for m in re.finditer('/', root))]  # '', 'mydata/', 'mydata/photos/'
    files, inside = set(files), [top + csv for top in tops if top + csv in files]
    inside or os.path.isfile(csv) or sys.exit(f'--csv={csv}: no such file, neither in {src} nor here')
    text = (read(inside[0]) if inside else pathlib.Path(csv).read_bytes()).decode('utf-8-sig', 'replace')
    rows, photos, used = csv_reader(io.StringIO(text, newline='')), {}, set()
    header = [h.strip() for h in next(rows, [])]
    attrs = [h for h in header[1:] if h not in ('split', 'identity')]
    if header[:1] != ['file'] or not attrs or len(set(header)) < len(header) or any(',' in a or not a for a in attrs):
        sys.exit(f'{csv}: line 1 should be file,attr1,attr2,..., each once, but begins {",".join(header)[:60]!r}')
    for row in filter(None, rows):
        where, values = f'{csv}: line {rows.line_num}: {",".join(row)[:60]!r}', dict(zip(header, map(str.strip, row)))
        if (len(row) != len(header) or not {values[a] for a in attrs} <= {'0', '1', '-1'}
                or values.get('split', 'train') not in SPLITS or values.get('identity') == ''):
            sys.exit(f'{where}: wanted {len(header)} values, labels 1 or 0 (or 1 or -1), split train, val or test')
        name = os.path.normpath(values['file']).replace('\\', '/')  # ./a.jpg, a\b.jpg
        file = next((top + name for top in tops if top + name in files), None)
        if not file or name in photos:
            sys.exit(f'{where}: {"was listed before" if file else f"no such file in {src}"}')
        used |= {values[a] for a in attrs}
        photos[name] = Photo(file, values.get('split', ''), [values[a] == '1' for a in attrs], values.get('identity'))
    if not photos or {'0', '-1'} <= used:
        sys.exit(f'{csv}: {"has both 0 and -1; write no as one of them" if photos else "no rows below the header"}')
    return attrs, photos, False


def shuffled(names):
    """names in an order that depends on nothing but each name and the seed."""
    return sorted(names, key=lambda name: hashlib.sha256(f'{seed} {name}'.encode('utf-8', 'surrogateescape')).digest())


def make_splits(photos):
    """{name: Photo} -> {name: split}: as given; a split not given is cut out of train, with nobody in two splits."""
    split = {name: p.split or 'train' for name, p in photos.items()}
    kind, given = {name: '' if csv else p.label for name, p in photos.items()}, set(split.values())
    total = collections.Counter(kind[name] for name in split if split[name] == 'train')
    for part, share in [pair for pair in (('test', test_share), ('val', val_share)) if pair[0] not in given]:
        want, people = {k: max(1, round(share * n)) for k, n in total.items()}, collections.defaultdict(list)
        need = dict(want)  # of every class; with a table, of all
        for name in [name for name in split if split[name] == 'train']:
            people[photos[name].identity or name].append(name)
        for who in shuffled(people):  # taken if most of their photos are still wanted, or a class has none yet
            has = collections.Counter(kind[name] for name in people[who])
            wanted = sum(min(n, need[k]) for k, n in has.items())
            if 2 * wanted > has.total() or any(need[k] == want[k] for k in has):
                need |= {k: need[k] - n for k, n in has.items()}
                split |= dict.fromkeys(people[who], part)
    return split


if __name__ == '__main__':
    image_size > 0 or sys.exit('--image_size=0: wants at least 1')
    fit in ('squash', 'crop') or sys.exit(f'--fit={fit}: wants squash or crop')
    0 < val_share < 1 - test_share < 1 or sys.exit('--val_share= --test_share=: want more than 0, less than 1 together')
    classes and csv and sys.exit('--classes= goes with class folders; with --csv= the columns are the attributes')
    try:
        who, box = re.compile(identity), [float(v) for v in crop.split(',') if crop]
        assert len(box) in (0, 3) and all(0 <= v <= 1 for v in box), 'wants x,y,side between 0 and 1, like 0.5,0.44,0.9'
    except (re.error, ValueError, AssertionError) as e:
        sys.exit(f'--identity={identity} --crop={crop}: {e}')
    src = os.path.abspath(src or os.path.dirname(__file__))
    out = pathlib.Path(os.path.abspath(dst or os.path.dirname(__file__)))
    config, temp, t0 = {k: globals()[k] for k in config_keys}, None, time.time()
    warnings.simplefilter('error', Image.DecompressionBombWarning)  # over 89 megapixels: no photo
    try:
        stop_if_there()

        # the photos, their labels and their split, checked before anything is written
        read, files = open_src(src)
        images = [name for name in files if name.lower().endswith(ENDINGS)]
        images or sys.exit(f'--src={src}: no images in it; looked for {" ".join(ENDINGS)}')
        root = '' if os.path.isdir(src) else re.match('.*/|', os.path.commonprefix(images))[0]  # of a zip
        attrs, photos, by_name = read_table(read, files, root) if csv else read_classes(images, root)
        box = box or ([0.5, 0.44, 0.9] if by_name else [0.5, 0.5, 1])
        groups = [group.split(',') for group in exclusive.split(';') if group] if csv else [attrs]
        if odd := [g for g in groups if len(set(g) & set(attrs)) < max(2, len(g))]:
            sys.exit(f'--exclusive={exclusive}: {odd[0]}: wants two or more of {",".join(attrs)}')
        if identity:  # searched in the name, for class folders that below the (split and) class folder
            tail = {name: name if csv else name.split('/', 1 + bool(p.split))[-1] for name, p in photos.items()}
            if odd := [name for name in photos if not who.search(tail[name])]:
                sys.exit(f'--identity={identity}: no match in {len(odd)} of {len(photos)} names, such as {odd[:3]}')
            photos = {name: p._replace(identity=who.search(tail[name])[who.groups]) for name, p in photos.items()}
        split = make_splits(photos)
        todo = sorted(shuffled(photos), key=lambda name: SPLITS.index(split[name]))  # mixed within each split
        label = {name: 'all' if csv else p.label for name, p in photos.items()}
        lacks = {(s, a) for s in SPLITS for a in label.values()} - {(split[name], label[name]) for name in todo}
        lacks and sys.exit(f'{src}: no photo would be in {sorted(lacks)[:3]}: more are needed, or another --seed=')
        people = {s: len({photos[name].identity for name in todo if split[name] == s} - {None}) for s in SPLITS}
        print(f'{len(todo):,} photos, {len(attrs)} attributes, people (where known): {people}')

        out.mkdir(parents=True, exist_ok=True)
        need, free = len(todo) * image_size ** 2 * 3 / 1e9, shutil.disk_usage(out).free / 1e9
        need < free or sys.exit(f'--dst={out}: needs {need:.2f} GB, but {free:.2f} GB are free: make room')
        temp = out / '.prepare.tmp'  # all is written there, and moved when it is whole
        shutil.rmtree(temp, ignore_errors=True)  # of a run that was killed
        temp.mkdir()

        # decode
        def hashed(name):
            digest[name] = hashlib.sha256(data := read(photos[name].file)).digest()
            return data
        digest, skipped, kept, y = {}, {}, {s: [] for s in SPLITS}, {}
        for s, rows in itertools.groupby(decode_all(hashed, todo, skipped), lambda photo: split[photo[0]]):
            kept[s] = write_rows(temp / f'{s}_x.npy', rows)
            y[s] = np.array([photos[n].label if csv else [a == label[n] for a in attrs] for n in kept[s]], np.uint8)
            np.save(temp / f'{s}_y.npy', y[s])
        counts = {s: len(names) for s, names in kept.items()}
        if 0 in counts.values() or not csv and not all(rows.any(0).all() for rows in y.values()):
            sys.exit(f'{src}: no photo of a whole split or class: {counts}, {list(skipped.items())[:3]}')
        for row in ([' ', *SPLITS], *([a, *(y[s][:, k].sum() for s in SPLITS)] for k, a in enumerate(attrs))):
            print(f'{row[0]:>{max(map(len, attrs))}}' + ''.join(f'{cell:>10}' for cell in row[1:]))
        for s in ('val', 'test'):
            both = {digest[name] for name in kept['train']} & {digest[name] for name in kept[s]}
            both and print(f'note: {len(both)} photos are in train and in {s} alike, byte for byte')
        title = re.sub(r'\.zip$', '', os.path.basename(src), flags=re.I) or 'folders'
        meta = {'dataset': title, 'label': 'multi' if csv else 'single', 'image_size': image_size, 'attrs': attrs,
                'exclusive': groups, 'split': {s: kept[s] for s in ('val', 'test')}}  # split: the names of the rows

        # into place, meta.json last
        if skipped:
            text = ''.join(f'{name}\t{skipped[name]}\n' for name in sorted(skipped))
            (temp / 'skipped.txt').write_text(text, encoding='utf-8', errors='backslashreplace')
            print(f'{len(skipped)} photos could not be read and were left out, see skipped.txt')
        meta |= {'counts': counts, 'made_by': shlex.join(['python', 'data/folders/prepare.py', *sys.argv[1:]])}
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
