"""A run that was stopped, killed or has ended goes on: exactly, and with a word on what is different."""

import os
import shutil

import pytest
from conftest import ROOT, TINY, TINY_S, ckpt, equal, run

# Runs the script that follows; stops it where the checkpoint of a number of iterations is complete, but
# not in its place yet.
KILL = """import os, runpy, sys
sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
replace = os.replace
number = 0
def replace_or_die(old, new):
    global number
    number += 1
    if number == 2:
        os.write(2, b'killed')
        os._exit(1)
    replace(old, new)
os.replace = replace_or_die
runpy.run_path(sys.argv[0], run_name='__main__')
"""
# Runs the script that follows, and presses Ctrl-C when its log holds a text.
CTRL_C = """import os, runpy, signal, sys, threading, time
path, text = sys.argv[1:3]
sys.argv = sys.argv[3:]
sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
def press():
    while not os.path.exists(path) or text not in open(path).read():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=press, daemon=True).start()
runpy.run_path(sys.argv[0], run_name='__main__')
"""


@pytest.fixture(scope='module', params=['teacher', 'student'])
def finished(request, data, teacher):
    """-> the folder of a finished run, and the command that made it, without --out_dir=."""
    folder = request.getfixturevalue(request.param)
    if request.param == 'teacher':
        return folder, ['train_teacher.py', f'--dataset={data}', *TINY]
    return folder, ['train_student.py', f'--teacher={teacher}/ckpt.pt', *TINY_S]


@pytest.fixture
def copy(finished, tmp_path):
    """-> a copy of that folder, and the command that goes on in it."""
    folder, command = finished
    out = tmp_path / 'run'
    shutil.copytree(folder, out)
    return out, [*command, f'--out_dir={out}', '--resume=True']


def same_state(a, b):
    """Two checkpoints: all that training changes."""
    return all(equal(a[key], b[key]) for key in ('G', 'D', 'opt_G', 'opt_D', 'iter', 'rng'))


def lines_of(out):
    return (out / 'log.txt').read_text(encoding='utf-8').splitlines()


def warnings_of(said):
    return [line for line in said.splitlines() if line.startswith('warning')]


def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(finished, tmp_path):
    folder, command = finished
    (tmp_path / 'kill.py').write_text(KILL)
    args = [*command, f'--out_dir={tmp_path}/run']
    assert run(tmp_path / 'kill.py', *args, ok=False) == 'killed'
    assert ckpt(tmp_path / 'run')['iter'] == 0
    # What was never complete is not looked at.
    (tmp_path / 'run' / 'ckpt.pt.tmp').write_bytes(b'half of a checkpoint')
    said = run(*args, '--resume=True')
    assert same_state(ckpt(tmp_path / 'run'), ckpt(folder))
    assert warnings_of(said) == []
    assert sum(line.startswith('$ python') for line in lines_of(tmp_path / 'run')) == 2


def test_a_run_stopped_between_two_steps_of_G_ends_as_if_it_had_not_been(finished, tmp_path):
    """By a grid of samples that cannot be written; the last checkpoint is of iteration 3."""
    folder, command = finished
    args = [*command, f'--out_dir={tmp_path}/run', '--ckpt_interval=3']
    os.makedirs(tmp_path / 'run' / 'samples' / '000004.png')
    said = run(*args, ok=False)
    assert f'{tmp_path}/run/samples: cannot write there' in said and 'is of iteration 3' in said
    os.rmdir(tmp_path / 'run' / 'samples' / '000004.png')
    assert ckpt(tmp_path / 'run')['iter'] == 3
    run(*args, '--resume=True')
    assert same_state(ckpt(tmp_path / 'run'), ckpt(folder))


def test_another_seed_gives_another_run(finished, tmp_path):
    folder, command = finished
    run(*command, f'--out_dir={tmp_path}/run', '--seed=1', '--max_iters=2')
    assert not equal(ckpt(folder)['rng'], ckpt(tmp_path / 'run')['rng'])


def test_a_finished_run_says_that_it_is_done(copy):
    out, command = copy
    before = (out / 'ckpt.pt').read_bytes()
    for flags in ([], ['--max_iters=3']):
        said = run(*command, *flags)
        assert f'{out}/ckpt.pt is of iteration 4: done. A larger --max_iters= goes on.' in said
        assert 'it/s' not in said
        assert (out / 'ckpt.pt').read_bytes() == before


def test_more_iterations_go_on_from_the_last(copy):
    out, command = copy
    said = run(*command, '--max_iters=6')
    assert 'iter      6/6' in said and 'iter      4/6' not in said and 'done' not in said
    assert ckpt(out)['iter'] == 6
    assert sorted(os.listdir(out / 'samples'))[-1] == '000006.png'


def test_flags_that_differ_are_named(copy):
    out, command = copy
    said = run(*command, '--lr=0.01', '--batch_size=5', '--lambda_rec=20', '--device=cpu')
    warned = warnings_of(said)
    for text in ('--lr was 0.0001, and is 0.01', '--batch_size was 4, and is 5', '--lambda_rec was 10.0, and is 20.0'):
        assert sum(text in line for line in warned) == 1
    assert len(warned) == 3
    assert set(warned) <= set(lines_of(out))


def test_without_resume_a_run_is_not_overwritten(copy):
    out, command = copy
    before = (out / 'ckpt.pt').read_bytes()
    said = run(*command, '--resume=False', ok=False)
    assert said.startswith(f'{out}/ckpt.pt exists: go on with --resume=True')
    assert (out / 'ckpt.pt').read_bytes() == before


def test_resume_may_be_said_from_the_start(finished, tmp_path):
    _, command = finished
    run(*command, f'--out_dir={tmp_path}/run', '--resume=True', '--max_iters=0')
    assert ckpt(tmp_path / 'run')['iter'] == 0


def test_edited_nets_are_warned_of(copy, tmp_path):
    """An edited comment behind the nets is no matter."""
    out, command = copy
    script = command[0]
    for name in ('train_teacher.py', 'train_student.py', 'gradcam.py'):
        shutil.copy(f'{ROOT}/{name}', tmp_path)
    source = (tmp_path / script).read_text(encoding='utf-8')
    nets, data_and_more = source.split('\n# data\n', 1)
    more = f'{nets}\n# data\n# more data\n{data_and_more}'
    (tmp_path / script).write_text(more, encoding='utf-8')
    assert warnings_of(run(tmp_path / script, *command[1:])) == []
    (tmp_path / script).write_text(more.replace('nn.ReLU()', 'nn.GELU()'), encoding='utf-8')
    warned, = warnings_of(run(tmp_path / script, *command[1:]))
    assert warned == f'warning: the nets of {script} have changed since {out}/ckpt.pt was written'
    # The folder keeps the script that went on.
    assert 'nn.GELU()' in (out / script).read_text(encoding='utf-8')


def test_ctrl_c_says_what_is_saved(finished, tmp_path):
    """At the eleventh of many iterations; on the way, what a CPU should rather be given is said."""
    _, command = finished
    out = tmp_path / 'run'
    (tmp_path / 'ctrl_c.py').write_text(CTRL_C)
    flags = [*command, f'--out_dir={out}', '--max_iters=200000000', '--log_interval=1', '--ckpt_interval=8']
    said = run(tmp_path / 'ctrl_c.py', out / 'log.txt', 'That is for a GPU', *flags, ok=False)
    assert said == f'stopped: {out}/ckpt.pt is of iteration 8, --resume=True goes on from there'
    assert ckpt(out)['iter'] == 8
    said = run(*flags, '--resume=True', '--max_iters=9')
    assert 'iter      9/9' in said


def test_ctrl_c_before_anything_is_saved(finished, tmp_path):
    _, command = finished
    out = tmp_path / 'run'
    (tmp_path / 'ctrl_c.py').write_text(CTRL_C)
    os.makedirs(out / 'samples')
    # The grid that cannot be read is a pipe: writing to it waits.
    os.mkfifo(out / 'samples' / '000000.png')
    said = run(tmp_path / 'ctrl_c.py', out / 'log.txt', 'columns: input', *command, f'--out_dir={out}', ok=False)
    assert said == 'stopped: nothing is saved yet'
