"""Running a sweep: its cells into the ledger, those that need it through a launcher, nothing twice."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from gradstab.config.sweep_options import SweepKnobs
from gradstab.errors import ConfigError, GradstabError
from gradstab.launchers import Done, Launcher, Task
from gradstab.launchers.serial import SerialLauncher
from gradstab.run_directory import holds_run
from gradstab.sweeps import cells as one_cell
from gradstab.sweeps.ledger import ENDED, FAILED, FINISHED, PENDING, RUNNING, Entry, Ledger
from gradstab.sweeps.naming import SHORT, cell_directory, cells_in, key_of, number_of
from gradstab.sweeps.state import NO_SPACE, print_of, recorded, true_state

# Seconds between two looks at cells that another process runs.
_POLL = 0.5
_ELSEWHERE = "run by another process"


@dataclass(frozen=True)
class Cell:
    """One combination: the fields that differ, as words, and the resolved configuration."""

    swept: Mapping[str, str]
    settings: dict[str, Any]

    @property
    def label(self) -> str:
        """The cell in a message."""
        return ",".join(f"{name}={value}" for name, value in self.swept.items()) or "the only cell"


class View(Protocol):
    """What shows a sweep's progress to a person."""

    def planned(self, total: int, kept: int) -> None:
        """So many cells belong to what runs next, of which so many need not run."""

    def began(self, name: str) -> None:
        """A cell has begun, in this process."""

    def ended(self, name: str, status: str, note: str) -> None:
        """A cell has ended."""

    def waiting(self, count: int) -> None:
        """Another process runs the remaining cells."""


class FailFastError(GradstabError):
    """A cell failed, and that was to be the end."""


class Sweep:
    """A sweep's folder while a command works on it; cells may come in several batches."""

    def __init__(self, folder: Path, knobs: SweepKnobs, view: View, *, quiet: bool) -> None:
        self.folder = folder
        self.keys: dict[str, None] = {}
        self.damaged: list[str] = []
        self._knobs = knobs
        self._view = view
        self._quiet = quiet
        self._ledger = Ledger(folder)

    def run(self, cells: Sequence[Cell], launcher: Launcher) -> list[Entry]:
        """Run those cells that need it; returns what is known of each cell afterwards, in their order.

        Raises :class:`FailFastError`, GradstabError where nothing can be written any more, and Interrupted.
        """
        keys = [key_of(cell.settings) for cell in cells]
        unique = dict(zip(keys, cells, strict=True))
        self._make_folder()
        entries = self._register(unique)
        self.keys |= dict.fromkeys(unique)
        needed = [key for key in unique if entries[key].status not in ENDED]
        self._view.planned(len(unique), len(unique) - len(needed))
        while needed:
            elsewhere = [key for key in needed if entries[key].status == RUNNING]
            tasks = [self._task(entries[key], unique[key]) for key in needed if key not in elsewhere]
            elsewhere += self._launch(tasks, launcher)
            entries, needed = self._wait(elsewhere)
        entries = self.entries()
        return [entries[key] for key in keys]

    def entries(self) -> dict[str, Entry]:
        """What is true of every cell in the ledger."""
        entries, self.damaged = self._ledger.read()
        return {key: true_state(self.folder, entry) for key, entry in entries.items()}

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"out_dir={self.folder}: cannot be written to ({error.strerror})") from error
        if holds_run(self.folder):
            raise ConfigError(f"out_dir={self.folder}: holds a single run; allowed: a folder of the sweep's own")

    def _register(self, cells: Mapping[str, Cell]) -> dict[str, Entry]:
        """Bring the ledger up to date: what is new, and what is to run once more, becomes pending."""
        with self._ledger.locked():
            entries = self.entries()
            # What lines told that were lost is still to be seen on disk.
            there = cells_in(self.folder) if cells.keys() - entries.keys() else {}
            taken = [entry.directory for entry in entries.values()] + list(there.values())
            number = max(map(number_of, taken), default=-1)
            records = []
            for key, cell in cells.items():
                entry = entries.get(key)
                if entry is None:
                    name = there.get(key[:SHORT])
                    if name is None:
                        number += 1
                        name = cell_directory(number, cell.swept, key)
                    entry = entries[key] = true_state(self.folder, Entry(key, name))
                # Told once, unless the line that did so was damaged.
                told = {} if entry.settings else {"swept": dict(cell.swept), "settings": cell.settings}
                record: dict[str, Any] = {"key": key, "directory": entry.directory, **told}
                if entry.status == RUNNING:
                    if not entry.time:  # No line names it.
                        records.append(record | {"status": PENDING})
                    continue
                if entry.status in ENDED and not self._runs_again(key, entry):
                    if told:
                        records.append(record | {"status": entry.status, "reason": entry.reason})
                    continue
                again = print_of(self.folder / entry.directory) if entry.status in ENDED else entry.again
                record["status"] = PENDING
                if again:
                    record["again"] = again
                records.append(record)
                fresh = replace(entry, status=PENDING, reason="", again=again)
                entries[key] = replace(fresh, swept=dict(cell.swept), settings=cell.settings)
            if records:
                self._ledger.append(*records)
        return entries

    def _runs_again(self, key: str, entry: Entry) -> bool:
        """Whether a cell that ended runs once more, which it does once in a command."""
        return entry.status in self._knobs.again and key not in self.keys

    def _task(self, entry: Entry, cell: Cell) -> Task:
        # Of a cell that another process had begun, the line with its settings may be damaged.
        entry = replace(entry, swept=dict(cell.swept), settings=cell.settings)
        return one_cell.task(self.folder, entry, quiet=self._quiet)

    def _launch(self, tasks: Sequence[Task], launcher: Launcher) -> list[str]:
        """Run the tasks; returns the keys of those that another process has."""
        elsewhere = []
        here = [task.payload["directory"] for task in tasks] if isinstance(launcher, SerialLauncher) else []
        with contextlib.closing(_finished(launcher, tasks)) as finished:
            self._view.began(here.pop(0) if here else "")
            for done in finished:
                self._view.began(here.pop(0) if here else "")
                status, note = self._outcome(done)
                if status == RUNNING:
                    elsewhere.append(done.task.key)
                    continue
                self._view.ended(done.task.payload["directory"], status, note)
                if status == FAILED and self._knobs.fail_fast:
                    raise FailFastError(f"sweep.fail_fast=true: ended at the first failure, {note}")
        return elsewhere

    def _outcome(self, done: Done) -> tuple[str, str]:
        """A cell's status, and what there is to say of it."""
        name = done.task.payload["directory"]
        if done.status == one_cell.DISK_FULL:
            raise GradstabError(f"{self.folder}: {NO_SPACE}; {self.progress()}")
        if done.status is None:
            reason = f"its process died: {done.error}"
            entry = Entry(done.task.key, name, status=RUNNING)
            known = true_state(self.folder, entry)
            # Somebody else may have taken it up in the meantime.
            if known.status in (RUNNING, *ENDED):
                return known.status, known.reason
            self._ledger.mark(done.task.key, name, FAILED, reason)
            with contextlib.suppress(OSError):
                one_cell.record_ending(self.folder / name, done.task.payload["settings"], FAILED, reason)
            return FAILED, reason
        status = done.status.removesuffix(one_cell.BY_ANOTHER)
        reason = str(recorded(self.folder / name, done.task.key).get("reason", ""))
        if status == FAILED and not reason:
            reason = self._ledger.read()[0][done.task.key].reason
        if status != done.status:
            reason = f"{_ELSEWHERE}: {reason}".removesuffix(": ")
        return status, reason

    def _wait(self, keys: Sequence[str]) -> tuple[dict[str, Entry], list[str]]:
        """Wait until others have ended these cells; returns all cells, and those to take over from who died."""
        entries = self.entries()
        waiting = list(keys)
        if count := sum(entries[key].status == RUNNING for key in keys):
            self._view.waiting(count)
        while True:
            for key in [key for key in waiting if entries[key].status != RUNNING]:
                waiting.remove(key)
                if entries[key].status in ENDED:
                    self._view.ended(entries[key].directory, entries[key].status, _ELSEWHERE)
            if not waiting:
                break
            time.sleep(_POLL)
            entries |= {key: true_state(self.folder, entries[key]) for key in waiting}
        return entries, [key for key in keys if entries[key].status not in ENDED]

    def progress(self) -> str:
        """How far the command's cells are, and how to go on, as part of a sentence."""
        entries = self.entries()
        done = sum(entries[key].status in FINISHED for key in self.keys if key in entries)
        return f"{done} of {len(self.keys)} cells are done; the same command goes on with the rest"


def _finished(launcher: Launcher, tasks: Sequence[Task]) -> Generator[Done, None, None]:
    """What a launcher yields, which is nothing, and starts nothing, without tasks."""
    if tasks:
        yield from launcher.launch(tasks, one_cell.work)
