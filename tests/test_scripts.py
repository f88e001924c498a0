"""The flags of every script, and the promise that what the scripts share is the same text."""

import ast
import glob
import os

import pytest
from conftest import ROOT, run

BANNER = '# ' + '-' * 77
SCRIPTS = sorted(os.path.relpath(p, ROOT) for p in
                 glob.glob(ROOT + '/*.py') + glob.glob(ROOT + '/data/*/prepare.py') if not p.endswith('gradcam.py'))
TRAIN = [s for s in SCRIPTS if s.startswith('train_')]


def text(path):
    with open(os.path.join(ROOT, path)) as f:
        return f.read()


def definitions(path):
    """Top-level functions and classes -> their text."""
    return {n.name: ast.get_source_segment(text(path), n) for n in ast.parse(text(path)).body
            if isinstance(n, (ast.FunctionDef, ast.ClassDef))}


@pytest.mark.parametrize('script', SCRIPTS)
def test_override_block_is_identical(script):
    assert text(script).split(BANNER)[2] == text('train_teacher.py').split(BANNER)[2]


@pytest.mark.parametrize('script', TRAIN + ['evaluate.py'])
def test_functions_and_classes_of_one_name_are_the_same_text(script):
    for other in TRAIN:
        for name in definitions(script).keys() & definitions(other).keys():
            if 'train_uag.py' in (script, other) and name in ('ResidualBlock', 'Generator', 'Discriminator'):
                continue  # UAG has other nets
            assert definitions(script)[name] == definitions(other)[name], f'{name} differs between {script} and {other}'


def test_teacher_and_student_share_their_nets_and_losses():
    names, student = definitions('train_teacher.py').keys(), definitions('train_student.py').keys()
    assert {'ResidualBlock', 'Generator', 'Discriminator', 'gradient_penalty', 'cls_loss'} <= names
    assert names - {'load_official'} <= student


@pytest.mark.parametrize('script', SCRIPTS)
def test_help_prints_docstring_and_block(script):
    out = run(script, '--help')
    assert ast.get_docstring(ast.parse(text(script))).splitlines()[0] in out
    assert text(script).split(BANNER)[1].strip() in out


@pytest.mark.parametrize('script', SCRIPTS)
def test_every_knob_has_a_comment(script):
    block = text(script).split(BANNER)[1].strip().splitlines()
    for line in block:
        assert '#' in line, f'{script}: {line}'


@pytest.mark.parametrize('script', SCRIPTS)
def test_importing_reads_no_arguments_and_runs_nothing(script):
    code = (f"import sys, importlib.util as u; sys.argv += ['--nonsense']; sys.path.insert(0, {ROOT!r})\n"
            f"s = u.spec_from_file_location('m', {script!r}); m = u.module_from_spec(s); s.loader.exec_module(m)\n"
            f"print('fine')")
    assert run('-c', code).strip().endswith('fine')


@pytest.mark.parametrize('arg,says', [
    ('--lambda_at=5', 'lambda_att'),  # near match
    ('--n_block=5', 'n_blocks'),
    ('--qqqqqq=1', 'batch_size'),  # nothing near: all of them
    ('lambda_att=5', 'not a --key=value'),
    ('--lambda_att', 'not a --key=value'),
    ('--max_iters=many', 'wants a int, like 200000'),
    ('--max_iters=1.5', 'wants a int'),
    ('--lr=fast', 'wants a float'),
    ('--resume=yes', 'wants a bool, like False'),
    ('--config_keys=1', 'not a --key=value'),  # only names of the block are keys
    ('--cast=1', 'not a --key=value'),
    ('--np=1', 'not a --key=value')])
def test_override_errors(arg, says):
    assert says in run('train_student.py', arg, ok=False)


def test_override_values(tmp_path):
    """An int for a float, a number and an '=' in a string, the last of two: read back from a script with that block."""
    script = tmp_path / 'probe.py'
    script.write_text('"""Probe."""\nimport difflib\nimport sys\n' + BANNER + "\nlr = 1e-4  # x\nout_dir = 'a'  # x\n"
                      "flag = True  # x\nn = 3  # x\n" + BANNER + text('train_teacher.py').split(BANNER)[2] + BANNER
                      + '\nprint(config, {k: globals()[k] for k in config} == config)\n')
    out = run(script, '--lr=1', '--out_dir=2024', '--flag=False', '--n=5', '--n=-7')
    assert out.strip() == "{'lr': 1.0, 'out_dir': '2024', 'flag': False, 'n': -7} True"
    assert "'out_dir': 'a=b=c'" in run(script, '--out_dir=a=b=c')
    assert "'out_dir': ''" in run(script, '--out_dir=')


@pytest.mark.parametrize('script', SCRIPTS + ['gradcam.py'])
def test_width(script):
    assert max(map(len, text(script).splitlines())) <= 120
