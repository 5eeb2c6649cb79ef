"""Reading files that may be anybody's: regular ones of a bearable size, and nothing that a reader could wait on.

And writing a file whole or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

# run.json of a network of 100,000 layers has some ten million characters.
MOST = 256 * 2**20


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; OSError for anything else, where opening a pipe would wait for its writer."""
    # Not blocking: whether it is a pipe shows only once it is open, or it could be exchanged in between.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_text(path: Path, at_most: int = MOST) -> str:
    """A regular file as text; OSError where it is none or larger than ``at_most`` bytes, ValueError where not UTF-8."""
    with open_regular(path) as file:
        content = file.read(at_most + 1)
    if len(content) > at_most:
        raise OSError(errno.EFBIG, f"larger than {at_most:,} bytes", str(path))
    return content.decode("utf-8")


def load_yaml(path: Path) -> Any:
    """What a YAML file of anybody's holds; raises OSError, ValueError, RecursionError or YAMLError."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = read_text(path)
    # Aliases, which gradstab never writes, can make a short file stand for an endless one.
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=loader)):
        raise ValueError
    return yaml.load(text, Loader=loader)


def as_number(value: Any) -> float | None:
    """An entry of a JSON or YAML file as a number, which may be inf or NaN; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Write a file whole or not at all, so that it is there even after the power fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    # Not every file system lets a folder be synchronised.
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
