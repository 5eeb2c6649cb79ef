"""The knobs of ``gradstab probe``: no part of a run's configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from gradstab.config.fields import number
from gradstab.config.words import read_words
from gradstab.errors import ConfigError

PREFIX = "probe."


@dataclass(frozen=True)
class ProbeKnobs:
    """How many networks to draw; whether to look at Jacobians (Saxe 2014, arXiv:1312.6120), and at how many samples."""

    seeds: int = number(5, at_least=1, at_most=1000)
    jacobian: bool = False
    samples: int = number(4, at_least=1, at_most=1000)


PROBE_KEYS = tuple(f"{PREFIX}{f.name}=" for f in fields(ProbeKnobs))


def is_probe_knob(word: str) -> bool:
    """Whether a word of the command line is about these knobs, be it in a form that they do not have (``+probe.…``)."""
    return word.lstrip("+~").startswith((PREFIX, PREFIX.replace(".", "=")))


def probe_knobs(words: Sequence[str]) -> ProbeKnobs:
    """The knobs that ``words`` set, each ``probe.NAME=VALUE`` in Hydra's grammar.

    Raises :class:`ConfigError` with one line for each thing that is wrong.
    """
    for word in words:
        if not word.startswith(PREFIX):
            raise ConfigError(f"{word}: a probe's knobs are set one by one; allowed: {', '.join(PROBE_KEYS)}")
    knobs, given = read_words(ProbeKnobs, words, "probe", single="a probe looks at one network")
    if "samples" in given and not knobs.jacobian:
        raise ConfigError(f"probe.samples={knobs.samples}: no effect without probe.jacobian=true")
    return knobs
