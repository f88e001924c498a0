"""The flags of every script, and what the scripts have in common.

What two scripts share is held equal: a mistake that is mended in one of them is mended in the other.
Compared is what the lines do. Comments, docstrings, the names of locals and the order of lines are free.
"""

import ast
import glob
import os

import pytest
from conftest import ROOT, run

BANNER = '# ' + '-' * 77
# Not all of train_*.py: a copy of one's own may differ.
TRAIN = ['train_teacher.py', 'train_student.py', 'train_uag.py']
PREPARE = sorted(os.path.relpath(path, ROOT) for path in glob.glob(f'{ROOT}/data/*/prepare.py'))
SCRIPTS = [*TRAIN, 'evaluate.py', 'results/run.py', *PREPARE]
READ_PHOTOS = ['data/celeba/prepare.py', 'data/folders/prepare.py', 'data/unpaired/prepare.py', 'evaluate.py']


def text(script):
    with open(f'{ROOT}/{script}', encoding='utf-8') as file:
        return file.read()


def functions(script):
    """Name -> functions and classes of a script, at its top or below its main guard."""
    found = {}
    for node in ast.parse(text(script)).body:
        for inner in node.body if isinstance(node, ast.If) else [node]:
            if isinstance(inner, (ast.FunctionDef, ast.ClassDef)):
                found[inner.name] = inner
    return found


class Plain(ast.NodeTransformer):
    """Takes docstrings away, and gives all locals one name."""

    def __init__(self, names):
        self.names = names

    def visit_FunctionDef(self, node):
        if ast.get_docstring(node) is not None:
            node.body = node.body[1:]
        return self.generic_visit(node)

    def visit_ClassDef(self, node):
        return self.visit_FunctionDef(node)

    def visit_Name(self, node):
        if node.id in self.names:
            node.id = 'local'
        return node

    def visit_arg(self, node):
        node.arg = 'local'
        return node


def what_it_does(node):
    """The lines of a function or class, sorted."""
    names = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.arg):
            names.add(inner.arg)
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
            names.add(inner.id)
    return sorted(ast.unparse(Plain(names).visit(node)).splitlines())


@pytest.mark.parametrize('script', SCRIPTS)
def test_flags_are_read_by_the_same_lines(script):
    blocks = [text(path).split(BANNER)[2] for path in (script, 'train_teacher.py')]
    assert ast.dump(ast.parse(blocks[0])) == ast.dump(ast.parse(blocks[1]))


NETS = ['ResidualBlock', 'Generator', 'Discriminator']
DATA = ['load_split', 'to_float', 'set_attr']
LOSSES = ['gradient_penalty', 'cls_loss', 'd_step']
FILES = ['find_data', 'or_exit', 'check_fields', 'nets_section', 'log', 'remember', 'autocast']


@pytest.mark.parametrize('scripts,names', [
    (TRAIN[:2], [*NETS, *DATA, *LOSSES, *FILES, 'log_line', 'save_grid', 'save_checkpoint']),
    (TRAIN[1:], FILES),
    (READ_PHOTOS, ['read_photo'])])
def test_what_scripts_share_is_the_same(scripts, names):
    of_first = functions(scripts[0])
    for script in scripts[1:]:
        of_script = functions(script)
        for name in names:
            assert what_it_does(of_first[name]) == what_it_does(of_script[name]), (script, name)


@pytest.mark.parametrize('script', TRAIN)
def test_nets_stand_where_checkpoints_are_compared_by(script):
    """Between '# nets' and '# data': all classes, and the functions that they call."""
    nets = text(script).partition('\n# nets\n')[2].partition('\n# data\n')[0]
    inside = {node.name for node in ast.parse(nets).body}
    for name, node in functions(script).items():
        is_called = f' {name}(' in nets
        if isinstance(node, ast.ClassDef) or is_called:
            assert name in inside, name


@pytest.mark.parametrize('script', SCRIPTS)
def test_help_is_the_docstring_and_the_block_of_flags(script):
    said = run(script, '--help', env=dict(PYTHONIOENCODING='ascii'))
    assert ast.get_docstring(ast.parse(text(script))).splitlines()[0] in said
    assert text(script).split(BANNER)[1].strip() in said


@pytest.fixture
def optimized(tmp_path):
    """A script that runs another as `python -OO` does: without asserts and docstrings."""
    (tmp_path / 'optimized.py').write_text(
        'import os, sys\n'
        'sys.argv = sys.argv[1:]\n'
        'sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))\n'
        'text = open(sys.argv[0], encoding="utf-8").read()\n'
        '__doc__, __file__ = None, os.path.abspath(sys.argv[0])\n'
        'exec(compile(text, __file__, "exec", optimize=2))\n')
    return tmp_path / 'optimized.py'


@pytest.mark.parametrize('script', SCRIPTS)
def test_help_under_python_OO(script, optimized):
    assert text(script).split(BANNER)[1].strip() in run(optimized, script, '--help')


@pytest.mark.parametrize('args,says', [
    (['train_teacher.py', '--dataset={data}', '--attrs=a,z'], '--attrs=a,z'),
    (['train_teacher.py', '--n_blocks=0'], '--n_blocks=0'),
    (['train_student.py', '--teacher={data}/meta.json'], '--teacher=')])
def test_input_is_checked_under_python_O(args, says, optimized, data):
    assert says in run(optimized, *[arg.format(data=data) for arg in args], ok=False)


def test_importing_reads_no_flags_and_runs_nothing(tmp_path):
    lines = ['import importlib.util as util, sys', f'sys.path.insert(0, {ROOT!r})']
    for script in SCRIPTS:
        lines += [
            f'spec = util.spec_from_file_location("module", {script!r})',
            'spec.loader.exec_module(util.module_from_spec(spec))']
    lines.append('print("fine")')
    (tmp_path / 'all.py').write_text('\n'.join(lines))
    assert run(tmp_path / 'all.py', '--nonsense').strip() == 'fine'


@pytest.mark.parametrize('arg,says', [
    # a name like it, or all of them
    ('--lambda_at=5', 'not a --key=value of this script. Similar: lambda_att'),
    ('--qqqqqq=1', 'batch_size'),
    ('lambda_att=5', 'not a --key=value'),
    ('', 'not a --key=value'),
    # Only names of the block are keys.
    ('--config_keys=1', 'not a --key=value'),
    ('--np=1', 'not a --key=value'),
    ('--__file__=x', 'not a --key=value'),
    # no value
    ('--lambda_att', '--lambda_att: wants a value, say --lambda_att=10.0'),
    ('--resume', '--resume: wants a value, say --resume=True'),
    # of another type
    ('--resume=1', '--resume=1: wants True or False'),
    ('--resume=true', 'wants True or False'),
    ('--resume=', 'wants True or False'),
    ('--max_iters=1.5', '--max_iters=1.5: wants a number like 200000'),
    ('--max_iters=1e5', 'wants a number like 200000'),
    ('--lr=fast', '--lr=fast: wants a number like 0.0001'),
    ('--lr=', 'wants a number'),
    # out of range
    ('--max_iters=-1', '--max_iters=-1: wants a finite number, at least 0'),
    ('--lambda_att=-1', 'at least 0'),
    ('--lr=nan', 'wants a finite number'),
    ('--lr=inf', 'wants a finite number'),
    ('--seed=99999999999999999999', 'wants a finite number'),
    ('--n_critic=0', '--n_critic=0: wants a finite number, at least 1'),
    ('--batch_size=0', 'at least 1'),
    ('--n_blocks=0', 'at least 1'),
    ('--conv_dim=0', 'at least 1'),
    ('--log_interval=0', 'at least 1'),
    # The first mistake ends the script, the last flag is read as well.
    ('--cam=gradcam --lr=x', '--lr=x')])
def test_a_wrong_flag_is_answered_in_one_line(arg, says):
    assert says in run('train_student.py', *arg.split(' '), ok=False)


@pytest.mark.parametrize('flags,key,value', [
    (['--lr=1'], 'lr', 1.0),
    (['--lr=1e-3'], 'lr', 1e-3),
    (['--n=5', '--n=7'], 'n', 7),
    (['--zero=0'], 'zero', 0),
    (['--flag=False'], 'flag', False),
    (['--out_dir=2024'], 'out_dir', '2024'),
    (['--out_dir=a=2'], 'out_dir', 'a=2'),
    (['--out_dir='], 'out_dir', ''),
    (['--out_dir=~/x'], 'out_dir', '/home/me/x'),
    (['--out_dir=a,~/b,c~'], 'out_dir', 'a,/home/me/b,c~')])
def test_a_value_keeps_the_type_of_its_flag(flags, key, value, tmp_path):
    """Read from a script that has this block, and flags of all types in front of it."""
    block = ['lr = 1e-4', "out_dir = 'a'", 'flag = True', 'n = 3', 'zero = 0']
    override = text('train_teacher.py').split(BANNER)[2]
    (tmp_path / 'probe.py').write_text('\n'.join([
        'import difflib, os, sys', BANNER, *block, BANNER, override, BANNER,
        'print({key: globals()[key] for key in config_keys})']))
    values = dict(lr=1e-4, out_dir='a', flag=True, n=3, zero=0)
    values[key] = value
    said = ast.literal_eval(run(tmp_path / 'probe.py', *flags, env=dict(HOME='/home/me')))
    assert said == values
    assert [type(v) for v in said.values()] == [type(v) for v in values.values()]
