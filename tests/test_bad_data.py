"""Mistakes made with the prepare scripts for photos: each ends in exit code 1 and one line, and damages nothing."""

import io
import os
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from conftest import ROOT, run
from test_photo_data import CELEBA, FOLDERS, UNPAIRED, class_folders, pack, photo, snapshot

# These run the script that follows: with a limit on the bytes of one file, which is a full disk,
FULL = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""
# and with Ctrl-C pressed when the first array is done.
STOP = """
import numpy, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
numpy.lib.format.write_array_header_1_0 = lambda *args: signal.raise_signal(signal.SIGINT)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


@pytest.fixture(scope='session')
def world(tmp_path_factory):
    """Good sources of every kind, and what the scripts made of them in done/."""
    w = tmp_path_factory.mktemp('world')
    splits = ('trainA', 'trainB', 'testA', 'testB')
    for i in range(6):
        photo(w / f'c/img_align_celeba/{i}.jpg', 'red')
        photo(w / f'r/Rafd090_{i:02d}_Caucasian_female_{("happy", "sad")[i % 2]}_frontal.png', 'red')
        photo(w / f'u/{splits[i % 4]}/{i}.png', 'red')
    class_folders(w / 'f', 4)
    rows = [f'{i}.jpg 1 -1\n' for i in range(6)]
    (w / 'c/list_attr_celeba.txt').write_text('6\na b\n' + ''.join(rows))
    rows = [f'{i}.jpg {i % 3}\n' for i in range(6)]
    (w / 'c/list_eval_partition.txt').write_text(''.join(rows))
    rows = [f'happy/{i // 2}_{i}.png,1,0\n' for i in range(6)]
    (w / 'f/t.csv').write_text('file,a,b\n' + ''.join(rows))
    pack(w / 'f.zip', w / 'f')
    pack(w / 'u.zip', w / 'u')
    (w / 'full.py').write_text(FULL)
    (w / 'stop.py').write_text(STOP)
    for kind, script in (('c', CELEBA), ('f', FOLDERS), ('u', UNPAIRED)):
        run(script, f'--src={w}/{kind}', f'--dst={w}/done/{kind}', '--image_size=8')
    return w


# What is done to a copy of the world
def edit(path, *change):
    return lambda w: (w / path).write_text((w / path).read_text().replace(*change))


def write(path, data):
    return lambda w: (w / path).write_bytes(data)


def cut(path, n):
    return lambda w: os.truncate(w / path, n)


def remove(path):
    return lambda w: os.remove(w / path)


def empty_folder(path):
    return lambda w: os.makedirs(w / path)


def no_photos(folder, ending=''):
    """Its photos are of a kind that is not read: they are renamed, or emptied."""
    def change(w):
        for path in (w / folder).rglob('*.*g'):
            if ending:
                path.rename(path.with_suffix(ending))
            else:
                path.write_bytes(b'')
    return change


def mark_in_zip(path, byte, value):
    """Sets a byte of the headers of all files: 6, 8 of the local ones are those of encryption and method."""
    def change(w):
        data = bytearray((w / path).read_bytes())
        with zipfile.ZipFile(w / path) as archive:
            for info in archive.infolist():
                data[info.header_offset + byte] = value
        start = data.find(b'PK\1\2')
        while start >= 0:
            data[start + byte + 2] = value
            start = data.find(b'PK\1\2', start + 1)
        (w / path).write_bytes(data)
    return change


def store_damaged(w):
    """The table lies in a zip uncompressed, and one of its bytes is another now."""
    with zipfile.ZipFile(w / 'f.zip') as old, zipfile.ZipFile(w / 'new.zip', 'w') as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    write('f.zip', (w / 'new.zip').read_bytes().replace(b'file,a,b', b'file,b,a'))(w)
    os.remove(w / 'new.zip')


def twice(w):
    shutil.copytree(w / 'u', w / 'two/a')
    shutil.copytree(w / 'u', w / 'two/b')


C = CELEBA + ' --src={w}/c --dst={w}/new --image_size=8'
F = FOLDERS + ' --src={w}/f --dst={w}/new --image_size=8'
T = F + ' --csv=t.csv'
Z = T + ' --src={w}/f.zip'
R = FOLDERS + ' --src={w}/r --dst={w}/new --image_size=8'
U = UNPAIRED + ' --src={w}/u --dst={w}/new --image_size=8'
ATTR = 'c/list_attr_celeba.txt'
PART = 'c/list_eval_partition.txt'
# What is done, to what, the command, and what its one line says, in parts
CASES = [
    ('flags: no size', None, C + ' --image_size=0', '--image_size=0'),
    ('flags: no crop', None, C + ' --crop=0', '--crop=0'),
    ('flags: unknown class', None, F + ' --classes=angry,hapy', "--classes=angry,hapy|'happy'"),
    ('flags: shares', None, F + ' --val_share=0.5 --test_share=0.5', '--test_share=0.5'),
    ('flags: a cut of two numbers', None, F + ' --crop=0.5,0.5', '--crop=0.5,0.5'),
    ('flags: a cut outside', None, F + ' --crop=0.5,0.5,1.5', '--crop=0.5,0.5,1.5'),
    ('flags: identity', None, F + ' --identity=(', '--identity=('),
    ('flags: nobody', None, F + ' --identity=x(.)', '--identity=x(.): no match'),
    ('flags: classes of a table', None, T + ' --classes=a,b', '--classes='),
    ('flags: exclusive', None, T + ' --exclusive=a,x', '--exclusive=a,x'),
    ('flags: fit', None, U + ' --fit=stretch', '--fit=stretch'),
    ('flags: domains', None, U + ' --domains=x', '--domains=x'),
    ('flags: cameras', None, R + ' --angles=90', '--angles=|got none'),
    # celeba's files
    ('celeba: nothing there', None, C + ' --src={w}/nowhere', '{w}/nowhere|list_attr_celeba.txt'),
    ('celeba: a list is missing', remove(PART), C, '{w}/c|list_eval_partition.txt'),
    ('celeba: a list is empty', write(ATTR, b''), C, 'list_attr_celeba'),
    ('celeba: wrong count', edit(ATTR, '6\n', '7\n', 1), C, "list_attr_celeba.txt|'7'|6 rows"),
    ('celeba: a value', edit(ATTR, '3.jpg 1', '3.jpg 2'), C, "list_attr_celeba.txt|'3.jpg'|-1 or 1"),
    ('celeba: listed twice', edit(PART, '3.jpg', '2.jpg'), C, "list_eval_partition.txt|'2.jpg'|twice"),
    ('celeba: lists differ', edit(PART, '3.jpg 0\n', ''), C, "1 photos|list_eval_partition|'3.jpg'"),
    ('celeba: a photo is missing', remove('c/img_align_celeba/3.jpg'), C + ' --max_bad=9', "1 photos|'3.jpg'"),
    ('celeba: no test split', edit(PART, ' 2\n', ' 1\n'), C, "whole split|'test': 0"),
    # sources
    ('zip: cut short', cut('f.zip', 900), F + ' --src={w}/f.zip --max_bad=99', '{w}/f.zip|zip'),
    ('zip: none', write('f.zip', b'hello'), F + ' --src={w}/f.zip', '{w}/f.zip|zip'),
    ('zip: encrypted photos', mark_in_zip('f.zip', 6, 1), F + ' --src={w}/f.zip', 'encrypted'),
    ('zip: photos in Deflate64', mark_in_zip('f.zip', 8, 9), F + ' --src={w}/f.zip', 'method'),
    ('folders: none', None, F + ' --src={w}/nowhere', '{w}/nowhere: no such folder'),
    ('folders: no photos', no_photos('f', '.heic'), F, '{w}/f: no images|.png'),
    ('folders: one too high', None, F + ' --src={w}/c', '{w}/c: wanted two class folders|too high'),
    ('folders: a class of .heic', no_photos('f/sad', '.heic'), F, '{w}/f: no photo in sad/'),
    ('folders: an empty class', empty_folder('f/bored'), F, '{w}/f: no photo in bored/'),
    ('folders: with an empty folder', empty_folder('f/bored/deep'), F, '{w}/f: no photo in bored/'),
    ('folders: a damaged class', no_photos('f/sad'), F, '{w}/f|sad (train)|sad/0_0.png: cannot identify'),
    ('folders: more damaged than max_bad', no_photos('f/sad'), F + ' --max_bad=3', '--max_bad=3|sad/0_0.png'),
    # a table
    ('table: nowhere', None, F + ' --csv=none.csv', '--csv=none.csv: no such file'),
    ('table: empty', write('f/t.csv', b''), T, 't.csv: no rows'),
    ('table: no header', edit('f/t.csv', 'file,a,b\n', ''), T, 't.csv: line 1|file,attr1'),
    ('table: semicolons', edit('f/t.csv', ',', ';'), T, 't.csv: line 1|file,attr1|commas'),
    ('table: listed twice', edit('f/t.csv', '/0_1', '/0_0'), T, 't.csv: line 3|listed before'),
    ('table: twice in other words', edit('f/t.csv', '/0_1', '/.\\0_0'), T, 't.csv: line 3|listed before'),
    ('table: no such photo', edit('f/t.csv', '/0_1', '/x'), T, 't.csv: line 3|no such file'),
    ('table: a value', edit('f/t.csv', '0_1.png,1', '0_1.png,2'), T, 't.csv: line 3|1 or 0'),
    ('table: 0 and -1', edit('f/t.csv', '0_1.png,1', '0_1.png,-1'), T, 't.csv: has both'),
    ('table: a stray quote', edit('f/t.csv', 'happy/0_1', '"happy/0_1'), T, 't.csv: line 3|quote'),
    ('table: a quote in it', edit('f/t.csv', '0_1.png,1', '0_1.png,"1" x'), T, 't.csv: line 3|quote'),
    ('table: the last quote', edit('f/t.csv', '2_5.png,1,0', '2_5.png,1,"0'), T, 't.csv: line 7|quote'),
    ('table: another encoding', write('f/t.csv', 'file,a\n'.encode('utf-16')), T, 't.csv: line 1'),
    ('table: in an encrypted zip', mark_in_zip('f.zip', 6, 1), Z, '--csv=t.csv|encrypted'),
    ('table: in a Deflate64 zip', mark_in_zip('f.zip', 8, 9), Z, '--csv=t.csv|method'),
    ('table: in a damaged zip', store_damaged, Z, '--csv=t.csv|CRC'),
    # two domains
    ('unpaired: one is missing', lambda w: shutil.rmtree(w / 'u/testB'), U, "['testA', 'trainA', 'trainB']"),
    ('unpaired: class folders', None, U + ' --src={w}/f', 'trainA/ trainB/ testA/ testB/|angry/'),
    ('unpaired: twice', twice, U + ' --src={w}/two', 'once|a/'),
    ('unpaired: encrypted', mark_in_zip('u.zip', 6, 1), U + ' --src={w}/u.zip', 'encrypted'),
]
# A set is there already; the disk is full; Ctrl-C
META = 'done/{kind}/meta.json'
ARRAY = 'done/{kind}/{split}_x.npy'
# The settings are the same, as the source is not the copy.
SAME = ' --src={{world}}/{kind}'
SHORT = io.BytesIO()
np.save(SHORT, np.zeros((1, 8, 8, 3), np.uint8))
THERE = [
    ('other settings', None, '', ' --image_size=9', '--image_size=8|--force=True'),
    ('empty meta.json', (META, b''), '', '', 'another set|--force=True'),
    ('a comma too many', (META, b'{"config": {},}'), '', '', 'another set|--force=True'),
    ('a key too few', (META, b'{}'), '', '', "another set|'config'"),
    ('a list', (META, b'[]'), '', '', 'another set'),
    ('other bytes', (META, b'\xff\xfe'), '', '', 'another set'),
    ('config of another kind', (META, b'{"config": 1, "counts": 2}'), '', '', 'another set'),
    ('an empty array', (ARRAY, b''), '', SAME, 'another set (No data'),
    ('a shorter array', (ARRAY, SHORT.getvalue()), '', SAME, 'another set (damaged: 1 rows'),
    ('full disk', None, '{w}/full.py ', ' --image_size=64 --force=True', 'no set was written: [Errno 27]'),
    ('Ctrl-C', None, '{w}/stop.py ', ' --force=True', 'interrupted, no set was written'),
    ('all damaged', 'photos', '', ' --force=True --max_bad=999', 'no photo'),
]
for kind, command, split in (('c', C, 'val'), ('f', F, 'val'), ('u', U, 'trainA')):
    for name, change, start, flags, says in THERE:
        if change == 'photos':
            change = no_photos(kind)
        elif change:
            change = write(change[0].format(kind=kind, split=split), change[1])
        full_command = start + command + ' --dst={w}/done/' + kind + flags.format(kind=kind)
        CASES.append((f'{kind}: {name}', change, full_command, says))


@pytest.mark.parametrize('change,command,says', [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_one_line_and_no_damage(world, tmp_path, change, command, says):
    w = world
    if change:
        w = shutil.copytree(world, tmp_path / 'w')
        change(w)
    shutil.rmtree(w / 'new', ignore_errors=True)
    before = snapshot(w)
    said = run(*command.format(w=w, world=world).split(), ok=False)
    for text in says.format(w=w).split('|'):
        assert text in said, said
    after = snapshot(w)
    # If it is there, it is empty.
    after.pop('new', None)
    assert after == before


def test_no_check_is_an_assert(world):
    """python -O leaves asserts out."""
    commands = [
        f'{FOLDERS} --src={world}/f --dst={world}/done/f --image_size=9',
        f'{UNPAIRED} --src={world}/u --dst={world}/done/u --fit=stretch',
        f'{CELEBA} --src={world}/c --dst={world}/done/c --crop=-1']
    before = snapshot(world)
    for command in commands:
        ended = subprocess.run([sys.executable, '-O', *command.split()], cwd=ROOT, capture_output=True, text=True)
        assert ended.returncode == 1
        assert len(ended.stderr.splitlines()) == 1
    assert snapshot(world) == before
