"""What the README says exists does: equations with their functions and tests, tables, pictures."""

import glob
import json
import re
import runpy

import pytest
from conftest import ROOT

README, RUN = open(f'{ROOT}/README.md').read(), runpy.run_path(f'{ROOT}/results/run.py')


def test_equations_have_their_functions_and_tests():
    rows = [re.findall('`([^`]+)`', line) for line in README.splitlines() if re.match(r'\| (\(|UAG )', line)]
    assert len(rows) == 9
    for row in rows:
        path = ''
        for name in row:  # a file, then what stands in it
            if name.endswith('.py'):
                path = f'{ROOT}/tests/{name}' if name.startswith('test_') else f'{ROOT}/{name}'
            else:
                assert re.search(rf'^ *(def|class) {name}\b', open(path).read(), re.M), f'{path} has no {name}'


@pytest.mark.parametrize('path', sorted(glob.glob(f'{ROOT}/results/*.json')))
def test_tables_are_made_from_their_json_alone(path):
    table, name = open(path.removesuffix('json') + 'md').read(), path.split('/')[-1].removesuffix('.json')
    assert table == RUN['render'](json.load(open(path)))
    assert RUN['summary']() in README and (table.split('\n\n')[0] if name == 'table1' else f'/{name}.md)') in README


def test_figures_of_the_tables():
    assert RUN['difference']([1., 2., 3.], [0., 0., 0.], 1, 2) == '+2.00 [-0.48, +4.48]'  # 2 +- 4.3027 / sqrt(3)
    assert RUN['closed']([.9, .92], [.8, .82], 1.) == '53' and RUN['closed']([.9, .92], [.5, 1.1], 1.) == '-'
    assert RUN['spread']([.8, .82], 100, 1) == '81.0 ± 1.4'
