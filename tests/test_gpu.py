"""What the scripts do on a GPU: here on a stand-in for one (without_gpu.py), and on a GPU where one is at hand."""

import json
import os

import pytest
import torch
from conftest import ROOT, TINY, TINY_S, TINY_U, ckpt, run

STANDIN, SCRIPTS = 'tests/without_gpu.py', ['teacher', 'student', 'uag']
LR = '--lr=0.000244140625'  # 2^-12, and a power of two iterations: in float32, as graphs have it, as in Python


@pytest.fixture
def command(data, pairs, teacher):
    """-> function: the name of a script, how many iterations -> its arguments, but for lr."""
    T, S, U = ([flag for flag in of if flag.split('=')[0] not in ('--ckpt_interval', '--sample_interval')]
               + ['--device=cuda'] for of in (TINY, TINY_S, TINY_U))
    of = {'teacher': [f'--dataset={data}', *T, '--n_critic=1'],  # a G step each time: a graph is captured at the third
          'student': [f'--teacher={teacher}/ckpt.pt', *S, '--n_critic=1', '--att_shuffle=True', '--dtype=bfloat16'],
          'uag': [f'--dataset={pairs}', *U, '--switch_at=0.5']}
    return lambda script, iters: [f'train_{script}.py', *of[script], f'--n_epochs={iters / 4}' if script == 'uag'
                                  else f'--max_iters={iters}']


def load(folder):
    """-> a checkpoint; all that was trained, by name: weights and Adam's state."""
    c = ckpt(folder)
    weights = {f'{net}.{k}': v for net in c if net.split('_')[0] in ('G', 'D', 'A') for k, v in c[net].items()}
    return c, weights | {f'{opt}.{i}.{k}': v for opt in ('opt_G', 'opt_D') for i, state in c[opt]['state'].items()
                         for k, v in state.items()}


@pytest.mark.parametrize('script', SCRIPTS)
def test_cuda_graphs_train_as_plain_steps_do(script, command, tmp_path):
    """With a graph and then resumed without, and the other way round: the same losses and weights, to the last bit."""
    for iters, graphs in ((8, (False, True)), (16, (True, False))):  # UAG switches after 4
        logs, states = [], {}
        for name, graph in zip('ab', graphs):
            out = tmp_path / name
            args = command(script, iters) + [LR, f'--out_dir={out}', f'--cuda_graph={graph}', '--resume=True']
            run(STANDIN, *args)
            logs.append([line.rsplit('|', 2)[0] for line in open(out / 'log.txt') if 'it/s' in line])
            c, states[name] = load(out)
        assert len(logs[0]) >= 3 and logs[0] == logs[1] and c['iter'] == iters and c.get('switched', True)
        a, b = states.values()
        assert a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


@pytest.mark.parametrize('old,new,says', [
    ('d_loss.backward()', 'd_loss.backward(), d_loss.item()', 'permitted when stream is capturing: item'),
    ('d_loss.backward()', 'd_loss.backward(), d_loss.cpu()', 'permitted when stream is capturing: cpu'),
    ('d_loss.backward()', 'd_loss.backward(), x_real[x_real > 0]', 'permitted when stream is capturing'),
    ('1, 1, 1, device=device)', '1, 1, 1)', 'to be on the same device'),
    ('torch.cuda.set_stream', 'id', 'non-default stream'),
    ('capturable=cuda_graph', 'capturable=False', 'not capturable')])
def test_the_standin_refuses_what_a_gpu_does(old, new, says, command, tmp_path):
    """A line of the script changed for the worse."""
    source = open(os.path.join(ROOT, 'train_teacher.py')).read()
    (tmp_path / 'script.py').write_text(source.replace(old, new))  # where nothing is replaced nothing is refused
    with pytest.raises(AssertionError, match=says):
        run(STANDIN, tmp_path / 'script.py', *command('teacher', 3)[1:], f'--out_dir={tmp_path}/t', '--cuda_graph=True')


def test_bench_runs_the_scripts(tmp_path):
    variants = 'teacher,student,student+gradcam,uag+switched'
    out = run('tests/bench.py', f'--variants={variants}', '--sizes=tiny', '--repeats=1', '--device=cpu',
              f'--out_dir={tmp_path}')
    rows = json.loads((tmp_path / 'bench.json').read_text())['rows']
    assert [row['variant'] for row in rows] == variants.split(',')
    for row in rows:
        assert row['seconds'][0] > 0 and row['cpu_ms'] > 0 and f"{row['it_s']:10.2f}" in out
    assert rows[1]['x'] == 1 and rows[2]['x'] == pytest.approx(rows[2]['it_s'] / rows[1]['it_s'])
    assert 'of teacher, student' in run('tests/bench.py', '--variants=teacher+bf17', ok=False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('script', SCRIPTS)
def test_on_a_gpu_graphs_train_as_plain_steps_do(script, command, tmp_path):
    w, f32 = {}, '--dtype=float32'  # whatever the stand-in's run has
    for name, *more in (('start', f32, '--lr=1e-12'), ('plain', f32), ('graph', f32, '--cuda_graph=True')):
        run(*command(script, 16), f'--out_dir={tmp_path}/{name}', *more)
        # biases before a norm do nothing: their gradient is rounding, of which Adam makes whole steps
        weights = {k: v.flatten() for k, v in load(tmp_path / name)[1].items() if k.endswith('weight')}
        w[name] = {of: torch.cat([v for k, v in weights.items() if k[0] == of]) for of in {k[0] for k in weights}}
    for of, start in w['start'].items():  # each by itself: D has most of the weights
        assert torch.cosine_similarity(w['plain'][of] - start, w['graph'][of] - start, 0) > 0.9, of
    for iters, more in ((24, ['--cuda_graph=True']), (32, ['--cuda_graph=True', '--dtype=bfloat16'])):
        run(*command(script, iters), f'--out_dir={tmp_path}/plain', '--resume=True', *more)
        c, weights = load(tmp_path / 'plain')
        assert c['iter'] == iters and all(v.isfinite().all() for v in weights.values())
