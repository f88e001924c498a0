"""What happens if the input is wrong, one table: every row ends in exit code 1 and one line, and changes no file."""

import hashlib
import os
import shutil

import numpy as np
import pytest
import torch
from conftest import TINY, TINY_S, TINY_U, Evil, make_data, make_pairs, run

T = 'train_teacher.py --dataset={w}/attrs --out_dir={w}/new ' + ' '.join(TINY)
S = 'train_student.py --teacher={w}/T/ckpt.pt --out_dir={w}/new ' + ' '.join(TINY_S)
U = 'train_uag.py --dataset={w}/pairs --out_dir={w}/new --n_epochs=1 ' + ' '.join(TINY_U)
E = 'evaluate.py --ckpt={w}/T/ckpt.pt --out_dir={w}/new --clf_dir={w}/clf --clf_epochs=1 --device=cpu'
T_ON, U_ON = T + ' --out_dir={w}/T --resume=True', U + ' --out_dir={w}/U --resume=True'
# runs what follows with a limit on the bytes of one file: a full disk
FULL = """import os, resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.argv = sys.argv[2:]
sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name='__main__')
"""


@pytest.fixture(scope='session')
def world(tmp_path_factory, teacher):
    """Good input of every kind, small: prepared sets and checkpoints."""
    w = tmp_path_factory.mktemp('world')
    make_data(w / 'attrs')
    make_data(w / 'more', 'a,b,c,d,e')
    make_pairs(w / 'pairs')
    shutil.copytree(teacher, w / 'T')
    run(*U.replace('new', 'U').format(w=w).split())
    (w / 'full.py').write_text(FULL)
    (w / 'file').write_text('not a folder')
    return w


def snapshot(folder):
    """File -> hash; the logs of the two runs may grow."""
    files = {str(p.relative_to(folder)): p for p in folder.rglob('*') if p.is_file()}
    return {name: hashlib.sha256(p.read_bytes()).hexdigest() for name, p in files.items() if name[1:] != '/log.txt'}


def edit(path, change):
    def make(w):
        (w / path).write_bytes(change((w / path).read_bytes()))
    return make


def array(path, change):
    return lambda w: np.save(w / path, change(np.load(w / path)))


CASES = [
    # the data of a training run
    ('data: no such set', None, T + ' --dataset=nowhere', '--dataset=nowhere|prepare.py'),
    ('data: an array is cut short', edit('attrs/train_x.npy', lambda b: b[:999]), T, '{w}/attrs|prepare the data'),
    ('data: images are floats', array('attrs/train_x.npy', lambda x: x / 255), T, '{w}/attrs: damaged'),
    ('data: pickled array', lambda w: np.save(w / 'attrs/train_x.npy', np.array([Evil(w / 'ran')], object)), T, ''),
    ('data: domains for the teacher', None, T + ' --dataset={w}/pairs', '--attrs=|{w}/pairs'),
    ('data: attributes for train_uag', None, U + ' --dataset={w}/attrs', 'attrs|train_teacher.py'),
    ('data, uag: an array is missing', lambda w: os.remove(w / 'pairs/testB_x.npy'), U, 'prepare the data again'),
    # flags of a training run
    ('attrs: unknown', None, T + ' --attrs=a,bb', '--attrs=a,bb|{w}/attrs: a, b, c'),
    ('image_size: does not divide', None, T + ' --image_size=12', '--image_size=12|divides 16'),
    ('switch_at, uag: no share', None, U + ' --switch_at=30', 'want shares, from 0 to 1'),
    ('dtype: unknown', None, T + ' --dtype=half', '--dtype=half|float32 or bfloat16'),
    ('device: no GPU', None, S + ' --device=cuda:99', '--device=cuda:99'),
    ('cuda_graph: no GPU', None, U.replace('--device=cpu', '') + ' --cuda_graph=True', '--device=cuda'),
    ('cam: unknown', None, S + ' --cam=cam', '--cam=cam|gradcam hirescam'),
    ('out_dir: is a file', None, T + ' --out_dir={w}/file', '--out_dir={w}/file: cannot write'),
    ('out_dir: holds a run', None, T + ' --out_dir={w}/T', '{w}/T/ckpt.pt exists: --resume=True'),
    ('resume: a run of another script', None, U + ' --out_dir={w}/T --resume=True', '{w}/T/ckpt.pt|wanted uag'),
    ('resume: damaged', edit('T/ckpt.pt', lambda b: b[:999]), T_ON, '{w}/T/ckpt.pt: no'),
    ('resume: other sizes', None, T_ON + ' --conv_dim=8', 'size mismatch'),
    ('resume: other attributes', None, T_ON + ' --attrs=a,c,b', 'other attributes or script'),
    ('resume: a student of a teacher', None, S + ' --out_dir={w}/T --resume=True --conv_dim=4', 'other attributes or'),
    ('not finite', None, T_ON + ' --max_iters=8 --lr=1e30', 'weights are not finite|{w}/T/ckpt.pt, if any'),
    ('not finite, uag', None, U_ON + ' --n_epochs=9 --lr=1e30', 'weights are not finite|{w}/U/ckpt.pt, if any, is'),
    ('init_from: missing', None, T + ' --init_from={w}/none.pt', '{w}/none.pt|No such file'),
    ('init_from: a checkpoint of train_uag', None, T + ' --init_from={w}/U/ckpt.pt', 'not nets of these sizes'),
    # a student's teacher
    ('teacher: none given', None, S + ' --teacher=', '--teacher='),
    ('teacher: of train_uag', None, S + ' --teacher={w}/U/ckpt.pt', '{w}/U/ckpt.pt|is of kind uag, wanted stargan'),
    ('teacher: code inside', lambda w: torch.save({'kind': Evil(w / 'ran')}, w / 'T/ckpt.pt'), S, 'with code in it'),
    ('teacher: another size', lambda w: make_data(w / 'attrs', size=24), S + ' --dataset={w}/attrs', '24 px|has 16 px'),
    ('pseudo: none given', None, S + ' --dataset={w}/more --attrs=d,e', '--pseudo= --attrs=d,e: wants|a,b,c'),
    # evaluate.py
    ('evaluate: nothing to do', None, E + ' --ckpt=', '--ckpt=|--real_dir='),
    ('evaluate: the same twice', None, E + ' --ckpt={w}/T/ckpt.pt,{w}/T/ckpt.pt', 'two of one name'),
    ('evaluate: two kinds', None, E + ' --ckpt={w}/T/ckpt.pt,{w}/U/ckpt.pt', '{w}/U/ckpt.pt|wanted stargan'),
    ('evaluate: domains for attributes', None, E + ' --dataset={w}/pairs', 'do not go with|{w}/pairs'),
    ('evaluate: split', None, E + ' --split=train', '--split=train|val or test'),
    ('photos: unknown attribute', None, E + ' --input={w}/file --attrs=x', 'knows a, b, c'),
    ('photos: no photo', None, E + ' --input={w}/T/samples/none.png', 'none.png: no image there'),
    # a disk that fills up
    ('full: ckpt.pt', None, '{w}/full.py 30000 ' + T_ON + ' --max_iters=6 --sample_interval=99',
     '{w}/T/ckpt.pt: cannot write, disk full? The last stays'),
]


@pytest.mark.parametrize('make,command,says', [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_one_line_and_no_damage(world, tmp_path, make, command, says):
    w = tmp_path / 'w'
    shutil.copytree(world, w)
    if make:
        make(w)
    before = snapshot(w)
    said = run(*command.format(w=w).split(), ok=False)
    for text in says.format(w=w).split('|'):
        assert text in said, said
    now = snapshot(w)
    assert not (w / 'ran').exists() and before.items() <= now.items()
    assert {k for k in now.keys() - before.keys() if not k.endswith('.tmp')} <= {'T/samples/000006.png', 'new/log.txt'}
