"""
Runs the experiments behind the tables of results/: a teacher, students of every arm and seed side by side, evaluate.py.
What has been trained is skipped and what was interrupted goes on, so it may be stopped and called again at any time.

    python results/run.py                           # tables 1-4 in small, on a CPU: drawn faces, 32 px
    python results/run.py --tables=validation       # by which the weights in table1 were chosen
    python results/run.py --tables=table1 --seeds=0 # one of them, one seed
    python results/run.py --tables=again            # ten more seeds of its best arm and three beside it
    python results/run.py --tables=late,lite        # four times as long: S, and one that is 43x smaller than T
    python results/run.py --tables=real --setting=real # the same question on photos of 64 px: data/celeba/prepare.py
    python results/run.py --setting=paper --jobs=1  # the paper's sizes on a GPU: CelebA at 128 px, 200,000 iterations

For each table it writes <table>.json (figures of every seed, commands, machine, minutes) and, made from that alone,
<table>.md, which the README shows or links: to results/ if called as above, with all of its seeds, else to out_dir.
"""

import difflib
import importlib
import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time
from multiprocessing.pool import ThreadPool

import scipy.stats
import torch

# -----------------------------------------------------------------------------
tables = 'table1,table2,table3,table4'  # which of TABLES, below
setting = 'small'  # 'small': what results/ holds, 'real' its photos; 'paper': its sizes, which want a GPU
seeds = ''  # of the students; one teacher, of seed 0; '': those of SEEDS, below
split = ''  # 'test' or 'val'; '': test images, to choose among arms those for validation
jobs = 2  # runs side by side, one CPU thread each; on a GPU 1
train = ''  # more flags for every training run, in one string
student = ''  # more flags for the students, such as --att_norm=none
evaluation = ''  # more flags for evaluate.py
out_dir = 'out/results'  # checkpoints, evaluations
# -----------------------------------------------------------------------------
config_keys = [k for k, v in globals().items() if k[0] != '_' and type(v) in (bool, int, float, str)]
cast = {bool: {'True': True, 'False': False}.__getitem__, int: int, float: float, str: str}
for arg in sys.argv[1:] if __name__ == '__main__' else []:  # --key=value overrides the block above
    if arg in ('-h', '--help'):
        print(__doc__ + open(__file__).read().split('# ' + '-' * 77)[1])
        sys.exit()
    key, eq, val = arg.removeprefix('--').partition('=')
    if not arg.startswith('--') or not eq or key not in config_keys:
        close = difflib.get_close_matches(key, config_keys) or config_keys
        sys.exit(f"{arg}: not a --key=value of this script, closest: {', '.join(close)}")
    try:
        val = cast[type(globals()[key])](val)
        assert isinstance(val, str) or key.endswith(('_interval', 'n_critic', 'batch_size')) <= val < float('inf')
        globals()[key] = val
    except (KeyError, ValueError, AssertionError):
        sys.exit(f"{arg}: wants a {type(globals()[key]).__name__}, finite, 0 or 1 at least, like {globals()[key]!r}")
# -----------------------------------------------------------------------------

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
HAIR, OTHER_HAIR = 'Black_Hair,Blond_Hair,Wearing_Hat,Wavy_Hair', 'Brown_Hair,Gray_Hair,Bald,Straight_Hair'
DRAW = 'data/toyfaces/prepare.py --image_size=32 --n_val=500 --n_test=500 --n_train='
SEVEN = 'Goatee,Rosy_Cheeks,Eyeglasses,Mustache,Blond_Hair,Pale_Skin,Heavy_Makeup'
SETTINGS = {  # data sets, made if there is a command; then flags of every run, of T, S, S-Lite and of evaluate.py
    'small': dict(
        faces='out/results/faces', make_faces=DRAW + '6000 --balance=1 --variety=0.5 --attrs={attrs}',
        hair='out/results/hair', make_hair=DRAW + f'6000 --balance=1 --variety=0.5 --attrs={HAIR},{OTHER_HAIR}',
        expressions='out/results/expressions',
        make_expressions=DRAW + '6000 --n_val=400 --n_test=400 --variety=0.5 --label=expressions',
        attrs=SEVEN,
        run='--n_critic=1 --lr=1e-3 --lambda_rec=20 --batch_size=8 --device=cpu',
        evaluate='--inception=none --device=cpu',
        T='--conv_dim=24 --n_blocks=2 --d_conv_dim=32 --d_n_layers=4 --max_iters=6000 --ckpt_interval=1000',
        S='--conv_dim=12 --n_blocks=1 --max_iters=1000 --ckpt_interval=200',
        S_Lite='--conv_dim=8 --n_blocks=1 --max_iters=1000 --ckpt_interval=200',
        longer=1600, curve=(200, 400, 600, 800),  # what S can do in the time that the loss takes; evaluated after
        late='--max_iters=4000 --ckpt_interval=1000',  # on validation images S without lacks 1.5 points
        lite='--conv_dim=4 --max_iters=4000 --ckpt_interval=1000'),  # 43x smaller than T: 3.8 points
    # 7,000 of CelebA's photos at half size, 003001-010000, split by number, not officially, into 6,000, 500 and 500:
    # python data/celeba/prepare.py --image_size=64 --crop=89 --dst=data/celeba64 --src=<them and their two lists>
    'real': dict(
        faces='celeba64', attrs='Blond_Hair,Eyeglasses,Heavy_Makeup',
        run='--n_critic=1 --lr=1e-3 --lambda_rec=20 --batch_size=8 --device=cpu',
        evaluate='--inception=none --clf_arch=resnet18 --clf_epochs=12 --device=cpu',
        T='--conv_dim=24 --n_blocks=3 --d_conv_dim=24 --d_n_layers=5 --max_iters=4000',
        S='--conv_dim=12 --n_blocks=1 --max_iters=1500 --ckpt_interval=500'),
    'paper': dict(
        faces='celeba', hair='celeba', expressions='folders',  # where RaFD goes
        attrs=SEVEN, run='', evaluate='', T='', S='--conv_dim=32 --n_blocks=3', S_Lite='--conv_dim=16 --n_blocks=1',
        longer=240000, curve=(10000, 20000, 50000, 100000), late='--max_iters=400000',
        lite='--max_iters=400000')}
# the tables: data, the teacher's attributes, which student, and what its arms add to the student's flags
PAPER, MAP = '--lambda_att=10 --att_norm=none', '--lambda_att=10 --att_norm=l2 --cam=hirescam'
PSEUDO = f'--attrs={OTHER_HAIR} --pseudo={HAIR} '
TABLES = {
    'validation': ('faces', '{attrs}', 'S', {
        'without': '--lambda_att=0', 'with': PAPER,
        **{f'with, {cam}, l2, {n}': f'--cam={cam} --att_norm=l2 --lambda_att={n}'
           for cam in ('gradcam', 'hirescam') for n in (1, 3, 10)},  # 30, seed 100 only: 93.8 and 96.2 %
        'with, hirescam, l2, 10, new': MAP + ' --att_new=True'}),
    'table1': ('faces', '{attrs}', 'S', {
        'without': '--lambda_att=0', 'with': PAPER, 'with, gradcam, l2': '--lambda_att=3 --att_norm=l2',
        'with, hirescam, l2': MAP,
        'without, longer': '--lambda_att=0 --max_iters={longer}',
        'control: shuffled maps': MAP + ' --att_shuffle=True',
        'control: untrained T': MAP + ' --teacher={out}/untrained/ckpt.pt'}),
    'table2': ('faces', '{attrs}', 'S_Lite', {'without': '--lambda_att=0', 'with': PAPER, 'with, hirescam, l2': MAP}),
    'table3': ('hair', HAIR, 'S', {'without': PSEUDO + '--lambda_att=0', 'with': PSEUDO + PAPER,
                                   'with, hirescam, l2': PSEUDO + MAP}),
    'table4': ('expressions', 'all', 'S_Lite', {'without': '--lambda_att=0', 'with': PAPER, 'with, hirescam, l2': MAP}),
    'again': ('faces', '{attrs}', 'S', {
        'without': '--lambda_att=0', 'with, hirescam, l2': MAP,
        'without, longer': '--lambda_att=0 --max_iters={longer}',
        'control: shuffled maps': MAP + ' --att_shuffle=True'}),
    'late': ('faces', '{attrs}', 'S', {
        'without': '--lambda_att=0 {late}', 'with': PAPER + ' {late}', 'with, hirescam, l2': MAP + ' {late}',
        'control: shuffled maps': MAP + ' --att_shuffle=True {late}'}),
    'lite': ('faces', '{attrs}', 'S_Lite', {
        'without': '--lambda_att=0 {lite}', 'with': PAPER + ' {lite}', 'with, hirescam, l2': MAP + ' {lite}'}),
    'real': ('faces', '{attrs}', 'S', {'without': '--lambda_att=0', 'with': PAPER, 'with, hirescam, l2': MAP})}
SEEDS = {'validation': '100,101,102', 'again': '5,6,7,8,9,10,11,12,13,14', 'real': '0,1,2'}  # else 0,1,2,3,4
TITLES = {  # the tables beside table1
    'again': 'S, ten more seeds', 'late': 'S, 4,000 iterations', 'table2': 'S-Lite, 1/12 of T',
    'lite': '1/43 of T, 4,000 iterations', 'table3': '"pseudo"-attention', 'table4': 'S-Lite, expressions',
    'real': 'S, photos'}
CURVE = ('without', 'with, hirescam, l2')  # arms of table1 that are evaluated all along
FIGURES = [  # key in evaluate.py's results.json, heading, factor, decimals
    ('accuracy', 'accuracy %', 100, 1), ('fid', 'FID', 1, 2), ('kid', 'KID x100', 100, 3), ('fd_clf', 'FD-clf', 1, 0),
    ('leak', 'leak', 1, 3),
    ('gradcam energy', 'gradcam energy', 1, 2), ('gradcam point', 'point %', 100, 0),
    ('hirescam energy', 'hirescam energy', 1, 2), ('hirescam point', 'point %', 100, 0)]


running = set()  # processes, to be ended with this one


def load(path):
    """A checkpoint."""
    return torch.load(path, map_location='cpu', weights_only=True)


def finished(script, folder, flags):
    """Whether the run in this folder is complete: it is not even started, then. RuntimeError if it had other flags."""
    if not os.path.exists(path := os.path.join(folder, 'ckpt.pt')):
        return False
    was, module = (ckpt := load(path))['config'], importlib.import_module(script.removesuffix('.py'))
    asked = {k: getattr(module, k) for k in module.config_keys}
    asked |= {k: cast[type(asked.get(k, ''))](v) for k, v in (flag[2:].split('=', 1) for flag in shlex.split(flags))}
    free = 'out_dir', 'resume', 'device', 'image_size'  # where it runs, and what the data says
    if asked.get('teacher'):  # whose data and attributes a student has, unless told otherwise
        of = load(asked['teacher'])
        asked['dataset'] = asked['dataset'] or of['config']['dataset']
        asked['attrs'] = asked['attrs'] or ','.join(of['attrs'])
    was = vars(module) | was  # a flag that is newer than the run had its default
    if differ := [k for k, v in asked.items() if k not in free and not k.endswith('_interval') and v != was.get(k)]:
        raise RuntimeError(f'{folder}: was run with other {", ".join(differ)}: another --out_dir=, or remove it')
    return ckpt['iter'] == was['max_iters']


def execute(script, flags, folder='', keep=()):
    """Runs a script of the repository; with folder, a training, resumed, whose checkpoints after the iterations `keep`
    stay there as <iter>.pt. RuntimeError: its last line, if it fails."""
    if folder:
        if finished(script, folder, flags):
            return
        flags = f'{flags} --out_dir={folder} --resume=True'
    print(f'{time.strftime("%H:%M:%S")} python {script} {flags}', flush=True)
    run, kept = subprocess.Popen([sys.executable, script, *shlex.split(flags)], cwd=ROOT, text=True,
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE), None
    running.add(run)
    while run.returncode is None:
        try:
            stdout, stderr = run.communicate(timeout=2)
        except subprocess.TimeoutExpired:
            pass
        if keep and os.path.exists(path := os.path.join(folder, 'ckpt.pt')) and os.stat(path).st_ino != kept:
            kept, it = os.stat(path).st_ino, load(path)['iter']
            it in keep and not os.path.exists(f'{folder}/{it}.pt') and os.link(path, f'{folder}/{it}.pt')
    running.remove(run)
    if run.returncode:
        said = stderr.strip() or stdout.strip() or f'exit {run.returncode}'
        raise RuntimeError(f'python {script} {flags}: {said.splitlines()[-1]}')


def write(path, text):
    """The whole file, or as it was."""
    with open(path + '.tmp', 'w') as f:
        f.write(text)
    os.replace(path + '.tmp', path)


def minutes(folder):
    """What the run in this folder took, beside others, by the iterations per second that its log ends with."""
    rate = re.findall(r'([0-9.]+) it/s', open(os.path.join(folder, 'log.txt')).read())[-1]
    return load(os.path.join(folder, 'ckpt.pt'))['iter'] / float(rate) / 60


def spread(values, factor, decimals):
    """'mean ± standard deviation' over seeds."""
    text = f'{factor * statistics.mean(values):.{decimals}f}'
    return text + (f' ± {factor * statistics.stdev(values):.{decimals}f}' if len(values) > 1 else '')


def difference(arm, base, factor, decimals):
    """'mean [low, high]' of arm - base, seed by seed, with the 95 % interval of Student's t over the seeds."""
    d = [factor * (a - b) for a, b in zip(arm, base)]
    if len(d) == 1:
        return f'{d[0]:+.{decimals}f}'
    low, high = scipy.stats.ttest_1samp(d, 0).confidence_interval()
    return f'{statistics.mean(d):+.{decimals}f} [{low:+.{decimals}f}, {high:+.{decimals}f}]'


def closed(arm, base, teacher):
    """Share of the gap between the teacher and the mean of base that arm closes, %; '-' if seeds hide the gap."""
    gap = teacher - statistics.mean(base)
    if len(base) < 2 or not scipy.stats.ttest_1samp(base, teacher).pvalue < 0.05:  # nan: no gap at all
        return '-'
    return f'{100 * (statistics.mean(arm) - statistics.mean(base)) / gap:.0f}'


def render(result):
    """A table's JSON -> the Markdown that results/ and the README show."""
    keys = [f for f in FIGURES if f[0] in result['T']]
    compared = [f for f in keys if f[0] in ('accuracy', 'fid', 'fd_clf', 'leak')]
    heads = [head for _, head, *_ in keys] + [f'{head.split()[0]} - without' for _, head, *_ in compared]
    lines = ['| | ' + ' | '.join(heads) + ' | gap closed % |',
             '|---' * (len(heads) + 2) + '|',
             '| T | ' + ' | '.join(spread([result['T'][k]], f, n) for k, _, f, n in keys) + ' |' * (len(compared) + 2)]
    base = {k: [seed[k] for seed in result['arms']['without'].values()] for k, *_ in keys}
    for arm, runs in result['arms'].items():
        values = {k: [seed[k] for seed in runs.values()] for k, *_ in keys}
        cells = [spread(values[k], f, n) for k, _, f, n in keys]
        cells += [''] * (len(compared) + 1) if arm == 'without' else [
            *(difference(values[k], base[k], f, n) for k, _, f, n in compared),
            '-' if result['table'] == 'table3' else  # whose T has other attributes
            ' / '.join(closed(values[k], base[k], result['T'][k]) if better * result['T'][k] > better * statistics.mean(
                base[k]) else '-' for k, better in (('accuracy', 1), ('fd_clf', -1)))]
        lines.append(f'| S {arm} | ' + ' | '.join(cells) + ' |')
    if curve := result.get('curve'):
        lines += ['', '| accuracy % after | ' + ' | '.join(f'{int(it):,}' for it in curve) + ' |',
                  '|---' * (len(curve) + 1) + '|']
        lines += [f'| S {arm} | ' + ' | '.join(
            spread([seed['accuracy'] for seed in found[arm].values()], 100, 1) for found in curve.values()) + ' |'
            for arm in next(iter(curve.values()))]
    return '\n'.join(lines) + '\n'


def summary():
    """The tables that results/ holds as JSON -> one of differences to 'without', Markdown, which the README shows."""
    arms, figures = ('with', 'with, hirescam, l2'), [('accuracy', 'accuracy', 100, 1), ('fd_clf', 'FD-clf', 1, 0)]
    heads = ['', 'seeds', 'T, accuracy %', 'S without', *(f'{arm}: {head}' for arm in arms for _, head, *_ in figures)]
    lines = ['| ' + ' | '.join(heads) + ' |', '|---' * len(heads) + '|']
    for name, title in TITLES.items():
        if os.path.exists(path := f'{ROOT}/results/{name}.json'):
            result = json.load(open(path))
            of = {arm: [*result['arms'].get(arm, {}).values()] for arm in ('without', *arms)}
            base = {k: [seed[k] for seed in of['without']] for k, *_ in figures}
            lines.append('| ' + ' | '.join([
                f'[{title}](results/{name}.md)', str(len(of['without'])), spread([result['T']['accuracy']], 100, 1),
                spread(base['accuracy'], 100, 1),
                *(difference([seed[k] for seed in of[arm]], base[k], f, n) if of[arm] else ''
                  for arm in arms for k, _, f, n in figures)]) + ' |')
    return '\n'.join(lines) + '\n'


def run_table(name, known, out):
    """One of TABLES, by the flags `known` of the setting, in the folder out: trains, evaluates, writes, prints."""
    data, attrs, size, arms = TABLES[name]
    on = split or ('val' if name == 'validation' else 'test')
    some = (seeds or SEEDS.get(name, '0,1,2,3,4')).split(',')
    gpu = torch.cuda.is_available() and torch.cuda.get_device_name()
    cpu = open('/proc/cpuinfo').read().partition('model name\t: ')[2].partition('\n')[0]

    # data and teacher
    dataset, make = known[data], known.get('make_' + data)
    make and execute(*f'{make} --dst={dataset}'.format(**known).split(' ', 1))
    teacher, attrs = f'{out}/T-{data}', attrs.format(**known)
    flags = f'--dataset={dataset} --attrs={attrs} {known["run"]} {known["T"]} {train}'
    execute('train_teacher.py', flags, teacher)
    if any('untrained' in arm for arm in arms):
        execute('train_teacher.py', flags + ' --max_iters=0', f'{out}/untrained')

    # students: seeds outermost, so that an early stop leaves whole seeds
    curve = known['curve'] if name == 'table1' else ()
    flags = f'--teacher={teacher}/ckpt.pt {known["run"]} {known[size]} {train}'
    runs = {(arm, seed): (f'{flags} {more} {student} --seed={seed}'.format(out=out, **known),
                          f'{out}/{name}/{re.sub("[^a-zA-Z0-9]+", "-", arm)}-s{seed}')
            for seed in some for arm, more in arms.items()}
    with ThreadPool(max(jobs, 1)) as pool:
        pool.map(lambda run: execute('train_student.py', *run[1], curve if run[0][0] in CURVE else ()),
                 runs.items(), chunksize=1)  # waits for all
    curve = [it for it in curve  # else --train= had other lengths or intervals
             if all(os.path.exists(f'{folder}/{it}.pt') for (arm, _), (_, folder) in runs.items() if arm in CURVE)]

    # evaluation, of some arms also after fewer iterations
    def evaluate(it, which):
        """-> {arm: {seed: figures}} after `it` iterations, '' for the last; with 'T', those of the teacher."""
        ckpts = {key: f'{folder}/{it or "ckpt"}.pt' for key, (_, folder) in runs.items() if key[0] in which}
        folder = f'{out}/{name}/{on}{it}'
        execute('evaluate.py', f'--ckpt={",".join([f"{teacher}/ckpt.pt", *ckpts.values()])} --split={on} '
                               f'--out_dir={folder} --clf_dir={out}/clf {known["evaluate"]} {evaluation}')
        rows = json.load(open(f'{folder}/results.json'))
        notes[it], figures = rows['notes'], {row['path']: {k: row[k] for k, *_ in FIGURES if k in row}
                                             for row in rows['checkpoints']}
        return dict(T=figures[f'{teacher}/ckpt.pt']) | {
            arm: {seed: figures[ckpts[arm, seed]] for seed in some} for arm in which}
    notes = {}
    evaluate('', [])  # trains the classifier, which all share
    with ThreadPool(max(jobs, 1)) as pool:
        found = dict(zip(['', *curve], pool.starmap(
            evaluate, [('', [*arms]), *((it, CURVE) for it in curve)], chunksize=1)))
    figures = found.pop('')
    result = dict(
        table=name, setting=setting, split=on, T=figures['T'], arms={arm: figures[arm] for arm in arms},
        curve={it: {arm: of[arm] for arm in CURVE} for it, of in found.items()},
        command=f'python results/run.py {shlex.join(sys.argv[1:])}',
        flags={arm: runs[arm, some[0]][0] for arm in arms},
        commit=commit, torch=torch.__version__, notes=[line.replace(ROOT + os.sep, '') for line in notes['']],
        hardware=gpu or f'{cpu}, {os.cpu_count()} cores',
        training_minutes=round(sum(minutes(folder) for folder in [teacher, *(folder for _, folder in runs.values())])))
    full = setting != 'paper' and out_dir == 'out/results' and not split + seeds + train + student + evaluation
    folder = 'results' if full else f'{out}/{name}/{on}'  # nothing but a full table replaces one
    write(f'{folder}/{name}.json', json.dumps(result, indent=1) + '\n')
    write(f'{folder}/{name}.md', render(result))
    full and write('results/summary.md', summary())
    print(f'\n{name}, {len(some)} seeds, {on} images\n{render(result)}', flush=True)


if __name__ == '__main__':
    os.environ['OMP_NUM_THREADS'] = '1'
    os.chdir(ROOT)
    out, known = os.path.join(out_dir, setting), SETTINGS.get(setting)
    known or sys.exit(f"--setting={setting}: wants one of {', '.join(SETTINGS)}")
    for name in tables.split(','):
        name in TABLES or sys.exit(f"--tables={name}: wants some of {','.join(TABLES)}")
        (name == 'real') == (setting == 'real') or sys.exit('--tables=real goes with --setting=real, and no other does')
    sys.path.insert(0, ROOT)
    # before anything runs: the tables are tracked files
    commit = subprocess.run('git describe --always --dirty'.split(), capture_output=True, text=True).stdout.strip()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # being ended is like Ctrl-C
    try:
        for name in tables.split(','):
            run_table(name, known, out)
    except (RuntimeError, OSError, KeyboardInterrupt) as e:
        for run in list(running):
            run.terminate()
        sys.exit(str(e) or 'interrupted; the same command goes on')
