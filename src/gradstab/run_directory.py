"""Where a run lives on disk: names that never collide, ``config.yaml`` and ``run.json``."""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import os
import re
import secrets
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradstab.claims import CLAIM_FILE, is_claimed
from gradstab.errors import ConfigError, GradstabError
from gradstab.files import load_yaml, read_text, replacing

RUN_FILE = "run.json"
CONFIG_FILE = "config.yaml"
FAILURE_FILE = "failure.txt"
EVENT_FILES = "events.out.tfevents."
CHECKPOINTS = "checkpoints"
# What makes a folder a sweep's.
LEDGER_FILE = "ledger.jsonl"
# What a run writes, run.json aside, by pattern.
WRITTEN = (CONFIG_FILE, FAILURE_FILE, EVENT_FILES + "*", CHECKPOINTS, "forensics", f".{RUN_FILE}.*")
FINISHED = ("completed", "diverged")
# What may change without making it another run.
_BESIDE_THE_RUN = ("out_dir", "quiet", "checkpoint")


def new_name() -> str:
    """A directory's name from the clock, with a few random characters: clocks alone collide within a second."""
    return f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}_{secrets.token_hex(2)}"


def holds_run(directory: Path) -> bool:
    """Whether a run was recorded here; where that cannot be seen, writing will say why."""
    try:
        return (directory / RUN_FILE).exists()
    except OSError:
        return False


def status_of(directory: Path) -> str:
    """What has become of the run recorded here; "unknown" where run.json cannot be read."""
    try:
        return true_status(directory, read_run(directory))
    except GradstabError:
        return "unknown"


def true_status(directory: Path, record: Mapping[str, Any]) -> str:
    """The status in run.json's ``record``; "interrupted" for a run whose process has died, "unknown" for none.

    A watched loop that could make no claim on its directory is taken at its word.
    """
    status = record.get("status")
    if status != "running":
        return status if isinstance(status, str) else "unknown"
    if "watched" in record and not (directory / CLAIM_FILE).exists():
        return "running"
    return "running" if is_claimed(directory) else "interrupted"


def has_checkpoint(directory: Path) -> bool:
    """Whether there is one to go on from."""
    return any(directory.glob(f"{CHECKPOINTS}/step_*.pt"))


def resumptions(record: Mapping[str, Any]) -> list[int]:
    """The steps after which the run of this run.json was stopped and went on."""
    entries = record.get("resumed")
    found = [entry.get("step") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return [step for step in found if isinstance(step, int)]


def identity(container: Mapping[str, Any]) -> str:
    """A hash of a resolved configuration, but for what does not make it another run: where it lies, what it keeps."""
    settings = {key: value for key, value in container.items() if key not in _BESIDE_THE_RUN}
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def clear(directory: Path) -> None:
    """Remove what a run wrote, run.json last: until it is gone, the directory holds what is left of that run."""
    for pattern in WRITTEN:
        for path in directory.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    (directory / RUN_FILE).unlink(missing_ok=True)


def refusal(directory: Path, status: str, key: str = "out_dir") -> ConfigError:
    """Why a new run cannot start where one with this ``status`` lies, and what can be done."""
    over = status in (*FINISHED, "unknown")
    ways = "" if over else f"gradstab train --resume {shlex.quote(str(directory))} continues it; "
    return ConfigError(f"{key}={directory}: holds a run already ({status}); {ways}choose another, or remove it")


def create(directory: Path, key: str = "out_dir") -> Path:
    """Make a directory for a run; :class:`ConfigError`, of what ``key`` said, where it cannot be or holds one already.

    That is a run or a sweep.
    """
    try:
        if holds_run(directory):
            raise refusal(directory, status_of(directory), key)
        if os.path.lexists(directory / LEDGER_FILE):
            raise ConfigError(f"{key}={directory}: holds a sweep; choose another")
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise ConfigError(f"{key}={directory}: cannot be written to ({error.strerror})") from error
    return directory


def write_run(directory: Path, record: dict[str, Any]) -> None:
    """Write run.json whole or not at all; floats that JSON has no word for become "inf", "-inf", "nan"."""
    with replacing(directory / RUN_FILE) as file:
        file.write((json.dumps(as_json(record), indent=2, allow_nan=False) + "\n").encode())


def read_run(directory: Path) -> dict[str, Any]:
    """The record of a run, as :func:`write_run` wrote it; raises :class:`GradstabError` where it cannot be read."""
    path = directory / RUN_FILE
    try:
        record = json.loads(read_text(path))
    except OSError as error:
        raise GradstabError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise GradstabError(f"{path}: cannot be read ({type(error).__name__})") from error
    if not isinstance(record, dict):
        raise GradstabError(f"{path}: holds no record")
    return record


def as_json(value: Any) -> Any:
    """JSON has no NaN or infinity; a diverged run's loss is one of them and must not be lost or break a parser."""
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, float):
        # NumPy's floats are floats too, but do not read as such.
        return float(value) if math.isfinite(value) else str(float(value))
    return value


def read_config(directory: Path) -> dict[str, Any]:
    """The configuration of a run, as :func:`write_config` wrote it; :class:`GradstabError` where it cannot be read."""
    import yaml

    path = directory / CONFIG_FILE
    try:
        container = load_yaml(path)
    except OSError as error:
        raise GradstabError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise GradstabError(f"{path}: cannot be read ({type(error).__name__})") from error
    if not isinstance(container, dict):
        raise GradstabError(f"{path}: holds no configuration")
    return {key: value for key, value in container.items() if key not in ("defaults", "hydra")}


def _yaml(container: dict[str, Any]) -> str:
    """Plain values as YAML that Hydra reads back as they are; in C, a tenth of the time that OmegaConf's own takes."""
    import yaml

    class Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
        pass

    def text(dumper: Any, value: str) -> Any:
        # OmegaConf takes more for numbers than YAML does: 1e3, for one.
        style = "'" if re.match(r"[-+.\d]|(?i:inf|nan)", value) else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    dumped: str = yaml.dump(container, Dumper=Dumper, sort_keys=False, allow_unicode=True)
    return dumped


def write_config(directory: Path, container: dict[str, Any]) -> None:
    """Write config.yaml: the whole resolved configuration, which Hydra can load as it is.

    It names no ``out_dir``: the run it describes lies beside it, and a repetition is to lie elsewhere.
    """
    header = (
        f"# Reproduce this run:  gradstab train --config-dir {shlex.quote(str(directory))} --config-name config\n"
        "# Change something:    add overrides of scalars and knobs, such as seed=1 or optimizer.lr=0.1\n"
        "defaults:\n  - hydra/quiet\n  - _self_\n"
    )
    path = directory / CONFIG_FILE
    text = header + _yaml(container | {"out_dir": None})
    try:
        with replacing(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise GradstabError(f"{path}: cannot be written ({error.strerror})") from error
