"""What a sweep found: a row for each cell, mean and spread over seeds, and both as CSV."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradstab.config import flat
from gradstab.config.sweep_options import FIGURES
from gradstab.errors import GradstabError
from gradstab.files import as_number, replacing
from gradstab.sweeps.ledger import ENDED, FINISHED, Entry
from gradstab.sweeps.naming import group_of
from gradstab.sweeps.state import recorded
from gradstab.wording import as_word

RESULTS_FILE = "results.csv"
SEEDS_FILE = "results_over_seeds.csv"
# What a run was told is "steps" where that was swept.
_HEADS = ["steps_done" if figure == "steps" else figure for figure in FIGURES]


@dataclass(frozen=True)
class Row:
    """A cell with what its run.json says, which is nothing for one that has not ended."""

    entry: Entry
    record: Mapping[str, Any]

    def figure(self, name: str) -> float | None:
        """A number of the record, which may be inf or NaN; None where there is none."""
        return as_number(self.record.get(name))

    @property
    def labels(self) -> tuple[str, ...]:
        """The verdict's labels; none where there is no verdict."""
        verdict = self.record.get("verdict")
        labels = verdict.get("labels") if isinstance(verdict, Mapping) else None
        return tuple(map(str, labels)) if isinstance(labels, list) else ()


@dataclass(frozen=True)
class Spread:
    """A figure over seeds: its mean, and the standard deviation of a sample (n - 1), None for a single value."""

    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Group:
    """Cells that differ in nothing but their seed. Figures are taken over those that were completed."""

    swept: Mapping[str, str]
    rows: Sequence[Row]

    @property
    def completed(self) -> list[Row]:
        """The cells that count."""
        return [row for row in self.rows if row.entry.status == "completed"]

    def spread(self, name: str) -> Spread | None:
        """Mean and spread of a figure over the completed cells that have it and where it is finite."""
        values = [value for row in self.completed if (value := row.figure(name)) is not None and math.isfinite(value)]
        if not values:
            return None
        return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def rows_of(folder: Path, entries: Iterable[Entry]) -> list[Row]:
    """A row for each cell, in the order of their numbers."""
    ordered = sorted(entries, key=lambda entry: (entry.number, entry.directory))
    return [
        Row(entry, recorded(folder / entry.directory, entry.key) if entry.status in ENDED else {}) for entry in ordered
    ]


def swept_names(rows: Sequence[Row]) -> list[str]:
    """The fields that differ: those that were swept, and what else tells cells of several commands apart."""
    names = list(dict.fromkeys(name for row in rows for name in row.entry.swept))
    if not (_tell_apart(names, rows) and _tell_apart([name for name in names if name != "seed"], _first_seeds(rows))):
        settings = [flat(row.entry.settings) for row in rows if row.entry.settings]
        keys = dict.fromkeys(key for one in settings for key in one)
        names += [key for key in keys if key not in names and len({repr(one.get(key)) for one in settings}) > 1]
    return names


def _tell_apart(names: Sequence[str], rows: Sequence[Row]) -> bool:
    return len({tuple(value_of(row, name) for name in names) for row in rows}) == len(rows)


def _first_seeds(rows: Sequence[Row]) -> list[Row]:
    """One cell of those that differ in nothing but their seed."""
    return list({group_of(row.entry.settings): row for row in reversed(rows) if row.entry.settings}.values())


def value_of(row: Row, name: str) -> str:
    """A field's value in a cell, also where this cell's command did not sweep it."""
    if name in row.entry.swept:
        return row.entry.swept[name]
    return as_word(flat(row.entry.settings).get(name, ""))


def groups(rows: Sequence[Row]) -> list[Group]:
    """The cells by everything but their seed; none unless some differ in nothing else."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.entry.settings:
            found.setdefault(group_of(row.entry.settings), []).append(row)
    if all(len(members) < 2 for members in found.values()):
        return []
    names = [name for name in swept_names(rows) if name != "seed"]
    return [Group({name: value_of(members[0], name) for name in names}, members) for members in found.values()]


def write(folder: Path, rows: Sequence[Row]) -> None:
    """Write results.csv, and results_over_seeds.csv where seeds were swept; each whole or not at all."""
    names = swept_names(rows)
    header = ["number", *names, "status", *_HEADS, "verdict", "reason", "directory", "key"]
    lines: list[list[Any]] = [header]
    for row in rows:
        entry = row.entry
        figures = [_cell(row.figure(name)) for name in FIGURES]
        settings = [value_of(row, name) for name in names]
        ending = [" ".join(row.labels), entry.reason, entry.directory, entry.key]
        lines.append([entry.number, *settings, entry.status, *figures, *ending])
    _write_csv(folder / RESULTS_FILE, lines)
    if seeds := groups(rows):
        _write_csv(folder / SEEDS_FILE, _over_seeds(seeds))


def _over_seeds(seeds: Sequence[Group]) -> list[list[Any]]:
    names = list(seeds[0].swept)
    header = [*names, "cells", "finished", "completed"]
    lines: list[list[Any]] = [header + [f"{head}_{what}" for head in _HEADS for what in ("mean", "std")]]
    for group in seeds:
        finished = sum(row.entry.status in FINISHED for row in group.rows)
        line = [*group.swept.values(), len(group.rows), finished, len(group.completed)]
        for figure in FIGURES:
            spread = group.spread(figure)
            line += ["", ""] if spread is None else [_cell(spread.mean), _cell(spread.deviation)]
        lines.append(line)
    return lines


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return str(int(value)) if math.isfinite(value) and value == int(value) and abs(value) < 1e15 else repr(value)


def _write_csv(path: Path, lines: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(lines)
    try:
        with replacing(path) as file:
            file.write(text.getvalue().encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise GradstabError(f"{path}: cannot be written ({error.strerror})") from error
