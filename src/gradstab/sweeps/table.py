"""A sweep's rows as columns of text for the terminal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from gradstab.console.sweep import Column
from gradstab.sweeps.results import Group, Row, Spread, swept_names, value_of
from gradstab.wording import not_finite, short_keys

_NONE = "–"


def cells_table(rows: Sequence[Row], objective: str) -> list[Column]:
    """A line for each cell: what differs, its status, its figures."""
    columns = [Column("#", [str(row.entry.number) for row in rows], rank=4, right=True)]
    columns += _swept_columns(swept_names(rows), [[value_of(row, name) for name in swept_names(rows)] for row in rows])
    statuses = [row.entry.status for row in rows]
    # Where all went well there is nothing to tell apart.
    columns.append(Column("status", statuses, rank=6 if set(statuses) == {"completed"} else 0))
    known = {name for name in ("test_accuracy", "test_loss") if any(row.figure(name) is not None for row in rows)}
    shown = ["test_loss" if known == {"test_loss"} else "test_accuracy"]
    shown += ["depth_factor", *({objective} - {"depth_factor", *shown, *{"test_accuracy"} - known})]
    for name in shown:
        rank = {"depth_factor": 2}.get(name, 0)
        columns.append(Column(_title(name), [_number(name, row.figure(name)) for row in rows], rank, right=True))
    columns.append(Column("verdict", [", ".join(row.labels) or _NONE for row in rows], rank=3, cut="end"))
    seconds = [_number("seconds", row.figure("seconds")) for row in rows]
    return [*columns, *([Column("s", seconds, rank=5, right=True)] if "seconds" not in shown else [])]


def seeds_table(groups: Sequence[Group]) -> list[Column]:
    """A line for each configuration: mean ± standard deviation over the seeds of its completed cells."""
    names = list(groups[0].swept)
    columns = _swept_columns(names, [list(group.swept.values()) for group in groups])
    counts = [f"{len(group.completed)}/{len(group.rows)}" for group in groups]
    columns.append(Column("done", counts, rank=4, right=True))
    known = {name for name in ("test_accuracy", "test_loss") if any(group.spread(name) for group in groups)}
    first = "test_loss" if known == {"test_loss"} else "test_accuracy"
    for name, rank in ((first, 0), ("depth_factor", 2), ("seconds", 5)):
        title = "s" if name == "seconds" else _title(name)
        columns.append(Column(title, [_spread(name, group.spread(name)) for group in groups], rank, right=True))
    columns.append(Column("verdict", [_labels(group) for group in groups], rank=3, cut="end"))
    return columns


def _swept_columns(names: Sequence[str], lines: Sequence[Sequence[str]]) -> list[Column]:
    """The fields that differ. Groups' names go from the titles where they stay apart without; later fields go first."""
    return [
        Column(title, [line[i] for line in lines], rank=10 + i if i else 0, cut="middle")
        for i, title in enumerate(short_keys(names))
    ]


def _title(name: str) -> str:
    return {"test_accuracy": "accuracy", "depth_factor": "depth f."}.get(name, name.replace("_", " "))


def _number(name: str, value: float | None) -> str:
    if value is None:
        return _NONE
    if not math.isfinite(value):
        return not_finite(value)
    if "accuracy" in name:
        return f"{100 * value:.2f} %"
    if name == "seconds":
        return f"{value:.1f}"
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    return f"{value:.3f}" if 1e-3 <= abs(value) < 1e3 else f"{value:.2e}"


def _spread(name: str, spread: Spread | None) -> str:
    if spread is None:
        return _NONE
    if spread.deviation is None:
        return _number(name, spread.mean)
    if "accuracy" in name:
        return f"{100 * spread.mean:.2f} ± {100 * spread.deviation:.2f} %"
    return f"{_number(name, spread.mean)} ± {_number(name, spread.deviation)}"


def _labels(group: Group) -> str:
    counts = Counter(label for row in group.completed for label in row.labels)
    return ", ".join(label if n == len(group.completed) else f"{label} {n}×" for label, n in counts.most_common())
