"""Pseudo-attention, eq. (6) and (7): which label the teacher is given, and whose score makes the maps."""

import os
import runpy
import sys

import pytest
import torch
from conftest import ROOT, TINY, TINY_S, make_data, run
from PIL import Image

import gradcam
from gradcam import GradCAM
from train_student import Discriminator, Generator, to_teacher


def maps(c, k, cols, order=None):
    """Both maps of the student's step, as the script makes them; order: of the same teacher's attributes."""
    torch.manual_seed(0)
    T, D_T, S = Generator(8, 4, 2), Discriminator(16, 4, 4, 3), Generator(4, 3, 1)
    if order:
        with torch.no_grad():
            T.down[0].weight[:, 3:] = T.down[0].weight[:, 3:][:, order].clone()
            D_T.cls.weight.copy_(D_T.cls.weight[order].clone())
    x = torch.rand(len(c), 3, 16, 16)
    hook_T, hook_S = GradCAM(T.res[-1], 'hirescam'), GradCAM(S.res[-1], 'hirescam')
    A_S = hook_S(D_T(S(x, c))[1].gather(1, cols[k]))
    A_T = hook_T(D_T(T(x, to_teacher(c, cols, 4)))[1].gather(1, cols[k]))
    return A_T, A_S


def test_to_teacher_lays_labels_out_in_the_teachers_order():
    c = torch.tensor([[1., 0, 0], [0, 1, 1]])
    assert to_teacher(c, torch.tensor([2, 0, 3]), 4).tolist() == [[0, 0, 1, 0], [1, 0, 0, 1]]
    assert torch.equal(to_teacher(c, torch.arange(3), 3), c)


def test_order_of_the_teachers_attributes_does_not_matter():
    c, k = torch.eye(3).repeat(2, 1), torch.arange(3).repeat(2)[:, None]
    cols, order = torch.tensor([2, 0, 3]), [3, 1, 0, 2]  # the attribute at column j is the old order[j]
    moved = torch.tensor([order.index(j) for j in cols.tolist()])
    for A, B in zip(maps(c, k, cols), maps(c, k, moved, order)):
        assert A.amax() > 0 and torch.allclose(A, B, rtol=1e-3, atol=A.amax().item() * 1e-3)
    A_T, A_S = maps(c, k, torch.tensor([1, 2, 0]))  # other pairs: other maps of both
    B_T, B_S = maps(c, k, cols)
    assert not torch.allclose(A_T, B_T, rtol=0.1) and not torch.allclose(A_S, B_S, rtol=0.1)


def test_permuting_the_pairs_permutes_the_teachers_map_with_them():
    c, k, cols = torch.eye(3), torch.arange(3)[:, None], torch.tensor([2, 0, 3])
    for p in ([1, 2, 0], [2, 1, 0]):  # image b has attribute b; --attrs and --pseudo both permuted by p
        back = torch.tensor([p.index(b) for b in range(3)])
        A, B = maps(c, k, cols)[0], maps(c[:, p], back[:, None], cols[p])[0]
        assert torch.allclose(A, B, rtol=1e-3, atol=A.amax().item() * 1e-3)


@pytest.fixture(scope='module')
def hair(tmp_path_factory):
    """A set of six attributes; the teacher has three of them, d, a, e, in this order."""
    folder = tmp_path_factory.mktemp('hair')
    data = make_data(str(folder / 'data'), 'a,b,c,d,e,f')
    run('train_teacher.py', f'--dataset={data}', f'--out_dir={folder}/T', '--attrs=d,a,e', *TINY[1:], '--max_iters=2')
    return folder


def test_the_script_gives_the_teacher_its_labels_and_takes_its_score(hair, tmp_path, monkeypatch):
    """Every map of a run, in steps and grids, against scores made by hand; here b is like a, c like e, f like d."""
    calls = []

    class Spy(GradCAM):
        def __call__(self, y, *args, **kwargs):
            frame, step = sys._getframe(1), y.dim() == 2
            g = frame.f_globals | (frame.f_back.f_locals if step else {})  # the script's variables, and those of step()
            G_T, D_T = g['G_teacher'], g['D_teacher']
            alike = [{'b': 'a', 'c': 'e', 'f': 'd'}[name] for name in g['names']]
            c_pse = torch.stack([g['c_trg'][:, alike.index(name)] for name in 'dae'], 1)
            with torch.no_grad():
                of_teacher = D_T(G_T(g['x_real'] if step else g['x_fixed'], c_pse))[1]
                scores = of_teacher if self is g['hook_teacher'] else D_T(g['x_fake'])[1]
            column = g['k'] if step else torch.full((len(scores), 1), 'dae'.index(alike[g['i']]))
            assert torch.allclose(scores.gather(1, column), y.detach().view(-1, 1), atol=1e-6)
            if step:  # the class is one of the image's targets
                assert torch.equal(c_pse.gather(1, column)[:, 0], c_pse.amax(1))
            calls.append(('teacher' if self is g['hook_teacher'] else 'student', step))
            self.feat = self.feats[-1]  # the scores above ran the hooks anew: back to the features that belong to y
            return super().__call__(y, *args, **kwargs)

        def hook(self, module, args, output):
            out = super().hook(module, args, output)
            self.feats = getattr(self, 'feats', []) + ([out] if self.feat is not None else [])
            return out

    monkeypatch.setattr(gradcam, 'GradCAM', Spy)
    monkeypatch.setattr(sys, 'argv', ['train_student.py', f'--teacher={hair}/T/ckpt.pt', *TINY_S, '--attrs=b,c,f',
                                      '--pseudo=a,e,d', f'--out_dir={tmp_path}/s'])
    runpy.run_path(os.path.join(ROOT, 'train_student.py'), run_name='__main__')
    assert {call: calls.count(call) for call in calls} == {  # 2 steps of G; 2 grids of 3 columns
        ('student', True): 2, ('teacher', True): 2, ('student', False): 6, ('teacher', False): 6}
    ckpt = torch.load(tmp_path / 's' / 'ckpt.pt', weights_only=True)
    assert ckpt['attrs'] == ['b', 'c', 'f'] and ckpt['config']['pseudo'] == 'a,e,d' and ckpt['g_args']['c_dim'] == 3
    assert Image.open(tmp_path / 's' / 'samples' / '000004.png').size == (4 * 18 + 2, 6 * 18 + 2)


def test_no_score_no_maps_and_the_order_of_the_same_attributes_is_free(hair, tmp_path):
    args = ['train_student.py', f'--teacher={hair}/T/ckpt.pt', *TINY_S]
    said = run(*args, '--attrs=b', '--lambda_att=0', f'--out_dir={tmp_path}/s0')
    assert 'no maps' in said and ' att ' not in said
    assert Image.open(tmp_path / 's0' / 'samples' / '000004.png').size == (2 * 18 + 2, 2 * 18 + 2)
    nets = []
    for extra in ([], ['--att_control=shuffle']):
        run(*args, '--attrs=a,e,d', *extra, f'--out_dir={tmp_path}/s{len(nets)}{len(extra)}')
        ckpt = torch.load(tmp_path / f's{len(nets)}{len(extra)}' / 'ckpt.pt', weights_only=True)
        assert ckpt['attrs'] == ['a', 'e', 'd'] and ckpt['config']['pseudo'] == ''
        nets.append(ckpt['G']['down.0.weight'])
    assert not torch.equal(*nets)  # other maps to follow


@pytest.mark.parametrize('args,says', [
    (['--attrs=b,c'], "--pseudo names one of the teacher's for each"),
    (['--attrs=a,d'], 'must be the same'),  # a part of them: --pseudo=a,d says that this is meant
    (['--attrs=b,c', '--pseudo=a'], "none twice; it is 'a'"),  # too few
    (['--attrs=b,c', '--pseudo=a,x'], "none twice; it is 'a,x'"),  # unknown
    (['--attrs=b,c', '--pseudo=a,a', '--lambda_att=0'], "none twice; it is 'a,a'"),
    (['--hook_block=1'], '--hook_block=1: -1 to 0'),
    (['--att_control=roll'], "'', or shuffle"),
    (['--att_control=shuffle', '--batch_size=1'], 'batch_size of 2')])
def test_errors(hair, tmp_path, args, says):
    said = run('train_student.py', f'--teacher={hair}/T/ckpt.pt', *TINY_S, f'--out_dir={tmp_path}/s', *args, ok=False)
    assert says in said and not os.path.exists(tmp_path / 's')
    if args[0].startswith('--attrs'):  # both lists
        assert 'trained on d,a,e, this student on ' + args[0].removeprefix('--attrs=') in said
