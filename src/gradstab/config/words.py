"""Knobs that the command line sets one by one beside a run's configuration: ``probe.*`` and ``sweep.*``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from gradstab.config.compose import read_knobs
from gradstab.errors import ConfigError

T = TypeVar("T")


def read_words(cls: type[T], words: Sequence[str], group: str, *, single: str) -> tuple[T, set[str]]:
    """The knobs that ``words`` set, each ``group.NAME=VALUE`` in Hydra's grammar, and the names of those.

    ``single`` says why a knob has no more than one value. Raises :class:`ConfigError` with one line for each thing that
    is wrong.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    given = {}
    for word in words:
        name = word.partition("=")[0].removeprefix(f"{group}.")
        try:
            override = parser.parse_override(word)
        except HydraException as error:
            raise ConfigError(f"{word}: cannot be read; allowed: KEY=VALUE") from error
        if override.is_sweep_override():
            raise ConfigError(f"{word}: several values; allowed: one, as {single}")
        if name in given:
            raise ConfigError(f"{word}: {group}.{name} was given already; allowed: once")
        given[name] = override.value()
    return read_knobs(cls, given, group), set(given)
