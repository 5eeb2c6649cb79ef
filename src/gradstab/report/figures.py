"""The pictures over depth: functions from plain data to figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from gradstab.report import layer_names as names
from gradstab.report import style
from gradstab.report.digest import FINITE, INFINITE, NOT_A_NUMBER, ZERO, Array, Heatmap
from gradstab.report.profiles import Profiles

COLOURS = "viridis"
SPECIAL = {ZERO: (style.ZERO, "0"), INFINITE: (style.INF, "inf"), NOT_A_NUMBER: (style.NAN, "NaN")}
NAMED_LAYERS, NAME = 12, 17
DASHES = ("-", "--", "-.", ":")
LARGEST = 1e300


def layer_axis(axes: Axes, layers: Sequence[str], *, vertical: bool = False, label: str = "") -> None:
    """Layers as whole numbers, nearest the input first; by name where there are few."""
    axis = axes.yaxis if vertical else axes.xaxis
    axis.set_label_text(label or "layer (0 is nearest the input)")
    if len(layers) <= NAMED_LAYERS and vertical:
        axis.set_ticks(range(len(layers)), names.shortened(layers, NAME))
    else:
        axis.set_major_locator(MaxNLocator(5, steps=(1, 2, 5, 10), integer=True, min_n_ticks=1))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))


def rgba(data: Heatmap, limits: tuple[float, float]) -> Array:
    """A heatmap's colours, [layers, columns, 4]; cells that were not measured are transparent."""
    image = mpl.colormaps[COLOURS](Normalize(*limits)(np.nan_to_num(data.log10, nan=limits[0])))
    image[data.kind != FINITE] = 0
    for kind, (colour, _) in SPECIAL.items():
        image[data.kind == kind] = to_rgba(colour)
    return np.asarray(image, np.float64)


def limits_of(*ranges: tuple[float, float] | None) -> tuple[float, float]:
    """The limits of colours that hold all ranges; never empty."""
    known = [r for r in ranges if r is not None]
    low, high = (min(r[0] for r in known), max(r[1] for r in known)) if known else (-1.0, 1.0)
    return (low, high) if high - low > 0.2 else (low - 0.1, high + 0.1)


def draw_heatmap(axes: Axes, data: Heatmap, limits: tuple[float, float], ticks: int) -> None:
    """The cells of a heatmap, as one image, over the steps; over their order where they are spaced unevenly.

    On an axis of steps, columns that lie near one another in a long run would then be too narrow to be seen.
    """
    left, right = (data.edges[0], data.edges[-1]) if data.even else (-0.5, len(data.first) - 0.5)
    extent = (left, right, -0.5, len(data.layers) - 0.5)
    axes.imshow(rgba(data, limits), extent=extent, aspect="auto", origin="lower", interpolation="none")
    axes.grid(False)
    style.step_axis(axes, "step" if data.even else "step (unevenly spaced)", ticks)
    if not data.even:
        last = len(data.first) - 1
        named = FuncFormatter(lambda at, _: f"{data.first[round(at)]:,}" if 0 <= round(at) <= last else "")
        axes.xaxis.set_major_formatter(named)


def heatmap(data: Heatmap) -> Figure:
    """log10 of the gradient norm over layer and step, with zero, inf and NaN in colours of their own."""
    with style.drawing():
        fig = style.figure(style.HEIGHT)
        named = len(data.layers) <= NAMED_LAYERS
        left = 0.45 + 0.075 * max(map(len, names.shortened(data.layers, NAME))) if named else style.LEFT
        specials = [kind for kind in SPECIAL if (data.kind == kind).any()]
        (axes,) = style.place(fig, left=left, right=1.0, legend_rows=bool(specials))
        limits = limits_of(data.range)
        # As many steps as stand beside one another, a digit being 0.08 inches wide.
        room = (style.WIDTH - left - 1.0) / (0.08 * len(f"{data.edges[-1]:,.0f}") + 0.1)
        draw_heatmap(axes, data, limits, min(max(int(room), 1), 4))
        layer_axis(axes, data.layers, vertical=True, label="layer (0 is nearest the input)" if not named else "layer")
        if data.range is not None:
            box = axes.get_position()
            bar = fig.add_axes((box.x1 + 0.12 / style.WIDTH, box.y0, 0.13 / style.WIDTH, box.height))
            colours = fig.colorbar(mpl.cm.ScalarMappable(Normalize(*limits), COLOURS), cax=bar)
            colours.outline.set_visible(False)
            bar.grid(False)
            bar.set_ylabel(f"log₁₀ {NAMES.get(data.quantity, data.quantity)}")
            bar.yaxis.set_major_locator(MaxNLocator(5))
        handles = [Patch(color=SPECIAL[kind][0]) for kind in specials]
        style.legend(fig, handles, [SPECIAL[kind][1] for kind in specials], 3, left)
    return fig


NAMES = {
    "grad_norm": "‖∂L/∂W‖",
    "signal_grad_norm": "‖δ‖",
    "activation_std": "std of a",
    "activation_mean": "mean of a",
    "dead_fraction": "dead units",
    "saturated_fraction": "saturated",
}


def _step_lines(axes: Axes, data: Profiles, log: bool) -> list[Line2D]:
    """One line per step, first to last in the colours of a sequence; gaps where a value has no place."""
    lines = []
    for i, values in enumerate(data.values):
        # An axis cannot go to the end of what numbers hold.
        shown = np.where(np.isfinite(values) & ((values > 0) | (not log)), np.clip(values, -LARGEST, LARGEST), np.nan)
        colour = style.SEQUENCE[_spread(i, len(data.steps))]
        dash = DASHES[(i // len(style.SEQUENCE)) % len(DASHES)]
        # Lines that lie on one another stay visible: the earlier, the wider.
        width = 1.3 + 1.8 * (len(data.steps) - 1 - i) / max(len(data.steps) - 1, 1)
        dots = len(data.layers) <= 60
        at = data.measured
        lines.append(style.line(axes, at, shown[at], dash, dots=dots, color=colour, linewidth=width))
        style.mark(axes, at[data.broken[i, at]], top=True)
        if log:
            style.mark(axes, np.flatnonzero(values == 0), top=False)
    return lines


def _spread(index: int, count: int) -> int:
    last = len(style.SEQUENCE) - 1
    return round(index * last / (count - 1)) if 1 < count <= last + 1 else index % (last + 1)


def _edge_marks(broken: bool, zero: bool) -> tuple[list[Line2D], list[str]]:
    handles, labels = [], []
    if broken:
        handles.append(style.broken_handle())
        labels.append("inf or NaN")
    if zero:
        handles.append(Line2D([], [], color=style.MUTED, marker="v", linestyle="", markersize=4))
        labels.append("0")
    return handles, labels


def log_range(*arrays: Array) -> tuple[float, float] | None:
    """The smallest and largest log10 of what is finite and above 0."""
    values = np.concatenate([np.ravel(array) for array in arrays])
    values = values[np.isfinite(values) & (values > 0)]
    return (float(np.log10(values.min())), float(np.log10(values.max()))) if values.size else None


def depth_profile(data: Profiles, theory: Sequence[float] = ()) -> Figure:
    """A gradient's norm over depth at a few steps, with the theory's line for step 0."""
    with style.drawing():
        handles, labels = [], [f"step {step:,}" for step in data.steps]
        extra, extra_labels = _edge_marks(bool(data.broken.any()), bool((data.values == 0).any()))
        rows = -(-(len(labels) + len(extra) + (len(theory) > 0)) // 3)
        fig = style.figure(style.HEIGHT + 0.2 * max(rows - 3, 0))
        (axes,) = style.place(fig, legend_rows=rows)
        handles += _step_lines(axes, data, log=True)
        if theory:
            expected = np.asarray(theory, np.float64)
            dashed: dict[str, Any] = {"color": style.INK, "linewidth": 1.3, "zorder": 5}
            handles.append(style.line(axes, range(len(theory)), expected, "--", **dashed))
            labels.append("theory, step 0")
        found = log_range(data.values, np.asarray(theory, np.float64))
        style.log_axis(axes.yaxis, *(found or (-1.0, 1.0)))
        layer_axis(axes, data.layers)
        # Where layers at an end have no value the axis goes as far all the same.
        last = data.values.shape[1] - 1
        axes.set_xlim(-0.05 * max(last, 1), last + 0.05 * max(last, 1))
        axes.set_ylabel(f"{NAMES.get(data.quantity, data.quantity)}, log scale")
        style.legend(fig, [*handles, *extra], [*labels, *extra_labels], 3)
    return fig


def activations(data: Mapping[str, Profiles]) -> Figure | None:
    """Mean and standard deviation of the activations, dead and saturated units over depth; None without any."""
    if not data:
        return None
    with style.drawing():
        first = next(iter(data.values()))
        broken = any(profile.broken[:, profile.measured].any() for profile in data.values())
        spread = data.get("activation_std")
        zero = spread is not None and bool((spread.values == 0).any())
        rows = -(-len(first.steps) // 3) + (broken or zero)
        fig = style.figure(0.7 + 0.2 * rows + 1.28 * len(data))
        handles: list[Line2D] = []
        for axes, (quantity, profile) in zip(style.place(fig, len(data), legend_rows=rows), data.items(), strict=True):
            log = quantity == "activation_std"
            lines = _step_lines(axes, profile, log)
            handles = handles or lines
            if quantity.endswith("fraction"):
                axes.set_ylim(-0.04, 1.04)
                axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}"))
            elif log:
                style.log_axis(axes.yaxis, *(log_range(profile.values) or (-1.0, 1.0)), 4)
            axes.set_xlim(-0.05 * len(first.layers), 1.05 * len(first.layers) - 1)
            axes.set_ylabel(NAMES[quantity] + (", %" if quantity.endswith("fraction") else ""))
        layer_axis(axes, first.layers)
        marks, mark_labels = _edge_marks(broken, zero)
        labels = [f"step {step:,}" for step in first.steps]
        style.legend(fig, [*handles, *marks], [*labels, *mark_labels], 3)
    return fig
