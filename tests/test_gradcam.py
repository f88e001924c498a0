"""The map of eq. (1)-(2) against its definition, its second derivative, and the trap of the inner convolution."""

import pytest
import torch

from gradcam import GradCAM, overlay
from train_student import Discriminator, Generator


def nets(seed=0):
    torch.manual_seed(seed)
    G, D = Generator(4, 3, 2).double(), Discriminator(16, 4, 3, 3).double()
    return G, D, torch.rand(2, 3, 16, 16, dtype=torch.float64) * 2 - 1, torch.eye(3, dtype=torch.float64)[:2]


@pytest.mark.parametrize('cam', ['gradcam', 'hirescam'])
def test_map_is_the_double_loop(cam):
    G, D, x, c = nets()
    hook = GradCAM(G.res[-1], cam)
    y = D(G(x, c))[1].gather(1, torch.tensor([[0], [1]]))
    A = hook(y)
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
        assert torch.allclose(A[b], want, rtol=1e-6, atol=1e-12)
        assert want.max() > 0


@pytest.mark.parametrize('cam', ['gradcam', 'hirescam'])
def test_gradient_of_the_map_by_finite_differences(cam):
    G, D, x, c = nets(1)
    hook = GradCAM(G.res[-1], cam)
    weights = torch.rand(2, 4, 4, dtype=torch.float64)

    def score():
        A = hook(D(G(x, c))[1].gather(1, torch.tensor([[0], [1]])), create_graph=True)
        return (A * weights).sum()

    for name in ('down.0.weight', 'res.1.main.3.weight', 'up.0.weight', 'out.0.weight'):
        p = dict(G.named_parameters())[name]
        analytic, = torch.autograd.grad(score(), p)
        direction = torch.randn_like(p)
        direction /= direction.norm()
        eps, start = 1e-6, p.detach().clone()
        with torch.no_grad():
            p.copy_(start + eps * direction)
        up = score().item()
        with torch.no_grad():
            p.copy_(start - eps * direction)
        down = score().item()
        with torch.no_grad():
            p.copy_(start)
        assert (up - down) / (2 * eps) == pytest.approx((analytic * direction).sum().item(), rel=1e-3, abs=1e-10)


def test_pooled_gradient_vanishes_at_the_inner_convolution_but_not_at_the_block():
    """Why the block is hooked: behind the block's last convolution instance norm removes any constant (alpha = 0)."""
    G, D, x, c = nets(2)
    alphas = {}
    for name, module in (('conv', G.res[-1].main[3]), ('block', G.res[-1])):
        hook = GradCAM(module)
        y = D(G(x, c))[1][:, 0]
        alphas[name] = torch.autograd.grad(y.sum(), hook.feat)[0].mean((2, 3)).abs().max()
        hook.remove()
    assert alphas['conv'] < 1e-12 < 1e-8 < alphas['block']


def test_frozen_net_same_map_and_no_graph_before_the_block():
    G, D, x, c = nets(3)
    hook = GradCAM(G.res[-1])
    A = hook(D(G(x, c))[1][:, 0])
    G.requires_grad_(False), D.requires_grad_(False)
    A_frozen = hook(D(G(x, c))[1][:, 0])
    assert torch.equal(A, A_frozen) and hook.feat.is_leaf and A.max() > 0


def test_hook_leaves_the_output_alone_and_comes_off():
    G, D, x, c = nets(4)
    before = G(x, c)
    hook = GradCAM(G.res[-1])
    assert torch.equal(before, G(x, c))
    with torch.no_grad():
        assert torch.equal(before, G(x, c))
    with pytest.raises(RuntimeError, match='no forward pass'):
        hook(before[:, 0, 0, 0])
    hook.remove()
    assert not G.res[-1]._forward_hooks and hook.feat is None


def test_unknown_cam():
    with pytest.raises(ValueError, match='gradcam'):
        GradCAM(torch.nn.Identity(), 'cam')


def test_overlay_shows_the_maximum_brightest_whatever_the_scale():
    x, A = torch.zeros(1, 3, 16, 16), torch.zeros(1, 4, 4)
    A[0, 1, 2] = 3e-9
    shown = overlay(x, A)
    assert shown.shape == x.shape and shown.abs().max() <= 1 and torch.isfinite(overlay(x, 0 * A)).all()
    assert shown.mean(1)[0].argmax() in [(r * 16 + c) for r in range(4, 8) for c in range(8, 12)]
    assert torch.allclose(shown, overlay(x, 1e9 * A), atol=1e-5)
