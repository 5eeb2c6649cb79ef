"""Counts and settings in sentences and tables."""

from __future__ import annotations

from typing import Any


def counted(count: int, what: str = "step") -> str:
    """``1 step``, ``1,200 steps``."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def shown(value: Any) -> str:
    """A setting as YAML has it: ``null``, ``true``, ``false``, else as Python does."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def as_word(value: Any) -> str:
    """A setting as it is written on the command line: lists with commas."""
    return ",".join(map(as_word, value)) if isinstance(value, list | tuple) else shown(value)


def printable(value: Any) -> str:
    """Text fit for any terminal, page and picture: characters that no encoding or font takes are replaced."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))


def without_middle(text: str, width: int) -> str:
    """A text in at most ``width`` characters: its beginning and its end."""
    if len(text) <= width:
        return text
    end = (width - 1) // 2
    return f"{text[: width - 1 - end]}…{text[len(text) - end :]}"
