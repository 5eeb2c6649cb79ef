"""Counts and settings in sentences and tables, and which layers stand in them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

# So many layers have lines of their own in TensorBoard.
MAX_SHOWN = 64


def plural(count: int, what: str) -> str:
    """``what``, or several of them."""
    return what if count == 1 else f"{what}s"


def counted(count: int, what: str = "step") -> str:
    """``1 step``, ``1,200 steps``."""
    return f"{count:,} {plural(count, what)}"


def not_finite(value: float) -> str:
    """NaN or an infinity as people read it."""
    return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"


def short_keys(keys: Sequence[str]) -> list[str]:
    """Dotted keys without their groups, where they stay apart without them."""
    last = Counter(key.rpartition(".")[2] for key in keys)
    return [tail if last[tail := key.rpartition(".")[2]] == 1 else key for key in keys]


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


def shown_layers(count: int, at_most: int = MAX_SHOWN) -> list[int]:
    """The layers shown one by one: all, or evenly spaced ones, the first and the last included."""
    if count <= at_most:
        return list(range(count))
    return [round(i * (count - 1) / (at_most - 1)) for i in range(at_most)]
