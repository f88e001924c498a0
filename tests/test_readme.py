"""What the READMEs name exists: functions, tests, files, and the flags of each command."""

import os
import re

import pytest
from conftest import ROOT


def read(name):
    with open(f'{ROOT}/{name}', encoding='utf-8') as file:
        return file.read()


def equations():
    """-> the rows of tests/README.md's table of equations: the names in each."""
    rows = []
    for line in read('tests/README.md').splitlines():
        if line.startswith(('| (', '| UAG ')):
            rows.append(re.findall('`([^`]+)`', line))
    return rows


def test_there_is_a_row_for_each_equation():
    assert len(equations()) == 9


@pytest.mark.parametrize('row', equations(), ids=lambda row: row[1])
def test_equations_have_their_functions_and_tests(row):
    path = ''
    for name in row:
        # A file, and behind it what stands in it.
        if name.endswith('.py'):
            path = f'tests/{name}' if name.startswith('test_') else name
        else:
            assert re.search(rf'^ *(def|class) {name}\b', read(path), re.M), f'{path} has no {name}'


@pytest.mark.parametrize('page', ['README.md', 'results/README.md', 'tests/README.md'])
def test_links_and_pictures_are_there(page):
    folder = os.path.dirname(f'{ROOT}/{page}')
    targets = re.findall(r'\]\(([^)#:]+)\)', read(page)) + re.findall(r'src="([^":]+)"', read(page))
    for target in targets:
        assert os.path.exists(f'{folder}/{target}'), target


def commands():
    """-> (script, flags) of each line of the README that runs one; SHORT= stands for its flags."""
    text = read('README.md').replace('\\\n', ' ')
    short = re.search(r'SHORT="([^"]*)"', text)
    found = []
    for script, flags in re.findall(r'python ((?:data/\w+/)?\w+\.py)([^\n#`]*)', text):
        flags = flags.replace('$SHORT', short[1] if short else '')
        # A copy of a script has the flags of the script.
        found.append((script.replace('my_student', 'train_student'), re.findall(r'--(\w+)', flags)))
    return found


def test_commands_have_flags_that_there_are():
    assert len(commands()) > 10
    for script, flags in commands():
        block = read(script).split('# ' + '-' * 77)[1]
        known = re.findall(r'^(\w+) = ', block, re.M)
        assert set(flags) <= set(known), script
