"""How far a run has come, how it is to go on, and who is told of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn

from gradstab.measure.recorder import Latest, NonFinite, StepRecord


@dataclass(frozen=True)
class Plan:
    """How long to train and when to look."""

    steps: int
    eval_every: int
    measure_every: int | None
    measure: bool
    target_loss: float | None
    stop_on: tuple[str, ...] = ()

    def measures(self, step: int) -> bool:
        """Whether all quantities are taken at this step: the first, each before an evaluation, each in between."""
        if not self.measure:
            return False
        between = self.measure_every is not None and step % self.measure_every == 0
        return step == 0 or self.evaluates(step + 1) or between

    def evaluates(self, done: int) -> bool:
        """Whether the test split is evaluated after ``done`` steps."""
        return done % self.eval_every == 0 or done == self.steps


@dataclass
class Outcome:
    """How a run ended. ``steps`` are those whose update was made; losses are NaN where nothing was evaluated."""

    status: str = "completed"
    reason: str = ""
    steps: int = 0
    test_loss: float = math.nan
    test_accuracy: float | None = None
    best_test_accuracy: float | None = None
    evaluated: bool = False
    broken: NonFinite | None = None
    latest: Latest = field(default_factory=Latest)


@dataclass
class Progress:
    """Where a run stands between two steps.

    ``done`` are the steps made, skipped ones included, ``stuck`` those skipped in a row. An evaluation that is owed
    comes before the next step, or before the end.
    """

    done: int = 0
    stuck: int = 0
    owes_evaluation: bool = False
    ended: bool = False
    outcome: Outcome = field(default_factory=Outcome)

    @property
    def evaluated_step(self) -> int:
        """The step that an evaluation now belongs to: of a run that broke, the last that was whole."""
        return self.done if self.outcome.broken is None else self.outcome.steps

    def end(self, status: str, reason: str) -> None:
        """No step follows; the last evaluation does."""
        self.outcome.status, self.outcome.reason = status, reason
        self.ended = self.owes_evaluation = True


class Saver(Protocol):
    """What keeps a run's state, so that it can go on from there; it also knows when somebody asks it to end."""

    def poll(self) -> None:
        """Raise :class:`Interrupted` if the run is to end now."""

    def due(self, done: int) -> bool:
        """Whether the state after ``done`` steps is to be saved; False right after it was."""

    def save(self) -> None:
        """Save everything; no step is half done, and nothing waits to be recorded."""

    def evaluated(self, progress: Progress, model: nn.Module) -> None:
        """The test split was evaluated."""


class Witness(Protocol):
    """What sees every step, for the day that one is not finite."""

    def before(self, step: int, indices: Tensor) -> None:
        """A step is about to see the samples ``indices`` of the training split."""

    def after(self, record: StepRecord) -> None:
        """The step has been made, or found broken; the schedule has not moved on yet."""

    def looked(self, broken: NonFinite | None) -> NonFinite | None:
        """All steps so far have been looked at; returns ``broken``, with where it began."""

    def ended(self, outcome: Outcome) -> None:
        """No step follows, and all evaluations are made."""


class Display(Protocol):
    """What shows a run's progress to a person."""

    def progress(self, done: int, latest: Latest) -> None:
        """Values have reached the host."""

    def evaluated(self, done: int, loss: float, accuracy: float | None, latest: Latest) -> None:
        """The test split was evaluated."""
