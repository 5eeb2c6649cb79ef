"""The whole configuration of a run: its own scalars beside one option of each group."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import Any

# Their options are registered when they are imported, as are those of the others below.
from gradstab.config import network_options, optimizer_options, training_options  # noqa: F401
from gradstab.config.checkpoint_options import Checkpointing
from gradstab.config.fields import MAX_SEED, checked, choice, comma_separated, folder_problem, number, positive_int
from gradstab.config.registry import OPTIONS, Option
from gradstab.config.verdict_options import KINDS, Thresholds


def _batch_size_problem(value: Any) -> str | None:
    return None if value == "full" or positive_int(value) else "must be a whole number above 0, or full"


def _images_problem(value: Any) -> str | None:
    return None if value is None or positive_int(value) else "must be a whole number above 0, or null for no pictures"


def _device_problem(value: Any) -> str | None:
    known = isinstance(value, str) and re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", value)
    return None if known else "must be one of auto, cpu, cuda, cuda:N, mps"


def _stop_on_problem(value: Any) -> str | None:
    kinds = comma_separated(value)
    return (
        None
        if kinds and set(kinds) <= set(KINDS)
        else f"must be one or several of {', '.join(KINDS)}, with commas between them"
    )


@dataclass(frozen=True, kw_only=True)
class Run:
    """The run's own scalars.

    ``steps`` and ``epochs`` exclude each other; with neither, a run has 1,000 steps. A ``batch_size`` of None
    stands for 128, or all samples where there are fewer. ``stop_on`` names the verdicts that end a run early. Pictures
    go to TensorBoard after ``images_after`` steps, whenever the run is twice as long, and at its end.
    """

    seed: int = number(0, at_least=0, at_most=MAX_SEED)
    steps: int | None = number(None, at_least=1)
    epochs: int | None = number(None, at_least=1)
    batch_size: Any = checked(None, _batch_size_problem, "a number of samples, or full")
    eval_every: int = number(100, at_least=1)
    target_loss: float | None = number(None, at_least=0)
    on_divergence: str = choice("stop", "stop", "skip")
    stop_on: Any = checked(None, _stop_on_problem, f"one or several of {', '.join(KINDS)}")
    images_after: Any = checked(500, _images_problem, "a number of steps, or null for no pictures")
    device: str = checked("auto", _device_problem, "auto | cpu | cuda | cuda:N | mps")
    precision: str = choice("float32", "float32", "float64", "bfloat16")
    deterministic: bool = False
    out_dir: str | None = checked(None, folder_problem, "a folder that holds no run yet")
    quiet: bool = False


@dataclass(frozen=True, kw_only=True)
class Config(Run):
    """A whole run, checked and resolved: what ``config.yaml`` in a run's directory holds.

    ``written`` are the keys that the command line spelt out; ``fixed`` is whether no option can be chosen behind it,
    as it repeats a run from its own config.yaml.
    """

    model: Option
    act: Option
    init: Option
    optimizer: Option
    schedule: Option
    clip: Option
    constraint: Option
    penalty: Option
    loss: Option
    data: Option
    measure: Option
    verdict: Thresholds
    checkpoint: Checkpointing
    n_train: int = field(repr=False)
    written: frozenset[str] = field(default=frozenset(), repr=False, compare=False)
    fixed: bool = field(default=False, repr=False, compare=False)

    @property
    def batch(self) -> int:
        """The number of samples in a batch."""
        return self.n_train if self.batch_size == "full" else int(self.batch_size)

    @property
    def total_steps(self) -> int:
        """The number of steps the run is to take; an epoch leaves out the last, incomplete batch."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return self.epochs * (self.n_train // self.batch)


# In the order in which a configuration names them.
GROUPS = tuple(f.name for f in fields(Config) if f.name in OPTIONS)
