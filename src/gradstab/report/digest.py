"""From a run's records, however long, to the few numbers that its pictures are drawn from.

Thinning out never hides what matters: a bin of norms keeps the largest, a curve keeps both ends of its range, and
values that are not finite are counted apart, since no axis has a place for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradstab.events import Records, Series
from gradstab.report import reach
from gradstab.report.profiles import Profiles, profiles, scaled_theory
from gradstab.report.runs import Run

Array = NDArray[np.float64]

COLUMNS = 480
BINS = 300
# What a cell of a heatmap is, when it is not a positive finite number.
FINITE, ZERO, INFINITE, NOT_A_NUMBER = 0, 1, 2, 3
# As a part of the axis, how far a column may lie from its place and still be seen where it belongs.
MISPLACED = 0.01
ACTIVATIONS = ("activation_std", "activation_mean", "dead_fraction", "saturated_fraction")
NORMS = ("global_grad_norm/pre_clip", "global_grad_norm/post_clip")


@dataclass
class Heatmap:
    """log10 of a norm, [layers, columns]; ``kind`` says of each cell what it is where it is no number.

    Column j holds the steps from ``edges[j]`` up to ``edges[j + 1]``, of each layer the largest value in them;
    ``first[j]`` is the first of these steps, ``per_column`` how many of them a column holds at most.
    """

    quantity: str
    log10: Array
    kind: NDArray[np.uint8]
    edges: Array
    first: NDArray[np.int64]
    layers: list[str]
    per_column: int

    @property
    def even(self) -> bool:
        """Whether columns of equal width lie where their steps do."""
        placed = np.linspace(self.edges[0], self.edges[-1], len(self.edges))
        return bool(np.abs(self.edges - placed).max() <= MISPLACED * (self.edges[-1] - self.edges[0]))

    @property
    def range(self) -> tuple[float, float] | None:
        """The smallest and largest log10; None where no value is finite and above 0."""
        values = self.log10[self.kind == FINITE]
        return (float(values.min()), float(values.max())) if values.size else None


@dataclass
class Curve:
    """One value over the steps, in bins: where its line runs, and from where to where its values lay.

    ``broken`` are the steps where a value was inf or NaN (the first of each bin).
    """

    steps: Array
    middle: Array
    low: Array
    high: Array
    broken: Array
    per_bin: float

    @property
    def thinned(self) -> bool:
        """Whether a point stands for several steps."""
        return self.per_bin > 1


@dataclass
class Digest:
    """What the pictures of one run are drawn from; what was not recorded is None or not there.

    ``line`` is how many layers the line behind the depth factor went through.
    """

    heatmap: Heatmap | None = None
    depth: Profiles | None = None
    theory: list[float] = field(default_factory=list)
    activations: dict[str, Profiles] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)
    clipped: Curve | None = None
    clipped_share: float | None = None
    has_clipping: bool = False
    line: int | None = None


def digest(run: Run, steps: Sequence[int] = (), *, coarse: bool = False) -> Digest:
    """Thin out one run's records; ``steps`` are those to draw profiles at (the nearest that were measured).

    ``coarse`` is enough for small pictures.
    """
    columns, bins = (COLUMNS // 3, BINS // 3) if coarse else (COLUMNS, BINS)
    records = run.records
    found = Digest(line=reach.points(run))
    if "grad_norm" in records.vectors:
        found.heatmap = heatmap(records.vectors["grad_norm"], run.layers, "grad_norm", columns)
    for quantity in ("signal_grad_norm", "grad_norm"):
        if found.depth is None and quantity in records.vectors:
            absent = reach.of_signal(records) if quantity == "signal_grad_norm" else None
            found.depth = profiles(records.vectors[quantity], run.layers, quantity, steps, absent)
    if found.depth is not None and found.depth.quantity == "signal_grad_norm":
        found.theory = scaled_theory(run.theory.get("signal_grad_norm", []), records.vectors["signal_grad_norm"])
    for quantity in ACTIVATIONS:
        if quantity in records.vectors:
            absent = reach.of_activation(records, records.vectors[quantity])
            found.activations[quantity] = profiles(records.vectors[quantity], run.layers, quantity, steps, absent)
            found.activations[quantity].unmeasured = np.flatnonzero(absent.all(axis=0)).tolist()
    for tag in ("train/loss", "test/loss", "test/accuracy", *NORMS):
        if tag in records.scalars:
            found.curves[tag] = curve(records.scalars[tag], bins)
    _add_clipping(found, records)
    return found


def _add_clipping(found: Digest, records: Records) -> None:
    triggered = records.scalars.get("clip/triggered")
    if triggered is not None and len(triggered.steps):
        found.has_clipping = True
        found.clipped = curve(triggered, at_most=60)
        found.clipped_share = float(np.mean(triggered.values))


def bin_edges(steps: Sequence[int] | NDArray[np.int64], at_most: int) -> tuple[Array, int]:
    """Edges of at most so many bins, and how many of the distinct, ascending ``steps`` each holds, but for the last.

    Edges lie midway between the last step of one bin and the first of the next, so that none is empty.
    """
    at = np.asarray(steps, np.float64)
    per_bin = -(-len(at) // at_most)
    before, behind = (at[1] - at[0], at[-1] - at[-2]) if len(at) > 1 else (1.0, 1.0)
    between = (at[per_bin - 1 : -1 : per_bin] + at[per_bin::per_bin]) / 2
    return np.concatenate([at[:1] - before / 2, between, at[-1:] + behind / 2]), per_bin


@dataclass
class _Bins:
    """Which records fall into which bin: ``order`` sorts them by bin, ``starts`` is where each bin begins.

    ``first`` is the first step in each bin, ``per_bin`` how many distinct ones it holds at most.
    """

    edges: Array
    first: NDArray[np.int64]
    per_bin: int
    order: NDArray[np.intp]
    starts: NDArray[np.intp]

    @classmethod
    def of(cls, steps: NDArray[np.int64], at_most: int) -> _Bins:
        distinct, position = np.unique(steps, return_inverse=True)
        edges, per_bin = bin_edges(distinct, at_most)
        index = position // per_bin
        order = np.argsort(index, kind="stable")
        starts = np.searchsorted(index[order], np.arange(len(edges) - 1))
        return cls(edges, distinct[::per_bin], per_bin, order, starts)

    def each(self, function: np.ufunc, values: NDArray[np.generic]) -> Any:
        """``function`` reduced over each bin's records."""
        return function.reduceat(values[self.order], self.starts, axis=0)


def cells(
    largest: Array, infinite: NDArray[np.bool_] | bool = False, not_a_number: NDArray[np.bool_] | bool = False
) -> tuple[Array, NDArray[np.uint8]]:
    """log10 of the largest finite norm in each cell of a heatmap, -inf where none was, and what each cell is."""
    kind = np.where(largest > 0, FINITE, ZERO).astype(np.uint8)
    kind[infinite] = INFINITE
    kind[not_a_number] = NOT_A_NUMBER
    log10 = np.full(largest.shape, np.nan)
    np.log10(largest, out=log10, where=kind == FINITE)
    return log10, kind


def heatmap(series: Series, layers: Sequence[str], quantity: str, columns: int = COLUMNS) -> Heatmap:
    """log10 of a norm over layer and step, at most ``columns`` columns, the largest value in each."""
    bins = _Bins.of(series.steps, columns)
    finite = np.isfinite(series.values)
    largest = bins.each(np.maximum, np.where(finite, series.values, -np.inf))
    broken = () if finite.all() else (bins.each(np.logical_or, test(series.values)) for test in (np.isinf, np.isnan))
    log10, kind = cells(largest, *broken)
    named = list(layers[: largest.shape[1]])
    return Heatmap(quantity, log10.T, kind.T, bins.edges, bins.first, named, bins.per_bin)


def curve(series: Series, at_most: int = BINS) -> Curve:
    """A scalar over the steps in at most so many bins."""
    bins = _Bins.of(series.steps, at_most)
    finite = np.isfinite(series.values)
    with np.errstate(all="ignore"):
        low = bins.each(np.minimum, np.where(finite, series.values, np.inf))
        high = bins.each(np.maximum, np.where(finite, series.values, -np.inf))
        count = bins.each(np.add, finite.astype(np.float64))
        members = bins.each(np.add, np.ones(len(finite)))
        share = np.repeat(np.maximum(count, 1), members.astype(int))
        # Divided before they are summed: a sum of finite values may overflow.
        values = np.where(finite, series.values, 0.0)[bins.order] / share
        middle = np.add.reduceat(values, bins.starts)
        steps = bins.each(np.add, series.steps.astype(np.float64)) / members
    nothing = count == 0
    low, middle, high = (np.where(nothing, np.nan, x) for x in (low, middle, high))
    broken = bins.each(np.minimum, np.where(finite, np.inf, series.steps))
    return Curve(steps, middle, low, high, broken[np.isfinite(broken)], len(series.steps) / len(steps))
