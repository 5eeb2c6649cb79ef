"""LeNet-5: pooling against drawn windows, and the whole network against drawn ones on constant images."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gradstab.theory import NoTheory, activation, predict_lenet5, window_correlation
from gradstab.theory.lenet import AveragePooled, MaxPooled

Q, C = 1.7, 0.6


def windows(count: int) -> Tensor:
    """Images of one pooling window each, its four pre-activations of variance Q and correlation C."""
    generator = torch.Generator().manual_seed(0)
    common, own = torch.randn(count, 1, generator=generator), torch.randn(count, 4, generator=generator)
    return (math.sqrt(Q) * (math.sqrt(C) * common + math.sqrt(1 - C) * own)).view(count, 1, 2, 2)


@pytest.mark.parametrize(
    ("unit", "pool", "act", "phi"),
    [
        (AveragePooled, F.avg_pool2d, "tanh", torch.tanh),
        (MaxPooled, F.max_pool2d, "tanh", torch.tanh),
        (AveragePooled, F.avg_pool2d, "hardtanh", F.hardtanh),
        (MaxPooled, F.max_pool2d, "relu", torch.relu),
    ],
)
def test_pooled_units_against_autograd(unit: type, pool: object, act: str, phi: object) -> None:
    h = windows(1_000_000).requires_grad_()
    p = pool(phi(h), 2)  # type: ignore[operator]
    above = torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    (below,) = torch.autograd.grad(p, h, above)
    theory = unit(activation(act), C)
    q = np.array([Q])
    assert theory.forward(q) == pytest.approx(p.square().mean().item(), rel=5e-3)
    assert theory.backward(q) == pytest.approx((below.square().sum() / above.square().sum()).item(), rel=5e-3)
    slope = (theory.forward(q * 1.001) - theory.forward(q * 0.999)) / (2e-3 * q)
    assert theory.forward_slope(q) == pytest.approx(slope, rel=1e-5)


def test_window_correlation() -> None:
    assert window_correlation(windows(300_000).numpy()) == pytest.approx(C, abs=5e-3)
    constant = np.ones((2, 3, 5, 5)) * np.array([1.0, -2.0, 3.0])[:, None, None]
    assert window_correlation(constant) == pytest.approx(1)


def test_maps_in_which_nothing_correlates() -> None:
    assert math.isnan(window_correlation(np.zeros((3, 4, 4))))
    assert math.isnan(window_correlation(np.ones((3, 1, 1))))
    for huge in (math.inf, math.nan):
        assert math.isnan(window_correlation(np.full((3, 4, 4), huge)))
    with pytest.raises(ValueError, match=r"h: has shape \[4\]; has to be maps"):
        window_correlation(np.ones(4))
    network: dict[str, Any] = {"act": "relu", "q0": 1.0}
    with pytest.raises(NoTheory, match="nothing to correlate"):
        predict_lenet5(correlations=(math.nan, 0.5), **network)
    with pytest.raises(ValueError, match="has to be two correlations"):
        predict_lenet5(correlations=(0.5,), **network)  # type: ignore[arg-type]


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_lenet5_on_constant_images(pooling: str) -> None:
    """One pixel value everywhere makes all positions of a map equal, so that correlations are 1 exactly.

    For ReLU with a random gradient at the output the expectations then hold for any number of channels; the mean is
    over draws of the weights, and its deviation from the expectation is judged by their spread.
    """
    draws = 1200
    generator = torch.Generator().manual_seed(0)

    def he(*shape: int) -> Tensor:
        return torch.randn(draws, *shape, generator=generator) * math.sqrt(2 / math.prod(shape[1:]))

    weights = {"C1": he(6, 1, 5, 5), "C3": he(16, 6, 5, 5), "C5": he(120, 400), "F6": he(84, 120), "out": he(10, 84)}
    pool = F.avg_pool2d if pooling == "avg" else F.max_pool2d
    h1 = F.conv2d(torch.ones(1, 1, 32, 32), weights["C1"].flatten(0, 1)).view(draws, 6, 28, 28).requires_grad_()
    a1 = pool(torch.relu(h1), 2)
    h2 = F.conv2d(a1.flatten(0, 1)[None], weights["C3"].flatten(0, 1), groups=draws).view(draws, 16, 10, 10)
    h3 = torch.einsum("boi,bi->bo", weights["C5"], pool(torch.relu(h2), 2).flatten(1))
    h4 = torch.einsum("boi,bi->bo", weights["F6"], torch.relu(h3))
    out = torch.einsum("boi,bi->bo", weights["out"], torch.relu(h4))
    above = torch.randn(draws, 10, generator=generator)
    signals = torch.autograd.grad(out, (h1, h2, h3, h4), above)
    lengths = [h.square().flatten(1).mean(dim=1) for h in (h1, h2, h3, h4)]
    squares = [s.square().flatten(1).sum(dim=1) for s in signals]

    predicted = predict_lenet5(act="relu", init="kaiming_normal", pooling=pooling, q0=1.0, correlations=(1.0, 1.0))
    for found, expected in zip(lengths, predicted.q, strict=True):
        assert expected == pytest.approx(found.mean().item(), abs=4 * found.std().item() / math.sqrt(draws))
    for found, expected in zip(squares, predicted.signal_grad_norm**2, strict=True):
        top = squares[-1].mean().item()
        assert expected == pytest.approx(found.mean().item() / top, abs=4 * found.std().item() / top / math.sqrt(draws))
    rate = {"avg": math.sqrt(1 / 4), "max": 1.0}[pooling]
    np.testing.assert_allclose(predicted.signal_grad_norm, [rate**2, rate, 1, 1], rtol=1e-9)


def test_fans_of_a_convolution() -> None:
    def sigma_w2(init: str) -> np.ndarray:
        return predict_lenet5(act="tanh", init=init, q0=1.0, correlations=(0.8, 0.8), in_channels=3).sigma_w2

    np.testing.assert_allclose(sigma_w2("xavier_normal"), [2 * 3 / 9, 2 * 6 / 22, 800 / 520, 240 / 204, 168 / 94])
    np.testing.assert_allclose(sigma_w2("orthogonal"), [1, 1, 1, 1, 1])
    np.testing.assert_allclose(sigma_w2("delta_orthogonal"), [3 / 6, 6 / 16, 1, 1, 1])


def test_dropout_follows_the_pooling() -> None:
    plain = predict_lenet5(act="relu", init="kaiming_normal", q0=1.0, correlations=(0.7, 0.7))
    dropped = predict_lenet5(act="relu", init="kaiming_normal", q0=1.0, correlations=(0.7, 0.7), dropout=0.2)
    np.testing.assert_allclose(dropped.q / plain.q, 0.8 ** -np.arange(4), rtol=1e-9)
    np.testing.assert_allclose(dropped.chi_1, plain.chi_1 / 0.8, rtol=1e-9)


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_correlations_measured_just_below_0_count_as_0(pooling: str) -> None:
    chance, none = (
        predict_lenet5(act="tanh", pooling=pooling, q0=1.0, correlations=c) for c in ((-0.01, -0.02), (0.0, 0.0))
    )
    np.testing.assert_array_equal(chance.signal_grad_norm, none.signal_grad_norm)
    np.testing.assert_array_equal(chance.q, none.q)
    assert np.isfinite(none.signal_grad_norm).all()


def test_what_has_no_theory() -> None:
    with pytest.raises(NoTheory, match="window_correlation"):
        predict_lenet5(act="relu", q0=1.0, correlations=None)
    with pytest.raises(NoTheory, match="act=gelu"):
        predict_lenet5(act="gelu", q0=1.0, correlations=(0.5, 0.5))
    with pytest.raises(NoTheory, match="norm=batch"):
        predict_lenet5(act="relu", q0=1.0, correlations=(0.5, 0.5), norm="batch")
    with pytest.raises(NoTheory, match="residual=add"):
        predict_lenet5(act="relu", q0=1.0, correlations=(0.5, 0.5), residual="add")
