"""What steers a sweep and is no part of a run's configuration: ``sweep.*`` and ``objective``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from gradstab.config.compose import one_of
from gradstab.config.fields import checked, comma_separated
from gradstab.config.words import read_words
from gradstab.errors import ConfigError

PREFIX = "sweep."
RETRIABLE = ("failed", "diverged")
# A run's figures in run.json: what a sweep's tables have, and an optimizing sweeper can work with.
FIGURES = (
    *("test_accuracy", "best_test_accuracy", "test_loss", "train_loss", "depth_factor", "depth_factor_r2"),
    *("first_layer_grad_norm", "last_layer_grad_norm", "steps", "skipped_steps", "clipped_steps", "seconds"),
)
DEFAULT_OBJECTIVE = "test_accuracy"


def _retry_problem(value: Any) -> str | None:
    kinds = comma_separated(value)
    return None if kinds and set(kinds) <= set(RETRIABLE) else f"must be one or both of {', '.join(RETRIABLE)}"


@dataclass(frozen=True)
class SweepKnobs:
    """Which cells run although they ran before, and whether the first failure ends the sweep.

    ``retry`` names what became of the cells that are to run again; ``force`` stands for all of them.
    """

    retry: Any = checked(None, _retry_problem, "failed, diverged, or both with a comma between them")
    force: bool = False
    fail_fast: bool = False

    @property
    def again(self) -> tuple[str, ...]:
        """The outcomes after which a cell runs once more."""
        if self.force:
            return ("completed", "diverged", "failed")
        return () if self.retry is None else comma_separated(self.retry)


SWEEP_KEYS = (*(f"{PREFIX}{f.name}=" for f in fields(SweepKnobs)), "objective=")


def is_sweep_word(word: str) -> bool:
    """Whether a word of the command steers the sweep instead of configuring its cells."""
    return word.startswith((PREFIX, "objective="))


def _several(word: str) -> str:
    """To Hydra, commas are a sweep; after ``sweep.retry=`` they stand between kinds."""
    name, _, value = word.partition("=")
    return f"{name}=[{value}]" if name == f"{PREFIX}retry" and "," in value and value[0] not in "[\"'" else word


def sweep_knobs(words: Sequence[str]) -> SweepKnobs:
    """The knobs that ``words`` set, each ``sweep.NAME=VALUE``; :class:`ConfigError` with a line for each wrong one."""
    knobs, _ = read_words(SweepKnobs, [_several(word) for word in words], "sweep", single="it is about the whole sweep")
    if knobs.force and knobs.retry is not None:
        raise ConfigError(f"sweep.retry={','.join(comma_separated(knobs.retry))}: no effect with sweep.force=true")
    return knobs


def objective(value: Any) -> str:
    """The figure that is returned to Hydra's sweeper, checked; None stands for the default."""
    if value is None:
        return DEFAULT_OBJECTIVE
    if not isinstance(value, str) or value not in FIGURES:
        raise ConfigError(f"objective={value}: is no figure of a run; {one_of(FIGURES, str(value))}")
    return value
