"""What the README says exists does: equations with their functions and tests, tables, pictures."""

import glob
import importlib.util
import json
import re

import pytest
from conftest import ROOT

README = open(f'{ROOT}/README.md').read()


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
    spec = importlib.util.spec_from_file_location('results_run', f'{ROOT}/results/run.py')
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    table = open(path.removesuffix('json') + 'md').read()
    assert table == run.render(json.load(open(path))) and table in README
