"""
How fast is training? Runs the training scripts as they are, on images of noise, and compares variants of each.

    python tests/bench.py                                                # `make bench`
    python tests/bench.py --variants=student,student+gradcam+bf16        # these

A variant is teacher, student or uag, and may go on, joined by +, with
    gradcam     student: with the attention loss; else without it. hirescam: by that map
    switched    UAG: behind the switch, where A is frozen and D sees masked images; else before it
    bf16        --dtype=bfloat16
    graph       --cuda_graph=True: GPU only

Measured from log line to log line: it/s is the median over repeats, spread (max - min) / median, CPU ms those of all
cores, x the speed over the script's first variant. Repeats are processes that take turns, on a GPU one after another.
"""

import concurrent.futures
import contextlib
import difflib  # for the overrides
import json
import logging
import multiprocessing
import os
import runpy
import shlex
import sys
import tempfile
import time

import numpy as np
import torch
import torchvision.utils  # the scripts want it: imported once, before they fork off

# -----------------------------------------------------------------------------
variants = ''  # comma-separated; '': all that make sense on the device
sizes = ''  # 'paper' 128 px, T 64/6, S 32/3, UAG 256 px; 'small' 64 px, T 32/3, S 16/1; '': paper on a GPU, else small
repeats = 5  # of which median and spread are taken
iters = 0  # iterations of a repeat, a multiple of 5, for one in five has a G step; 0: 50 on a GPU, else 5
device = ''  # 'cpu', 'cuda', 'cuda:1'; '': the GPU if there is one
out_dir = 'out/bench'  # the JSON goes there
# -----------------------------------------------------------------------------
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# --key=value overrides the block above, as in every script
exec(open(os.path.join(ROOT, 'train_teacher.py')).read().split('# ' + '-' * 77)[2])

FLAGS = {'teacher': '--attrs=all', 'student': '--lambda_att=0', 'uag': '--switch_at=1',  # of two the last counts
         'switched': '--switch_at=0 --tau=0.5',  # for fresh maps, which are about 1/2 everywhere
         'gradcam': '--lambda_att=10', 'hirescam': '--lambda_att=10 --cam=hirescam',
         'bf16': '--dtype=bfloat16', 'graph': '--cuda_graph=True'}
SIZES = {  # pixels of the labelled images, of the unpaired ones, which are cropped; flags of the scripts
    'paper': (128, 286, dict(teacher='', student='', uag='')),
    'small': (64, 72, dict(teacher='--conv_dim=32 --n_blocks=3 --d_conv_dim=32', student='--conv_dim=16 --n_blocks=1',
                           uag='--image_size=64 --ngf=16 --n_blocks=3 --ndf=32 --naf=16')),
    'tiny': (16, 20, dict(teacher='--conv_dim=4 --n_blocks=1 --d_conv_dim=4 --d_n_layers=3 --batch_size=4',
                          student='--conv_dim=2 --n_blocks=1 --batch_size=4',
                          uag='--image_size=16 --ngf=4 --n_blocks=1 --ndf=4 --d_n_layers=1 --naf=4'))}


def train(variant, flags, n):
    """Runs the script in this process up to its n-th log line -> of each line: seconds, CPU seconds."""
    lines, path = [], os.path.join(ROOT, f"train_{variant.split('+')[0]}.py")

    class Clock(logging.Handler):
        def emit(self, record):
            assert 'the switch waits' not in record.getMessage(), 'UAG did not switch'
            if ' it/s' in record.msg:
                record.getMessage()  # waits for the GPU
                lines.append((time.perf_counter(), time.process_time()))
                if len(lines) == n:
                    raise EOFError  # enough seen: ends the script

    logging.basicConfig(level=logging.INFO, handlers=[Clock()])  # so that the script's own call does nothing
    sys.argv, sys.path[0] = [path, *flags], ROOT  # as on the command line
    with contextlib.suppress(EOFError):
        runpy.run_path(path, run_name='__main__')
    return lines


if __name__ == '__main__':
    cuda = torch.cuda.is_available() and device != 'cpu'
    sizes, iters = sizes or ('paper' if cuda else 'small'), iters or (50 if cuda else 5)
    names = 'teacher teacher+bf16 student student+gradcam student+hirescam uag uag+switched'.split()
    if cuda:
        names += [v + '+graph' for v in names] + ['student+gradcam+bf16+graph']
    names = variants.split(',') if variants else names
    for v in names:
        if sizes not in SIZES or v.split('+')[0] not in [*FLAGS][:3] or not {*v.split('+')} <= {*FLAGS}:
            sys.exit(f"--variants={v} of {', '.join(FLAGS)}, joined by +; --sizes={sizes} of {', '.join(SIZES)}: wrong")
    cpu = open('/proc/cpuinfo').read().partition('model name\t: ')[2].partition('\n')[0]
    machine = torch.cuda.get_device_name() if cuda else f'{cpu}, {torch.get_num_threads()} threads'
    print(f'{machine}; sizes: {sizes}; {repeats} x {iters} iterations, of UAG {4 * iters}', flush=True)
    rounds, n, start = (1, repeats, 'spawn') if cuda else (repeats, 1, 'fork')  # which saves imports; CUDA wants none
    rows, first = [dict(variant=v, seconds=[], cpu_seconds=[]) for v in names], {}

    with tempfile.TemporaryDirectory() as tmp:
        rng, (face, pair, nets) = np.random.default_rng(0), SIZES[sizes]
        for name, px in dict(train=face, test=face, trainA=pair, testA=pair, trainB=pair, testB=pair).items():
            x = rng.integers(0, 256, (64 if 'train' in name else 1, px, px, 3), dtype=np.uint8)  # 1: small grids
            np.save(f'{tmp}/{name}_x.npy', x)
            np.save(f'{tmp}/{name}_y.npy', rng.integers(0, 2, (len(x), 7), dtype=np.uint8))
        meta = dict(image_size=face, label='multi', attrs=[*'abcdefg'], exclusive=[], domains=[*'AB'])
        json.dump(meta, open(f'{tmp}/meta.json', 'w'))

        def run(variant, *more):
            parts, its = variant.split('+'), 4 * iters if 'uag' in variant else iters  # UAG's are short
            flags = [f'--dataset={tmp}', f'--device={device}', f'--log_interval={its}', '--sample_interval=1000000',
                     '--ckpt_interval=1000000', *nets[parts[0]].split()]
            flags += [f'--teacher={tmp}/T/ckpt.pt'] * ('student' in parts) + ' '.join(map(FLAGS.get, parts)).split()
            with (tempfile.TemporaryDirectory(dir=tmp) as out,
                  concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context(start)) as pool):
                flags += [f'--out_dir={out}', *more]
                return its, pool.submit(train, variant, flags, n + 1).result()

        run('teacher', '--max_iters=0', f'--out_dir={tmp}/T')  # for the students: time does not ask for training
        for row in rows * rounds:
            try:
                its, lines = run(row['variant'])
            except (Exception, SystemExit) as e:  # out of memory, a capture that fails: a result as well
                row['error'] = f'{type(e).__name__}: {e}'.splitlines()[0]
                continue
            for k, of in enumerate(('seconds', 'cpu_seconds')):
                row[of] += [(b[k] - a[k]) / its for a, b in zip(lines, lines[1:])]

    print('variant                              it/s  spread   CPU ms      x  by CPU time')
    for row in rows:
        if 'error' in row:
            print(f"{row['variant']:30s} {row['error']}")
            continue
        s, cpu = np.median(row['seconds']), np.median(row['cpu_seconds'])
        base = first.setdefault(row['variant'].split('+')[0], (s, cpu))  # of the script
        row |= dict(it_s=1 / s, spread=np.ptp(row['seconds']) / s, cpu_ms=1e3 * cpu, x=base[0] / s, x_cpu=base[1] / cpu)
        print('{variant:30s} {it_s:10.2f} {spread:7.0%} {cpu_ms:8.0f} {x:6.2f} {x_cpu:12.2f}'.format(**row))
    os.makedirs(out_dir, exist_ok=True)
    with open(os.path.join(out_dir, 'bench.json'), 'w') as f:
        json.dump(dict(machine=machine, torch=torch.__version__, command='python ' + shlex.join(sys.argv),
                       config={k: globals()[k] for k in config_keys}, rows=rows), f, indent=1)
    sys.exit(any('error' in row for row in rows))  # 1: not all ran
