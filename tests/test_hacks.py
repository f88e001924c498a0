"""
The worked hacks, tests/hacks/*.diff: each applies to copies of the scripts, trains, and is what it says.

A hunk of a diff finds its place by lines of code alone, and by so few that edits nearby do not matter.
So that this place is the right one, it must be the only one.
"""

import re
import runpy
import shutil
import subprocess

import pytest
import torch
from conftest import ROOT, TINY_S, ckpt, run

HACKS = ['gradcampp', 'separable', 'features']


def copy_scripts(folder):
    """What the commands on top of the diffs copy, and what the copies import."""
    shutil.copy(f'{ROOT}/gradcam.py', folder)
    shutil.copy(f'{ROOT}/gradcam.py', folder / 'my_gradcam.py')
    shutil.copy(f'{ROOT}/train_teacher.py', folder)
    shutil.copy(f'{ROOT}/train_student.py', folder / 'my_student.py')


def apply(hack, folder):
    command = ['git', 'apply', '--unidiff-zero', f'{ROOT}/tests/hacks/{hack}.diff']
    subprocess.run(command, cwd=folder, check=True)


def train(folder, teacher, *flags, out=None):
    """Trains the hacked student -> its checkpoint, the last of its losses of attention."""
    out = out or folder / 'student'
    run(folder / 'my_student.py', f'--teacher={teacher}/ckpt.pt', f'--out_dir={out}', *TINY_S, *flags)
    losses = re.findall(r' G_att +(\S+)', (out / 'log.txt').read_text())
    return ckpt(out), float(losses[-1]) if losses else None


def old_sides(hack):
    """Of each hunk of a diff: the file, and the lines that it must find there, in one piece."""
    hunks = []
    with open(f'{ROOT}/tests/hacks/{hack}.diff', encoding='utf-8') as file:
        for line in file:
            if line.startswith('--- a/'):
                path = line.removeprefix('--- a/').strip()
            elif line.startswith('@@'):
                hunks.append([path, ''])
            elif hunks and line[0] in ' -':
                hunks[-1][1] += line[1:]
    return hunks


@pytest.mark.parametrize('hack', HACKS)
def test_a_hack_has_one_place_and_a_changed_comment_does_not_matter(hack, tmp_path):
    copy_scripts(tmp_path)
    for path, old_side in old_sides(hack):
        script = (tmp_path / path).read_text()
        assert '#' not in old_side
        assert script.count(f'\n{old_side}') == 1
    for path in tmp_path.glob('*.py'):
        script = re.sub(r'^( *)# .*$', r'\1# Another comment\n\1# of two lines', path.read_text(), flags=re.M)
        path.write_text(script)
    apply(hack, tmp_path)


def test_gradcampp(teacher, tmp_path):
    """The map for a score that is linear in F, as the paper has it, with derivatives of Y = exp(y)."""
    copy_scripts(tmp_path)
    apply('gradcampp', tmp_path)
    GradCAM = runpy.run_path(f'{tmp_path}/my_gradcam.py')['GradCAM']
    net = torch.nn.Identity()
    hook = GradCAM(net, 'gradcampp')
    feat = torch.rand(2, 3, 4, 4)
    g = torch.randn(3, 4, 4)
    y = (g * net(feat)).sum((1, 2, 3))
    Y = y.detach().exp()[:, None, None, None]
    alpha = Y * g ** 2 / (2 * Y * g ** 2 + feat.sum((2, 3), keepdim=True) * Y * g ** 3)
    weight = (alpha * (Y * g).relu()).sum((2, 3), keepdim=True)
    A = (weight * feat).sum(1).relu()
    # The hack leaves out the factor Y, which the norm of a map takes out.
    assert torch.allclose(hook(y) * Y[:, 0], A, rtol=1e-4)

    made, loss = train(tmp_path, teacher, '--cam=gradcampp', '--att_norm=l2')
    assert made['config']['cam'] == 'gradcampp'
    assert loss > 0


def test_separable(teacher, tmp_path):
    copy_scripts(tmp_path)
    apply('separable', tmp_path)
    script = runpy.run_path(f'{tmp_path}/my_student.py')

    block = script['ResidualBlock'](8)
    convs = [layer for layer in block.main if isinstance(layer, torch.nn.Conv2d)]
    assert [conv.kernel_size[0] for conv in convs] == [3, 1, 3, 1]
    # A pixel of one channel reaches its neighbours by a 3x3 convolution, the other channels by a 1x1.
    x = torch.zeros(1, 8, 5, 5)
    x[0, 3, 2, 2] = 1
    neighbours = torch.zeros(1, 8, 5, 5, dtype=torch.bool)
    neighbours[0, 3, 1:4, 1:4] = True
    pixel = torch.zeros(1, 8, 5, 5, dtype=torch.bool)
    pixel[0, :, 2, 2] = True
    for conv in convs:
        assert torch.equal(conv(x) != 0, neighbours if conv.kernel_size[0] == 3 else pixel)

    # The sizes on top of the diff
    plain = runpy.run_path(f'{ROOT}/train_student.py')
    with open(f'{ROOT}/tests/hacks/separable.diff', encoding='utf-8') as file:
        text = ' '.join(file.read().split())
    for sizes in (dict(conv_dim=32, c_dim=5, n_blocks=3), dict(conv_dim=12, c_dim=5, n_blocks=1)):
        n_plain = sum(p.numel() for p in plain['Generator'](**sizes).parameters())
        n = sum(p.numel() for p in script['Generator'](**sizes).parameters())
        assert f'{n_plain:,} -> {n:,}' in text

    made, loss = train(tmp_path, teacher)
    script['Generator'](**made['g_args']).load_state_dict(made['G'])
    assert loss > 0


def distance_of_features(script, made, teacher, data):
    """Between the activations of the last blocks, the student's through `match`: mean over images."""
    folder, meta = script['find_data'](data)
    x, y = script['load_split'](folder, meta, 'test', made['attrs'])
    x = script['to_float'](x, 16)
    features = []
    for net in (made, ckpt(teacher)):
        G = script['Generator'](**net['g_args'])
        G.load_state_dict(net['G'])
        G.res.register_forward_hook(lambda module, args, output: features.append(output))
        with torch.no_grad():
            G(x, 1 - y)
    weight, bias = made['match'].values()
    feat_S = torch.nn.functional.conv2d(features[0], weight, bias).flatten(1)
    feat_T = features[1].flatten(1)
    return (torch.nn.functional.normalize(feat_T) - torch.nn.functional.normalize(feat_S)).norm(dim=1).mean()


def test_features(teacher, data, tmp_path):
    """Training makes the features alike; their map is kept, and goes on where it was."""
    copy_scripts(tmp_path)
    apply('features', tmp_path)
    script = runpy.run_path(f'{tmp_path}/my_student.py')
    flags = ['--lambda_att=100', '--att_norm=l2', '--n_critic=1', '--lr=0.01', '--resume=True']
    start, _ = train(tmp_path, teacher, *flags, '--max_iters=0')
    made, loss = train(tmp_path, teacher, *flags, '--max_iters=40', '--sample_interval=40')
    before = distance_of_features(script, start, teacher, data)
    after = distance_of_features(script, made, teacher, data)
    assert after < 0.8 * before
    assert loss > 0
    assert not torch.allclose(start['match']['weight'], made['match']['weight'], atol=0.01)
    # The loss reaches G, too: what Adam has seen after a step is another gradient than without it.
    seen = []
    for weight in (100, 1e-6):
        out = tmp_path / f'lambda_{weight}'
        step, _ = train(tmp_path, teacher, *flags, '--max_iters=1', f'--lambda_att={weight}', out=out)
        seen.append(step['opt_G']['state'][0]['exp_avg'])
    assert (seen[0] - seen[1]).norm() > seen[1].norm()
    # Hardly a step further: a match that was not loaded would be a new one.
    resumed, _ = train(tmp_path, teacher, *flags, '--max_iters=41', '--lr=1e-12')
    assert resumed['iter'] == 41
    for name, weight in made['match'].items():
        assert torch.allclose(resumed['match'][name], weight, atol=1e-6)
