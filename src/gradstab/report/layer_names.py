"""Layers' names: as short as a chart has room for, and all of them in full for the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Listed:
    """One line of the page's list: a layer's index, or those of several in a row with one name, and what to note."""

    index: str
    name: str
    note: str = ""


def split(tag: str) -> tuple[str, str]:
    """A layer's number, as its tag has it, and its name; no number where there is none."""
    number, _, name = tag.partition("_")
    return (number, name) if name and number.isdecimal() else ("", tag)


def listed(tags: Sequence[str], silent: Sequence[int] = ()) -> tuple[Listed, ...]:
    """Every layer's index on the axes and its full name; ``silent`` are those that got no gradient."""
    lines: list[tuple[int, int, str, str]] = []
    without = frozenset(silent)
    for index, tag in enumerate(tags):
        number, name = split(tag)
        name = name if number and int(number) == index else tag
        note = "no gradient" if index in without else ""
        if lines and lines[-1][2:] == (name, note):
            lines[-1] = (lines[-1][0], index, name, note)
        else:
            lines.append((index, index, name, note))
    return tuple(Listed(f"{a}" if a == b else f"{a}–{b}", name, note) for a, b, name, note in lines)


def shortened(tags: Sequence[str], room: int) -> list[str]:
    """Each tag in at most ``room`` characters: its number, and of its name what no other layer's has.

    Whole parts go first, from the front, as long as what is left is one layer's alone; then the ends of those in the
    middle; then whatever does not tell it from the others.
    """
    split_tags = [split(tag) for tag in tags]
    names = [name for _, name in split_tags]
    paths = [name.split(".") for name in names]
    short = []
    for tag, (number, name), path in zip(tags, split_tags, paths, strict=True):
        before = f"{number}_" if number else ""
        left = room - len(before)
        if len(tag) <= room or left < 4:
            short.append(tag if len(tag) <= room else f"{tag[: room - 1]}…")
        else:
            short.append(before + (_in(left, path, paths) or _cut(name, names, left)))
    return short


def _in(room: int, path: list[str], paths: Sequence[list[str]]) -> str:
    """A name of dotted parts without the first ones, or with some of them abbreviated; empty where that is too long."""
    least = _own(path, paths)
    for kept in range(len(path) - 1, least - 1, -1):
        text = "…" + ".".join(path[-kept:])
        if len(text) <= room:
            return text
    start = len(path) - least
    parts = [part if i < start else _abbreviated(path, i, paths) for i, part in enumerate(path)]
    for given_up in range(start + 1, len(path) - 1):
        # The first part that tells it apart, a block's number say, and the last, which says what it is, stay.
        text = ("…" if start else "") + ".".join([path[start], *parts[start + 1 : given_up + 1], *path[given_up + 1 :]])
        if len(text) <= room:
            return text
    text = ("…" if start else "") + ".".join([*parts[start:-1], path[-1]])
    return text if least > 1 and len(text) <= room else ""


def _own(path: list[str], paths: Sequence[list[str]]) -> int:
    """How many of a name's last parts it takes until they are no other's."""
    for kept in range(1, len(path)):
        if sum(other[-kept:] == path[-kept:] for other in paths) == 1:
            return kept
    return len(path)


def _abbreviated(path: list[str], at: int, paths: Sequence[list[str]]) -> str:
    """As much of one part as those beside it in the network do not begin with."""
    beside = {other[at] for other in paths if len(other) > at and other[:at] == path[:at]} - {path[at]}
    part = path[at]
    if part.isdecimal():
        return part
    return next((part[:n] for n in range(1, len(part)) if not any(o.startswith(part[:n]) for o in beside)), part)


def _cut(name: str, names: Sequence[str], room: int) -> str:
    """The end of a name, or its beginning, or both, whichever is this one's alone; else its end."""
    own = _ends(name, room)
    for mine, all_of_them in zip(own, zip(*[_ends(other, room) for other in names], strict=True), strict=True):
        if all_of_them.count(mine) == 1:
            return mine
    return own[0]


def _ends(name: str, room: int) -> tuple[str, str, str]:
    half = (room - 1) // 2
    return f"…{name[1 - room :]}", f"{name[: room - 1]}…", f"{name[: room - 1 - half]}…{name[-half:]}"
