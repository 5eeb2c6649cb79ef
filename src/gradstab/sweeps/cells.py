"""One cell of a sweep, in whichever process it runs: claim it, run it, tell the ledger what became of it."""

from __future__ import annotations

import contextlib
import errno
import shutil
import traceback
from pathlib import Path
from typing import Any

from gradstab import run_directory
from gradstab.claims import claimed, is_claimed
from gradstab.errors import ConfigError, GradstabError
from gradstab.launchers import Task
from gradstab.sweeps.ledger import ENDED, FAILED, FINISHED, INTERRUPTED, RUNNING, Entry, Ledger, now
from gradstab.sweeps.state import NO_SPACE, UNWRITABLE, print_of, recorded

LOG_FILE = "log.txt"
# What `work` returns where nothing can be written any more: no failure of the cell's, and the end of the sweep.
DISK_FULL = "disk full"
# What it adds to the status of a run that ended since the task was made.
BY_ANOTHER = " by another"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_LEAST_FREE = 65536


def task(folder: Path, entry: Entry, *, quiet: bool) -> Task:
    """What a launcher gets for a cell: all that :func:`work` needs, as plain values."""
    payload = {
        "folder": str(folder),
        "directory": entry.directory,
        "settings": entry.settings | {"out_dir": None, "quiet": quiet},
        "swept": list(entry.swept),
        "before": print_of(folder / entry.directory),
    }
    return Task(entry.key, payload, gpu=str(entry.settings["device"]).startswith(("auto", "cuda")))


def work(task: Task) -> str:
    """Run a cell and return its status: "running" where another process has it.

    A run that ended there since the task was made is taken as it is, and said to be ``BY_ANOTHER``: no cell runs twice.
    Called again for a cell whose worker died, it goes on. A directory that cannot be used is a failure of its cell.
    Raises KeyboardInterrupt after a signal, GradstabError where the ledger cannot be written.
    """
    folder, name = Path(task.payload["folder"]), task.payload["directory"]
    directory, ledger = folder / name, Ledger(folder)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as claim:
            try:
                claim.enter_context(claimed(directory))
            except ConfigError:
                if is_claimed(directory):
                    return RUNNING
                raise
            status = recorded(directory, task.key).get("status")
            known = print_of(directory) == task.payload["before"]
            if status in ENDED and not known:
                return f"{status}{BY_ANOTHER}"
            ledger.mark(task.key, name, RUNNING)
            # One that was finished is to run once more; what is none of this cell's runs cannot be continued.
            if status is None or (known and status in FINISHED):
                run_directory.clear(directory)
            try:
                status, reason = _run(task.payload["settings"], task.payload["swept"], directory)
            except KeyboardInterrupt as stop:
                # A run that has begun says how far it came. Which signal it was is the launcher's affair.
                reason = getattr(stop, "note", "") or "interrupted before it began to train"
                ledger.mark(task.key, name, INTERRUPTED, reason)
                raise
            ledger.mark(task.key, name, status, reason)
            return status
    except (OSError, GradstabError) as error:
        if _disk_is_full(error, folder):
            return DISK_FULL
        if isinstance(error, OSError):
            reason = f"{directory}: {UNWRITABLE} ({error.strerror or error})"
        elif isinstance(error, ConfigError):
            reason = str(error).removeprefix("out_dir=")
        else:  # The ledger itself cannot be written to: nothing can be told of any cell.
            raise
        again = task.payload["before"]
        ledger.append({"key": task.key, "directory": name, "status": FAILED, "reason": reason, "again": again})
        return FAILED


def _run(settings: dict[str, Any], swept: list[str], directory: Path) -> tuple[str, str]:
    """The status of the cell and its reason; what it prints goes into its log."""
    with (directory / LOG_FILE).open("a", encoding="utf-8", errors="backslashreplace", buffering=1) as log:
        try:
            if not settings["quiet"]:
                log.write(f"{now()} {directory.name}\n")
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                from gradstab.config import from_hydra
                from gradstab.expectation import caveats
                from gradstab.runner import run

                config = from_hydra(settings)
                for caveat in caveats(config):
                    log.write(f"{caveat}\n")
                record = run(config, directory, restart=True, cell=swept)
            return record["status"], record["reason"]
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if _disk_is_full(error, directory):
                with contextlib.suppress(OSError):
                    record_ending(directory, settings, INTERRUPTED, NO_SPACE)
                raise OSError(errno.ENOSPC, NO_SPACE) from error
            traceback.print_exc(file=log)
            reason = str(error) if isinstance(error, GradstabError) else f"{type(error).__name__}: {error}"
            reason = reason.strip().splitlines()[0] if reason.strip() else type(error).__name__
            record = recorded(directory)
            if record.get("status") != FAILED:
                # It did not get as far as writing it itself.
                with contextlib.suppress(OSError):
                    record_ending(directory, settings, FAILED, reason)
                return FAILED, reason
            return FAILED, str(record["reason"])


def record_ending(directory: Path, settings: dict[str, Any], status: str, reason: str) -> dict[str, Any]:
    """Write the end of a run that could not do so itself into its run.json; returns what is in there."""
    identity = run_directory.identity(settings)
    record = recorded(directory, identity) | {"status": status, "reason": reason, "identity": identity}
    run_directory.write_run(directory, record)
    return record


def _disk_is_full(error: BaseException, folder: Path) -> bool:
    """Whether an error, or what led to it, is a lack of space; libraries word it in their own ways."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return True
        cause = cause.__cause__ or cause.__context__
    with contextlib.suppress(OSError):
        return shutil.disk_usage(folder).free < _LEAST_FREE
    return False
