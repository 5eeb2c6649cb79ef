"""How the learning rate moves over a run. What a step uses stands in ``optimizer.param_groups[i]["lr"]``.

Where an optimizer has several groups (Muon beside AdamW), all are multiplied by the same factor, so that their rates
keep their ratio; ``lr`` and ``min_lr`` are those of the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau


class Schedule(Protocol):
    """Told of every step and every evaluation, it sets the rate that the next step uses."""

    def after_step(self) -> None:
        """To be called once after each training step, also after one whose update was skipped."""

    def after_evaluation(self, test_loss: float) -> None:
        """To be called after each evaluation; a ``test_loss`` of NaN or inf counts as no better than any."""

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` needs to go on from here."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken, and set the optimizer's rates to what they were there."""


class _TorchSchedule:
    """What both kinds of schedule share: a scheduler of torch's that holds the state."""

    def __init__(self, optimizer: Optimizer, scheduler: LRScheduler) -> None:
        self.optimizer = optimizer
        self.scheduler = scheduler

    def after_step(self) -> None:
        pass

    def after_evaluation(self, test_loss: float) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return self.scheduler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.scheduler.load_state_dict(state_dict)
        for group, lr in zip(self.optimizer.param_groups, self.scheduler.get_last_lr(), strict=True):
            group["lr"] = lr


class StepSchedule(_TorchSchedule):
    """Step i, counted from 0, uses the initial rate times ``factor(i)``."""

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], float]) -> None:
        super().__init__(optimizer, LambdaLR(optimizer, factor))
        # torch warns when the first update does not come before the first schedule step, but
        # on_divergence=skip may leave that update out.
        optimizer._opt_called = True  # type: ignore[attr-defined]

    def after_step(self) -> None:
        self.scheduler.step()


class PlateauSchedule(_TorchSchedule):
    """Rates fall by a factor whenever more than ``patience`` evaluations in a row brought no lower test loss."""

    def __init__(self, optimizer: Optimizer, factor: float, patience: int, min_lr: float) -> None:
        floor = _floor(optimizer, min_lr)
        floors = [floor * group["lr"] for group in optimizer.param_groups]
        self.plateau = ReduceLROnPlateau(
            optimizer, factor=factor, patience=patience, min_lr=floors, threshold=0.0, eps=0.0
        )
        super().__init__(optimizer, self.plateau)

    def after_evaluation(self, test_loss: float) -> None:
        self.plateau.step(test_loss)


def _step(optimizer: Optimizer, _total_steps: int, *, step_size: int, gamma: float) -> Schedule:
    return StepSchedule(optimizer, lambda i: gamma ** (i // step_size))


def _exponential(optimizer: Optimizer, _total_steps: int, *, gamma: float) -> Schedule:
    return StepSchedule(optimizer, lambda i: gamma**i)


def _cosine(optimizer: Optimizer, total_steps: int, *, min_lr: float) -> Schedule:
    """Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts."""
    floor = _floor(optimizer, min_lr)
    return StepSchedule(optimizer, lambda i: cosine_factor(i, total_steps, floor))


def _warmup_cosine(optimizer: Optimizer, total_steps: int, *, warmup_steps: int, min_lr: float) -> Schedule:
    """Goyal et al. 2017, arXiv:1706.02677: (i+1)/warmup_steps of the rate, then cosine over the steps that remain."""
    floor = _floor(optimizer, min_lr)

    def factor(i: int) -> float:
        if i < warmup_steps:
            return (i + 1) / warmup_steps
        return cosine_factor(i - warmup_steps, total_steps - warmup_steps, floor)

    return StepSchedule(optimizer, factor)


def _plateau(optimizer: Optimizer, _total_steps: int, *, factor: float, patience: int, min_lr: float) -> Schedule:
    return PlateauSchedule(optimizer, factor, patience, min_lr)


def cosine_factor(step: int, steps: int, floor: float) -> float:
    """Half a cosine from 1 at step 0 to ``floor`` at ``steps``, and ``floor`` from there on."""
    return floor + (1 - floor) * (1 + math.cos(math.pi * min(1.0, step / steps))) / 2


def _floor(optimizer: Optimizer, min_lr: float) -> float:
    """``min_lr`` as a share of the initial rate."""
    return min_lr / _initial_lr(optimizer)


def _initial_lr(optimizer: Optimizer) -> float:
    group = optimizer.param_groups[0]
    return float(group.get("initial_lr", group["lr"]))


SCHEDULES: dict[str, Callable[..., Schedule | None]] = {
    "constant": lambda _optimizer, _total_steps: None,
    "step": _step,
    "exponential": _exponential,
    "cosine": _cosine,
    "warmup_cosine": _warmup_cosine,
    "plateau": _plateau,
}


def build_schedule(name: str, optimizer: Optimizer, total_steps: int, **knobs: Any) -> Schedule | None:
    """The schedule ``name`` for a run of ``total_steps`` steps, or None for ``constant``.

    The optimizer's rates are set for step 0 at once. ``min_lr`` is at most the optimizer's rate, and a warm-up is
    shorter than the run: ``config/rules.py`` sees to both.
    """
    return SCHEDULES[name](optimizer, total_steps, **knobs)
