"""A record that has to be closed: at the end of a ``with`` block, or else of the interpreter."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import warnings
import weakref
from abc import ABC, abstractmethod
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from gradstab.errors import ConfigError, GradstabError
from gradstab.monitor.book import Book

# How many forks this process has come from: it is asked at every step, and the system's own number costs more.
_forks = 0


def _count_fork() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)

ENDINGS = ("completed", "interrupted", "failed", "diverged")


def check_ending(status: str) -> None:
    """Raises :class:`ConfigError` for what no run's status can be."""
    if status not in ENDINGS:
        raise ConfigError(f"status={status!r}: has to be one of {', '.join(ENDINGS)}")


def ending(error: BaseException | None) -> tuple[str, str]:
    """The status and the reason of a run that ended with this error, or with none."""
    if error is None:
        return "completed", ""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", "interrupted from the keyboard"
    if isinstance(error, SystemExit) and not error.code:
        return "interrupted", "the program ended"
    return "failed", f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")


class Closing(ABC):
    """Calls :meth:`close` with how it ended, in the process that made it; a forked child has nothing to close."""

    _book: Book

    def __init__(self) -> None:
        self._forks = _forks
        # A monitor that nobody holds any more is not held, with its whole network, until the end.
        self._last_call = partial(_close, weakref.ref(self))
        atexit.register(self._last_call)

    def __del__(self) -> None:
        if hasattr(self, "_last_call"):
            self.forget()
            self._at_exit()

    def __deepcopy__(self, _memo: object) -> None:
        # A network may hold its monitor; nobody watches a copy of it.
        return None

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()

    @property
    def directory(self) -> Path:
        """Where the run is recorded."""
        return self._book.directory

    @property
    def closed(self) -> bool:
        """Whether the record has ended."""
        return self._book.closed

    @property
    def notes(self) -> list[str]:
        """What could not be measured, a line each; also in run.json."""
        return list(self._book.notes)

    @abstractmethod
    def close(self, status: str = "completed", reason: str = "") -> None:
        """End what is open, and :meth:`forget` of it; later calls do nothing."""

    def forget(self) -> None:
        """The interpreter's end is nothing to wait for any more."""
        atexit.unregister(self._last_call)

    @property
    def elsewhere(self) -> bool:
        """Whether this is a process that was forked from the one that made it."""
        return _forks != self._forks

    def check_process(self) -> None:
        """Raises :class:`GradstabError` in any other process: two would write into one file."""
        if _forks != self._forks:
            raise GradstabError("this monitor belongs to the process that made it; watch again in this one")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close(*ending(error))
        except GradstabError as problem:
            if error is None:
                raise
            # What went wrong in the block is what matters.
            warnings.warn(f"watch: {problem}", stacklevel=2)

    def _at_exit(self) -> None:
        if not self.elsewhere:
            with contextlib.suppress(Exception):
                try:
                    self.close(*ending(getattr(sys, "last_value", None)))
                except GradstabError as problem:
                    warnings.warn(f"watch: {problem}", stacklevel=2)


def _close(monitor: weakref.ref[Closing]) -> None:
    if (left := monitor()) is not None:
        left._at_exit()
