"""tests/bench.py with nets so small that nothing but its own text is tried."""

import json

import pytest
from conftest import run

TINY = ['--sizes=tiny', '--repeats=1', '--device=cpu']


def test_bench_runs_the_scripts(tmp_path):
    variants = 'teacher,student,student+gradcam,uag+switched'
    out = run('tests/bench.py', f'--variants={variants}', f'--out_dir={tmp_path}', *TINY)
    result = json.loads((tmp_path / 'bench.json').read_text())
    rows = result['rows']
    assert [row['variant'] for row in rows] == variants.split(',')
    for row in rows:
        assert row['seconds'][0] > 0
        assert row['cpu_ms'] > 0
        assert f"{row['it_s']:10.2f}" in out
    # x is the speed over the first variant of the same script.
    assert rows[1]['x'] == rows[3]['x'] == 1
    assert rows[2]['x'] == pytest.approx(rows[2]['it_s'] / rows[1]['it_s'])
    share = result['flops_of_G'][0] / result['flops_of_product'][0]
    assert 0 < share < 1
    assert result['share'] == pytest.approx(share)
    assert f'{share:.0%}' in out.splitlines()[-1]


def test_wrong_variants_and_sizes_are_named():
    out = run('tests/bench.py', '--variants=teacher+bf17', *TINY, ok=False)
    assert 'wants some of teacher, student' in out
    out = run('tests/bench.py', '--sizes=huge', ok=False)
    assert 'wants one of paper, small, tiny' in out
