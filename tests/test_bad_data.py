"""Mistakes made with the prepare scripts for photos, one table: each ends in exit code 1 and one line."""

import os
import shutil

import pytest
from conftest import run
from test_photo_data import CELEBA, FOLDERS, UNPAIRED, class_folders, pack, photo

RUN = "sys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
# run what follows with a limit on the bytes of one file, a full disk; and with Ctrl-C pressed when the first is written
FULL = f'import resource, runpy, sys\nresource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n{RUN}'
STOP = f"""import numpy, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
numpy.lib.format.write_array_header_1_0 = lambda *args: signal.raise_signal(signal.SIGINT)
{RUN}"""


@pytest.fixture(scope='session')
def world(tmp_path_factory):
    """Good sources of every kind, and what the scripts made of them in done/."""
    w = tmp_path_factory.mktemp('world')
    for i in range(6):
        photo(w / f'c/img_align_celeba/{i}.jpg', 'red')
        photo(w / f'r/Rafd090_{i:02d}_Caucasian_female_{("happy", "sad")[i % 2]}_frontal.png', 'red')
        photo(w / f'u/{("trainA", "trainB", "testA", "testB")[i % 4]}/{i}.png', 'red')
    (w / 'c/list_attr_celeba.txt').write_text('6\na b\n' + ''.join(f'{i}.jpg 1 -1\n' for i in range(6)))
    (w / 'c/list_eval_partition.txt').write_text(''.join(f'{i}.jpg {i % 3}\n' for i in range(6)))
    class_folders(w / 'f', 4)
    (w / 'f/t.csv').write_text('file,a,b\n' + ''.join(f'happy/{i // 2}_{i}.png,1,0\n' for i in range(6)))
    pack(w / 'u.zip', w / 'u')
    (w / 'full.py').write_text(FULL)
    (w / 'stop.py').write_text(STOP)
    for kind, script in (('c', CELEBA), ('f', FOLDERS), ('u', UNPAIRED)):
        run(script, f'--src={w}/{kind}', f'--dst={w}/done/{kind}', '--image_size=8')
    return w


def snapshot(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob('*')}


# what is done to the world
def edit(path, *change):
    return lambda w: (w / path).write_text((w / path).read_text().replace(*change))


def write(path, data):
    return lambda w: (w / path).write_bytes(data)


def move(path, to):
    return lambda w: os.renames(w / path, w / to)


C = CELEBA + ' --src={w}/c --dst={w}/new --image_size=8'
F = FOLDERS + ' --src={w}/f --dst={w}/new --image_size=8'
T = F + ' --csv=t.csv'
R = FOLDERS + ' --src={w}/r --dst={w}/new --image_size=8'
U = UNPAIRED + ' --src={w}/u --dst={w}/new --image_size=8'
ATTR, PART = 'c/list_attr_celeba.txt', 'c/list_eval_partition.txt'
CASES = [
    # flags
    ('celeba: image_size', None, C + ' --image_size=0', '--image_size=0'),
    ('folders: unknown class', None, F + ' --classes=angry,hapy', "--classes=angry,hapy|'happy'"),
    ('rafd: unknown camera', None, R + ' --angles=90', '--angles=|got none'),
    ('unpaired: domains', None, U + ' --domains=x', '--domains=x: wants two different names'),
    # celeba's files
    ('celeba: nothing there', None, C + ' --src={w}/nowhere', '{w}/nowhere: no list_attr_celeba.txt'),
    ('celeba: a list is missing', lambda w: os.remove(w / PART), C, '{w}/c: no list_eval_partition.txt'),
    ('celeba: wrong count', edit(ATTR, '6\n', '7\n', 1), C, "list_attr_celeba.txt: line 1 says '7', but 6 rows"),
    ('celeba: listed twice', edit(PART, '3.jpg', '2.jpg'), C, "list_eval_partition.txt: '2.jpg' is there twice"),
    ('celeba: lists differ', edit(PART, '3.jpg 0\n', ''), C, "1 photos|list_eval_partition|'3.jpg'"),
    ('celeba: no test split', edit(PART, ' 2\n', ' 1\n'), C, "no photo of a whole split|'test': 0"),
    # class folders, RaFD, a table
    ('folders: a zip cut short', lambda w: (w / 'u.zip').write_bytes((w / 'u.zip').read_bytes()[:900]),
     F + ' --src={w}/u.zip', '{w}/u.zip: |zip'),
    ('folders: one folder too high', None, F + ' --src={w}/c', "{w}/c: wanted two class folders|too high"),
    ('table: no header', edit('f/t.csv', 'file,a,b\n', ''), T, 'line 1 should be file,attr1'),
    ('table: listed twice', edit('f/t.csv', '/0_1', '/0_0'), T, 't.csv: line 3|listed before'),
    ('table: no such photo', edit('f/t.csv', '/0_1', '/x'), T, 't.csv: line 3|no such file'),
    ('table: a value', edit('f/t.csv', '0_1.png,1', '0_1.png,2'), T, 't.csv: line 3|1 or 0'),
    # two domains
    ('unpaired: one is missing', lambda w: shutil.rmtree(w / 'u/testB'), U, "there is ['testA', 'trainA', 'trainB']"),
    ('unpaired: class folders', None, U + ' --src={w}/f', "wanted trainA/ trainB/ testA/ testB/|there is ['angry/"),
    # a set is there already; the disk is full
    *[(f'{kind}: {name}', make and make(kind), start + command + ' --dst={w}/done/' + kind + flags, says)
      for kind, command in (('c', C), ('f', F), ('u', U)) for name, make, start, flags, says in (
          ('other settings', None, '', ' --image_size=9', '--image_size=8|--force=True'),
          ('damaged', lambda kind: write(f'done/{kind}/meta.json', b'{}'), '', '', "another set ('config')"),
          ('full disk', None, '{w}/full.py ', ' --image_size=64 --force=True', 'no set was written: [Errno 27]'),
          ('Ctrl-C', None, '{w}/stop.py ', ' --force=True', 'interrupted, no set was written'),
          ('all damaged', lambda kind: lambda w: [write(p, b'')(w) for p in (w / kind).rglob('*.*g')], '',
           ' --force=True', 'no photo of a whole split'))],
]


@pytest.mark.parametrize('make,command,says', [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_one_line_and_no_damage(world, tmp_path, make, command, says):
    w = world
    if make:
        w = shutil.copytree(world, tmp_path / 'w')
        make(w)
    shutil.rmtree(w / 'new', ignore_errors=True)
    before = snapshot(w)
    said = run(*command.format(w=w).split(), ok=False)
    for text in says.format(w=w).split('|'):
        assert text in said, said
    assert {path: data for path, data in snapshot(w).items() if path != w / 'new'} == before  # new: empty, if there
