"""Words of the command line in Hydra's grammar, and the knobs set beside a run's configuration by such words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from gradstab.config.compose import read_knobs
from gradstab.errors import ConfigError

T = TypeVar("T")

# What has a meaning in Hydra's grammar, or in a value between quotes.
_GRAMMAR = frozenset("'\"\\[]{},")


def as_text(word: str) -> str:
    """``out_dir=/tmp/José`` as ``out_dir="/tmp/José"``: Hydra takes most characters between quotes only.

    A word is left as it is where Hydra can read it, and where it may be meant as something else than plain text.
    """
    key, _, value = word.partition("=")
    if not value or not value.isprintable() or _GRAMMAR & set(value) or _is_read(word):
        return word
    quoted = f'{key}="{value.strip()}"'
    return quoted if _is_read(quoted) else word


def _is_read(word: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return False
    except (ValueError, RecursionError):
        # A number of too many digits, functions nested too deeply: no quotes are missing.
        return True
    return True


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
