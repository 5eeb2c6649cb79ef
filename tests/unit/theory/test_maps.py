"""Maps, fixed points and depth scales against published values, closed forms and finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from gradstab.theory import (
    NoTheory,
    activation,
    chi_1,
    chi_c,
    chi_parallel,
    correlation_map,
    critical_line,
    critical_point,
    critical_sigma_w2,
    depth_scales,
    fixed_points,
    half_stable_point,
    predict,
    predict_lenet5,
    signal_shares,
)
from gradstab.theory import length_map as step
from gradstab.theory.maps import (
    mean,
    mean_and_variance,
    mean_slope,
    second_moment,
    second_moment_slope,
    stable_correlation,
)
from gradstab.theory.quadrature import gaussian_expectation
from tests.unit.theory.test_quadrature import NAMES

TANH = activation("tanh")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (lambda: fixed_points(TANH, -1.0), "sigma_w2=-1: has to be a finite number of at least 0"),
        (lambda: fixed_points(TANH, math.inf), "sigma_w2=inf"),
        (
            lambda: fixed_points(TANH, 1e297),
            "sigma_w2=1e\\+297: has to be a finite number of at least 0, below 1e\\+100",
        ),
        (lambda: fixed_points(TANH, 1.0, -1.0), "sigma_b2=-1"),
        (lambda: fixed_points("tanh", 1.0), "act='tanh': has to be an Activation"),  # type: ignore[arg-type]
        (lambda: depth_scales(TANH, 1.0, dropout=1.0), "dropout=1: has to be at least 0 and below 1"),
        (lambda: depth_scales(TANH, 1.0, dropout=-1.0), "dropout=-1"),
        (lambda: critical_sigma_w2(TANH, 0.0, 2.0), "dropout=2"),
        (lambda: critical_point(TANH, -1.0), "sigma_b2=-1"),
        (lambda: correlation_map(TANH, 2.0, 1.0, 1.0), "c=2: has to be a correlation between -1 and 1"),
        (lambda: correlation_map(TANH, 0.5, 0.0, 2.0), "q=0: two inputs without length have no correlation"),
        (lambda: chi_c(activation("relu"), 0.5, 0.0, 2.0), "q=0: two inputs"),
        (lambda: chi_c(TANH, 0.5, 1.0, 1.0, dropout=1.0), "dropout=1"),
        (lambda: correlation_map(TANH, 0.5, 1.0, 0.0), "sigma_w2=0: leaves two inputs no length"),
        (lambda: chi_1(TANH, -1.0, 2.0), "q=-1: has to be at least 0"),
        (lambda: chi_parallel(TANH, math.nan, 2.0), "q=nan"),
        (lambda: step(activation("relu"), np.array([1.0, -2.0]), 2.0), "q=-2"),
        (lambda: step("tanh", 1.0, 2.0), "act='tanh': has to be an Activation"),  # type: ignore[arg-type]
        (lambda: chi_1(TANH, 1.0, -2.0), "sigma_w2=-2"),
        (lambda: step(TANH, 10**400, 1.0), "q=1000.*: has to be a number"),  # type: ignore[arg-type]
        (lambda: fixed_points(TANH, "1.5"), "sigma_w2='1.5': has to be a number"),  # type: ignore[arg-type]
        (lambda: critical_line("tanh", 1.0), "act='tanh': has to be an Activation"),  # type: ignore[arg-type]
        (lambda: critical_line(TANH, "x"), "q='x': has to be a number of at least 0"),  # type: ignore[arg-type]
        (lambda: critical_line(TANH, 1j), "q=1j: has to be a number of at least 0"),  # type: ignore[arg-type]
        (lambda: chi_1(TANH, None, 1.0), "q=None: has to be a number"),  # type: ignore[arg-type]
        (lambda: predict(act="tanh", init="foo", widths=[4, 8, 2], q0=1.0), "init=foo: .* allowed: critical, default"),
        (lambda: predict_lenet5(act="relu", q0=1.0, correlations=(2.0, 0.5)), "correlations=2"),
        (lambda: predict_lenet5(act="relu", q0=1.0, correlations=0.5), "correlations=0.5: has to be two"),  # type: ignore[arg-type]
        (lambda: predict_lenet5(act="relu", q0=1.0, correlations=(0.5, "a")), "correlations='a'"),  # type: ignore[arg-type]
        (lambda: predict_lenet5(act="relu", q0=1.0, correlations=None, norm="x"), "norm=x: allowed: none"),
        (lambda: predict_lenet5(act="relu", q0=1.0, correlations=None, residual="x"), "residual=x: allowed: none"),
        (lambda: activation(["relu"]), r"act=\['relu'\]: allowed: elu"),  # type: ignore[arg-type]
        (lambda: signal_shares(act="tanh", widths=[], q0=1.0, c0=0.5, dropout=0.1), r"widths=\[\]: have to be"),
        (lambda: signal_shares(act="tanh", widths=[4, 8, 2], q0=-1.0, c0=0.5, dropout=0.1), "q0=-1"),
        (lambda: signal_shares(act="tanh", widths=[4, 0, 2], q0=1.0, c0=0.5, dropout=0.1), "widths="),
        (lambda: signal_shares(act="tanh", widths=[4, 8, 2], q0=1.0, c0=0.5, dropout=0.1, residual="x"), "residual=x"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(asked: Callable[[], object], said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said) as told:
        asked()
    assert "\n" not in str(told.value)


def test_from_biases_alone_two_inputs_become_one() -> None:
    """Inputs of length 0 leave a layer's units with their biases, the same for both."""
    assert correlation_map(TANH, 0.5, 0.0, 2.0, 0.1) == pytest.approx(1.0)


@pytest.mark.parametrize(("name", "sigma_w2"), [("identity", 1.0), ("relu", 2.0), ("leaky_relu", 2 / 1.0001)])
def test_correlations_at_the_edge_of_chaos(name: str, sigma_w2: float) -> None:
    """Iterated, the map of linear layers leaves any correlation where it is; kinks bring it to 1, if slowly."""
    act, c = activation(name), 0.3
    for _ in range(200):
        c = correlation_map(act, c, 1.0, sigma_w2)
    found = depth_scales(act, sigma_w2).c
    if name == "identity":
        assert c == pytest.approx(0.3)
        assert math.isnan(found)
    else:
        assert c > 0.99
        assert found == 1.0


def test_selu_moment_map_has_the_published_jacobian() -> None:
    """Klambauer et al. 2017, Eq. 6, at mean 0 and variance 1; weights with mean 0 leave the first column 0."""
    selu = activation("selu")
    assert mean(selu, 1.0) == pytest.approx(0, abs=1e-12)
    assert second_moment(selu, 1.0) == pytest.approx(1, abs=1e-12)
    assert mean_slope(selu, 1.0) == pytest.approx(0.088834, abs=1e-6)
    # The variance is E φ² - (E φ)², whose second term is flat where the mean is 0. The paper's last digit is cut.
    assert second_moment_slope(selu, 1.0) == pytest.approx(0.782648, abs=5e-7)
    assert chi_1(selu, 1.0, 1.0) == pytest.approx(1.071575, abs=5e-7)


@pytest.mark.parametrize("name", NAMES)
def test_chi_parallel_is_the_slope_of_the_length_map(name: str) -> None:
    act, q = activation(name), np.array([0.01, 0.5, 3.0, 100.0])
    by_definition = gaussian_expectation(lambda x: act.phi(x) ** 2, q, act.kinks)
    weighted = np.array([gaussian_expectation(lambda x, v=v: x**2 / v * act.phi(x) ** 2, v, act.kinks) for v in q])
    expected = 1.7 * (weighted - by_definition) / (2 * q)
    np.testing.assert_allclose(chi_parallel(act, q, 1.7), expected, rtol=1e-8)
    difference = (step(act, q * 1.0001, 1.7, 0.3) - step(act, q * 0.9999, 1.7, 0.3)) / (q * 2e-4)
    np.testing.assert_allclose(chi_parallel(act, q, 1.7), difference, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_mean_and_variance(name: str) -> None:
    act, q = activation(name), np.geomspace(0.01, 100, 40)
    average, variance = mean_and_variance(act, q)
    np.testing.assert_allclose(average, gaussian_expectation(act.phi, q, act.kinks), rtol=1e-12, atol=1e-14)
    around = zip(q, average, strict=True)
    expected = [gaussian_expectation(lambda x, m=m: (act.phi(x) - m) ** 2, v, act.kinks) for v, m in around]
    np.testing.assert_allclose(variance, expected, rtol=1e-9)
    # φ is φ(0) + φ'(0) x there, and what is left of a difference of squares is rounding.
    assert (mean_and_variance(act, np.geomspace(1e-30, 1e-14, 50))[1] >= 0).all()


@pytest.mark.parametrize(("name", "limit"), [("sigmoid", 1 / 16), ("softplus", 1 / 4 + math.log(2) / 4), ("tanh", 1)])
def test_chi_parallel_keeps_its_digits_as_q_vanishes(name: str, limit: float) -> None:
    # (φ²)''/2 at 0, which is φ'² + φφ''; sigmoid has φ'' = 0 there.
    assert chi_parallel(activation(name), 1e-30, 1.0) == pytest.approx(limit, rel=1e-5)


@pytest.mark.parametrize("name", ["relu", "tanh", "hardtanh"])
def test_slope_of_the_correlation_map(name: str) -> None:
    act, q = activation(name), 0.8
    low, high = (correlation_map(act, 0.4 + h, q, 1.5, 0.2) for h in (-1e-4, 1e-4))
    # The map divides by the next layer's variance, its slope by this one's: at a fixed point they are the same.
    assert chi_c(act, 0.4, q, 1.5, 0.2) == pytest.approx((high - low) / 2e-4, rel=1e-6)


def test_correlations_of_relu_follow_the_closed_form_map() -> None:
    relu = activation("relu")
    for c in (0.0, 0.2, 0.9, 1.0):
        expected = (math.sqrt(1 - c**2) + (math.pi - math.acos(c)) * c) / math.pi
        assert correlation_map(relu, c, 3.0, 2.0) == pytest.approx(expected, rel=1e-10)


def test_dropout_takes_perfect_correlation_away() -> None:
    """Schoenholz et al. 2017, §5: (q - p σ_w² E φ²/(1-p))/q at c = 1, the two masks being independent."""
    tanh = activation("tanh")
    (point,) = fixed_points(tanh, 2.0 / 0.8, 0.1)
    missing = 0.2 * (2.0 / 0.8) * float(second_moment(tanh, point.q))
    assert correlation_map(tanh, 1.0, point.q, 2.0, 0.1, dropout=0.2) == pytest.approx(1 - missing / point.q, rel=1e-9)
    c, slope = stable_correlation(tanh, point.q, 2.0, 0.1, dropout=0.2)
    assert 0 < c < 1
    assert correlation_map(tanh, c, point.q, 2.0, 0.1, dropout=0.2) == pytest.approx(c, abs=1e-10)
    scales = depth_scales(tanh, 2.0, 0.1, dropout=0.2)
    assert scales.c == pytest.approx(c, rel=1e-9)
    assert scales.xi_c == pytest.approx(-1 / math.log(slope), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "sigma_w2", "sigma_b2", "expected"),
    [
        ("tanh", 0.5, 0.0, [(0.0, "stable")]),
        ("tanh", 1.0, 0.0, [(0.0, "stable")]),  # like 1/l
        ("hardtanh", 1.0, 0.0, [(0.0, "stable")]),
        ("tanh", 2.0, 0.0, [(0.0, "unstable"), (0.61796, "stable")]),
        ("selu", 1.0, 0.0, [(0.0, "unstable"), (1.0, "stable")]),
        ("relu", 1.5, 0.3, [(1.2, "stable")]),
        ("relu", 2.0, 0.0, [(1.0, "neutral")]),
        ("relu", 2.0, 0.1, []),
        ("relu", 2.5, 0.0, [(0.0, "unstable")]),
        ("relu", 2.5, 0.1, []),
        ("gelu", 4.0, 0.0, [(0.0, "unstable")]),
        ("gelu", 2.0, 0.1, [(0.3408, "stable"), (11.298, "unstable")]),
        ("softplus", 4.0, 0.0, []),
        # V(q) = q/2 + 1e-12; σ_w²/4 and σ_w²/2, where the sigmoid is 1/2 for all and where it is 0 or 1.
        ("tanh", 0.5, 1e-12, [(2e-12, "stable")]),
        ("sigmoid", 1.28e-10, 0.0, [(3.2e-11, "stable")]),
        ("sigmoid", 1e12, 0.0, [(5e11, "stable")]),
    ],
)
def test_fixed_points(name: str, sigma_w2: float, sigma_b2: float, expected: list[tuple[float, str]]) -> None:
    act = activation(name)
    points = fixed_points(act, sigma_w2, sigma_b2)
    assert [p.stability for p in points] == [stability for _, stability in expected]
    for point, (q, _) in zip(points, expected, strict=True):
        assert point.q == pytest.approx(q, rel=1e-3, abs=1e-30)
        assert step(act, point.q, sigma_w2, sigma_b2) == pytest.approx(point.q, rel=1e-9, abs=1e-30)


def test_depth_scales_are_the_rates_at_which_deviations_shrink() -> None:
    tanh, sigma_w2, sigma_b2 = activation("tanh"), 2.5, 0.1
    scales = depth_scales(tanh, sigma_w2, sigma_b2)
    q, c = scales.q + 1e-4, scales.c - 1e-4
    for _ in range(5):
        q = float(step(tanh, q, sigma_w2, sigma_b2))
        c = correlation_map(tanh, c, scales.q, sigma_w2, sigma_b2)
    assert math.log((q - scales.q) / 1e-4) == pytest.approx(-5 / scales.xi_q, rel=1e-3)
    assert math.log((scales.c - c) / 1e-4) == pytest.approx(-5 / scales.xi_c, rel=1e-3)
    assert scales.chi_1 > 1
    assert scales.xi_grad == pytest.approx(-1 / math.log(scales.chi_1))


def test_depth_scales_at_the_edge_and_beyond_it() -> None:
    assert depth_scales(activation("relu"), 2.0).xi_grad == math.inf
    ordered = depth_scales(activation("tanh"), 0.5)
    assert ordered.q == 0
    assert ordered.xi_grad == pytest.approx(1 / math.log(2))
    assert math.isnan(ordered.xi_c)
    assert depth_scales(activation("tanh"), 0.0).xi_q == 0
    with pytest.raises(NoTheory, match="grows with depth without bound"):
        depth_scales(activation("relu"), 2.0, dropout=0.1)


@pytest.mark.parametrize("name", ["gelu", "silu", "mish", "softplus"])
def test_what_only_tends_to_a_straight_line_has_no_fixed_point_far_out(name: str) -> None:
    """E φ(√q z)² tends to q/2 from one side and never reaches it; 40 digits of mpmath say so up to q = 1e8."""
    assert [point.q for point in fixed_points(activation(name), 2.0)] == ([] if name == "softplus" else [0.0])


@pytest.mark.parametrize("name", ["gelu", "silu", "mish"])
@pytest.mark.parametrize("below", [1e-6, 2e-7, 1e-7, 1e-8, 1e-10])
def test_a_straight_line_beside_the_diagonal_does_not_touch_it(name: str, below: float) -> None:
    """E φ(√q z)² < q/2 for all q, so that V(q) < q wherever σ_w² < 2."""
    assert [point.q for point in fixed_points(activation(name), 2.0 - below)] == [0.0]


@pytest.mark.parametrize("off", [0.0, -1e-8, -5e-8])
def test_half_stable_points_are_found_that_rounding_keeps_from_touching(off: float) -> None:
    point = half_stable_point(activation("gelu"))
    assert point is not None
    low, near = fixed_points(activation("gelu"), point.sigma_w2 * (1 + off), point.sigma_b2)
    assert (low.stability, near.stability) == ("stable", "half-stable")
    assert near.q == pytest.approx(point.q, rel=1e-3)


def test_gelus_moments_keep_their_digits_at_large_lengths() -> None:
    """Their arc sine against its series at 1: half of the digits would be lost with q/(1+q)."""
    q = np.array([1e6, 1e8, 1e10])
    # asin(q/(1+q)) = π/2 - acos(1 - 1/(1+q)) and acos(1 - x) = √(2x)(1 + x/12 + …).
    x = 1 / (1 + q)
    angle = np.pi / 2 - np.sqrt(2 * x) * (1 + x / 12 + 3 * x**2 / 160)
    expected = q * (0.25 + (angle + 2 * q / ((1 + q) * np.sqrt(1 + 2 * q))) / (2 * np.pi))
    np.testing.assert_allclose(activation("gelu").moments.square(q), expected, rtol=1e-15)


def test_depth_scales_are_those_of_the_length_that_a_network_tends_to() -> None:
    gelu = activation("gelu")
    small, large = fixed_points(gelu, 3.0)
    assert (small.stability, large.stability) == ("stable", "unstable")
    assert depth_scales(gelu, 3.0, start=0.9 * large.q).q == 0
    with pytest.raises(NoTheory, match=r"grows with depth beyond 1e\+09 from 0\.27"):
        depth_scales(gelu, 3.0, start=1.1 * large.q)
    assert depth_scales(activation("tanh"), 2.0, start=50.0).q == pytest.approx(0.61796, abs=5e-6)
    q = float(depth_scales(activation("tanh"), 2.0, 0.1, start=50.0).q)
    assert float(step(activation("tanh"), q, 2.0, 0.1)) == pytest.approx(q, rel=1e-9)
    assert depth_scales(activation("tanh"), 0.5, 1e-10, start=0.5).q == pytest.approx(2e-10)
    # Where tanh is x to the last digit, V(q) = q, and still it shrinks.
    assert depth_scales(activation("tanh"), 1.0, start=1e-13).q == 0


@pytest.mark.parametrize(
    ("name", "sigma_w2", "start"), [("hardtanh", 1.0, 0.02), ("hardtanh", 1.0, 1e-5), ("gelu", 2.0, 1e8)]
)
def test_lengths_shrink_that_rounding_leaves_as_they_are(name: str, sigma_w2: float, start: float) -> None:
    """E φ² is below q/σ_w² by what hardtanh cuts off, and GELU bends under the ReLU's line: mpmath sees both."""
    act = activation(name)
    assert step(act, start, sigma_w2, 0.0) == pytest.approx(start, rel=1e-11)
    scales = depth_scales(act, sigma_w2, start=start)
    assert scales.q == 0
    assert scales.chi_parallel == scales.chi_1 == pytest.approx(sigma_w2 * float(act.slope(np.zeros(1))[0]) ** 2)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "prelu", "gelu"])
def test_closed_means_against_quadrature(name: str) -> None:
    act, q = activation(name), np.geomspace(1e-6, 1e4, 21)
    np.testing.assert_allclose(mean(act, q), gaussian_expectation(act.phi, q, act.kinks), rtol=1e-10)
    slopes = gaussian_expectation(lambda x: x * act.slope(x), q, act.kinks) / (2 * q)
    np.testing.assert_allclose(mean_slope(act, q), slopes, rtol=1e-10)
