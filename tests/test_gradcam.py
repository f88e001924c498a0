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
