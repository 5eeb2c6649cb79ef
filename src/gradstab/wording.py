"""Counts and settings in sentences and tables."""

from __future__ import annotations

from typing import Any


def counted(count: int, what: str = "step") -> str:
    """``1 step``, ``1,200 steps``."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def shown(value: Any) -> str:
    """A setting as YAML has it: ``null``, ``true``, ``false``, else as Python does."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
