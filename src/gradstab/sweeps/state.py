"""What is true of a cell: the ledger's word, held against its directory and against who is alive."""

from __future__ import annotations

import errno
import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from gradstab.claims import is_claimed
from gradstab.errors import GradstabError
from gradstab.files import open_regular, read_text
from gradstab.run_directory import FAILURE_FILE, RUN_FILE, read_run
from gradstab.sweeps.ledger import ENDED, FAILED, INTERRUPTED, PENDING, RUNNING, Entry

NO_SPACE = os.strerror(errno.ENOSPC)
# Why a cell failed that could not leave a record of it.
UNWRITABLE = "cannot be written to"
_DIED = "the process that ran it is gone"
_LOST = "its run was removed, or its run.json is damaged or another's"


def recorded(directory: Path, key: str = "") -> dict[str, Any]:
    """A run's record as far as there is one that can be read, and is one of the cell with this key."""
    return _look(directory, key)[0]


def print_of(directory: Path) -> str:
    """What tells the run in a directory from an earlier or later one there; empty where there is none."""
    try:
        with open_regular(directory / RUN_FILE) as file:
            return hashlib.sha256(file.read()).hexdigest()[:16]
    except OSError:
        return ""


def true_state(folder: Path, entry: Entry) -> Entry:
    """The entry with its true status.

    Who runs a cell holds the claim on its directory; a run that ended says so in its run.json, also where nobody was
    left to tell the ledger; and a run that has been removed, cannot be read, or is another's, has not been made.
    """
    directory = folder / entry.directory
    record, unreadable = _look(directory, entry.key)
    status = record.get("status")
    # What could not be written to may hold an earlier run all the same.
    unwritten = entry.status == FAILED and UNWRITABLE in entry.reason
    if entry.status in ENDED and status in ENDED and not unwritten:
        return entry
    if is_claimed(directory):
        return replace(entry, status=RUNNING, reason="")
    counts = status in ENDED and print_of(directory) != entry.again
    if unwritten and not counts and os.path.lexists(directory):
        return entry
    if entry.status in ENDED and not counts:
        return replace(entry, status=PENDING, reason=unreadable or _LOST)
    reason = str(record.get("reason", ""))
    if status == FAILED and NO_SPACE in reason:
        return replace(entry, status=INTERRUPTED, reason=reason)
    if counts:
        return replace(entry, status=str(status), reason=reason)
    if entry.status == RUNNING or (entry.status == PENDING and status in (RUNNING, INTERRUPTED)):
        told = reason if status == INTERRUPTED else ""
        return replace(entry, status=INTERRUPTED, reason=entry.reason or told or unreadable or _last_words(directory))
    return replace(entry, reason=entry.reason or unreadable)


def _last_words(directory: Path) -> str:
    """Why a run ended whose record does not say that it did: its disk may have had room for no more than that."""
    try:
        lines = read_text(directory / FAILURE_FILE).strip().splitlines()
    except (OSError, ValueError):
        return _DIED
    return lines[-1] if lines else _DIED


def _look(directory: Path, key: str) -> tuple[dict[str, Any], str]:
    """A cell's record, empty where none of its own can be read; and why, where nobody can tell what is there."""
    try:
        record = read_run(directory)
        # A cell's key is the beginning of its runs' identity; what came from elsewhere says nothing of it.
        return record if str(record.get("identity", "")).startswith(key) else {}, ""
    except GradstabError as error:
        cause = error.__cause__
        return {}, f"cannot be read ({cause.strerror})" if isinstance(cause, PermissionError) else ""
