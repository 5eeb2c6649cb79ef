"""What a run keeps of itself on its way, so that it can go on after it was stopped: the knobs of ``checkpoint``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from gradstab.config.fields import checked, number, positive_int
from gradstab.config.registry import Option, option

_TIME = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s?(s|min|h)")
_SECONDS = {"s": 1, "min": 60, "h": 3600}


def _seconds(value: Any) -> float | None:
    """``30s``, ``10min`` or ``2h`` in seconds; None for what is no time."""
    time = _TIME.fullmatch(value) if isinstance(value, str) else None
    return _SECONDS[time[2]] * float(time[1]) if time else None


def _every_problem(value: Any) -> str | None:
    if value is None or positive_int(value) or _seconds(value):
        return None
    return "must be a number of steps, such as 500, a time such as 30s, 10min or 2h, or null for none but at a signal"


@option("checkpoint", "default")
@dataclass(frozen=True)
class Checkpointing(Option):
    """All a run needs to go on from there, in checkpoints/; a run that ends sooner than ``every`` writes none."""

    name: str = "default"
    every: Any = checked("10min", _every_problem, "a number of steps, a time such as 30s, 10min or 2h, or null")
    keep: int = number(2, at_least=1, at_most=1_000_000)
    best: bool = True

    @property
    def steps(self) -> int | None:
        """The steps between two checkpoints; None where it is no number of steps."""
        return self.every if isinstance(self.every, int) else None

    @property
    def seconds(self) -> float | None:
        """The time between two checkpoints; None where it is no time."""
        return _seconds(self.every)
