"""How all pictures look, and how one becomes a file or a part of the page.

Pictures are drawn in the colours of a light page; in the page itself every colour becomes a CSS variable, so that
one drawing serves light and dark. Nothing here touches matplotlib's global state but for the time of one drawing.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

INK, MUTED, GRID = "#1f2430", "#5d6675", "#dfe3ea"
BLUE, ORANGE, RED, GREY = "#2459c8", "#c2620a", "#d3202f", "#9aa2ae"
# Cells of a heatmap that are no number: part of an image, they are the same in the dark.
ZERO, INF, NAN = "#9aa2ad", "#d61f9b", "#d3202e"
# From the first step to the last.
SEQUENCE = ("#6a3fd0", "#2465d8", "#0a86a0", "#128a55", "#b56a07", "#cf3a2c")
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", BLUE: "--blue", ORANGE: "--orange", RED: "--red"}
VARIABLES |= {GREY: "--grey", ZERO: "--zero", INF: "--inf", NAN: "--nan"}
VARIABLES |= {colour: f"--s{i}" for i, colour in enumerate(SEQUENCE)}

WIDTH, HEIGHT, LEFT = 4.3, 3.1, 0.8
# Powers of ten that logarithmic axes reach: as far as a float does.
LEAST, MOST = -323, 308
_SETTINGS: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.labelsize": 9.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    # Names come from configuration: a dollar sign in one is a dollar sign.
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.which": "major",
    "axes.axisbelow": True,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.handlelength": 1.5,
    "legend.columnspacing": 1.2,
    "legend.handletextpad": 0.5,
    "legend.borderaxespad": 0,
    "svg.fonttype": "none",
    "svg.hashsalt": "gradstab",
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
    "path.simplify": True,
}
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@contextmanager
def drawing() -> Iterator[None]:
    """The house's settings, for as long as one picture is drawn or written."""
    with mpl.rc_context(_SETTINGS), warnings.catch_warnings():
        # A name in a script that the font lacks shows as boxes in a PNG, and as it is in the page.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def power(exponent: float) -> str:
    """10 to an integer power, as people write it."""
    return "10" + str(round(exponent)).translate(_SUPERSCRIPTS)


def figure(height: float, width: float = WIDTH) -> Figure:
    """An empty picture of so many inches."""
    made = Figure(figsize=(width, height))
    FigureCanvasAgg(made)
    return made


def place(fig: Figure, rows: int = 1, *, legend_rows: int = 1, left: float = LEFT, right: float = 0.12) -> list[Axes]:
    """Axes one below the other, with room (in inches) for labels and, above, for a legend."""
    width, height = fig.get_size_inches()
    axes: list[Axes] = []
    for row in range(rows):
        axes.append(fig.add_subplot(rows, 1, row + 1, sharex=axes[0] if axes else None))
        if row < rows - 1:
            axes[-1].tick_params(labelbottom=False)
        # Where it is visible and in line with the others, however wide the ticks' labels are.
        axes[-1].yaxis.set_label_coords((0.17 - left) / (width - left - right), 0.5)
    top = 0.12 + 0.2 * legend_rows
    fig.subplots_adjust(
        left / width, 0.5 / height, 1 - right / width, 1 - top / height, hspace=0.14 if rows < 3 else 0.2
    )
    return axes


def legend(fig: Figure, handles: Sequence[Any], labels: Sequence[str], columns: int, left: float = LEFT) -> None:
    """One legend for the whole picture, above it."""
    if handles:
        fig.legend(
            handles, labels, loc="upper left", bbox_to_anchor=(left / fig.get_size_inches()[0], 1), ncols=columns
        )


def step_axis(axes: Axes, label: str = "step", ticks: int = 5) -> None:
    """Whole numbers, few of them."""
    axes.xaxis.set_major_locator(MaxNLocator(ticks, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel(label)


def log_axis(axis: Any, low: float, high: float, ticks: int = 5) -> None:
    """A logarithmic axis over [10^low, 10^high], or a little more, labelled in powers of ten or plain numbers."""
    low, high = (low - 0.3, high + 0.3) if high - low < 0.3 else (low, high)
    high = max(high, LEAST + 1.0)
    pad = 0.04 * (high - low)
    axes = axis.axes
    limits = (10.0 ** max(low - pad, LEAST), 10.0 ** min(high + pad, MOST))
    # What an axis chooses by itself may be beyond what a float holds: limits and ticks are given.
    name = axis.axis_name
    axes.autoscale(False, axis=name)
    axes.set(**{f"{name}scale": "log"})
    axes.set(**{f"{name}lim": limits})
    if high - low < 2.2:
        fine = (1, 2, 5) if high - low > 1 else (1, 1.5, 2, 3, 5, 7)
        exponents = range(max(math.floor(low), LEAST), min(math.floor(high), MOST - 1) + 1)
        axis.set_major_locator(FixedLocator([m * 10.0**e for e in exponents for m in fine]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    else:
        whole = MaxNLocator(ticks, integer=True, steps=(1, 2, 3, 4, 5, 10)).tick_values(low, high)
        axis.set_major_locator(FixedLocator([10.0**e for e in whole if LEAST <= e <= MOST]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: power(_log10(value))))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def line(
    axes: Axes, x: Sequence[float] | NDArray[Any], y: NDArray[Any], dash: str = "-", *, dots: bool = False, **look: Any
) -> Line2D:
    """A line with gaps where a value is not finite; with a dot at every point, or else at those between two gaps.

    Such a point has no neighbour to be joined to, so that without a dot nothing would be seen of it.
    """
    finite = np.pad(np.isfinite(y), 1)
    alone = np.flatnonzero(finite[1:-1] & ~finite[:-2] & ~finite[2:])
    if dots or len(alone):
        look |= {"marker": "o", "markersize": 3, "markevery": None if dots else alone.tolist()}
    (drawn,) = axes.plot(x, y, dash, **look)
    return drawn


def mark(axes: Axes, at: Sequence[float] | NDArray[Any], *, top: bool) -> None:
    """Marks on the edge of a chart, for values that its axis has no place for."""
    if len(at):
        where, marker, colour = (0.985, "x", RED) if top else (0.015, "v", MUTED)
        transform = axes.get_xaxis_transform()
        axes.plot(at, [where] * len(at), marker, color=colour, markersize=4, transform=transform, clip_on=False)


def broken_handle() -> Line2D:
    """The legend's entry for marks of values that are inf or NaN."""
    return Line2D([], [], color=RED, marker="x", linestyle="", markersize=4)


def _log10(value: float) -> float:
    return math.log10(value) if value > 0 else 0


def quick_png(fig: Figure, dpi: int) -> bytes:
    """A picture as PNG, drawn quickly rather than packed tightly."""
    with drawing():
        content = io.BytesIO()
        fig.savefig(content, format="png", dpi=dpi, facecolor="white", pil_kwargs={"compress_level": 1})
    return content.getvalue()


def picture(fig: Figure, kind: str, title: str = "") -> bytes:
    """A picture as a file of its own, on white; ``kind`` is png, svg or pdf."""
    with drawing():
        if title:
            height = float(fig.get_size_inches()[1])
            fig.suptitle(title, x=0.02, y=1 + 0.08 / height, ha="left", va="bottom", fontsize=10.5, fontweight="bold")
        content = io.BytesIO()
        stamp = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
        box = "tight" if title else None
        fig.savefig(content, format=kind, facecolor="white", metadata=stamp, bbox_inches=box, pad_inches=0.06)
    return content.getvalue()


_PLAIN = (
    (re.compile(r"^.*?(?=<svg)", re.DOTALL), ""),
    (re.compile(r"<metadata>.*?</metadata>", re.DOTALL), ""),
    (re.compile(r"<!--.*?-->", re.DOTALL), ""),
    (re.compile(r'\sxmlns(:xlink)?="[^"]*"'), ""),
    (re.compile(r"xlink:href"), "href"),
    (re.compile(r'<svg[^>]*?viewBox="([^"]*)"[^>]*>', re.DOTALL), r'<svg viewBox="\1">'),
    # Family and size are the page's; what is left says how large and how bold.
    (re.compile(r"font: ([^;\"']*?)'DejaVu Sans'[^;\"]*"), r"font: \1var(--font)"),
    (re.compile(r"font-family: 'DejaVu Sans'[^;\"]*"), "font-family: var(--font)"),
    (re.compile(r'<g id="[^"]*">'), "<g>"),
    (re.compile(r"\s*\n\s*"), "\n"),
)
# A hundredth of a point is as fine as any screen.
_PATH, _DECIMALS = re.compile(r'\bd="[^"]*"'), re.compile(r"(\.\d\d)\d+")
_COLOUR = re.compile("|".join(VARIABLES))
_ID = re.compile(r'(\bid="|href="#|url\(#)')


def inline(fig: Figure, prefix: str, label: str) -> str:
    """A picture as SVG within a page: no names from elsewhere, ids of its own, colours as CSS variables."""
    with drawing():
        content = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        fig.savefig(content, format="svg", facecolor="none", metadata=nothing)
    text = content.getvalue()
    for pattern, replacement in _PLAIN:
        text = pattern.sub(replacement, text)
    text = _PATH.sub(lambda path: _DECIMALS.sub(r"\1", path[0]), text)
    text = _COLOUR.sub(lambda found: f"var({VARIABLES[found[0]]})", text)
    text = _ID.sub(lambda found: found[1] + prefix, text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)
