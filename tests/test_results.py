"""The figures of results/: how they are computed, that the pages show them, and the script that measures them."""

import importlib.util
import json
import math
import os
import shlex
import shutil
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import scipy.stats
import torch
from conftest import ROOT, TINY, TINY_S, TINY_U, ckpt, run

spec = importlib.util.spec_from_file_location('results_run', f'{ROOT}/results/run.py')
RUN = importlib.util.module_from_spec(spec)
spec.loader.exec_module(RUN)
RESULTS = RUN.load_results()


def page(name):
    with open(f'{ROOT}/{name}', encoding='utf-8') as f:
        return f.read()


def three_seeds():
    """A result of three seeds. The arm's are in another order."""
    without = {'0': {'accuracy': 0.1}, '1': {'accuracy': 0.5}, '2': {'accuracy': 0.9}}
    arm = {'2': {'accuracy': 0.93}, '0': {'accuracy': 0.11}, '1': {'accuracy': 0.52}}
    return {'table': 'table1', 'T': {'accuracy': 1.0}, 'arms': {'without': without, 'with': arm}}


# -----------------------------------------------------------------------------
# figures
def test_interval_is_students_t():
    # mean 2, deviation 1, and the 97.5 % quantile of Student's t with two degrees of freedom is 4.30265.
    half = 4.30265 / 3 ** 0.5
    assert RUN.interval([1, 2, 3]) == pytest.approx((2 - half, 2 + half), abs=1e-4)
    # with nine degrees of freedom: 2.26216; deviation of 0..9: 3.02765
    half = 2.26216 * 3.02765 / 10 ** 0.5
    assert RUN.interval(list(range(10))) == pytest.approx((4.5 - half, 4.5 + half), abs=1e-4)
    # One seed tells nothing.
    assert RUN.interval([1]) == (-math.inf, math.inf)


def test_differences_are_taken_seed_by_seed():
    change = RUN.differences(three_seeds(), 'with', 'accuracy')
    assert sorted(change) == pytest.approx([0.01, 0.02, 0.03])
    rows = RUN.comparison(three_seeds(), 'accuracy', 'accuracy %', 100, 1).splitlines()
    assert rows[0] == '|  | accuracy % | deviation | difference | from | to |'
    assert rows[2] == '| T, the teacher | 100.0 |  |  |  |  |'
    assert rows[3] == '| without the loss | 50.0 | 40.0 |  |  |  |'
    # The seeds differ by 40 points, their differences by one.
    assert rows[4] == "| the paper's loss | 52.0 | 41.0 | +2.0 | -0.5 | +4.5 |"


def test_a_figure_that_was_not_measured_leaves_its_cells_empty():
    result = three_seeds()
    result['arms']['with']['1']['accuracy'] = None
    assert RUN.differences(result, 'with', 'accuracy') == []
    rows = RUN.comparison(result, 'accuracy', 'accuracy %', 100, 1).splitlines()
    assert rows[4] == "| the paper's loss |  |  |  |  |  |"


def test_gap_closed_is_a_share_of_a_lead_that_the_seeds_confirm():
    assert RUN.gap_closed([0.9, 0.92], [0.8, 0.82], 1.0, better=1) == pytest.approx(100 * 10 / 19)
    # no lead, or one within the spread
    assert RUN.gap_closed([0.9, 0.92], [0.8, 0.82], 0.7, better=1) is None
    assert RUN.gap_closed([0.9, 0.92], [0.5, 1.1], 1.0, better=1) is None
    # where less is better
    assert RUN.gap_closed([30, 32], [40, 42], 20, better=-1) == pytest.approx(100 * 10 / 21)
    assert RUN.gap_closed([30, 32], [40, 42], 60, better=-1) is None


# -----------------------------------------------------------------------------
# pages
@pytest.mark.parametrize('name', ['README.md', 'results/README.md'])
def test_pages_show_what_the_json_files_say(name):
    # If this fails: python results/run.py --page=True
    assert page(name) == RUN.fill(page(name), RUN.page_blocks(RESULTS))


def test_the_summary_counts_intervals_and_ranges():
    lows = []
    highs = []
    means = {'with': [], 'with, hirescam, l2': []}
    for name in ('table1', 'again', 'late', 'table2', 'lite', 'table3', 'table4'):
        arms = RESULTS[name]['arms']
        for arm in set(means) & set(arms):
            change = []
            for seed in arms['without']:
                change.append(100 * (arms[arm][seed]['accuracy'] - arms['without'][seed]['accuracy']))
            mean = np.mean(change)
            half = scipy.stats.t.ppf(0.975, len(change) - 1) * scipy.stats.sem(change)
            means[arm].append(mean)
            lows.append(mean - half)
            highs.append(mean + half)
    n_above = len([low for low in lows if low > 0])
    n_below = len([high for high in highs if high < 0])
    assert (n_above, n_below, len(lows)) == (0, 3, 13)
    said = RUN.summary(RESULTS)
    assert 'these 13 differences, none lie wholly above zero and 3 wholly below.' in said
    for arm, n_settings in (('with', 6), ('with, hirescam, l2', 7)):
        assert f'{min(means[arm]):+.1f} to {max(means[arm]):+.1f} points ({n_settings} settings)' in said
    energies = []
    for arm in ('without', 'with, hirescam, l2', 'control: shuffled maps'):
        of_seeds = RESULTS['table1']['arms'][arm].values()
        energies.append(np.mean([figures['hirescam energy'] for figures in of_seeds]))
    assert 'is {:.1f} without the loss and {:.1f} with hirescam'.format(*energies[:2]) in said
    assert f'With the maps of other images it is {energies[2]:.1f}:' in said


def test_every_table_has_its_place():
    blocks = RUN.page_blocks(RESULTS)
    for name in (*RUN.TABLES, 'overview'):
        assert f'<!-- {name} -->\n\n{blocks[name]}\n<!-- end -->' in page('results/README.md')
    assert '<!-- summary -->' in page('README.md')
    files = [name.removesuffix('.json') for name in os.listdir(f'{ROOT}/results') if name.endswith('.json')]
    assert set(files) <= set(RUN.TABLES)


def test_blocks_are_replaced_and_other_comments_stay():
    text = 'a\n<!-- b -->\nold\n<!-- end -->\nc\n<!-- d -->\nmine\n<!-- end -->\n'
    filled = RUN.fill(text, {'b': 'new'})
    assert filled == 'a\n<!-- b -->\n\nnew\n<!-- end -->\nc\n<!-- d -->\nmine\n<!-- end -->\n'
    assert RUN.fill(filled, {'b': 'new'}) == filled


def test_figure_is_made_from_the_json_files():
    drawn = page('results/summary.svg')
    assert drawn == RUN.draw_summary(RESULTS)
    svg = ElementTree.fromstring(drawn)
    assert int(svg.get('width')) <= 900
    texts = [element.text for element in svg.iter('{http://www.w3.org/2000/svg}text')]
    for title, published in RUN.TITLES.values():
        assert title in texts
        assert published is None or f'+{published:.2f}' in texts


def test_figure_draws_means_and_intervals_to_scale():
    mark = RUN.figure_line('#000000', 'x', [1.0, 2.0, 3.0], 50, zero=400, scale=10, limit=4)
    line = ElementTree.fromstring(mark[0])
    # 2 points, from -0.48 to 4.48, of which up to 4 are drawn, then an arrowhead
    assert float(line.get('x1')) == pytest.approx(400 - 4.8, abs=0.06)
    assert float(line.get('x2')) == 440
    assert mark[1].startswith('<path')
    assert float(ElementTree.fromstring(mark[2]).get('cx')) == 420
    assert '>−0.5 to +4.5<' in mark[5]


# -----------------------------------------------------------------------------
# runs
def test_the_table_of_fruit_has_the_flags_of_the_demo():
    demo = page('Makefile').partition('UAG_TRAIN = ')[2].partition('UAG_EVALUATE = ')[0]
    for flag in RUN.SETTINGS['small']['UAG'].split():
        assert flag in demo.split(), flag
    # An arm is what is different from the demo, so that of UAG is empty.
    assert RUN.TABLES['uag']['arms']['UAG'] == ''


def test_a_run_is_finished_only_with_the_same_flags(teacher, data, tmp_path):
    flags = shlex.join([f'--dataset={data}', *TINY])
    assert RUN.finished('train_teacher.py', str(teacher), flags)
    assert RUN.finished('train_teacher.py', str(teacher), f'{flags} --out_dir=x --log_interval=7')
    assert not RUN.finished('train_teacher.py', str(tmp_path), flags)
    with pytest.raises(RUN.Stop, match='was run with --batch_size=4 --lr=0.0001: choose another --out_dir='):
        RUN.finished('train_teacher.py', str(teacher), f'{flags} --lr=1e-3 --batch_size=5')
    # one that was interrupted
    stopped = ckpt(teacher)
    stopped['iter'] = 2
    torch.save(stopped, tmp_path / 'ckpt.pt')
    assert not RUN.finished('train_teacher.py', str(tmp_path), flags)


def test_a_student_has_its_teachers_data_unless_told_otherwise(student, teacher, data):
    flags = shlex.join([f'--teacher={teacher}/ckpt.pt', *TINY_S])
    assert RUN.finished('train_student.py', str(student), flags)
    assert RUN.finished('train_student.py', str(student), f'{flags} --dataset={data} --attrs=a,b,c')
    with pytest.raises(RUN.Stop, match='was run with --attrs=a,b,c:'):
        RUN.finished('train_student.py', str(student), f'{flags} --attrs=a,b')


def test_chosen_checkpoints_are_kept(tmp_path, monkeypatch):
    def execute(script, flags, meanwhile):
        for it in (0, 200, 300, 400):
            torch.save({'iter': it}, tmp_path / 'next.pt')
            os.replace(tmp_path / 'next.pt', tmp_path / 'ckpt.pt')
            meanwhile()
            meanwhile()

    monkeypatch.setattr(RUN, 'execute', execute)
    RUN.train_one('train_student.py', '', str(tmp_path), (200, 400))
    assert sorted(os.listdir(tmp_path)) == ['200.pt', '400.pt', 'ckpt.pt']
    assert torch.load(tmp_path / '200.pt', weights_only=True)['iter'] == 200


def test_a_run_that_fails_is_one_line(tmp_path):
    script = tmp_path / 'fails.py'
    script.write_text('import sys\nprint("some")\nprint("lines", file=sys.stderr)\nsys.exit("--a=1: wrong")\n')
    with pytest.raises(RUN.Stop) as problem:
        RUN.execute(str(script), '--a=1')
    assert str(problem.value) == f'python {script} --a=1: --a=1: wrong'
    for args, says in ((['--tables=table9'], 'wants some of table1,table2'), (['--setting=big'], 'small, real, paper'),
                       (['--tables=real'], 'goes with --setting=real'), (['--split=train'], 'wants test or val')):
        assert says in run('results/run.py', *args, ok=False)


@pytest.fixture
def in_process(monkeypatch):
    """Scripts that run.py starts are run as quickly as the tests' own. -> what was started"""
    started = []

    def execute(script, flags, meanwhile=None):
        started.append(f'{script} {flags}')
        run(script, *shlex.split(flags))

    monkeypatch.setattr(RUN, 'execute', execute)
    monkeypatch.setattr(RUN, 'jobs', 1)
    return started


def test_a_table_from_end_to_end(data, tmp_path, in_process, monkeypatch, capsys):
    arms = {'without': RUN.WITHOUT, 'with': RUN.PAPER_LOSS + ' {longer}'}
    monkeypatch.setitem(RUN.TABLES, 'table2', {'data': 'faces', 'net': 'S-Lite', 'seeds': '0,1', 'arms': arms})
    monkeypatch.setattr(RUN, 'student', '--n_critic=1')
    known = {'faces': data, 'all': '', 'T': shlex.join(TINY), 'S-Lite': shlex.join(TINY_S), 'longer': '--max_iters=6',
             'evaluate': '--device=cpu --clf_epochs=1 --inception=none'}
    before = page('results/table2.json')
    RUN.run_table('table2', known, str(tmp_path), 'abc')
    with open(tmp_path / 'table2/test/table2.json') as f:
        result = json.load(f)
    assert result['commit'] == 'abc' and list(result['arms']) == ['without', 'with']
    with open(tmp_path / 'table2/test/results.json') as f:
        nets = json.load(f)['checkpoints']
    # T, then the arms; each seed has its own figures
    for net, arm, seed in zip(nets[1:], ('without', 'without', 'with', 'with'), '0101'):
        assert net['path'] == f'{tmp_path}/table2/{arm}-s{seed}/ckpt.pt'
        assert result['arms'][arm][seed]['accuracy'] == net['accuracy']
        assert result['arms'][arm][seed]['leak'] == net['leak']
    assert result['T']['accuracy'] == nets[0]['accuracy']
    # The flags of the setting, of the arm and of the student all reached the run, and the seed.
    config = ckpt(tmp_path / 'table2/with-s1')['config']
    assert config['max_iters'] == 6 and config['lambda_att'] == 10 and config['n_critic'] == 1 and config['seed'] == 1
    # One seed or flag more or less is not the table of results/.
    assert page('results/table2.json') == before
    with open(tmp_path / 'table2/test/table2.md') as f:
        assert f.read() == RUN.table_text(result)
    # Again: nothing is trained.
    trained = len(in_process)
    RUN.run_table('table2', known, str(tmp_path))
    assert [command.split()[0] for command in in_process[trained:]] == ['evaluate.py']


def test_attention_guided_translation_from_end_to_end(pairs, tmp_path, in_process, monkeypatch):
    monkeypatch.setattr(RUN, 'seeds', '0')
    known = {'fruit': pairs, 'UAG': shlex.join(TINY_U) + ' --n_epochs=1', 'evaluate_uag': '--clf_epochs=1',
             'evaluate': '--device=cpu --inception=none'}
    RUN.run_table('uag', known, str(tmp_path))
    with open(tmp_path / 'uag/test/uag.json') as f:
        result = json.load(f)
    names = ['UAG', 'Ours-D', 'CycleGAN']
    assert list(result['arms']) == [f'{name} -> {domain}' for name in names for domain in ('blue', 'red')]
    table = RUN.table_text(result).splitlines()
    assert table[0] == '|  | IoU | map inside | map outside | leak | change | FD-clf | accuracy % |'
    assert table[2].startswith('| UAG -> blue | 0.') and table[6].startswith('| CycleGAN -> blue |  |  |  | 0.')
    assert not ckpt(tmp_path / 'uag/Ours-D-s0')['config']['masked_d']
    assert not ckpt(tmp_path / 'uag/CycleGAN-s0')['config']['attention']
    # Again: nothing is trained. Its length stands in the log alone.
    trained = len(in_process)
    RUN.run_table('uag', known, str(tmp_path))
    assert [command.split()[0] for command in in_process[trained:]] == ['evaluate.py']
    shutil.copy(f'{tmp_path}/uag/UAG-s0/ckpt.pt', tmp_path)
    (tmp_path / 'log.txt').write_text('iter      4/9 | D_s 0.1 | 3.0 it/s\n')
    flags = f"--dataset={pairs} {known['UAG']} {RUN.TABLES['uag']['arms']['UAG']} --seed=0"
    assert not RUN.finished('train_uag.py', str(tmp_path), flags)
