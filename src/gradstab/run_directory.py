"""Where a run lives on disk: names that never collide, ``config.yaml`` and ``run.json``."""

from __future__ import annotations

import datetime
import json
import os
import re
import secrets
import shlex
from pathlib import Path
from typing import Any

from gradstab.errors import ConfigError

RUN_FILE = "run.json"
CONFIG_FILE = "config.yaml"


def new_name() -> str:
    """A directory's name from the clock, with a few random characters: clocks alone collide within a second."""
    return f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}_{secrets.token_hex(2)}"


def cell_name(number: int, overrides: str) -> str:
    """The directory of one cell of a sweep: its number and what was overridden, fit for a file system."""
    readable = re.sub(r"[^\w.=,+-]+", "_", overrides)[:120].strip("._")
    return f"{number:03d}_{readable}" if readable else f"{number:03d}"


def holds_run(directory: Path) -> bool:
    """Whether a run was recorded here."""
    return (directory / RUN_FILE).exists()


def create(directory: Path) -> Path:
    """Make a directory for a run; raises :class:`ConfigError` where it cannot be, or holds a run already."""
    try:
        if holds_run(directory):
            raise ConfigError(f"out_dir={directory}: holds a run already; choose another, or remove it")
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise ConfigError(f"out_dir={directory}: cannot be written to ({error.strerror})") from error
    return directory


def write_run(directory: Path, record: dict[str, Any]) -> None:
    """Write run.json whole or not at all; floats that JSON has no word for become "inf", "-inf", "nan"."""
    temporary = directory / f".{RUN_FILE}.{os.getpid()}"
    temporary.write_text(json.dumps(_plain(record), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(directory / RUN_FILE)


def read_run(directory: Path) -> dict[str, Any]:
    """The record of a run, as :func:`write_run` wrote it."""
    record: dict[str, Any] = json.loads((directory / RUN_FILE).read_text(encoding="utf-8"))
    return record


def _plain(value: Any) -> Any:
    """JSON has no NaN or infinity; a diverged run's loss is one of them and must not be lost or break a parser."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value


def write_config(directory: Path, container: dict[str, Any]) -> None:
    """Write config.yaml: the whole resolved configuration, which Hydra can load as it is.

    It names no ``out_dir``: the run it describes lies beside it, and a repetition is to lie elsewhere.
    """
    from omegaconf import OmegaConf

    header = (
        f"# Reproduce this run:  gradstab train --config-dir {shlex.quote(str(directory))} --config-name config\n"
        "# Change something:    add overrides of scalars and knobs, such as seed=1 or optimizer.lr=0.1\n"
        "defaults:\n  - hydra/quiet\n  - _self_\n"
    )
    (directory / CONFIG_FILE).write_text(
        header + OmegaConf.to_yaml(OmegaConf.create(container | {"out_dir": None})), encoding="utf-8"
    )
