"""One iteration of train_teacher.py and of train_student.py, recomputed from the equations alone.

A script writes its nets as they start (--max_iters=0) and, resumed, after one iteration. The test
repeats the random draws from the first checkpoint, writes the losses of eq. (1) to (7) out again, and
imports nothing but the nets. After one step of Adam with betas (0.5, 0.999) its exp_avg is half of
the gradient and exp_avg_sq a thousandth of its square: they show what was differentiated.
"""

import re

import numpy as np
import pytest
import torch
from conftest import TINY, TINY_S, ckpt, equal, make_data, run

from train_teacher import Discriminator, Generator

B = 6
WEIGHTS = ['--lambda_cls=2', '--lambda_rec=3', '--lambda_gp=5']


@pytest.fixture(scope='module')
def single(tmp_path_factory):
    return make_data(str(tmp_path_factory.mktemp('data') / 'single'), 'p,q,r,s', 'single')


def first_iteration(script, out_dir, *flags):
    """-> the checkpoints before and after the first iteration."""
    flags = [f'train_{script}.py', f'--out_dir={out_dir}', *flags, *WEIGHTS]
    flags += [f'--batch_size={B}', '--n_critic=1', '--resume=True']
    run(*flags, '--max_iters=0')
    start = ckpt(out_dir)
    run(*flags, '--max_iters=1')
    return start, ckpt(out_dir)


def net_of(checkpoint, key):
    """G or D of a checkpoint."""
    if key == 'G':
        net = Generator(**checkpoint['g_args'])
    else:
        net = Discriminator(**checkpoint['d_args'])
    net.load_state_dict(checkpoint[key])
    return net


def draw_batch(data, start, names, all_names, size):
    """What a script draws for its first iteration: images, labels, target labels, alpha."""
    x = torch.from_numpy(np.load(f'{data}/train_x.npy'))
    y = torch.from_numpy(np.load(f'{data}/train_y.npy'))
    # The labels of the script have the order of its attributes.
    c = torch.stack([y[:, all_names.index(name)] for name in names], 1).float()
    rows = torch.arange(len(x))
    if 'p' in all_names:
        # One class an image: those of other classes are left out.
        rows = rows[c.sum(1) > 0]
    torch.set_rng_state(start['rng'])
    i = rows[torch.randint(len(rows), (B,))]
    flip = torch.rand(B, 1, 1, 1) < 0.5
    order = torch.randperm(B)
    alpha = torch.rand(B, 1, 1, 1)
    images = []
    for b in range(B):
        image = x[i[b]].permute(2, 0, 1).float()
        if flip[b]:
            image = image.flip(2)
        # Smaller images are means over squares of pixels.
        square = image.shape[2] // size
        image = image.reshape(3, size, square, size, square).mean((2, 4))
        images.append(image / 127.5 - 1)
    assert flip.any() and not flip.all()
    assert not torch.equal(c[i], c[i][order])
    return torch.stack(images), c[i], c[i][order], alpha, y[i].float()


def L_cls(logits, c, single_label):
    """Cross entropy over the classes, or that of each attribute summed; the mean over the batch."""
    if single_label:
        p = logits.exp() / logits.exp().sum(1, keepdim=True)
        return -(c * p.log()).sum() / B
    p = 1 / (1 + (-logits).exp())
    return -(c * p.log() + (1 - c) * (1 - p).log()).sum() / B


def d_terms(D, x_real, x_fake, c_org, alpha, single_label):
    """Eq. (4) -> the terms by their names in the log, and their weighted sum."""
    x_hat = (alpha * x_real + (1 - alpha) * x_fake).requires_grad_()
    slope, = torch.autograd.grad(D(x_hat)[0].sum(), x_hat, create_graph=True)
    terms = dict(
        D_real=-D(x_real)[0].mean(),
        D_fake=D(x_fake)[0].mean(),
        D_cls=L_cls(D(x_real)[1], c_org, single_label),
        D_gp=((slope.square().sum((1, 2, 3)).sqrt() - 1) ** 2).mean())
    return terms, terms['D_real'] + terms['D_fake'] + 2 * terms['D_cls'] + 5 * terms['D_gp']


def g_terms(G, D, x_real, c_org, c_trg, single_label):
    """Eq. (5) without L_att -> the terms, and their weighted sum."""
    x_fake = G(x_real, c_trg)
    terms = dict(
        G_fake=-D(x_fake)[0].mean(),
        G_rec=(x_real - G(x_fake, c_org)).abs().mean(),
        G_cls=L_cls(D(x_fake)[1], c_trg, single_label))
    return terms, terms['G_fake'] + 3 * terms['G_rec'] + 2 * terms['G_cls']


def check_gradient(net, loss, adam):
    """Adam's two means are those of the gradient of the loss. -> the gradient."""
    gradient = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)
    for n, g in enumerate(gradient):
        scale = g.abs().max().item()
        mean = adam['state'][n]['exp_avg']
        square = adam['state'][n]['exp_avg_sq']
        torch.testing.assert_close(mean, g / 2, rtol=1e-3, atol=1e-4 * scale)
        torch.testing.assert_close(square, g ** 2 / 1000, rtol=1e-3, atol=1e-7 * scale ** 2)
    return gradient


def check_log(out_dir, terms):
    """The last line of the log has the terms, each with its name."""
    line = (out_dir / 'log.txt').read_text().splitlines()[-1]
    logged = dict(re.findall(r'(\w+) +(-?[\d.]+(?:e[-+]?\d+)?)', line))
    for name, value in terms.items():
        assert float(logged[name]) == pytest.approx(value.item(), rel=6e-3, abs=1e-6), name


TEACHERS = {
    'as the data': ['--attrs=all'],
    'attributes in another order': ['--attrs=c,a,b'],
    'some, at half the size': ['--attrs=c,b', '--image_size=8'],
    'single-label': ['--attrs=all'],
    'single-label, some classes': ['--attrs=s,p,q'],
}


@pytest.mark.parametrize('case', TEACHERS)
def test_the_teachers_first_iteration_is_eq_4_and_5(case, data, single, tmp_path):
    single_label = case.startswith('single')
    folder = single if single_label else data
    all_names = ['p', 'q', 'r', 's'] if single_label else ['a', 'b', 'c']
    size = 8 if 'half' in case else 16
    start, end = first_iteration('teacher', tmp_path, f'--dataset={folder}', *TINY, *TEACHERS[case])
    names = all_names
    if TEACHERS[case][0] != '--attrs=all':
        names = TEACHERS[case][0].removeprefix('--attrs=').split(',')
    assert start['attrs'] == names
    x_real, c_org, c_trg, alpha, _ = draw_batch(folder, start, names, all_names, size)

    G = net_of(start, 'G')
    D = net_of(start, 'D')
    x_fake = G(x_real, c_trg).detach()
    terms, loss = d_terms(D, x_real, x_fake, c_org, alpha, single_label)
    check_gradient(D, loss, end['opt_D'])
    check_log(tmp_path, terms)
    # G steps after D, on the new D.
    terms, loss = g_terms(G, net_of(end, 'D'), x_real, c_org, c_trg, single_label)
    check_gradient(G, loss, end['opt_G'])
    check_log(tmp_path, terms)


def attention_map(G, D, x, c, classes, cam, create_graph=False):
    """Eq. (1) and (2) image by image: F behind the residual blocks, the score of one class by D."""
    planes = c[:, :, None, None].expand(-1, -1, *x.shape[2:])
    F = G.res(G.down(torch.cat([x, planes], 1)))
    if not F.requires_grad:
        F.requires_grad_()
    logits = D(G.out(G.up(F)))[1]
    score = sum(logits[b, classes[b]] for b in range(B))
    slope, = torch.autograd.grad(score, F, create_graph=create_graph)
    if cam == 'gradcam':
        slope = slope.mean((2, 3), keepdim=True)
    return (slope * F).sum(1).clamp(min=0)


def scaled(A, att_norm):
    """A map, divided by its norm."""
    if att_norm == 'l2':
        return A / A.square().sum().add(1e-30).sqrt()
    if att_norm == 'max':
        return A / A.max().add(1e-30)
    return A


def teachers_labels(y, c_trg, teacher_names, c_pse, all_names, exclusive, pseudo):
    """The teacher's target labels: the student's, and the image's own where those say nothing."""
    labels = torch.zeros(B, len(teacher_names))
    for b in range(B):
        targets = [name for k, name in enumerate(c_pse) if c_trg[b, k]]
        for j, name in enumerate(teacher_names):
            excluded = any(name in group and set(group) & set(targets) for group in exclusive)
            if name in c_pse:
                labels[b, j] = name in targets
            elif not pseudo and not excluded:
                labels[b, j] = y[b, all_names.index(name)]
    return labels


# The weight of L_att, large enough in each case that its gradient shows, and the flags.
STUDENTS = {
    'gradcam none': (700, ['--cam=gradcam', '--att_norm=none']),
    'gradcam l2': (7, ['--cam=gradcam', '--att_norm=l2']),
    'gradcam max': (7, ['--cam=gradcam', '--att_norm=max']),
    'hirescam none': (700, ['--cam=hirescam', '--att_norm=none']),
    'hirescam l2': (7, ['--cam=hirescam', '--att_norm=l2']),
    'hirescam max': (7, ['--cam=hirescam', '--att_norm=max']),
    'defaults': (700, []),
    'some_attributes': (7, ['--att_norm=l2', '--cam=hirescam', '--attrs=c,b', '--seed=3']),
    'pseudo': (7, ['--att_norm=l2', '--cam=hirescam', '--attrs=a,b', '--pseudo=c,a', '--seed=1']),
    'shuffled': (7, ['--att_norm=l2', '--cam=hirescam', '--att_shuffle=True']),
    'no L_att': (0, []),
    'two_blocks': (7, ['--att_norm=l2', '--cam=hirescam', '--n_blocks=2']),
    'single-label': (7, ['--att_norm=l2', '--cam=hirescam']),
}


@pytest.fixture(scope='module')
def single_teacher(single, tmp_path_factory):
    out = tmp_path_factory.mktemp('single_teacher')
    flags = [*TINY, '--attrs=s,p,q', '--n_blocks=2']
    run('train_teacher.py', f'--dataset={single}', f'--out_dir={out}', *flags)
    return out


@pytest.mark.parametrize('case', STUDENTS)
def test_the_students_first_iteration_is_eq_1_to_7(
        case, data, single, teacher, single_teacher, tmp_path):
    single_label = case == 'single-label'
    folder = single if single_label else data
    all_names = ['p', 'q', 'r', 's'] if single_label else ['a', 'b', 'c']
    T = ckpt(single_teacher if single_label else teacher)
    lambda_att, flags = STUDENTS[case]
    options = dict(cam='gradcam', att_norm='none', attrs=','.join(T['attrs']), pseudo='')
    options.update(flag.removeprefix('--').split('=') for flag in flags)
    names = options['attrs'].split(',')
    c_pse = options['pseudo'].split(',') if options['pseudo'] else names
    path = single_teacher if single_label else teacher
    start, end = first_iteration(
        'student', tmp_path, f'--teacher={path}/ckpt.pt', *TINY_S, f'--lambda_att={lambda_att}', *flags)
    x_real, c_org, c_trg, alpha, y = draw_batch(folder, start, names, all_names, 16)
    # One of its target classes at random for each image.
    lots = torch.rand(B, len(names))
    classes = (lots * c_trg).argmax(1)
    has_class = [b for b in range(B) if c_trg[b].sum() > 0]

    G = net_of(start, 'G')
    D = net_of(start, 'D')
    x_fake = G(x_real, c_trg).detach()
    _, loss = d_terms(D, x_real, x_fake, c_org, alpha, single_label)
    check_gradient(D, loss, end['opt_D'])
    terms, loss = g_terms(G, net_of(end, 'D'), x_real, c_org, c_trg, single_label)
    check_log(tmp_path, terms)
    if not lambda_att:
        check_gradient(G, loss, end['opt_G'])
        return

    # The teacher's G makes the same change. The teacher's D scores both.
    D_T = net_of(T, 'D').requires_grad_(False)
    G_T = net_of(T, 'G').requires_grad_(False)
    pseudo = bool(options['pseudo'])
    exclusive = [all_names] if single_label else [['a', 'b']]
    c_T = teachers_labels(y, c_trg, T['attrs'], c_pse, all_names, exclusive, pseudo)
    if case in ('some_attributes', 'pseudo'):
        # The images are such that a mistake in these labels would show.
        assert not torch.equal(c_T, teachers_labels(y, c_trg, T['attrs'], c_pse, all_names, [], False))
        assert not torch.equal(c_T, teachers_labels(
            y, c_trg, T['attrs'], c_pse, all_names, exclusive, not pseudo))
    teacher_classes = [T['attrs'].index(c_pse[i]) for i in classes]
    A_T = attention_map(G_T, D_T, x_real, c_T, teacher_classes, options['cam']).detach()
    A_S = attention_map(G, D_T, x_real, c_trg, teacher_classes, options['cam'], create_graph=True)
    distances = []
    for b in has_class:
        other = b
        if case == 'shuffled':
            # The next image of the batch with the same class; without one, this image does not count.
            round_the_batch = [(b + step) % B for step in range(1, B)]
            same = [d for d in round_the_batch if d in has_class and classes[d] == classes[b]]
            if not same:
                continue
            other = same[0]
        teachers = scaled(A_T[other], options['att_norm'])
        students = scaled(A_S[b], options['att_norm'])
        difference = teachers - students
        distances.append(difference.square().sum().sqrt())
    L_att = sum(distances) / len(distances)
    check_log(tmp_path, dict(G_att=L_att))
    gradient = check_gradient(G, loss + lambda_att * L_att, end['opt_G'])
    share = torch.autograd.grad(lambda_att * L_att, list(G.parameters()), allow_unused=True)
    # The test would not notice a wrong sign, were the share of L_att small.
    assert share[0].norm() > 0.05 * gradient[0].norm()


def test_G_steps_once_in_n_critic_iterations_and_D_in_each(data, tmp_path):
    seen = []
    for max_iters in range(4):
        run('train_teacher.py', f'--dataset={data}', *TINY, '--n_critic=3', '--resume=True', '--lr=1e-3',
            f'--max_iters={max_iters}', f'--out_dir={tmp_path}')
        seen.append(ckpt(tmp_path))
    for before, after in zip(seen, seen[1:]):
        assert not equal(before['D'], after['D'])
        assert equal(before['G'], after['G']) == (after['iter'] < 3)


def test_lr_is_constant_for_half_of_the_run_and_then_falls_to_0(data, teacher, tmp_path):
    flags = dict(teacher=[f'--dataset={data}', *TINY], student=[f'--teacher={teacher}/ckpt.pt', *TINY_S])
    shares = {2: 1, 3: 2 / 3, 8: 1 / 4}
    for script in flags:
        for max_iters, share in shares.items():
            out_dir = tmp_path / f'{script}{max_iters}'
            run(f'train_{script}.py', *flags[script], '--lr=1e-3', f'--max_iters={max_iters}',
                f'--out_dir={out_dir}')
            for optimiser in ('opt_G', 'opt_D'):
                # That of the last iteration, number max_iters - 1.
                assert ckpt(out_dir)[optimiser]['param_groups'][0]['lr'] == pytest.approx(1e-3 * share)
