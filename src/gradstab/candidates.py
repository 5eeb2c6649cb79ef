"""What may mend a verdict, the smallest change first; whether it would is for theory to say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from gradstab.config import Config
from gradstab.config.optimizer_options import ADAPTIVE, DECOUPLED
from gradstab.measure.verdict import Verdict
from gradstab.paths import drawn_at_random, passing
from gradstab.rates import LEAST_RATE, TOO_LARGE, WILD, fit_of, fitting_rate, usual_if, usual_rate

ADAM_RATE = 0.001
# Fewer layers hardly need skip paths.
DEEP = 10
# Batch norm's statistics over fewer samples are noise.
LEAST_BATCH, USUAL_BATCH = 8, 32
# Far beyond what is usual (1e-4 to 1e-3): an adaptive optimizer follows a decay that outweighs the gradient.
LARGE_DECAY = 0.01
# A gradient that spans more passes at no rate.
HOPELESS = 5.0
# What is said to mend the gradient's path has to leave at most this share of its decades.
BETTER = 0.9

# What takes a network out of the rules on steps.
_STANDS_MORE = ("model.residual", "model.norm=batch")
_OF_THE_NETWORK = ("depth_span", "collapse", "forward_explosion")
_LOST = {"erratic", "relapse"}
_BORN = ("non_finite", "dead_fraction", "saturated_fraction")
# What steps that are too large leave behind.
_WRECKED = {"exploding", "non_finite", "dead_units", "saturated"}
_ABOUT_DEPTH = {"vanishing", "exploding", "saturated", "non_finite", "not_learning"}


@dataclass(frozen=True)
class Candidate:
    """Overrides, and why; theory has a word on those that are ``about_depth``, and is not waited for by ``first``.

    Those that are to mend the gradient's path through depth have to leave less than ``share`` of its decades. What is
    to be put right ``besides`` is no remedy by itself. Those about dropout's ``masks`` need no more than a signal.
    """

    overrides: tuple[str, ...]
    reason: str
    about_depth: bool = True
    first: bool = False
    share: float = math.inf
    besides: tuple[str, ...] = ()
    masks: bool = False


class Expected(NamedTuple):
    """What theory predicts: the depth factor, by how many decades a gradient changes, and whether a signal passes.

    ``room`` is the bound that a constraint needs to leave most of the weights as they are drawn, 0 without one.
    """

    factor: float
    decades: float
    sound: bool
    room: float = 0.0

    def steady(self, config: Config) -> bool:
        """Whether signals pass, and gradients keep their size."""
        return self.sound and self.decades < config.verdict.steady_decades


def candidates(
    config: Config, verdict: Verdict, now: Expected | None, typical_norm: float | None
) -> Iterator[Candidate]:
    """What is worth trying, the smallest change first; None for ``now`` where theory is silent."""
    steady = now is not None and now.steady(config)
    kinds, rules = set(verdict.labels), {finding.rule for finding in verdict.findings}
    if "identical_units" in rules:
        yield from (Candidate(*change) for change in drawn_at_random(config))
        return
    held = bool(kinds & {"vanishing", "not_learning"})
    room = now.room if now is not None else 0.0
    yield from _bounds_candidates(config, steady, dict(_far_bounds(config, typical_norm, room)) if held else {})
    # What is drawn otherwise needs another room.
    bounds = dict(_far_bounds(config, typical_norm, 0.0)) if held else {}
    # Steps that are known to be too large stay so, whatever the network.
    off = WILD if config.optimizer.name in ADAPTIVE or rules & {*TOO_LARGE, "overshoot"} else WILD**2
    slopes = Candidate(("act=leaky_relu",), "a slope below 0, so that no unit dies")
    killed = "dead_units" in kinds and config.act.name == "relu"
    # What exploded would explode with slopes below 0 all the sooner.
    if killed and "exploding" not in kinds:
        yield slopes
    yield from _path_candidates(config, verdict, steady, tuple(bounds), off)
    if killed and "exploding" in kinds:
        yield slopes
    # A network that is broken, dead or saturated before its first update is so at any rate.
    born = {f.kind for f in verdict.findings if f.first_step == 0 and f.rule in _BORN}
    updated = verdict.step > 0 and not born
    without_gradient = any(f.rule == "depth_span" and math.isinf(f.value) for f in verdict.findings)
    too_large = [f for f in verdict.findings if f.rule in TOO_LARGE]
    # An adaptive optimizer's steps keep their size however large gradients are.
    bounded = config.optimizer.name not in ADAPTIVE or not too_large
    if bounded and ("exploding" in kinds or ("non_finite" in kinds and updated)):
        limit = min(1.0, typical_norm or 1.0)
        if config.clip.name != "norm" or config.clip.knobs["max_norm"] > limit:
            reason = "bounds every step, whatever the gradient (Pascanu et al. 2013)"
            # With a rate that is far off, a bounded gradient still makes steps that are far too large.
            overrides = ("clip=norm", f"clip.max_norm={limit:.2g}", *usual_if(config, WILD))
            yield Candidate(overrides, reason, about_depth=False)
    yield from _rate_candidates(config, verdict, now, updated, without_gradient)
    if "decay" in rules or (kinds & {"vanishing", "not_learning"} and _decays(config)):
        reason = "no pull on the weights besides the gradient's"
        yield Candidate(("optimizer.weight_decay=0",), reason, about_depth=False, first="decay" in rules)
    slow = kinds & {"vanishing", "not_learning"} and not too_large and not without_gradient
    if slow and config.optimizer.name in ("sgd", "momentum", "nesterov", "coordinate_descent"):
        own_rate = config.optimizer.knobs["lr"] != usual_rate(config) or "optimizer.lr" in config.written
        overrides = ("optimizer=adam", *((f"optimizer.lr={ADAM_RATE:g}",) if own_rate else ()))
        # It would follow a large decay all the way to 0.
        overrides += ("optimizer.weight_decay=0",) if _decays(config) else ()
        reason = "steps of one size, however small or large the gradient"
        # One coordinate a step is slow at any rate.
        yield Candidate(overrides, reason, about_depth=False, first=config.optimizer.name == "coordinate_descent")
    if "not_learning" in kinds and config.model.knobs.get("depth", 0) >= DEEP:
        reason = "skip paths, with which networks stand larger steps"
        yield Candidate(("model.residual=scaled", *usual_if(config, off)), reason, about_depth=False)


def _path_candidates(
    config: Config, verdict: Verdict, steady: bool, bounds: tuple[str, ...], off: float
) -> Iterator[Candidate]:
    """Networks through which signal and gradient pass; with a rate that is ``off``, none learns before that is mended.

    Nor does a chain at one whose steps are too large for its depth.
    """
    kinds, rules = set(verdict.labels), {finding.rule for finding in verdict.findings}
    usual = usual_if(config, off)
    # Of a gradient that explodes, the first step says nothing about those of a network where it does not.
    chains = usual or (() if "exploding" in kinds else fitting_rate(config, verdict))
    if "lost_in_dropout" in rules:
        yield Candidate(("model.dropout=0",), "no masks, no noise", besides=chains, masks=True)
        yield Candidate(
            ("model.residual=scaled",), "skip paths carry the signal past the masks", besides=usual, masks=True
        )
    if kinds & _ABOUT_DEPTH and not steady:
        for overrides, reason in passing(config, "exploding" in kinds):
            rate = usual if any(word.startswith(_STANDS_MORE) for word in overrides) else chains
            yield Candidate(overrides, reason, besides=(*rate, *bounds), share=BETTER)


def _rate_candidates(
    config: Config, verdict: Verdict, now: Expected | None, updated: bool, without_gradient: bool
) -> Iterator[Candidate]:
    """Smaller steps or larger ones, by what the verdict says of those that were made.

    A rate that the first step shows to be wrong, and that is far from usual besides, comes first, unless the network
    would be no better for another.
    """
    kinds, rules = set(verdict.labels), {finding.rule for finding in verdict.findings}
    steady = now is not None and now.steady(config)
    # Such a network fails at any rate.
    born = any(f.first_step == 0 and f.rule in _OF_THE_NETWORK for f in verdict.findings)
    unsound = now is not None and not steady and (born or now.decades > HOPELESS)
    rate, usual = config.optimizer.knobs["lr"], usual_rate(config)
    high, killed = rate >= WILD * usual, updated and "dead_units" in kinds
    too_large = [f for f in verdict.findings if f.rule in TOO_LARGE]
    fit = fit_of(verdict)
    # What is wrecked, or has no gradient, hardly moves at any rate.
    tiny = [f for f in verdict.findings if f.rule == "tiny_updates" and not (without_gradient or kinds & _WRECKED)]
    harmless = "tiny_updates" in rules and rate <= usual and fit >= 1
    stuck = rules == {"plateau"} and steady and verdict.findings[0].value < 1.05
    if too_large:
        # A step many times as large as the weights is no matter of paths.
        wild = "overshoot" in rules or too_large[0].value >= WILD * too_large[0].threshold
        if words := fitting_rate(config, verdict):
            reason = "steps that a chain of this depth stands"
            at_once = high and (wild or killed or rate >= WILD**2 * usual)
            yield Candidate(words, reason, about_depth=False, first=at_once and not unsound)
        if not wild:
            yield Candidate(("model.residual=scaled",), "skip paths, with which networks stand larger steps")
    elif tiny and config.schedule.name != "constant" and rate > usual / WILD:
        yield Candidate(("schedule=constant",), "a rate that stays as large as it is at first", about_depth=False)
    elif (any(f.value > 0 for f in tiny) or stuck) and not high:
        missing = min(max([10.0, *(f.threshold / f.value for f in tiny)]), 1e300)
        larger = min(max(rate * 10.0 ** math.ceil(math.log10(missing)), usual), WILD * usual)
        yield Candidate((f"optimizer.lr={larger:.3g}",), "larger steps", about_depth=False)
    elif updated and not harmless and fit > LEAST_RATE and (kinds & _WRECKED or rules & _LOST or rules == {"plateau"}):
        smaller = rate * min(0.1, fit)
        # Steps of an adaptive optimizer are as large as its rate says, whatever the loss.
        wild = high and (fit < 1 or killed or config.optimizer.name in ADAPTIVE)
        words = (f"optimizer.lr={min(smaller, usual) if wild else smaller:.2g}",)
        yield Candidate(words, "smaller steps", about_depth=False, first=wild and not unsound)


def _bounds_candidates(config: Config, steady: bool, bounds: Mapping[str, str]) -> Iterator[Candidate]:
    """More samples for batch norm, and usual values for bounds; where the network itself is sound, those come first."""
    if config.model.knobs.get("norm") == "batch" and config.batch < min(LEAST_BATCH, config.n_train):
        size = min(USUAL_BATCH, config.n_train)
        yield Candidate((f"batch_size={size}",), "enough samples for batch norm", about_depth=False, first=True)
    for override, reason in bounds.items():
        yield Candidate((override,), reason, about_depth=False, first=steady)


def _far_bounds(config: Config, typical_norm: float | None, room: float) -> Iterator[tuple[str, str]]:
    """The usual value of what keeps weights from moving where it is set far out, and what that gives.

    That is clipping, a penalty, a constraint; of the latter at least the ``room`` that the drawn weights take.
    """
    reasons = (
        ("clip", "max_norm", "leaves gradients more of their size"),
        ("clip", "max_value", "leaves gradients more of their size"),
        ("clip", "clipping", "leaves gradients more of their size"),
        ("penalty", "strength", "a weaker pull on the weights"),
        ("constraint", "bound", "leaves weights more room"),
    )
    for group, knob, reason in reasons:
        option = getattr(config, group)
        if knob not in option.knobs:
            continue
        value, usual = option.knobs[knob], type(option)(option.name).knobs[knob]
        # Weights that are far out themselves are not to be given room.
        room = room if room < WILD * usual else 0.0
        if group == "constraint" and (value <= usual / WILD or value < room / 6):
            yield f"constraint.bound={max(usual, float(f'{room:.2g}')):g}", reason
            continue
        # What is clipped to more than gradients are does nothing.
        idle = group == "clip" and option.name == "norm" and typical_norm is not None and typical_norm < value
        if not idle and (value >= WILD * usual if knob == "strength" else value <= usual / WILD):
            yield f"{group}.{knob}={usual:g}", reason


def _decays(config: Config) -> bool:
    """Whether weights are pulled towards 0 through the gradient, by enough to stand in the place of a small one."""
    return config.optimizer.name not in DECOUPLED and config.optimizer.knobs.get("weight_decay", 0.0) >= LARGE_DECAY
