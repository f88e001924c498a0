"""Mistakes made with the training scripts: each ends in exit code 1 and one line, and damages nothing.

A row of a table: what is wrong; what is done to a folder of good input, {w}; what is run there; what
the line says, parts of it separated by |.
"""

import hashlib
import json
import os
import shutil

import numpy as np
import pytest
from conftest import TINY, TINY_S, TINY_U, Evil, make_data, make_pairs, run

T = 'train_teacher.py --dataset={w}/attrs --out_dir={w}/new ' + ' '.join(TINY)
S = 'train_student.py --teacher={w}/T/ckpt.pt --out_dir={w}/new ' + ' '.join(TINY_S)
U = 'train_uag.py --dataset={w}/pairs --out_dir={w}/new --n_epochs=1 ' + ' '.join(TINY_U)
GO_ON = ' --out_dir={w}/T --resume=True'
ON_SINGLE = T + ' --dataset={w}/single'
# Runs the script that follows with a limit on the bytes of a file: a disk that becomes full.
FULL = """import os, resource, runpy, sys
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.argv = sys.argv[2:]
sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name='__main__')
"""
# Runs the script that follows with a torch that was built without CUDA.
NO_CUDA = """import os, runpy, sys, torch
sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
def no_cuda():
    raise AssertionError('Torch not compiled with CUDA enabled')
torch.cuda._lazy_init = no_cuda
torch.zeros = lambda *size, device: no_cuda()
runpy.run_path(sys.argv[0], run_name='__main__')
"""
# Runs the script that follows with a full disk behind its standard output.
FULL_OUTPUT = """import io, os, runpy, sys
sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
class Full(io.StringIO):
    def write(self, text):
        raise OSError(28, 'No space left on device')
    def reconfigure(self, **options):
        pass
sys.stdout = Full()
runpy.run_path(sys.argv[0], run_name='__main__')
"""


@pytest.fixture(scope='module')
def world(tmp_path_factory, teacher):
    """Good input of every kind, small: prepared sets and a trained teacher."""
    w = tmp_path_factory.mktemp('world')
    make_data(w / 'attrs', 'Hat,Cap,Beard')
    make_data(w / 'more', 'a,b,c,d,e', n=8)
    make_data(w / 'large', 'a,b,c', n=8, size=24)
    make_data(w / 'single', 'p,q,r', 'single', n=8)
    make_pairs(w / 'pairs')
    shutil.copytree(teacher, w / 'T')
    (w / 'full.py').write_text(FULL)
    (w / 'no_cuda.py').write_text(NO_CUDA)
    (w / 'full_output.py').write_text(FULL_OUTPUT)
    (w / 'file').write_text('not a folder')
    return w


def snapshot(folder):
    """File -> hash, but for logs, which may grow."""
    files = {}
    for path in folder.rglob('*'):
        if path.is_file() and path.name != 'log.txt':
            files[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return files


# What is done to the folder w
def meta(**fields):
    """Other fields in attrs/meta.json; None takes one away."""
    def change(w):
        saved = json.loads((w / 'attrs/meta.json').read_text())
        for name, value in fields.items():
            saved[name] = value
            if value is None:
                del saved[name]
        (w / 'attrs/meta.json').write_text(json.dumps(saved))
    return change


def meta_text(path, function):
    return lambda w: (w / path).write_text(function((w / path).read_text()))


def array(path, function):
    return lambda w: np.save(w / path, function(np.load(w / path)))


def cut(path, n):
    return lambda w: os.truncate(w / path, n)


def remove(path):
    return lambda w: os.remove(w / path)


def pickled(w):
    np.save(w / 'attrs/train_x.npy', np.array([Evil(w / 'ran')], object))


def full_disk(path):
    """Nothing can be written to a file; its name is there already."""
    def change(w):
        os.makedirs((w / path).parent, exist_ok=True)
        os.symlink('/dev/full', w / path)
    return change


def with_a_folder(path):
    return lambda w: os.makedirs(w / path)


def no_label(x):
    return np.zeros_like(x)


def all_of_one(y):
    return np.eye(3, dtype=np.uint8)[[2] * len(y)]


# The data of a run. train_student.py and train_uag.py read them by the same functions.
DATA = [
    ('no such set', None, T + ' --dataset=nowhere',
     '--dataset=nowhere: no meta.json|prepare.py|nowhere/meta.json'),
    ('no set said', None, T + ' --dataset=', '--dataset=: no meta.json|prepare.py'),
    ('of the student', remove('attrs/meta.json'), S + ' --dataset={w}/attrs',
     '--dataset={w}/attrs: no meta.json'),
    ('of train_uag', remove('pairs/meta.json'), U, '--dataset={w}/pairs: no meta.json|prepare.py'),
    ('meta: empty', cut('attrs/meta.json', 0), T,
     '--dataset={w}/attrs: no meta.json to be used|JSONDecodeError'),
    ('meta: cut', cut('attrs/meta.json', 20), T, 'JSONDecodeError'),
    ('meta: a comma', meta_text('attrs/meta.json', lambda t: t.replace('}', ',}')), T,
     'JSONDecodeError|line 1'),
    ('meta: a list', meta_text('attrs/meta.json', lambda t: f'[{t}]'), T,
     '{w}/attrs|label is missing'),
    ('meta: no label', meta(label=None), T, 'label is missing'),
    ('meta: size in quotes', meta(image_size='16'), T, 'image_size is missing, or no int'),
    ('meta: another size', meta(image_size=32), T,
     '{w}/attrs: damaged|train_x.npy|(24, 16, 16, 3)'),
    ('meta: size 0', meta(image_size=0), T, '{w}/attrs: damaged'),
    ('meta: a name more', meta(attrs=['Hat', 'Cap', 'Beard', 'Bow']), T,
     '{w}/attrs: damaged|train_y.npy (24, 3)'),
    ('meta: a name less', meta(attrs=['Hat', 'Cap'], exclusive=[]), T,
     '{w}/attrs: damaged|train_y.npy (24, 3)'),
    ('meta: label mistyped', meta(label='Multi'), T,
     'wants two classes or more, and images of one of them each'),
    ('meta: group without brackets', meta(exclusive=['Hat', 'Cap']), T,
     '{w}/attrs/meta.json: exclusive wants lists'),
    ('meta: group is a number', meta(exclusive=[5]), T, 'exclusive wants lists of attributes, not 5'),
    ('meta: group of no attributes', meta(exclusive=[['Hat', 'Cup']]), T,
     "exclusive|['Hat', 'Cup']"),
    ('meta: group, student', meta(exclusive=['Hat']), S + ' --dataset={w}/attrs --attrs=all --lambda_att=0',
     '{w}/attrs/meta.json: exclusive wants lists of attributes, not Hat'),
    ('array cut short', cut('attrs/train_x.npy', 999), T,
     '{w}/attrs: damaged, prepare the data again'),
    ('array empty', cut('attrs/test_y.npy', 0), T, '{w}/attrs: damaged, prepare the data again'),
    ('array missing', remove('attrs/test_x.npy'), T, '{w}/attrs: damaged|test_x.npy'),
    ('array missing, uag', remove('pairs/testB_x.npy'), U,
     '{w}/pairs: damaged, prepare the data again|testB_x.npy'),
    ('array of floats', array('attrs/train_x.npy', lambda x: x / 255), T,
     '{w}/attrs: damaged|float64'),
    ('array of greys', array('attrs/train_x.npy', lambda x: x[..., 0]), T,
     '{w}/attrs: damaged|(24, 16, 16)'),
    ('array of another length', array('attrs/train_y.npy', lambda y: y[:9]), T,
     '{w}/attrs: damaged|(9, 3)'),
    ('array that is pickled', pickled, T, '{w}/attrs: damaged'),
    ('labels of one dimension', array('attrs/train_y.npy', lambda y: y[:, 0]), T,
     '{w}/attrs: damaged'),
    ('no image', lambda w: make_data(w / 'attrs', 'Hat,Cap,Beard', n=0), T,
     '{w}/attrs: damaged|(0, 16, 16, 3)'),
    ('domains for attributes', None, T + ' --dataset={w}/pairs',
     '{w}/pairs|two domains, for train_uag.py'),
    ('attributes for domains', None, U + ' --dataset={w}/attrs',
     '--dataset={w}/attrs|train_teacher.py'),
    ('one class', None, ON_SINGLE + ' --attrs=p', '--attrs=p: wants two classes or more'),
    ('no image of the classes', array('single/train_y.npy', all_of_one), ON_SINGLE + ' --attrs=p,q',
     '--attrs=p,q: wants two classes or more, and images of one of them each'),
]

# Flags that are of the right type, and wrong
FLAGS = [
    ('attrs: unknown', None, T + ' --attrs=Hat,hat',
     '--attrs=Hat,hat: wants some of {w}/attrs|Hat, Cap, Beard'),
    ('attrs: twice', None, T + ' --attrs=Hat,Cap,Hat', '--attrs=Hat,Cap,Hat|each once'),
    ('attrs: none', None, T + ' --attrs=', '--attrs=: wants some of'),
    ('attrs: a space', None, T + ' --attrs=Hat,', '--attrs=Hat,: wants some of'),
    ('image_size: does not divide', None, T + ' --image_size=12',
     '--image_size=12: wants a multiple of 4|divides 16'),
    ('image_size: larger', None, T + ' --image_size=32', '--image_size=32|divides 16'),
    ('image_size: odd', None, T + ' --image_size=2', '--image_size=2: wants a multiple of 4'),
    ('d_n_layers', None, T + ' --d_n_layers=6', '16 is no multiple of 2^6: --d_n_layers=4 or less'),
    ('d_n_layers: many', None, T + ' --d_n_layers=99', '2^99: --d_n_layers=4 or less'),
    ('d_n_layers: small image', None, T + ' --image_size=4',
     '4 is no multiple of 2^3: --d_n_layers=2 or less'),
    ('dtype', None, T + ' --dtype=half', '--dtype=half: wants float32 or bfloat16'),
    ('dtype, student', None, S + ' --dtype=half', '--dtype=half: wants float32 or bfloat16'),
    ('device: unknown', None, T + ' --device=gpu', '--device=gpu: no such device here'),
    ('device: not here', None, S + ' --device=cuda:99', '--device=cuda:99: no such device here'),
    ('device: torch without CUDA', None, '{w}/no_cuda.py ' + T + ' --device=cuda',
     '--device=cuda: no such device'),
    ('device, uag', None, U + ' --device=mps', '--device=mps: no such device here'),
    ('cam', None, S + ' --cam=cam', '--cam=cam: wants gradcam or hirescam'),
    ('att_norm', None, S + ' --att_norm=l1', '--att_norm=l1: wants none, l2 or max'),
    ('switch_at, uag', None, U + ' --switch_at=30', '--switch_at|shares, from 0 to 1'),
    ('not finite', None, T + ' --lr=1e18',
     'iter 2: weights are not finite, lower --lr; {w}/new/ckpt.pt is of iteration 0'),
    ('not finite, student', None, S + ' --lr=1e18',
     'iter 2: weights are not finite, lower --lr; {w}/new/ckpt.pt'),
    ('a flag of another script', None, T + ' --teacher=x',
     '--teacher=x: not a --key=value of this script'),
]

# A student's teacher
TEACHER = [
    ('none said', None, S + ' --teacher=', '--teacher=: wants a ckpt.pt of train_teacher.py'),
    ('missing', None, S + ' --teacher={w}/T',
     '--teacher={w}/T: wants a ckpt.pt of train_teacher.py'),
    ('no checkpoint', None, S + ' --teacher={w}/pairs/meta.json',
     '--teacher={w}/pairs/meta.json: wants a ckpt.pt'),
    ('empty', cut('T/ckpt.pt', 0), S, '--teacher={w}/T/ckpt.pt: wants a ckpt.pt|EOFError'),
    ('damaged', cut('T/ckpt.pt', 9999), S, '--teacher={w}/T/ckpt.pt: wants a ckpt.pt'),
    ('of train_uag', None, S + ' --teacher={w}/U/ckpt.pt',
     '--teacher={w}/U/ckpt.pt: wants a ckpt.pt of train_teacher'),
    ('another size', None, S + ' --dataset={w}/large',
     "{w}/large: has 24 px, no multiple of the teacher's 16"),
    ('no attribute of its own', None, S + ' --dataset={w}/more --attrs=d,e',
     '--attrs=d,e --pseudo=: wants|a,b,c'),
    ('pseudo: unknown', None, S + ' --attrs=a --pseudo=x',
     '--attrs=a --pseudo=x: wants for each another one of a,b,c'),
    ('pseudo: too few', None, S + ' --attrs=a,b --pseudo=c',
     '--attrs=a,b --pseudo=c: wants for each'),
    ('pseudo: too many', None, S + ' --attrs=a,b --pseudo=a,b,c', '--pseudo=a,b,c: wants for each'),
    ('pseudo: one twice', None, S + ' --attrs=a,b --pseudo=c,c', '--pseudo=c,c: wants for each'),
    ('pseudo: one twice, and as many', None, S + ' --attrs=a,b --pseudo=c,c,a',
     '--pseudo=c,c,a: wants for each'),
]

# The folder of a run, and what it goes on from
OUT_DIR = [
    ('a file', None, T + ' --out_dir={w}/file', '--out_dir={w}/file: cannot write there'),
    ('in a file', None, S + ' --out_dir={w}/file/new',
     '--out_dir={w}/file/new: cannot write there'),
    ('not writable', None, T + ' --out_dir=/proc/new', '--out_dir=/proc/new: cannot write there'),
    ('holds a run', None, T + ' --out_dir={w}/T',
     '{w}/T/ckpt.pt exists: go on with --resume=True|--out_dir='),
    ('holds a run, student', None, S + ' --out_dir={w}/T',
     '{w}/T/ckpt.pt exists: go on with --resume=True'),
    ('of another script', None, S + GO_ON + ' --conv_dim=4',
     '{w}/T/ckpt.pt: cannot go on|of another script'),
    ('of another script, uag', None, U + GO_ON, '{w}/T/ckpt.pt: cannot go on from it'),
    ('damaged', cut('T/ckpt.pt', 999), T + GO_ON, '{w}/T/ckpt.pt: cannot go on from it'),
    ('other attributes', None, T + GO_ON,
     'cannot go on from it with these options|of other attributes'),
    ('another order', None, T + GO_ON + ' --dataset={w}/more --attrs=a,c,b',
     'or of other attributes'),
    ('other sizes', None, T + GO_ON + ' --dataset={w}/more --attrs=a,b,c --conv_dim=8',
     'cannot go on|size mismatch'),
    ('init_from: missing', None, T + ' --init_from={w}/none.pt',
     '--init_from={w}/none.pt: wants|none.pt'),
    ('init_from: G alone', None, T + ' --init_from={w}/T/ckpt.pt,{w}/none',
     '--init_from={w}/T/ckpt.pt,{w}/none: wants'),
    ('init_from: other sizes', None, T + ' --n_blocks=2 --init_from={w}/T/ckpt.pt',
     'of these sizes'),
    ('init_from: no checkpoint', None, T + ' --init_from={w}/attrs/meta.json',
     'wants a ckpt.pt, or G.ckpt,D.ckpt'),
]

# A disk that is full, at the first byte of a file or at the last
ON_MORE = T + GO_ON + ' --dataset={w}/more --attrs=a,b,c --max_iters=6 --sample_interval=99'
FULL_DISK = [
    ('log', full_disk('new/log.txt'), T,
     '{w}/new/log.txt, or the terminal, cannot be written; nothing is saved yet'),
    ('output', None, '{w}/full_output.py ' + T,
     'log.txt, or the terminal, cannot be written; nothing is saved yet'),
    ('log, student', full_disk('new/log.txt'), S,
     '{w}/new/log.txt, or the terminal, cannot be written; nothing'),
    ('log, uag', full_disk('new/log.txt'), U,
     '{w}/new/log.txt, or the terminal, cannot be written; nothing'),
    ('samples', full_disk('new/samples/000000.png'), T,
     '{w}/new/samples: cannot write there, nothing is saved yet'),
    ('samples, later', full_disk('new/samples/000004.png'), S,
     '{w}/new/samples: cannot write|of iteration 2, --resume'),
    ('script', full_disk('new/train_teacher.py'), T, '--out_dir={w}/new: cannot write there'),
    ('checkpoint', full_disk('new/ckpt.pt.tmp'), T,
     '{w}/new/ckpt.pt: cannot be written; nothing is saved yet'),
    ('checkpoint, student', full_disk('new/ckpt.pt.tmp'), S,
     '{w}/new/ckpt.pt: cannot be written; nothing is saved'),
    ('checkpoint, uag', full_disk('new/ckpt.pt.tmp'), U,
     '{w}/new/ckpt.pt: cannot be written; nothing is saved yet'),
    ('checkpoint, next', full_disk('T/ckpt.pt.tmp'), ON_MORE,
     '{w}/T/ckpt.pt: cannot be written; {w}/T/ckpt.pt is of iteration 4, --resume=True goes on from there'),
    ('checkpoint, half', None, '{w}/full.py 60000 ' + ON_MORE,
     '{w}/T/ckpt.pt: cannot be written; {w}/T/ckpt.pt is of'),
]

TABLES = dict(data=DATA, flags=FLAGS, teacher=TEACHER, out_dir=OUT_DIR, full_disk=FULL_DISK)
ROWS = [pytest.param(*row[1:], id=f'{table}-{row[0]}') for table, rows in TABLES.items() for row in rows]


@pytest.mark.parametrize('change,command,says', ROWS)
def test_one_line_and_no_damage(world, tmp_path, change, command, says):
    w = tmp_path / 'w'
    shutil.copytree(world, w)
    if change:
        change(w)
    before = snapshot(w)
    said = run(*command.format(w=w).split(), ok=False)
    for text in says.format(w=w).split('|'):
        assert text in said, said
    after = snapshot(w)
    assert not (w / 'ran').exists()
    # What was there is as it was. New is what was complete before the mistake showed.
    assert before.items() <= after.items()
    for name in after.keys() - before.keys():
        assert name.startswith(('new/', 'T/samples/')) or name.endswith('.tmp'), name


@pytest.mark.parametrize('left', [0, 1])
def test_a_disk_that_is_full_at_the_last_byte(left, world, tmp_path):
    """Of a checkpoint whose size is known: it fits, or a byte of it does not."""
    shutil.copytree(world, tmp_path / 'w')
    command = ('{w}/full.py {limit} ' + T + ' --max_iters=0').format(w=tmp_path / 'w', limit='{limit}')
    run(*command.format(limit=10 ** 9).split())
    size = os.path.getsize(tmp_path / 'w/new/ckpt.pt')
    shutil.rmtree(tmp_path / 'w/new')
    said = run(*command.format(limit=size - left).split(), ok=left == 0)
    assert (tmp_path / 'w/new/ckpt.pt').exists() == (left == 0)
    assert left == 0 or 'ckpt.pt: cannot be written; nothing is saved yet' in said
