"""Words of a command that name a place on disk."""

from __future__ import annotations

from pathlib import Path

from gradstab.errors import ConfigError


def path_of(word: str, what: str, allowed: str, flag: str = "") -> Path:
    """The path that a word, or a ``flag``'s value, stands for; ``what`` it should be is named where it is none."""
    before = f"{flag} " if flag else ""
    if not word or "\0" in word:
        raise ConfigError(f"{before}{word!r}: is no {what}; allowed: {allowed}")
    try:
        return Path(word).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{before}{word}: is no {what}, as no such user has a home; allowed: {allowed}") from error
