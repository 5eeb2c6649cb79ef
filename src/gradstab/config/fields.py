"""Declaring a knob: its default, its range, and what to say when a value is outside it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import Field, field
from pathlib import Path
from typing import Any

MAX_SEED = 2**32 - 1
# What squares of it still are in float64, and it itself in float32.
LARGEST = 1e30


def comma_separated(value: Any) -> tuple[str, ...]:
    """The words of a list, or of text with commas, each once; empty where it is neither."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple):
        return ()
    return tuple(dict.fromkeys(word.strip() for text in texts for word in str(text).split(",")))


def number(
    default: float | None,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    reason: str = "",
) -> Any:
    """A dataclass field for a finite number within bounds; a default of None makes it optional.

    ``reason`` says why the default is what it is, where that is not plain.
    """
    words = [
        f"{text} {bound:g}" if abs(bound) < 1e6 else f"{text} {bound}"
        for text, bound in (
            ("above", above),
            ("at least", at_least),
            ("below", below),
            ("at most", at_most),
        )
        if bound is not None
    ]

    def problem(value: Any) -> str | None:
        sized = -LARGEST <= value <= LARGEST
        inside = (
            sized
            and (above is None or value > above)
            and (at_least is None or value >= at_least)
            and (below is None or value < below)
            and (at_most is None or value <= at_most)
        )
        bounds = list(words)
        # The bounds that all numbers have are told where they matter.
        if value > LARGEST and below is None and at_most is None:
            bounds.append(f"at most {LARGEST:g}")
        elif value < -LARGEST and above is None and at_least is None:
            bounds.insert(0, f"at least {-LARGEST:g}")
        kind = "whole" if isinstance(value, int) else "finite"
        return None if inside else f"must be a {kind} number{', ' if bounds else ''}{' and '.join(bounds)}"

    unbounded = below is None and at_most is None
    metadata = {"problem": problem, "allowed": ", ".join(words), "reason": reason, "unbounded": unbounded}
    return field(default=default, metadata=metadata)


def choice(default: str | None, *options: str) -> Any:
    """A dataclass field that holds one of ``options``; a default of None makes it optional."""

    def problem(value: Any) -> str | None:
        return None if value in options else f"must be one of {', '.join(options)}"

    return field(default=default, metadata={"problem": problem, "allowed": " | ".join(options)})


def checked(default: Any, problem: Callable[[Any], str | None], allowed: str) -> Any:
    """A dataclass field with a check of its own: ``problem`` returns what is wrong with a value, or None."""
    return field(default=default, metadata={"problem": problem, "allowed": allowed})


def positive_int(value: Any) -> bool:
    """True for an int above 0; YAML's booleans, which Python counts as ints, are not meant."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def folder_problem(value: Any) -> str | None:
    """What is wrong with the name of a folder, or None."""
    try:
        Path(str(value)).expanduser()
    except RuntimeError:
        return "must be a folder's name, and no such user has a home"
    if re.search(r"[\x00-\x1f\x7f-\x9f]", str(value)):
        return "must be a folder's name, without control characters"
    return None if str(value).strip() else "must be a folder's name"


def problem_with(field_: Field[Any], value: Any) -> str | None:
    """What is wrong with ``value`` for this field, or None. None itself is allowed where it is the default."""
    check: Callable[[Any], str | None] | None = field_.metadata.get("problem")
    if check is None or (value is None and field_.default is None):
        return None
    return check(value)
