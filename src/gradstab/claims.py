"""Who works in a directory: a claim that holds as long as the process that made it, however that ends."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from gradstab.errors import ConfigError

CLAIM_FILE = ".claim"
# Seconds: somebody who only asks whether there is a claim holds it for a moment.
PATIENCE = 0.5
_AT_WORK = "another process is at work there; allowed: wait, or end it"


@contextlib.contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """Hold an existing directory for this process; :class:`ConfigError` where a live one holds it already.

    Who holds it may claim it again; it is given back when the first claim ends.
    """
    lock = FileLock(directory / CLAIM_FILE, timeout=PATIENCE, is_singleton=True)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(f"out_dir={directory}: {_AT_WORK}") from None
    except OSError as error:
        raise ConfigError(f"out_dir={directory}: cannot be written to ({error.strerror})") from error
    try:
        yield
    finally:
        lock.release()


def claim(directory: Path) -> Callable[[], None]:
    """Hold a directory that nobody else has until the process ends, or until what is returned is called.

    Where the file system knows no locks there is no claim, and no file that looks like one. Raises
    :class:`ConfigError` where a live process has it all the same.
    """
    path = directory / CLAIM_FILE
    lock = FileLock(path, timeout=PATIENCE, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(f"directory={directory}: {_AT_WORK}") from None
    except (OSError, NotImplementedError):
        # Another user's cannot be opened for writing, and is taken away only where nobody holds it.
        if _is_locked(path):
            raise ConfigError(f"directory={directory}: {_AT_WORK}") from None
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    return lock.release


def is_claimed(directory: Path) -> bool:
    """Whether a live process works in ``directory``; leaves nothing behind where there is no claim."""
    try:
        if not (directory / CLAIM_FILE).exists():
            return False
        with FileLock(directory / CLAIM_FILE, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return _is_locked(directory / CLAIM_FILE)


def _is_locked(path: Path) -> bool:
    """The same of somebody else's file, which may only be read."""
    try:
        import fcntl

        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except (ImportError, OSError):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False
