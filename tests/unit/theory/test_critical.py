"""The edge of chaos against the published points."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest

from gradstab.theory import (
    NoTheory,
    activation,
    chi_1,
    critical_line,
    critical_point,
    critical_sigma_w2,
    depth_scales,
    fixed_points,
    half_stable_point,
    length_map,
    predict,
)


@pytest.mark.parametrize(
    ("sigma_w2", "sigma_b2", "tolerance"), [(1.05, 2.006e-5, 5e-5), (1.76095, 0.05, 5e-6), (2.0, 0.10379, 5e-5)]
)
def test_tanh_points_of_pennington_and_schoenholz(sigma_w2: float, sigma_b2: float, tolerance: float) -> None:
    point = critical_point(activation("tanh"), sigma_b2)
    assert point.sigma_w2 == pytest.approx(sigma_w2, abs=tolerance)
    assert point.sigma_b2 == sigma_b2
    assert point.kind == "stable"


@pytest.mark.parametrize(
    ("name", "sigma_b2", "sigma_w2"), [("gelu", 0.17292239, 1.98305826), ("silu", 0.55514317, 1.98800468)]
)
def test_half_stable_points_of_roberts_yaida_hanin(name: str, sigma_b2: float, sigma_w2: float) -> None:
    found = half_stable_point(activation(name))
    assert found is not None
    assert found.kind == "half-stable"
    assert found.sigma_b2 == pytest.approx(sigma_b2, abs=5e-9)
    assert found.sigma_w2 == pytest.approx(sigma_w2, abs=5e-9)
    assert found.chi_parallel == pytest.approx(1, abs=1e-10)
    at = critical_point(activation(name), sigma_b2)
    assert at.kind == "half-stable"
    assert at.sigma_w2 == pytest.approx(sigma_w2, abs=5e-9)
    assert critical_point(activation(name), 0.5 * sigma_b2).kind == "unstable"
    assert critical_point(activation(name), 2.0 * sigma_b2).kind == "stable"


def test_sigmoid_without_biases() -> None:
    point = critical_point(activation("sigmoid"))
    assert point.sigma_w2 == pytest.approx(103.008, abs=5e-4)
    assert point.q == pytest.approx(45.62, abs=5e-3)
    assert point.kind == "stable"


@pytest.mark.parametrize(
    ("name", "sigma_w2", "kind"),
    [
        ("identity", 1.0, "neutral"),
        ("relu", 2.0, "neutral"),
        ("prelu", 32 / 17, "neutral"),
        ("tanh", 1.0, "stable"),
        ("hardtanh", 1.0, "stable"),
        ("softsign", 1.0, "stable"),
        ("elu", 1.0, "stable"),
        ("erf", np.pi / 4, "stable"),
        ("gelu", 4.0, "unstable"),
    ],
)
def test_critical_points_without_biases(name: str, sigma_w2: float, kind: str) -> None:
    point = critical_point(activation(name))
    assert point.sigma_w2 == pytest.approx(sigma_w2, rel=1e-12)
    assert point.kind == kind


@pytest.mark.parametrize("name", ["tanh", "erf", "hardtanh", "selu", "elu", "softsign", "sigmoid", "scaled_tanh"])
@pytest.mark.parametrize("sigma_b2", [0.05, 0.1, 0.3])
def test_critical_points_are_fixed_and_critical(name: str, sigma_b2: float) -> None:
    act = activation(name)
    point = critical_point(act, sigma_b2)
    assert length_map(act, point.q, point.sigma_w2, sigma_b2) == pytest.approx(point.q, rel=1e-9)
    assert chi_1(act, point.q, point.sigma_w2) == pytest.approx(1, rel=1e-12)
    assert point.kind == "stable"
    assert critical_sigma_w2(act, sigma_b2) == point.sigma_w2
    scales = depth_scales(act, point.sigma_w2, sigma_b2)
    assert (scales.xi_c, scales.xi_grad) == (np.inf, np.inf)


@pytest.mark.parametrize(
    ("name", "sigma_w2"), [("identity", 0.7), ("relu", 1.4), ("tanh", 0.7), ("erf", 0.175 * np.pi)]
)
def test_dropout_takes_its_rate_off_the_critical_variance(name: str, sigma_w2: float) -> None:
    assert critical_sigma_w2(activation(name), 0.0, 0.3) == pytest.approx(sigma_w2, rel=1e-12)
    drawn = predict(act=name, widths=[9] * 5, q0=1e-9, init="critical", init_knobs={"sigma_b2": 0.0}, dropout=0.3)
    np.testing.assert_allclose(drawn.chi_1, 1, rtol=1e-8)


def test_where_there_is_none_it_says_so() -> None:
    for sigma_b2 in (0.0, 0.1, 1.0):
        with pytest.raises(NoTheory, match="softplus has no edge of chaos"):
            critical_point(activation("softplus"), sigma_b2)
    with pytest.raises(NoTheory, match="sigma_b2=0 alone"):
        critical_point(activation("relu"), 0.1)
    assert half_stable_point(activation("tanh")) is None
    assert half_stable_point(activation("hardtanh")) is None


@pytest.mark.parametrize("q", [-1.0, 0.0, math.inf, math.nan])
def test_a_critical_line_has_lengths_above_0(q: float) -> None:
    with pytest.raises(ValueError, match=r"q=.*: has to be a finite length above 0"):
        critical_line(activation("tanh"), q)


@pytest.mark.parametrize("q", [1e300, np.array([1.0, 1e60])])
def test_where_an_activation_is_flat_no_weights_are_critical(q: float) -> None:
    with pytest.raises(NoTheory, match=r"q=1e\+(300|60): act=tanh is flat there"):
        critical_line(activation("tanh"), q)
    assert critical_line(activation("relu"), q)[2] == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "knob", "value"), [("leaky_relu", "slope", math.inf), ("elu", "alpha", "a"), ("elu", "alpha", None)]
)
def test_knobs_of_activations_are_numbers(name: str, knob: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"act={name}: {knob}=.*: has to be a finite number"):
        activation(name, **{knob: value})


def test_an_elu_that_falls_below_0_is_not_monotone() -> None:
    assert activation("elu", alpha=0.5).monotone
    assert not activation("elu", alpha=-0.5).monotone


def test_a_signal_of_length_0_stays_where_it_is_or_grows_to_the_nearest_length() -> None:
    tanh = activation("tanh")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert depth_scales(tanh, 1.5, start=0.0).q == 0.0
        assert depth_scales(tanh, 1.5, 0.1, start=0.0).q == pytest.approx(depth_scales(tanh, 1.5, 0.1, start=0.01).q)
    for start in (-1.0, math.inf):
        with pytest.raises(ValueError, match=r"start=.*: has to be a finite number of at least 0"):
            depth_scales(tanh, 1.5, start=start)


def test_critical_line_of_erf_in_closed_form() -> None:
    q = np.array([0.1, 1.0, 10.0])
    sigma_w2, sigma_b2, _ = critical_line(activation("erf"), q)
    np.testing.assert_allclose(sigma_w2, np.pi / 4 * np.sqrt(1 + 4 * q), rtol=1e-12)
    np.testing.assert_allclose(sigma_b2, q - np.sqrt(1 + 4 * q) / 2 * np.arcsin(2 * q / (1 + 2 * q)), rtol=1e-12)


def test_a_bias_too_small_to_matter_is_refused_and_a_huge_one_is_followed() -> None:
    for name in ("gelu", "silu", "softsign", "tanh"):
        with pytest.raises(NoTheory, match=r"sigma_b2=1e-300 is too small .* allowed: 0, or at least 1e-18"):
            critical_point(activation(name), 1e-300)
    point = critical_point(activation("tanh"), 1e9)
    assert point.q > 1e9
    assert point.q == pytest.approx(length_map(activation("tanh"), point.q, point.sigma_w2, 1e9), rel=1e-12)
    assert chi_1(activation("tanh"), point.q, point.sigma_w2) == pytest.approx(1.0, rel=1e-9)


def test_a_variance_below_what_squares_hold_counts_as_none() -> None:
    for act in (activation("tanh"), activation("softsign")):
        assert fixed_points(act, 0.8, 1e-320) == fixed_points(act, 0.8, 0.0)


@pytest.mark.parametrize(("alpha", "sigma_b2"), [(0.01, 2.0), (0.1, 203.0)])
def test_an_edge_far_out_is_found(alpha: float, sigma_b2: float) -> None:
    """Of what is all but a ReLU, the line has this σ_b² only where q is large."""
    act = activation("elu", alpha=alpha)
    point = critical_point(act, sigma_b2)
    assert point.q > 1e9
    sigma_w2, on_the_line, _ = critical_line(act, point.q)
    assert (float(sigma_w2), float(on_the_line)) == pytest.approx((point.sigma_w2, sigma_b2), rel=1e-5)
