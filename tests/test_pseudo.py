"""Pseudo-attention, eq. (6) and (7): which label the teacher is given, and whose score makes the maps."""

import os
import runpy
import sys

import pytest
import torch
from conftest import ROOT, TINY, TINY_S, ckpt, equal, make_data, run
from PIL import Image

import gradcam
from gradcam import GradCAM


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
