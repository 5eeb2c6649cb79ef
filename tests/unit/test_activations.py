"""Activations against closed forms and numeric differentiation in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from gradstab.activations import ACTIVATIONS, build_activation, derivative, max_slope
from gradstab.config import network_options
from gradstab.config.registry import OPTIONS

assert network_options  # importing it is what fills OPTIONS

SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _softplus(x: float) -> float:
    return math.log1p(math.exp(x))


FORMULAS = {
    "identity": lambda x: x,
    "sigmoid": _sigmoid,
    "tanh": math.tanh,
    "scaled_tanh": lambda x: 1.7159 * math.tanh(2 * x / 3),
    "hardtanh": lambda x: max(-1.0, min(1.0, x)),
    "softsign": lambda x: x / (1 + abs(x)),
    "relu": lambda x: max(0.0, x),
    "leaky_relu": lambda x: x if x > 0 else 0.01 * x,
    "prelu": lambda x: x if x > 0 else 0.25 * x,
    "elu": lambda x: x if x > 0 else math.expm1(x),
    "selu": lambda x: SELU_SCALE * (x if x > 0 else SELU_ALPHA * math.expm1(x)),
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "silu": lambda x: x * _sigmoid(x),
    "mish": lambda x: x * math.tanh(_softplus(x)),
    "softplus": _softplus,
    "erf": math.erf,
}
BOUNDED = {"sigmoid", "tanh", "scaled_tanh", "hardtanh", "softsign", "erf"}
NAMES = sorted(OPTIONS["act"])


def points() -> Tensor:
    """Points on both sides of every kink (-1, 0, 1), none within the step of numeric differentiation of one."""
    return torch.linspace(-4.03, 4.01, 60, dtype=torch.float64).view(6, 10)


def build(name: str) -> nn.Module:
    return build_activation(name, **OPTIONS["act"][name](name).knobs).double()


def formula(name: str, x: Tensor) -> Tensor:
    return torch.tensor([FORMULAS[name](v) for v in x.flatten().tolist()], dtype=torch.float64).view_as(x)


def test_every_option_has_a_module_and_a_formula_here() -> None:
    assert set(NAMES) == set(ACTIVATIONS) == set(FORMULAS)
    assert len(NAMES) == 16


@pytest.mark.parametrize("name", NAMES)
def test_value_is_the_formula_and_never_in_place(name: str) -> None:
    x = points()
    before = x.clone()
    torch.testing.assert_close(build(name)(x), formula(name, x), rtol=1e-6, atol=1e-9)
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", NAMES)
def test_derivative_is_the_numeric_one(name: str) -> None:
    x, step = points(), 1e-6
    expected = (formula(name, x + step) - formula(name, x - step)) / (2 * step)
    slope = derivative(build(name), x)
    assert slope.shape == x.shape
    torch.testing.assert_close(slope, expected, rtol=1e-5, atol=1e-7)


def test_derivative_at_a_kink_is_what_the_backward_pass_uses() -> None:
    assert derivative(build_activation("relu"), torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("name", NAMES)
def test_max_slope_is_the_largest_slope_of_bounded_activations(name: str) -> None:
    activation = build(name)
    far = torch.tensor([-1e6, 1e6], dtype=torch.float64)
    assert (activation(far).abs().max().item() < 10) == (name in BOUNDED)
    limit = max_slope(activation)
    if name not in BOUNDED:
        assert limit is None
        return
    slopes = derivative(activation, torch.linspace(-5, 5, 10_001, dtype=torch.float64)).abs()
    assert limit == pytest.approx(slopes.max().item(), rel=1e-12)


def test_knobs_are_reached() -> None:
    x = torch.tensor([-2.0, 2.0], dtype=torch.float64)
    assert build_activation("leaky_relu", slope=0.3)(x).tolist() == pytest.approx([-0.6, 2.0])
    assert build_activation("elu", alpha=2.5)(x).tolist() == pytest.approx([2.5 * math.expm1(-2), 2.0])


def test_prelu_slope_is_learnt_and_each_module_has_its_own() -> None:
    one, other = build_activation("prelu"), build_activation("prelu")
    one(torch.tensor([-3.0])).sum().backward()
    (slope,) = one.parameters()
    assert slope.grad is not None
    assert slope.grad.tolist() == [-3.0]
    assert all(parameter.grad is None for parameter in other.parameters())


def test_scaled_tanh_maps_one_to_one() -> None:
    ones = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(build_activation("scaled_tanh")(ones), ones, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "tanh", "gelu"])
def test_the_slope_at_nan_is_nan(name: str) -> None:
    h = torch.tensor([math.nan, 1.0])
    slope = derivative(build_activation(name), h)
    assert math.isnan(slope[0].item())
    assert not math.isnan(slope[1].item())
