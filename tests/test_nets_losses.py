"""Sizes of the paper's nets and the losses against closed forms."""

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import train_student
import train_teacher
from gradcam import GradCAM
from train_student import att_loss, cls_loss, gradient_penalty, pick_class, set_attr, shuffle
from train_teacher import Discriminator, Generator


def count(net):
    return sum(p.numel() for p in net.parameters())


def test_parameters_and_multiply_adds_are_the_papers():
    with torch.device('meta'):
        for conv_dim, n_blocks, gmacs, params in (
                (64, 6, 9.96, {5: 8430528, 7: 8436800, 4: 8427392, 8: 8439936}),
                (32, 3, 1.73, {5: 1231840, 7: 1234976, 4: 1230272, 8: 1236544}),
                (16, 1, 0.351, {5: 164848, 7: 166416, 4: 164064, 8: 167200})):
            for c_dim, n in params.items():
                assert count(Generator(conv_dim, c_dim, n_blocks)) == n
            with FlopCounterMode(display=False) as counter:
                Generator(conv_dim, 5, n_blocks)(torch.zeros(1, 3, 128, 128), torch.zeros(1, 5))
            assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, rel=5e-3)
        assert count(Discriminator(128, 64, 5, 6)) == 44762048


def test_defaults_are_the_papers():
    t, s = train_teacher, train_student
    assert (t.conv_dim, t.n_blocks, t.d_conv_dim, t.d_n_layers, s.conv_dim, s.n_blocks) == (64, 6, 64, 6, 32, 3)
    for m in (t, s):
        assert (m.lambda_cls, m.lambda_rec, m.lambda_gp, m.n_critic, m.max_iters) == (1, 10, 10, 5, 200000)
        assert (m.batch_size, m.lr) == (16, 1e-4)
    assert s.lambda_att == 10 and s.cam == 'gradcam'
    assert t.attrs == 'Goatee,Rosy_Cheeks,Eyeglasses,Mustache,Blond_Hair,Pale_Skin,Heavy_Makeup'


@pytest.mark.parametrize('size', [32, 64, 96])
def test_any_multiple_of_the_strides(size):
    G, D = Generator(4, 3, 1), Discriminator(size, 4, 3, 5)
    x_fake = G(torch.zeros(2, 3, size, size), torch.zeros(2, 3))
    out_src, out_cls = D(x_fake)
    assert x_fake.shape == (2, 3, size, size)
    assert out_src.shape == (2, 1, size // 32, size // 32) and out_cls.shape == (2, 3)


def test_labels_reach_the_output_and_eval_changes_nothing():
    torch.manual_seed(0)
    G, x = Generator(8, 3, 1), torch.rand(1, 3, 16, 16)
    a, b = G(x, torch.tensor([[1., 0, 0]])), G(x, torch.tensor([[0., 1, 0]]))
    assert (a - b).abs().max() > 1e-3
    assert torch.equal(G.eval()(x, torch.tensor([[1., 0, 0]])), a)


def test_the_leaky_relu_written_out_has_the_same_values_and_gradients():
    torch.manual_seed(0)
    D, x = Discriminator(16, 4, 3, 2).double(), torch.rand(2, 3, 16, 16, dtype=torch.float64)

    def plain(x):
        for conv in D.down:
            x = F.leaky_relu(conv(x), 0.01)
        return D.src(x), D.cls(x).flatten(1)
    grads = []
    for net in (D, plain):
        loss = gradient_penalty(net, x, -x, torch.full((2, 1, 1, 1), 0.3).double()) + net(x)[0].mean() + net(x)[1].sum()
        grads.append((loss.detach(), *torch.autograd.grad(loss, list(D.parameters()))))
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(*grads)) and grads[0][1].abs().max() > 0


def test_gradient_penalty_of_a_linear_critic():
    """D(x) = <w, x> has the gradient w everywhere: GP = (|w| - 1)^2, whatever the images."""
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(3, 8, 8))

        def forward(self, x):
            return (self.w * x).sum((1, 2, 3))[:, None, None, None], None
    D, x = Linear(), torch.randn(4, 3, 8, 8)
    gp = gradient_penalty(D, x, torch.randn_like(x), torch.rand(4, 1, 1, 1))
    norm = D.w.norm()
    assert torch.allclose(gp, (norm - 1) ** 2)
    grad, = torch.autograd.grad(gp, D.w)
    assert torch.allclose(grad, 2 * (norm - 1) * D.w / norm, rtol=1e-4)


def test_gradient_penalty_is_finite_where_the_critic_is_flat_and_its_point_lies_between():
    w, seen = torch.zeros(1, requires_grad=True), []

    def flat(x):
        seen.append(x)
        return w * x[:, :1], None
    x_real, x_fake, alpha = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4), torch.tensor([0.25, 0.75]).view(2, 1, 1, 1)
    gp = gradient_penalty(flat, x_real, x_fake, alpha)
    gp.backward()
    assert gp == 1 and torch.isfinite(w.grad).all()
    assert torch.allclose(seen[0], (1 - alpha).expand(2, 3, 4, 4))


def test_cls_loss_closed_forms():
    out, c = torch.tensor([[0., 0, 0], [2, -1, 0]]), torch.tensor([[1., 0, 1], [0, 0, 1]])
    p = out.sigmoid()
    want = -(c * p.log() + (1 - c) * (1 - p).log()).sum() / 2  # summed over attributes, divided by the batch
    assert torch.allclose(cls_loss(out, c, True), want)
    c = torch.eye(3)[:2]
    assert torch.allclose(cls_loss(out, c, False), -(out.log_softmax(1) * c).sum(1).mean())


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


def test_pick_class():
    torch.manual_seed(0)
    c = torch.tensor([[0., 1, 1], [1, 0, 0], [0, 0, 0]]).repeat(2000, 1)
    i, weight = pick_class(c)
    assert i.shape == (6000, 1) and torch.allclose(weight, torch.tensor([1., 1, 0]).repeat(2000) / 4000)
    assert torch.equal(c.gather(1, i)[:, 0] > 0, weight > 0)
    assert 0.45 < (i[0::3] == 1).float().mean() < 0.55
    assert pick_class(torch.zeros(4, 3))[1].tolist() == [0] * 4  # none has any: no loss, and no NaN


def test_shuffle_deals_maps_within_a_class():
    k = torch.tensor([[0], [1], [0], [0], [2], [1], [0]])
    weight = torch.tensor([1., 1, 1, 1, 1, 1, 0])  # the last has no class, its k means nothing
    A = torch.arange(7.)[:, None, None].expand(7, 2, 2)
    assert shuffle(A, k, weight)[:6, 0, 0].tolist() == [2, 5, 3, 0, 4, 1]  # alone in its class: its own


def test_att_gradient_goes_through_the_map_to_the_students_encoder_and_never_to_the_teacher():
    torch.manual_seed(0)
    T, S, D_T = Generator(8, 3, 2), Generator(4, 3, 1), Discriminator(16, 4, 3, 3)
    T.requires_grad_(False), D_T.requires_grad_(False)
    x, c, one = torch.rand(2, 3, 16, 16), torch.eye(3)[:2], torch.tensor([[0], [1]])
    hook_S, hook_T = GradCAM(S.res[-1]), GradCAM(T.res[-1])
    A_S = hook_S(D_T(S(x, c))[1].gather(1, one), create_graph=True)
    A_T = hook_T(D_T(T(x, c))[1].gather(1, one))
    assert not A_T.requires_grad
    att_loss(A_T, A_S, torch.ones(2) / 2, 'l2').backward()
    for name in ('down.0.weight', 'res.0.main.0.weight', 'up.0.weight', 'out.0.weight'):
        assert S.get_parameter(name).grad.abs().max() > 0, name
    assert all(p.grad is None for net in (T, D_T) for p in net.parameters())


def test_set_attr_clears_the_exclusive_groups():
    c = torch.tensor([[1., 0, 0, 1], [0, 1, 0, 0]])
    assert torch.equal(set_attr(c, 2, [[0, 1, 2]]), torch.tensor([[0., 0, 1, 1], [0, 0, 1, 0]]))
    assert torch.equal(set_attr(c, 3, [[0, 1, 2]]), torch.tensor([[1., 0, 0, 1], [0, 1, 0, 1]]))
    assert torch.equal(set_attr(c, 1, [[0, 1], [1, 3]]), torch.tensor([[0., 1, 0, 0], [0, 1, 0, 0]]))
    assert c[0, 0] == 1
