"""
Runs the experiments of results/README.md: trains a teacher, and students with and without the
attention loss, with several seeds each, and evaluates them. Finished runs are skipped, interrupted
ones go on, so it may be stopped and started again at any time.

$ python results/run.py                               # tables 1-4 in small, on a CPU: drawn faces, 32 px
$ python results/run.py --tables=table1 --seeds=0     # one of them, one seed
$ python results/run.py --tables=validation           # the trials that chose the weights in table 1
$ python results/run.py --tables=again                # ten more seeds of its best arm and of three others
$ python results/run.py --tables=late,lite            # longer: S, and a student 43x smaller than T
$ python results/run.py --tables=uag                  # the other system: attention-guided translation
$ python results/run.py --tables=real --setting=real  # photos of 64 px: data/celeba/prepare.py
$ python results/run.py --setting=paper --jobs=1      # the paper's sizes: CelebA, 128 px, a GPU
$ python results/run.py --page=True                   # trains nothing: only makes the pages again

A table that is run like this, with all its seeds, is written to results/<table>.json: figures of
every seed, commands, machine, minutes. From these files alone come the tables in results/README.md,
the summary in README.md and results/summary.svg. With other flags a table stays below out_dir.
"""

import difflib
import html
import importlib
import json
import math
import os
import platform
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
tables = 'table1,table2,table3,table4'  # which of the TABLES below
setting = 'small'  # 'small': what results/ holds; 'real': photos; 'paper': its sizes, for a GPU
seeds = ''  # seeds of the students, such as 0,1; '': those of the table; the teacher's is always 0
split = ''  # evaluate on 'test' or 'val' images; '': on 'val' for the table validation, else 'test'
jobs = 2  # runs side by side, one CPU thread each; on a GPU 1
train = ''  # more flags for every training run, in one string
student = ''  # more flags for the students only, such as --att_norm=none
evaluation = ''  # more flags for evaluate.py
out_dir = 'out/results'  # checkpoints and evaluations
page = False  # True: only make the pages and the figure again from results/*.json
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

# -----------------------------------------------------------------------------
# experiments: what is trained
SEVEN = 'Goatee,Rosy_Cheeks,Eyeglasses,Mustache,Blond_Hair,Pale_Skin,Heavy_Makeup'
HAIR = 'Black_Hair,Blond_Hair,Wearing_Hat,Wavy_Hair'
OTHER_HAIR = 'Brown_Hair,Gray_Hair,Bald,Straight_Hair'
DRAW_FACES = 'data/toyfaces/prepare.py --image_size=32 --n_train=6000 --variety=0.5'
SHORT = '--n_critic=1 --lr=1e-3 --lambda_rec=20 --batch_size=8 --device=cpu'
SETTINGS = {
    'small': {
        # Data sets, and the commands that draw them.
        'faces': 'out/results/faces',
        'make_faces': f'{DRAW_FACES} --n_val=500 --n_test=500 --balance=1 --attrs={SEVEN}',
        'hair': 'out/results/hair',
        'make_hair': f'{DRAW_FACES} --n_val=500 --n_test=500 --balance=1 --attrs={HAIR},{OTHER_HAIR}',
        'expressions': 'out/results/expressions',
        'make_expressions': f'{DRAW_FACES} --n_val=400 --n_test=400 --label=expressions',
        'fruit': 'out/results/fruit',
        'make_fruit': 'data/toyfruit/prepare.py --n_train=1000 --n_test=100',
        # Flags of every StarGAN, of the teacher T, of the students S and S-Lite.
        'all': SHORT,
        'T': '--conv_dim=24 --n_blocks=2 --d_conv_dim=32 --d_n_layers=4 --max_iters=6000 '
             '--ckpt_interval=1000',
        'S': '--conv_dim=12 --n_blocks=1 --max_iters=1000 --ckpt_interval=200',
        'S-Lite': '--conv_dim=8 --n_blocks=1 --max_iters=1000 --ckpt_interval=200',
        # S without the loss can train for so long in the time that S takes with hirescam's.
        'longer': '--max_iters=1600',
        'late': '--max_iters=4000 --ckpt_interval=1000',
        'lite': '--conv_dim=4 --max_iters=4000 --ckpt_interval=1000',
        # Table 1 is also evaluated after so many iterations.
        'curve': (200, 400, 600, 800),
        # The flags of make demo-uag.
        'UAG': '--ngf=16 --n_blocks=3 --ndf=32 --naf=16 --d_n_layers=2 --batch_size=2 --lr=1e-3 '
               '--lambda_cyc=5 --n_epochs=3.6 --switch_at=0.83 --decay_at=0.83 --device=cpu '
               '--ckpt_interval=250',
        'evaluate': '--inception=none --device=cpu',
        'evaluate_uag': '--clf_epochs=2'},
    # 7,000 photos of CelebA at half size, 003001 to 010000, split by number into 6,000, 500 and 500:
    # python data/celeba/prepare.py --image_size=64 --crop=89 --dst=data/celeba64 --src=<folder>
    'real': {
        'faces': 'celeba64',
        'all': SHORT,
        'T': '--attrs=Blond_Hair,Eyeglasses,Heavy_Makeup --conv_dim=24 --n_blocks=3 --d_conv_dim=24 '
             '--d_n_layers=5 --max_iters=4000',
        'S': '--conv_dim=12 --n_blocks=1 --max_iters=1500 --ckpt_interval=500',
        'evaluate': '--inception=none --clf_arch=resnet18 --clf_epochs=12 --device=cpu'},
    # The defaults of the scripts are the paper's.
    'paper': {
        'faces': 'celeba',
        'hair': 'celeba',
        'expressions': 'folders',
        'fruit': 'unpaired',
        'all': '',
        'T': '',
        'S': '--conv_dim=32 --n_blocks=3',
        'S-Lite': '--conv_dim=16 --n_blocks=1',
        'longer': '--max_iters=240000',
        'late': '--max_iters=400000',
        'lite': '--max_iters=400000',
        'curve': (10000, 20000, 50000, 100000),
        'UAG': '',
        'evaluate': '',
        'evaluate_uag': ''}}

# The arms of a table: name -> the flags that it adds to those of all students. {longer} and the
# like are entries of the setting, {out} is the folder of its runs.
WITHOUT = '--lambda_att=0'
PAPER_LOSS = '--lambda_att=10 --att_norm=none'
HIRESCAM = '--lambda_att=10 --att_norm=l2 --cam=hirescam'
SHUFFLED = f'{HIRESCAM} --att_shuffle=True'
PSEUDO = f'--attrs={OTHER_HAIR} --pseudo={HAIR}'
THREE_ARMS = {'without': WITHOUT, 'with': PAPER_LOSS, 'with, hirescam, l2': HIRESCAM}
FIVE_SEEDS = '0,1,2,3,4'
TABLES = {
    'table1': {
        'data': 'faces',
        'net': 'S',
        'seeds': FIVE_SEEDS,
        'arms': {
            'without': WITHOUT,
            'with': PAPER_LOSS,
            'with, gradcam, l2': '--lambda_att=3 --att_norm=l2',
            'with, hirescam, l2': HIRESCAM,
            'without, longer': f'{WITHOUT} {{longer}}',
            'control: shuffled maps': SHUFFLED,
            'control: untrained T': f'{HIRESCAM} --teacher={{out}}/untrained/ckpt.pt'}},
    'table2': {'data': 'faces', 'net': 'S-Lite', 'seeds': FIVE_SEEDS, 'arms': THREE_ARMS},
    'table3': {
        'data': 'hair',
        'net': 'S',
        'seeds': FIVE_SEEDS,
        'arms': {arm: f'{PSEUDO} {flags}' for arm, flags in THREE_ARMS.items()}},
    'table4': {'data': 'expressions', 'net': 'S-Lite', 'seeds': FIVE_SEEDS, 'arms': THREE_ARMS},
    'again': {
        'data': 'faces',
        'net': 'S',
        'seeds': '5,6,7,8,9,10,11,12,13,14',
        'arms': {
            'without': WITHOUT,
            'with, hirescam, l2': HIRESCAM,
            'without, longer': f'{WITHOUT} {{longer}}',
            'control: shuffled maps': SHUFFLED}},
    'late': {
        'data': 'faces',
        'net': 'S',
        'seeds': FIVE_SEEDS,
        'arms': {
            'without': f'{WITHOUT} {{late}}',
            'with': f'{PAPER_LOSS} {{late}}',
            'with, hirescam, l2': f'{HIRESCAM} {{late}}',
            'control: shuffled maps': f'{SHUFFLED} {{late}}'}},
    'lite': {
        'data': 'faces',
        'net': 'S-Lite',
        'seeds': FIVE_SEEDS,
        'arms': {arm: f'{flags} {{lite}}' for arm, flags in THREE_ARMS.items()}},
    'real': {'data': 'faces', 'net': 'S', 'seeds': '0,1,2', 'arms': THREE_ARMS},
    'validation': {
        'data': 'faces',
        'net': 'S',
        'seeds': '100,101,102',
        'arms': {
            'without': WITHOUT,
            'with': PAPER_LOSS,
            'with, gradcam, l2, 1': '--cam=gradcam --att_norm=l2 --lambda_att=1',
            'with, gradcam, l2, 3': '--cam=gradcam --att_norm=l2 --lambda_att=3',
            'with, gradcam, l2, 10': '--cam=gradcam --att_norm=l2 --lambda_att=10',
            'with, hirescam, l2, 1': '--cam=hirescam --att_norm=l2 --lambda_att=1',
            'with, hirescam, l2, 3': '--cam=hirescam --att_norm=l2 --lambda_att=3',
            'with, hirescam, l2, 10': '--cam=hirescam --att_norm=l2 --lambda_att=10'}},
    'uag': {
        'data': 'fruit',
        'net': 'UAG',
        'seeds': '0,1,2',
        'arms': {'UAG': '', 'Ours-D': '--masked_d=False', 'CycleGAN': '--attention=False'}}}
# What the teacher is told to learn. The photos' attributes stand in their setting.
TEACHER_ATTRS = {'hair': f'--attrs={HAIR}', 'expressions': '--attrs=all'}
# The arms of table 1 that are evaluated all along.
CURVE_ARMS = ('without', 'with, hirescam, l2')
# Key in evaluate.py's results.json, name of the figure, factor, decimals.
QUALITY = [('accuracy', 'accuracy %', 100, 1), ('fid', 'FID', 1, 2), ('kid', 'KID x100', 100, 3),
           ('fd_clf', 'FD-clf', 1, 1), ('leak', 'leak', 1, 3)]
MAPS = [('gradcam energy', 'gradcam energy', 1, 2), ('gradcam point', 'gradcam pointing %', 100, 0),
        ('gradcam agreement', 'gradcam agreement', 1, 2),
        ('hirescam energy', 'hirescam energy', 1, 2), ('hirescam point', 'hirescam pointing %', 100, 0),
        ('hirescam agreement', 'hirescam agreement', 1, 2)]
FRUIT = [('IoU', 'IoU', 1, 2), ('A inside', 'map inside', 1, 2), ('A outside', 'map outside', 1, 3),
         ('leak', 'leak', 1, 4), ('object', 'change', 1, 2), ('fd_clf', 'FD-clf', 1, 1),
         ('accuracy', 'accuracy %', 100, 1)]
KEPT = {key for key, *_ in QUALITY + MAPS + FRUIT}


# -----------------------------------------------------------------------------
# running
class Stop(Exception):
    """A run that failed, or that had other flags: the message is all that a user needs."""


# Processes that must end when this one does.
running = set()


def load(path):
    return torch.load(path, map_location='cpu', weights_only=True)


def write(path, text):
    """Replaces the file when the new one is complete."""
    with open(f'{path}.tmp', 'w', encoding='utf-8') as f:
        f.write(text)
    os.replace(f'{path}.tmp', path)


def read(path):
    with open(path, encoding='utf-8', errors='backslashreplace') as f:
        return f.read()


def values_of(flags, defaults):
    """'--key=value --key=value' -> {key: value}, of the type of the script's defaults."""
    values = {}
    for flag in shlex.split(flags):
        key, _, value = flag.removeprefix('--').partition('=')
        if isinstance(defaults.get(key), bool):
            values[key] = value == 'True'
        else:
            values[key] = type(defaults.get(key, ''))(value)
    return values


def finished(script, folder, flags):
    """Whether the run in this folder is complete. Stop if it was made with other flags."""
    if not os.path.exists(f'{folder}/ckpt.pt'):
        return False
    ckpt = load(f'{folder}/ckpt.pt')
    module = importlib.import_module(script.removesuffix('.py'))
    defaults = {key: getattr(module, key) for key in module.config_keys}
    # A flag that is newer than the run had its default.
    had = defaults | ckpt['config']
    wanted = defaults | values_of(flags, defaults)
    if wanted.get('teacher'):
        # A student has its teacher's data and attributes, unless it is told otherwise.
        teacher = load(wanted['teacher'])
        wanted['dataset'] = wanted['dataset'] or teacher['config']['dataset']
        wanted['attrs'] = wanted['attrs'] or ','.join(teacher['attrs'])
    # Where a run writes and computes, and what the data says, may differ.
    free = ('out_dir', 'resume', 'device', 'image_size')
    differ = []
    for key, value in wanted.items():
        if key not in free and not key.endswith('_interval') and value != had.get(key):
            differ.append(f'--{key}={had.get(key)}')
    if differ:
        had_flags = ' '.join(differ)
        raise Stop(f'{folder}: was run with {had_flags}: choose another --out_dir= or remove it')
    if 'max_iters' in had:
        return ckpt['iter'] == had['max_iters']
    # train_uag.py counts epochs; its log has the iterations: 'iter  250/1000'.
    lengths = re.findall(r'^iter +\d+/(\d+)', read(f'{folder}/log.txt'), re.MULTILINE)
    return lengths != [] and ckpt['iter'] == int(lengths[-1])


def execute(script, flags, meanwhile=None):
    """Runs a script, calls meanwhile() every two seconds. Stop, with its last line, if it fails."""
    print(f'{time.strftime("%H:%M:%S")} python {script} {flags}', flush=True)
    command = [sys.executable, script, *shlex.split(flags)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, encoding='utf-8', errors='backslashreplace')
    running.add(process)
    while process.returncode is None:
        try:
            output, errors = process.communicate(timeout=2)
        except subprocess.TimeoutExpired:
            pass
        if meanwhile:
            meanwhile()
    running.discard(process)
    if process.returncode:
        message = errors.strip() or output.strip() or f'it ended with code {process.returncode}'
        raise Stop(f'python {script} {flags}: {message.splitlines()[-1]}')


def train_one(script, flags, folder, kept_iters=()):
    """Trains, or goes on training, in a folder. Checkpoints after kept_iters stay, as <iter>.pt."""
    if finished(script, folder, flags):
        return

    def keep_checkpoint():
        if not kept_iters or not os.path.exists(f'{folder}/ckpt.pt'):
            return
        # A second name for the file. The script does not write into it, but replaces it.
        os.link(f'{folder}/ckpt.pt', f'{folder}/new.pt')
        it = load(f'{folder}/new.pt')['iter']
        if it in kept_iters and not os.path.exists(f'{folder}/{it}.pt'):
            os.rename(f'{folder}/new.pt', f'{folder}/{it}.pt')
        else:
            os.remove(f'{folder}/new.pt')

    execute(script, f'{flags} --out_dir={folder} --resume=True', keep_checkpoint)


def minutes(folder):
    """How long the run in this folder took, by the iterations per second at the end of its log."""
    rates = re.findall(r'([0-9.]+) it/s', read(f'{folder}/log.txt'))
    return load(f'{folder}/ckpt.pt')['iter'] / float(rates[-1]) / 60


def side_by_side(function, arguments):
    """[function(*a) for a in arguments], `jobs` at a time."""
    with ThreadPool(jobs) as pool:
        return pool.starmap(function, arguments, chunksize=1)


def train_table(name, known, out):
    """Makes the data, trains all nets of a table. -> teacher's path, {(arm, seed): (flags, folder)}"""
    table = TABLES[name]
    dataset = known[table['data']]
    draw = known.get('make_' + table['data'])
    if draw:
        script, _, flags = draw.partition(' ')
        execute(script, f'{flags} --dst={dataset}')

    if name == 'uag':
        teacher = ''
        script = 'train_uag.py'
        flags = f"--dataset={dataset} {known['UAG']} {train}"
    else:
        teacher = f"{out}/T-{table['data']}/ckpt.pt"
        script = 'train_student.py'
        flags = f"--teacher={teacher} {known['all']} {known[table['net']]} {train}"
        attrs = TEACHER_ATTRS.get(table['data'], '')
        teacher_flags = f"--dataset={dataset} {attrs} {known['all']} {known['T']} {train}"
        train_one('train_teacher.py', teacher_flags, os.path.dirname(teacher))
        if 'control: untrained T' in table['arms']:
            train_one('train_teacher.py', f'{teacher_flags} --max_iters=0', f'{out}/untrained')

    # Seeds are the outer loop, so that an early stop leaves all arms of some seeds.
    runs = {}
    trainings = []
    for seed in (seeds or table['seeds']).split(','):
        for arm, arm_flags in table['arms'].items():
            folder = f"{out}/{name}/{re.sub('[^a-zA-Z0-9]+', '-', arm)}-s{seed}"
            all_flags = f'{flags} {arm_flags.format(out=out, **known)} {student} --seed={seed}'
            kept_iters = known['curve'] if name == 'table1' and arm in CURVE_ARMS else ()
            runs[arm, seed] = (all_flags, folder)
            trainings.append((script, all_flags, folder, kept_iters))
    side_by_side(train_one, trainings)
    return teacher, runs


def evaluate_table(known, name, on, out, teacher, ckpts, folder):
    """Runs evaluate.py on the teacher and on ckpts, {arm: {seed: path}}.

    -> the teacher's figures, those of the arms, {row: {seed: {key: value}}}, and evaluate.py's notes.
    A row is an arm, for UAG one direction of an arm.
    """
    rows = ['+'.join(of_arm.values()) for of_arm in ckpts.values()]
    if teacher:
        rows.insert(0, teacher)
    flags = known['evaluate']
    if name == 'uag':
        flags += ' ' + known['evaluate_uag']
    where = f'--split={on} --out_dir={folder} --clf_dir={out}/clf'
    execute('evaluate.py', f"--ckpt={','.join(rows)} {where} {flags} {evaluation}")
    results = json.loads(read(f'{folder}/results.json'))

    kept = {}
    for net in results['checkpoints']:
        figures = {key: value for key, value in net.items() if key in KEPT}
        direction = f" -> {net['targets'][0]}" if name == 'uag' else ''
        kept.setdefault(direction, {})[net['path']] = figures
    arms = {}
    for arm, of_arm in ckpts.items():
        for direction, by_path in kept.items():
            arms[arm + direction] = {seed: by_path[path] for seed, path in of_arm.items()}
    return kept[''][teacher] if teacher else {}, arms, results['notes']


def evaluate_all(name, known, on, out, teacher, runs):
    """-> the teacher's figures, the arms', notes, and {iteration: the arms' figures then}"""
    def paths(arms, file_name):
        ckpts = {}
        for arm, seed in runs:
            if arm in arms:
                ckpts.setdefault(arm, {})[seed] = f'{runs[arm, seed][1]}/{file_name}.pt'
        return ckpts

    common = (known, name, on, out, teacher)
    evaluations = [(*common, paths(TABLES[name]['arms'], 'ckpt'), f'{out}/{name}/{on}')]
    curve = []
    for it in known['curve'] if name == 'table1' else ():
        ckpts = paths(CURVE_ARMS, it)
        # Runs with other lengths or intervals, by --train=, have not left all of these.
        missing = [folder for (arm, _), (_, folder) in runs.items()
                   if arm in CURVE_ARMS and not os.path.exists(f'{folder}/{it}.pt')]
        if not missing:
            evaluations.append((*common, ckpts, f'{out}/{name}/{on}{it}'))
            curve.append(it)
    if curve:
        # The teacher alone: this trains the classifier, which the others then find.
        evaluate_table(*common, {}, f'{out}/{name}/{on}')
    done = side_by_side(evaluate_table, evaluations)
    of_teacher, arms, notes = done[0]
    arms_then = [later[1] for later in done[1:]]
    return of_teacher, arms, notes, dict(zip(curve, arms_then))


def computer():
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    if os.path.exists('/proc/cpuinfo'):
        found = re.search(r'model name\s*: (.*)', read('/proc/cpuinfo'))
        name = found[1] if found else name
    return f'{name}, {os.cpu_count()} cores'


def code_version():
    """The commit that runs. 'dirty' is one with changes."""
    try:
        command = ['git', 'describe', '--always', '--dirty']
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ''


def run_table(name, known, out, commit=''):
    """Trains and evaluates one of TABLES, by the entries `known` of a setting, below the folder out."""
    on = split or ('val' if name == 'validation' else 'test')
    teacher, runs = train_table(name, known, out)
    of_teacher, arms, notes, curve = evaluate_all(name, known, on, out, teacher, runs)
    folders = [folder for _, folder in runs.values()]
    if teacher:
        folders.append(os.path.dirname(teacher))
    flags = {}
    for (arm, _), (flags_of_run, _) in runs.items():
        flags.setdefault(arm, flags_of_run)
    result = {
        'table': name,
        'setting': setting,
        'split': on,
        'T': of_teacher,
        'arms': arms,
        'curve': curve,
        'command': f'python results/run.py {shlex.join(sys.argv[1:])}',
        'flags': flags,
        'commit': commit,
        'torch': torch.__version__,
        'notes': [line.replace(ROOT + os.sep, '') for line in notes],
        'hardware': computer(),
        'training_minutes': round(sum(minutes(folder) for folder in folders))}
    # Only a whole table replaces one in results/.
    changed = f'{split}{seeds}{train}{student}{evaluation}'
    whole = setting in ('small', 'real') and out_dir == 'out/results' and not changed
    folder = f'{ROOT}/results' if whole else f'{out}/{name}/{on}'
    write(f'{folder}/{name}.json', json.dumps(result, indent=1) + '\n')
    if whole:
        make_pages()
    else:
        write(f'{folder}/{name}.md', table_text(result))
    print(f'\n{folder}/{name}.json\n\n{table_text(result)}', flush=True)


# -----------------------------------------------------------------------------
# tables and pages: made from results/*.json alone
# What the arms are called on the pages.
WORDS = {
    'T': 'T, the teacher',
    'without': 'without the loss',
    'with': "the paper's loss",
    'with, gradcam, l2': 'gradcam, l2',
    'with, hirescam, l2': 'hirescam, l2',
    'without, longer': 'without, trained longer',
    'control: untrained T': 'control: untrained teacher'}
# The settings in the order of the figure: title, and the published gain in accuracy, if any.
TITLES = {
    'table1': ('Seven attributes, small student', 2.25),
    'again': ('The same, ten other seeds', None),
    'late': ('The same, 4 times as long', None),
    'table2': ('Smaller student', 2.80),
    'lite': ('Smallest student, 4 times as long', None),
    'table3': ('“Pseudo”-attention: other hair', 9.47),
    'table4': ('Expressions, smaller student', 1.11),
    'real': ('Photos, small student', None)}
# The colours of Okabe and Ito, which colour-blind people can tell apart, and what the legend says.
COLOURS = {
    'with': ('#D55E00', "the paper's loss"),
    'with, hirescam, l2': ('#0072B2', 'hirescam loss'),
    'with, gradcam, l2': ('#009E73', "paper's loss, l2"),
    'without, longer': ('#E69F00', 'longer training'),
    'control: shuffled maps': ('#CC79A7', 'control: shuffled'),
    'control: untrained T': ('#777777', 'control: untrained')}


def figures(result, arm, key):
    """One figure of an arm, or of the teacher 'T', for each seed. [] if it was not measured."""
    seeds_of_arm = [result['T']] if arm == 'T' else result['arms'][arm].values()
    values = [of_seed.get(key) for of_seed in seeds_of_arm]
    return [] if None in values else values


def differences(result, arm, key):
    """The arm minus the student without the loss, seed by seed."""
    if not figures(result, arm, key) or not figures(result, 'without', key):
        return []
    base = result['arms']['without']
    return [of_seed[key] - base[seed][key] for seed, of_seed in result['arms'][arm].items()]


def interval(values):
    """95 % interval of the mean, by Student's t with n - 1 degrees of freedom. One value tells nothing."""
    n = len(values)
    if n < 2:
        return -math.inf, math.inf
    half = scipy.stats.t.ppf(0.975, n - 1) * statistics.stdev(values) / n ** 0.5
    mean = statistics.mean(values)
    return mean - half, mean + half


def gap_closed(of_arm, of_base, of_teacher, better):
    """The share of the teacher's lead over the base that the arm wins, %.

    better: 1 if more is better, -1 if less is. None if there is no lead, or none that a t test over
    the base's seeds confirms with p < 0.05.
    """
    base = statistics.mean(of_base)
    lead = of_teacher - base
    if len(of_base) < 2 or better * lead <= 0:
        return None
    # Without any spread the p-value is not a number.
    if not scipy.stats.ttest_1samp(of_base, of_teacher).pvalue < 0.05:
        return None
    return 100 * (statistics.mean(of_arm) - base) / lead


def arm_words(arm):
    return WORDS.get(arm, arm.removeprefix('with, '))


def markdown(header, rows):
    """Cells -> a table, numbers at the right."""
    lines = ['| ' + ' | '.join(header) + ' |', '|---' + '|--:' * (len(header) - 1) + '|']
    for row in rows:
        lines.append('| ' + ' | '.join(row) + ' |')
    return '\n'.join(lines) + '\n'


def mean_text(values, factor, decimals):
    return f'{factor * statistics.mean(values):,.{decimals}f}' if values else ''


def deviation_text(values, factor, decimals):
    return f'{factor * statistics.stdev(values):,.{decimals}f}' if len(values) > 1 else ''


def comparison(result, key, name, factor, decimals):
    """A table of one figure: each arm, and its difference to "without", seed by seed."""
    header = ['', name, 'deviation', 'difference', 'from', 'to']
    rows = []
    for arm in ['T', *result['arms']]:
        values = figures(result, arm, key)
        row = [arm_words(arm), mean_text(values, factor, decimals),
               deviation_text(values, factor, decimals), '', '', '']
        if arm not in ('T', 'without'):
            change = [factor * value for value in differences(result, arm, key)]
            if change:
                row[3] = f'{statistics.mean(change):+.{decimals}f}'
            if len(change) > 1:
                low, high = interval(change)
                row[4] = f'{low:+.{decimals}f}'
                row[5] = f'{high:+.{decimals}f}'
        rows.append(row)
    # The teacher of "pseudo"-attention has other attributes, so it has no lead to catch up with.
    teachers_lead = {'accuracy': 1, 'fd_clf': -1, 'fid': -1, 'kid': -1}
    if key in teachers_lead and result['table'] != 'table3':
        closed = []
        for arm in result['arms']:
            share = None
            if arm != 'without':
                share = gap_closed(figures(result, arm, key), figures(result, 'without', key),
                                   result['T'][key], teachers_lead[key])
            closed.append('' if share is None else f'{share:.0f}')
        if any(closed):
            header.append('gap closed %')
            for row, share in zip(rows, ['', *closed]):
                row.append(share)
    return markdown(header, rows)


def several(result, columns, text=mean_text):
    """A table of several figures: their means over the seeds, or what else `text` makes of those."""
    arms = ['T', *result['arms']] if result['T'] else [*result['arms']]
    shown = []
    for column in columns:
        if any(figures(result, arm, column[0]) for arm in arms):
            shown.append(column)
    rows = []
    for arm in arms:
        row = [arm_words(arm)]
        for key, _, factor, decimals in shown:
            row.append(text(figures(result, arm, key), factor, decimals))
        rows.append(row)
    return markdown(['', *(name for _, name, _, _ in shown)], rows) if shown else ''


def curve_table(result):
    """Accuracy along the training."""
    header = ['iterations']
    for arm in CURVE_ARMS:
        header += [WORDS[arm], 'deviation']
    rows = []
    for it, arms in result['curve'].items():
        row = [f'{int(it):,}']
        for arm in CURVE_ARMS:
            values = [of_seed['accuracy'] for of_seed in arms[arm].values()]
            row += [mean_text(values, 100, 1), deviation_text(values, 100, 1)]
        rows.append(row)
    return markdown(header, rows)


def source(result):
    """A sentence that says where a table comes from."""
    n_seeds = len(next(iter(result['arms'].values())))
    # The last note of evaluate.py that counts images says on what it was measured.
    counted = [note for note in result['notes'] if ' images of ' in note]
    measured = counted[-1].split('; ')[0] if counted else f"{result['split']} images"
    version = f"commit {result['commit']}, " if result['commit'] else ''
    return (f"`{result['command']}`: {n_seeds} seeds an arm; {measured}; {version}"
            f"torch {result['torch'].partition('+')[0]}, {result['hardware']}; "
            f"{result['training_minutes']} minutes of training in all, one core each.\n")


def folded(title, text):
    return f'<details><summary>{title}</summary>\n\n{text}\n</details>\n' if text else ''


def table_text(result):
    """A table's JSON -> Markdown."""
    if result['table'] == 'uag':
        deviations = several(result, FRUIT, deviation_text)
        deviations = folded('deviation over the seeds', deviations)
        return '\n'.join([several(result, FRUIT), deviations, source(result)])
    measured = []
    for column in QUALITY:
        if figures(result, 'T', column[0]):
            measured.append(column)
    parts = [comparison(result, *measured[0])]
    if result['curve']:
        parts += ['Accuracy on the way, %:\n', curve_table(result)]
    for column in measured[1:]:
        parts.append(folded(column[1], comparison(result, *column)))
    maps = several(result, MAPS)
    if maps:
        parts.append(folded('maps', maps))
        parts.append(folded('maps: deviation over the seeds', several(result, MAPS, deviation_text)))
    parts.append(source(result))
    return '\n'.join(part for part in parts if part)


def overview(results):
    """All settings: teacher, student without the loss, the difference that a loss makes."""
    header = ['', 'seeds', 'T, accuracy %', 'S without', "paper's loss", 'hirescam, l2']
    rows = []
    for name, (title, _) in TITLES.items():
        if name not in results:
            continue
        result = results[name]
        row = [title, str(len(result['arms']['without'])),
               mean_text(figures(result, 'T', 'accuracy'), 100, 1),
               mean_text(figures(result, 'without', 'accuracy'), 100, 1)]
        for arm in ('with', 'with, hirescam, l2'):
            change = differences(result, arm, 'accuracy') if arm in result['arms'] else []
            row.append(f'{100 * statistics.mean(change):+.1f}' if change else '')
        rows.append(row)
    return markdown(header, rows)


def summary(results):
    """What the README says of all settings together, in sentences."""
    ranges = []
    intervals = []
    for arm, words in (('with', "the paper's loss"), ('with, hirescam, l2', 'the hirescam loss')):
        means = []
        for name in TITLES:
            if name != 'real' and name in results and arm in results[name]['arms']:
                change = differences(results[name], arm, 'accuracy')
                means.append(100 * statistics.mean(change))
                intervals.append(interval(change))
        ranges.append(f'with {words} by {min(means):+.1f} to {max(means):+.1f} points ({len(means)} settings)')
    above = len([low for low, high in intervals if low > 0])
    below = len([high for low, high in intervals if high < 0])
    lines = [f"On drawn faces the student's accuracy changes {ranges[0]}, {ranges[1]}.",
             f'Of the 95 % intervals of these {len(intervals)} differences, {above or "none"} lie wholly above '
             f'zero and {below or "none"} wholly below.']
    if 'table1' in results:
        energies = []
        for arm in ('without', 'with, hirescam, l2', 'T', 'control: shuffled maps'):
            energies.append(mean_text(figures(results['table1'], arm, 'hirescam energy'), 1, 1))
        lines.append('Where the student looks does change. In the first setting the energy of its map, where 1 '
                     f'is chance, is {energies[0]} without the loss and {energies[1]} with hirescam; the '
                     f"teacher's is {energies[2]}. With the maps of other images it is {energies[3]}: the student may "
                     'learn no more than where such an attribute is on any face.')
    return '\n'.join(lines) + '\n'


def signed(value, decimals=1):
    """A number for a figure, with its sign: 1.04 -> '+1.0', -0.2 -> '−0.2'."""
    return f'{value:+.{decimals}f}'.replace('-', '−')


def svg_text(x, y, text, style=''):
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{html.escape(text)}</text>'


def figure_rows(results):
    """What summary.svg shows: [(title, details, [(colour, label, differences or published gain)])]."""
    rows = []
    for name, (title, published) in TITLES.items():
        if name not in results:
            continue
        result = results[name]
        without = figures(result, 'without', 'accuracy')
        lines = []
        for arm, (colour, label) in COLOURS.items():
            if arm in result['arms']:
                change = [100 * value for value in differences(result, arm, 'accuracy')]
                lines.append((colour, label, change))
        if published is not None:
            lines.append(('#000000', 'as published', published))
        about = f'{len(without)} seeds; without the loss {100 * statistics.mean(without):.1f} %'
        rows.append((title, about, lines))
    return rows


def draw_summary(results):
    """results/summary.svg: a point and its 95 % interval for each setting and arm."""
    # Points of accuracy from -limit to limit are drawn between the pixels left and right.
    limit = 12
    left = 252
    right = 548
    line_height = 19
    scale = (right - left) / (2 * limit)
    zero = (left + right) / 2
    rows = figure_rows(results)

    top = 112
    drawn = []
    y = top
    for title, about, lines in rows:
        y += 12
        drawn.append(f'<line x1="16" x2="884" y1="{y}" y2="{y}" stroke="#dddddd"/>')
        drawn.append(svg_text(16, y + 19, title, 'font-weight="bold"'))
        drawn.append(svg_text(16, y + 37, about, 'fill="#555555" font-size="12"'))
        for number, (colour, label, change) in enumerate(lines):
            middle = y + 14 + line_height * number
            drawn += figure_line(colour, label, change, middle, zero, scale, limit)
        y += line_height * max(2, len(lines)) + 4
    bottom = y + 6

    grid = []
    for points in (-10, -5, 0, 5, 10):
        x = zero + scale * points
        style = 'stroke="#000000" stroke-width="1.5"' if points == 0 else 'stroke="#e4e4e4"'
        grid.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}" {style}/>')
        for at in (top - 6, bottom + 16):
            grid.append(svg_text(x, at, signed(points, 0) if points else '0', 'text-anchor="middle"'))
    head = [
        svg_text(16, 28, 'Does the attention loss make a student more accurate?',
                 'font-size="17" font-weight="bold"'),
        svg_text(16, 50, 'Accuracy with the loss minus that of the same student without it, in points.'),
        svg_text(16, 70, 'Point: mean over the seeds. Line: its 95 % interval; '
                         'one that crosses zero shows no gain or loss.'),
        svg_text(left, 92, '← worse', 'fill="#555555"'),
        svg_text(right, 92, 'better →', 'text-anchor="end" fill="#555555"'),
        svg_text(602, 106, 'mean', 'text-anchor="end" fill="#555555"'),
        svg_text(614, 106, '95 % interval', 'fill="#555555"'),
        svg_text(738, 106, 'student with', 'fill="#555555"')]
    notes = ['Everything but the last setting: drawn faces of 32 px. As published: CelebA or RaFD at 128 px.',
             'hirescam: maps whose gradient is not averaged. l2: maps compared up to their scale. '
             'Arrowheads: the interval goes on.',
             "shuffled: the teacher's maps of other images. "
             'untrained: maps of a teacher that has learned nothing.']
    foot = []
    for number, note in enumerate(notes):
        foot.append(svg_text(16, bottom + 42 + 18 * number, note, 'fill="#555555" font-size="12"'))
    height = bottom + 92
    # The light panel makes it readable on a dark page, too.
    return '\n'.join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="900" height="{height}" viewBox="0 0 900 {height}" '
        'font-family="system-ui, sans-serif" font-size="13">',
        '<title>Change of accuracy by the attention loss, for every setting</title>',
        f'<rect x="0.5" y="0.5" width="899" height="{height - 1}" rx="8" '
        'fill="#ffffff" stroke="#cccccc"/>',
        *head, *grid, *drawn, *foot, '</svg>']) + '\n'


def figure_line(colour, label, change, y, zero, scale, limit):
    """One arm in one setting: interval, mean, both in numbers, name. A published gain is a diamond."""
    if isinstance(change, float):
        mean = signed(change, 2)
        span = 'no spread given'
        diamond = f'{y - 6}l6 6l-6 6l-6 -6z" fill="#ffffff" stroke="{colour}" stroke-width="1.5"/>'
        drawn = [f'<path d="M{zero + scale * change:.1f} {diamond}', f'<path d="M726 {diamond}']
    else:
        low, high = interval(change)
        mean = signed(statistics.mean(change))
        span = f'{signed(low)} to {signed(high)}'
        start = zero + scale * max(low, -limit)
        end = zero + scale * min(high, limit)
        drawn = [f'<line x1="{start:.1f}" x2="{end:.1f}" y1="{y}" y2="{y}" stroke="{colour}" '
                 'stroke-width="2.5"/>']
        # Arrowheads: the interval goes on outside.
        if low < -limit:
            drawn.append(f'<path d="M{start - 7:.1f} {y}l9 -5v10z" fill="{colour}"/>')
        if high > limit:
            drawn.append(f'<path d="M{end + 7:.1f} {y}l-9 -5v10z" fill="{colour}"/>')
        for x in (zero + scale * statistics.mean(change), 726):
            drawn.append(f'<circle cx="{x:.1f}" cy="{y}" r="5" fill="{colour}"/>')
    drawn.append(svg_text(602, y + 4, mean, 'text-anchor="end"'))
    drawn.append(svg_text(614, y + 4, span, 'font-size="12"'))
    drawn.append(svg_text(738, y + 4, label))
    return drawn


def page_blocks(results):
    """{name: text between <!-- name --> and <!-- end --> on the pages}"""
    blocks = {}
    for name in TABLES:
        not_yet = f'*Not run yet: `python results/run.py --tables={name}`.*\n'
        blocks[name] = table_text(results[name]) if name in results else not_yet
    blocks['overview'] = overview(results)
    blocks['summary'] = summary(results)
    return blocks


def fill(page_text, blocks):
    """The page with what stands between the marks of each block replaced."""
    for name, text in blocks.items():
        marked = f'<!-- {name} -->\n\n{text}\n<!-- end -->'
        # In a function, as a backslash in a text that replaces would have a meaning.
        page_text = re.sub(f'<!-- {name} -->\n.*?<!-- end -->', lambda _, marked=marked: marked,
                           page_text, flags=re.DOTALL)
    return page_text


def load_results():
    """{table: its JSON in results/}"""
    results = {}
    for name in TABLES:
        path = f'{ROOT}/results/{name}.json'
        if os.path.exists(path):
            results[name] = json.loads(read(path))
    return results


def make_pages():
    """Writes the blocks of both pages, and the figure."""
    results = load_results()
    blocks = page_blocks(results)
    for path in (f'{ROOT}/README.md', f'{ROOT}/results/README.md'):
        before = read(path)
        after = fill(before, blocks)
        if after != before:
            write(path, after)
    write(f'{ROOT}/results/summary.svg', draw_summary(results))


if __name__ == '__main__':
    sys.stdout.reconfigure(errors='backslashreplace')
    os.environ['OMP_NUM_THREADS'] = '1'
    os.chdir(ROOT)
    sys.path.insert(0, ROOT)
    if page:
        make_pages()
        sys.exit()
    if setting not in SETTINGS:
        sys.exit(f"--setting={setting}: wants one of {', '.join(SETTINGS)}")
    if split not in ('', 'test', 'val'):
        sys.exit(f'--split={split}: wants test or val')
    for name in tables.split(','):
        if name not in TABLES:
            sys.exit(f"--tables={tables}: wants some of {','.join(TABLES)}")
        if (name == 'real') != (setting == 'real'):
            sys.exit(f'--tables={tables}: real goes with --setting=real, and the others do not')

    def stop(*_):
        for process in list(running):
            process.terminate()
        sys.exit('stopped; the same command goes on where it was')

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    # Before anything is written: the tables are tracked files.
    commit = code_version()
    try:
        for name in tables.split(','):
            run_table(name, SETTINGS[setting], f'{out_dir}/{setting}', commit)
    except (Stop, OSError) as problem:
        for process in list(running):
            process.terminate()
        sys.exit(str(problem))
