"""Counted things in sentences."""

from __future__ import annotations


def counted(count: int, what: str = "step") -> str:
    """``1 step``, ``1,200 steps``."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
