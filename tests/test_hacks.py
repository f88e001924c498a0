"""The worked hacks: each diff applies to copies of the scripts, trains, resumes, and is what it says."""

import re
import runpy
import shutil
import subprocess

import pytest
import torch
from conftest import ROOT, TINY_S, ckpt, equal, run


@pytest.mark.parametrize('hack, args', [('gradcampp', ['--cam=gradcampp']), ('separable', []), ('features', [])])
def test_a_hack(hack, args, teacher, student, tmp_path):
    made, diff = [], f'{ROOT}/tests/hacks/{hack}.diff'
    for name in ('gradcam', 'gradcam my_gradcam', 'train_teacher', 'train_student', 'train_student my_student'):
        shutil.copy(f'{ROOT}/{name.split()[0]}.py', tmp_path / f'{name.split()[-1]}.py')
    subprocess.run(['git', 'apply', diff], cwd=tmp_path, check=True)
    for more in (['--max_iters=2'], ['--resume=True']):
        run(tmp_path / 'my_student.py', f'--teacher={teacher}/ckpt.pt', f'--out_dir={tmp_path}/s', *TINY_S, *args,
            *more, env={'PYTHONPATH': str(tmp_path)})
        made.append(ckpt(tmp_path / 's'))
    assert [c['iter'] for c in made] == [2, 4] and len(open(diff).readlines()) <= 40
    assert all(float(att) > 0 for att in re.findall(r' att +(\S+)', (tmp_path / 's' / 'log.txt').read_text()))
    n, n_plain = (sum(map(torch.numel, c['G'].values())) for c in (made[0], ckpt(student)))
    assert (n < n_plain) == (hack == 'separable')
    assert not equal(made[0]['match'], made[1]['match']) if hack == 'features' else 'match' not in made[0]
    if hack == 'gradcampp':  # for a linear score, as the paper writes it with the derivatives of Y = exp(y)
        net, F, g = torch.nn.Identity(), torch.rand(2, 3, 4, 4), torch.randn(3, 4, 4)
        hook = runpy.run_path(tmp_path / 'my_gradcam.py')['GradCAM'](net, 'gradcampp')
        Y = (y := (g * net(F)).sum((1, 2, 3))).detach().exp()[:, None, None, None]
        alpha = Y * g ** 2 / (2 * Y * g ** 2 + F.sum((2, 3), keepdim=True) * Y * g ** 3)
        w = (alpha * (Y * g).relu()).sum((2, 3), keepdim=True)
        assert torch.allclose(hook(y) * Y[:, 0], (w * F).sum(1).relu(), rtol=1e-4)
