"""What the scripts do on a GPU: here on a stand-in for one (without_gpu.py), and on a GPU where one is at hand."""

import contextlib
import json

import bench
import numpy as np
import pytest
import torch
import train_teacher
import without_gpu
from conftest import TINY, TINY_S, run
from PIL import Image

LR = '--lr=0.001953125'  # 2^-9, and a power of two iterations: in float32, as a graph reads it, and as Python has it
ON = ['--device=cuda', LR, '--ckpt_interval=7', '--sample_interval=9']
UAG = ['--image_size=16', '--ngf=4', '--n_blocks=1', '--ndf=4', '--naf=4', '--d_n_layers=2', '--pool_size=3',
       '--n_epochs=8', '--n_epochs_decay=4', '--switch_epoch=3', '--n_samples=2', '--log_interval=8', *ON]


def on_standin(*args, **kwargs):
    return run('tests/without_gpu.py', *args, **kwargs)


def scripts(data, teacher, tmp_path):
    """Arguments of the three scripts for 16, 16 and 32 iterations."""
    T, S = ([a for a in args if not a.startswith(('--max_iters', '--device', '--ckpt', '--sample'))]
            + ['--max_iters=16'] for args in (TINY, TINY_S))
    unpaired, rng = tmp_path / 'unpaired', np.random.default_rng(0)
    unpaired.mkdir()
    for name in ('trainA', 'trainB', 'testA', 'testB'):
        np.save(unpaired / f'{name}_x.npy', rng.integers(0, 256, (4, 20, 20, 3), dtype=np.uint8))
    (unpaired / 'meta.json').write_text(json.dumps(dict(dataset='unpaired', label='unpaired', image_size=20,
                                                        domains=['a', 'b'], counts={})))
    return {'teacher': ['train_teacher.py', f'--dataset={data}', *T, *ON],
            'student': ['train_student.py', f'--teacher={teacher}/ckpt.pt', *S, *ON, '--att_control=shuffle'],
            'uag': ['train_uag.py', f'--dataset={unpaired}', *UAG]}


def nets(folder):
    """The weights of a checkpoint by name."""
    ckpt = torch.load(folder / 'ckpt.pt', map_location='cpu', weights_only=True)
    return {f'{net}.{k}': v for net, of in ckpt.items() if net.split('_')[0] in ('G', 'D', 'A') and isinstance(of, dict)
            and not net.endswith('args') for k, v in of.items()}


@pytest.mark.parametrize('script', ['teacher', 'student', 'uag'])
def test_cuda_graphs_train_as_plain_steps_do(script, data, teacher, tmp_path):
    """To the last bit and with the same losses: lr's schedule, what is drawn, the attention loss, UAG's switch."""
    args, seen = scripts(data, teacher, tmp_path)[script], []
    for graph in (False, True):
        log = on_standin(*args, f'--out_dir={tmp_path}/{graph}', f'--cuda_graph={graph}')
        seen.append([line.split(' it/s')[0].rpartition(' | ')[0] for line in log.splitlines() if ' it/s' in line])
    assert seen[0] == seen[1] and len(seen[0]) > 3
    plain, graph = nets(tmp_path / 'False'), nets(tmp_path / 'True')
    assert plain and all(torch.equal(v, graph[k]) for k, v in plain.items())


def test_resuming_with_and_without_cuda_graphs(data, teacher, tmp_path):
    args, ends = scripts(data, teacher, tmp_path)['teacher'], []
    for graph in ((False, False), (False, True), (True, False)):
        out = tmp_path / f'{graph}'
        on_standin(*args, f'--out_dir={out}', f'--cuda_graph={graph[0]}', '--max_iters=8')
        log = on_standin(*args, f'--out_dir={out}', f'--cuda_graph={graph[1]}', '--resume=True')
        assert 'iteration 8 of 16' in log
        ends.append(nets(out))
    assert all(torch.equal(v, end[k]) for end in ends for k, v in ends[0].items())


def test_cuda_graph_wants_a_gpu(data, tmp_path):
    out = f'--out_dir={tmp_path}/no'
    says = run('train_teacher.py', f'--dataset={data}', *TINY, '--cuda_graph=True', out, ok=False)
    assert '--cuda_graph=True' in says and 'GPU' in says and not (tmp_path / 'no').exists()


def test_the_standins_graph_is_as_strict_as_a_real_one():
    """Capturing changes nothing and computes nothing; numbers are frozen, tensors read anew; waiting is refused."""
    x, total, number, graph = torch.ones(3), torch.zeros(3), 2.0, without_gpu.CUDAGraph()
    with graph:
        y = x * number + torch.rand(3)
        total += y
        view = y[1:]
    assert total.eq(0).all() and y.isnan().all()
    number = 5.0
    torch.manual_seed(0)
    graph.replay()
    torch.manual_seed(0)
    want = 2 + torch.rand(3)
    assert torch.equal(y, want) and torch.equal(total, want) and torch.equal(view, want[1:])
    x.fill_(10)
    graph.replay()
    assert (y >= 20).all() and torch.equal(total, want + y)
    for wait in (lambda: x.sum().item(), lambda: x[x > 0], lambda: x.nonzero(), lambda: x.unique()):
        with pytest.raises(RuntimeError, match='capturing'), without_gpu.CUDAGraph():
            wait()


def test_graphed_captures_the_third_call_and_again_when_told(monkeypatch):
    for name in ('Stream', 'CUDAGraph'):
        monkeypatch.setattr(torch.cuda, name, getattr(without_gpu, name))
    monkeypatch.setattr(torch.cuda, 'current_stream', without_gpu.Stream)
    monkeypatch.setattr(torch.cuda, 'stream', lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, 'graph', lambda graph, stream: graph)
    ran, scale = [], [2.0]

    def step(x, y):
        ran.append(1)
        return {'out': scale[0] * x + y}
    graphed, x, y = train_teacher.Graphed(step), torch.tensor([1.0]), torch.tensor([1.0])
    assert [graphed(x + k, y)['out'].item() for k in range(5)] == [3, 5, 7, 9, 11] and len(ran) == 3
    scale[0] = 3.0
    assert graphed(x, y)['out'].item() == 3  # as captured
    graphed.calls = 0
    assert [graphed(x + k, y)['out'].item() for k in range(4)] == [4, 7, 10, 13] and len(ran) == 6


def test_bench_on_cuda(tmp_path):
    args = ['tests/bench.py', '--device=cuda', '--nets=tiny', '--image_size=16', '--batch_size=2', '--n_critic=2',
            '--repeats=1', f'--out_dir={tmp_path}']
    variants = set()
    for more in (['--scripts=uag'],
                 ['--scripts=student,teacher', '--variants=published,sync,unfused+graph,all,all+att']):
        out = on_standin(*args, *more, threads=1)
        rows = json.load(open(tmp_path / 'bench.json'))['rows']
        assert not [row for row in rows if 'error' in row]
        variants |= {row['script'] + ' ' + row['variant'] for row in rows}
    on_standin(*args, '--scripts=teacher', '--variants=sync+graph,float32', threads=1)  # .item() in a graph
    rows = json.load(open(tmp_path / 'bench.json'))['rows']
    assert 'capturing' in rows[0]['error'] and 'not run' in rows[1]['error']
    assert 'from GPU' in out and {'uag graph', 'uag compile', 'uag benchmark', 'uag all+switched', 'student all+att',
                                  'teacher all'} <= variants


def test_evaluate_on_cuda(data, teacher, tmp_path):
    Image.fromarray(np.zeros((20, 24, 3), np.uint8)).save(tmp_path / 'me.png')
    ckpt = f'--ckpt={teacher}/ckpt.pt'
    out = on_standin('evaluate.py', ckpt, '--device=cuda', '--inception=none', '--clf_arch=resnet18', '--clf_epochs=1',
                     f'--clf_dir={tmp_path}/clf', f'--out_dir={tmp_path}/eval')
    assert 'stand-in' in out and (tmp_path / 'eval' / 'report.html').exists()
    on_standin('evaluate.py', ckpt, f'--input={tmp_path}/me.png', '--attrs=a', f'--out={tmp_path}/photos',
               '--device=cuda')
    assert len(list((tmp_path / 'photos').iterdir())) == 1


def test_steps_wait_for_nothing_on_a_gpu():
    """Counted on 'meta' tensors: as on the CPU, where autocast is the real one; published waits for each loss."""
    counts, _ = without_gpu.gpu_count(bench.steps_of, 'teacher', {'published'}, 'tiny', 16, 2, 2)
    assert [counts[name]['syncs'] for name in ('D', 'DG')] == [['.item()'] * 4, ['.item()'] * 7]
    for script, variant in (('teacher', 'float32'), ('teacher', 'bf16'), ('student', 'bf16+att'), ('uag', 'float32'),
                            ('uag', 'bf16'), ('uag', 'bf16+switched')):
        sizes = ('tiny', 24, 25, 2) if script == 'uag' else ('tiny', 16, 2, 2)
        counts, _ = without_gpu.gpu_count(bench.steps_of, script, set(variant.split('+')), *sizes)
        assert not any(count['syncs'] for count in counts.values()), (script, variant)
        with without_gpu.GpuCounter('cpu') as counter:
            steps, _, nets = bench.steps_of(script, set(variant.split('+')), *sizes, 'cpu')
            steps = {} if script == 'uag' else steps  # whose pools draw lots, and Adam is not fused on a CPU
            for name in steps:  # makes Adam's state
                steps[name]()
            for name in steps:
                counter.reset()
                steps[name]()
                seen = {k: getattr(counter, k) for k in ('kernels', 'bytes', 'peak', 'flops')}
                assert seen == {k: counts[name][k] for k in seen} and seen['flops'] > 0, (script, variant, name)
        trained = nets.values() if script == 'uag' else nets
        weights = sum(p.nbytes for net in trained for p in net.parameters() if p.requires_grad)
        assert min(counts['D']['peak'], counts['D']['live']) > 3 * weights  # and Adam's two means


def test_what_waits_is_seen():
    x, mask = torch.zeros(3, 4, device='meta'), torch.ones(3, device='meta') > 0
    waits = [lambda: x.sum().item(), lambda: float(x[0, 0]), lambda: x.cpu(), lambda: torch.ones(2).to('meta'),
             lambda: x[torch.tensor([0, 2])], lambda: x[:, [0, 2]], lambda: torch.tensor(1., device='meta'),
             lambda: x[mask], lambda: x.nonzero(), lambda: x.copy_(torch.zeros(3, 4))]
    free = [lambda: x[0] + 1, lambda: x * torch.tensor(2.), lambda: torch.rand(3, device='meta'), lambda: x[:2].clone()]
    for k, f in enumerate(waits + free):
        with without_gpu.GpuCounter() as counter, contextlib.suppress(NotImplementedError):  # a result without a shape
            f()
        assert len(counter.syncs) == (k < len(waits)), k


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('script', ['teacher', 'student', 'uag'])
@pytest.mark.parametrize('flags', ['--cuda_graph=True', '--compile=True', '--compile=True --cuda_graph=True'])
def test_fast_paths_train_as_the_plain_one_on_a_gpu(script, flags, data, teacher, tmp_path):
    args, w = [a for a in scripts(data, teacher, tmp_path)[script] if a != LR], {}
    for name, more in (('start', ['--lr=1e-12']), ('plain', []), ('fast', flags.split())):
        run(*args, f'--out_dir={tmp_path}/{name}', *more)
        # biases before a norm do nothing: their gradient is rounding, of which Adam makes whole steps
        weights = {k: v.flatten() for k, v in nets(tmp_path / name).items() if k.endswith('weight')}
        w[name] = {of: torch.cat([v for k, v in weights.items() if k[0] == of]) for of in {k[0] for k in weights}}
    for of, start in w['start'].items():  # each by itself: D has most of the weights
        assert torch.cosine_similarity(w['plain'][of] - start, w['fast'][of] - start, 0) > 0.9, of
