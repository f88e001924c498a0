"""--init_from: StarGAN's own checkpoints and warm starts with other attributes; a label that makes no difference."""

import os

import pytest
import torch
import torch.nn as nn
from conftest import TINY, TINY_S, make_data, run

from train_student import Discriminator, Generator, label_effect, warm_start


class Block(nn.Module):
    """A residual block with the names and running statistics of StarGAN's own files."""

    def __init__(self, d):
        super().__init__()
        self.main = nn.Sequential(nn.Conv2d(d, d, 3, 1, 1, bias=False), norm(d), nn.ReLU(),
                                  nn.Conv2d(d, d, 3, 1, 1, bias=False), norm(d))

    def forward(self, x):
        return x + self.main(x)


def norm(d):
    return nn.InstanceNorm2d(d, affine=True, track_running_stats=True)


class OfficialG(nn.Module):
    def __init__(self, d, c_dim, n_blocks):
        super().__init__()
        sizes = [(3 + c_dim, d, 7, 1, 3), (d, 2 * d, 4, 2, 1), (2 * d, 4 * d, 4, 2, 1)]
        layers = [layer for s in sizes for layer in (nn.Conv2d(*s, bias=False), norm(s[1]), nn.ReLU())]
        layers += [Block(4 * d) for _ in range(n_blocks)]
        layers += [layer for i, o in ((4 * d, 2 * d), (2 * d, d))
                   for layer in (nn.ConvTranspose2d(i, o, 4, 2, 1, bias=False), norm(o), nn.ReLU())]
        self.main = nn.Sequential(*layers, nn.Conv2d(d, 3, 7, 1, 3, bias=False), nn.Tanh())

    def forward(self, x, c):
        return self.main(torch.cat([x, c[:, :, None, None].repeat(1, 1, *x.shape[2:])], 1))


class OfficialD(nn.Module):
    def __init__(self, size, d, c_dim, n):
        super().__init__()
        dims = [3] + [d * 2 ** i for i in range(n)]
        self.main = nn.Sequential(*[layer for i, o in zip(dims, dims[1:])
                                    for layer in (nn.Conv2d(i, o, 4, 2, 1), nn.LeakyReLU(0.01))])
        self.conv1 = nn.Conv2d(dims[-1], 1, 3, 1, 1, bias=False)
        self.conv2 = nn.Conv2d(dims[-1], c_dim, size // 2 ** n, bias=False)

    def forward(self, x):
        h = self.main(x)
        return self.conv1(h), self.conv2(h).flatten(1)


@pytest.fixture(scope='module')
def official(tmp_path_factory):
    """A folder with 9-G.ckpt and 9-D.ckpt, and the nets in them, for 3 attributes at 8 px."""
    folder = tmp_path_factory.mktemp('official')
    torch.manual_seed(0)
    G, D = OfficialG(3, 3, 2), OfficialD(8, 5, 3, 2)
    for p in G.parameters():  # norms of 1 and 0 would not tell one from another
        nn.init.normal_(p, std=0.3)
    G(torch.randn(2, 3, 8, 8), torch.ones(2, 3))  # running statistics other than at the start
    torch.save(G.state_dict(), folder / '9-G.ckpt', _use_new_zipfile_serialization=False)  # as PyTorch 0.4 did
    torch.save(D.state_dict(), folder / '9-D.ckpt')
    return folder, G, D


def test_official_files_become_a_checkpoint_with_the_same_outputs(official, data, tmp_path):
    folder, official_G, official_D = official
    both = f'--init_from={folder}/9-G.ckpt,{folder}/9-D.ckpt'
    args = ['train_teacher.py', f'--dataset={data}', both, f'--out_dir={tmp_path}/t', '--device=cpu', '--attrs=c,a,b']
    said = run(*args, '--max_iters=0')
    assert "'n_blocks': 2" in said and "'image_size': 8" in said and 'left new: their none and none' in said
    ckpt = torch.load(tmp_path / 't' / 'ckpt.pt', weights_only=True)
    assert ckpt['iter'] == 0 and ckpt['attrs'] == ['c', 'a', 'b'] and ckpt['config']['d_n_layers'] == 2
    assert not ckpt['opt_G']['state'] and not ckpt['opt_D']['state']
    G, D = Generator(**ckpt['g_args']), Discriminator(**ckpt['d_args'])
    G.load_state_dict(ckpt['G']), D.load_state_dict(ckpt['D'])
    x, c = torch.rand(4, 3, 8, 8) * 2 - 1, torch.rand(4, 3).round()
    assert (G(x, c) - official_G.train()(x, c)).abs().max() < 1e-5
    assert G(x, c).std() > 0.01 and (official_G.eval()(x, c) - G(x, c)).abs().max() > 1e-3
    for ours, theirs in zip(D(x), official_D(x)):
        assert (ours - theirs).abs().max() < 1e-5
    # again: done; and training goes on from there, the file is not looked at for weights
    assert 'nothing to do' in run(*args, '--max_iters=0', '--resume=True')
    said = run(*args, '--max_iters=2', '--n_critic=1', '--n_samples=2', '--resume=True')
    assert 'iteration 0 of 2' in said and '--init_from is not used' in said
    # one of ours is an initial state too
    said = run('train_teacher.py', f'--dataset={data}', f'--init_from={tmp_path}/t/ckpt.pt', '--max_iters=0',
               f'--out_dir={tmp_path}/t2', '--attrs=c,a,b', '--conv_dim=3', '--n_blocks=2', '--d_conv_dim=5',
               '--d_n_layers=2', '--device=cpu')
    assert 'D.cls.weight (none)' in said  # at 16 px the head has another size


def test_bad_files_are_said_in_one_line(official, data, teacher, tmp_path):
    folder, _, _ = official
    G, D = folder / '9-G.ckpt', folder / '9-D.ckpt'
    (tmp_path / 'cut.ckpt').write_bytes(D.read_bytes()[:300])
    torch.save([1], tmp_path / 'list.ckpt')
    torch.save({'w': print}, tmp_path / 'code.ckpt')
    torch.save(OfficialD(8, 5, 2, 2).state_dict(), tmp_path / 'D2.ckpt')
    args = ['train_teacher.py', f'--dataset={data}', f'--out_dir={tmp_path}/t', *TINY]
    for init, says in ((f'{G}', 'no stargan checkpoint'), (f'{G},', 'not StarGAN'),
                       (f'{G},{folder}/no', 'No such file'),
                       (f'{D},{G}', 'not StarGAN'), (f'{G},{tmp_path}/cut.ckpt', 'not StarGAN'),
                       (f'{tmp_path}/list.ckpt,{D}', 'not StarGAN'),
                       (f'{tmp_path}/code.ckpt,{D}', 'this order: more than tensors and plain values in it'),
                       (f'{G},{tmp_path}/D2.ckpt', 'G has 3 attributes, D 2, --attrs 3: a,b,c'),
                       (f'{folder}/no.pt', 'No such file')):
        assert says in run(*args, f'--init_from={init}', ok=False)
    assert '--attrs 2: a,b' in run(*args, f'--init_from={G},{D}', '--attrs=a,b', ok=False)
    for flag in ('--conv_dim=8', '--n_blocks=2', '--d_conv_dim=8', '--d_n_layers=2'):
        said = run(*args, f'--init_from={teacher}/ckpt.pt', flag, ok=False)
        assert "other sizes, G {'conv_dim': 4" in said
    assert 'above 0' in run(*args, f'--init_from={teacher}/ckpt.pt', '--max_iters=-1', ok=False)
    assert not os.path.exists(tmp_path / 't')


def test_warm_start_copies_by_name():
    torch.manual_seed(0)
    T_G, T_D = Generator(4, 3, 1), Discriminator(16, 4, 3, 2)
    ckpt = dict(G=T_G.state_dict(), D=T_D.state_dict(), attrs=['a', 'b', 'c'], g_args={}, d_args={})
    G, D = Generator(4, 4, 1), Discriminator(16, 4, 4, 2)
    planes, head = G.down[0].weight.detach().clone(), D.cls.weight.detach().clone()
    line = warm_start(G, D, ckpt, ['x', 'c', 'a', 'y'])
    n = len(T_G.state_dict()) + len(T_D.state_dict()) - 2
    assert line == (f'copied whole: {n} tensors; in part: G.down.0.weight (red, green, blue, c, a), '
                    f'D.cls.weight (c, a); left new: their x, y and x, y')
    for net, old in ((G, T_G), (D, T_D)):
        for (k, p), q in zip(net.named_parameters(), old.parameters()):
            if p is not G.down[0].weight and p is not D.cls.weight:
                assert torch.equal(p, q), k
    assert torch.equal(G.down[0].weight[:, [0, 1, 2, 4, 5]], T_G.down[0].weight[:, [0, 1, 2, 5, 3]])
    assert torch.equal(G.down[0].weight[:, [3, 6]], planes[:, [3, 6]])
    assert torch.equal(D.cls.weight[[1, 2]], T_D.cls.weight[[2, 0]]) and torch.equal(D.cls.weight[[0, 3]], head[[0, 3]])
    # none shared, and another image size: the trunk is copied
    G, D = Generator(4, 1, 1), Discriminator(32, 4, 1, 2)
    head = D.cls.weight.detach().clone()
    assert 'D.cls.weight (none); left new: their x and x' in warm_start(G, D, ckpt, ['x'])
    assert torch.equal(D.down[0].weight, T_D.down[0].weight) and torch.equal(D.cls.weight, head)
    assert 'D.cls.weight (none); left new: their none and a' in warm_start(G, D, ckpt, ['a'])
    assert torch.equal(D.cls.weight, head)


def test_teacher_and_student_start_warm(data, teacher, tmp_path):
    other = make_data(str(tmp_path / 'other'), 'a,c,d,e')
    said = run('train_teacher.py', f'--dataset={other}', f'--init_from={teacher}/ckpt.pt', f'--out_dir={tmp_path}/t',
               *TINY, '--max_iters=0')
    assert 'green, blue, a, c), D.cls.weight (a, c); left new: their d, e and d, e' in said
    assert f'started from {teacher}/ckpt.pt' in (tmp_path / 't' / 'log.txt').read_text()
    old, new = (torch.load(p / 'ckpt.pt', weights_only=True) for p in (teacher, tmp_path / 't'))
    assert torch.equal(old['G']['down.0.weight'][:, [0, 1, 2, 3, 5]], new['G']['down.0.weight'][:, :5])
    assert torch.equal(old['D']['cls.weight'][[0, 2]], new['D']['cls.weight'][:2])
    args = ['train_student.py', f'--teacher={teacher}/ckpt.pt', *TINY_S, '--conv_dim=4', f'--out_dir={tmp_path}/s']
    said = run(*args, f'--init_from={teacher}/ckpt.pt')
    assert f'started from {teacher}/ckpt.pt' in said and 'their none and none' in said and 'iter      4/4' in said


def test_a_label_without_effect_is_warned_of(data, teacher, tmp_path):
    x, c = torch.rand(2, 3, 8, 8), torch.tensor([[1., 0], [0, 1]])
    assert label_effect(lambda x, c: x, x, c, True) == 0
    for multi_label in (True, False):
        assert label_effect(lambda x, c: x * c[:, :1, None, None], x, c, multi_label) == pytest.approx(x.mean().item())
    c = torch.zeros(2, 3)
    assert label_effect(lambda x, c: x + c[:, :, None, None], x, c, True) == pytest.approx(1)
    deaf = torch.load(teacher / 'ckpt.pt', weights_only=True)
    deaf['G']['down.0.weight'][:, 3:] = 0
    torch.save(deaf, tmp_path / 'deaf.pt')
    for script, args in (('train_teacher.py', [f'--dataset={data}', *TINY]),
                         ('train_student.py', [f'--teacher={teacher}/ckpt.pt', *TINY_S, '--conv_dim=4'])):
        args += ['--max_iters=20', '--sample_interval=2', '--lr=1e-9']
        said = run(script, *args, f'--init_from={tmp_path}/deaf.pt', f'--out_dir={tmp_path}/{script}').splitlines()
        grids = [i for i, line in enumerate(said) if line.endswith("| mean |G(x, c) - G(x, c')| = 0.0000")]
        assert [said[i].split()[1] for i in grids] == [f'{n}/20' for n in range(2, 21, 2)]
        warnings = [i for i, line in enumerate(said) if line.startswith(
            "warning: the translations hardly depend on the label: mean |G(x, c) - G(x, c')| = 0.0000; lower")]
        assert warnings == [i + 1 for i in grids[1:]]  # none in the first tenth of the run
    assert 'warning' not in (teacher / 'log.txt').read_text()
