"""The ledger of a sweep: a line for each thing that became of a cell, which many processes may write at once."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gradstab.errors import GradstabError
from gradstab.files import open_regular
from gradstab.run_directory import LEDGER_FILE
from gradstab.sweeps.naming import number_of

_LOCK_FILE = ".ledger.lock"
# Seconds; an entry takes milliseconds, so whoever holds the lock for longer has been stopped.
_PATIENCE = 60
PENDING, RUNNING, COMPLETED, DIVERGED, FAILED, INTERRUPTED = STATES = (
    *("pending", "running", "completed", "diverged", "failed", "interrupted"),
)
FINISHED = (COMPLETED, DIVERGED)
ENDED = (*FINISHED, FAILED)


@dataclass
class Entry:
    """What the ledger knows of one cell.

    ``swept`` are the fields that differ, as words; ``settings`` is the resolved configuration. ``time`` is when the
    status became what it is. ``again`` is the print of a run that no longer counts, since the cell is to run once
    more (see :func:`gradstab.sweeps.state.print_of`).
    """

    key: str
    directory: str
    status: str = PENDING
    reason: str = ""
    time: str = ""
    pid: int = 0
    host: str = ""
    again: str = ""
    swept: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def number(self) -> int:
        """The cell's number in its directory's name."""
        return number_of(self.directory)


class Ledger:
    """``ledger.jsonl`` in a sweep's folder. Reading needs no lock and no permission to write."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LEDGER_FILE
        self._lock = FileLock(folder / _LOCK_FILE, timeout=_PATIENCE)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep everybody else from writing."""
        try:
            self._lock.acquire()
        except Timeout:
            raise GradstabError(f"{self.path}: another process has held its lock for {_PATIENCE} s") from None
        except OSError as error:
            raise GradstabError(f"{self.path}: cannot be written to ({error.strerror})") from error
        try:
            yield
        finally:
            self._lock.release()

    def append(self, *records: Mapping[str, Any]) -> None:
        """Add records, each with ``key``, ``directory`` and ``status``; all of them are there afterwards, or none."""
        common = {"time": now(), "pid": os.getpid(), "host": socket.gethostname()}
        lines = "".join(json.dumps({**record, **common}) + "\n" for record in records).encode("ascii")
        with self.locked():
            try:
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
                try:
                    _replace_tail(descriptor, lines)
                    # That a cell began may be forgotten when the power fails: its directory knows.
                    if any(record["status"] != RUNNING for record in records):
                        os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            except OSError as error:
                raise GradstabError(f"{self.path}: cannot be written to ({error.strerror})") from error

    def mark(self, key: str, directory: str, status: str, reason: str = "") -> None:
        """Add what became of a cell."""
        self.append({"key": key, "directory": directory, "status": status, "reason": reason})

    def read(self) -> tuple[dict[str, Entry], list[str]]:
        """Every cell by its key, in the order of first mention, and a line for each damaged line that was skipped."""
        try:
            with open_regular(self.path) as file:
                content = file.read()
        except FileNotFoundError:
            return {}, []
        except OSError as error:
            raise GradstabError(f"{self.path}: cannot be read ({error.strerror})") from error
        # What follows the last line's end was being written when its writer died, or is just being written.
        lines = content.split(b"\n")[:-1]
        return _fold(lines, self.path)


def now() -> str:
    """This moment as ISO text, in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def _end_of_whole_lines(descriptor: int) -> int:
    end = os.fstat(descriptor).st_size
    while end:
        start = max(0, end - 65536)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _replace_tail(descriptor: int, content: bytes) -> None:
    """Put lines behind the last whole one, all of them or none."""
    end = position = _end_of_whole_lines(descriptor)
    os.ftruncate(descriptor, end)
    try:
        while content:
            written = os.pwrite(descriptor, content, position)
            content, position = content[written:], position + written
    except OSError:
        os.ftruncate(descriptor, end)
        raise


def _fold(lines: Iterable[bytes], path: Path) -> tuple[dict[str, Entry], list[str]]:
    entries: dict[str, Entry] = {}
    damaged = []
    for number, line in enumerate(lines, 1):
        record = _record(line)
        if record is None:
            damaged.append(f"{path}, line {number}: is damaged; the same command finds what no other line says")
            continue
        entry = entries.setdefault(record["key"], Entry(record["key"], record["directory"]))
        entry.status, entry.reason = record["status"], record.get("reason", "")
        for name in ("time", "pid", "host", "swept", "settings"):
            setattr(entry, name, record.get(name, getattr(entry, name)))
        entry.again = record.get("again", "" if entry.status in ENDED else entry.again)
    return entries, damaged


_TYPES: dict[str, type] = {
    **dict.fromkeys(("reason", "time", "host", "again"), str),
    "pid": int,
    **dict.fromkeys(("swept", "settings"), dict),
}


def _record(line: bytes) -> dict[str, Any] | None:
    """One line's record, or None where it holds none that could have been written by a sweep."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or record.get("status") not in STATES:
        return None
    key, directory = record.get("key"), record.get("directory")
    known = isinstance(key, str) and re.fullmatch(r"[0-9a-f]{16}", key)
    # A name that leads elsewhere would make a sweep write there.
    named = isinstance(directory, str) and re.fullmatch(r"\w[\w.=,+-]*", directory, re.ASCII)
    fits = all(isinstance(record.get(name, kind()), kind) for name, kind in _TYPES.items())
    words = fits and all(isinstance(word, str) for word in record.get("swept", {}).values())
    return record if known and named and words else None
