"""Where a watched run is recorded."""

from __future__ import annotations

import os
from pathlib import Path

from gradstab import run_directory
from gradstab.claims import is_claimed
from gradstab.errors import ConfigError


def make_directory(directory: str | Path | None) -> Path:
    """The run's own directory, made; a new one under outputs/watch for None."""
    if directory is not None and not isinstance(directory, str | os.PathLike):
        raise ConfigError(f"directory={directory!r}: has to be a path, or None for a new one under outputs/watch")
    try:
        path = Path(directory or f"outputs/watch/{run_directory.new_name()}").expanduser()
        if run_directory.holds_run(path):
            status = run_directory.status_of(path)
            raise ConfigError(f"directory={path}: holds a run already ({status}); choose another, or remove it")
        run_directory.create(path, "directory")
    except ConfigError:
        raise
    except (ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(f"directory={str(directory)!r}: cannot be a path ({error})") from error
    if any(path.glob(f"{run_directory.EVENT_FILES}*")):
        raise ConfigError(f"directory={path}: holds an event file already; choose another, or remove it")
    if is_claimed(path):
        raise ConfigError(f"directory={path}: another process is at work there; choose another, or wait")
    try:
        # Of several processes that come at once, one gets it.
        with (path / run_directory.RUN_FILE).open("x", encoding="utf-8") as file:
            file.write('{"status": "running", "watched": true}\n')
    except FileExistsError:
        raise ConfigError(f"directory={path}: holds a run already (running); choose another, or remove it") from None
    except OSError as error:
        raise ConfigError(f"directory={path}: cannot be written to ({error.strerror})") from error
    return path
