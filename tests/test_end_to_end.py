"""The scripts as a user runs them, with tiny nets, then a look at what they wrote; checkpoints, good and hostile."""

import io
import json
import os
import random
import shutil
import zipfile

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, TINY_S, equal, make_data, run
from PIL import Image

from train_student import load_nets


def ckpt(folder):
    return torch.load(os.path.join(folder, 'ckpt.pt'), weights_only=True)


def same(a, b):
    """Two checkpoints; where they were written may differ."""
    assert all(equal(a[key], b[key]) for key in ('G', 'D', 'opt_G', 'opt_D', 'iter', 'rng'))


@pytest.fixture(scope='module')
def student(teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp('student')
    run('train_student.py', f'--teacher={teacher}/ckpt.pt', f'--out_dir={out}', *TINY_S)
    return out


def test_what_runs_write(teacher, student):
    for folder, script, height in ((teacher, 'train_teacher.py', 8), (student, 'train_student.py', 24)):
        assert sorted(os.listdir(folder)) == ['ckpt.pt', 'log.txt', 'samples', script]
        assert sorted(os.listdir(folder / 'samples')) == ['000000.png', '000002.png', '000004.png']
        with Image.open(folder / 'samples' / '000004.png') as grid:  # 1 + 3 columns; 8 images, 3 rows each with maps
            assert grid.size == (4 * 18 + 2, height * 18 + 2)
        log, c = (folder / 'log.txt').read_text(), ckpt(folder)
        for word in ('iter      4/4', 'D real', 'gp', 'rec', 'it/s', 'eta', 'columns: input, a,b,c'):
            assert word in log, word
        assert c['iter'] == 4 and c['attrs'] == ['a', 'b', 'c'] and c['script'] == script
        assert c['source'] == (folder / script).read_text()
    assert c['d_args'] == ckpt(teacher)['d_args'] and c['g_args']['conv_dim'] == 2  # what is open is the teacher's
    assert c['config']['dataset'] == ckpt(teacher)['config']['dataset'] and ' att ' in log and 'dead_S' in log


def test_attention_changes_the_student_by_its_weight_alone(teacher, student, tmp_path):
    for lambda_att in (0, 1e-30):  # the second computes the loss, and weighs it away: only the weight changes anything
        run('train_student.py', f'--teacher={teacher}/ckpt.pt', f'--out_dir={tmp_path}/{lambda_att}', *TINY_S,
            f'--lambda_att={lambda_att}')
    assert equal(ckpt(tmp_path / '0')['G'], ckpt(tmp_path / '1e-30')['G'])
    assert not equal(ckpt(tmp_path / '0')['G'], ckpt(student)['G'])


def test_single_label_and_bfloat16(tmp_path):
    data = make_data(str(tmp_path / 'single'), 'p,q,r,s', 'single')
    run('train_teacher.py', f'--dataset={data}', f'--out_dir={tmp_path}/t', *TINY, '--attrs=p,q,s', '--dtype=bfloat16')
    run('train_student.py', f'--teacher={tmp_path}/t/ckpt.pt', f'--out_dir={tmp_path}/s', *TINY_S, '--dtype=bfloat16')
    run('evaluate.py', f'--ckpt={tmp_path}/t/ckpt.pt,{tmp_path}/s/ckpt.pt', f'--out_dir={tmp_path}/e', '--device=cpu',
        '--inception=none', f'--clf_dir={tmp_path}/clf', '--clf_epochs=1')
    y = np.load(f'{data}/test_y.npy')[:, [0, 1, 3]]
    for c in json.load(open(tmp_path / 'e' / 'results.json'))['checkpoints']:
        assert set(c['measures']) == {'p', 'q', 's'} and c['n_fake'] == 2 * y.sum()  # each image to both other classes
    y = np.load(f'{data}/train_y.npy')
    assert f'{y[:, [0, 1, 3]].sum()} images' in (tmp_path / 't' / 'log.txt').read_text()  # those of r left out


def test_same_seed_same_checkpoint_other_seed_another(teacher, data, tmp_path):
    run('train_teacher.py', f'--dataset={data}', f'--out_dir={tmp_path}/a', *TINY)
    same(ckpt(teacher), ckpt(tmp_path / 'a'))
    run('train_teacher.py', f'--dataset={data}', f'--out_dir={tmp_path}/b', *TINY, '--seed=1')
    assert not equal(ckpt(teacher)['G'], ckpt(tmp_path / 'b')['G'])


def test_resumed_run_equals_an_uninterrupted_one(teacher, student, data, tmp_path):
    """Killed behind the checkpoint of iteration 2 (by a sample that cannot be written at 4) and gone on with."""
    for script, whole, args in (
            ('train_teacher.py', teacher, [f'--dataset={data}', *TINY]),
            ('train_student.py', student, [f'--teacher={teacher}/ckpt.pt', *TINY_S])):
        out = tmp_path / script
        os.makedirs(out / 'samples' / '000004.png')
        assert f'{out}: cannot write there' in run(script, f'--out_dir={out}', *args, ok=False)
        assert ckpt(out)['iter'] == 2
        os.rmdir(out / 'samples' / '000004.png')
        assert 'exists: --resume=True' in run(script, f'--out_dir={out}', *args, ok=False)
        run(script, f'--out_dir={out}', *args, '--resume=True')
        same(ckpt(out), ckpt(whole))
        run(script, f'--out_dir={out}', *args, '--resume=True')  # finished: nothing changes
        same(ckpt(out), ckpt(whole))


def test_resume_refuses_what_is_not_its_own(teacher, student, data):
    args, before = ['train_teacher.py', f'--dataset={data}', *TINY, '--resume=True'], (teacher / 'ckpt.pt').read_bytes()
    assert 'size mismatch' in run(*args, f'--out_dir={teacher}', '--conv_dim=8', ok=False)
    assert 'other attributes or script' in run(*args, f'--out_dir={teacher}', '--attrs=a,c,b', ok=False)
    assert 'other attributes or script' in run(*args, f'--out_dir={student}', '--conv_dim=2', ok=False)
    assert (teacher / 'ckpt.pt').read_bytes() == before and not os.path.exists(student / 'train_teacher.py')


def test_not_finite_stops_and_keeps_the_checkpoint(teacher, data, tmp_path):
    shutil.copytree(teacher, tmp_path / 't')
    before = (tmp_path / 't' / 'ckpt.pt').read_bytes()
    said = run('train_teacher.py', f'--dataset={data}', f'--out_dir={tmp_path}/t', *TINY, '--resume=True',
               '--max_iters=8', '--lr=1e30', ok=False)
    assert 'weights are not finite' in said and (tmp_path / 't' / 'ckpt.pt').read_bytes() == before


def test_a_label_without_effect_is_warned_of(teacher, data, tmp_path):
    deaf = ckpt(teacher)
    deaf['G']['down.0.weight'][:, 3:] = 0
    torch.save(deaf, tmp_path / 'deaf.pt')
    said = run('train_teacher.py', f'--dataset={data}', *TINY, '--lr=1e-9', f'--init_from={tmp_path}/deaf.pt',
               f'--out_dir={tmp_path}/t')
    assert said.count('G ignores its label') == 2  # at 2 and 4, not at the start
    assert 'ignores' not in (teacher / 'log.txt').read_text()


# hacks: edited scripts
def test_an_edited_copy_trains_and_is_evaluated_and_edited_nets_are_refused(teacher, tmp_path):
    root = tmp_path / 'root'
    root.mkdir()
    for name in ('gradcam.py', 'train_teacher.py', 'train_student.py', 'train_uag.py', 'evaluate.py'):
        shutil.copy(os.path.join(ROOT, name), root)
    source, old = (root / 'train_student.py').read_text(), 'nn.InstanceNorm2d(dim, affine=True), nn.ReLU(),'
    assert source.count(old) == 1
    my = root / 'my_student.py'
    my.write_text(source.replace(old, old.replace('nn.ReLU()', 'nn.GELU()')))
    where = {'PYTHONPATH': str(root)}
    run(my, f'--out_dir={tmp_path}/s', f'--teacher={teacher}/ckpt.pt', *TINY_S, env=where)
    evaluate = [root / 'evaluate.py', f'--ckpt={teacher}/ckpt.pt,{tmp_path}/s/ckpt.pt', f'--out_dir={tmp_path}/e',
                '--inception=none', '--device=cpu', f'--clf_dir={tmp_path}/clf', '--clf_epochs=1']
    run(*evaluate, env=where)
    my.write_text(my.read_text().replace('nn.GELU()', 'nn.SiLU()'))
    says = run(*evaluate, env=where, ok=False)
    assert f'{root}/my_student.py has other nets now: put back the copy' in says
    shutil.copy(tmp_path / 's' / 'my_student.py', my)  # as it says
    my.write_text(my.read_text().replace('# losses\n', '# losses, all of them\n'))  # outside of the nets: no matter
    run(*evaluate, env=where)


# checkpoints that are damaged or meant to do harm
class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), 'w'))


def mutations(good, path, ran):
    """(name, bytes) of a few dozen bad teachers, each unlike the others."""
    data, rng = path.read_bytes(), random.Random(0)

    def saved(**change):
        out = io.BytesIO()
        torch.save({k: v for k, v in (good | change).items() if v != 'gone'}, out)
        return out.getvalue()
    for n in (0, 1, 100, len(data) // 2, len(data) - 1):
        yield f'cut at {n}', data[:n]
    for k in range(12):
        at = rng.randrange(len(data) - 8)
        yield f'bits flipped at {at}', data[:at] + bytes(b ^ rng.randrange(1, 256) for b in data[at:at + 8]) + data[at + 8:]
    for key in ('kind', 'script', 'source', 'config', 'attrs', 'g_args', 'd_args', 'G', 'D'):
        yield f'no {key}', saved(**{key: 'gone'})
        yield f'{key} is a number', saved(**{key: 7})
        yield f'{key} is None', saved(**{key: None})
    for args in ({'conv_dim': 10 ** 9}, {'n_blocks': 10 ** 9}, {'n_blocks': 2}, {'c_dim': 2}, {'conv_dim': -1},
                 {'conv_dim': 4.0}, {'more': 1}):
        yield f'g_args {args}', saved(g_args=good['g_args'] | args)
    for args in ({'n_layers': 10 ** 6}, {'image_size': 10 ** 12}, {'image_size': 'x'}):
        yield f'd_args {args}', saved(d_args=good['d_args'] | args)
    for attrs in ([], ['a'], ['a', 'b', 3], ['a', 'b', 'zzz'], 'abc'):
        yield f'attrs {attrs}', saved(attrs=attrs)
    yield 'dataset is a list', saved(config=good['config'] | {'dataset': []})
    yield 'another script', saved(script='../../evil.py')
    yield 'a script of Python', saved(script='os.py', source=open(os.__file__).read())
    yield 'weights are strings', saved(G=dict.fromkeys(good['G'], 'w'))
    yield 'code inside', saved(config={'x': Evil(ran)})
    yield 'code in its source', saved(source=good['source'] + f'\nopen({str(ran)!r}, "w")\n')
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as z:
        z.writestr('archive/data.pkl', b'cos\nsystem\n(S"touch ' + str(ran).encode() + b'"\ntR.')
    yield 'a hostile pickle', out.getvalue()


def test_damaged_and_hostile_checkpoints_end_in_one_line_and_run_no_code(teacher, tmp_path):
    good, path, ran, harmless = ckpt(teacher), tmp_path / 'bad.pt', tmp_path / 'ran', []
    names = [name for name, _ in mutations(good, teacher / 'ckpt.pt', ran)]
    assert len(names) == len(set(names)) >= 60
    for name, data in mutations(good, teacher / 'ckpt.pt', ran):
        path.write_bytes(data)
        try:
            c, nets = load_nets(str(path), 'stargan')
            harmless.append(name)
            assert all(torch.is_tensor(net(torch.zeros(1, 3, 16, 16), *[torch.zeros(1, 3)] * (k == 'G'))[0])
                       for k, net in nets.items()), name
        except SystemExit as e:
            assert isinstance(e.code, str) and len(e.code.splitlines()) == 1 and len(e.code) < 500, (name, e.code)
            assert str(path) in e.code and 'weights_only' not in e.code, (name, e.code)  # no advice to load it unsafely
    assert not ran.exists()
    # what is left: bits of a weight or of padding, other names for attributes, a text that is not looked at
    assert {name for name in harmless if not name.startswith('bits')} <= {"attrs ['a', 'b', 'zzz']", 'code in its source'}
    path.write_bytes(data)
    assert str(path) in run('train_student.py', f'--teacher={path}', ok=False)


# --init_from: StarGAN's own files, and checkpoints with other attributes
def official(net):
    """Weights of our G or D under other names, with the running statistics that StarGAN's own files have."""
    out = {}
    for k, w in net.items():
        out['main.' + k] = w
        if w.ndim == 1:
            out |= {f'main.{k}.running_mean': torch.rand_like(w), f'main.{k}.num_batches_tracked': torch.tensor(3)}
    return out


def test_official_files_and_warm_starts(teacher, data, tmp_path):
    c = ckpt(teacher)
    for net in 'GD':
        torch.save(official(c[net]), tmp_path / f'9-{net}.ckpt', _use_new_zipfile_serialization=False)  # as in 2018
    both = f'--init_from={tmp_path}/9-G.ckpt,{tmp_path}/9-D.ckpt'
    args = ['train_teacher.py', f'--dataset={data}', *TINY, '--max_iters=0']
    run(*args, both, f'--out_dir={tmp_path}/t')
    t = ckpt(tmp_path / 't')
    assert t['iter'] == 0 and equal(t['G'], c['G']) and equal(t['D'], c['D'])  # difference 0
    run(*args[:-1], both, f'--out_dir={tmp_path}/t', '--resume=True')  # goes on from there
    assert ckpt(tmp_path / 't')['iter'] == 4
    # other attributes, another image size: by name, the rest stays as it was made
    other = make_data(str(tmp_path / 'other'), 'a,c,d,e')
    init = f'--init_from={teacher}/ckpt.pt'
    said = run(*args[:1], f'--dataset={other}', *args[2:], init, f'--out_dir={tmp_path}/o')
    assert '2 of 4 attributes' in said
    run(*args[:1], f'--dataset={other}', *args[2:], f'--out_dir={tmp_path}/new')
    o, new = ckpt(tmp_path / 'o'), ckpt(tmp_path / 'new')
    assert torch.equal(o['G']['down.0.weight'][:, [0, 1, 2, 3, 4]], c['G']['down.0.weight'][:, [0, 1, 2, 3, 5]])
    assert torch.equal(o['G']['down.0.weight'][:, 5:], new['G']['down.0.weight'][:, 5:])
    assert torch.equal(o['D']['cls.weight'][:2], c['D']['cls.weight'][[0, 2]])
    assert torch.equal(o['D']['cls.weight'][2:], new['D']['cls.weight'][2:])
    assert all(torch.equal(o[net][k], c[net][k]) for net in 'GD' for k in c[net]
               if (net, k) not in (('G', 'down.0.weight'), ('D', 'cls.weight')))
    run(*args, init, '--image_size=8', f'--out_dir={tmp_path}/8')
    assert torch.equal(ckpt(tmp_path / '8')['D']['down.0.weight'], c['D']['down.0.weight'])
    torch.save(c['D'] | {'cls.weight': c['D']['cls.weight'][:2]}, tmp_path / '2-D.ckpt')
    for init, says in ((f'{tmp_path}/9-D.ckpt,{tmp_path}/9-G.ckpt', 'not nets of these'),
                       (f'{tmp_path}/9-G.ckpt,{tmp_path}/2-D.ckpt', 'cls.weight is of 2 attributes'),
                       (f'{teacher}/ckpt.pt --conv_dim=8', 'size mismatch'), (f'{tmp_path}/9-G.ckpt', 'not nets of these')):
        init, *more = init.split()
        assert says in run(*args, f'--init_from={init}', *more, f'--out_dir={tmp_path}/no', ok=False)
    assert not os.path.exists(tmp_path / 'no' / 'ckpt.pt')
