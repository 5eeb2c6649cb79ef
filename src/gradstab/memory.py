"""Keeping the C library from giving memory back between steps."""

from __future__ import annotations

import contextlib
import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_ON_HEAP = 32 * 2**20


def keep_freed_memory() -> None:
    """Let freed memory stay with the process, on Linux with glibc; elsewhere nothing happens.

    A training step frees its activations, glibc returns the top of its heap to the system, and the next step
    faults every page of it in again: hundreds of page faults and up to a tenth of the time of a step of LeNet-5.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(_M_TRIM_THRESHOLD, 2**30)
            libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_ON_HEAP)
