"""
How fast is training? Runs the training scripts as they are, on images of noise, and compares.

$ python tests/bench.py                                          # `make bench`
$ python tests/bench.py --variants=student,student+gradcam+bf16  # these

A variant is teacher, student or uag. It may go on, joined by +, with
    gradcam     student: with the attention loss, else without. hirescam: with the loss on that map
    switched    uag: behind the switch, where D sees masked images, else before it
    bf16        --dtype=bfloat16

Times are from log line to log line. it/s is the median over repeats, spread is (max - min) / median,
CPU ms are those of all cores, x is the speed over that of the script's first variant. Repeats are
processes that take turns, so that what else a machine does meets all variants alike; on a GPU each
variant has one process.

The last line says how much of the machine G makes use of: the FLOP/s of its forward and backward
pass, as a share of those of a float32 product of two matrices, timed in turns with it.
"""

import concurrent.futures
import difflib
import json
import multiprocessing
import os
import platform
import runpy
import shlex
import sys
import tempfile
import time

import numpy as np
import torch
import torchvision.utils  # noqa: F401 - for the scripts: a fork need not import it again
from torch.utils.flop_counter import FlopCounterMode

# -----------------------------------------------------------------------------
variants = ''  # comma-separated; '': those that make sense on the device
sizes = ''  # 'paper', 'small' or 'tiny', see SIZES below; '': paper on a GPU, else small
repeats = 5  # of which median and spread are taken
iters = 0  # iterations of a repeat, a multiple of 5, as one in 5 trains G; 0: 50 on a GPU, else 5
device = ''  # 'cpu', 'cuda', 'cuda:1'; '': the GPU if there is one
out_dir = 'out/bench'  # gets bench.json
# -----------------------------------------------------------------------------
# On the command line --key=value overrides a global of this block, and keeps its type.
config_keys = [k for k, v in globals().items() if k[0] != '_' and isinstance(v, (int, float, str))]
options = sys.argv[1:] if __name__ == '__main__' else []
for option in options:
    if option in ('-h', '--help'):
        print(__doc__ or '', open(__file__, encoding='utf-8').read().split('# ' + '-' * 77)[1])
        sys.exit()
    key, equals, value = option.removeprefix('--').partition('=')
    if not option.startswith('--') or key not in config_keys:
        similar = difflib.get_close_matches(key, config_keys) or config_keys
        sys.exit(f"{option}: not a --key=value of this script. Similar: {', '.join(similar)}")
    default = globals()[key]
    if not equals:
        sys.exit(f'{option}: wants a value, say --{key}={True if default is False else default}')
    try:
        if isinstance(default, bool):
            value = {'True': True, 'False': False}[value]
        elif isinstance(default, str):
            # The shell leaves the ~ of --key=~/folder as it is.
            value = ','.join(os.path.expanduser(part) for part in value.split(','))
        else:
            value = type(default)(value)
    except (KeyError, ValueError):
        wanted = 'True or False' if isinstance(default, bool) else f'a number like {default}'
        sys.exit(f'{option}: wants {wanted}')
    # Numbers are finite and at least 0; those that count something, at least 1.
    may_be_0 = default == 0 or key in ('max_iters', 'pool_size', 'max_bad', 'seed')
    lowest = 1 if type(default) is int and not may_be_0 else 0
    if not isinstance(value, str) and not lowest <= value < 2 ** 63:
        sys.exit(f'{option}: wants a finite number, at least {lowest}, below 2^63')
    globals()[key] = value
# -----------------------------------------------------------------------------
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# The flags of each part of a variant's name. Of two values of a flag the last counts.
FLAGS = {
    'teacher': ['--attrs=all'],
    'student': ['--lambda_att=0'],
    'uag': ['--switch_at=1'],
    'gradcam': ['--lambda_att=10'],
    'hirescam': ['--lambda_att=10', '--cam=hirescam'],
    # Fresh maps are about 1/2 everywhere.
    'switched': ['--switch_at=0', '--tau=0.5'],
    'bf16': ['--dtype=bfloat16'],
}
# The sides of the faces and of the unpaired images, which are cropped, and the flags of each script
SIZES = {
    'paper': {
        'face': 128,
        'pair': 286,
        'teacher': ['--conv_dim=64', '--n_blocks=6'],
        'student': [],
        'uag': [],
    },
    'small': {
        'face': 64,
        'pair': 72,
        'teacher': ['--conv_dim=32', '--n_blocks=3', '--d_conv_dim=32'],
        'student': ['--conv_dim=16', '--n_blocks=1'],
        'uag': ['--image_size=64', '--ngf=16', '--n_blocks=3', '--ndf=32', '--naf=16'],
    },
    'tiny': {
        'face': 16,
        'pair': 20,
        'teacher': ['--conv_dim=4', '--n_blocks=1', '--d_conv_dim=4', '--d_n_layers=3'],
        'student': ['--conv_dim=2', '--n_blocks=1'],
        'uag': ['--image_size=16', '--ngf=4', '--n_blocks=1', '--ndf=4', '--d_n_layers=1', '--naf=4'],
    },
}


def make_data(folder, face, pair):
    """A set with labels and an unpaired one, in one folder, for it does not matter what they show."""
    rng = np.random.default_rng(0)
    for name, size in (
            ('train', face), ('test', face), ('trainA', pair), ('trainB', pair), ('testA', pair), ('testB', pair)):
        # One test image makes the first grid of samples small.
        n = 64 if name.startswith('train') else 1
        np.save(f'{folder}/{name}_x.npy', rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8))
        np.save(f'{folder}/{name}_y.npy', rng.integers(0, 2, (n, 7), dtype=np.uint8))
    meta = dict(label='multi', image_size=face, attrs=list('abcdefg'), domains=['A', 'B'])
    with open(f'{folder}/meta.json', 'w', encoding='utf-8') as file:
        json.dump(meta, file)


def in_new_process(function, *args):
    """What the function returns. A fork need not import torch again, but a GPU does not survive it."""
    fork = sys.platform == 'linux' and not on_gpu()
    context = multiprocessing.get_context('fork' if fork else 'spawn')
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args).result()


def on_gpu():
    return torch.cuda.is_available() and device != 'cpu'


def train(script, flags, interval, n_lines):
    """Runs a script up to its n-th log line at whole intervals -> (seconds, CPU seconds) of each."""
    times = []

    def timed_print(text, **options):
        """What the script has for print. A log line of losses has waited for the GPU."""
        if 'the switch waits' in text:
            raise RuntimeError('UAG did not switch')
        if not text.startswith('iter') or not text.endswith('min'):
            return
        iteration = text.split()[1].split('/')[0]
        if int(iteration) % interval == 0:
            times.append((time.perf_counter(), time.process_time()))
        if len(times) == n_lines:
            sys.exit()

    path = f'{ROOT}/{script}'
    # As on the command line
    sys.argv = [path, *flags]
    sys.path[0] = ROOT
    try:
        runpy.run_path(path, init_globals={'print': timed_print}, run_name='__main__')
    except SystemExit as end:
        # A pool would hang on it. It is one of ours if it says nothing.
        if end.code:
            raise RuntimeError(end.code) from None
    return times


def time_of(function, device):
    """Seconds, waiting for the GPU."""
    if 'cuda' in device:
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if 'cuda' in device:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def rates(flags, size, batch_size, repeats, device):
    """FLOP/s of products of two 2,048-square matrices, and of the teacher's G: lists of `repeats`."""
    script = runpy.run_path(f'{ROOT}/train_teacher.py')
    g_args = {'c_dim': 7}
    for flag in flags:
        key, _, value = flag.removeprefix('--').partition('=')
        if key in ('conv_dim', 'n_blocks'):
            g_args[key] = int(value)
    G = script['Generator'](**g_args).to(device)
    x = torch.rand(batch_size, 3, size, size, device=device)
    c = torch.ones(batch_size, 7, device=device)
    matrix = torch.rand(2048, 2048, device=device)

    def multiply():
        return matrix @ matrix

    def forward_and_backward():
        G(x, c).mean().backward()

    # To count them, each runs once: that is its warm-up, too.
    flops = {}
    seconds = {}
    for function in (multiply, forward_and_backward):
        with FlopCounterMode(display=False) as counter:
            function()
        flops[function] = counter.get_total_flops()
        seconds[function] = []
    for _ in range(repeats):
        for function in (multiply, forward_and_backward):
            seconds[function].append(time_of(function, device))
    return [[flops[f] / s for s in seconds[f]] for f in (multiply, forward_and_backward)]


def machine_name():
    if on_gpu():
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    if os.path.exists('/proc/cpuinfo'):
        with open('/proc/cpuinfo', encoding='utf-8') as file:
            for line in file:
                if line.startswith('model name'):
                    name = line.split(': ')[1].strip()
    return f'{name}, {torch.get_num_threads()} threads'


def measure(names, nets, n_iters, device, folder):
    """-> a row for each variant, and what rates() returns. The folder is for temporary files."""
    make_data(folder, nets['face'], nets['pair'])
    # The students' teacher is not trained, for that takes the same time.
    teacher_flags = [
        f'--dataset={folder}', f'--device={device}', '--attrs=all', '--max_iters=0', f'--out_dir={folder}/T']
    in_new_process(train, 'train_teacher.py', [*teacher_flags, *nets['teacher']], 1, 1)
    rows = [dict(variant=name, seconds=[], cpu_seconds=[]) for name in names]
    # On a GPU a process takes long to start, and nobody else is there.
    rounds, lines_per_round = (1, repeats) if on_gpu() else (repeats, 1)
    for row in rows * rounds:
        script, *parts = row['variant'].split('+')
        # UAG's iterations are short, of one image.
        interval = 4 * n_iters if script == 'uag' else n_iters
        flags = [
            f'--device={device}', f'--log_interval={interval}', '--sample_interval=1000000',
            '--ckpt_interval=1000000', *nets[script]]
        flags.append(f'--teacher={folder}/T/ckpt.pt' if script == 'student' else f'--dataset={folder}')
        for part in (script, *parts):
            flags += FLAGS[part]
        try:
            with tempfile.TemporaryDirectory(dir=folder) as out:
                times = in_new_process(
                    train, f'train_{script}.py', [*flags, f'--out_dir={out}'], interval, lines_per_round + 1)
        except Exception as error:
            # Out of memory, say: that is a result as well.
            row['error'] = f'{type(error).__name__}: {error}'.splitlines()[0]
            continue
        # Up to the first line it warms up.
        for before, after in zip(times, times[1:]):
            row['seconds'].append((after[0] - before[0]) / interval)
            row['cpu_seconds'].append((after[1] - before[1]) / interval)
    product, of_G = in_new_process(rates, nets['teacher'], nets['face'], 16, repeats, device)
    return rows, product, of_G


def print_table(rows):
    """Adds to the rows what follows from their times, and prints them."""
    print('variant                              it/s  spread   CPU ms      x  by CPU time')
    first = {}
    for row in rows:
        if 'error' in row:
            print(f"{row['variant']:30s} {row['error']}")
            continue
        seconds = np.median(row['seconds'])
        cpu_seconds = np.median(row['cpu_seconds'])
        script = row['variant'].split('+')[0]
        first_seconds, first_cpu_seconds = first.setdefault(script, (seconds, cpu_seconds))
        row['it_s'] = 1 / seconds
        row['spread'] = np.ptp(row['seconds']) / seconds
        row['cpu_ms'] = 1000 * cpu_seconds
        row['x'] = first_seconds / seconds
        row['x_cpu'] = first_cpu_seconds / cpu_seconds
        line = '{variant:30s} {it_s:10.2f} {spread:7.0%} {cpu_ms:8.0f} {x:6.2f} {x_cpu:12.2f}'
        print(line.format(**row))


def main():
    size_name = sizes or ('paper' if on_gpu() else 'small')
    names = 'teacher,teacher+bf16,student,student+gradcam,student+hirescam,uag,uag+switched'
    if on_gpu():
        names += ',student+gradcam+bf16'
    names = (variants or names).split(',')
    if size_name not in SIZES:
        sys.exit(f"--sizes={sizes}: wants one of {', '.join(SIZES)}")
    for name in names:
        script, *parts = name.split('+')
        if script not in ('teacher', 'student', 'uag') or not set(parts) <= set(FLAGS):
            sys.exit(f"--variants={name}: wants some of {', '.join(FLAGS)}, the script first, joined by +")
    n_iters = iters or (50 if on_gpu() else 5)
    print(f'{machine_name()}; sizes: {size_name}; {repeats} x {n_iters} iterations, of uag {4 * n_iters}', flush=True)
    with tempfile.TemporaryDirectory() as folder:
        rows, product, of_G = measure(
            names, SIZES[size_name], n_iters, device or ('cuda' if on_gpu() else 'cpu'), folder)
    print_table(rows)
    share = np.median(np.divide(of_G, product))
    print(f"G of the teacher, forward and backward: {np.median(of_G) / 1e9:.0f} GFLOP/s, a float32 matrix product: "
          f'{np.median(product) / 1e9:.0f} GFLOP/s, so {share:.0%} of it')
    result = dict(
        machine=machine_name(), torch=torch.__version__, command=f'python {shlex.join(sys.argv)}',
        config={key: globals()[key] for key in config_keys}, rows=rows, flops_of_product=product,
        flops_of_G=of_G, share=share)
    os.makedirs(out_dir, exist_ok=True)
    with open(f'{out_dir}/bench.json', 'w', encoding='utf-8') as file:
        json.dump(result, file, indent=1)
    # 1: not all variants ran
    sys.exit(any('error' in row for row in rows))


if __name__ == '__main__':
    main()
