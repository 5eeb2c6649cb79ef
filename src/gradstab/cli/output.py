"""Exit codes, and what is said with them."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from pathlib import Path
from typing import TypeGuard

from gradstab.wording import printable

LONGEST = 4000
_OF_STREAMS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF, errno.EPIPE)
OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def replace_closed_streams() -> None:
    """Let standard streams that were closed before the start lead nowhere; a file of ours would get their number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115


def say(text: str) -> int:
    """Print text that was asked for."""
    sys.stdout.write(text)
    sys.stdout.flush()
    return OK


def complain(*lines: str) -> int:
    """Print one line for each thing that is wrong, on standard error."""
    with contextlib.suppress(OSError):
        for line in lines:
            sys.stderr.write(f"gradstab: {one_line(line)}\n")
    return BAD_INPUT


def one_line(text: str) -> str:
    """Text that is one line in any terminal: what was typed or read may hold line ends, escapes, and far too much."""
    shown = printable(text)
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST // 2]} … {shown[-LONGEST // 2 :]}"


def is_about_output(error: Exception) -> TypeGuard[OSError]:
    """Whether it is that standard output cannot be written to: a failure of the system's that is about no file."""
    return isinstance(error, OSError) and error.errno in _OF_STREAMS and error.filename is None


def unforeseen(error: Exception) -> int:
    """Say in one line what nobody foresaw; to be called where it is being handled."""
    if is_about_output(error):
        complain(f"standard output: cannot be written to ({error.strerror})")
        return FAILED
    if os.environ.get("GRADSTAB_TRACEBACK"):
        traceback.print_exc()
    complain(f"failed: {type(error).__name__}: {error}".splitlines()[0] + " (GRADSTAB_TRACEBACK=1 shows where)")
    return FAILED
