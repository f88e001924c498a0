"""What runs of train_teacher.py and train_student.py leave behind: files, logs, grids of samples."""

import os
import re

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, TINY_S, ckpt, equal, make_data, run
from PIL import Image

from gradcam import GradCAM, overlay
from train_student import Discriminator, Generator, set_attr, to_float

SIZE = 16
ZOOM = 6
EVERY = ['--log_interval=1', '--max_iters=3']


def read_log(folder):
    """-> the lines of a run's log; of those with losses a dict for each, name -> value."""
    lines = (folder / 'log.txt').read_text(encoding='utf-8').splitlines()
    losses = []
    for line in lines:
        if line.startswith('iter'):
            pairs = re.findall(r'(\w+) +(-?[\d.]+(?:e[-+]?\d+)?)', line.split('|')[1])
            losses.append({name: float(value) for name, value in pairs})
    return lines, losses


def read_grid(path):
    """A grid of samples -> images (rows, columns, 3, SIZE, SIZE), 0 to 255."""
    with Image.open(path) as image:
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    # Above the images are the names of the columns. Pixels are shown as squares.
    x = x[:, 16::ZOOM, ::ZOOM]
    return x.unfold(1, SIZE, SIZE).unfold(2, SIZE, SIZE).permute(1, 2, 0, 3, 4)


def as_saved(x):
    """Images in [-1, 1] -> as a grid has them."""
    return (127.5 * x + 127.5).clamp(0, 255)


@pytest.mark.parametrize('of', ['teacher', 'student'])
def test_a_run_leaves_a_checkpoint_a_log_samples_and_its_script(of, request):
    folder = request.getfixturevalue(of)
    script = f'train_{of}.py'
    assert sorted(os.listdir(folder)) == ['ckpt.pt', 'log.txt', 'samples', script]
    assert sorted(os.listdir(folder / 'samples')) == ['000000.png', '000002.png', '000004.png']
    saved = ckpt(folder)
    assert (saved['kind'], saved['script'], saved['iter']) == ('stargan', script, 4)
    assert saved['attrs'] == ['a', 'b', 'c']
    assert saved['exclusive'] == [[0, 1]]
    assert saved['config']['max_iters'] == 4
    with open(f'{ROOT}/{script}', encoding='utf-8') as file:
        assert saved['source'] == file.read() == (folder / script).read_text(encoding='utf-8')


def test_a_student_takes_data_attributes_and_the_size_of_D_from_its_teacher(teacher, student):
    of_teacher = ckpt(teacher)
    of_student = ckpt(student)
    assert of_student['d_args'] == of_teacher['d_args']
    assert of_student['config']['dataset'] == of_teacher['config']['dataset']
    assert of_student['config']['attrs'] == 'a,b,c'
    assert of_student['g_args'] == dict(conv_dim=2, c_dim=3, n_blocks=1)


def test_a_log_begins_with_its_command_and_its_losses_can_be_read(teacher, student):
    of_D = {'D_real', 'D_fake', 'D_cls', 'D_gp'}
    of_G = {'G_fake', 'G_rec', 'G_cls'}
    maps = {'G_att', 'dead_T', 'dead_S'}
    for folder, script, names in (
            (teacher, 'train_teacher.py', of_D | of_G), (student, 'train_student.py', of_D | of_G | maps)):
        lines, losses = read_log(folder)
        assert lines[0].startswith(f'$ python {script} --') and f'--out_dir={folder}' in lines[0]
        assert sum(line.endswith('samples have the columns: input, a,b,c') for line in lines) == 1
        assert [set(loss) for loss in losses] == [names, names]
        for it, line in zip((2, 4), lines[-2:]):
            assert re.fullmatch(rf'iter +{it}/4 \| .* \| [\d.]+ it/s \| eta \d+ min', line)


def test_an_interval_without_a_step_of_G_has_no_losses_of_G(teacher, data, tmp_path):
    """With n_critic=2 only the second of three iterations has one; nothing is nan."""
    run('train_teacher.py', f'--dataset={data}', f'--out_dir={tmp_path}/t', *TINY, *EVERY)
    run('train_student.py', f'--teacher={teacher}/ckpt.pt', f'--out_dir={tmp_path}/s', *TINY_S, *EVERY)
    for folder in (tmp_path / 't', tmp_path / 's'):
        lines, losses = read_log(folder)
        assert 'nan' not in '\n'.join(lines)
        assert ['G_rec' in loss for loss in losses] == [False, True, False]
        assert all('D_gp' in loss for loss in losses)


def test_a_line_of_the_log_has_the_means_since_the_last_one(data, tmp_path):
    args = ['train_teacher.py', f'--dataset={data}', *TINY, '--lr=0.01']
    run(*args, f'--out_dir={tmp_path}/each', '--log_interval=1')
    run(*args, f'--out_dir={tmp_path}/two')
    _, each = read_log(tmp_path / 'each')
    _, two = read_log(tmp_path / 'two')
    for k in (0, 1):
        first = each[2 * k]['D_gp']
        second = each[2 * k + 1]['D_gp']
        assert two[k]['D_gp'] == pytest.approx((first + second) / 2, rel=0.01)
        assert abs(first - second) > 0.05 * second


def test_samples_are_the_first_test_images_and_each_attribute_switched_on(teacher, student, data):
    x = to_float(torch.from_numpy(np.load(f'{data}/test_x.npy')[:8]), SIZE)
    c = torch.from_numpy(np.load(f'{data}/test_y.npy')[:8]).float()
    of_teacher = ckpt(teacher)
    of_student = ckpt(student)
    G_T = Generator(**of_teacher['g_args'])
    G_T.load_state_dict(of_teacher['G'])
    G_S = Generator(**of_student['g_args'])
    G_S.load_state_dict(of_student['G'])
    D_T = Discriminator(**of_teacher['d_args'])
    D_T.load_state_dict(of_teacher['D'])
    images_T = read_grid(teacher / 'samples' / '000004.png')
    images_S = read_grid(student / 'samples' / '000004.png')
    assert images_T.shape[:2] == (8, 4) and images_S.shape[:2] == (24, 4)
    assert (images_T[:, 0] - as_saved(x)).abs().max() <= 1
    assert (images_S[0::3, 0] - as_saved(x)).abs().max() <= 1
    for i in range(3):
        c_trg = set_attr(c, i, [[0, 1]])
        assert (images_T[:, i + 1] - as_saved(G_T(x, c_trg))).abs().max() <= 1
        assert (images_S[0::3, i + 1] - as_saved(G_S(x, c_trg))).abs().max() <= 1
        for row, G in ((1, G_T), (2, G_S)):
            hook = GradCAM(G.res[-1])
            A = hook(D_T(G(x, c_trg))[1][:, i])
            hook.remove()
            want = as_saved(overlay(x, A))
            assert ((images_S[row::3, i + 1] - want).abs() > 2).float().mean() < 0.01


def test_samples_have_no_maps_without_the_loss_on_them(teacher, tmp_path):
    run('train_student.py', f'--teacher={teacher}/ckpt.pt', f'--out_dir={tmp_path}', *TINY_S, '--lambda_att=0')
    assert read_grid(tmp_path / 'samples' / '000004.png').shape[:2] == (8, 4)
    assert not any('G_att' in loss for loss in read_log(tmp_path)[1])


def test_attention_changes_the_student_by_its_weight_alone(teacher, student, tmp_path):
    """A loss that is weighed away changes nothing, so no random number either."""
    args = ['train_student.py', f'--teacher={teacher}/ckpt.pt', *TINY_S]
    for lambda_att in (0, 1e-30):
        run(*args, f'--out_dir={tmp_path}/{lambda_att}', f'--lambda_att={lambda_att}')
    assert equal(ckpt(tmp_path / '0')['G'], ckpt(tmp_path / '1e-30')['G'])
    assert not equal(ckpt(tmp_path / '0')['G'], ckpt(student)['G'])


def test_the_order_of_the_teachers_attributes_is_free(teacher, tmp_path):
    args = ['train_student.py', f'--teacher={teacher}/ckpt.pt', f'--out_dir={tmp_path}', *TINY_S]
    run(*args, '--attrs=c,a')
    assert ckpt(tmp_path)['attrs'] == ['c', 'a']
    assert ckpt(tmp_path)['exclusive'] == [[1]]


def test_single_label_and_bfloat16(tmp_path):
    data = make_data(str(tmp_path / 'single'), 'p,q,r,s', 'single')
    bf16 = '--dtype=bfloat16'
    run('train_teacher.py', f'--dataset={data}', f'--out_dir={tmp_path}/t', *TINY, '--attrs=p,q,s', bf16)
    run('train_student.py', f'--teacher={tmp_path}/t/ckpt.pt', f'--out_dir={tmp_path}/s', *TINY_S, bf16)
    y = np.load(f'{data}/train_y.npy')
    for folder in (tmp_path / 't', tmp_path / 's'):
        lines, losses = read_log(folder)
        # Images of r alone are left out.
        assert any(line.startswith(f'{y[:, [0, 1, 3]].sum()} images of') for line in lines)
        assert ckpt(folder)['attrs'] == ['p', 'q', 's'] and len(losses) == 2
        assert ckpt(folder)['G']['down.0.weight'].dtype == torch.float32


def test_a_label_without_effect_is_warned_of(teacher, data, tmp_path):
    deaf = ckpt(teacher)
    deaf['G']['down.0.weight'][:, 3:] = 0
    torch.save(deaf, tmp_path / 'deaf.pt')
    said = run('train_teacher.py', f'--dataset={data}', *TINY, '--lr=1e-9', f'--out_dir={tmp_path}/t',
               f'--init_from={tmp_path}/deaf.pt')
    # After 2 and 4 iterations, not at the start.
    assert said.count('warning: G ignores its label') == 2
    assert 'ignores' not in (teacher / 'log.txt').read_text()


def test_names_that_no_terminal_can_show(data, tmp_path):
    """Latin-1 bytes and accents, in names of attributes and folders, at an ASCII terminal."""
    ascii_terminal = dict(PYTHONIOENCODING='ascii')
    folder = os.fsdecode(str(tmp_path).encode() + b'/caf\xe9')
    make_data(folder, 'a,\udce9,\u0161')
    args = ['train_teacher.py', f'--dataset={folder}', f'--out_dir={folder}/t', *TINY]
    run(*args, '--max_iters=1', env=ascii_terminal)
    run(*args, '--resume=True', '--lr=1', env=ascii_terminal)
    assert '\\udce9,\u0161' in open(f'{folder}/t/log.txt', encoding='utf-8').read()
    args = ['train_student.py', f'--teacher={folder}/t/ckpt.pt', f'--out_dir={folder}/s', *TINY_S]
    run(*args, '--max_iters=1', env=ascii_terminal)
    assert ckpt(f'{folder}/s')['attrs'] == ['a', '\udce9', '\u0161']
    assert 'caf' in run(*args, env=ascii_terminal, ok=False)


def test_data_are_found_by_a_name_under_data_or_by_a_path(data, tmp_path):
    args = ['train_teacher.py', *TINY, '--max_iters=0']
    parent, name = os.path.split(data)
    run(f'{ROOT}/{args[0]}', *args[1:], f'--dataset={name}', f'--out_dir={tmp_path}/a', cwd=parent)
    assert 'no meta.json' in run(*args, f'--dataset={name}', f'--out_dir={tmp_path}/b', ok=False)
    os.makedirs(tmp_path / 'root' / 'data')
    os.symlink(data, tmp_path / 'root' / 'data' / 'mine')
    os.symlink(f'{ROOT}/train_teacher.py', tmp_path / 'root' / 'train_teacher.py')
    run(tmp_path / 'root' / 'train_teacher.py', *args[1:], '--dataset=mine', f'--out_dir={tmp_path}/c', cwd='/')
    assert equal(ckpt(tmp_path / 'a')['G'], ckpt(tmp_path / 'c')['G'])
