"""Many runs side by side: one small picture each, all with the same axes and colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from gradstab.report import style
from gradstab.report.digest import FINITE, Curve, Digest
from gradstab.report.figures import COLOURS, NAMES, draw_heatmap, limits_of, log_range
from gradstab.report.profiles import Profiles

# A loss this many times the typical one at the start is off the scale that all runs share, and so are norms this many
# decades below or above those of the run whose norms are nearest to 1: how far one exploded matters less than how
# far others vanish.
OFF_SCALE, BELOW, ABOVE = 100.0, 12.0, 6.0
WIDTH, HEIGHT = 3.1, 2.35
SMALL: Any = {
    "font.size": 7.5,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "lines.linewidth": 1.2,
}


@dataclass
class Scales:
    """What all small pictures share: limits as log10 of the norms, of δ over depth, and of the loss.

    ``beyond`` is at which ends norms go on, as matplotlib's colour bars call it.
    """

    norms: tuple[float, float]
    depth: tuple[float, float]
    loss: tuple[float, float]
    beyond: str = "neither"


def scales(digests: Sequence[Digest]) -> Scales:
    """Limits that hold every run's values, but for those off the scale: one run that exploded hides no other."""
    norms = [d.heatmap.log10[d.heatmap.kind == FINITE] for d in digests if d.heatmap is not None]
    depths = [_log10(np.ravel(d.depth.values)) for d in digests if d.depth is not None]
    losses = [curve for d in digests if (curve := d.curves.get("train/loss")) is not None]
    starts = [float(c.middle[0]) for c in losses if np.isfinite(c.middle[0]) and c.middle[0] > 0]
    found = log_range(*[part for c in losses for part in (c.low, c.high)]) if losses else None
    cap = np.log10(OFF_SCALE) + np.log10(sorted(starts)[(len(starts) - 1) // 2]) if starts else np.inf
    loss = None if found is None else (min(found[0], float(cap)), min(found[1], float(cap)))
    (low, high), (least, most) = _around(norms, BELOW, ABOVE), _around(norms, np.inf, np.inf)
    beyond = {(True, True): "both", (True, False): "min", (False, True): "max"}.get((least < low, most > high))
    return Scales((low, high), _around(depths, BELOW, ABOVE), limits_of(loss), beyond or "neither")


def _around(runs: Sequence[NDArray[np.float64]], below: float, above: float) -> tuple[float, float]:
    """Limits that hold all values no further than that from those of the run whose values are nearest to 0."""
    known = [values[np.isfinite(values)] for values in runs]
    known = [values for values in known if values.size]
    if not known:
        return limits_of(None)
    middle = min((float(np.median(values)) for values in known), key=abs)
    low, high = min(float(v.min()) for v in known), max(float(v.max()) for v in known)
    return limits_of((max(low, middle - below), min(high, middle + above)))


class Drawer:
    """Draws one run after another into one figure: axes and ticks are most of what a small picture costs."""

    def __init__(self, shared: Scales) -> None:
        self._shared = shared
        with style.drawing(), mpl.rc_context(SMALL):
            self._figure = style.figure(HEIGHT, WIDTH)
            self._axes = three(self._figure, (0, 0, 1, 1))

    def draw(self, data: Digest) -> Figure:
        """The picture of one run, good until the next is drawn."""
        with style.drawing(), mpl.rc_context(SMALL):
            fill(self._axes, data, self._shared)
        return self._figure


def three(fig: Figure, box: tuple[float, float, float, float]) -> tuple[Axes, Axes, Axes]:
    """Axes for one run's charts within a part of a figure, given as left, bottom, width and height."""

    def at(left: float, bottom: float, width: float, height: float) -> Axes:
        axes = fig.add_axes((box[0] + left * box[2], box[1] + bottom * box[3], width * box[2], height * box[3]))
        axes.tick_params(length=2, pad=2)
        axes.xaxis.labelpad = axes.yaxis.labelpad = 1.5
        axes.xaxis.set_major_locator(MaxNLocator(3, integer=True, min_n_ticks=1))
        return axes

    top, depth, loss = at(0.16, 0.62, 0.80, 0.36), at(0.16, 0.15, 0.30, 0.29), at(0.66, 0.15, 0.30, 0.29)
    top.grid(False)
    top.set_ylabel("layer")
    top.yaxis.set_major_locator(MaxNLocator(3, integer=True, min_n_ticks=1))
    depth.set_xlabel("layer")
    style.step_axis(loss, "step", 3)
    loss.set_ylabel("train loss")
    return top, depth, loss


def fill(axes: tuple[Axes, Axes, Axes], data: Digest, shared: Scales) -> None:
    """One run's heatmap, below it δ over depth (first and last measured step) and the loss, in place of another's."""
    top, depth, loss = axes
    for one in axes:
        for artist in (*one.lines, *one.images, *one.collections, *one.texts):
            artist.remove()
    for one, present, what in (
        (top, data.heatmap, "no gradient norms recorded"),
        (depth, data.depth, "no profile"),
        (loss, data.curves.get("train/loss"), "no loss"),
    ):
        one.set_axis_on() if present is not None else one.set_axis_off()
        if present is None:
            one.text(0.5, 0.5, what, ha="center", va="center", transform=one.transAxes, color=style.MUTED)
    if data.heatmap is not None:
        draw_heatmap(top, data.heatmap, shared.norms, 5)
        top.set_xlim(*top.images[0].get_extent()[:2])
        top.set_ylim(-0.5, len(data.heatmap.layers) - 0.5)
    if data.depth is not None:
        _depth(depth, data.depth, data.theory, shared)
    if "train/loss" in data.curves:
        _loss(loss, data.curves["train/loss"], shared)


def _decades(axes: Axes, limits: tuple[float, float]) -> None:
    """A logarithmic y axis with few ticks, on the data's own logarithm: quicker to draw than a log scale."""
    low, high = limits
    pad = 0.05 * (high - low)
    axes.set_ylim(low - pad, high + pad)
    stride = max(1, int(np.ceil((high - low) / 3)))
    ticks = np.arange(np.ceil(low), np.floor(high) + 1, stride)
    if len(ticks) >= 2:
        axes.yaxis.set_major_locator(FixedLocator(ticks.tolist()))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: style.power(value)))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(3))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{10.0 ** min(value, style.MOST):.2g}"))


def _log10(values: NDArray[np.float64]) -> NDArray[np.float64]:
    out = np.full(len(values), np.nan)
    return np.log10(values, out=out, where=np.isfinite(values) & (values > 0))


def _depth(axes: Axes, profile: Profiles, theory: Sequence[float], shared: Scales) -> None:
    ends = [(0, style.SEQUENCE[0])] + ([(-1, style.SEQUENCE[-1])] if len(profile.steps) > 1 else [])
    for (row, colour), width in zip(ends, (2.2, 1.1), strict=False):
        values = profile.values[row]
        logs, (low, high) = _log10(values), shared.depth
        style.line(axes, range(len(values)), logs, color=colour, linewidth=width)
        style.mark(axes, np.flatnonzero(profile.broken[row] | (logs > high)), top=True)
        style.mark(axes, np.flatnonzero((values == 0) | (logs < low)), top=False)
    if theory:
        style.line(axes, range(len(theory)), _log10(np.array(theory)), "--", color=style.INK, linewidth=0.9)
    _decades(axes, shared.depth)
    last = len(profile.layers) - 1
    axes.set_xlim(-0.05 * last - 0.1, 1.05 * last + 0.1)
    axes.set_ylabel(NAMES[profile.quantity])


def _loss(axes: Axes, curve: Curve, shared: Scales) -> None:
    style.line(axes, curve.steps, _log10(curve.middle), color=style.BLUE)
    if curve.thinned:
        low, high = _log10(curve.low), _log10(curve.high)
        axes.fill_between(curve.steps, low, high, color=style.BLUE, alpha=0.28, linewidth=0.4)
    _decades(axes, shared.loss)
    off = curve.steps[_log10(curve.high) > shared.loss[1] + 1e-9]
    style.mark(axes, np.unique(np.concatenate([curve.broken, off])), top=True)
    first, last = float(curve.steps[0]), float(curve.steps[-1])
    pad = 0.04 * (last - first) or 0.5
    axes.set_xlim(first - pad, last + pad)


def colour_bar(shared: Scales) -> Figure:
    """The legend of all heatmaps."""
    with style.drawing():
        fig = style.figure(0.62)
        bar(fig, fig.add_axes((0.03, 0.62, 0.94, 0.3)), shared)
    return fig


def bar(fig: Figure, axes: Axes, shared: Scales) -> None:
    colours = fig.colorbar(
        mpl.cm.ScalarMappable(Normalize(*shared.norms), COLOURS),
        cax=axes,
        orientation="horizontal",
        extend=shared.beyond,
    )
    colours.outline.set_visible(False)
    axes.grid(False)
    axes.xaxis.set_major_locator(MaxNLocator(7))
    axes.set_xlabel("log₁₀ ‖∂L/∂W‖", labelpad=1)
