"""What the README says exists does: equations with their functions and tests."""

import re

from conftest import ROOT

with open(f'{ROOT}/README.md', encoding='utf-8') as f:
    README = f.read()


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
