"""Finding runs on disk, and what to call them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from gradstab.errors import ConfigError
from gradstab.run_directory import EVENT_FILES, RUN_FILE
from gradstab.wording import printable


def find(folders: Iterable[Path], mark: str = "") -> tuple[list[Path], list[Path]]:
    """The directories of all runs in or below each folder, and those that hold a file ``mark``; in order, each once.

    Raises :class:`ConfigError` naming the folder that is none, or holds no run.
    """
    found: dict[Path, Path] = {}
    marked: dict[Path, Path] = {}
    for folder in folders:
        try:
            below, marks = _below(folder, mark)
        except OSError as error:
            raise ConfigError(f"{printable(folder)}: cannot be read ({error.strerror})") from error
        if not below:
            what = f"holds no run: there is no {RUN_FILE} and no event file in it or below it"
            raise ConfigError(f"{printable(folder)}: {what}")
        for directory in below:
            found.setdefault(directory.resolve(), directory)
        for directory in marks:
            marked.setdefault(directory.resolve(), directory)
    return list(found.values()), list(marked.values())


def holds_run(directory: Path) -> bool:
    """Whether a directory is there and a run's; not where it cannot be read."""
    with contextlib.suppress(OSError):
        return _is_run(path.name for path in directory.iterdir())
    return False


def _below(folder: Path, mark: str) -> tuple[list[Path], list[Path]]:
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "there is no such folder"
        raise ConfigError(f"{printable(folder)}: {what}; allowed: a run's directory, or a folder with runs in it")
    names = [path.name for path in folder.iterdir()]
    return ([folder], [folder] * (mark in names)) if _is_run(names) else _walk(folder, mark)


def _walk(folder: Path, mark: str) -> tuple[list[Path], list[Path]]:
    """All runs and marks below a folder, through links too; a link that leads back is not followed twice."""
    seen: set[str] = set()
    found, marked = [], []
    for root, below, files in os.walk(folder, followlinks=True):
        place = os.path.realpath(root)
        if place in seen:
            below.clear()
            continue
        seen.add(place)
        if _is_run(files):
            found.append(Path(root))
        if mark in files:
            marked.append(Path(root))
    return sorted(found), sorted(marked)


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
