"""SIGINT and SIGTERM while a run is under way: the first ends it in order, a second Ctrl-C at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from gradstab.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_heard: list[int] = []
_SHOW_CURSOR = b"\x1b[?25h\n"


class Stop:
    """Whether a signal has asked to end, and what it does: it raises :class:`Interrupted`, at once or when asked."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._waits = False
        self._keystrokes = 0

    def receive(self, number: int, _frame: Any) -> None:
        """Take a signal, as its handler."""
        self._keystrokes += number == signal.SIGINT
        # Only Ctrl-C counts: a launcher sends SIGTERM to workers that the terminal's Ctrl-C has reached already.
        if self._keystrokes > 1:
            if os.isatty(1):
                os.write(1, _SHOW_CURSOR)
            os._exit(128 + number)
        if self.signal is None:
            self.signal = number
            if not self._waits:
                self.poll()

    def poll(self) -> None:
        """Raise :class:`Interrupted` if a signal has come."""
        if self.signal is not None:
            raise Interrupted(self.signal)

    def hold(self) -> None:
        """From now on, signals wait for :meth:`poll`."""
        self._waits = True

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Signals wait for :meth:`poll`, which is called at the end too."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False
        self.poll()


def listen() -> None:
    """Have both signals raise :class:`Interrupted` in this process from now on, whatever is under way.

    SIGINT is listened to where it was ignored, too: a shell script does that to its background jobs, for which the
    terminal's Ctrl-C is not meant; a signal that somebody sends to one of them is.
    """
    for number in SIGNALS:
        signal.signal(number, _interrupt)


def _interrupt(number: int, _frame: Any) -> None:
    _heard.append(number)
    raise Interrupted(number)


def heard() -> int | None:
    """The first signal that came while :func:`listen` was in force; libraries make other errors of what it raised."""
    return _heard[0] if _heard else None


def then_leave(leave: Callable[[], None]) -> None:
    """From now on both signals call ``leave``: all is said and done."""
    for number in SIGNALS:
        signal.signal(number, lambda *_: leave())


@contextlib.contextmanager
def caught() -> Iterator[Stop]:
    """Take SIGINT and SIGTERM, and give them back afterwards. Threads other than the main one get none to take."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    earlier = {number: signal.signal(number, stop.receive) for number in SIGNALS}
    try:
        if _heard:
            raise Interrupted(_heard[0])
        yield stop
    finally:
        for number, handler in earlier.items():
            # None stands for one that was not set from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
