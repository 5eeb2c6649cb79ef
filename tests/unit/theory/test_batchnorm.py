"""BatchNorm's rates against Yang et al. 2019 and against autograd through the norm."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gradstab.theory import NoTheory, activation, activation_statistics, predict
from gradstab.theory.batchnorm import batch_norm_moments
from tests.unit.theory.nets import norm_rate


@pytest.mark.parametrize(("samples", "rate"), [(8, 1.788190), (32, 1.521953), (512, 1.470069)])
def test_relu_rates_of_yang(samples: int, rate: float) -> None:
    assert norm_rate("relu", "batch", samples) == pytest.approx(rate, abs=5e-7)


def test_infinite_batches() -> None:
    assert norm_rate("relu", "batch") == pytest.approx(math.pi / (math.pi - 1), rel=1e-10)
    for name in ("tanh", "hardtanh", "gelu", "sigmoid"):
        rate = norm_rate(name, "batch")
        assert rate > 1
        assert norm_rate(name, "batch", 100_000) == pytest.approx(rate, rel=1e-4)


@pytest.mark.parametrize("samples", [4, 5, 32, 512])
def test_linear_rate(samples: int) -> None:
    assert norm_rate("identity", "batch", samples) == pytest.approx((samples - 2) / (samples - 3), rel=1e-9)


@pytest.mark.parametrize("samples", [2, 3])
def test_too_few_samples(samples: int) -> None:
    with pytest.raises(NoTheory, match="from 4 samples on"):
        norm_rate("tanh", "batch", samples)


@pytest.mark.parametrize(("name", "phi"), [("tanh", torch.tanh), ("hardtanh", F.hardtanh)])
def test_moments_against_autograd_through_the_norm(name: str, phi: object) -> None:
    """Units with independent normal batches, gradients centred over the batch: what a layer above hands down."""
    samples, units = 8, 400_000
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(samples, units, generator=generator, requires_grad=True)
    a = phi(F.batch_norm(h, None, None, training=True, eps=1e-12))  # type: ignore[operator]
    above = torch.randn(samples, units, generator=generator)
    above = above - above.mean(dim=0)
    (below,) = torch.autograd.grad(a, h, above)
    moments = batch_norm_moments(activation(name), samples)
    assert a.square().mean().item() == pytest.approx(moments.square, rel=3e-3)
    assert a.var(dim=0).mean().item() == pytest.approx(moments.variance(), rel=3e-3)
    factor = (below.square().mean() / above.square().mean()).item()
    assert factor == pytest.approx(moments.own + moments.cross, rel=1e-2)


@pytest.mark.parametrize(("name", "phi"), [("identity", lambda x: x), ("hardtanh", F.hardtanh)])
def test_gradients_at_the_outputs_are_not_centred_yet(name: str, phi: object) -> None:
    samples, units = 6, 400_000
    generator = torch.Generator().manual_seed(0)
    h = math.sqrt(2) * torch.randn(samples, units, generator=generator)
    a = phi(F.batch_norm(h.requires_grad_(), None, None, training=True, eps=1e-12))  # type: ignore[operator]
    above = torch.randn(samples, units, generator=generator)
    (below,) = torch.autograd.grad(a, h, above)
    factor = (below.square().mean() / above.square().mean()).item()
    init = {"sigma_w2": 2.0, "sigma_b2": 0.0, "gain": 1.0}
    network: dict[str, Any] = {"act": name, "init": "variance", "init_knobs": init, "norm": "batch", "q0": 1.0}
    found = predict(**network, widths=[9, 9, 9, 3], batch_size=samples)
    moments = batch_norm_moments(activation(name), samples)
    # Here h has the variance 2, there σ_w² times that of what comes from below; σ_w² is 2 throughout.
    assert found.chi_1[-1] == pytest.approx(2 * factor / moments.variance(), rel=1e-2)
    assert found.chi_1[0] == pytest.approx(moments.own + moments.cross, rel=1e-9)


def test_layer_norms_rate() -> None:
    assert norm_rate("relu", "layer") == pytest.approx(1, rel=1e-12)
    # E φ'² / E φ² of erf at variance 1.
    assert norm_rate("erf", "layer") == pytest.approx(2 / np.sqrt(5) / np.arcsin(2 / 3), rel=1e-12)


@pytest.mark.parametrize("samples", [10**6, 10**9, 10**13, 10**16, 10**300])
def test_so_many_samples_are_as_good_as_infinitely_many(samples: int) -> None:
    assert norm_rate("tanh", "batch", samples) == pytest.approx(norm_rate("tanh", "batch"), rel=1e-5)


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_statistics_of_so_few_samples_are_refused(samples: int) -> None:
    predicted = predict(act="tanh", widths=[8, 9, 9, 4], q0=1.0)
    with pytest.raises(NoTheory, match=f"batch_size={samples}: "):
        activation_statistics(activation("tanh"), predicted, batch_size=samples)
