"""What is said of runs in words and numbers: the differing settings, and one row for each run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gradstab.files import as_number
from gradstab.report.runs import Run
from gradstab.run_directory import resumptions
from gradstab.wording import not_finite, printable, short_keys, without_middle

ABSENT = "–"
# From here on a float no longer holds every whole number.
EXACT = 2**53
COUNTS = ("steps", "clipped_steps", "skipped_steps", "parameters")


@dataclass(frozen=True)
class Cell:
    """What a table shows, and what it sorts by: a number, or a text; empty sorts last."""

    text: str
    sort: str = ""


@dataclass
class Row:
    """One run as a line of the table, and as the head of its own section."""

    name: str
    anchor: str
    status: str
    labels: tuple[str, ...]
    cells: list[Cell] = field(default_factory=list)


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The dotted keys whose values are not the same in all runs, in the order of the configuration.

    Runs without settings, whose configuration cannot be read, have no say.
    """
    settings = [one for one in settings if one]
    keys = list(dict.fromkeys(key for one in settings for key in one))
    missing = object()
    return [key for key in keys if len({_identity(one.get(key, missing)) for one in settings}) > 1]


def _identity(value: Any) -> Any:
    """What tells two settings apart: 1 and 1.0 are one number; True and "1" are neither it nor one another."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
    return value if is_number else repr(value)


def number(value: Any, digits: int = 4) -> str:
    """A number as people read it; a dash for none. A whole number keeps all its digits if it is an int, a count."""
    known = as_number(value)
    if known is None:
        return ABSENT if value is None else printable(value)
    if not math.isfinite(known):
        return not_finite(known)
    if known == int(known) and abs(known) < (EXACT if isinstance(value, int) else 1e6):
        return f"{int(known):,}"
    return f"{known:.{digits}g}"


def _numeric(value: float | None, text: str | None = None) -> Cell:
    return Cell(number(value) if text is None else text, "" if value is None else repr(float(value)))


def _percent(value: float | None) -> Cell:
    return _numeric(value, None if value is None or not math.isfinite(value) else f"{100 * value:.2f} %")


RESULTS = ("test accuracy", "train loss", "depth factor", "R²", "clipped", "steps done", "seconds")


# What run.json says at the end of a run, and where the records have it until then.
_RECORDED = {
    "test_accuracy": "test/accuracy",
    "test_loss": "test/loss",
    "train_loss": "train/loss",
    "depth_factor": "depth_factor",
    "depth_factor_r2": "depth_factor_r2",
    "steps": "train/learning_rate",
}


def _figure(run: Run, key: str) -> float | None:
    """An entry of run.json or, of a run that has not come to its end, what was recorded last; an int if it counts."""
    series = run.records.scalars.get(_RECORDED.get(key, ""))
    if key in run.record or series is None or not len(series.values):
        known = run.number(key)
        return int(known) if known is not None and key in COUNTS and known.is_integer() else known
    return int(series.steps[-1]) + 1 if key == "steps" else float(series.values[-1])


def _clipped(run: Run, recorded: float | None) -> float | None:
    """The share of clipped steps: of the whole run where run.json counts them, else of the ``recorded`` ones."""
    clipped, steps = run.number("clipped_steps"), run.number("steps")
    return recorded if recorded is None or clipped is None or not steps else clipped / steps


def _r2(run: Run, line: int | None) -> float | None:
    """How straight the line behind the depth factor was; None where two layers are all it had to fit."""
    return None if line is not None and line <= 2 else _figure(run, "depth_factor_r2")


def row(run: Run, index: int, keys: Sequence[str], clipped_share: float | None, line: int | None = None) -> Row:
    """A run's line: its differing settings, then ``RESULTS``; ``line`` is how many layers the depth factor rests on."""
    made = Row(run.name, f"run-{index}", run.status, () if run.verdict is None else run.verdict.labels)
    for key in keys:
        value = run.settings.get(key)
        made.cells.append(Cell(ABSENT if value is None else str(value), "" if value is None else str(value)))
    made.cells.append(_percent(_figure(run, "test_accuracy")))
    made.cells += [_numeric(_figure(run, key)) for key in ("train_loss", "depth_factor")]
    made.cells.append(_numeric(_r2(run, line)))
    made.cells.append(_percent(_clipped(run, clipped_share)))
    made.cells.append(_numeric(_figure(run, "steps")))
    seconds = run.number("seconds")
    made.cells.append(_numeric(seconds, None if seconds is None else f"{seconds:.1f}"))
    return made


_FACTS = (
    ("test accuracy", "test_accuracy"),
    ("best test accuracy", "best_test_accuracy"),
    ("test loss", "test_loss"),
    ("train loss", "train_loss"),
    ("depth factor", "depth_factor"),
    ("steps", "steps"),
    ("clipped steps", "clipped_steps"),
    ("skipped steps", "skipped_steps"),
    ("parameters", "parameters"),
    ("seconds", "seconds"),
)


def facts(run: Run, line: int | None = None) -> list[tuple[str, str]]:
    """What run.json, or else the records, say of the run as a whole; ``line`` as in :func:`row`."""
    found = []
    for name, key in _FACTS:
        value = _figure(run, key)
        if value is None or (key in ("clipped_steps", "skipped_steps") and value == 0):
            continue
        text = _percent(value).text if "accuracy" in name else number(round(value, 2) if key == "seconds" else value)
        if key == "depth_factor" and (r2 := _r2(run, line)) is not None:
            text += f" per layer (R² {r2:.2f})"
        elif key == "depth_factor" and line == 2:
            text += " per layer (over two layers)"
        if key not in run.record:
            text += ", as recorded last"
        found.append((name, text))
    found += [(key, printable(run.record[key])) for key in ("device", "seed") if run.record.get(key) is not None]
    if steps := resumptions(run.record):
        found.append(("resumed", f"after step {', '.join(f'{step:,}' for step in steps)}"))
    if "started" in run.record:
        found.append(("started", printable(run.record["started"]).replace("T", " ", 1).replace("+00:00", " UTC")))
    return found


def shortened(caption: str, width: int = 60) -> str:
    """A caption of ``key=value`` pairs, or a name, in at most ``width`` characters.

    Groups of keys go first, where the keys stay apart without them; then the middle of long values, then whole pairs
    from the end. Of a name, the middle goes.
    """
    pairs = [pair.partition("=") for pair in caption.split(", ")]
    if len(caption) <= width or not all(equals for _, equals, _ in pairs):
        return without_middle(caption, width)
    keys = short_keys([key for key, _, _ in pairs])
    for longest in (width, 24, 12):
        parts = [f"{key}={without_middle(value, longest)}" for key, (_, _, value) in zip(keys, pairs, strict=True)]
        if len(", ".join(parts)) <= width:
            return ", ".join(parts)
    for kept in range(len(parts) - 1, 0, -1):
        text = ", ".join([*parts[:kept], f"… {len(parts) - kept} more"])
        if len(text) <= width:
            return text
    return without_middle(caption, width)


def headline(run: Run) -> str:
    """The network and its training in one line, from what the configuration holds."""
    s = run.settings
    parts = [str(s[key]) for key in ("model", "act", "init") if key in s]
    if "model.depth" in s and parts:
        parts[0] += f" {s['model.depth']} × {s.get('model.width', '?')}"
    if "optimizer" in s:
        parts.append(f"{s['optimizer']}" + (f" lr={s['optimizer.lr']}" if "optimizer.lr" in s else ""))
    for key in ("clip", "model.norm", "model.residual"):
        if s.get(key, "none") != "none":
            parts.append(f"{key.removeprefix('model.')} {s[key]}")
    return " · ".join([*parts, *([str(s["data"])] if "data" in s else [])])


def spans(tags: Sequence[Any]) -> str:
    """A list of layers in short: the ends of a run of them, and how many."""
    shown = [printable(tag) for tag in tags]
    if len(shown) <= 3:
        return ", ".join(shown) or "the whole network"
    return f"{shown[0]} … {shown[-1]} ({len(shown)} layers)"
