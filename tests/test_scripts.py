"""The flags of every script, and the promise that what the scripts share is the same text."""

import ast
import glob
import os
import subprocess

import pytest
from conftest import ROOT, run

BANNER = '# ' + '-' * 77
TRAIN = ['train_teacher.py', 'train_student.py', 'train_uag.py']  # not a glob: a user's copy is free to differ
PREPARE = sorted(os.path.relpath(path, ROOT) for path in glob.glob(ROOT + '/data/*/prepare.py'))
SCRIPTS = [*TRAIN, 'evaluate.py', 'results/run.py', *PREPARE]


def text(path):
    with open(os.path.join(ROOT, path)) as f:
        return f.read()


def definitions(path):
    """Top-level functions and classes -> their text."""
    return {n.name: ast.get_source_segment(text(path), n) for n in ast.parse(text(path)).body
            if isinstance(n, (ast.FunctionDef, ast.ClassDef))}


def test_override_block_is_identical():
    for script in SCRIPTS:
        assert text(script).split(BANNER)[2] == text('train_teacher.py').split(BANNER)[2], script


def test_functions_and_classes_of_one_name_are_the_same_text():
    teacher, student, uag = map(definitions, TRAIN)
    celeba, folders, unpaired = (definitions(f'data/{name}/prepare.py') for name in ('celeba', 'folders', 'unpaired'))
    assert teacher.keys() - student.keys() == {'warm_start'}
    for a, b, n, own in ((teacher, student, 11, set()), (celeba, folders, 6, {'cut'}), (celeba, unpaired, 6, {'cut'}),
                         (teacher, uag, 7, {'ResidualBlock', 'Generator', 'Discriminator'})):  # UAG has other nets
        assert len(a.keys() & b.keys()) >= n and not {k for k in a.keys() & b.keys() - own if a[k] != b[k]}
    main = [text(script).split("__main__':\n")[1] for script in TRAIN[:2]]
    d_step = [part.partition('    def d_step(')[2].partition('\n    def ')[0] for part in main]  # eq. (4) is the same
    assert d_step[0] == d_step[1] and 'gradient_penalty' in d_step[0]


def test_what_a_forward_pass_uses_stands_in_the_section_that_checkpoints_are_compared_by():
    for script, functions in zip(TRAIN, (set(), set(), {'conv', 'translate', 'init_weights'})):
        nets = text(script).partition('\n# nets\n')[2].partition('\n# data\n')[0]
        names = {n.name for n in ast.parse(text(script)).body if isinstance(n, ast.ClassDef)} - {'Graphed'}
        assert {n.name for n in ast.parse(nets).body} == names | functions, script


def test_help_and_comments():
    for script in SCRIPTS:
        block = text(script).split(BANNER)[1].strip()
        assert all('#' in line for line in block.splitlines()), script  # every knob has a comment
    for script in ('train_student.py', 'data/toyfaces/prepare.py'):
        out = run(script, '--help')
        assert ast.get_docstring(ast.parse(text(script))).splitlines()[0] in out
        assert text(script).split(BANNER)[1].strip() in out


def test_importing_reads_no_arguments_and_runs_nothing(tmp_path):
    code = f'import sys, importlib.util as u; sys.path.insert(0, {ROOT!r})\n'
    for script in SCRIPTS:
        code += f's = u.spec_from_file_location("m", {script!r}); s.loader.exec_module(u.module_from_spec(s))\n'
    (tmp_path / 'all.py').write_text(code + 'print("fine")')
    assert run(tmp_path / 'all.py', '--nonsense').strip() == 'fine'


@pytest.mark.parametrize('arg,says', [
    ('--lambda_at=5', 'lambda_att'),  # near match
    ('--qqqqqq=1', 'batch_size'),  # nothing near: all of them
    ('lambda_att=5', 'not a --key=value'), ('--lambda_att', 'not a --key=value'),
    ('--max_iters=1.5', 'wants a int, finite, 0 or 1 at least, like 200000'), ('--max_iters=-1', 'at least'),
    ('--lr=fast', 'wants a float'), ('--lr=nan', 'finite'), ('--lr=inf', 'finite'), ('--resume=yes', 'wants a bool'),
    ('--n_critic=0', 'finite, 0 or 1'), ('--config_keys=1', 'not a --key=value'),  # only names of the block are keys
    ('--np=1', 'not a --key=value')])
def test_override_errors(arg, says):
    assert says in run('train_student.py', arg, ok=False)


def test_override_values(tmp_path):
    """An int for a float, an '=' in a string, the last of two: read back from a script of that block."""
    script = tmp_path / 'probe.py'
    script.write_text('"""Probe."""\nimport difflib\nimport sys\n' + BANNER + "\nlr = 1e-4  # x\nout_dir = 'a'  # x\n"
                      "flag = True  # x\nn = 3  # x\n" + BANNER + text('train_teacher.py').split(BANNER)[2] + BANNER
                      + '\nprint({k: globals()[k] for k in config_keys})\n')
    out = run(script, '--lr=1', '--out_dir=a=2', '--flag=False', '--n=5', '--n=7')
    assert out.strip() == "{'lr': 1.0, 'out_dir': 'a=2', 'flag': False, 'n': 7}"


@pytest.mark.parametrize('budget,files', [
    (390, 'train_teacher.py'), (450, 'train_student.py'), (450, 'train_uag.py'), (650, 'evaluate.py'),
    (80, 'gradcam.py'), (1700, 'data/**/*.py'), (2400, 'tests/**/*.py'), (230, 'README.md')])
def test_all_is_read_in_one_sitting(budget, files):
    lines = [line for path in glob.glob(f'{ROOT}/{files}', recursive=True) for line in text(path).splitlines()]
    assert 0 < len(lines) <= budget
    if files != 'README.md':
        assert max(map(len, lines)) <= 120 and sum(len(line) > 110 for line in lines) <= len(lines) / 3


def test_student_differs_from_teacher_by_the_paper_and_little_else():
    done = subprocess.run(['diff', *TRAIN[:2]], cwd=ROOT, capture_output=True, text=True)
    assert 0 < sum(line[0] in '<>' for line in done.stdout.splitlines()) <= 180
