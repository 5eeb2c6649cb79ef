"""A sweep in the terminal: its progress, and its table at the end."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Group, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column as TableColumn
from rich.table import Table
from rich.text import Text

from gradstab.console import PatientConsole
from gradstab.wording import counted, printable, without_middle

STYLES = {
    "completed": "green",
    "diverged": "yellow",
    "failed": "bold red",
    "interrupted": "red",
    "running": "cyan",
    "pending": "dim",
}
_GAP = 2
# Columns of words are cut down to so many characters before one is left out.
_SHORTEST = 9


class SweepView:
    """Progress of a sweep: a bar in a terminal, a line for each cell elsewhere, nothing if quiet."""

    def __init__(self, folder: Path, launcher: str, *, quiet: bool, expected: int = 0) -> None:
        # While a cell runs in this process, what it prints goes into its log; what is shown here does not.
        self.console = PatientConsole(file=sys.stdout, highlight=False)
        self._folder = folder
        self._launcher = launcher
        self.quiet = quiet
        # Where cells come in batches, how many there will be.
        self._expected = expected
        self._planned = self._done = 0
        self._current = ""
        self._counts: Counter[str] = Counter()
        self._bar: tuple[Progress, TaskID] | None = None
        self._started = time.perf_counter()

    def planned(self, total: int, kept: int) -> None:
        """Say what is about to run."""
        first = self._planned == 0
        self._planned += total
        self._done += kept
        if self.quiet:
            return
        if first:
            # Of the first of several batches, that would be no number of the sweep's.
            before = f", {kept} of them done before" if kept and total == self._total else ""
            how = "" if self._launcher == "serial" else f" · {self._launcher}"
            text = f"sweep of {counted(self._total, 'cell')}{before}{how} · {printable(self._folder)}"
            self.console.print(Text(text, style="bold"), soft_wrap=True)
        if self.console.is_terminal and self._bar is None and total > kept:
            self._bar = self._start_bar()
        self._show()

    def began(self, name: str) -> None:
        """Show which cell runs, where it is this process that runs it."""
        self._current = name
        self._show()

    def ended(self, name: str, status: str, note: str) -> None:
        """Count a cell; elsewhere than in a terminal, a line says what became of it."""
        self._done += 1
        self._counts[status] += 1
        if self._bar is not None:
            self._show()
        elif not self.quiet:
            text = f"cell {self._done:>{len(str(self._total))}}/{self._total}  {status:<11}  {name}"
            self.console.print(Text(printable(f"{text}  {note}".rstrip())), soft_wrap=True)

    def waiting(self, count: int) -> None:
        """Say that what is left runs in another process."""
        if not self.quiet:
            text = f"waiting for {counted(count, 'cell')} that another process runs"
            self.console.print(Text(text, style="dim"), soft_wrap=True)

    def stop(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar[0].stop()
            self._bar = None

    @property
    def _total(self) -> int:
        return max(self._planned, self._expected)

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.perf_counter() - self._started

    def _start_bar(self) -> tuple[Progress, TaskID]:
        progress = Progress(
            BarColumn(20),
            TextColumn("{task.completed:.0f}/{task.total:.0f} cells", table_column=TableColumn(no_wrap=True)),
            TextColumn("{task.fields[state]}", table_column=TableColumn(no_wrap=True, overflow="ellipsis")),
            TimeElapsedColumn(),
            TextColumn("left", style="dim"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=False),
            console=self.console,
            transient=True,
            refresh_per_second=4,
            # Standard output belongs to the cell's log while it runs here.
            redirect_stdout=False,
            redirect_stderr=False,
        )
        progress.start()
        # Cells that were done before say nothing about how long the others take.
        return progress, progress.add_task("sweep", total=self._total, completed=self._done, state="")

    def _show(self) -> None:
        if self._bar is None:
            return
        progress, bar = self._bar
        counts = [f"{n} {status}" for status, n in self._counts.items() if status != "completed"]
        # The key at its end says nothing to a person.
        state = " · ".join([*counts, *filter(None, [self._current.rpartition("_")[0]])])
        progress.update(bar, completed=self._done, total=self._total, state=state)


@dataclass(frozen=True)
class Column:
    """A column of text, of which the one with the highest ``rank`` is left out first, those with 0 never.

    ``cut`` is where its values may be cut: in the "middle", at their "end", or not.
    """

    title: str
    values: Sequence[str]
    rank: int = 0
    right: bool = False
    cut: str = ""

    @property
    def width(self) -> int:
        """In characters."""
        return max(len(self.title), *map(len, self.values), 1)


def table(columns: Sequence[Column], width: int, elsewhere: str) -> RenderableType:
    """A table no wider than ``width``: words are cut first, then columns left out, which a line below it names."""
    shown, dropped = fitted(columns, width)
    drawn = Table(box=None, pad_edge=False, header_style="dim", padding=(0, _GAP, 0, 0))
    for column in shown:
        drawn.add_column(column.title, justify="right" if column.right else "left", no_wrap=True)
    for line in zip(*(column.values for column in shown), strict=True):
        drawn.add_row(*(Text(printable(value), STYLES.get(value, "")) for value in line))
    if not dropped:
        return drawn
    return Group(drawn, Text(f"{elsewhere} also has {', '.join(dropped)}", style="dim"))


def fitted(columns: Sequence[Column], width: int) -> tuple[list[Column], list[str]]:
    """The columns as they fit, and the titles of those that do not."""
    shown = list(columns)
    dropped: list[str] = []
    while True:
        longest = max((column.width for column in shown if column.cut), default=0)
        for limit in range(max(longest, _SHORTEST), _SHORTEST - 1, -1):
            cut = [_cut(column, limit) for column in shown]
            if sum(column.width + _GAP for column in cut) - _GAP <= width:
                return cut, dropped
        last = max(shown, key=lambda column: column.rank)
        if last.rank == 0:
            return [_cut(column, _SHORTEST) for column in shown], dropped
        shown.remove(last)
        dropped.append(last.title)


def _cut(column: Column, limit: int) -> Column:
    if not column.cut or column.width <= limit:
        return column
    # Numbers and options often differ at their end.
    shorten = without_middle if column.cut == "middle" else _without_end
    values = [shorten(value, limit) for value in column.values]
    return replace(column, title=_without_end(column.title, limit), values=values)


def _without_end(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1].rstrip(' ,')}…"
