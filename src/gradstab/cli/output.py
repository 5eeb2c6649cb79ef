"""Exit codes, and what is said with them."""

from __future__ import annotations

import sys

OK, FAILED, BAD_INPUT, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143


def say(text: str) -> int:
    """Print text that was asked for."""
    sys.stdout.write(text)
    sys.stdout.flush()
    return OK


def complain(*lines: str) -> int:
    """Print one line for each thing that is wrong, on standard error."""
    for line in lines:
        sys.stderr.write(f"gradstab: {line}\n")
    return BAD_INPUT
