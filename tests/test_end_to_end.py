"""The scripts as a user runs them: subprocesses with tiny nets, then a look at what they wrote."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, TINY_S, make_data, run
from PIL import Image


def ckpt(folder):
    return torch.load(os.path.join(folder, 'ckpt.pt'), weights_only=True)


def same(a, b):
    """Two checkpoints' tensors and numbers, bit for bit; where they were written may differ."""
    for key in ('G', 'D', 'opt_G', 'opt_D', 'iter', 'rng'):
        assert _equal(a[key], b[key]), key


def _equal(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_equal, a, b))
    return torch.equal(a, b) if torch.is_tensor(a) else a == b


@pytest.fixture(scope='module')
def student(teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp('student')
    run('train_student.py', f'--teacher={teacher}/ckpt.pt', f'--out_dir={out}', *TINY_S)
    return out


def test_teacher_writes_everything(teacher):
    assert sorted(os.listdir(teacher)) == ['ckpt.pt', 'log.txt', 'samples', 'train_teacher.py']
    assert sorted(os.listdir(teacher / 'samples')) == ['000002.png', '000004.png']
    assert Image.open(teacher / 'samples' / '000004.png').size == (4 * 18 + 2, 2 * 18 + 2)  # 1 + 3 by 2 images
    log = (teacher / 'log.txt').read_text()
    for word in ('iter      4/4', 'D real', 'gp', 'rec', 'it/s', 'data', 'eta', 'GB', 'grids: input, a, b, c'):
        assert word in log, word
    c = ckpt(teacher)
    assert c['iter'] == 4 and c['attrs'] == ['a', 'b', 'c'] and c['script'] == 'train_teacher.py'
    assert c['source'] == (teacher / 'train_teacher.py').read_text()


def test_student_takes_what_is_open_from_the_teacher(teacher, student):
    c = ckpt(student)
    assert c['attrs'] == ['a', 'b', 'c'] and c['d_args'] == ckpt(teacher)['d_args'] and c['g_args']['conv_dim'] == 2
    log = (student / 'log.txt').read_text()
    assert 'att' in log and 'dead_T' in log and 'dead_S' in log
    assert Image.open(student / 'samples' / '000004.png').size == (4 * 18 + 2, 6 * 18 + 2)  # 3 rows an image


def test_attention_changes_the_student_and_without_it_nothing_is_logged(teacher, student, tmp_path):
    for lambda_att in (0, 1e-30):  # the second computes the loss, and weighs it away: only the weight changes anything
        run('train_student.py', f'--teacher={teacher}/ckpt.pt', f'--out_dir={tmp_path}/{lambda_att}', *TINY_S,
            f'--lambda_att={lambda_att}')
    assert ' att ' not in (tmp_path / '0' / 'log.txt').read_text()
    assert ' att ' in (tmp_path / '1e-30' / 'log.txt').read_text()
    assert _equal(ckpt(tmp_path / '0')['G'], ckpt(tmp_path / '1e-30')['G'])
    assert not _equal(ckpt(tmp_path / '0')['G'], ckpt(student)['G'])


def test_evaluate_writes_table_picture_and_json(teacher, student, tmp_path):
    evaluate = ['evaluate.py', f'--ckpt={teacher}/ckpt.pt,{student}/ckpt.pt', '--device=cpu', '--clf_epochs=1',
                f'--clf_dir={tmp_path}/clf', '--inception=none']
    out = run(*evaluate, f'--out_dir={tmp_path}/e', '--batch_size=7')
    r = json.load(open(tmp_path / 'e' / 'results.json'))
    assert [c['label'] for c in r['checkpoints']] == [teacher.name, student.name]
    for c in r['checkpoints']:
        assert set(c['accuracy']) == {'a', 'b', 'c'} and 0 <= c['accuracy_mean'] <= 1 and c['fd_clf'] >= 0
        assert c['energy'] >= 0 and 0 <= c['iou'] <= 1 and c['leak'] > 0 and c['params'] > 0 and c['macs'] > 0
    y = np.load(os.path.join(ckpt(teacher)['config']['dataset'], 'test_y.npy'))
    assert r['checkpoints'][0]['n_fake'] == (y == 0).sum()  # every test image without the attribute
    assert (tmp_path / 'e' / 'table.txt').read_text().strip() in out
    assert Image.open(tmp_path / 'e' / 'maps.png').size[0] > 5 * 96
    again = run(*evaluate, f'--out_dir={tmp_path}/e2', '--batch_size=20')
    r2 = json.load(open(tmp_path / 'e2' / 'results.json'))
    assert 'step' not in again  # the classifier came from the cache
    for c, c2 in zip(r['checkpoints'], r2['checkpoints']):  # and the batch size does not matter
        assert c['accuracy'] == c2['accuracy'] and c['fd_clf'] == pytest.approx(c2['fd_clf'], rel=1e-3)
        assert c['leak'] == pytest.approx(c2['leak'], rel=1e-5)


def test_single_label(tmp_path):
    data = make_data(str(tmp_path / 'single'), 'p,q,r,s', 'single')
    run('train_teacher.py', f'--dataset={data}', f'--out_dir={tmp_path}/t', *TINY[1:], '--attrs=p,q,s')
    run('train_student.py', f'--teacher={tmp_path}/t/ckpt.pt', f'--out_dir={tmp_path}/s', *TINY_S)
    run('evaluate.py', f'--ckpt={tmp_path}/t/ckpt.pt,{tmp_path}/s/ckpt.pt', f'--out_dir={tmp_path}/e', '--device=cpu',
        '--inception=none', f'--clf_dir={tmp_path}/clf', '--clf_epochs=1')
    r = json.load(open(tmp_path / 'e' / 'results.json'))
    y = np.load(f'{data}/test_y.npy')[:, [0, 1, 3]]
    for c in r['checkpoints']:  # each image of these classes to each of the two others
        assert set(c['accuracy']) == {'p', 'q', 's'} and c['n_fake'] == 2 * y.sum()
    y = np.load(f'{data}/train_y.npy')
    assert f'{y[:, [0, 1, 3]].sum()} training images' in (tmp_path / 't' / 'log.txt').read_text()  # those of r left out


def test_same_seed_same_checkpoint_other_seed_another(teacher, data, tmp_path):
    run('train_teacher.py', f'--dataset={data}', f'--out_dir={tmp_path}/a', *TINY)
    same(ckpt(teacher), ckpt(tmp_path / 'a'))
    run('train_teacher.py', f'--dataset={data}', f'--out_dir={tmp_path}/b', *TINY, '--seed=1')
    assert not _equal(ckpt(teacher)['G'], ckpt(tmp_path / 'b')['G'])


def test_resumed_run_equals_an_uninterrupted_one(teacher, student, data, tmp_path):
    """Killed behind the checkpoint of iteration 2 (by a sample folder that cannot be written at 4) and gone on with."""
    for script, whole, args in (
            ('train_teacher.py', teacher, [f'--dataset={data}', *TINY]),
            ('train_student.py', student, [f'--teacher={teacher}/ckpt.pt', *TINY_S])):
        out = tmp_path / script
        os.makedirs(out / 'samples' / '000004.png')
        with pytest.raises(AssertionError):
            run(script, f'--out_dir={out}', *args)
        assert ckpt(out)['iter'] == 2
        os.rmdir(out / 'samples' / '000004.png')
        assert 'exists: --resume=True' in run(script, f'--out_dir={out}', *args, ok=False)
        run(script, f'--out_dir={out}', *args, '--resume=True')
        same(ckpt(out), ckpt(whole))


def test_resume_of_a_finished_run_changes_nothing(teacher, data):
    before = {name: (teacher / name).read_bytes() for name in ('ckpt.pt', 'log.txt', 'train_teacher.py')}
    said = run('train_teacher.py', f'--dataset={data}', f'--out_dir={teacher}', *TINY, '--resume=True')
    assert 'nothing to do' in said
    assert before == {name: (teacher / name).read_bytes() for name in before}


def test_resume_refuses_what_is_not_its_own(teacher, student, data):
    args = ['train_teacher.py', f'--dataset={data}', *TINY, '--resume=True']
    assert 'other nets' in run(*args, f'--out_dir={teacher}', '--conv_dim=8', ok=False)
    assert 'was made by train_student.py' in run(*args, f'--out_dir={student}', '--conv_dim=2', ok=False)


def test_not_finite_stops_with_the_loss_and_keeps_the_checkpoint(teacher, data, tmp_path):
    shutil.copytree(teacher, tmp_path / 't')
    before = (tmp_path / 't' / 'ckpt.pt').read_bytes()
    args = [*TINY, '--resume=True', '--max_iters=8', '--lr=1e30']
    said = run('train_teacher.py', f'--dataset={data}', f'--out_dir={tmp_path}/t', *args, ok=False)
    assert 'not finite: the loss D' in said and 'D gp' in said
    assert (tmp_path / 't' / 'ckpt.pt').read_bytes() == before
    log = (tmp_path / 't' / 'log.txt').read_text()
    assert said in log and 'resumed; changed: out_dir=' in log and 'lr=1e+30 was 0.0001' in log


def edited(tmp_path, name, old, new):
    with open(os.path.join(ROOT, 'train_student.py')) as f:
        source = f.read()
    assert old in source
    path = tmp_path / name
    path.write_text(source.replace(old, new))
    return path


def test_edited_copy_trains_and_is_evaluated_and_a_changed_script_is_refused(teacher, tmp_path):
    old, new = 'h = F.relu(self.norm1(self.conv1(x)))', 'h = F.gelu(self.norm1(self.conv1(x)))'
    script = edited(tmp_path, 'my_student.py', old, new)
    args = [f'--teacher={teacher}/ckpt.pt', *TINY_S]
    where = {'PYTHONPATH': ROOT}
    # the copy looks for the teacher's script in its own folder, unless told
    assert '--teacher_script=' in run(script, f'--out_dir={tmp_path}/s', *args, ok=False, env=where)
    run(script, f'--out_dir={tmp_path}/s', *args, f'--teacher_script={ROOT}/train_teacher.py', env=where)
    evaluate = ['evaluate.py', f'--ckpt={teacher}/ckpt.pt,{tmp_path}/s/ckpt.pt', f'--out_dir={tmp_path}/e',
                '--inception=none',                 '--device=cpu', f'--clf_dir={tmp_path}/clf', '--clf_epochs=1']
    assert '--script=' in run(*evaluate, ok=False)  # my_student.py is not in the repository
    run(*evaluate, f'--script=,{script}')
    run(*evaluate, f'--script=,{tmp_path}/s/my_student.py')  # the copy kept in out_dir does as well
    # changed since: refused, naming the class
    edited(tmp_path, 'my_student.py', old, 'h = F.silu(self.norm1(self.conv1(x)))')
    said = run(*evaluate, f'--script=,{script}', ok=False)
    assert 'ResidualBlock' in said and 'Generator' not in said and 'changed' in said
    # comments and docstrings do not count
    path = edited(tmp_path, 'my_student.py', old, new + '  # smooth')
    path.write_text(path.read_text().replace('"""x + IN(', '"""Other words: x + IN('))
    run(*evaluate, f'--script=,{script}')


def test_a_checkpoint_does_not_choose_what_runs(teacher, tmp_path):
    c = ckpt(teacher)
    for name in ('../evil.py', '/tmp/evil.py', 'evil.sh', ''):
        torch.save({**c, 'script': name}, tmp_path / 'c.pt')
        assert 'no bare file name' in run('train_student.py', f'--teacher={tmp_path}/c.pt', ok=False)
    torch.save({**c, 'script': 'conftest.py'}, tmp_path / 'c.pt')
    assert 'conftest.py' in run('train_student.py', f'--teacher={tmp_path}/c.pt', ok=False)
    bad = c['source'] + "\nopen('/tmp/never', 'w')\n"
    torch.save({**c, 'source': bad}, tmp_path / 'c.pt')  # the text inside is compared, never run
    run('train_student.py', f'--teacher={tmp_path}/c.pt', f'--out_dir={tmp_path}/s', *TINY_S)
    assert not os.path.exists('/tmp/never')


class Evil:
    def __reduce__(self):
        return os.mkdir, ('/tmp/evil_ran',)


@pytest.mark.parametrize('make,says', [
    (lambda p: None, 'No such file'),
    (lambda p: p.write_bytes(b''), 'a damaged one'),
    (lambda p: p.write_text('hello'), 'a damaged one'),
    (lambda p: torch.save({'a': 1}, p), 'no stargan checkpoint'),
    (lambda p: torch.save([1], p), 'no stargan checkpoint'),
    (lambda p: torch.save({'kind': Evil()}, p), 'a damaged one')])
def test_bad_teacher_files(make, says, tmp_path):
    make(tmp_path / 't.pt')
    assert says in run('train_student.py', f'--teacher={tmp_path}/t.pt', f'--out_dir={tmp_path}/s', ok=False)
    assert not os.path.exists(tmp_path / 's') and not os.path.exists('/tmp/evil_ran')


def test_truncated_teacher(teacher, tmp_path):
    (tmp_path / 't.pt').write_bytes((teacher / 'ckpt.pt').read_bytes()[:5000])
    assert 'damaged' in run('train_student.py', f'--teacher={tmp_path}/t.pt', ok=False)


def test_mismatches_are_said_in_one_line(teacher, data, tmp_path):
    out = f'--out_dir={tmp_path}/x'
    assert 'must be the same' in run('train_student.py', f'--teacher={teacher}/ckpt.pt', out, '--attrs=a,b', ok=False)
    other = make_data(str(tmp_path / 'other'), size=24)
    said = run('train_student.py', f'--teacher={teacher}/ckpt.pt', out, f'--dataset={other}', ok=False)
    assert 'does not divide' in said
    assert '--teacher=' in run('train_student.py', out, ok=False)
    assert 'did you mean a' in run('train_teacher.py', f'--dataset={data}', out, *TINY[1:], '--attrs=aa', ok=False)
    assert 'multiple of 32' in run('train_teacher.py', f'--dataset={data}', out, *TINY, '--d_n_layers=5', ok=False)
    assert 'image_size' in run('train_teacher.py', f'--dataset={data}', out, *TINY, '--image_size=12', ok=False)
    assert 'prepare.py' in run('train_teacher.py', '--dataset=nowhere', out, *TINY, ok=False)
    os.remove(f'{other}/train_x.npy')
    assert 'prepare the data again' in run('train_teacher.py', f'--dataset={other}', out, *TINY, ok=False)
    assert 'above 0' in run('train_teacher.py', f'--dataset={data}', out, *TINY, '--max_iters=0', ok=False)
    assert 'above 0' in run('train_teacher.py', f'--dataset={data}', out, *TINY, '--n_samples=0', ok=False)
    assert 'above 0' in run('train_teacher.py', f'--dataset={data}', out, *TINY, '--lr=nan', ok=False)
    assert '--device=gpu' in run('train_teacher.py', f'--dataset={data}', out, *TINY[:-1], '--device=gpu', ok=False)
    assert '--dtype' in run('train_teacher.py', f'--dataset={data}', out, *TINY, '--dtype=float16', ok=False)
    assert not os.path.exists(tmp_path / 'x')
    (tmp_path / 'file').write_text('')
    assert 'cannot write' in run('train_teacher.py', f'--dataset={data}', f'--out_dir={tmp_path}/file', *TINY, ok=False)


def test_smaller_image_size_averages_down(data, tmp_path):
    run('train_teacher.py', f'--dataset={data}', f'--out_dir={tmp_path}', *TINY, '--image_size=8')
    assert ckpt(tmp_path)['d_args']['image_size'] == 8
    import train_teacher
    x = torch.arange(4 * 4 * 3, dtype=torch.uint8).view(1, 4, 4, 3)
    want = x.float().view(1, 2, 2, 2, 2, 3).mean((2, 4)).permute(0, 3, 1, 2) / 127.5 - 1
    assert torch.allclose(train_teacher.to_float(x, 2), want)


def test_get_batch_flips_and_keeps_labels_with_images():
    import train_teacher
    torch.manual_seed(0)
    x = torch.arange(8, dtype=torch.uint8)[:, None, None, None].expand(8, 4, 4, 3).clone()
    x[:, :, 0] = 255  # the left column
    images, labels = train_teacher.get_batch(x, torch.arange(8.)[:, None], torch.randint(8, (64,)), 4, 'cpu')
    assert torch.allclose((images[:, 0, 0, 1] + 1) * 127.5, labels[:, 0], atol=1e-4)
    flipped = images[:, 0, 0, 3] == 1
    assert torch.equal(flipped, images[:, 0, 0, 0] != 1) and 16 < flipped.sum() < 48
