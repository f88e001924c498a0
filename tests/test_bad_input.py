"""What happens if the input is wrong, one table: every row ends in exit code 1 and one line, and changes no file.

A row is a name, what is done to a copy of a small world of good files, the command, and what the line must say. The
commands that make data point at a finished set with --force=True, so that "no file" includes the set that is there.
"""

import hashlib
import json
import os
import pickle
import shutil
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from conftest import TINY, TINY_S, make_data, run
from PIL import Image

UAG_TINY = ['--image_size=16', '--ngf=4', '--n_blocks=1', '--ndf=4', '--naf=4', '--d_n_layers=2', '--n_epochs=1',
            '--n_samples=1', '--device=cpu']
PHOTOS = ' --image_size=16 --workers=1 --force=True'
DRAWN = ' --image_size=32 --n_train=2 --n_test=2 --workers=1 --force=True'
CELEBA = 'data/celeba/prepare.py --src={w}/celeba --dst={w}/celeba16' + PHOTOS
PAIRS = 'data/unpaired/prepare.py --src={w}/pairs --dst={w}/pairs16' + PHOTOS
FOLDERS = 'data/folders/prepare.py --src={w}/folders --dst={w}/folders16' + PHOTOS
TABLE = FOLDERS + ' --csv={w}/table.csv'
FACES = 'data/toyfaces/prepare.py --dst={w}/faces --n_val=2' + DRAWN
EXPRESSIONS = 'data/toyexpressions/prepare.py --dst={w}/expressions --n_val=2' + DRAWN
FRUIT = 'data/toyfruit/prepare.py --dst={w}/fruit' + DRAWN
PREPARE = dict(CelebA=CELEBA, unpaired=PAIRS, folders=FOLDERS, toyfaces=FACES, toyexpressions=EXPRESSIONS,
               toyfruit=FRUIT)
T = 'train_teacher.py --dataset={w}/attrs --out_dir={w}/new ' + ' '.join(TINY)
S = 'train_student.py --teacher={w}/T/ckpt.pt --out_dir={w}/new ' + ' '.join(TINY_S)
U = 'train_uag.py --dataset={w}/pairs16 --out_dir={w}/new ' + ' '.join(UAG_TINY)
E = 'evaluate.py --ckpt={w}/T/ckpt.pt --out_dir={w}/new --clf_dir={w}/clf --clf_epochs=1 --device=cpu'
# runs its first argument, in which | stands for a blank, and then the command that follows
WRAP = """import os, runpy, sys
exec(sys.argv[1].replace('|', ' '))
sys.argv = sys.argv[2:]
sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name='__main__')
"""
NO_ROOM = '{w}/wrap.py import|shutil;shutil.disk_usage=lambda|p:shutil._ntuple_diskusage(9,9,10) '
FULL = '{w}/wrap.py import|resource;resource.setrlimit(resource.RLIMIT_FSIZE,(500,500)) '  # bytes in one file


@pytest.fixture(scope='session')
def world(tmp_path_factory, teacher):
    """Good input of every kind, small: originals, prepared sets, checkpoints."""
    w, rng = tmp_path_factory.mktemp('world'), np.random.default_rng(0)
    photo = lambda: Image.fromarray(rng.integers(0, 255, (24, 20, 3), dtype=np.uint8))
    (w / 'celeba/img_align_celeba').mkdir(parents=True)
    names = [f'{i:06d}.jpg' for i in range(1, 10)]
    for name in names:
        photo().save(w / 'celeba/img_align_celeba' / name)
    rows = [f'{name} {"1 -1" if i % 2 else "-1 1"}' for i, name in enumerate(names)]
    (w / 'celeba/list_attr_celeba.txt').write_text('\n'.join(['9', 'Bald Male', *rows]) + '\n')
    (w / 'celeba/list_eval_partition.txt').write_text(''.join(f'{n} {i // 3}\n' for i, n in enumerate(names)))
    for split in ('trainA', 'trainB', 'testA', 'testB'):
        (w / 'pairs' / split).mkdir(parents=True)
        for name in names[:3]:
            photo().save(w / 'pairs' / split / name)
    for name in ('happy', 'sad'):
        (w / 'folders' / name).mkdir(parents=True)
        for k in range(5):
            photo().save(w / 'folders' / name / f'{k}.jpg')
    (w / 'table.csv').write_text('file,smiles,old\n' + ''.join(f'{c}/{k}.jpg,{int(c == "happy")},{k % 2}\n'
                                                               for c in ('happy', 'sad') for k in range(5)))
    for command in PREPARE.values():
        run(*command.format(w=w).split(), threads=1)
    make_data(w / 'attrs')
    make_data(w / 'classes', label='single')
    shutil.copytree(teacher, w / 'T')
    run(*U.replace('new', 'U').format(w=w).split(), threads=1)
    (w / 'wrap.py').write_text(WRAP)
    (w / 'file').write_text('not a folder')
    return w


def snapshot(folder):
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(folder.rglob('*')) if p.is_file()}


# what is done to the world


def edit(path, change):
    """-> a function of the world's folder that changes the bytes of one file."""
    def make(w):
        (w / path).write_bytes(change((w / path).read_bytes()))
    return make


def attrs(*change):
    return edit('celeba/list_attr_celeba.txt', lambda b: b.replace(*change))


def parts(*change):
    return edit('celeba/list_eval_partition.txt', lambda b: b.replace(*change))


def remove(path):
    return lambda w: shutil.rmtree(w / path) if (w / path).is_dir() else os.remove(w / path)


def meta(**change):
    """Sets keys of attrs/meta.json, or drops those that are to be None."""
    def make(w):
        old = json.loads((w / 'attrs/meta.json').read_text()) | change
        (w / 'attrs/meta.json').write_text(json.dumps({k: v for k, v in old.items() if v is not None}))
    return make


def binary(path):
    return edit(path, lambda b: bytes(range(256)))


def array(name, change):
    return lambda w: np.save(w / name, change(np.load(w / name)))


def zipped(*more, change=lambda b: b):
    """Puts pairs/ into pairs.zip, then files of the names in `more`, then changes the bytes of the whole."""
    def make(w):
        with zipfile.ZipFile(w / 'pairs.zip', 'w') as z:
            for path in sorted((w / 'pairs').rglob('*.jpg')):
                z.write(path, path.relative_to(w))
            for name in more:
                z.writestr(zipfile.ZipInfo(name), path.read_bytes())
        (w / 'pairs.zip').write_bytes(change((w / 'pairs.zip').read_bytes()))
    return make


def encrypted(b):
    """Sets the flag in the first file's own header and in its entry of the directory; Python cannot write such zips."""
    b, entry = bytearray(b), b.index(b'PK\1\2')
    b[6] |= 1
    b[entry + 8] |= 1
    return bytes(b)


def png(width, height):
    """A PNG that says it is so large, and holds nearly nothing."""
    chunk = lambda kind, data: struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)) +
            chunk(b'IDAT', zlib.compress(bytes(1000))) + chunk(b'IEND', b''))


class Evil:
    """Unpickled without care, this makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, 'w')


def three_bad_photos(w):
    for name in ('000001.jpg', '000004.jpg', '000007.jpg'):
        (w / 'celeba/img_align_celeba' / name).write_bytes(b'')
        (w / 'pairs/trainA' / name).write_bytes(b'hello')


def ckpt(**change):
    """Changes the teacher's checkpoint."""
    return lambda w: torch.save(torch.load(w / 'T/ckpt.pt', weights_only=True) | change, w / 'T/ckpt.pt')


def table(*change):
    return edit('table.csv', lambda b: b.replace(*change, 1))


def put(path, target):
    """Puts a copy of the file or folder at `path` where `target` says."""
    return lambda w: (shutil.copytree if (w / path).is_dir() else shutil.copy)(w / path, w / target)


def a_folder_instead(path):
    return lambda w: (os.remove(w / path), os.mkdir(w / path))


LISTS = 'celeba/list_attr_celeba.txt', 'celeba/list_eval_partition.txt'
ONE = 'pairs/trainA/000001.jpg'
ZIP, DAMAGED = PAIRS.replace('/pairs ', '/pairs.zip '), 'T/ckpt.pt: not a checkpoint, or a damaged one'

CASES = [
    # CelebA's lists
    ('attributes: a row is missing', attrs(b'000009.jpg -1 1\n', b''), CELEBA, "list_attr_celeba.txt: line 1|8|is '9'"),
    ('attributes: a row too many', attrs(b'000009.jpg', b'000009.jpg -1 1\n000010.jpg'), CELEBA, "line 1|10|is '9'"),
    ('attributes: the count is no number', attrs(b'9\n', b'nine\n'), CELEBA, 'line 1|nine'),
    ('attributes: the wrong image', attrs(b'000009.jpg', b'000010.jpg'), CELEBA, "no row for '000010.jpg'"),
    ('attributes: unknown value', attrs(b'000009.jpg -1', b'000009.jpg 0'), CELEBA, "line 11|'000009.jpg'|'0'"),
    ('attributes: a value is missing', attrs(b'000009.jpg -1', b'000009.jpg'), CELEBA, 'line 11 has 1 values'),
    ('attributes: an image listed twice', attrs(b'000009.jpg', b'000008.jpg'), CELEBA, "more than once: '000008.jpg'"),
    ('attributes: an attribute named twice', attrs(b'Bald Male', b'Male Male'), CELEBA, 'line 2|each once'),
    ('attributes: empty', edit(LISTS[0], lambda b: b''), CELEBA, LISTS[0]),
    ('attributes: binary', binary(LISTS[0]), CELEBA, LISTS[0]),
    ('attributes: missing', remove(LISTS[0]), CELEBA, '--src={w}/celeba|no list_attr_celeba.txt'),
    ('attributes: a folder', a_folder_instead(LISTS[0]), CELEBA, f'--dst={{w}}/celeba16|Is a directory|{LISTS[0]}'),
    ('partition: a row is missing', parts(b'000009.jpg 2\n', b''), CELEBA, "has no row for '000009.jpg'"),
    ('partition: a row too many', parts(b'000009.jpg', b'000010.jpg 2\n000009.jpg'), CELEBA, "has not: '000010.jpg'"),
    ('partition: bad split', parts(b'9.jpg 2', b'9.jpg 3'), CELEBA, "line 9|0, 1 or 2|'000009.jpg 3'"),
    ('partition: an image listed twice', parts(b'000009.jpg', b'000008.jpg'), CELEBA, "line 9: '000008.jpg'"),
    ('partition: no test images', parts(b' 2', b' 1'), CELEBA, 'marked 2 (test)'),
    ('partition: empty', edit(LISTS[1], lambda b: b''), CELEBA, LISTS[1] + ': line 1'),
    ('partition: binary', binary(LISTS[1]), CELEBA, LISTS[1] + ': line 1'),
    ('partition: missing', remove(LISTS[1]), CELEBA, '--src={w}/celeba|no list_eval_partition.txt'),
    ('photos: one is missing', remove('celeba/img_align_celeba/000003.jpg'), CELEBA, "lacks '000003.jpg'"),
    ('photos: one is not listed', put(ONE, 'celeba/img_align_celeba/x.jpg'), CELEBA, "unlisted, 'x.jpg'"),
    ('photos: none', remove('celeba/img_align_celeba'), CELEBA, 'no img_align_celeba'),
    ('CelebA: too many bad photos', three_bad_photos, CELEBA + ' --max_bad=2', '--max_bad=2|000001.jpg: empty file'),
    ('CelebA: all photos of a split bad', lambda w: [edit(f'celeba/img_align_celeba/00000{i}.jpg', lambda b: b'')(w)
                                                     for i in (1, 2, 3)], CELEBA, 'whole split|000001.jpg: empty file'),
    ('CelebA: no such src', None, CELEBA + ' --src={w}/nowhere', '--src={w}/nowhere|not a folder'),
    ('CelebA: src is a file', None, CELEBA + ' --src={w}/file', '--src={w}/file|not a folder'),
    # folders and zips of photos
    ('unpaired: too many bad photos', three_bad_photos, PAIRS + ' --max_bad=2', '--max_bad=2|000001.jpg|not an image'),
    ('unpaired: a folder is missing', remove('pairs/testB'), PAIRS, 'no folder testB'),
    ('unpaired: a folder is empty', lambda w: [os.remove(p) for p in (w / 'pairs/testB').iterdir()], PAIRS, 'testB/'),
    ('unpaired: one folder too high', None, PAIRS + ' --src={w}', 'one folder too high, try --src={w}/pairs'),
    ('unpaired: one folder too deep', None, PAIRS + ' --src={w}/pairs/trainA', 'too deep, try --src={w}/pairs'),
    ('unpaired: no such src', None, PAIRS + ' --src={w}/nowhere', '--src={w}/nowhere: no such'),
    ('unpaired: src is no zip', None, PAIRS + ' --src={w}/file', '{w}/file: not a zip'),
    ('unpaired: one name for two domains', None, PAIRS + ' --domains=x,x', '--domains=x,x'),
    ('unpaired: unknown fit', None, PAIRS + ' --fit=strech', '--fit=strech|squash'),
    ('zip: a path upwards', zipped('../evil.jpg'), ZIP, "'../evil.jpg'|outside"),
    ('zip: an absolute path', zipped('/tmp/evil.jpg'), ZIP, "'/tmp/evil.jpg'|outside"),
    ('zip: a name twice', zipped(ONE), ZIP, f"'{ONE}' twice"),
    ('zip: encrypted', zipped(change=encrypted), ZIP, 'encrypted|password'),
    ('zip: truncated', zipped(change=lambda b: b[:-100]), ZIP, 'pairs.zip: not a zip file, or cut short'),
    ('zip: empty file', zipped(change=lambda b: b''), ZIP, 'pairs.zip: not a zip file, or cut short'),
    # class folders and tables
    ('folders: too many bad photos', lambda w: [edit(f'folders/sad/{k}.jpg', lambda b: b[:99])(w) for k in (1, 2)],
     FOLDERS + ' --max_bad=1', '--max_bad=1|sad/'),
    ('folders: one class only', remove('folders/sad'), FOLDERS, "only one class folder, 'happy'|at least two"),
    ('folders: an empty class', lambda w: (w / 'folders/angry').mkdir(), FOLDERS, "{w}/folders|'angry'"),
    ('folders: no classes', None, FOLDERS + ' --src={w}/folders/sad', '--src={w}/folders/sad'),
    ('folders: no photos', lambda w: (w / 'empty').mkdir(), FOLDERS + ' --src={w}/empty', '--src={w}/empty: no images'),
    ('folders: one folder too high', lambda w: (w / 'up').mkdir() or put('folders', 'up/folders')(w),
     FOLDERS + ' --src={w}/up', '--src={w}/up/folders'),
    ('folders: no such src', None, FOLDERS + ' --src={w}/nowhere', '--src={w}/nowhere: no such'),
    ('folders: unknown class', None, FOLDERS + ' --classes=happy,bad', "'bad'|'sad'"),
    ('folders: shares of everything', None, FOLDERS + ' --val_share=0.5 --test_share=0.5', '--val_share=0.5'),
    ('folders: share=nan', None, FOLDERS + ' --test_share=nan', '--test_share=nan'),
    ('folders: broken expression', None, FOLDERS + ' --identity=(', '--identity=(: not a regular expression'),
    ('table: missing', None, FOLDERS + ' --csv=none.csv', '--csv=none.csv: no such file'),
    ('table: no header', table(b'file,smiles,old\n', b''), TABLE, 'table.csv: line 1|file,attr1'),
    ('table: semicolons', lambda w: edit('table.csv', lambda b: b.replace(b',', b';'))(w), TABLE, 'line 1|commas'),
    ('table: an attribute named twice', table(b'old', b'smiles'), TABLE, "line 1: named more than once: 'smiles'"),
    ('table: unknown value', table(b'happy/1.jpg,1', b'happy/1.jpg,yes'), TABLE, "line 3: smiles is 'yes'|1 or 0"),
    ('table: 0 and -1', table(b'happy/1.jpg,1', b'happy/1.jpg,-1'), TABLE, 'table.csv: has both 0 and -1'),
    ('table: a value is missing', table(b'happy/1.jpg,1,', b'happy/1.jpg,'), TABLE, 'line 3 has 1 values, wanted 2'),
    ('table: a file listed twice', table(b'happy/1.jpg', b'happy/0.jpg'), TABLE, "line 3: 'happy/0.jpg' was listed"),
    ('table: a file is not there', table(b'happy/1.jpg', b'happy/9.jpg'), TABLE, "1 of 10 files|'happy/9.jpg'"),
    ('table: header only', edit('table.csv', lambda b: b[:16]), TABLE, 'table.csv: no rows'),
    ('table: empty', edit('table.csv', lambda b: b''), TABLE, 'table.csv: line 1'),
    ('table: binary', binary('table.csv'), TABLE, 'table.csv: line 1'),
    # where it goes
    *[(f'{name}: dst is a file', None, command + ' --dst={w}/file', '{w}/file') for name, command in PREPARE.items()],
    *[(f'{name}: dst below a file', None, command + ' --dst={w}/file/a', '{w}/file/a: ')
      for name, command in (('CelebA', CELEBA), ('toyfaces', FACES), ('toyfruit', FRUIT))],
    *[(f'{name}: dst holds another set', None, command.replace('--force=True', '') + ' --image_size=64', '--force=True')
      for name, command in PREPARE.items()],
    *[(f'{name}: too little room', None, NO_ROOM + command, ' free: ') for name, command in PREPARE.items()],
    *[(f'{name}: the disk fills up', None, FULL + command, 'File too large') for name, command in PREPARE.items()],
    *[(f'{name}: image_size=0', None, command + ' --image_size=0', 'image_size=0')
      for name, command in PREPARE.items()],
    ('CelebA: needs more room than there is', None, CELEBA + ' --image_size=999999', 'GB, |GB are free|--image_size='),
    ('toyfaces: no images', None, FACES + ' --n_train=0', '--n_train=0'),
    ('toyfruit: no images', None, FRUIT + ' --n_train=0', 'n_train=0'),
    ('toyfaces: clutter=nan', None, FACES + ' --clutter=nan', '--clutter=nan|from 0 to 1'),
    ('toyfruit: clutter=nan', None, FRUIT + ' --clutter=nan', 'clutter=nan|from 0'),
    ('toyfruit: another set in dst', None, FRUIT + ' --dst={w}/attrs', 'attrs holds another data set'),
    # the data of a training run
    ('data: no such set', None, T + ' --dataset=nowhere', '--dataset=nowhere|prepare.py'),
    ('data: meta.json is broken', edit('attrs/meta.json', lambda b: b[:30]), T, '{w}/attrs/meta.json'),
    ('data: meta.json is no dictionary', edit('attrs/meta.json', lambda b: b'[]'), T, '{w}/attrs/meta.json'),
    ('data: meta.json lacks a key', meta(exclusive=None), T, '{w}/attrs/meta.json|exclusive'),
    ('data: an array is missing', remove('attrs/train_x.npy'), T, '{w}/attrs|train|prepare the data again'),
    ('data: an array is cut short', edit('attrs/train_x.npy', lambda b: b[:999]), T, '{w}/attrs|prepare the data'),
    ('data: fewer images than labels', array('attrs/train_x.npy', lambda x: x[:9]), T, '9 train images but 24 rows'),
    ('data: fewer labels than images', array('attrs/test_y.npy', lambda y: y[:9]), T, '24 test images but 9 rows'),
    ('data: no images', array('attrs/test_x.npy', lambda x: x[:0]), T, '0 test images'),
    ('data: images are floats', array('attrs/train_x.npy', lambda x: x / 255), T, '{w}/attrs|float64'),
    ('data: channels first', array('attrs/train_x.npy', lambda x: x.transpose(0, 3, 1, 2)), T, '{w}/attrs|3, 16, 16)'),
    ('data: images of another size', array('attrs/train_x.npy', lambda x: x[:, :8, :8]), T, '{w}/attrs|8, 8'),
    ('data: labels are a column', array('attrs/train_y.npy', lambda y: y[:, 0]), T, '{w}/attrs|prepare the data again'),
    ('data: fewer columns than attributes', array('attrs/train_y.npy', lambda y: y[:, :2]), T, '{w}/attrs|again'),
    ('data: pickled array', lambda w: np.save(w / 'attrs/train_x.npy', np.array([Evil(w / 'ran')], object)), T,
     '{w}/attrs|prepare the data again'),
    ('data: domains for the teacher', None, T + ' --dataset={w}/pairs16', 'pairs16|train_uag.py'),
    ('data: attributes for train_uag', None, U + ' --dataset={w}/attrs', 'attrs|train_teacher.py'),
    ('data, uag: images are floats', array('pairs16/trainA_x.npy', lambda x: x / 255), U, 'trainA_x.npy|float64'),
    ('data, uag: an array is missing', remove('pairs16/testB_x.npy'), U, 'testB_x.npy|prepare the data again'),
    ('data, uag: images of another size', array('pairs16/trainA_x.npy', lambda x: x[:, :8, :8]), U, 'differ in size'),
    ('data, uag: meta.json lacks a key', edit('pairs16/meta.json', lambda b: b.replace(b'domains', b'x')), U,
     '{w}/pairs16/meta.json|domains'),
    # flags of a training run
    ('flag: unknown', None, T + ' --max_iter=5', '--max_iter=5|closest: max_iters'),
    ('flag: wrong type', None, T + ' --max_iters=many', '--max_iters=many|int'),
    ('attrs: unknown', None, T.replace('=all', '=a,bb'), "bb|{w}/attrs|did you mean b"),
    ('attrs: none', None, T.replace('=all', '='), '--attrs|a, b, c'),
    ('attrs: one twice', None, T.replace('=all', '=a,a'), '--attrs'),
    ('classes: only one', None, T.replace('=all', '=a') + ' --dataset={w}/classes', '--attrs'),
    ('image_size: does not divide', None, T + ' --image_size=12', '--image_size=12|16 px'),
    ('image_size: too small', None, T + ' --image_size=4', '--image_size=4'),
    ('image_size: negative', None, T + ' --image_size=-8', '--image_size=-8'),
    ('image_size: too small for D', None, T + ' --d_n_layers=5', 'multiple of 32|--d_n_layers'),
    *[(f'{script}: {flag}', None, command + f' --{flag}', flag.split('=')[0]) for script, command, flags in (
        ('teacher', T, 'max_iters=0 batch_size=0 n_critic=0 lr=nan lr=inf lr=0 lambda_gp=nan lambda_rec=-1 conv_dim=0 '
                       'n_samples=0 beta1=1.5 dtype=float16 device=nonsense device=cuda:99'),
        ('student', S, 'lr=nan lambda_att=nan lambda_att=-1 lambda_cls=nan cam=cam att_norm=l3 dtype=half'),
        ('uag', U, 'n_epochs=0 n_epochs=inf batch_size=0 lr=nan lr=0 lambda_cyc=nan lambda_idt=-1 tau=nan tau=1 ngf=0 '
                   'n_blocks=-1 ndf=0 naf=0 beta2=1 image_size=18 image_size=32 d_n_layers=4 gen_input=both '
                   'device=nonsense device=cuda:99')) for flag in flags.split()],
    ('out_dir: is a file', None, T + ' --out_dir={w}/file', '--out_dir={w}/file: cannot write'),
    ('out_dir: in /proc', None, T + ' --out_dir=/proc/a', '--out_dir=/proc/a: cannot write'),
    ('out_dir: holds a run', None, T + ' --out_dir={w}/T', '{w}/T/ckpt.pt exists: --resume=True'),
    ('out_dir, uag: is a file', None, U + ' --out_dir={w}/file', '--out_dir={w}/file: cannot write'),
    ('out_dir, uag: holds a run', None, U + ' --out_dir={w}/U', '{w}/U/ckpt.pt exists: --resume=True'),
    ('resume: a run of another script', None, U + ' --out_dir={w}/T --resume=True', '{w}/T/ckpt.pt: no uag checkpoint'),
    ('resume: other nets', None, T + ' --out_dir={w}/T --resume=True --conv_dim=8', '{w}/T/ckpt.pt has other nets'),
    ('resume, uag: other nets', None, U + ' --out_dir={w}/U --resume=True --ngf=8', '{w}/U/ckpt.pt has'),
    ('resume: the checkpoint is damaged', edit('T/ckpt.pt', lambda b: b[:999]), T + ' --out_dir={w}/T --resume=True',
     '{w}/T/ckpt.pt: not a checkpoint, or a damaged one'),
    # a student's teacher
    ('teacher: none given', None, S + ' --teacher=', '--teacher='),
    ('teacher: missing', None, S + ' --teacher={w}/none.pt', '{w}/none.pt: |No such file'),
    ('teacher: a folder', None, S + ' --teacher={w}/T', '{w}/T: |Is a directory'),
    ('teacher: not a checkpoint', None, S + ' --teacher={w}/file', '{w}/file: not a checkpoint'),
    ('teacher: an empty file', edit('T/ckpt.pt', lambda b: b''), S, DAMAGED),
    ('teacher: truncated', edit('T/ckpt.pt', lambda b: b[:-999]), S, DAMAGED),
    ('teacher: its middle is gone', edit('T/ckpt.pt', lambda b: b[:9999] + bytes(9999) + b[19998:]), S, 'T/ckpt.pt: '),
    ('teacher: other tensors', lambda w: torch.save([torch.zeros(3)], w / 'T/ckpt.pt'), S, 'no stargan checkpoint'),
    ('teacher: of train_uag', None, S + ' --teacher={w}/U/ckpt.pt', '{w}/U/ckpt.pt: no stargan checkpoint'),
    ('teacher: a checkpoint with code', lambda w: torch.save({'kind': Evil(w / 'ran')}, w / 'T/ckpt.pt'), S, DAMAGED),
    ('teacher: a pickle with code', lambda w: (w / 'T/ckpt.pt').write_bytes(pickle.dumps(Evil(w / 'ran'))), S, DAMAGED),
    ('teacher: other attributes', None, S + ' --attrs=a,b', 'T/ckpt.pt was trained on a,b,c|a,b:'),
    ('teacher: another size', lambda w: make_data(w / 'attrs', size=24), S + ' --dataset={w}/attrs', '16 px|24 px'),
    ('teacher: its data are gone', ckpt(config={'dataset': '/gone'}), S, '--dataset=/gone'),
    ('teacher: its script is gone', ckpt(script='gone.py'), S, 'gone.py|--teacher_script='),
    # evaluate.py
    ('evaluate: no --ckpt', None, E + ' --ckpt=', '--ckpt='),
    ('evaluate: missing checkpoint', None, E + ' --ckpt={w}/T/ckpt.pt,{w}/none.pt', '{w}/none.pt|No such file'),
    ('evaluate: not a checkpoint', None, E + ' --ckpt={w}/file', '{w}/file: not a checkpoint'),
    ('evaluate: two kinds', None, E + ' --ckpt={w}/T/ckpt.pt,{w}/U/ckpt.pt', 'evaluate them apart'),
    ('evaluate: no such data', None, E + ' --dataset=nowhere', '--dataset=nowhere'),
    ('evaluate: domains for attributes', None, E + ' --dataset={w}/pairs16', 'pairs16'),
    ('evaluate: attributes for domains', None, E + ' --ckpt={w}/U/ckpt.pt --dataset={w}/attrs', 'attrs'),
    ('evaluate: other attributes', lambda w: make_data(w / 'attrs', attrs='d,e,f'), E + ' --dataset={w}/attrs',
     'T/ckpt.pt works on a,b,c'),
    ('evaluate: an array is missing', remove('pairs16/testB_x.npy'), E + ' --ckpt={w}/U/ckpt.pt --dataset={w}/pairs16',
     'testB_x.npy'),
    ('evaluate: out_dir is a file', None, E + ' --out_dir={w}/file', '{w}/file'),
    ('evaluate: unknown device', None, E + ' --device=nonsense', '--device=nonsense'),
]


@pytest.mark.filterwarnings('ignore:Duplicate name')  # says zipfile to what makes the zip of that case
@pytest.mark.parametrize('make,command,says', [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_one_line_and_no_damage(world, tmp_path, make, command, says):
    w = tmp_path / 'w'
    shutil.copytree(world, w)
    if make:
        make(w)
    before = snapshot(w)
    said = run(*command.format(w=w).split(), ok=False, threads=1)
    print(said.replace(str(w), ''))
    for text in says.format(w=w).split('|'):
        assert text in said, said
    assert snapshot(w) == before


# what is no mistake, or one that the scripts live with


def test_bad_photos_are_left_out_and_named(world, tmp_path):
    """Unreadable ones: skipped, counted, in skipped.txt with the reason. Odd ones that can be read: used."""
    rng, odd, bad, jpg = np.random.default_rng(1), {}, {}, tmp_path / 'a.jpg'
    photo = lambda *shape: Image.fromarray(rng.integers(0, 255, (*shape, 3), dtype=np.uint8))
    photo(24, 20).save(jpg)
    bad['cut.jpg'], bad['empty.jpg'], bad['text.jpg'] = jpg.read_bytes()[:-99], b'', b'hello'
    bad['huge.jpg'], bad['large.jpg'] = png(20000, 20000), png(10000, 10000)
    bad['garbage.jpg'] = b'\xff\xd8\xff\xe0' + bytes(range(256)) * 9
    reasons = {'cut.jpg': 'truncated', 'empty.jpg': 'empty file', 'text.jpg': 'not an image', 'garbage.jpg': '',
               'huge.jpg': 'exceeds limit', 'large.jpg': 'exceeds limit'}
    photo(24, 20).save(jpg, exif=b'Exif\0\0' + bytes(range(99, 199)))
    odd['exif.jpg'] = jpg.read_bytes()
    for name, size in (('dot.jpg', (1, 1)), ('line.jpg', (1, 200))):
        photo(*size).save(jpg)
        odd[name] = jpg.read_bytes()
    w = tmp_path / 'w'
    shutil.copytree(world, w)
    for folder in ('celeba/img_align_celeba', 'pairs/trainA', 'folders/sad'):
        for name, content in (bad | odd).items():
            (w / folder / name).write_bytes(content)
    attrs(b'9\nBald', b'18\nBald')(w)
    edit(LISTS[0], lambda b: b + ''.join(f'{name} 1 1\n' for name in bad | odd).encode())(w)
    edit(LISTS[1], lambda b: b + ''.join(f'{name} 0\n' for name in bad | odd).encode())(w)
    for command, before, count, folder in ((CELEBA, '', dict(train=6, val=3, test=3), 'celeba16'),
                                           (PAIRS, 'trainA/', dict(trainA=6, trainB=3, testA=3, testB=3), 'pairs16'),
                                           (FOLDERS + ' --val_share=0.3 --test_share=0.3', 'sad/', None, 'folders16')):
        said = run(*command.format(w=w).split(), threads=1)
        assert f'{len(bad)} photos could not be read' in said and 'skipped.txt' in said
        skipped = dict(line.split('\t') for line in (w / folder / 'skipped.txt').read_text().splitlines())
        assert skipped.keys() == {before + name for name in bad}
        for name, reason in reasons.items():
            assert reason in skipped[before + name], skipped
        counts = json.loads((w / folder / 'meta.json').read_text())['counts']
        assert counts == count if count else sum(counts.values()) == 10 + len(odd)
        for split, n in counts.items():
            assert np.load(w / folder / f'{split}_x.npy').shape == (n, 16, 16, 3)


def test_a_photo_damaged_inside_a_zip_is_left_out(world, tmp_path):
    w = tmp_path / 'w'
    shutil.copytree(world, w)
    zipped(change=lambda b: b.replace(first := (w / ONE).read_bytes(), first[:99] + bytes(9) + first[108:]))(w)
    run(*ZIP.format(w=w).split(), threads=1)
    assert (w / 'pairs16/skipped.txt').read_text().startswith('trainA/000001.jpg\tBadZipFile: Bad CRC-32')


def test_a_new_set_takes_away_the_old_list_of_skipped_photos(world, tmp_path):
    w = tmp_path / 'w'
    shutil.copytree(world, w)
    three_bad_photos(w)
    for command, folder in ((CELEBA, 'celeba16'), (FOLDERS, 'folders16')):
        (w / folder / 'skipped.txt').write_text('of another time')
        said = run(*command.format(w=w).split(), threads=1)
        assert os.path.exists(w / folder / 'skipped.txt') == ('could not be read' in said) == (command == CELEBA)


@pytest.mark.parametrize('command', [T, U], ids=['teacher', 'uag'])
def test_a_batch_larger_than_the_set_is_drawn_with_replacement(world, tmp_path, command):
    run(*command.format(w=world).split(), f'--out_dir={tmp_path}', '--batch_size=30', '--n_samples=99', threads=1)
    assert (tmp_path / 'ckpt.pt').exists()


@pytest.mark.parametrize('command,out,more', [(T, 'T', ' --max_iters=6'), (U, 'U', ' --n_epochs=2')],
                         ids=['teacher', 'uag'])
def test_a_disk_that_fills_up_during_training_keeps_the_last_checkpoint(world, tmp_path, command, out, more):
    w = tmp_path / 'w'
    shutil.copytree(world, w)
    before, limit = snapshot(w), os.path.getsize(w / out / 'ckpt.pt') // 2
    command = FULL.replace('500', str(limit)) + command + ' --resume=True --out_dir={w}/' + out + more
    said = run(*command.format(w=w).split(), ok=False, threads=1)
    print(said.replace(str(w), ''))
    assert said.startswith(f'{w}/{out}/ckpt.pt: cannot write it, disk full?')
    now = snapshot(w)
    changed = {name for name in before | now if before.get(name) != now.get(name)} - {f'{out}/log.txt'}
    assert all(name.startswith(f'{out}/samples/') for name in changed), changed


# os.scandir as a user meets it who may not read the folder: tests may run as root, whom nothing is closed to
CLOSED = """
import os, runpy, sys
scandir, closed, sys.argv = os.scandir, sys.argv[1], sys.argv[2:]
def guarded(path='.'):
    if os.path.abspath(path) == closed:
        raise PermissionError(13, 'Permission denied', str(path))
    return scandir(path)
os.scandir = guarded
runpy.run_path(sys.argv[0], run_name='__main__')
"""


@pytest.mark.parametrize('command,folder', [(CELEBA, 'celeba/img_align_celeba'), (PAIRS, 'pairs/trainA'),
                                            (FOLDERS, 'folders/sad')], ids=['celeba', 'unpaired', 'folders'])
def test_a_folder_that_may_not_be_read(world, tmp_path, command, folder):
    w = tmp_path / 'w'
    shutil.copytree(world, w)
    before = snapshot(w)
    said = run('-c', CLOSED, w / folder, *command.format(w=w).split(), ok=False)
    assert 'Permission denied' in said and f'{w}/{folder}' in said and snapshot(w) == before
