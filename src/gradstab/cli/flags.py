"""Hydra's flags: those that there are, what they take, and where they stand among the words of a command."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from gradstab.config.compose import one_of
from gradstab.config.words import as_text
from gradstab.errors import ConfigError

# Those of Hydra's that have a use here.
HYDRA_FLAGS = (
    *("-m", "--multirun", "--cfg", "-c", "--config-dir", "-cd", "--config-name", "-cn", "--resolve", "--package", "-p"),
    *("--info", "-i", "--hydra-help"),
)
# Those that take the next word as their value.
VALUED = ("--cfg", "-c", "--config-dir", "-cd", "--config-name", "-cn", "--package", "-p")
CHOSEN = {
    **dict.fromkeys(("--cfg", "-c"), ("job", "hydra", "all")),
    **dict.fromkeys(("--info", "-i"), ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")),
}
MULTIRUN = ("-m", "--multirun", "hydra.mode=MULTIRUN")


def check_flags(args: Sequence[str]) -> None:
    """Refuse what Hydra's parser of flags would answer with its usage, which has none of our commands.

    :class:`ConfigError` says which value a flag may have, and which flags and words go together.
    """
    for flag, following in itertools.pairwise([*args, ""]):
        name, given, value = flag.partition("=")
        if not given:
            value = "" if following.startswith("-") else following
        if flag.startswith("-") and given and name not in (*VALUED, *CHOSEN):
            raise ConfigError(f"{flag}: takes no value; allowed: {name}")
        if name in VALUED and not value:
            raise ConfigError(f"{flag}: has no value; allowed: {name} {'|'.join(CHOSEN.get(name, ['VALUE']))}")
        # --info does without a value, and an override may follow.
        if value and name in CHOSEN and value not in CHOSEN[name] and (given or name in VALUED or "=" not in value):
            raise ConfigError(f"{name} {value}: {one_of(CHOSEN[name], value)}")
    _check_together(args)


def _check_together(args: Sequence[str]) -> None:
    """Refuse flags that exclude each other, and those that only go with another."""
    words, flags = split_words(args)
    given = {flag.partition("=")[0]: None for flag in flags if flag.startswith("-")}
    if words and "--hydra-help" in given:
        raise ConfigError(f"{words[0]}: no effect with --hydra-help; leave it out")
    modes = [arg for arg in args if arg in MULTIRUN][:1] + [flag for flag in given if flag in CHOSEN]
    if len(modes) > 1:
        raise ConfigError(f"{modes[1]}: not together with {modes[0]}; allowed: one of -m, --cfg, --info")
    for flag in given:
        if flag in ("--resolve", "--package", "-p") and not {"--cfg", "-c"} & set(given):
            raise ConfigError(f"{flag}: no effect without --cfg; leave it out, or add --cfg job")


def in_hydras_order(args: Sequence[str]) -> list[str]:
    """``-m``, then all overrides, then the other flags: Hydra takes none of them between overrides."""
    words, flags = split_words(args)
    return [*["-m"] * any(arg in MULTIRUN for arg in args), *map(as_text, words), *flags]


def split_words(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides, and flags with their values; without those that ask for a sweep."""
    words: list[str] = []
    flags: list[str] = []
    before = ""
    for arg in args:
        if arg in MULTIRUN:
            continue
        valued = before in VALUED or (before in ("--info", "-i") and "=" not in arg)
        (flags if valued or arg.startswith("-") else words).append(arg)
        before = arg
    return words, flags
