"""Quadrature against closed forms, with kinks at 0 and elsewhere, for small and large variances."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import erf, erfcx

from gradstab.activations import ACTIVATIONS, build_activation
from gradstab.theory.activations import Array, activation
from gradstab.theory.quadrature import (
    NORMAL,
    gaussian_expectation,
    hermite_coefficients,
    largest_of_four,
    pair_expectation,
    sphere,
)

Q = np.array([1e-280, 1e-6, 0.01, 1.0, 30.0, 1000.0])
NAMES = sorted(ACTIVATIONS)


def elu_second_moment(q: Array, scale: float, alpha: float) -> Array:
    half = 0.5 - erfcx(np.sqrt(q / 2)) + erfcx(np.sqrt(2 * q)) / 2
    return scale**2 * (q / 2 + alpha**2 * half)


@pytest.mark.parametrize("name", ["identity", "relu", "prelu", "leaky_relu", "erf", "gelu", "hardtanh"])
def test_quadrature_reproduces_every_closed_form(name: str) -> None:
    act = activation(name, slope=0.3)
    assert act.moments is not None
    square, slope, growth = act.moments.square(Q), act.moments.slope(Q), act.moments.growth(Q)
    np.testing.assert_allclose(gaussian_expectation(lambda x: act.phi(x) ** 2, Q, act.kinks), square, rtol=1e-10)
    np.testing.assert_allclose(gaussian_expectation(lambda x: act.slope(x) ** 2, Q, act.kinks), slope, rtol=1e-10)
    by_parts = gaussian_expectation(lambda x: x * act.phi(x) * act.slope(x), Q, act.kinks) / Q
    np.testing.assert_allclose(by_parts, growth, rtol=1e-10)


@pytest.mark.parametrize(
    ("name", "scale", "alpha"), [("selu", 1.0507009873554805, 1.6732632423543772), ("elu", 1, 0.7)]
)
def test_elu_and_selu_match_their_closed_form_where_it_has_digits(name: str, scale: float, alpha: float) -> None:
    act, q = activation(name, alpha=alpha), np.array([0.01, 1.0, 30.0, 1000.0])
    found = gaussian_expectation(lambda x: act.phi(x) ** 2, q, act.kinks)
    np.testing.assert_allclose(found, elu_second_moment(q, scale, alpha), rtol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_numpy_activations_and_slopes_equal_torch(name: str) -> None:
    x = torch.linspace(-30, 30, 1200, dtype=torch.float64, requires_grad=True)
    y = build_activation(name).double()(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    act = activation(name)
    np.testing.assert_allclose(act.phi(x.detach().numpy()), y.detach().numpy(), atol=1e-12)
    np.testing.assert_allclose(act.slope(x.detach().numpy()), slope.numpy(), atol=1e-12)


def test_more_values_than_are_integrated_at_once_keep_order_and_shape() -> None:
    q = np.linspace(0.1, 5, 3000).reshape(50, 60)
    np.testing.assert_allclose(gaussian_expectation(lambda x: x**2, q), q, rtol=1e-12)


@pytest.mark.parametrize("c", [-0.9, -1 / 31, 0.0, 0.3, 0.999, 1.0])
@pytest.mark.parametrize("q", [1e-6, 1.0, 10.0])
def test_pairs_match_the_closed_forms_of_relu_and_erf(c: float, q: float) -> None:
    relu, erf_ = activation("relu"), activation("erf")
    arc_cosine = q / 2 * (np.sqrt(1 - c**2) + (np.pi - np.arccos(c)) * c) / np.pi
    found = pair_expectation(lambda x, y: relu.phi(x) * relu.phi(y), c, q, relu.kinks)
    assert found == pytest.approx(arc_cosine, rel=1e-10, abs=1e-300)
    found = pair_expectation(lambda x, y: relu.slope(x) * relu.slope(y), c, q, relu.kinks)
    assert found == pytest.approx((np.pi - np.arccos(c)) / (2 * np.pi), rel=1e-10)
    found = pair_expectation(lambda x, y: erf_.phi(x) * erf_.phi(y), c, q, erf_.kinks)
    assert found == pytest.approx(2 / np.pi * np.arcsin(2 * q * c / (1 + 2 * q)), rel=1e-10, abs=1e-15 * q)


@pytest.mark.parametrize("q", [1e-4, 1.0, 10.0])
def test_pairs_split_at_kinks_away_from_zero(q: float) -> None:
    act = activation("hardtanh")
    assert act.moments is not None
    square, slope = act.moments.square(np.array(q)), act.moments.slope(np.array(q))
    found = pair_expectation(lambda x, y: np.stack([act.phi(y) ** 2, act.slope(x) ** 2]), 0.3, q, act.kinks)
    np.testing.assert_allclose(found, [square, slope], rtol=1e-9)
    # P(|x| < 1, |y| < 1) of independent x, y is a product.
    both = pair_expectation(lambda x, y: act.slope(x) * act.slope(y), 0.0, q, act.kinks)
    assert both == pytest.approx(erf(1 / np.sqrt(2 * q)) ** 2, rel=1e-9)


def test_a_kink_and_its_mirror_image_split_once() -> None:
    """Work is what makes a prediction slow: the points at which φ is evaluated, and how many at once."""

    def evaluated(kinks: tuple[float, ...]) -> list[int]:
        sizes: list[int] = []

        def one(x: Array, _y: Array) -> Array:
            sizes.append(x.size)
            return np.ones_like(x)

        assert pair_expectation(one, -1 / 31, 1.0, kinks, sphere(31)) == pytest.approx(1, rel=1e-10)
        return sizes

    assert evaluated((-1.0, 1.0)) == evaluated((1.0,))
    assert sum(evaluated((-1.0, 1.0))) < 500_000
    assert max(evaluated((-1.0, 1.0))) < 20_000


@pytest.mark.parametrize("samples", [4, 5, 8, 32, 512, 4096])
def test_coordinates_on_the_sphere_have_their_moments(samples: int) -> None:
    # Σx = 0 and Σx² = B make E xx' = -1/(B-1), and E x⁴ = 3(B-1)/(B+1).
    moments = pair_expectation(lambda x, y: np.stack([x**2, x * y, x**4]), -1 / (samples - 1), law=sphere(samples - 1))
    np.testing.assert_allclose(moments, [1, -1 / (samples - 1), 3 * (samples - 1) / (samples + 1)], rtol=1e-9)


def test_the_sphere_becomes_normal() -> None:
    def odd_even(x: Array, y: Array) -> Array:
        return np.stack([np.tanh(x) * np.tanh(y), np.tanh(x) ** 2])

    far = pair_expectation(odd_even, 0.4, law=sphere(10**6))
    np.testing.assert_allclose(far, pair_expectation(odd_even, 0.4, law=NORMAL), atol=1e-6)


@pytest.mark.parametrize("c", [0.0, 0.5, 1.0])
def test_the_largest_of_four_against_drawing_them(c: float) -> None:
    rng = np.random.default_rng(0)
    drawn = (np.sqrt(c) * rng.normal(size=(400_000, 1)) + np.sqrt(1 - c) * rng.normal(size=(400_000, 4))).max(axis=1)
    for power, tolerance in ((0, 1e-10), (1, 5e-3), (2, 8e-3)):
        found = gaussian_expectation(lambda z, p=power: z**p * largest_of_four(z, c), 1.0)
        assert found == pytest.approx(np.mean(drawn**power), abs=tolerance)


@pytest.mark.parametrize("name", ["tanh", "gelu", "softplus", "relu", "hardtanh"])
@pytest.mark.parametrize("q", [1e-6, 0.3, 2.0])
def test_hermite_coefficients_against_one_integral_each(name: str, q: float) -> None:
    act = activation(name)
    found, square = hermite_coefficients(act.phi, q, 8, act.kinks)
    for k, coefficient in enumerate(found):
        polynomial = np.polynomial.hermite_e.HermiteE.basis(k)

        def integrand(x: Array, polynomial: Any = polynomial) -> Array:
            return act.phi(x) * polynomial(x / np.sqrt(q))

        direct = float(gaussian_expectation(integrand, q, act.kinks)) / math.sqrt(math.factorial(k))
        assert coefficient == pytest.approx(direct, rel=1e-10, abs=1e-13 * math.sqrt(square))
    assert square == pytest.approx(float(gaussian_expectation(lambda x: act.phi(x) ** 2, q, act.kinks)), rel=1e-12)


@pytest.mark.parametrize("name", ["tanh", "softsign", "hardtanh", "erf"])
def test_even_integrands_need_one_side_alone(name: str) -> None:
    act = activation(name)
    whole = gaussian_expectation(lambda x: act.phi(x) ** 2, Q, act.kinks)
    np.testing.assert_allclose(gaussian_expectation(lambda x: act.phi(x) ** 2, Q, act.kinks, True), whole, rtol=1e-14)
