"""Activation statistics against drawn variables, and against networks that gradstab builds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gradstab.activations import build_activation, derivative, max_slope
from gradstab.theory import activation, activation_statistics, predict
from gradstab.theory.statistics import saturation_edge

WIDTHS = [200, *[300] * 4, 10]
KNOBS = {"init": "variance", "init_knobs": {"sigma_w2": 3.0, "sigma_b2": 0.2}}


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "scaled_tanh", "softsign", "erf", "relu", "gelu", "hardtanh"])
@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
def test_statistics_of_drawn_pre_activations(name: str, norm: str) -> None:
    act, module = activation(name), build_activation(name)
    predicted = predict(act=name, widths=WIDTHS, q0=np.array([0.5, 2.0]), norm=norm, batch_size=6, **KNOBS)
    found = activation_statistics(act, predicted, batch_size=6 if norm == "batch" else None)
    z = torch.randn(6, 100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for layer in (0, 3):
        assert predicted.phi_variance is not None
        if norm == "batch":
            h = (z - z.mean(0)) / z.std(0, correction=0)
        else:
            h = z * torch.tensor(predicted.phi_variance[layer]).sqrt().repeat(3)[:, None]
        a, slope = module(h), derivative(module, h)
        assert found["activation_mean"][layer] == pytest.approx(a.mean().item(), abs=4e-3)
        assert found["activation_std"][layer] == pytest.approx(a.std().item(), rel=5e-3)
        steepest = max_slope(module)
        assert ("saturated_fraction" in found) == (steepest is not None)
        if steepest is not None:
            share = (slope.abs() < 0.05 * steepest).double().mean().item()
            assert found["saturated_fraction"][layer] == pytest.approx(share, abs=4e-3)
        if "dead_fraction" in found:
            assert found["dead_fraction"][layer] == (slope == 0).all(0).double().mean().item() == 0
        assert ("dead_fraction" in found) == (norm == "batch" or name not in ("relu", "hardtanh"))


def test_where_slopes_fall_below_five_percent() -> None:
    assert saturation_edge(activation("tanh")) == pytest.approx(math.atanh(math.sqrt(0.95)))
    assert saturation_edge(activation("hardtanh")) == pytest.approx(1)
    assert saturation_edge(activation("softsign")) == pytest.approx(math.sqrt(20) - 1)
    assert saturation_edge(activation("erf")) == pytest.approx(math.sqrt(math.log(20)))


def test_lengths_of_hundreds_of_decades_make_no_noise() -> None:
    """Warnings are errors in tests."""
    exploding = {"init": "variance", "init_knobs": {"sigma_w2": 1e6, "sigma_b2": 0.0}}
    for name in ("relu", "leaky_relu"):
        predicted = predict(act=name, widths=[20] * 102, q0=1.0, **exploding)
        assert activation_statistics(activation(name), predicted)["activation_mean"][-1] > 1e100


def test_what_is_no_prediction_is_refused_in_one_line() -> None:
    with pytest.raises(TypeError, match=r"prediction=5: has to be what predict gives"):
        activation_statistics(activation("tanh"), 5)  # type: ignore[arg-type]
