"""What the losses of a run tell, step by step: how far they are from guessing's, and whether that is progress."""

from __future__ import annotations

import math
from collections import deque

from gradstab.config.verdict_options import Thresholds
from gradstab.encoding import Vector

ROUNDING = 1e-6
# A loss this many times that of guessing has not stayed there.
ERRANT = 1.2
# The share of a step's level in the trend, which follows some twenty steps.
PACE = 0.05
# What levels are counted in where guessing's loss is not known.
FIRST_LOSS = "the first step"
# So many steps skipped in a row, or so many with a loss that is not finite, are no loss scaler's search for its factor.
STUCK_STEPS, BROKEN_LOSSES = 100, 5


class Losses:
    """The recent losses in units of guessing's, ``chance``; without it, the first stands in, or a constant output's.

    ``level`` is the recent loss over that of guessing, below it counted from the least; None if unknown, and once a
    loss was negative: then there is no least one that ratios could count from.
    ``best`` is the lowest level so far, up to ``progress``, and ``base`` says whose loss levels are counted in.
    ``trend`` follows the level slowly enough for no single batch to count, and ``lowest`` is the least that it was.
    ``lasting`` follows it over some ``patience`` steps, which noise does not take below guessing's; nothing counts in
    it as more than ``ERRANT``.
    """

    base = "guessing"
    level: float | None = None

    def __init__(self, t: Thresholds, chance: float | None, least: float) -> None:
        self.best, self.least = math.inf, least
        self.trend = self.lowest = self.lasting = 1.0
        if chance is None:
            self.base = FIRST_LOSS
        self._recent: deque[float] = deque(maxlen=t.loss_window)
        self._chance, self._mark, self._known = chance, math.inf, chance is not None
        self._progress, self._recovery, self._patience = t.progress, t.recovery, t.patience
        self._negative = False

    def clear(self) -> None:
        """What was added so far is no recent loss."""
        self._recent.clear()
        self.level = None

    def add(self, loss: float) -> bool:
        """Take in one step's loss; whether that is progress.

        A loss that comes down to guessing's has not learnt anything yet: above it, only a large share counts.
        """
        self._recent.append(loss)
        self._chance = loss if self._chance is None else self._chance
        self._negative |= loss < -ROUNDING * abs(self._chance)
        level = self.level = self._of_late(self._chance)
        if level is None:
            return False
        if level < (1 - self._progress) * self.best:
            self.best = level
        self.trend += PACE * (level - self.trend)
        self.lasting += (min(level, ERRANT) - self.lasting) / self._patience
        self.lowest = min(self.lowest, self.trend)
        # To come down to guessing's is none either, from wherever.
        limit = self._recovery * self._mark if level > 1 else (1 - self._progress) * min(self._mark, 1.0)
        if level >= limit and self._mark < math.inf:
            return False
        self._mark = level
        return True

    def take_constant(self) -> None:
        """By now outputs are all but the same, and the loss that of a constant one: at least the best constant's.

        Where guessing's is not known, it is better than the first step's to count in.
        """
        if self._known or self._chance is None or self.level is None or self.trend >= 1:
            return
        lower, self.base = self.trend, "a constant output"
        self._chance *= lower
        self.level, self.best, self.lowest = self.level / lower, self.best / lower, self.lowest / lower
        self.trend, self.lasting, self._mark = 1.0, min(self.lasting / lower, ERRANT), self._mark / lower

    def relative(self, loss: float) -> float:
        """A loss over that of guessing, which is known once a loss was added."""
        assert self._chance is not None
        return loss / self._chance

    def _of_late(self, chance: float) -> float | None:
        if chance <= 0 or self._negative:
            return None
        recent, room = sum(self._recent) / len(self._recent), chance - self.least
        if recent >= chance or room < ROUNDING * chance:
            return recent / chance
        return max(recent - self.least, 0.0) / room


class Recovery:
    """Whether an exploded network mends itself, which its loss alone does not tell.

    A loss that falls no faster than the activations shrink only follows their scale. In units of the last hidden
    layer's spread it tells of fewer errors, however large it still is: as long as it is no larger than at first, and
    falls to ``recovery`` of itself again and again.
    """

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None
        self._stage, self._at = math.inf, 0

    def goes_on(self, step: int, loss: float, level: float, spread: Vector, t: Thresholds) -> bool:
        """Take in a measured step's loss and recent loss, relative to guessing, and its layers' spreads."""
        last = float(spread[-1]) if len(spread) else math.nan
        error = level / last if 0 < last < math.inf and level > 0 else math.inf
        if self._first is None:
            self._first, self._stage = (loss, error), error
        if error < t.recovery * self._stage:
            self._stage, self._at = error, step
        first_loss, first_error = self._first
        fewer = error < t.recovery * first_error < math.inf
        return fewer and loss <= first_loss and step - self._at <= t.patience


class Skips:
    """The steps in a row that a loss scaler has skipped: up to when that is its work, and no sign of anything."""

    def __init__(self) -> None:
        self._skipped, self._broken = 0, 0

    def forgive(self, skipped: bool, loss: float | None) -> bool:
        """Whether the next step was skipped as scalers do: not for ever, nor for a loss that is itself inf or NaN."""
        self._skipped = self._skipped + 1 if skipped else 0
        self._broken = self._broken + 1 if skipped and loss is not None and not math.isfinite(loss) else 0
        return skipped and self._skipped < STUCK_STEPS and self._broken < BROKEN_LOSSES
