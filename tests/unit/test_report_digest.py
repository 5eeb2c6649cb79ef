"""Thinning out, against plain loops: what is largest, broken or zero is still there."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from gradstab.events import Records, Series
from gradstab.report import digest as d
from gradstab.report import profiles as p
from gradstab.report.runs import Run

TAGS = ["00_hidden", "01_hidden", "02_output"]


def _series(values: np.ndarray, steps: np.ndarray | None = None) -> Series:
    return Series(np.arange(len(values)) if steps is None else steps, values)


def test_a_short_run_has_a_column_for_every_step() -> None:
    values = np.exp(np.random.default_rng(0).normal(size=(50, 3), scale=9))
    made = d.heatmap(_series(values, np.arange(0, 500, 10)), TAGS, "grad_norm")
    np.testing.assert_allclose(made.log10, np.log10(values.T), rtol=1e-12)
    np.testing.assert_allclose(made.edges, np.arange(-5, 500, 10))
    assert (made.kind == d.FINITE).all()


@pytest.mark.parametrize("n", [481, 1000, 10_000])
def test_a_long_run_keeps_the_largest_of_each_bin(n: int) -> None:
    values = np.exp(np.random.default_rng(n).normal(size=(n, 3)))
    values[n // 2, 1] = 1e9
    made = d.heatmap(_series(values), TAGS, "grad_norm", 480)
    per = math.ceil(n / 480)
    expected = [[max(values[start : start + per, layer]) for start in range(0, n, per)] for layer in range(3)]
    np.testing.assert_allclose(made.log10, np.log10(expected), rtol=1e-12)
    assert made.log10[1].max() == pytest.approx(9)


def test_one_broken_value_in_ten_thousand_is_seen() -> None:
    values = np.ones((10_000, 3))
    values[1234, 0], values[5678, 1], values[9999, 2] = math.nan, math.inf, 0.0
    values[9980:, 2] = 0
    made = d.heatmap(_series(values), TAGS, "grad_norm")
    column = {step: int(np.searchsorted(made.edges, step)) - 1 for step in (1234, 5678, 9999)}
    assert made.kind[0, column[1234]] == d.NOT_A_NUMBER
    assert made.kind[1, column[5678]] == d.INFINITE
    assert (made.kind[0] == d.NOT_A_NUMBER).sum() == (made.kind[1] == d.INFINITE).sum() == 1
    # A bin is zero only if all of it is; the last holds 16 steps, all zero.
    assert made.kind[2, column[9999]] == d.ZERO
    assert np.isfinite(made.log10[made.kind == d.FINITE]).all()


UNEVEN = [0, 1, 2, 10, 11, 500, 501, 502, 10_000]


@pytest.mark.parametrize("steps", [UNEVEN, [5, 10, 12], [0, 1, 100]])
def test_no_two_steps_share_a_column_or_a_point_where_there_is_room(steps: list[int]) -> None:
    values = np.arange(1.0, len(steps) + 1)
    made = d.heatmap(_series(np.repeat(values[:, None], 3, axis=1), np.array(steps)), TAGS, "grad_norm")
    np.testing.assert_allclose(made.log10, np.log10([values] * 3))
    assert (made.first.tolist(), made.per_column, made.even) == (steps, 1, False)
    drawn = d.curve(_series(values, np.array(steps)))
    assert (drawn.steps.tolist(), drawn.middle.tolist(), drawn.thinned) == (steps, values.tolist(), False)


def test_uneven_steps_share_columns_equally_where_there_is_too_little_room() -> None:
    made = d.heatmap(_series(np.ones((9, 3)), np.array(UNEVEN)), TAGS, "grad_norm", 4)
    assert (made.first.tolist(), made.per_column) == ([0, 10, 501], 3)
    assert made.edges.tolist() == [-0.5, 6, 500.5, 10_000 + 9498 / 2]


@pytest.mark.parametrize("steps", [np.arange(0, 500, 10), np.delete(np.arange(10_000), 1234), np.array([7])])
def test_columns_stand_at_their_steps_where_these_are_hardly_uneven(steps: np.ndarray) -> None:
    assert d.heatmap(_series(np.ones((len(steps), 3)), steps), TAGS, "grad_norm").even


@pytest.mark.parametrize(
    ("steps", "at_most", "edges"),
    [
        ([7], 4, [6.5, 7.5]),
        # The last column holds one step, and is half as wide as the others.
        ([0, 10, 20, 30, 40, 50, 60], 4, [-5, 15, 35, 55, 65]),
        ([1, 2, 10], 2, [0.5, 6, 14]),
    ],
)
def test_columns_reach_half_a_step_beyond_the_outermost(steps: list[int], at_most: int, edges: list[float]) -> None:
    made = d.heatmap(_series(np.ones((len(steps), 3)), np.array(steps)), TAGS, "grad_norm", at_most)
    assert made.edges.tolist() == edges


def test_a_column_with_inf_and_nan_shows_nan() -> None:
    values = np.array([[math.inf, 1.0, math.nan], [math.nan, math.inf, math.inf]])
    made = d.heatmap(_series(values), TAGS, "grad_norm", 1)
    assert made.kind[:, 0].tolist() == [d.NOT_A_NUMBER, d.INFINITE, d.NOT_A_NUMBER]


def test_a_step_recorded_twice_shows_the_larger_value() -> None:
    made = d.heatmap(_series(np.array([[1.0], [100.0], [10.0]]), np.array([0, 1, 0])), TAGS, "grad_norm")
    np.testing.assert_allclose(made.log10, [[1, 2]])


def test_nothing_but_nan_still_makes_a_heatmap() -> None:
    made = d.heatmap(_series(np.full((4, 3), math.nan)), TAGS, "grad_norm")
    assert (made.kind == d.NOT_A_NUMBER).all()
    assert made.range is None


def test_a_curve_keeps_range_mean_and_broken_steps() -> None:
    values = np.random.default_rng(1).normal(size=1000)
    values[500] = 1e300
    values[[10, 11, 700]] = math.nan, math.inf, -math.inf
    made = d.curve(_series(values), 100)
    for i in range(100):
        chunk = values[10 * i : 10 * i + 10]
        chunk = chunk[np.isfinite(chunk)]
        assert (made.low[i], made.high[i]) == (chunk.min(), chunk.max())
        assert made.middle[i] == pytest.approx(chunk.mean())
    assert made.steps[0] == 4.5
    assert made.broken.tolist() == [10, 700]


def test_a_sum_that_would_overflow_has_a_mean() -> None:
    made = d.curve(_series(np.full(1000, 1.5e308)), 10)
    np.testing.assert_allclose(made.middle, 1.5e308)


def test_profiles_stand_at_the_measured_steps_nearest_to_those_asked_for() -> None:
    series = _series(np.arange(15.0).reshape(5, 3), np.array([0, 100, 200, 300, 400]))
    assert p.profiles(series, TAGS, "q", [90, 400, 9999]).steps == [100, 400]
    assert p.profiles(series, TAGS, "q").steps == [0, 100, 200, 300, 400]
    assert p.profiles(_series(np.ones((1, 3)), np.array([7])), TAGS, "q").steps == [7]
    chosen = p.profiles(_series(np.ones((1000, 3))), TAGS, "q").steps
    assert (len(chosen), chosen[0], chosen[-1]) == (5, 0, 999)


def test_theory_is_scaled_to_the_top_hidden_layer_at_step_0() -> None:
    series = _series(np.array([[5.0, 4.0, 8.0, 3.0], [1, 1, 1, 1]]))
    assert p.scaled_theory([0.25, 0.5, 1.0], series) == [2.0, 4.0, 8.0]
    assert p.scaled_theory([], series) == []
    assert p.scaled_theory([1.0] * 9, series) == []
    assert p.scaled_theory([0.5, 1.0], _series(np.ones((1, 3)), np.array([5]))) == []
    assert p.scaled_theory([0.5, 1.0], _series(np.full((1, 3), math.nan))) == []


def test_the_clipped_share_is_that_of_all_recorded_steps() -> None:
    triggered = (np.arange(1000) % 4 == 0).astype(float)
    run = Run(Path(), "r", records=Records(scalars={"clip/triggered": _series(triggered)}))
    made = d.digest(run)
    assert made.clipped_share == pytest.approx(0.25)
    assert made.clipped is not None
    np.testing.assert_allclose(made.clipped.middle.mean(), 0.25, atol=0.02)
