"""What a worker does around ``work``: threads, its GPU, ending in order, and ending with whoever started it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from gradstab.errors import Interrupted
from gradstab.launchers.task import Task, Work

INTERRUPTED = "interrupted"
# Seconds that a worker has to end in order before it is killed.
GRACE = 30.0
_WATCH_EVERY = 0.5
_orphaned = threading.Event()
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def environment(threads: int, gpu: str | None, *, hide_gpus: bool = False) -> dict[str, str]:
    """Variables for a worker with so many threads and one GPU; with ``hide_gpus`` and none, it shall see none."""
    variables = dict.fromkeys(_THREAD_VARIABLES, str(threads))
    if gpu is not None or hide_gpus:
        variables["CUDA_VISIBLE_DEVICES"] = gpu or ""
    return variables


def settle(threads: int, variables: dict[str, str] | None = None) -> None:
    """Hold this process to its share; what is already imported is told, what comes later reads the environment."""
    os.environ.update(environment(threads, None) if variables is None else variables)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)


def end_with(alive: Callable[[], bool]) -> None:
    """End this process in order, by a SIGTERM to itself, once ``alive`` says that nobody waits for it any more."""

    def watch() -> None:
        while alive():
            time.sleep(_WATCH_EVERY)
        _orphaned.set()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, name="gradstab-orphan", daemon=True).start()


def guarded(work: Work, task: Task) -> str:
    """``work(task)``, where SIGTERM raises :class:`Interrupted` until the run has a handler of its own.

    A run that was interrupted has ended in order, and so has this: it returns that it was.
    """
    with _on_sigterm():
        try:
            return work(task)
        except KeyboardInterrupt:
            return INTERRUPTED
        finally:
            if _orphaned.is_set():
                os._exit(128 + signal.SIGTERM)


@contextlib.contextmanager
def _on_sigterm() -> Iterator[None]:
    def interrupt(number: int, _frame: FrameType | None) -> None:
        raise Interrupted(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


@contextlib.contextmanager
def deaf_to_ctrl_c() -> Iterator[None]:
    """Processes started inside never hear the terminal's Ctrl-C: the one who starts them is to end them, in order."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def in_one_line(error: BaseException) -> str:
    """An exception as one line."""
    text = f"{type(error).__name__}: {error}".strip()
    return text.splitlines()[0].rstrip(": ")
