"""The small pictures of many runs as sheets, each a picture of its own: with captions, and a legend at the foot."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from gradstab.report import multiples, style, table
from gradstab.report.digest import Digest
from gradstab.report.multiples import HEIGHT, SMALL, WIDTH, Scales

PER_SHEET = 24
# Characters; wide ones leave room for fewer.
CAPTION = 84
LEGEND = (
    "below left: ‖δ‖ over depth, first (violet) and last (red) step, theory dashed",
    "× above the scale, inf or NaN, ▾ below it or 0",
    "heatmap: grey 0, magenta inf, red NaN",
)
# The legend's characters in the width of one column, and inches for the colour bar and for each line below it.
ACROSS, BAR, LINE = 46, 0.6, 0.13


def sheets(digests: Sequence[Digest], captions: Sequence[str]) -> Iterator[Figure]:
    """The small pictures of all runs, with their captions, so many on a sheet; each is good until the next is drawn."""
    shared = multiples.scales(digests)
    sheet: Figure | None = None
    cells: list[tuple[tuple[Axes, Axes, Axes], Text]] = []
    for start in range(0, len(digests), PER_SHEET):
        chosen = digests[start : start + PER_SHEET]
        with style.drawing(), mpl.rc_context(SMALL):
            if sheet is None or len(chosen) != len(cells):
                sheet, cells = _sheet(len(chosen), shared)
            for (axes, drawn), data, caption in zip(cells, chosen, captions[start:], strict=False):
                multiples.fill(axes, data, shared)
                _fit(drawn, caption, 0.82 * WIDTH * sheet.dpi)
        yield sheet


def _sheet(count: int, shared: Scales) -> tuple[Figure, list[tuple[tuple[Axes, Axes, Axes], Text]]]:
    """An empty sheet for so many small pictures: each one's axes, and what will be its caption."""
    columns, cell = min(3 if count <= 9 else 4, count), HEIGHT + 0.35
    # Beside the colour bar, the legend takes two columns more; where there are fewer, it stands below.
    lines = [part for line in LEGEND for part in textwrap.wrap(line, ACROSS * min(columns, 2))]
    foot = BAR if columns > 2 else BAR + 0.05 + LINE * len(lines)
    fig = style.figure(-(-count // columns) * cell + foot, columns * WIDTH)
    # Letters are not as wide at every resolution: captions are measured at that of the files.
    fig.set_dpi(mpl.rcParams["savefig.dpi"])
    height = float(fig.get_size_inches()[1])
    cells = []
    for i in range(count):
        left, bottom = (i % columns) / columns, 1 - ((i // columns) + 1) * cell / height
        axes = multiples.three(fig, (left, bottom, 1 / columns, HEIGHT / height))
        top = bottom + (HEIGHT + 0.08) / height
        cells.append((axes, fig.text(left + 0.16 / columns, top, "", weight="bold", va="bottom")))
    multiples.bar(fig, fig.add_axes((0.16 / columns, (foot - 0.24) / height, 0.8 / columns, 0.12 / height)), shared)
    at = (1.13 / columns, 0.12 / height) if columns > 2 else (0.06 / columns, 0.06 / height)
    fig.text(*at, "\n".join(lines), color=style.MUTED)
    return fig, cells


def _fit(drawn: Text, caption: str, width: float) -> None:
    """As much of a caption as has room on two lines, in pixels."""
    for length in range(CAPTION, 8, -4):
        lines = textwrap.wrap(table.shortened(caption, length), max(length // 2 + 6, 14))
        drawn.set_text("\n".join(lines))
        if len(lines) <= 2 and drawn.get_window_extent().width <= width:
            return
