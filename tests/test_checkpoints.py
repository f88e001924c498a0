"""Checkpoints that are read: a student's teacher, what a run goes on from, and --init_from.

A file that is damaged ends in one line. Code in it never runs, and no size in it makes the script hang.
"""

import io
import os
import random
import shutil
import zipfile

import pytest
import torch
import torch.nn as nn
from conftest import ROOT, TINY, TINY_S, Evil, ckpt, equal, make_data, run

from train_student import load_ckpt, load_net, or_exit

GONE = 'gone'


def write(path, fields):
    """Saves a dict without the fields that are to be gone."""
    kept = {}
    for name, value in fields.items():
        if not isinstance(value, str) or value != GONE:
            kept[name] = value
    torch.save(kept, path)


def as_bytes(fields):
    buffer = io.BytesIO()
    write(buffer, fields)
    return buffer.getvalue()


def load_teacher(path):
    """What train_student.py does with --teacher= -> G and D."""
    with or_exit(f'--teacher={path}: no'):
        saved, script = load_ckpt(path)
        G = load_net(script.Generator, saved['g_args'], saved['G'])
        D = load_net(script.Discriminator, saved['d_args'], saved['D'])
    return G, D


def damaged_bytes(good):
    """Name -> the bytes of a file that is cut, or has other bits."""
    rng = random.Random(0)
    files = {}
    for n in (0, 1, 100, len(good) // 2, len(good) - 1):
        files[f'cut at {n}'] = good[:n]
    for _ in range(12):
        at = rng.randrange(len(good) - 8)
        bits = bytes(b ^ rng.randrange(1, 256) for b in good[at:at + 8])
        files[f'other bits at {at}'] = good[:at] + bits + good[at + 8:]
    return files


WRONG_SIZES = [
    ('g_args', 'conv_dim', 10 ** 9),
    ('g_args', 'conv_dim', -1),
    ('g_args', 'conv_dim', 4.0),
    ('g_args', 'conv_dim', True),
    ('g_args', 'n_blocks', 10 ** 9),
    ('g_args', 'n_blocks', 2),
    ('g_args', 'n_blocks', 0),
    ('g_args', 'c_dim', 2),
    ('g_args', 'c_dim', 'x'),
    ('g_args', 'more', 1),
    ('d_args', 'n_layers', 10 ** 6),
    ('d_args', 'image_size', 10 ** 12),
    ('d_args', 'image_size', 'x'),
    ('d_args', 'conv_dim', 0),
    ('d_args', 7, 7),
]


def damaged_fields(good, ran):
    """Name -> the bytes of a checkpoint with wrong fields, or with code that would make `ran`."""
    files = {}
    for key in ('kind', 'script', 'source', 'config', 'attrs', 'exclusive', 'g_args', 'd_args', 'G', 'D'):
        for value in (GONE, 7, None, [7], {'x': 7}):
            if type(value) is not type(good[key]):
                files[f'{key} is {value}'] = as_bytes(good | {key: value})
    for key, size, value in WRONG_SIZES:
        files[f'{size} of {key} is {value}'] = as_bytes(good | {key: good[key] | {size: value}})
    files['a size is gone'] = as_bytes(good | {'g_args': {'conv_dim': 4, 'c_dim': 3}})
    files['G and D exchanged'] = as_bytes(good | {'G': good['D'], 'D': good['G']})
    files['weights are text'] = as_bytes(good | {'G': dict.fromkeys(good['G'], 'w')})
    files['weights are integers'] = as_bytes(good | {'G': {k: w.int() for k, w in good['G'].items()}})
    files['a script that is not there'] = as_bytes(good | {'script': '../../evil.py'})
    files['a script of Python'] = as_bytes(good | {'script': os.__file__})
    files['a script that has no nets'] = as_bytes(good | {'script': 'gradcam.py'})
    for value in (float('nan'), float('inf')):
        weights = {name: w.clone() for name, w in good['D'].items()}
        weights['cls.weight'][0, 0, 0, 0] = value
        files[f'weights are {value}'] = as_bytes(good | {'D': weights})
    files['code in a field'] = as_bytes(good | {'config': Evil(ran)})
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        archive.writestr('archive/data.pkl', b'cos\nsystem\n(S"touch ' + str(ran).encode() + b'"\ntR.')
    files['a hostile pickle'] = buffer.getvalue()
    return files


def test_a_damaged_or_hostile_teacher_ends_in_one_line(teacher, tmp_path):
    good = ckpt(teacher)
    path = tmp_path / 'bad.pt'
    ran = tmp_path / 'ran'
    bits = damaged_bytes((teacher / 'ckpt.pt').read_bytes())
    fields = damaged_fields(good, ran)
    for name, content in (bits | fields).items():
        path.write_bytes(content)
        try:
            load_teacher(str(path))
        except SystemExit as end:
            assert end.code.startswith(f'--teacher={path}: no ('), name
            assert '\n' not in end.code and len(end.code) < 500, name
            # No advice to load it without care.
            assert 'weights_only' not in end.code, name
        else:
            # Other bits may be those of a weight, or of nothing.
            assert name in bits and not name.startswith('cut'), name
    assert not ran.exists()


def test_the_script_in_a_checkpoint_is_text_only(teacher, tmp_path, capsys):
    """It is compared, and never run."""
    good = ckpt(teacher)
    evil = f'\nopen({str(tmp_path / "ran")!r}, "w")\n'
    write(tmp_path / 'c.pt', good | {'source': good['source'] + evil})
    load_teacher(str(tmp_path / 'c.pt'))
    assert capsys.readouterr().out == ''
    write(tmp_path / 'c.pt', good | {'source': good['source'].replace('\n# data\n', f'{evil}\n# data\n')})
    load_teacher(str(tmp_path / 'c.pt'))
    said = capsys.readouterr().out.strip()
    assert said == f'warning: the nets in {ROOT}/train_teacher.py have changed since {tmp_path}/c.pt was written'
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('change,says', [
    ('not finite', 'the weights are not finite'),
    ('g_args', 'n_blocks is 1000000000'),
    ('dataset', 'dataset'),
    ('code', 'UnpicklingError'),
    ('no script', 'my.v3.py')])
def test_a_student_of_a_damaged_teacher_ends_in_one_line(change, says, teacher, tmp_path):
    fields = ckpt(teacher)
    if change == 'not finite':
        fields['G']['out.0.weight'].fill_(float('nan'))
    elif change == 'g_args':
        fields['g_args']['n_blocks'] = 10 ** 9
    elif change == 'dataset':
        del fields['config']['dataset']
    elif change == 'code':
        fields['config'] = Evil(tmp_path / 'ran')
    else:
        fields['script'] = 'my.v3.py'
    write(tmp_path / 'bad.pt', fields)
    args = ['train_student.py', f'--teacher={tmp_path}/bad.pt', f'--out_dir={tmp_path}/s', *TINY_S]
    said = run(*args, ok=False)
    assert said.startswith(f'--teacher={tmp_path}/bad.pt: wants') and says in said
    assert not (tmp_path / 'ran').exists() and not (tmp_path / 's').exists()


def test_nets_are_loaded_frozen_and_in_float32(teacher, tmp_path):
    good = ckpt(teacher)
    write(tmp_path / 'half.pt', good | {'G': {name: w.half() for name, w in good['G'].items()}})
    G, D = load_teacher(str(tmp_path / 'half.pt'))
    for p in [*G.parameters(), *D.parameters()]:
        assert p.dtype == torch.float32 and p.device.type == 'cpu' and not p.requires_grad
    assert equal(dict(D.state_dict()), dict(good['D']))
    assert torch.equal(G.state_dict()['out.0.weight'], good['G']['out.0.weight'].half().float())


# Scripts of one's own
def test_a_teachers_script_may_have_any_name_and_other_nets(data, tmp_path):
    """my.v2.py, with other nets. When they are edited again, the student is warned and goes on."""
    for name in ('train_teacher.py', 'train_student.py', 'gradcam.py'):
        shutil.copy(f'{ROOT}/{name}', tmp_path)
    source = (tmp_path / 'train_teacher.py').read_text(encoding='utf-8')
    assert source.count('nn.Tanh()') == 1
    mine = tmp_path / 'my.v2.py'
    mine.write_text(source.replace('nn.Tanh()', 'nn.Hardtanh(), nn.PReLU()'), encoding='utf-8')
    run(mine, f'--dataset={data}', f'--out_dir={tmp_path}/t', *TINY, '--max_iters=1')
    assert 'out.2.weight' in ckpt(tmp_path / 't')['G']
    args = [tmp_path / 'train_student.py', f'--teacher={tmp_path}/t/ckpt.pt', *TINY_S, '--max_iters=1']
    assert 'warning' not in run(*args, f'--out_dir={tmp_path}/s')
    mine.write_text(mine.read_text(encoding='utf-8').replace('nn.Hardtanh()', 'nn.Tanh()'), encoding='utf-8')
    said = run(*args, f'--out_dir={tmp_path}/s2')
    assert f'warning: the nets in {mine} have changed since {tmp_path}/t/ckpt.pt was written' in said
    # Nets that the weights do not fit are an error.
    shutil.copy(tmp_path / 'train_teacher.py', mine)
    said = run(*args, f'--out_dir={tmp_path}/s3', '--n_critic=1', ok=False)
    assert 'out.2.weight' in said


# What a run goes on from
@pytest.mark.parametrize('key,value', [
    ('G', {}),
    ('G', 7),
    ('D', GONE),
    ('opt_G', {}),
    ('opt_G', 7),
    ('opt_D', {'state': 7, 'param_groups': 7}),
    ('rng', torch.zeros(9)),
    ('rng', 7),
    ('rng', GONE),
    ('iter', '2'),
    ('iter', GONE),
    ('config', []),
    ('source', 7),
    ('script', GONE),
    ('attrs', 7),
    ('attrs', ['a', 'c', 'b'])])
def test_a_run_that_cannot_go_on_ends_in_one_line(key, value, teacher, data, tmp_path):
    shutil.copytree(teacher, tmp_path / 't')
    write(tmp_path / 't' / 'ckpt.pt', ckpt(teacher) | {key: value})
    before = (tmp_path / 't' / 'ckpt.pt').read_bytes()
    args = ['train_teacher.py', f'--dataset={data}', f'--out_dir={tmp_path}/t', *TINY]
    said = run(*args, '--resume=True', '--max_iters=6', ok=False)
    assert said.startswith(f'{tmp_path}/t/ckpt.pt: cannot go on from it with these options (')
    assert (tmp_path / 't' / 'ckpt.pt').read_bytes() == before


# --init_from
def norm(dim):
    return nn.InstanceNorm2d(dim, affine=True, track_running_stats=True)


class OfficialBlock(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(dim, dim, 3, 1, 1, bias=False),
            norm(dim),
            nn.ReLU(),
            nn.Conv2d(dim, dim, 3, 1, 1, bias=False),
            norm(dim))

    def forward(self, x):
        return x + self.main(x)


def official_nets():
    """Tiny G and D with the names, the order and the running statistics of StarGAN's own files."""
    G = nn.Sequential(
        nn.Conv2d(6, 4, 7, 1, 3, bias=False),
        norm(4),
        nn.ReLU(),
        nn.Conv2d(4, 8, 4, 2, 1, bias=False),
        norm(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 4, 2, 1, bias=False),
        norm(16),
        nn.ReLU(),
        OfficialBlock(16),
        nn.ConvTranspose2d(16, 8, 4, 2, 1, bias=False),
        norm(8),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 4, 2, 1, bias=False),
        norm(4),
        nn.ReLU(),
        nn.Conv2d(4, 3, 7, 1, 3, bias=False),
        nn.Tanh())
    D = nn.Sequential(
        nn.Conv2d(3, 4, 4, 2, 1),
        nn.LeakyReLU(0.01),
        nn.Conv2d(4, 8, 4, 2, 1),
        nn.LeakyReLU(0.01),
        nn.Conv2d(8, 16, 4, 2, 1),
        nn.LeakyReLU(0.01))
    src = nn.Conv2d(16, 1, 3, 1, 1, bias=False)
    cls = nn.Conv2d(16, 3, 2, bias=False)
    for p in G.parameters():
        # Norms of 1 and 0 would not tell one from another.
        nn.init.normal_(p, 0, 0.3)
    return nn.ModuleDict(dict(main=G)), nn.ModuleDict(dict(main=D, conv1=src, conv2=cls))


@pytest.fixture(scope='module')
def official(tmp_path_factory):
    """-> a folder with StarGAN's files, images and labels, and what its nets make of them."""
    folder = tmp_path_factory.mktemp('official')
    torch.manual_seed(0)
    G, D = official_nets()
    x = torch.rand(2, 3, 16, 16)
    c = torch.tensor([[0., 1, 1], [1, 0, 0]])
    with torch.no_grad():
        planes = c[:, :, None, None].expand(-1, -1, 16, 16)
        h = D['main'](x)
        made = [G['main'](torch.cat([x, planes], 1)), D['conv1'](h), D['conv2'](h).flatten(1)]
    for name, net in (('G', G), ('D', D)):
        weights = net.state_dict()
        # The format of 2018; trained on several GPUs; in half precision.
        torch.save(weights, folder / f'9-{name}.ckpt', _use_new_zipfile_serialization=False)
        torch.save({f'module.{key}': w for key, w in weights.items()}, folder / f'm-{name}.ckpt')
        torch.save({key: w.half() for key, w in weights.items()}, folder / f'h-{name}.ckpt')
    return folder, x, c, made


@pytest.mark.parametrize('form,tolerance', [('9', 0), ('m', 0), ('h', 2e-2)])
def test_stargans_own_files_give_the_same_translations(form, tolerance, official, data, tmp_path):
    folder, x, c, made = official
    said = run('train_teacher.py', f'--dataset={data}', *TINY, '--max_iters=0', f'--out_dir={tmp_path}/t',
               f'--init_from={folder}/{form}-G.ckpt,{folder}/{form}-D.ckpt')
    assert 'G: 22 of 22 tensors' in said and 'D: 8 of 8 tensors' in said
    G, D = load_teacher(f'{tmp_path}/t/ckpt.pt')
    torch.testing.assert_close([G(x, c), *D(x)], made, rtol=0, atol=tolerance + 1e-5)
    assert made[0].std() > 0.01
    assert ckpt(tmp_path / 't')['iter'] == 0 and not ckpt(tmp_path / 't')['opt_G']['state']


def test_stargans_file_as_teacher_points_to_init_from(official, tmp_path):
    folder = official[0]
    said = run('train_student.py', f'--teacher={folder}/9-G.ckpt', f'--out_dir={tmp_path}/s', *TINY_S, ok=False)
    assert said.startswith(f'--teacher={folder}/9-G.ckpt: wants a ckpt.pt') and '--init_from' in said


def test_weights_that_fit_are_taken_over_and_those_of_attributes_only_with_them(teacher, data, tmp_path):
    saved = ckpt(teacher)
    args = ['train_teacher.py', *TINY, '--max_iters=0', f'--init_from={teacher}/ckpt.pt']
    run(*args, f'--dataset={data}', f'--out_dir={tmp_path}/same')
    same = ckpt(tmp_path / 'same')
    assert equal([same['G'], same['D']], [saved['G'], saved['D']])
    # Three attributes, but others.
    other = make_data(str(tmp_path / 'data'), 'a,c,d')
    said = run(*args, f'--dataset={other}', f'--out_dir={tmp_path}/other')
    assert 'G: 21 of 22 tensors' in said and 'D: 7 of 8 tensors' in said
    # A smaller image: D's last layer has another shape.
    said = run(*args, f'--dataset={data}', '--image_size=8', f'--out_dir={tmp_path}/8')
    assert 'G: 22 of 22 tensors' in said and 'D: 7 of 8 tensors' in said
    new = run('train_teacher.py', *TINY, '--max_iters=0', f'--dataset={other}', f'--out_dir={tmp_path}/new')
    assert 'tensors come from' not in new
    for net, key in (('G', 'down.0.weight'), ('D', 'cls.weight')):
        of_other = ckpt(tmp_path / 'other')[net]
        assert torch.equal(of_other.pop(key), ckpt(tmp_path / 'new')[net][key])
        assert all(torch.equal(w, saved[net][name]) for name, w in of_other.items())


def test_init_from_is_not_read_again_when_a_run_goes_on(teacher, data, tmp_path):
    args = ['train_teacher.py', f'--dataset={data}', f'--out_dir={tmp_path}/t', *TINY, '--resume=True']
    run(*args, '--max_iters=1', f'--init_from={teacher}/ckpt.pt')
    before = ckpt(tmp_path / 't')
    said = run(*args, '--max_iters=1', f'--init_from={teacher}/ckpt.pt')
    assert 'tensors come from' not in said and equal(ckpt(tmp_path / 't')['G'], before['G'])


@pytest.mark.parametrize('make', [
    lambda good: [1, 2],
    lambda good: 7,
    lambda good: {},
    lambda good: {'G': 7},
    lambda good: {'G': {7: 7}},
    lambda good: {'G': dict.fromkeys(good['G'], 'w')},
    lambda good: {'G': good['D']}])
def test_init_from_a_damaged_file_ends_in_one_line(make, teacher, data, tmp_path):
    torch.save(make(ckpt(teacher)), tmp_path / 'bad.pt')
    said = run('train_teacher.py', f'--dataset={data}', *TINY, f'--out_dir={tmp_path}/t',
               f'--init_from={tmp_path}/bad.pt', ok=False)
    assert said.startswith(f'--init_from={tmp_path}/bad.pt: wants a ckpt.pt, or G.ckpt,D.ckpt, of these sizes (')
    assert not (tmp_path / 't' / 'ckpt.pt').exists()
