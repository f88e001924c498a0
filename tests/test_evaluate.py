"""The measures of evaluate.py against closed forms and a reference implementation."""

import numpy as np
import pytest
import scipy.linalg
import torch

from evaluate import Moments, cost, frechet_distance, kid, localisation, to_uint8
from train_student import Generator, overlay


def gaussian(d, seed):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((d, d))
    return torch.from_numpy(rng.standard_normal(d)), torch.from_numpy(a @ a.T / d)


def test_frechet_distance_is_sqrtms():
    (m1, c1), (m2, c2) = gaussian(20, 0), gaussian(20, 1)
    root = scipy.linalg.sqrtm((c1 @ c2).numpy()).real
    want = ((m1 - m2) ** 2).sum() + c1.trace() + c2.trace() - 2 * np.trace(root)
    assert frechet_distance(m1, c1, m2, c2) == pytest.approx(want.item(), rel=1e-9)


def test_frechet_distance_closed_forms():
    (m1, c1), (m2, _) = gaussian(8, 0), gaussian(8, 1)
    assert frechet_distance(m1, c1, m2, c1) == pytest.approx(((m1 - m2) ** 2).sum().item(), rel=1e-9)
    assert frechet_distance(m1, c1, m1, c1) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(m1, c1, m1, 4 * c1) == pytest.approx(c1.trace().item(), rel=1e-9)  # (2 - 1)^2 tr C
    low = torch.diag(torch.tensor([1., 2, 0, 0, 0, 0, 0, 0], dtype=torch.float64))  # singular
    assert frechet_distance(m1, low, m1, 9 * low) == pytest.approx(4 * 3, rel=1e-9)


def test_moments_in_batches():
    x = torch.randn(50, 6, dtype=torch.float64)
    moments = Moments()
    for batch in x.split(7):
        moments.add(batch)
    mean, cov = moments.mean_cov()
    assert torch.allclose(mean, x.mean(0)) and torch.allclose(cov, x.T.cov())


def test_kid_is_the_double_loop_and_unbiased():
    x, y = torch.randn(9, 4, dtype=torch.float64), torch.randn(9, 4, dtype=torch.float64) + 1
    k = lambda a, b: (float(a @ b) / 4 + 1) ** 3
    pairs = [(i, j) for i in range(9) for j in range(9)]
    want = sum(k(x[i], x[j]) + k(y[i], y[j]) for i, j in pairs if i != j) / 72
    want -= 2 * sum(k(x[i], y[j]) for i, j in pairs) / 81
    mean, std = kid(x, y, torch.Generator().manual_seed(0))
    assert mean == pytest.approx(want) and std == pytest.approx(0, abs=1e-12)
    x, y = torch.randn(2, 3000, 8, dtype=torch.float64)
    mean, std = kid(x, y, torch.Generator().manual_seed(0))
    assert abs(mean) < 0.02 and 0 < std < 0.02  # the same distribution: 0 but for noise
    assert kid(x, y + 1, torch.Generator().manual_seed(0))[0] > 1


def test_localisation():
    m = torch.zeros(4, 8, 8)
    m[:, :4, :4] = 1  # a quarter of the image
    A = torch.zeros(4, 8, 8)
    A[0] = 1  # knows nothing
    A[1, :4, :4] = 1  # the region itself
    A[2, 4:, 4:] = 1  # elsewhere
    energy, pointing, iou, alive = localisation(A, m)  # A[3] is dead
    assert torch.allclose(energy[:3], torch.tensor([1., 4, 0]).double())
    assert pointing[1:3].tolist() == [1, 0] and iou[1:3].tolist() == [1, 0]
    assert alive.tolist() == [1, 1, 1, 0] and torch.isfinite(energy).all()
    half = torch.zeros(1, 8, 8)
    half[:, :4, 2:6] = 1  # as large as the region, half of it inside: 8 / (16 + 8)
    assert localisation(half, m[:1])[2].item() == pytest.approx(1 / 3)


def test_small_maps_are_enlarged():
    A, m = torch.zeros(1, 2, 2), torch.zeros(1, 8, 8)
    A[0, 0, 0], m[0, :3, :3] = 1, 1
    energy, pointing, _, _ = localisation(A, m)
    assert energy > 2 and pointing == 1


def test_to_uint8_has_256_levels():
    x = to_uint8(torch.linspace(-1, 1, 10001))
    assert len(x.unique()) == 256 and x.min() == -1 and x.max() == 1


def test_cost():
    G = Generator(4, 2, 1)
    params, macs, ms = cost(G, torch.zeros(1, 3, 8, 8), torch.zeros(1, 2))
    want = 0  # multiply-adds of the convolutions: positions of the output (input, if transposed) x weights
    for name, positions in (('down.0', 64), ('down.3', 16), ('down.6', 4), ('res.0.conv1', 4), ('res.0.conv2', 4),
                            ('up.0', 4), ('up.3', 16), ('out.0', 64)):
        want += positions * G.get_submodule(name).weight.numel()
    assert params == sum(p.numel() for p in G.parameters()) and macs == want and ms > 0


def test_overlay_shows_the_maximum_brightest_whatever_the_scale():
    x, A = torch.zeros(1, 3, 16, 16), torch.zeros(1, 4, 4)
    A[0, 1, 2] = 3e-9
    shown = overlay(x, A)
    assert shown.shape == x.shape and shown.abs().max() <= 1 and torch.isfinite(overlay(x, 0 * A)).all()
    assert shown.mean(1)[0].argmax() in [(r * 16 + c) for r in range(4, 8) for c in range(8, 12)]
    assert torch.allclose(shown, overlay(x, 1e9 * A), atol=1e-5)
