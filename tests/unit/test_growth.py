"""How norms grew: held against sequences whose growth is known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gradstab.encoding import Vector
from gradstab.events import Records, Series
from gradstab.forensics.growth import History, first_above, growth, history, limits, rounded
from gradstab.forensics.snapshot import Past
from tests.conftest import Compose


def _history(norms: Vector, layers: Vector | None = None) -> History:
    steps = np.arange(len(norms))
    layers = np.stack([norms], 1) if layers is None else layers
    return History(steps, norms.copy(), norms, layers)


@pytest.mark.parametrize("factor", [1.01, 1.5, 10.0, 1e15])
@pytest.mark.parametrize("steps", [2, 3, 20, 300])
def test_a_geometric_sequence_grows_by_its_factor_from_its_start(factor: float, steps: int) -> None:
    norms = np.exp(np.minimum(np.arange(steps) * math.log(factor), 700.0))
    norms = norms[norms < 1e300]
    found = growth(_history(norms))
    assert found is not None
    assert found.factor == pytest.approx(factor, rel=1e-9)
    assert found.mean_factor == pytest.approx(factor, rel=1e-9)
    assert (found.since, found.until, found.calm_steps) == (0, len(norms) - 1, 0)
    assert found.grew == (norms[-1] > 2)


@pytest.mark.parametrize("calm", [30, 200, 5000])
@pytest.mark.parametrize("grown", [3, 12, 60])
def test_growth_after_calm_is_found_where_it_begins(calm: int, grown: int) -> None:
    noise = np.exp(np.random.default_rng(0).normal(0, 0.1, calm + grown))
    norms = np.concatenate([np.full(calm, 2.0), 2.0 * 3.0 ** np.arange(1, grown + 1)]) * noise
    found = growth(_history(norms))
    assert found is not None
    assert found.grew
    assert abs(found.since - (calm - 1)) <= 1
    assert found.factor == pytest.approx(3, rel=0.05 + 0.5 / grown)
    assert found.calm == pytest.approx(2, rel=0.1)
    assert found.calm_peak < 2 * math.exp(0.5)


@pytest.mark.parametrize(
    "norms",
    [[1, 2, 8, 64, 1e4, 1e8, 1e16], [11.5, 47, 265, 2.28e7, 1e20, 1e35], [10.0 ** (1.5**i) for i in range(13)]],
    ids=["doubling exponents", "jumps", "a power of a power"],
)
def test_what_grows_ever_faster_was_never_calm(norms: list[float]) -> None:
    past = _history(np.array(norms, dtype=np.float64))
    found = growth(past)
    assert found is not None
    assert (found.since, found.calm_steps) == (0, 0)
    assert found.grew
    assert found.mean_factor == pytest.approx((norms[-1] / norms[0]) ** (1 / (len(norms) - 1)))
    assert found.mean_factor > found.factor
    assert limits(past, found)[0] == rounded(norms[0])


def test_calm_steps_before_what_grows_ever_faster_are_found() -> None:
    norms = np.array([2.0] * 30 + [4, 32, 1e4, 1e8, 1e16])
    past = _history(norms)
    found = growth(past)
    assert found is not None
    assert (found.since, found.calm, found.calm_peak) == (29, 2.0, 2.0)
    assert limits(past, found)[0] == 2.0


def test_a_slow_drift_over_many_steps_does_not_hide_where_growth_began() -> None:
    norms = np.concatenate([1.02 ** np.arange(200), 1.02**200 * 3.0 ** np.arange(100)])
    found = growth(_history(norms))
    assert found is not None
    assert abs(found.since - 200) <= 1
    assert found.factor == pytest.approx(3)


def test_one_outlier_does_not_move_the_factor() -> None:
    norms = 1.5 ** np.arange(20.0)
    norms[9] *= 1000
    found = growth(_history(norms))
    assert found is not None
    assert found.factor == pytest.approx(1.5, rel=0.05)


def test_what_scatters_has_not_grown_and_zeros_and_infinities_are_left_out() -> None:
    norms = np.exp(np.random.default_rng(1).normal(0, 0.3, 100))
    norms[[5, 50, 99]] = [0, math.inf, math.nan]
    found = growth(_history(norms))
    assert found is not None
    assert not found.grew
    assert growth(_history(np.array([1.0]))) is None
    assert growth(_history(np.array([]), np.zeros((0, 1)))) is None
    assert growth(_history(np.zeros(20))) is None


def test_the_layer_that_grows_fastest_is_named() -> None:
    steps = np.arange(15.0)
    layers = np.stack([1.1**steps, 2.5**steps * 1e-3, 2.0**steps], 1)
    found = growth(_history(np.linalg.norm(layers, axis=1), layers))
    assert found is not None
    assert found.layer == 1
    assert found.layer_factor == pytest.approx(2.5)


def test_losses_stand_in_where_no_norms_were_taken() -> None:
    past = Past(list(range(6)), [4.0**i for i in range(5)] + [math.inf], [0.1] * 6)
    known = history(past, 5)
    found = growth(known)
    assert found is not None
    assert (found.quantity, found.layer) == ("loss", None)
    assert found.factor == pytest.approx(4)
    assert limits(known, found) == []


def test_the_event_file_reaches_further_back_than_the_ring() -> None:
    norms = np.concatenate([np.full(100, 2.0), 2.0 * 1.2 ** np.arange(1, 61)])
    steps = np.arange(160)
    records = Records(
        {name: Series(steps, norms) for name in ("train/loss", "global_grad_norm/pre_clip")},
        {"grad_norm": Series(steps, norms[:, None])},
    )
    last = [float(x) for x in norms[-20:]]
    ring = Past(steps[-20:].tolist(), last, [0.1] * 20, last, [], [[x] for x in last])
    alone, whole = growth(history(ring, 160)), growth(history(ring, 160).before(records))
    assert alone is not None
    assert whole is not None
    assert (alone.since, alone.calm_steps) == (140, 0)
    assert whole.since == 99
    assert whole.factor == pytest.approx(alone.factor, rel=1e-9)
    records.vectors["grad_norm"] = Series(steps, np.stack([norms, norms], 1))
    assert history(ring, 160).before(records).step[0] == 140


def test_limits_leave_calm_steps_as_they_were() -> None:
    norms = np.concatenate([[1.0, 2.0, 1.5] * 10, 2.0 * 10.0 ** np.arange(1, 6)])
    past = _history(norms)
    tries = limits(past, growth(past))
    assert tries[0] == 2.0
    assert tries == sorted(tries, reverse=True)
    assert first_above(past, tries[0]) == 30
    assert first_above(past, 1e9) is None
    grown = _history(3.0 * 2.0 ** np.arange(10))
    assert limits(grown, growth(grown))[0] == 3.0
    alone = _history(np.array([5.0]))
    assert limits(alone, growth(alone))[0] == 5.0


def test_limits_are_such_as_can_be_set(configure: Compose) -> None:
    for norms in ([2.81e35], [4e32, 4e34], [3e30, 2e30, 3e30, 2e30, 1e40]):
        past = _history(np.array(norms))
        tries = limits(past, growth(past))
        assert tries == [1e30, 5e29, 1e29, 1e28, 1e27]
        for limit in tries:
            assert configure("clip=norm", f"clip.max_norm={limit}").clip.knobs["max_norm"] == limit


@pytest.mark.parametrize(
    ("value", "expected"), [(1.71, 1.8), (5.92, 6.0), (15.8, 16.0), (2.0, 2.0), (1e-7, 1e-7), (123456.0, 130000.0)]
)
def test_limits_are_rounded_up_to_two_digits(value: float, expected: float) -> None:
    assert rounded(value) == expected
