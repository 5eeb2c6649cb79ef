"""Words of a command: those that ask for help or name a place on disk, and flags that there are not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gradstab.errors import ConfigError


def asks_for_help(args: Sequence[str]) -> bool:
    """Whether a command's own account of itself is all that is wanted."""
    return "-h" in args or "--help" in args


def no_such_flag(word: str, flags: Sequence[str]) -> ConfigError:
    """What to raise for a flag that is none of a command's ``flags``."""
    return ConfigError(f"{word}: there is no such flag; allowed: {', '.join(flags)}")


def one_folder(command: str, args: Sequence[str], flags: Sequence[str], usage: str, allowed: str) -> Path:
    """The one folder that ``args`` name beside flags; what comes behind ``--`` is none of those."""
    folders: list[str] = []
    for position, word in enumerate(args):
        if word == "--":
            folders += args[position + 1 :]
            break
        if not word.startswith("-"):
            folders.append(word)
        elif word not in flags:
            raise no_such_flag(word, flags)
    if len(folders) != 1:
        said = "needs a folder" if not folders else f"takes one folder, not {len(folders)}"
        raise ConfigError(f"{' '.join([command, *folders])}: {said}; allowed: gradstab {command} {usage}")
    return path_of(folders[0], "folder", allowed, command)


def path_of(word: str, what: str, allowed: str, flag: str = "") -> Path:
    """The path that a word, or a ``flag``'s value, stands for; ``what`` it should be is named where it is none."""
    before = f"{flag} " if flag else ""
    if not word or "\0" in word:
        raise ConfigError(f"{before}{word!r}: is no {what}; allowed: {allowed}")
    try:
        return Path(word).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{before}{word}: is no {what}, as no such user has a home; allowed: {allowed}") from error
