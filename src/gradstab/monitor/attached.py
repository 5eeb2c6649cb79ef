"""What the callbacks of Lightning and transformers share: a monitor that lives as long as one training run."""

from __future__ import annotations

import inspect
import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from gradstab import run_directory
from gradstab.errors import ConfigError, GradstabError
from gradstab.measure.verdict import Verdict
from gradstab.monitor.monitor import Monitor
from gradstab.monitor.watching import watch

# Arguments of watch that the library itself gives.
_GIVEN = ("model", "optimizer", "scaler")


class MissingLibraryError(GradstabError, ImportError):
    """A library that a callback belongs to is not installed."""


def _free(directory: Path) -> Path:
    """A directory beside this one, which holds the same callback's earlier run."""
    beside = (directory.with_name(f"{directory.name}-{number}") for number in itertools.count(2))
    free = next(path for path in beside if not run_directory.holds_run(path.expanduser()))
    warnings.warn(f"watch: {directory} holds this callback's earlier run; this one is in {free}", stacklevel=4)
    return free


class Attached:
    """Keeps the arguments of :func:`gradstab.watch` until there is a network, and then its monitor."""

    def __init__(self, directory: str | Path | None, arguments: dict[str, Any]) -> None:
        for name in _GIVEN:
            if name in arguments:
                raise ConfigError(f"{name}: the trainer gives it; leave it out")
        allowed = [name for name in inspect.signature(watch).parameters if name not in (*_GIVEN, "directory")]
        for name in arguments:
            if name not in allowed:
                raise ConfigError(f"{name}: is no argument of GradstabCallback; allowed: {', '.join(allowed)}")
        self.directory = directory
        self.arguments = arguments
        self.monitor: Monitor | None = None

    def begin(self, model: nn.Module, optimizers: Sequence[Any], scaler: Any) -> Monitor:
        """Start watching; a run that was never ended is closed first, and its directory left as it is."""
        self.end("interrupted", "another run began")
        directory = self.directory if self.monitor is None or self.directory is None else _free(Path(self.directory))
        self.monitor = watch(model, directory, optimizer=list(optimizers), scaler=scaler, **self.arguments)
        return self.monitor

    def end(self, status: str = "completed", reason: str = "") -> None:
        """Stop watching; the monitor stays to be asked for its verdict."""
        if self.monitor is not None:
            self.monitor.close(status, reason)

    def verdict(self) -> Verdict:
        """The verdict on the run so far."""
        if self.monitor is None:
            raise GradstabError("no training has begun, so there is no verdict yet")
        return self.monitor.verdict()
