"""Reading files that may be anybody's: regular ones of a bearable size, and nothing that a reader could wait on."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

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
