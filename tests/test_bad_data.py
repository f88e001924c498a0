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
    ('flag: unknown', None, C + ' --imagesize=8', '--imagesize=8|closest: image_size'),
    ('flag: below 0', None, U + ' --image_size=-8', '--image_size=-8|below 0'),
    ('celeba: image_size', None, C + ' --image_size=0', '--image_size=0'),
    ('folders: fit', None, F + ' --fit=stretch', '--fit=stretch: wants squash or crop'),
    ('folders: crop', None, F + ' --crop=1,2', 'wants x,y,side'),
    ('folders: shares', None, F + ' --val_share=0.5 --test_share=0.5', 'less than 1 together'),
    ('folders: not a regular expression', None, F + ' --identity=(', '--identity=('),
    ('folders: identity without a match', None, F + ' --identity=(x)', 'no match in 16 of 16'),
    ('folders: unknown class', None, F + ' --classes=angry,hapy', "--classes=angry,hapy|'happy'"),
    ('folders: one class', None, F + ' --classes=sad', '--classes=sad|two or more'),
    ('folders: classes of a table', None, T + ' --classes=sad', '--classes='),
    ('folders: exclusive', None, T + ' --exclusive=a,bb', "'bb'|two or more of a,b"),
    ('rafd: unknown camera', None, R + ' --angles=90', '--angles=|got none'),
    ('unpaired: domains', None, U + ' --domains=x', '--domains=x: wants two different names'),
    # celeba's files
    ('celeba: nothing there', None, C + ' --src={w}/nowhere', '{w}/nowhere: no list_attr_celeba.txt'),
    ('celeba: a list is missing', lambda w: os.remove(w / PART), C, '{w}/c: no list_eval_partition.txt'),
    ('celeba: no images', lambda w: shutil.rmtree(w / 'c/img_align_celeba'), C, '{w}/c: no img_align_celeba'),
    ('celeba: no zip', write('c/img_align_celeba.zip', b'no zip'), C, 'img_align_celeba.zip|zip'),
    ('celeba: wrong count', edit(ATTR, '6\n', '7\n', 1), C, "list_attr_celeba.txt: line 1 says '7', but 6 rows"),
    ('celeba: cut short', edit(ATTR, '5.jpg 1 -1\n', ''), C, "list_attr_celeba.txt: line 1 says '6', but 5 rows"),
    ('celeba: half a row', edit(ATTR, '5.jpg 1 -1\n', '5.jpg 1'), C, "list_attr_celeba.txt: '5.jpg' has 1 values"),
    ('celeba: a value', edit(ATTR, '3.jpg 1', '3.jpg 5'), C, "list_attr_celeba.txt: '3.jpg' has 2 values: 5 -1"),
    ('celeba: listed twice', edit(PART, '3.jpg', '2.jpg'), C, "list_eval_partition.txt: '2.jpg' is there twice"),
    ('celeba: no such split', edit(PART, '3.jpg 0', '3.jpg 7'), C, "list_eval_partition.txt: '3.jpg' has 1 values: 7"),
    ('celeba: lists differ', edit(PART, '3.jpg 0\n', ''), C, "1 photos|list_eval_partition|'3.jpg'"),
    ('celeba: an image is missing', lambda w: os.remove(w / 'c/img_align_celeba/3.jpg'), C, "1 photos|'3.jpg'"),
    ('celeba: no test split', edit(PART, ' 2\n', ' 1\n'), C, "no photo of a whole split|'test': 0"),
    ('celeba: a split unreadable', lambda w: [write(f'c/img_align_celeba/{i}.jpg', b'')(w) for i in (2, 5)], C,
     "no photo of a whole split|'test': 0|cannot identify"),
    ('celeba: too many bad', write('c/img_align_celeba/3.jpg', b''), C + ' --max_bad=0', "--max_bad=0|'3.jpg'"),
    # class folders, RaFD, a table
    ('folders: no such folder', None, F + ' --src={w}/nowhere', '{w}/nowhere: no such folder'),
    ('folders: a zip cut short', lambda w: (w / 'u.zip').write_bytes((w / 'u.zip').read_bytes()[:900]),
     F + ' --src={w}/u.zip', '{w}/u.zip: |zip'),
    ('folders: no images', None, F + ' --src={w}/done', '{w}/done: no images in it|.jpg'),
    ('folders: one folder too high', None, F + ' --src={w}/c', "{w}/c: wanted two class folders|too high"),
    ('folders: one folder too low', None, F + ' --src={w}/f/sad', "{w}/f/sad: wanted two class folders|too low"),
    ('folders: a comma', move('f/sad', 'f/so,sad'), F, "'so,sad'|commas"),
    ('folders: too few', lambda w: [os.remove(p) for p in list((w / 'f/sad').iterdir())[2:]], F, "('train', 'sad')"),
    ('folders: no train', move('f', 'g/test'), F + ' --src={w}/g', "['test']|there is no train"),
    ('folders: split and classes', lambda w: [move('f/sad', 'f/train')(w), move('f/happy', 'f/val')(w)], F,
     "['train', 'val']|others are beside"),
    ('rafd: another file', write('r/cover.png', b''), R, 'cover.png|or only RaFD names'),
    ('table: missing', None, F + ' --csv=none.csv', '--csv=none.csv: no such file'),
    ('table: no header', edit('f/t.csv', 'file,a,b\n', ''), T, 'line 1 should be file,attr1'),
    ('table: a column twice', edit('f/t.csv', 'file,a,b', 'file,a,a'), T, 'line 1|each once'),
    ('table: no rows', write('f/t.csv', b'file,a,b\n'), T, 'no rows'),
    ('table: listed twice', edit('f/t.csv', '/0_1', '/0_0'), T, 't.csv: line 3|listed before'),
    ('table: no such photo', edit('f/t.csv', '/0_1', '/x'), T, 't.csv: line 3|no such file'),
    ('table: a value', edit('f/t.csv', '0_1.png,1', '0_1.png,2'), T, 't.csv: line 3|1 or 0'),
    ('table: a column too many', edit('f/t.csv', '0_1.png,1', '0_1.png,1,1'), T, 't.csv: line 3|wanted 3 values'),
    ('table: two kinds of no', edit('f/t.csv', '0_1.png,1,0', '0_1.png,1,-1'), T, 'both 0 and -1'),
    ('table: split', edit('f/t.csv', 'file,a,b', 'file,a,split'), T, 't.csv: line 2|train, val or test'),
    # two domains
    ('unpaired: no such folder', None, U + ' --src={w}/nowhere', '{w}/nowhere: no such folder'),
    ('unpaired: one is missing', lambda w: shutil.rmtree(w / 'u/testB'), U, "there is ['testA', 'trainA', 'trainB']"),
    ('unpaired: class folders', None, U + ' --src={w}/f', "wanted trainA/ trainB/ testA/ testB/|there is ['angry/"),
    ('unpaired: two sets', lambda w: [shutil.copytree(w / 'u', w / f'v/{x}') for x in 'ab'], U + ' --src={w}/v',
     "once; there is ['a/', 'b/']"),
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
