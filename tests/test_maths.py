"""The maths against closed forms: sizes of the paper's nets, losses, the map of eq. (1) and (2), its derivatives."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import train_student
import train_teacher
from gradcam import GradCAM, overlay
from train_student import att_loss, cls_loss, gradient_penalty, pick_class, set_attr, shuffle
from train_teacher import Discriminator, Generator


def test_the_papers_sizes_and_defaults():
    def count(net):
        return sum(p.numel() for p in net.parameters())
    with torch.device('meta'):
        for conv_dim, n_blocks, gmacs, params in (
                (64, 6, 9.96, {5: 8430528, 7: 8436800, 4: 8427392, 8: 8439936}),
                (32, 3, 1.73, {5: 1231840, 7: 1234976, 4: 1230272, 8: 1236544}),
                (16, 1, 0.351, {5: 164848, 7: 166416, 4: 164064, 8: 167200})):
            assert {c_dim: count(Generator(conv_dim, c_dim, n_blocks)) for c_dim in params} == params
            with FlopCounterMode(display=False) as counter:
                Generator(conv_dim, 5, n_blocks)(torch.zeros(1, 3, 128, 128), torch.zeros(1, 5))
            assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, rel=5e-3)
        assert count(Discriminator(128, 64, 5, 6)) == 44762048
        for size in (32, 96):  # any multiple of the strides
            x_fake = Generator(4, 3, 1)(torch.zeros(2, 3, size, size), torch.zeros(2, 3))
            out_src, out_cls = Discriminator(size, 4, 3, 5)(x_fake)
            assert x_fake.shape == (2, 3, size, size)
            assert out_src.shape == (2, 1, size // 32, size // 32) and out_cls.shape == (2, 3)
    t, s = train_teacher, train_student
    assert (t.conv_dim, t.n_blocks, t.d_conv_dim, t.d_n_layers, s.conv_dim, s.n_blocks) == (64, 6, 64, 6, 32, 3)
    for m in (t, s):
        assert (m.lambda_cls, m.lambda_rec, m.lambda_gp, m.n_critic, m.max_iters) == (1, 10, 10, 5, 200000)
        assert (m.batch_size, m.lr) == (16, 1e-4)
    assert (s.lambda_att, s.cam, s.att_norm) == (10, 'gradcam', 'none')  # to the letter
    assert t.attrs == 'Goatee,Rosy_Cheeks,Eyeglasses,Mustache,Blond_Hair,Pale_Skin,Heavy_Makeup'


def test_gradient_penalty():
    """D(x) = <w, x> has the gradient w everywhere: GP = (|w| - 1)^2, whatever the images; it is finite at w = 0."""
    w, x, seen = torch.randn(3, 8, 8, requires_grad=True), torch.randn(2, 3, 8, 8), []

    def linear(x):
        seen.append(x)
        return (w * x).sum((1, 2, 3))[:, None, None, None], None
    x_fake, alpha = torch.randn_like(x), torch.tensor([0.25, 0.75]).view(2, 1, 1, 1)
    gp, norm = gradient_penalty(linear, x, x_fake, alpha), w.norm()
    grad, = torch.autograd.grad(gp, w)
    assert torch.allclose(gp, (norm - 1) ** 2) and torch.allclose(grad, 2 * (norm - 1) * w / norm, rtol=1e-4)
    assert torch.allclose(seen[0], alpha * x + (1 - alpha) * x_fake)
    w.data.zero_()
    gp = gradient_penalty(linear, x, x_fake, alpha)
    assert gp == 1 and torch.autograd.grad(gp, w)[0].isfinite().all()


@pytest.mark.parametrize('att_norm', ['none', 'l2', 'max'])
def test_att_loss_is_the_mean_over_the_images_that_have_a_scored_class(att_norm):
    A, B, weight = torch.rand(4, 5, 5), torch.rand(4, 5, 5), torch.tensor([1., 1, 0, 1]) / 3
    assert att_loss(A, A, weight, att_norm) == 0
    want = 0
    for b in (0, 1, 3):
        scale = {'none': (1, 1), 'l2': (A[b].norm(), B[b].norm()), 'max': (A[b].max(), B[b].max())}[att_norm]
        want += ((A[b] / scale[0] - B[b] / scale[1]) ** 2).sum().sqrt() / 3
    assert torch.allclose(att_loss(A, B, weight, att_norm), want)
    same = torch.allclose(att_loss(A, 7 * A, weight, att_norm), torch.zeros(()), atol=1e-5)
    assert same == (att_norm != 'none')  # blind to the scale, or not
    dead = torch.zeros(4, 5, 5, requires_grad=True)
    att_loss(A, dead.relu(), weight, att_norm).backward()
    assert torch.equal(dead.grad, torch.zeros(4, 5, 5))  # a dead map passes no gradient, and no NaN


def test_labels_are_scored_picked_dealt_and_set():
    out, c = torch.tensor([[0., 0, 0], [2, -1, 0]]), torch.tensor([[1., 0, 1], [0, 0, 1]])
    p = out.sigmoid()
    want = -(c * p.log() + (1 - c) * (1 - p).log()).sum() / 2  # summed over attributes, divided by the batch
    assert torch.allclose(cls_loss(out, c, True), want)
    c = torch.eye(3)[:2]
    assert torch.allclose(cls_loss(out, c, False), -(out.log_softmax(1) * c).sum(1).mean())

    c = torch.tensor([[0., 1, 1], [1, 0, 0], [0, 0, 0]]).repeat(2000, 1)
    i, weight = pick_class(c)
    assert i.shape == (6000, 1) and torch.allclose(weight, torch.tensor([1., 1, 0]).repeat(2000) / 4000)
    assert torch.equal(c.gather(1, i)[:, 0] > 0, weight > 0) and 0.45 < (i[0::3] == 1).float().mean() < 0.55
    assert pick_class(torch.zeros(4, 3))[1].tolist() == [0] * 4  # none has any: no loss, and no NaN

    k, weight = torch.tensor([[0], [1], [0], [0], [2], [1], [0]]), torch.tensor([1., 1, 1, 1, 1, 1, 0])
    A = torch.arange(7.)[:, None, None].expand(7, 2, 2)  # the last has no class, its k means nothing
    dealt, w = shuffle(A, k, weight)
    assert dealt[[0, 1, 2, 3, 5], 0, 0].tolist() == [2, 5, 3, 0, 1] and (5 * w).tolist() == [1, 1, 1, 1, 0, 1, 0]

    c = torch.tensor([[1., 0, 0, 1], [0, 1, 0, 0]])
    assert torch.equal(set_attr(c, 2, [[0, 1, 2]]), torch.tensor([[0., 0, 1, 1], [0, 0, 1, 0]]))
    assert torch.equal(set_attr(c, 3, [[0, 1, 2]]), torch.tensor([[1., 0, 0, 1], [0, 1, 0, 1]]))
    assert torch.equal(set_attr(c, 1, [[0, 1], [1, 3]]), torch.tensor([[0., 1, 0, 0], [0, 1, 0, 0]])) and c[0, 0] == 1


def nets(seed=0):
    torch.manual_seed(seed)
    G, D = Generator(4, 3, 2).double(), Discriminator(16, 4, 3, 3).double()
    return G, D, torch.rand(2, 3, 16, 16, dtype=torch.float64) * 2 - 1, torch.eye(3, dtype=torch.float64)[:2]


@pytest.mark.parametrize('cam', ['gradcam', 'hirescam'])
def test_map_is_the_double_loop(cam):
    G, D, x, c = nets()
    A = GradCAM(G.res[-1], cam)(D(G(x, c))[1].gather(1, torch.tensor([[0], [1]])))
    # the same, one image at a time, from an explicit split of the generator
    for b in range(2):
        feat = G.res(G.down(torch.cat([x[b:b + 1], c[b:b + 1, :, None, None].expand(-1, -1, 16, 16)], 1)))
        feat = feat.detach().requires_grad_()
        score = D(G.out(G.up(feat)))[1][0, b]
        grad, = torch.autograd.grad(score, feat)
        want = torch.zeros(4, 4, dtype=torch.float64)
        for m in range(4):
            for n in range(4):
                total = 0.0
                for k in range(feat.shape[1]):
                    alpha = sum(grad[0, k, i, j] for i in range(4) for j in range(4)) / 16
                    total += (alpha if cam == 'gradcam' else grad[0, k, m, n]) * feat[0, k, m, n]
                want[m, n] = max(total, 0)
        assert torch.allclose(A[b], want, rtol=1e-6, atol=1e-12) and want.max() > 0 and not A.requires_grad


@pytest.mark.parametrize('cam', ['gradcam', 'hirescam'])
def test_gradient_of_the_map_by_finite_differences(cam):
    G, D, x, c = nets(1)
    hook, weights, eps = GradCAM(G.res[-1], cam), torch.rand(2, 4, 4, dtype=torch.float64), 1e-6

    def score():
        A = hook(D(G(x, c))[1].gather(1, torch.tensor([[0], [1]])), create_graph=True)
        return (A * weights).sum()
    for name in ('down.0.weight', 'res.1.main.3.weight', 'up.0.weight', 'out.0.weight'):
        p, found = G.get_parameter(name), []
        analytic, = torch.autograd.grad(score(), p)
        direction = torch.randn_like(p)
        direction /= direction.norm()
        for step in (eps, -2 * eps, eps):  # up, down, and back
            with torch.no_grad():
                p.add_(step * direction)
            found.append(score().item())
        numeric = (found[0] - found[1]) / (2 * eps)
        assert numeric == pytest.approx((analytic * direction).sum().item(), rel=1e-3, abs=1e-10)


def test_pooled_gradient_vanishes_at_the_inner_convolution_but_not_at_the_block():
    """Why the block is hooked: behind the block's last convolution instance norm removes any constant (alpha = 0)."""
    G, D, x, c = nets(2)
    alphas = []
    for module in (G.res[-1].main[3], G.res[-1]):
        hook = GradCAM(module)
        y = D(G(x, c))[1][:, 0]
        alphas.append(torch.autograd.grad(y.sum(), hook.feat)[0].mean((2, 3)).abs().max())
        hook.remove()
    assert alphas[0] < 1e-12 < 1e-8 < alphas[1]


def test_hook_leaves_the_output_alone_serves_frozen_nets_and_comes_off():
    G, D, x, c = nets(3)
    before = G(x, c)
    hook = GradCAM(G.res[-1])
    with torch.no_grad():
        assert torch.equal(before, G(x, c))
    with pytest.raises(RuntimeError, match='no forward pass'):
        hook(before[:, 0, 0, 0])
    x_fake = G(x, c)
    A = hook(D(x_fake)[1][:, 0])
    for net in (G, D):  # the same map, and no graph before the block
        net.requires_grad_(False)
    assert torch.equal(A, hook(D(G(x, c))[1][:, 0])) and hook.feat.is_leaf and A.max() > 0
    hook.remove()
    assert torch.equal(before, x_fake) and not G.res[-1]._forward_hooks
    with pytest.raises(ValueError, match='gradcam'):
        GradCAM(torch.nn.Identity(), 'cam')


def test_overlay_shows_the_maximum_brightest_whatever_the_scale():
    x, A = torch.zeros(1, 3, 16, 16), torch.zeros(1, 4, 4)
    A[0, 1, 2] = 3e-9
    shown = overlay(x, A)
    assert shown.shape == x.shape and shown.abs().max() <= 1 and torch.isfinite(overlay(x, 0 * A)).all()
    assert shown.mean(1)[0].argmax() in [(r * 16 + c) for r in range(4, 8) for c in range(8, 12)]
    assert torch.allclose(shown, overlay(x, 1e9 * A), atol=1e-5)
