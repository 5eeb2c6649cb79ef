"""The rules of a verdict that look at the loss, the steps and their size, rather than along the layers."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from gradstab.config.verdict_options import Thresholds
from gradstab.events import Vector
from gradstab.measure.rules import SINGLE, Holding, Profile

# A loss this many times that of guessing has not stayed there.
ERRANT = 1.2
ROUNDING = 1e-6
# The share of the weights that steps have to move within `patience` for their direction to matter.
TAKEN = 0.1


@dataclass(frozen=True)
class Course:
    """How the loss and the gradient went up to now.

    ``level`` is the recent mean loss over that of guessing; ``first`` before any update, ``recovering`` where the error
    has fallen since then. ``log_norms`` are the logarithms of the last steps' global gradient norms, and ``least`` is
    the smallest loss there can be. ``base`` is what levels are counted in.
    """

    level: float
    first: bool
    recovering: bool
    log_norms: Collection[float]
    least: float = 0.0
    base: str = "guessing"


class Losses:
    """The recent losses in units of guessing's, ``chance``; without it, the first one stands in.

    ``best`` is the lowest level so far, up to ``progress``, and ``base`` says whose loss levels are counted in.
    """

    base = "guessing"

    def __init__(self, t: Thresholds, chance: float | None, least: float) -> None:
        self.best, self.least = math.inf, least
        if chance is None:
            self.base = "the first step"
        self._recent: deque[float] = deque(maxlen=t.loss_window)
        self._chance, self._mark = chance, math.inf
        self._progress, self._recovery = t.progress, t.recovery

    def clear(self) -> None:
        """What was added so far is no recent loss."""
        self._recent.clear()

    def add(self, loss: float) -> bool:
        """Take in one step's loss; whether that is progress.

        A loss that comes down to guessing's has not learnt anything yet: above it, only a large share counts.
        """
        self._recent.append(loss)
        self._chance = loss if self._chance is None else self._chance
        level = self.level
        if level is None:
            return False
        if level < (1 - self._progress) * self.best:
            self.best = level
        if level >= (1 - self._progress if level <= 1 else self._recovery) * self._mark:
            return False
        self._mark = level
        return True

    def relative(self, loss: float) -> float:
        """A loss over that of guessing, which is known once a loss was added."""
        assert self._chance is not None
        return loss / self._chance

    @property
    def level(self) -> float | None:
        """The recent loss over that of guessing, below it counted from the least; None if unknown or negative."""
        if not self._recent or self._chance is None or self._chance <= 0:
            return None
        recent, room = sum(self._recent) / len(self._recent), self._chance - self.least
        if recent >= self._chance or room < ROUNDING * self._chance:
            return recent / self._chance
        return max(recent - self.least, 0.0) / room if recent >= 0 else None


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


def course_rules(course: Course, t: Thresholds) -> list[Holding]:
    """What the loss and the gradient's size tell at a step that leaves the loss on the plateau or above."""
    found = _forward_explosion(course, t)
    where = "has stayed" if course.level < ERRANT else "is"
    counted = f", counting from the least possible, {course.least:.3g}" if course.least and course.level < 1 else ""
    text = f"the loss {where} at {course.level:.3g} times that of {course.base}{counted}, without progress"
    value, unit = course.level, _times(course)
    found.append(
        Holding("not_learning", "plateau", "train/loss", value, t.plateau, "plateau", text, needs=t.patience, unit=unit)
    )
    return found + _erratic(course, t)


def step_rules(profile: Profile, loss: float | None, t: Thresholds) -> list[Holding]:
    """What the size of one measured step tells."""
    if "update_ratio" not in profile.vectors:
        return []
    if profile.first:
        return [] if profile.projected else _overshoot(profile, loss, t) + _large_steps(profile, t)
    return (_tiny_updates(profile, t) if profile.stalled else []) + _outweighed(profile, t)


def _forward_explosion(course: Course, t: Thresholds) -> list[Holding]:
    """The loss is far above that of guessing, and stays there."""
    limit, key = (t.init_loss_ratio, "init_loss_ratio") if course.first else (t.loss_ratio, "loss_ratio")
    if course.level <= limit or course.recovering:
        return []
    text = f"the loss is {course.level:.3g} times that of {course.base}: the signal exploded on its way forward"
    rule, value, unit = "forward_explosion", course.level, _times(course)
    return [Holding("exploding", rule, "train/loss", value, limit, key, text, about_depth=True, unit=unit)]


def _times(course: Course) -> str:
    return f"× {course.base}'s"


def _erratic(course: Course, t: Thresholds) -> list[Holding]:
    """Each step finds another gradient than the one before left, and none of them lowers the loss."""
    if len(course.log_norms) <= t.jump_window or course.level <= 1 - t.progress:
        return []
    jump = math.sqrt(sum([(b - a) ** 2 for a, b in pairwise(course.log_norms)]) / (len(course.log_norms) - 1))
    if jump <= math.log(t.jump):
        return []
    factor = math.exp(min(jump, 700.0))
    loss = "stays where it was" if course.level < ERRANT else f"is {course.level:.3g} times that of {course.base}"
    text = (
        f"the gradient's norm changes by a factor of {factor:.2g} from step to step, and the loss {loss}: steps lead "
        "out of the region where their gradient holds"
    )
    needs, unit = t.jump_persistence, "× per step"
    return [Holding("not_learning", "erratic", "grad_norm", factor, t.jump, "jump", text, needs=needs, unit=unit)]


def _overshoot(profile: Profile, loss: float | None, t: Thresholds) -> list[Holding]:
    """By its own gradient, the first step would lower the loss by many times what there is of it."""
    gradients, weights = profile.vectors.get("grad_norm"), profile.vectors.get("weight_norm")
    # A loss beyond single precision is only known to be large, and is no measure.
    if gradients is None or weights is None or profile.adaptive or loss is None or not 0 < loss < SINGLE:
        return []
    # A plain step points along the gradient, so that norms multiply; how large it was, clipping included, is measured.
    with np.errstate(all="ignore"):
        value = float((gradients * weights * profile.vectors["update_ratio"]).sum()) / loss
    if not t.overshoot < value < math.inf:
        return []
    text = f"by its own gradient the first step lowers the loss by {value:.3g} times its size: far beyond its reach"
    name, unit = "overshoot", "× the loss"
    return [Holding("exploding", name, "update_ratio", value, t.overshoot, name, text, unit=unit)]


def _large_steps(profile: Profile, t: Thresholds) -> list[Holding]:
    """Each layer's change disturbs all those behind it: what a deep chain stands of it is little."""
    ratios, weights = profile.vectors["update_ratio"][: profile.hidden], profile.vectors.get("weight_norm")
    if weights is not None:
        # Of weights that were 0, any step is inf times their size.
        ratios = ratios[weights[: profile.hidden] > 0]
    if not profile.step_scale or not len(ratios):
        return []
    mean = float(ratios.mean())
    value = mean * profile.step_scale
    if not value > t.scaled_step:
        return []
    text = (
        f"the first step changes a layer by {mean:.2g} of its size, {value:.3g} when weighed by depth^1.5 and by how "
        f"steps grow: more than a chain of {profile.hidden} layers stands without skip paths"
    )
    rule, unit = "large_steps", "weighed"
    return [Holding("not_learning", rule, "update_ratio", value, t.scaled_step, "scaled_step", text, unit=unit)]


def _outweighed(profile: Profile, t: Thresholds) -> list[Holding]:
    """Weight decay, and not the loss, decides where weights go, and steps are large enough to take them there."""
    weights = profile.vectors.get("weight_norm")
    gradients = profile.vectors.get("grad_norm_post_clip", profile.vectors.get("grad_norm"))
    if not profile.decay or weights is None or gradients is None:
        return []
    moved = (weights > 0) & (gradients > 0)
    if not moved.any() or not np.median(profile.vectors["update_ratio"][moved]) * t.patience >= TAKEN:
        return []
    with np.errstate(all="ignore"):
        value = float((profile.decay * weights[moved] / gradients[moved]).min())
    if not t.decay_ratio < value < math.inf:
        return []
    text = (
        f"in every layer, weight decay pulls at least {value:.3g} times as hard as the loss's gradient: steps take the "
        "weights away"
    )
    rule, unit = "decay", "× the gradient's"
    return [Holding("not_learning", rule, "weight_norm", value, t.decay_ratio, "decay_ratio", text, unit=unit)]


def _tiny_updates(profile: Profile, t: Thresholds) -> list[Holding]:
    """No layer moves, and the loss shows it."""
    if profile.rising:
        return []
    value = float(profile.vectors["update_ratio"].max())
    if not value < t.update_ratio:
        return []
    loss = f"the loss is no better than {profile.base}'s"
    text = f"no layer changes by more than {value:.2g} of its size in a step, and {loss}"
    # The last step of a schedule that ends at 0 tells nothing; several in a row do.
    needs = 2 if profile.fallen else 1
    return [
        Holding(
            "not_learning", "tiny_updates", "update_ratio", value, t.update_ratio, "update_ratio", text, needs=needs
        )
    ]
