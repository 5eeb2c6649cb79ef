"""The rules of a verdict that look at the loss, the steps and their size, rather than along the layers."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from gradstab.config.verdict_options import Thresholds
from gradstab.measure.broken import SINGLE
from gradstab.measure.losses import ERRANT, Losses
from gradstab.measure.rules import Holding, Profile

# The share of its trend that a loss which falls steeply is at.
FALLING = 0.5
# The share of the weights that steps have to move within `patience` for their direction to matter.
TAKEN = 0.1


@dataclass(slots=True)
class Course:
    """How the loss and the gradient went up to now.

    ``level`` is the recent mean loss over that of guessing; ``first`` before any update, ``recovering`` where the error
    has fallen since then, ``identical`` where hidden units started as copies of one another. ``log_norms`` are the
    logarithms of the last steps' global gradient norms, and ``losses`` those seen so far.
    """

    level: float
    first: bool
    recovering: bool
    identical: bool
    log_norms: Collection[float]
    losses: Losses

    @property
    def base(self) -> str:
        """What levels are counted in."""
        return self.losses.base


def course_rules(course: Course, t: Thresholds) -> list[Holding]:
    """What the loss and the gradient's size tell at a step whose loss is far from learnt."""
    found = _relapse(course, t) + _identical_units(course)
    # Of batches that differ much, some are always below; on a plateau those of a long time are not.
    value = max(course.level, course.losses.lasting)
    if value <= t.plateau:
        return found
    found += _forward_explosion(course, t)
    where = "has stayed" if value < ERRANT else "is"
    counted = (
        f", counting from the least possible, {course.losses.least:.3g}" if course.losses.least and value < 1 else ""
    )
    text = f"the loss {where} at {value:.3g} times that of {course.base}{counted}, without progress"
    unit = _times(course)
    found.append(
        Holding("not_learning", "plateau", "train/loss", value, t.plateau, "plateau", text, needs=t.patience, unit=unit)
    )
    return found + _erratic(course, t)


def step_rules(profile: Profile, loss: float | None, t: Thresholds) -> list[Holding]:
    """What the size of one measured step tells."""
    if "update_ratio" not in profile.vectors:
        return []
    if profile.first:
        large = [] if profile.projected else _overshoot(profile, loss, t) + _large_steps(profile, t)
        return large + _tiny_updates(profile, t)
    deep = [] if profile.projected else _deep_steps(profile, t)
    return (_tiny_updates(profile, t) if profile.stalled else []) + deep + _outweighed(profile, t)


def _forward_explosion(course: Course, t: Thresholds) -> list[Holding]:
    """The loss is far above that of guessing, and stays there."""
    limit, key = (t.init_loss_ratio, "init_loss_ratio") if course.first else (t.loss_ratio, "loss_ratio")
    if course.level <= limit or course.recovering:
        return []
    text = f"the loss is {course.level:.3g} times that of {course.base}: the signal exploded on its way forward"
    rule, value, unit = "forward_explosion", course.level, _times(course)
    return [Holding("exploding", rule, "train/loss", value, limit, key, text, about_depth=True, unit=unit)]


def _relapse(course: Course, t: Thresholds) -> list[Holding]:
    """What had been learnt is lost again."""
    # A single spike stays in the trend for long, and no longer in the level.
    trend, lowest = min(course.level, course.losses.trend), course.losses.lowest
    if not t.learnt < trend < math.inf or lowest > t.plateau:
        return []
    value = trend / lowest if lowest else math.inf
    if value <= t.relapse:
        return []
    text = (
        f"the loss is {trend:.3g} times that of {course.base}, after it had come down to {lowest:.3g} "
        "times: what was learnt is lost"
    )
    # Longer than one loss counts in the level.
    needs, unit = 2 * t.loss_window, "× its lowest"
    return [Holding("not_learning", "relapse", "train/loss", value, t.relapse, "relapse", text, needs=needs, unit=unit)]


def _identical_units(course: Course) -> list[Holding]:
    """Whatever is learnt, all units of a layer learn the same."""
    if not course.identical:
        return []
    text = (
        "all weights of a layer start as one number, so that its units are copies of one another and get the same "
        "gradient at every step: a layer is worth one unit, whatever its width, until they are drawn at random"
    )
    rule, unit = "identical_units", "different unit in each layer"
    return [Holding("not_learning", rule, "weights", 1.0, math.inf, "", text, unit=unit)]


def _times(course: Course) -> str:
    return f"× {course.base}'s"


def _erratic(course: Course, t: Thresholds) -> list[Holding]:
    """Each step finds another gradient than the one before left, and none of them lowers the loss."""
    if len(course.log_norms) <= t.jump_window or course.level <= 1 - t.progress:
        return []
    # A loss that falls as fast as this is not what such steps leave behind.
    if course.level < FALLING * course.losses.trend:
        return []
    norms = list(course.log_norms)
    jump = math.dist(norms[1:], norms[:-1]) / math.sqrt(len(norms) - 1)
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
    mean = _mean_step(profile)
    value = mean * profile.step_scale
    if not value > t.scaled_step:
        return _deep_steps(profile, t)
    text = (
        f"the first step changes a layer by {mean:.2g} of its size, {value:.3g} when weighed by depth^1.5 and by how "
        f"steps grow: more than a chain of {profile.hidden} layers stands without skip paths"
    )
    rule, unit = "large_steps", "weighed"
    return [Holding("not_learning", rule, "update_ratio", value, t.scaled_step, "scaled_step", text, unit=unit)]


def _deep_steps(profile: Profile, t: Thresholds) -> list[Holding]:
    """A chain that learns by steps this large for its depth soon loses what it has learnt."""
    mean = _mean_step(profile)
    if profile.first:
        which, how, key = "the first step", " and by how steps grow", "init_deep_step"
        value = mean * profile.step_scale * profile.hidden
    else:
        which, how, key = "a step", "", "deep_step"
        value = mean * profile.hidden**2.5
    limit: float = getattr(t, key)
    if not limit < value < math.inf:
        return []
    text = (
        f"{which} changes a layer by {mean:.2g} of its size, {value:.3g} when weighed by depth^2.5{how}: a chain of "
        f"{profile.hidden} layers without skip paths soon loses what it learns by such steps"
    )
    return [Holding("not_learning", "deep_steps", "update_ratio", value, limit, key, text, unit="weighed")]


def _mean_step(profile: Profile) -> float:
    """The mean over hidden layers of what a step changes of each; 0 where theory has no word on steps."""
    ratios, weights = profile.vectors["update_ratio"][: profile.hidden], profile.vectors.get("weight_norm")
    if profile.first and weights is not None:
        # Of weights that were 0, any step is inf times their size.
        ratios = ratios[weights[: profile.hidden] > 0]
    return float(ratios.mean()) if profile.step_scale and len(ratios) else 0.0


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
    """No layer moves, and the loss shows it, or will."""
    if profile.rising:
        return []
    key = "init_update_ratio" if profile.first else "update_ratio"
    value, limit = float(profile.vectors["update_ratio"].max()), float(getattr(t, key))
    if not value < limit:
        return []
    loss = "thousands of such steps change nothing" if profile.first else f"the loss is no better than {profile.base}'s"
    text = f"no layer changes by more than {value:.2g} of its size in a step, and {loss}"
    # The last step of a schedule that ends at 0 tells nothing; several in a row do.
    needs = 2 if profile.fallen else 1
    return [Holding("not_learning", "tiny_updates", "update_ratio", value, limit, key, text, needs=needs)]
