"""A quantity over depth at a few steps, and what theory expects of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gradstab.events import Series
from gradstab.report.reach import Mask

PROFILES = 5


@dataclass
class Profiles:
    """A quantity over depth at a few steps: values [steps, layers].

    ``absent`` [steps, layers] is where there was nothing to measure (nowhere, if None). ``unmeasured`` are the
    positions of layers that are left out altogether, as those that feed no activation.
    """

    quantity: str
    steps: list[int]
    values: NDArray[np.float64]
    layers: list[str]
    absent: Mask | None = None
    unmeasured: list[int] = field(default_factory=list)

    @property
    def broken(self) -> Mask:
        """Which values are inf or NaN, though there was something to measure."""
        mask: Mask = ~np.isfinite(self.values)
        return mask if self.absent is None else mask & ~self.absent

    @property
    def silent(self) -> list[int]:
        """The positions of layers that had nothing to measure at any of these steps."""
        return [] if self.absent is None else np.flatnonzero(self.absent.all(axis=0)).tolist()

    @property
    def measured(self) -> NDArray[np.intp]:
        """The positions of all other layers."""
        return np.setdiff1d(np.arange(self.values.shape[1]), self.unmeasured)


def profiles(
    series: Series, layers: Sequence[str], quantity: str, steps: Sequence[int] = (), absent: Mask | None = None
) -> Profiles:
    """A quantity over depth at the measured steps nearest to ``steps``, or else at a few spread over the run.

    ``absent`` says of the series' values where there was nothing to measure.
    """
    if steps:
        rows = sorted({int(np.argmin(np.abs(series.steps - step))) for step in steps})
    else:
        wanted = np.linspace(series.steps[0], series.steps[-1], PROFILES)
        rows = sorted({int(np.argmin(np.abs(series.steps - step))) for step in wanted})
    width = series.values.shape[1]
    there = [int(series.steps[row]) for row in rows]
    return Profiles(
        quantity, there, series.values[rows], list(layers[:width]), None if absent is None else absent[rows]
    )


def scaled_theory(relative: Sequence[float], measured: Series) -> list[float]:
    """The predicted profile, relative to the topmost hidden layer, scaled to what was measured there at step 0."""
    top = len(relative) - 1
    if not relative or measured.values.shape[1] <= top or not len(measured.steps) or measured.steps[0] != 0:
        return []
    scale = float(measured.values[0, top])
    if not (np.isfinite(scale) and scale > 0):
        return []
    return [value * scale for value in relative]
