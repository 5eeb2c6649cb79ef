"""Finding runs on disk, and what to call them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gradstab.errors import ConfigError
from gradstab.run_directory import EVENT_FILES, RUN_FILE
from gradstab.wording import printable

# Of more directories that cannot be read, their number is told.
NAMED = 10


@dataclass
class Found:
    """The directories of all ``runs``, those ``marked``, and in ``shut`` a line for each that cannot be read."""

    runs: list[Path]
    marked: list[Path]
    shut: list[str]


def find(folders: Iterable[Path], mark: str = "") -> Found:
    """The directories of all runs in and below each folder, and those that hold a file ``mark``; in order, each once.

    Raises :class:`ConfigError` naming the folder that is none, cannot be read, or holds no run.
    """
    found: dict[Path, Path] = {}
    marked: dict[Path, Path] = {}
    shut: dict[str, None] = {}
    for folder in folders:
        try:
            below = _below(folder, mark)
        except OSError as error:
            raise ConfigError(_shut(folder, error)) from error
        if not below.runs:
            what = f"holds no run: there is no {RUN_FILE} and no event file in it or below it"
            raise ConfigError(f"{printable(folder)}: {what}", *_few(below.shut))
        found |= {place: directory for directory in below.runs if (place := directory.resolve()) not in found}
        marked |= {place: directory for directory in below.marked if (place := directory.resolve()) not in marked}
        shut |= dict.fromkeys(below.shut)
    return Found(list(found.values()), list(marked.values()), _few(list(shut)))


def may_hold_run(directory: Path) -> bool:
    """Whether a directory is there and a run's, as far as can be seen."""
    try:
        return _is_run(path.name for path in directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True


def _few(lines: list[str]) -> list[str]:
    more = len(lines) - NAMED
    return [*lines[:NAMED], f"{more} more cannot be read"] if more > 0 else lines


def _shut(path: Path, error: OSError) -> str:
    return f"{printable(path)}: cannot be read ({error.strerror})"


def _below(folder: Path, mark: str) -> Found:
    """All runs and marks in and below a folder, through links too; a link that leads back is not followed twice."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "there is no such folder"
        raise ConfigError(f"{printable(folder)}: {what}; allowed: a run's directory, or a folder with runs in it")
    seen: set[str] = set()
    found = Found([], [], [])

    def amiss(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise error
        # What is removed meanwhile is no longer there to be read.
        if not isinstance(error, FileNotFoundError):
            found.shut.append(_shut(Path(error.filename), error))

    for root, below, files in os.walk(folder, onerror=amiss, followlinks=True):
        place = os.path.realpath(root)
        if place in seen:
            below.clear()
            continue
        seen.add(place)
        if _is_run(files):
            found.runs.append(Path(root))
        if mark in files:
            found.marked.append(Path(root))
    return Found(sorted(found.runs), sorted(found.marked), sorted(found.shut))


def _is_run(files: Iterable[str]) -> bool:
    return any(name == RUN_FILE or name.startswith(EVENT_FILES) for name in files)


def names(directories: list[Path]) -> list[str]:
    """What each run is called, each otherwise: its directory's own name, or the path below what all have in common."""
    resolved = [directory.resolve() for directory in directories]
    if len(resolved) == 1:
        return [printable(resolved[0].name)]
    common = Path(os.path.commonpath(resolved))
    below = [path.relative_to(common).as_posix() if path != common else path.name for path in resolved]
    return distinct(list(map(printable, below)), "{} ({})")


def distinct(names: Iterable[str], form: str) -> list[str]:
    """The same names, with a number where one came before; ``form`` puts the two together."""
    found: dict[str, None] = {}
    for name in names:
        unique, number = name, 1
        while unique in found:
            number += 1
            unique = form.format(name, number)
        found[unique] = None
    return list(found)
