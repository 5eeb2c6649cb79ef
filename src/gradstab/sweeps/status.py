"""How a sweep or a single run stands, as plain values: what ``gradstab status`` prints."""

from __future__ import annotations

import datetime
import math
import os
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

from gradstab.errors import ConfigError, GradstabError
from gradstab.files import as_number
from gradstab.run_directory import (
    EVENT_FILES,
    FAILURE_FILE,
    LEDGER_FILE,
    RUN_FILE,
    holds_run,
    read_run,
    resumptions,
    true_status,
)
from gradstab.sweeps.cells import LOG_FILE
from gradstab.sweeps.ledger import FAILED, FINISHED, INTERRUPTED, PENDING, RUNNING, STATES, Entry, Ledger
from gradstab.sweeps.results import Row, rows_of
from gradstab.sweeps.state import recorded, true_state


def status(folder: Path) -> dict[str, Any]:
    """The state of what lies in ``folder``; :class:`ConfigError` where that is neither a sweep nor a run."""
    try:
        has_ledger = os.path.lexists(folder / LEDGER_FILE)
        entries, damaged = Ledger(folder).read() if has_ledger else ({}, [])
        if entries or damaged:
            return _of_sweep(folder, entries, damaged)
        if holds_run(folder) or any(folder.glob(EVENT_FILES + "*")):
            return _of_run(folder)
        neither = f"its {LEDGER_FILE} names no cell" if has_ledger else "holds neither"
        what = neither if folder.is_dir() else "is no folder" if folder.exists() else "there is no such folder"
        below = (f"{depth}{name}" for depth in ("*/", "*/*/") for name in (LEDGER_FILE, RUN_FILE))
        found = next((paths for pattern in below if (paths := sorted(folder.glob(pattern)))), [])
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be read ({error.strerror})") from error
    such = f", such as {found[0].parent}" if found else ""
    raise ConfigError(f"{folder}: {what}; allowed: a sweep's folder or a run's directory{such}")


def _of_sweep(folder: Path, entries: dict[str, Entry], damaged: list[str]) -> dict[str, Any]:
    rows = rows_of(folder, [true_state(folder, entry) for entry in entries.values()])
    counts = Counter(row.entry.status for row in rows)
    running = [_running(folder, row.entry) for row in rows if row.entry.status == RUNNING]
    taken = [row.figure("seconds") for row in rows if row.entry.status in FINISHED]
    seconds = [one for one in taken if one is not None and math.isfinite(one)]
    left = counts["pending"] + counts["interrupted"]
    return {
        "kind": "sweep",
        "folder": str(folder),
        "cells": len(rows),
        "counts": {name: counts[name] for name in STATES},
        "done": sum(counts[name] for name in FINISHED),
        "seconds_per_cell": statistics.fmean(seconds) if seconds else None,
        "seconds_left": _seconds_left(running, left, statistics.fmean(seconds) if seconds else None),
        "running": running,
        "failures": [_failure(folder, row.entry) for row in rows if _has_gone_wrong(row.entry)],
        "ledger": [_cell(row) for row in rows],
        "damaged": damaged,
    }


def _running(folder: Path, entry: Entry) -> dict[str, Any]:
    directory = folder / entry.directory
    return {
        "directory": entry.directory,
        "seconds": _since(entry.time),
        "pid": entry.pid,
        "host": entry.host,
        **_steps(directory, recorded(directory)),
    }


def _seconds_left(running: list[dict[str, Any]], left: int, each: float | None) -> float | None:
    """An estimate from the cells that are done; None while none is, or while none runs."""
    if each is None or not running:
        return None
    begun = [max(0.0, each - (cell["seconds"] or 0.0)) for cell in running]
    return (sum(begun) + left * each) / len(running)


def _has_gone_wrong(entry: Entry) -> bool:
    """Whether there is something to tell: a pending cell has a reason where its run is no longer what it was."""
    return entry.status in (FAILED, INTERRUPTED) or (entry.status == PENDING and bool(entry.reason))


def _failure(folder: Path, entry: Entry) -> dict[str, Any]:
    return {
        "directory": entry.directory,
        "status": entry.status,
        "reason": entry.reason,
        "log": log_of(folder / entry.directory),
    }


def log_of(directory: Path) -> str:
    """Where to read more about a cell's failure: its traceback, or what it printed, or else its directory."""
    found = next((name for name in (FAILURE_FILE, LOG_FILE) if os.path.lexists(directory / name)), "")
    return str(directory / found)


def _cell(row: Row) -> dict[str, Any]:
    entry = row.entry
    return {
        "number": entry.number,
        "directory": entry.directory,
        "key": entry.key,
        "swept": entry.swept,
        "status": entry.status,
        "reason": entry.reason,
        "time": entry.time,
        "test_accuracy": row.record.get("test_accuracy"),
        "depth_factor": row.record.get("depth_factor"),
        "verdict": list(row.labels),
        "seconds": row.record.get("seconds"),
    }


def _of_run(directory: Path) -> dict[str, Any]:
    record: dict[str, Any] = {}
    try:
        record = read_run(directory)
        reason = str(record.get("reason", ""))
    except GradstabError as error:
        reason = str(error)
    state = true_status(directory, record)
    seconds = _taken(record) if state == RUNNING else as_number(record.get("seconds"))
    return {
        "kind": "run",
        "folder": str(directory),
        "status": state,
        "reason": reason,
        "seconds": seconds if seconds is not None and math.isfinite(seconds) else None,
        **_steps(directory, record),
        "test_accuracy": record.get("test_accuracy"),
        "log": log_of(directory) if state == FAILED else None,
        "resumed": resumptions(record),
        "watched": "watched" in record,
    }


def _taken(record: dict[str, Any]) -> float | None:
    """For how long a run that is on its way has been at work; what lay between two parts of it does not count."""
    resumed = record.get("resumed")
    last = resumed[-1] if isinstance(resumed, list) and resumed and isinstance(resumed[-1], dict) else {}
    since = _since(str(last.get("at") or record.get("started") or ""))
    earlier = as_number(last.get("seconds", 0.0))
    return None if since is None or earlier is None else since + earlier


def _steps(directory: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Steps made and planned; of a run on its way, the last one that its event file has."""
    done = record.get("steps")
    if not isinstance(done, int):
        from gradstab.events import read_records

        try:
            loss = read_records(directory).scalars.get("train/loss")
        except OSError:
            loss = None
        done = int(loss.steps[-1]) + 1 if loss is not None and len(loss.steps) else None
    planned = record.get("planned_steps")
    return {"steps": done, "planned_steps": planned if isinstance(planned, int) else None}


def _since(moment: str) -> float | None:
    try:
        began = datetime.datetime.fromisoformat(moment)
        return max(0.0, (datetime.datetime.now(datetime.UTC) - began).total_seconds())
    except (ValueError, TypeError):
        return None
