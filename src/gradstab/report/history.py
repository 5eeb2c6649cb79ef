"""A run's gradient over layer and step while it runs, in memory that does not grow; its pictures for TensorBoard."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradstab import dashboard, plain
from gradstab.encoding import Vector
from gradstab.events import EventWriter, Series

COLUMNS = 256
PROFILES = 16
DPI = 100
HEATMAP, PROFILE = "depth/heatmap", "depth/profile"


@dataclass(frozen=True)
class Image:
    """A PNG and its size in pixels."""

    png: bytes
    width: int
    height: int


class History:
    """Keeps at most ``columns`` columns of ``grad_norm`` and a few profiles of ``signal_grad_norm``.

    ``layers`` are all layers' tags, nearest the input first. A full table is halved: neighbouring columns become one
    that keeps the larger of each layer's norms, and whether any of them was inf or NaN.
    """

    # Steps of kept profiles at which the loss or the whole gradient was not finite, or neither was told.
    _unsound: tuple[int, ...] = ()

    def __init__(self, layers: Sequence[str], columns: int = COLUMNS) -> None:
        self.layers = list(layers)
        self.signal: list[tuple[int, Vector]] = []
        self._largest = np.full((columns, len(self.layers)), -np.inf)
        self._inf, self._nan = (np.zeros((columns, len(self.layers)), bool) for _ in range(2))
        self._starts = np.zeros(columns, np.int64)
        self._used = self._in_last = 0
        self._per_column = 1
        self._last_step = 0
        self._spread = 1
        self._n_measured = 0

    def observe(self, step: int, scalars: Mapping[str, float], vectors: Mapping[str, Vector]) -> None:
        """Take one step's values, as the event file gets them; steps come in order."""
        if "grad_norm" in vectors:
            # Where the whole norm is finite, so is each layer's.
            whole = scalars.get("global_grad_norm/pre_clip", math.nan)
            self._add(step, vectors["grad_norm"], finite=math.isfinite(whole))
        if "signal_grad_norm" in vectors:
            self._keep_profile(step, vectors["signal_grad_norm"])
            told = [scalars[tag] for tag in ("train/loss", "global_grad_norm/pre_clip") if tag in scalars]
            if not told or not all(map(math.isfinite, told)):
                kept = {step for step, _ in self.signal}
                self._unsound = (*(step for step in self._unsound if step in kept), step)

    def _add(self, step: int, norms: Vector, *, finite: bool) -> None:
        if self._in_last == self._per_column or not self._used:
            if self._used == len(self._starts):
                self._halve()
            if self._in_last == self._per_column or not self._used:
                self._open(step)
        row = self._used - 1
        largest = self._largest[row]
        np.maximum(largest, norms if finite else np.where(np.isfinite(norms), norms, -np.inf), out=largest)
        if not finite:
            self._nan[row] |= np.isnan(norms)
            self._inf[row] |= np.isinf(norms)
        self._in_last += 1
        self._last_step = step

    def _open(self, step: int) -> None:
        self._starts[self._used] = step
        self._used += 1
        self._in_last = 0

    def _halve(self) -> None:
        half = self._used // 2
        for table, merge in ((self._largest, np.maximum), (self._inf, np.logical_or), (self._nan, np.logical_or)):
            merged = merge.reduceat(table, np.arange(0, self._used, 2), axis=0)
            table[: len(merged)] = merged
            table[len(merged) :] = -np.inf if table is self._largest else False
        self._starts[: len(merged)] = self._starts[::2].copy()
        # With an odd number of columns the last stands for one old column only, and has room.
        self._in_last = self._per_column if self._used % 2 else 2 * self._per_column
        self._used, self._per_column = half + self._used % 2, 2 * self._per_column

    def _keep_profile(self, step: int, profile: Vector) -> None:
        self._n_measured += 1
        # The last one kept is the latest, and gives way to the next unless it falls on the grid.
        if self.signal and len(self.signal) > 1 and (self._n_measured - 2) % self._spread:
            self.signal.pop()
        self.signal.append((step, np.array(profile)))
        if len(self.signal) > PROFILES:
            self._spread *= 2
            self.signal = self.signal[::2] + ([] if len(self.signal) % 2 else self.signal[-1:])

    def edges(self) -> Vector:
        """Midway between one column's steps and the next one's, and as far beyond the outermost."""
        starts = self._starts[: self._used].astype(np.float64)
        stride = (starts[-1] - starts[0]) / (self._per_column * (self._used - 1)) if self._used > 1 else 1.0
        return np.append(starts, self._last_step + stride) - stride / 2

    def profiles(self) -> Any:
        """The profiles kept that are to be drawn, as the report takes them; None before the first."""
        from gradstab.report import profiles, reach

        if not self.signal:
            return None
        measured = self._measured()
        absent = reach.absent(measured.values, ~np.isin(measured.steps, self._unsound))
        return profiles.profiles(measured, self.layers, "signal_grad_norm", absent=absent)

    def expected(self, theory: Mapping[str, Any] | None) -> list[float]:
        """What theory, as run.json holds it, expects of ‖δ‖ at step 0; empty where it says nothing."""
        from gradstab.report.profiles import scaled_theory

        return scaled_theory((theory or {}).get("signal_grad_norm") or [], self._measured()) if self.signal else []

    def _measured(self) -> Series:
        steps, values = zip(*self.signal, strict=True)
        return Series(np.array(steps, np.int64), np.stack(values))

    def heatmap(self) -> Any:
        """What was kept, as the report's heatmaps take it; None before the first norms."""
        from gradstab.report import digest

        if not self._used:
            return None
        log10, kind = digest.cells(*(table[: self._used] for table in (self._largest, self._inf, self._nan)))
        first = self._starts[: self._used]
        return digest.Heatmap("grad_norm", log10.T, kind.T, self.edges(), first, self.layers, self._per_column)


def profiles(history: History, theory: Mapping[str, Any] | None) -> dict[str, list[float]]:
    """‖δ‖ over depth at the first and the latest measured step, and what theory expects at step 0, by name."""
    if not history.signal:
        return {}
    (_, first), (_, last) = history.signal[0], history.signal[-1]
    expected = history.expected(theory)
    return {"first": first.tolist(), "last": last.tolist()} | ({"theory": expected} if expected else {})


def tensorboard_images(history: History, theory: Mapping[str, Any] | None) -> dict[str, Image]:
    """The report's heatmap and depth profile by tag, as far as there is something to draw.

    ``theory`` is what run.json holds under that key. matplotlib is imported on the first call.
    """
    from gradstab.report import figures

    drawn = {}
    data = history.heatmap()
    if data is not None:
        drawn[HEATMAP] = figures.heatmap(data)
    if (shown := history.profiles()) is not None:
        drawn[PROFILE] = figures.depth_profile(shown, history.expected(theory))
    return {tag: _png(figure) for tag, figure in drawn.items()}


class Pictures:
    """Observes a run, and writes its pictures into its event file now and then and at the end.

    The first come after ``after`` steps (inf: at the end alone), others whenever the run is twice as long as at the
    last: their number grows with its logarithm. ``theory`` is what run.json holds under that key.
    """

    def __init__(
        self, writer: EventWriter, layers: Sequence[str], theory: Mapping[str, Any] | None, after: float
    ) -> None:
        self._next = after
        self._writer = writer
        self._theory = theory
        self._history = History(layers)
        self._step, self._drawn = 0, -1

    def observe(self, step: int, scalars: Mapping[str, float], vectors: Mapping[str, Vector]) -> None:
        """Take one step's values, as the event file gets them; steps come in order."""
        if "test/loss" in scalars:
            return  # An evaluation is nothing to draw.
        self._step = step
        self._history.observe(step, scalars, vectors)
        if step + 1 >= self._next:
            self._draw()
            self._next *= 2

    def finish(self, *, short: bool = True) -> None:
        """Draw the whole run, and write the chart of the profile over depth; to be called once.

        With ``short=False`` a run that never came to its first pictures gets none at its end either.
        """
        if self._drawn != self._step and (short or self._drawn >= 0):
            self._draw()
        for layer, summary in enumerate(dashboard.depth_profile(profiles(self._history, self._theory))):
            self._writer.write_summary(summary, layer)

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` needs to go on from here."""
        return plain.state_of(self, "_writer", "_theory")

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""
        plain.restore(self, state_dict)

    def _draw(self) -> None:
        self._drawn = self._step
        for tag, image in tensorboard_images(self._history, self._theory).items():
            self._writer.write_summary(dashboard.image(tag, image.png, image.width, image.height), self._step)


def _png(figure: Any) -> Image:
    from gradstab.report import style

    png = style.quick_png(figure, DPI)
    # Where every PNG says it, right behind its signature.
    width, height = struct.unpack(">II", png[16:24])
    return Image(png, width, height)
