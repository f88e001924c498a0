"""The scripts as a user runs them, with tiny nets, then a look at what they wrote; checkpoints, good and hostile."""

import io
import json
import os
import random
import runpy
import shutil
import sys
import zipfile

import numpy as np
import pytest
import torch
import torch.nn as nn
from conftest import ROOT, TINY, TINY_S, Evil, ckpt, equal, make_data, run
from PIL import Image

import gradcam
from gradcam import GradCAM
from train_student import load_nets


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


def test_single_label_and_bfloat16(evaluation, tmp_path):
    data = make_data(str(tmp_path / 'single'), 'p,q,r,s', 'single')
    run('train_teacher.py', f'--dataset={data}', f'--out_dir={tmp_path}/t', *TINY, '--attrs=p,q,s', '--dtype=bfloat16')
    run('train_student.py', f'--teacher={tmp_path}/t/ckpt.pt', f'--out_dir={tmp_path}/s', *TINY_S, '--dtype=bfloat16')
    run('evaluate.py', f'--ckpt={tmp_path}/t/ckpt.pt,{tmp_path}/s/ckpt.pt', f'--out_dir={tmp_path}/e', *evaluation)
    y = np.load(f'{data}/test_y.npy')[:, [0, 1, 3]]
    for c in json.load(open(tmp_path / 'e' / 'results.json'))['checkpoints']:
        assert set(c['measures']) == {'p', 'q', 's'} and c['n_fake'] == 2 * y.sum()  # each image to both other classes
    y = np.load(f'{data}/train_y.npy')
    assert f'{y[:, [0, 1, 3]].sum()} images' in (tmp_path / 't' / 'log.txt').read_text()  # those of r left out


def test_resumed_run_equals_an_uninterrupted_one_and_one_of_another_seed_does_not(teacher, student, data, tmp_path):
    """Killed behind the checkpoint of iteration 2 (by a sample that cannot be written at 4) and gone on with."""
    for script, folder, args in (
            ('train_teacher.py', teacher, [f'--dataset={data}', *TINY]),
            ('train_student.py', student, [f'--teacher={teacher}/ckpt.pt', *TINY_S])):
        out, whole = tmp_path / script, ckpt(folder)
        os.makedirs(out / 'samples' / '000004.png')
        assert f'{out}: cannot write there' in run(script, f'--out_dir={out}', *args, ok=False)
        assert ckpt(out)['iter'] == 2
        os.rmdir(out / 'samples' / '000004.png')
        for _ in range(2):  # the second time it is finished: nothing changes
            run(script, f'--out_dir={out}', *args, '--resume=True')
            assert all(equal(ckpt(out)[key], whole[key]) for key in ('G', 'D', 'opt_G', 'opt_D', 'iter', 'rng'))
        run(script, f'--out_dir={out}-1', *args, '--seed=1')
        assert not equal(whole['G'], ckpt(f'{out}-1')['G'])


def test_a_label_without_effect_is_warned_of(teacher, data, tmp_path):
    deaf = ckpt(teacher)
    deaf['G']['down.0.weight'][:, 3:] = 0
    torch.save(deaf, tmp_path / 'deaf.pt')
    said = run('train_teacher.py', f'--dataset={data}', *TINY, '--lr=1e-9', f'--init_from={tmp_path}/deaf.pt',
               f'--out_dir={tmp_path}/t')
    assert said.count('G ignores its label') == 2  # at 2 and 4, not at the start
    assert 'ignores' not in (teacher / 'log.txt').read_text()


# hacks: edited scripts
def test_an_edited_copy_trains_and_is_evaluated_and_edited_nets_are_refused(teacher, evaluation, tmp_path):
    root = tmp_path / 'root'
    root.mkdir()
    for name in ('gradcam.py', 'train_teacher.py', 'train_student.py', 'train_uag.py', 'evaluate.py'):
        shutil.copy(os.path.join(ROOT, name), root)
    source, old = (root / 'train_student.py').read_text(), 'nn.InstanceNorm2d(dim, affine=True), nn.ReLU(),'
    assert source.count(old) == 1
    my = root / 'my_student.py'
    my.write_text(source.replace(old, old.replace('nn.ReLU()', 'nn.GELU()')))
    run(my, f'--out_dir={tmp_path}/s', f'--teacher={teacher}/ckpt.pt', *TINY_S)
    args = [f'--ckpt={teacher}/ckpt.pt,{tmp_path}/s/ckpt.pt', f'--out_dir={tmp_path}/e', *evaluation]
    my.write_text(my.read_text().replace('nn.GELU()', 'nn.SiLU()'))
    assert f'{root}/my_student.py has other nets now: put back the copy' in run(root / 'evaluate.py', *args, ok=False)
    shutil.copy(tmp_path / 's' / 'my_student.py', my)  # as it says
    my.write_text(my.read_text().replace('# losses\n', '# losses, all of them\n'))  # outside of the nets: no matter
    run(root / 'evaluate.py', *args)


# checkpoints that are damaged or meant to do harm
def mutations(good, path, ran):
    """(name, bytes) of a few dozen bad teachers, each unlike the others."""
    data, rng, out = path.read_bytes(), random.Random(0), io.BytesIO()

    def saved(**change):
        out = io.BytesIO()
        torch.save({k: v for k, v in (good | change).items() if v != 'gone'}, out)
        return out.getvalue()
    for n in (0, 1, 100, len(data) // 2, len(data) - 1):
        yield f'cut at {n}', data[:n]
    for at in (rng.randrange(len(data) - 8) for _ in range(12)):
        flipped = bytes(b ^ rng.randrange(1, 256) for b in data[at:at + 8])
        yield f'bits flipped at {at}', data[:at] + flipped + data[at + 8:]
    for key in ('kind', 'script', 'source', 'config', 'attrs', 'g_args', 'd_args', 'G', 'D'):
        for value in ('gone', 7, None):
            yield f'{key} {value}', saved(**{key: value})
    for key, args in [('g_args', args) for args in (
            {'conv_dim': 10 ** 9}, {'n_blocks': 10 ** 9}, {'n_blocks': 2}, {'c_dim': 2}, {'conv_dim': -1},
            {'conv_dim': 4.0}, {'more': 1})] + [('d_args', args) for args in (
                {'n_layers': 10 ** 6}, {'image_size': 10 ** 12}, {'image_size': 'x'})]:
        yield f'{key} {args}', saved(**{key: good[key] | args})
    for attrs in ([], ['a'], ['a', 'b', 3], ['a', 'b', 'zzz'], 'abc'):
        yield f'attrs {attrs}', saved(attrs=attrs)
    yield 'dataset is a list', saved(config=good['config'] | {'dataset': []})
    yield 'another script', saved(script='../../evil.py')
    yield 'a script of Python', saved(script='os.py', source=open(os.__file__).read())
    yield 'weights are strings', saved(G=dict.fromkeys(good['G'], 'w'))
    yield 'code inside', saved(config={'x': Evil(ran)})
    yield 'code in its source', saved(source=good['source'] + f'\nopen({str(ran)!r}, "w")\n')
    with zipfile.ZipFile(out, 'w') as z:
        z.writestr('archive/data.pkl', b'cos\nsystem\n(S"touch ' + str(ran).encode() + b'"\ntR.')
    yield 'a hostile pickle', out.getvalue()


def test_damaged_and_hostile_checkpoints_end_in_one_line_and_run_no_code(teacher, tmp_path):
    good, path, ran, harmless = ckpt(teacher), tmp_path / 'bad.pt', tmp_path / 'ran', []
    bad = dict(mutations(good, teacher / 'ckpt.pt', ran))
    assert len(bad) >= 60
    for name, data in bad.items():
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
    assert {name for name in harmless if 'bits' not in name} <= {"attrs ['a', 'b', 'zzz']", 'code in its source'}
    path.write_bytes(data)
    assert str(path) in run('train_student.py', f'--teacher={path}', ok=False)


# --init_from: StarGAN's own files, and checkpoints with other attributes
def norm(d):
    return nn.InstanceNorm2d(d, affine=True, track_running_stats=True)


class Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        convs = [nn.Conv2d(d, d, 3, 1, 1, bias=False) for _ in range(2)]
        self.main = nn.Sequential(convs[0], norm(d), nn.ReLU(), convs[1], norm(d))

    def forward(self, x):
        return x + self.main(x)


def official():
    """Tiny G and D with the names, the order and the running statistics of StarGAN's own files."""
    down = [layer for sizes in ((6, 4, 7, 1, 3), (4, 8, 4, 2, 1), (8, 16, 4, 2, 1))
            for layer in (nn.Conv2d(*sizes, bias=False), norm(sizes[1]), nn.ReLU())]
    up = [layer for d in (16, 8)
          for layer in (nn.ConvTranspose2d(d, d // 2, 4, 2, 1, bias=False), norm(d // 2), nn.ReLU())]
    convs = [layer for sizes in ((3, 4), (4, 8), (8, 16)) for layer in (nn.Conv2d(*sizes, 4, 2, 1), nn.LeakyReLU(0.01))]
    G = nn.Sequential(*down, Block(16), *up, nn.Conv2d(4, 3, 7, 1, 3, bias=False), nn.Tanh())
    return nn.ModuleDict(dict(main=G)), nn.ModuleDict(dict(
        main=nn.Sequential(*convs), conv1=nn.Conv2d(16, 1, 3, 1, 1, bias=False), conv2=nn.Conv2d(16, 3, 2, bias=False)))


def test_official_files_and_warm_starts(teacher, data, tmp_path):
    (G, D), c, x = official(), ckpt(teacher), torch.rand(2, 3, 16, 16)
    label, files = torch.tensor([[0., 1, 1], [1, 0, 0]]), [tmp_path / '9-G.ckpt', tmp_path / '9-D.ckpt']
    with torch.no_grad():
        for p in G.parameters():  # norms of 1 and 0 would not tell one from another
            p.normal_(0, 0.3)
        h = D['main'](x)  # running statistics other than at the start
        planes = label[:, :, None, None].expand(-1, -1, 16, 16)
        want = [G['main'](torch.cat([x, planes], 1)), D['conv1'](h), D['conv2'](h).flatten(1)]
        for net, path in zip((G, D), files):
            torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False)  # as in 2018
        args = ['train_teacher.py', f'--dataset={data}', *TINY, '--max_iters=0']
        run(*args, both := f'--init_from={files[0]},{files[1]}', f'--out_dir={tmp_path}/t')
        t, nets = load_nets(f'{tmp_path}/t/ckpt.pt', 'stargan')
        torch.testing.assert_close([nets['G'](x, label), *nets['D'](x)], want)
    assert t['iter'] == 0 and not t['opt_G']['state'] and want[0].std() > 0.01
    for name, net in zip('GD', (G, D)):  # difference 0
        assert all(map(torch.equal, t[name].values(), net.parameters()))
    run(*args[:-1], both, f'--out_dir={tmp_path}/t', '--resume=True')  # goes on from there
    assert ckpt(tmp_path / 't')['iter'] == 4
    # other attributes, another image size: by name, the rest stays as it was made
    other = [args[0], f"--dataset={make_data(tmp_path / 'other', 'a,c,d,e')}", *args[2:]]
    init = f'--init_from={teacher}/ckpt.pt'
    assert '2 of 4 attributes' in run(*other, init, f'--out_dir={tmp_path}/o')
    run(*other, f'--out_dir={tmp_path}/new')
    o, new = ckpt(tmp_path / 'o'), ckpt(tmp_path / 'new')
    old, own, made = (of['G'].pop('down.0.weight') for of in (c, o, new))
    assert torch.equal(own[:, :5], old[:, [0, 1, 2, 3, 5]]) and torch.equal(own[:, 5:], made[:, 5:])
    rows, own, made = (of['D'].pop('cls.weight') for of in (c, o, new))
    assert torch.equal(own[:2], rows[[0, 2]]) and torch.equal(own[2:], made[2:])
    assert equal([c['G'], c['D']], [o['G'], o['D']])
    run(*args, init, '--image_size=8', f'--out_dir={tmp_path}/8')
    assert torch.equal(ckpt(tmp_path / '8')['D']['down.0.weight'], c['D']['down.0.weight'])
    torch.save(c['D'] | {'cls.weight': rows[:2]}, tmp_path / '2-D.ckpt')
    for files, says in (('9-D.ckpt,{}/9-G.ckpt', 'not nets of these'), ('9-G.ckpt', 'not nets of these'),
                        ('9-G.ckpt,{}/2-D.ckpt', 'cls.weight is of 2 attributes')):
        files = f'{tmp_path}/{files}'.format(tmp_path)
        assert says in run(*args, f'--init_from={files}', f'--out_dir={tmp_path}/no', ok=False)
    assert not os.path.exists(tmp_path / 'no' / 'ckpt.pt')


# "pseudo"-attention, eq. (6) and (7): which label the teacher is given, and whose score makes the maps
@pytest.fixture(scope='module')
def hair(tmp_path_factory):
    """A set of six attributes; the teacher has three of them, d, a, e, in this order."""
    folder = tmp_path_factory.mktemp('hair')
    data = make_data(str(folder / 'data'), 'a,b,c,d,e,f')
    run('train_teacher.py', f'--dataset={data}', f'--out_dir={folder}/T', *TINY, '--attrs=d,a,e', '--max_iters=2')
    return folder


@pytest.mark.parametrize('new', [False, True])
def test_the_script_gives_the_teacher_its_labels_and_takes_its_score(hair, tmp_path, monkeypatch, new):
    """Every map of a run, in steps and grids, against scores made by hand; here b is like a, c like e, f like d."""
    calls = []

    class Spy(GradCAM):
        def __call__(self, y, create_graph=False):
            frame = sys._getframe(1)
            while frame.f_code.co_name != 'attention':
                frame = frame.f_back
            g, v = frame.f_globals, frame.f_locals
            alike = [{'b': 'a', 'c': 'e', 'f': 'd'}[name] for name in g['names']]
            c_pse = torch.stack([v['c_trg'][:, alike.index(name)] for name in 'dae'], 1)
            column = torch.tensor([['dae'.index(alike[k])] for k in v['k'][:, 0]])
            with torch.no_grad():
                x_trg = g['G_teacher'](v['x'], c_pse) if self is g['hook_teacher'] else v['x_fake']
                scores = g['D_teacher'](x_trg)[1].gather(1, column)
            assert torch.allclose(scores, y.detach(), atol=1e-6)
            step = frame.f_back.f_code.co_name == 'g_step'
            if step:  # the class is one of the image's targets, or one of those that it has not yet
                c = v['c_trg'] * (1 - frame.f_back.f_locals['c_org']) if new else v['c_trg']
                assert torch.equal(c.gather(1, v['k'])[:, 0], c.amax(1))
            calls.append(('teacher' if self is g['hook_teacher'] else 'student', step, create_graph))
            self.feat = self.feats[-1]  # the scores above ran the hooks anew: back to the features that belong to y
            return super().__call__(y, create_graph)

        def hook(self, module, args, output):
            out = super().hook(module, args, output)
            self.feats = getattr(self, 'feats', []) + ([out] if self.feat is not None else [])
            return out

    monkeypatch.setattr(gradcam, 'GradCAM', Spy)
    monkeypatch.setattr(sys, 'argv', ['train_student.py', f'--teacher={hair}/T/ckpt.pt', *TINY_S, '--attrs=b,c,f',
                                      '--pseudo=a,e,d', f'--out_dir={tmp_path}/s', f'--att_new={new}'])
    monkeypatch.setattr('logging.root.handlers', [])
    runpy.run_path(os.path.join(ROOT, 'train_student.py'), run_name='__main__')
    assert {call: calls.count(call) for call in calls} == {  # 2 steps of G; 3 grids of 3 columns
        ('student', True, True): 2, ('teacher', True, False): 2, ('student', False, False): 9,
        ('teacher', False, False): 9}
    c = ckpt(tmp_path / 's')
    assert c['attrs'] == ['b', 'c', 'f'] and c['config']['pseudo'] == 'a,e,d' and c['g_args']['c_dim'] == 3
    assert Image.open(tmp_path / 's' / 'samples' / '000004.png').size == (4 * 18 + 2, 24 * 18 + 2)


def test_no_score_no_maps_and_the_order_of_the_same_attributes_is_free(hair, tmp_path):
    args = ['train_student.py', f'--teacher={hair}/T/ckpt.pt', *TINY_S]
    run(*args, '--attrs=b', '--lambda_att=0', f'--out_dir={tmp_path}/s')
    assert Image.open(tmp_path / 's' / 'samples' / '000004.png').size == (2 * 18 + 2, 8 * 18 + 2)
    for shuffled in (False, True):
        run(*args, '--attrs=a,e,d', f'--att_shuffle={shuffled}', f'--out_dir={tmp_path}/{shuffled}')
    nets = [ckpt(tmp_path / str(shuffled)) for shuffled in (False, True)]
    assert nets[0]['attrs'] == ['a', 'e', 'd'] and not equal(nets[0]['G'], nets[1]['G'])  # other maps to follow
