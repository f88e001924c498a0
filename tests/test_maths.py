"""Functions against closed forms: the sizes of the paper's nets, losses, maps and their derivatives."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import train_student
import train_teacher
from gradcam import GradCAM, overlay
from train_student import att_loss, cls_loss, gradient_penalty, pick_class, set_attr, shuffle
from train_teacher import Discriminator, Generator


def count(net):
    return sum(p.numel() for p in net.parameters())


# conv_dim, n_blocks -> 10^9 multiply-adds at 128 px, and the parameters at each c_dim
SIZES = {
    (64, 6): (
        9.96,
        {5: 8430528, 7: 8436800, 4: 8427392, 8: 8439936}),
    (32, 3): (
        1.73,
        {5: 1231840, 7: 1234976, 4: 1230272, 8: 1236544}),
    (16, 1): (
        0.351,
        {5: 164848, 7: 166416, 4: 164064, 8: 167200}),
}


@pytest.mark.parametrize('size', SIZES)
def test_generators_have_the_papers_sizes(size):
    conv_dim, n_blocks = size
    gmacs, params = SIZES[size]
    with torch.device('meta'):
        for c_dim, n in params.items():
            assert count(Generator(conv_dim, c_dim, n_blocks)) == n
        G = Generator(conv_dim, 5, n_blocks)
        with FlopCounterMode(display=False) as counter:
            G(torch.zeros(1, 3, 128, 128), torch.zeros(1, 5))
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, rel=5e-3)


def test_the_discriminator_has_the_papers_size():
    with torch.device('meta'):
        assert count(Discriminator(128, 64, 5, 6)) == 44762048


@pytest.mark.parametrize('size', [32, 96])
def test_nets_take_any_multiple_of_their_strides(size):
    with torch.device('meta'):
        x_fake = Generator(4, 3, 1)(torch.zeros(2, 3, size, size), torch.zeros(2, 3))
        out_src, out_cls = Discriminator(size, 4, 3, 5)(x_fake)
    assert x_fake.shape == (2, 3, size, size)
    assert out_src.shape == (2, 1, size // 32, size // 32)
    assert out_cls.shape == (2, 3)


def test_defaults_are_the_papers():
    for script, conv_dim, n_blocks in ((train_teacher, 64, 6), (train_student, 32, 3)):
        assert script.conv_dim == conv_dim
        assert script.n_blocks == n_blocks
        assert script.lambda_cls == 1
        assert script.lambda_rec == 10
        assert script.lambda_gp == 10
        assert script.n_critic == 5
        assert script.max_iters == 200000
        assert script.batch_size == 16
        assert script.lr == 1e-4
    assert train_teacher.d_conv_dim == 64
    assert train_teacher.d_n_layers == 6
    assert train_student.lambda_att == 10
    assert train_student.cam == 'gradcam'
    assert train_student.att_norm == 'none'
    table_1 = 'Goatee,Rosy_Cheeks,Eyeglasses,Mustache,Blond_Hair,Pale_Skin,Heavy_Makeup'
    assert train_teacher.attrs == table_1


def test_eq_4_gradient_penalty():
    """D(x) = <w, x> has the gradient w everywhere, so GP = (|w| - 1)^2. It is finite at w = 0."""
    w = torch.randn(3, 8, 8, requires_grad=True)
    x_real = torch.randn(2, 3, 8, 8)
    x_fake = torch.randn_like(x_real)
    alpha = torch.tensor([0.25, 0.75])
    alpha = alpha.view(2, 1, 1, 1)
    seen = []

    def linear(x):
        seen.append(x)
        return (w * x).sum((1, 2, 3)), None

    penalty = gradient_penalty(linear, x_real, x_fake, alpha)
    gradient, = torch.autograd.grad(penalty, w)
    excess = w.norm() - 1
    assert torch.allclose(penalty, excess ** 2)
    direction = w / w.norm()
    assert torch.allclose(gradient, 2 * excess * direction, rtol=1e-4)
    assert torch.allclose(seen[0], alpha * x_real + (1 - alpha) * x_fake)
    with torch.no_grad():
        w.zero_()
    penalty = gradient_penalty(linear, x_real, x_fake, alpha)
    assert penalty == 1
    assert torch.autograd.grad(penalty, w)[0].isfinite().all()


@pytest.mark.parametrize('att_norm', ['none', 'l2', 'max'])
def test_eq_3_is_the_mean_over_the_images_that_have_a_class(att_norm):
    A_T = torch.rand(4, 5, 5)
    A_S = torch.rand(4, 5, 5)
    weight = torch.tensor([1., 1, 0, 1]) / 3
    expected = 0
    for b in (0, 1, 3):
        map_T = A_T[b]
        map_S = A_S[b]
        if att_norm == 'l2':
            map_T = map_T / (map_T ** 2).sum().sqrt()
            map_S = map_S / (map_S ** 2).sum().sqrt()
        if att_norm == 'max':
            map_T = map_T / map_T.max()
            map_S = map_S / map_S.max()
        expected += ((map_T - map_S) ** 2).sum().sqrt() / 3
    assert torch.allclose(att_loss(A_T, A_S, weight, att_norm), expected)
    assert att_loss(A_T, A_T, weight, att_norm) == 0
    blind_to_scale = att_loss(A_T, 7 * A_T, weight, att_norm) < 1e-5
    assert blind_to_scale == (att_norm != 'none')


@pytest.mark.parametrize('att_norm', ['none', 'l2', 'max'])
def test_a_map_that_is_0_everywhere_passes_no_gradient_and_no_nan(att_norm):
    for A_T in (torch.rand(2, 5, 5), torch.zeros(2, 5, 5)):
        before_relu = torch.zeros(2, 5, 5, requires_grad=True)
        att_loss(A_T, before_relu.relu(), torch.ones(2) / 2, att_norm).backward()
        assert torch.equal(before_relu.grad, torch.zeros(2, 5, 5))


def test_classification_loss():
    logits = torch.tensor([
        [0., 0, 0],
        [2, -1, 0]])
    c = torch.tensor([
        [1., 0, 1],
        [0, 0, 1]])
    p = logits.sigmoid()
    # Summed over the attributes, divided by the batch.
    expected = -(c * p.log() + (1 - c) * (1 - p).log()).sum() / 2
    assert torch.allclose(cls_loss(logits, c, multi_label=True), expected)
    c = torch.eye(3)[:2]
    expected = -(logits.log_softmax(1) * c).sum() / 2
    assert torch.allclose(cls_loss(logits, c, multi_label=False), expected)


def test_a_class_is_picked_among_those_of_the_image():
    c = torch.tensor([
        [0., 1, 1],
        [1, 0, 0],
        [0, 0, 0]])
    c = c.repeat(2000, 1)
    i, weight = pick_class(c)
    assert i.shape == (6000, 1)
    assert torch.allclose(weight, torch.tensor([1., 1, 0]).repeat(2000) / 4000)
    assert torch.equal(c.gather(1, i)[:, 0] > 0, weight > 0)
    assert 0.45 < (i[0::3] == 1).float().mean() < 0.55
    # No image has a class: no loss, and no NaN.
    assert pick_class(torch.zeros(4, 3))[1].tolist() == [0, 0, 0, 0]


def test_shuffled_maps_are_those_of_the_next_image_of_the_same_class():
    # The last image has no class: its i means nothing.
    i = torch.tensor([0, 1, 0, 0, 2, 1, 0])[:, None]
    weight = torch.tensor([1., 1, 1, 1, 1, 1, 0]) / 6
    A_T = torch.arange(7.)[:, None, None].expand(7, 2, 2)
    maps, new_weight = shuffle(A_T, i, weight)
    assert maps[[0, 1, 2, 3, 5], 0, 0].tolist() == [2, 5, 3, 0, 1]
    assert (5 * new_weight).tolist() == pytest.approx([1, 1, 1, 1, 0, 1, 0])
    alone, no_weight = shuffle(A_T[:2], torch.tensor([[0], [1]]), torch.ones(2) / 2)
    assert no_weight.tolist() == [0, 0]


def test_an_attribute_switched_on_switches_off_what_it_excludes():
    hair = [0, 1, 2]
    c = torch.tensor([
        [1., 0, 0, 1],
        [0, 1, 0, 0]])
    before = c.clone()
    assert set_attr(c, 2, [hair]).tolist() == [
        [0, 0, 1, 1],
        [0, 0, 1, 0]]
    assert set_attr(c, 3, [hair]).tolist() == [
        [1, 0, 0, 1],
        [0, 1, 0, 1]]
    assert set_attr(c, 1, [[0, 1], [1, 3]]).tolist() == [
        [0, 1, 0, 0],
        [0, 1, 0, 0]]
    assert torch.equal(c, before)


def make_nets(seed):
    """G, D, two images and their labels, in double precision."""
    torch.manual_seed(seed)
    G = Generator(4, 3, 2).double()
    D = Discriminator(16, 4, 3, 3).double()
    x = torch.rand(2, 3, 16, 16, dtype=torch.float64) * 2 - 1
    return G, D, x, torch.eye(3, dtype=torch.float64)[:2]


def scores(D, x_fake):
    """Of class 0 for the first image, of class 1 for the second."""
    return D(x_fake)[1].gather(1, torch.tensor([[0], [1]]))


@pytest.mark.parametrize('cam', ['gradcam', 'hirescam'])
def test_eq_1_and_2_position_by_position(cam):
    G, D, x, c = make_nets(0)
    hook = GradCAM(G.res[-1], cam)
    A = hook(scores(D, G(x, c)))
    assert not A.requires_grad
    for b in range(2):
        planes = c[b:b + 1, :, None, None].expand(-1, -1, 16, 16)
        h = G.down(torch.cat([x[b:b + 1], planes], 1))
        F = G.res(h).detach().requires_grad_()
        x_fake = G.out(G.up(F))
        score = D(x_fake)[1][0, b]
        slope, = torch.autograd.grad(score, F)
        expected = torch.zeros(4, 4, dtype=torch.float64)
        for m in range(4):
            for n in range(4):
                for k in range(F.shape[1]):
                    factor = slope[0, k, m, n]
                    if cam == 'gradcam':
                        factor = slope[0, k].sum() / 16
                    expected[m, n] += factor * F[0, k, m, n]
        expected = expected.clamp(min=0)
        assert expected.max() > 0
        assert torch.allclose(A[b], expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize('cam', ['gradcam', 'hirescam'])
def test_gradient_of_the_map_by_finite_differences(cam):
    G, D, x, c = make_nets(1)
    hook = GradCAM(G.res[-1], cam)
    weights = torch.rand(2, 4, 4, dtype=torch.float64)
    step = 1e-6

    def weighted_map():
        return (hook(scores(D, G(x, c)), create_graph=True) * weights).sum()

    for name in ('down.0.weight', 'res.1.main.3.weight', 'up.0.weight', 'out.0.weight'):
        parameter = G.get_parameter(name)
        gradient, = torch.autograd.grad(weighted_map(), parameter)
        direction = torch.randn_like(parameter)
        direction /= direction.norm()
        with torch.no_grad():
            parameter += step * direction
        above = weighted_map().item()
        with torch.no_grad():
            parameter -= 2 * step * direction
        below = weighted_map().item()
        with torch.no_grad():
            parameter += step * direction
        slope = (gradient * direction).sum().item()
        assert (above - below) / (2 * step) == pytest.approx(slope, rel=1e-3, abs=1e-10)


def test_alpha_vanishes_at_the_inner_convolution_but_not_at_the_block():
    """Why the block is hooked: the instance norm behind its last convolution removes any constant."""
    G, D, x, c = make_nets(2)

    def largest_alpha(module):
        hook = GradCAM(module)
        y = D(G(x, c))[1][:, 0]
        slope, = torch.autograd.grad(y.sum(), hook.feat)
        hook.remove()
        return slope.mean((2, 3)).abs().max()

    assert largest_alpha(G.res[-1].main[3]) < 1e-12
    assert largest_alpha(G.res[-1]) > 1e-8


def test_the_hook_leaves_the_output_alone_and_comes_off():
    G, D, x, c = make_nets(3)
    before = G(x, c)
    hook = GradCAM(G.res[-1])
    assert torch.equal(before, G(x, c))
    with torch.no_grad():
        assert torch.equal(before, G(x, c))
    with pytest.raises(RuntimeError, match='no forward pass'):
        hook(before[:, 0, 0, 0])
    hook.remove()
    assert not G.res[-1]._forward_hooks
    with pytest.raises(ValueError, match='gradcam'):
        GradCAM(torch.nn.Identity(), 'cam')


def test_the_map_of_a_frozen_net_is_the_same_and_its_encoder_costs_no_graph():
    G, D, x, c = make_nets(3)
    hook = GradCAM(G.res[-1])
    A = hook(D(G(x, c))[1][:, 0])
    assert A.max() > 0
    assert not hook.feat.is_leaf
    G.requires_grad_(False)
    D.requires_grad_(False)
    assert torch.equal(A, hook(D(G(x, c))[1][:, 0]))
    assert hook.feat.is_leaf


def test_overlay_shows_the_maximum_brightest_whatever_the_scale():
    x = torch.zeros(1, 3, 16, 16)
    A = torch.zeros(1, 4, 4)
    A[0, 1, 2] = 3e-9
    shown = overlay(x, A)
    assert shown.shape == x.shape
    assert shown.abs().max() <= 1
    row, column = divmod(shown.mean(1)[0].argmax().item(), 16)
    assert 4 <= row < 8 and 8 <= column < 12
    assert torch.allclose(shown, overlay(x, 1e9 * A), atol=1e-5)
    assert overlay(x, 0 * A).isfinite().all()
