"""How norms grew before a step broke: arithmetic on a run's past, without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradstab.config.fields import LARGEST
from gradstab.encoding import Vector
from gradstab.events import Records
from gradstab.forensics.snapshot import LAST_STEPS, Past

_MOST_POINTS = 400
# Steps before growth began from which a calm level can be read.
_CALM_STEPS = 3
# A stretch that grows by more than this, as a whole or in its last step, is not calm.
_CALM_RISE = 4.0


@dataclass(frozen=True)
class History:
    """What is known of the steps before the broken one, in order.

    Losses and global gradient norms are [n], layers' norms [n, L]: before clipping, and empty where none were taken.
    """

    step: NDArray[np.int64]
    loss: Vector
    global_norm: Vector
    layer_norm: NDArray[np.float64]

    @property
    def has_norms(self) -> bool:
        """Whether gradient norms were taken."""
        return len(self.global_norm) == len(self.step) and len(self.step) > 0

    def before(self, records: Records) -> History:
        """The same with the steps before its own that the event file holds."""
        norms, layers = records.scalars.get("global_grad_norm/pre_clip"), records.vectors.get("grad_norm")
        losses = records.scalars.get("train/loss")
        if losses is None or norms is None or layers is None or not self.has_norms:
            return self
        same = np.array_equal(norms.steps, losses.steps) and np.array_equal(norms.steps, layers.steps)
        if not same or layers.values.shape[1] != self.layer_norm.shape[1]:
            return self
        older = norms.steps < self.step[0]
        return History(
            np.concatenate([norms.steps[older], self.step]),
            np.concatenate([losses.values[older], self.loss]),
            np.concatenate([norms.values[older], self.global_norm]),
            np.concatenate([layers.values[older], self.layer_norm]),
        )


def history(past: Past, broken: int) -> History:
    """The steps of ``past`` before step ``broken``."""
    n = sum(step < broken for step in past.step)
    layers = past.layer_grad_norm
    return History(
        np.array(past.step[:n], dtype=np.int64),
        np.array(past.loss[:n], dtype=np.float64),
        np.array(past.global_grad_norm[:n], dtype=np.float64),
        np.array(layers[:n], dtype=np.float64).reshape(min(n, len(layers)), len(layers[0]) if layers else 0),
    )


@dataclass(frozen=True)
class Growth:
    """How a quantity grew up to the step that broke.

    It was calm until step ``since``, at a median of ``calm`` and at most ``calm_peak`` over ``calm_steps`` steps (NaN
    and 0 where it grew from the first known step on). Then it grew by ``factor`` per step up to step ``until``, from
    ``start`` to ``end``, which is ``mean_factor`` on average. ``layer`` is the index of the layer that grew most over
    the same steps, by ``layer_factor``.
    """

    quantity: str
    since: int
    until: int
    factor: float
    mean_factor: float
    start: float
    end: float
    calm: float
    calm_peak: float
    calm_steps: int
    layer: int | None
    layer_factor: float

    @property
    def grew(self) -> bool:
        """Whether there was a growth to speak of: at least to double, and beyond how calm steps scatter."""
        above = self.end > 1.5 * self.calm_peak if self.calm_steps else True
        return self.factor > 1 and self.end > 2 * self.start and above


def growth(past: History) -> Growth | None:
    """How the global gradient norm grew, or the loss where no norms were taken; None with fewer than two steps.

    Two stretches are fitted to the logarithm: constant, then a line; the kink is where their squared error is least.
    Looked at are the last steps, then twice as many, until at least half of them are calm. The factor is the median
    slope over all pairs of steps of the second stretch (Theil 1950, Sen 1968), which single outliers do not move.
    """
    quantity, values = ("global_grad_norm", past.global_norm) if past.has_norms else ("loss", past.loss)
    usable = np.flatnonzero(np.isfinite(values) & (values > 0))
    if len(usable) < 2:
        return None
    window, kink = LAST_STEPS, 0
    while True:
        wider = usable[-window:]
        until = _calm_until(past.step[wider], np.log(values[wider]))
        if until < kink:
            # Over so many steps the calm ones drift by more than what is calm.
            break
        rows, kink = wider, until
        if len(rows) == len(usable) or 2 * kink >= len(rows):
            break
        window *= 2
    calm, grown = rows[: kink + 1], rows[kink:]
    if len(calm) < _CALM_STEPS:
        calm, grown = rows[:0], rows
    layer, layer_factor = _fastest(past, grown)
    return Growth(
        quantity=quantity,
        since=int(past.step[grown[0]]),
        until=int(past.step[grown[-1]]),
        factor=_factor(past.step[grown], values[grown]),
        mean_factor=_mean_factor(past.step[grown], values[grown]),
        start=float(values[grown[0]]),
        end=float(values[grown[-1]]),
        calm=float(np.median(values[calm])) if len(calm) else math.nan,
        calm_peak=float(values[calm].max()) if len(calm) else math.nan,
        calm_steps=len(calm),
        layer=layer,
        layer_factor=layer_factor,
    )


def _calm_until(steps: NDArray[np.int64], logs: Vector) -> int:
    """The index up to which ``logs`` are calm, and not only slow beside what came after: 0 where they grow throughout.

    Growth that gets ever faster leaves a stretch before its kink that grows as well; the kink is then looked for in
    that stretch.
    """
    kink = _kink(steps, logs)
    while kink + 1 >= _CALM_STEPS:
        before, own = steps[: kink + 1], logs[: kink + 1]
        risen = _slope(before, own) * float(before[-1] - before[0])
        if max(risen, logs[kink] - float(np.median(own))) < math.log(_CALM_RISE):
            return kink
        kink = _kink(before, own)
    return 0


def _kink(steps: NDArray[np.int64], logs: Vector) -> int:
    """The index up to which ``logs`` are best taken as constant, and as a line from there on."""
    candidates = np.unique(np.linspace(0, len(steps) - 2, min(len(steps) - 1, _MOST_POINTS)).astype(int))
    best, least = 0, math.inf
    for k in candidates:
        x = np.maximum(0, steps - steps[k]).astype(np.float64)
        x -= x.mean()
        y = logs - logs.mean()
        slope = float(x @ y) / float(x @ x)
        error = float(np.sum((y - slope * x) ** 2))
        # A clear gain only: of stretches that fit alike, the longest growth is told.
        if error < least * (1 - 1e-6) - 1e-12:
            best, least = int(k), error
    return best


def _factor(steps: NDArray[np.int64], values: Vector) -> float:
    """exp of the median slope of log values over all pairs of steps; NaN with fewer than two usable ones."""
    usable = np.flatnonzero(np.isfinite(values) & (values > 0))
    if len(usable) < 2:
        return math.nan
    slope = _slope(steps[usable], np.log(values[usable]))
    return math.exp(slope) if slope < 700 else math.inf


def _slope(steps: NDArray[np.int64], logs: Vector) -> float:
    """The median slope over all pairs of at least two points."""
    some = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), _MOST_POINTS)).astype(int))
    x, y = steps[some].astype(np.float64), logs[some]
    first, second = np.triu_indices(len(x), 1)
    return float(np.median((y[second] - y[first]) / (x[second] - x[first])))


def _mean_factor(steps: NDArray[np.int64], values: Vector) -> float:
    slope = float(np.log(values[-1]) - np.log(values[0])) / float(steps[-1] - steps[0])
    return math.exp(slope) if slope < 700 else math.inf


def _fastest(past: History, rows: NDArray[np.intp]) -> tuple[int | None, float]:
    """The layer whose norm grew most over ``rows``, and by what factor per step; those that died on the way do not."""
    if not past.has_norms or not past.layer_norm.shape[1]:
        return None, math.nan
    norms = past.layer_norm[rows]
    alive = np.isfinite(norms) & (norms > 0)
    whole = alive.sum(0) == alive.sum(0).max()
    factors = [_factor(past.step[rows], norms[:, i]) if whole[i] else math.nan for i in range(norms.shape[1])]
    known = [i for i, factor in enumerate(factors) if not math.isnan(factor)]
    fastest = max(known, key=lambda i: factors[i], default=None)
    return fastest, math.nan if fastest is None else factors[fastest]


def limits(past: History, found: Growth | None) -> list[float]:
    """Limits on the global gradient norm worth a try, the gentlest first; none where no norms were taken.

    The first leave every step before the growth as it was, and every calm step just before it; where there were none,
    the first known step's norm stands for them. Then come a half of the calm level, where clipping still converges
    (Pascanu et al. 2013), and tenths of it. No limit is beyond the largest that can be set.
    """
    known = past.global_norm[np.isfinite(past.global_norm) & (past.global_norm > 0)]
    if not len(known):
        return []
    if found is None or not found.calm_steps:
        level = float(known[0])
        first = [level]
    else:
        level = found.calm
        earlier = past.global_norm[past.step <= found.since]
        first = [float(earlier[np.isfinite(earlier)].max()), found.calm_peak]
    level = min(level, LARGEST)
    raw = [*first, level / 2, level / 10, level / 100, level / 1000]
    return list(dict.fromkeys(min(value, LARGEST) for value in map(rounded, raw) if value > 0))


def rounded(value: float) -> float:
    """Two digits, rounded up: what people type."""
    if not 0 < value < math.inf:
        return value
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / unit - 1e-9) * unit:.2g}")


def first_above(past: History, limit: float) -> int | None:
    """The first known step whose global gradient norm is above ``limit``."""
    above = np.flatnonzero(past.global_norm > limit)
    return int(past.step[above[0]]) if len(above) else None
