"""The pictures over steps: functions from plain data to figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from gradstab.report import style
from gradstab.report.digest import Curve, Digest


def _line(axes: Axes, data: Curve, colour: str, dash: str = "-", width: float = 1.6) -> Line2D:
    """A curve's line and, where it is thinned out, the band that its values lay in."""
    line = style.line(axes, data.steps, data.middle, dash, dots=len(data.steps) <= 40, color=colour, linewidth=width)
    if data.thinned:
        axes.fill_between(data.steps, data.low, data.high, color=colour, alpha=0.28, linewidth=0.6)
    style.mark(axes, data.broken, top=True)
    return line


def value_axis(axes: Axes, name: str, curves: Sequence[Curve]) -> None:
    """Logarithmic where all values are positive and span more than a factor of 20, else linear."""
    axes.set_ylabel(name)
    ends = np.concatenate([np.ravel(part) for c in curves for part in (c.low, c.high)] or [np.zeros(0)])
    ends = ends[np.isfinite(ends)]
    if ends.size and ends.min() > 0 and ends.max() / 20 > ends.min():
        style.log_axis(axes.yaxis, float(np.log10(ends.min())), float(np.log10(ends.max())), 5)
        axes.set_ylabel(f"{name}, log scale")
    elif ends.size:
        low, high = (float(end) for end in np.clip((ends.min(), ends.max()), -1e300, 1e300))
        # What hardly changes is a level line, and not the noise of its last digits.
        pad = max(0.06 * (high - low), 0.001 * abs(high)) or 0.1
        axes.autoscale(False, axis="y")
        axes.set_ylim(low - pad, high + pad)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        # A common factor, such as 1e10, stands left of the legend.
        axes.yaxis.get_offset_text().set_x(-0.2)
    else:
        axes.yaxis.set_ticks([])


def loss(curves: Mapping[str, Curve]) -> Figure | None:
    """Training and test loss, and below them test accuracy, over the steps; None without any."""
    losses = {name: curves[tag] for name, tag in (("train", "train/loss"), ("test", "test/loss")) if tag in curves}
    accuracy = curves.get("test/accuracy")
    if not losses and accuracy is None:
        return None
    with style.drawing():
        fig = style.figure(style.HEIGHT)
        shown = [*losses.values(), *([accuracy] if accuracy is not None else [])]
        parts = style.place(
            fig, (len(losses) > 0) + (accuracy is not None), legend_rows=_legend_rows(shown, len(shown))
        )
        handles, labels = [], []
        for (name, data), colour in zip(losses.items(), (style.BLUE, style.ORANGE), strict=False):
            handles.append(_line(parts[0], data, colour, "-" if name == "train" else "--"))
            labels.append(f"{name} loss")
        if losses:
            value_axis(parts[0], "loss", list(losses.values()))
        if accuracy is not None:
            handles.append(_line(parts[-1], accuracy, style.SEQUENCE[3]))
            labels.append("test accuracy")
            parts[-1].set_ylabel("accuracy, %")
            parts[-1].set_ylim(-0.03, 1.03)
            parts[-1].yaxis.set_ticks((0, 0.25, 0.5, 0.75, 1))
            parts[-1].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}"))
        _finish_steps(fig, parts, shown, handles, labels)
    return fig


def _legend_rows(curves: Sequence[Curve], entries: int) -> int:
    return -(-(entries + any(len(data.broken) for data in curves)) // 3)


def _finish_steps(
    fig: Figure, parts: Sequence[Axes], curves: Sequence[Curve], handles: list[Line2D], labels: list[str]
) -> None:
    style.step_axis(parts[-1])
    if any(len(data.broken) for data in curves):
        handles.append(style.broken_handle())
        labels.append("inf or NaN")
    style.legend(fig, handles, labels, 3)


def clipping(data: Digest) -> Figure | None:
    """The global gradient norm before and after clipping, and the share of clipped steps; None without norms."""
    pre, post = (data.curves.get(f"global_grad_norm/{side}_clip") for side in ("pre", "post"))
    if pre is None:
        return None
    with style.drawing():
        fig = style.figure(style.HEIGHT)
        shown = [pre] if post is None or not data.has_clipping else [pre, post]
        rows = _legend_rows(shown, len(shown) + (data.clipped is not None))
        parts = style.place(fig, 2 if data.clipped is not None else 1, legend_rows=rows)
        # Where the two lie on one another, the first stays visible below the second.
        looks = ((style.BLUE, 3.0), (style.ORANGE, 1.4)) if len(shown) > 1 else ((style.BLUE, 1.6),)
        handles = [_line(parts[0], one, colour, width=width) for one, (colour, width) in zip(shown, looks, strict=True)]
        labels = ["before clipping", "after"][: len(shown)] if data.has_clipping else ["global norm"]
        value_axis(parts[0], "‖∂L/∂θ‖", shown)
        if data.clipped is not None:
            share = data.clipped
            line = style.line(parts[1], share.steps, 100 * share.middle, color=style.RED, drawstyle="steps-mid")
            parts[1].fill_between(share.steps, 100 * share.middle, color=style.RED, alpha=0.15, step="mid", linewidth=0)
            handles.append(line)
            labels.append("share clipped")
            parts[1].set_ylim(-4, 104)
            parts[1].set_ylabel("clipped, %")
        _finish_steps(fig, parts, shown, handles, labels)
    return fig
