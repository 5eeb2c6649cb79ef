"""What may mend a verdict, as overrides to paste behind the command; theory says which of them it expects to work."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gradstab.config import Config, from_hydra, to_container
from gradstab.config.optimizer_options import ADAPTIVE
from gradstab.config.registry import Option
from gradstab.errors import ConfigError
from gradstab.expectation import Inputs, expect, signal_share
from gradstab.measure.rules import WHOLE_RANGE
from gradstab.measure.verdict import HEALTHY, Remedy, Verdict
from gradstab.theory import NoTheory, activation, critical_point, half_stable_point

MOST = 6
ADAM_RATE = 0.001
# Mean squares of pre-activations beyond which an activation has little of its input left to answer to.
LONG = 25.0

# Steps so many times larger than a chain stands are too large for any network.
WILD = 10.0
# Where the rate would have to be less than this share of what it is, it is not the rate that is wrong.
LEAST_RATE = 1e-4

_BORN = ("non_finite", "dead_fraction", "saturated_fraction")
_ABOUT_DEPTH = {"vanishing", "exploding", "saturated", "non_finite", "not_learning"}


@dataclass(frozen=True)
class _Candidate:
    overrides: tuple[str, ...]
    reason: str
    about_depth: bool = True


def remedies_for(
    config: Config,
    inputs: Inputs,
    verdict: Verdict,
    *,
    correlations: tuple[float, float] | None = None,
    typical_norm: float | None = None,
) -> tuple[Remedy, ...]:
    """At most six remedies, those that mean-field theory expects to work first, the smallest change before others.

    Each can be pasted behind the command that made ``config``: what its knobs would make invalid is not offered.
    Changes to the network come with the depth factor that theory predicts for them, and only where that is steady over
    the depth, lengths stay moderate and dropout leaves a signal. Without theory, only changes to rates, clipping and
    optimizers are offered, and to LeNet-5's initial weights and norm. ``typical_norm`` is the global gradient norm of
    the first steps, which a clipping threshold goes by.
    """
    if verdict.labels == (HEALTHY,):
        return ()
    now = _predicted(config, inputs, correlations)
    steady = now is not None and abs(_decades(config, now)) < config.verdict.steady_decades
    proven: list[tuple[float, Remedy]] = []
    unproven: list[Remedy] = []
    others: list[Remedy] = []
    tried: list[Config] = []
    for candidate in _candidates(config, verdict, steady, typical_norm):
        changed = _applied(config, candidate.overrides)
        if changed is None or changed in tried:
            continue
        tried.append(changed)
        if not candidate.about_depth:
            others.append(Remedy(candidate.overrides, candidate.reason))
        elif _is_lenet(config):
            # Theory would need the pooling windows' correlations in the changed network.
            if not candidate.overrides[0].startswith("model.residual"):
                unproven.append(Remedy(candidate.overrides, candidate.reason))
        elif (factor := _predicted(changed, inputs, None)) is not None:
            decades = abs(_decades(changed, factor))
            if decades < config.verdict.remedy_decades:
                remedy = Remedy(candidate.overrides, candidate.reason, factor)
                proven.append((max(decades, config.verdict.steady_decades), remedy))
    ranked = [remedy for _, remedy in sorted(proven, key=lambda pair: pair[0])]
    return (*[*ranked, *unproven][: MOST - len(others)], *others)


def _candidates(config: Config, verdict: Verdict, steady: bool, typical_norm: float | None) -> Iterator[_Candidate]:
    """What is worth trying, the smallest change first."""
    kinds, rules = set(verdict.labels), {finding.rule for finding in verdict.findings}
    if "dead_units" in kinds and config.act.name == "relu":
        yield _Candidate(("act=leaky_relu",), "a slope below 0, so that no unit dies")
    if "lost_in_dropout" in rules:
        yield _Candidate(("model.dropout=0",), "no masks, no noise")
        yield _Candidate(("model.residual=scaled",), "skip paths carry the signal past the masks")
    if kinds & _ABOUT_DEPTH and not steady:
        yield from _depth_candidates(config)
    # A network that is broken, dead or saturated before its first update is so at any rate.
    born = {f.kind for f in verdict.findings if f.first_step == 0 and f.rule in _BORN}
    updated = verdict.step > 0 and not born
    without_gradient = any(f.rule == "depth_span" and f.value >= WHOLE_RANGE for f in verdict.findings)
    too_large = [f for f in verdict.findings if f.rule == "large_steps"]
    # An adaptive optimizer's steps keep their size however large gradients are.
    bounded = config.optimizer.name not in ADAPTIVE or not too_large
    if bounded and ("exploding" in kinds or ("non_finite" in kinds and updated)):
        limit = min(1.0, typical_norm or 1.0)
        if config.clip.name != "norm" or config.clip.knobs["max_norm"] > limit:
            reason = "bounds every step, whatever the gradient (Pascanu et al. 2013)"
            yield _Candidate(("clip=norm", f"clip.max_norm={limit:.2g}"), reason, about_depth=False)
    rate = config.optimizer.knobs["lr"]
    tiny = [f.threshold / f.value for f in verdict.findings if f.rule == "tiny_updates" and f.value > 0]
    if too_large:
        # Half of what the rules let pass.
        fit = min(f.threshold / f.value for f in verdict.findings if f.rule in ("large_steps", "overshoot")) / 2
        if fit > LEAST_RATE:
            reason = "steps that a chain of this depth stands"
            yield _Candidate((f"optimizer.lr={float(f'{rate * fit:.1g}'):g}",), reason, about_depth=False)
        # A step many times as large as the weights is no matter of paths.
        if "overshoot" not in rules and too_large[0].value < WILD * too_large[0].threshold:
            yield _Candidate(("model.residual=scaled",), "skip paths, with which networks stand larger steps")
    elif "tiny_updates" in rules and config.schedule.name != "constant":
        yield _Candidate(("schedule=constant",), "a rate that stays as large as it is at first", about_depth=False)
    elif tiny or (rules == {"plateau"} and steady and verdict.findings[0].value < 1.05):
        larger = 10.0 ** max(1, math.ceil(math.log10(max([1.0, *tiny]))))
        yield _Candidate((f"optimizer.lr={rate * larger:.3g}",), "larger steps", about_depth=False)
    elif updated and (
        kinds & {"exploding", "non_finite", "dead_units", "saturated"} or rules == {"plateau"} or "erratic" in rules
    ):
        yield _Candidate((f"optimizer.lr={rate / 10:.3g}",), "smaller steps", about_depth=False)
    slow = kinds & {"vanishing", "not_learning"} and not too_large and not without_gradient
    if slow and config.optimizer.name in ("sgd", "momentum", "nesterov"):
        own_rate = rate != type(config.optimizer)(config.optimizer.name).knobs["lr"] or "optimizer.lr" in config.written
        overrides = ("optimizer=adam", *((f"optimizer.lr={ADAM_RATE:g}",) if own_rate else ()))
        yield _Candidate(overrides, "steps of one size, however small the gradient", about_depth=False)


def _depth_candidates(config: Config) -> Iterator[_Candidate]:
    """Networks whose gradient may pass: first the same one drawn otherwise, then others."""
    # Behind a norm the scale of weights means nothing.
    initial = _critical_overrides(config) if config.model.knobs.get("norm", "none") == "none" else ()
    if initial:
        yield _Candidate(initial, "weights at the activation's edge of chaos, where the gradient keeps its size")
    yield _Candidate(("model.residual=scaled",), "skip paths, branches scaled by 1/√blocks")
    yield _Candidate(("model.residual=rezero",), "skip paths, branches that start at 0")
    if initial:
        yield _Candidate(("model.residual=scaled", *initial), "skip paths and critical weights")
    yield _Candidate(("model.norm=layer",), "normalised pre-activations")
    yield _Candidate(("model.norm=batch",), "pre-activations normalised over the batch")
    reset = _gain_reset(config)
    yield _Candidate(("act=relu", "init=kaiming_normal", *reset), "the pair that keeps variances")
    yield _Candidate(("act=tanh", "init=critical", *reset), "a bounded activation at its edge of chaos")


def _critical_overrides(config: Config) -> tuple[str, ...]:
    """How to draw at the edge of chaos, in words that leave the command's others valid; () where there is no edge.

    Where the edge is unstable without biases (GELU, SiLU, Mish), it is taken beyond the half-stable point.
    """
    reset = _gain_reset(config)
    knobs = config.init.knobs
    try:
        phi = activation(config.act.name, **config.act.knobs)
        half = half_stable_point(phi)
        sigma_b2 = knobs.get("sigma_b2", 0.0)
        if half is not None and sigma_b2 < half.sigma_b2 and config.model.knobs.get("bias", True):
            sigma_b2 = round(1.15 * half.sigma_b2, 2)
        point = critical_point(phi, sigma_b2)
    except NoTheory:
        return ()
    biases = (f"init.sigma_b2={sigma_b2:g}",) if sigma_b2 != knobs.get("sigma_b2", 0.0) else ()
    if config.init.name not in ("variance", "normal", "uniform"):
        return ("init=critical", *biases, *reset) if config.init.name != "critical" else (*biases, *reset)
    variance = point.sigma_w2 * (1 - config.model.knobs.get("dropout", 0.0))
    if config.init.name == "variance":
        return (f"init.sigma_w2={variance:.6g}", *biases, *reset)
    width = config.model.knobs.get("width")
    if not isinstance(width, int) or biases:
        return ()
    knob, value = ("std", variance / width) if config.init.name == "normal" else ("bound", 3 * variance / width)
    return (f"init.{knob}={math.sqrt(value):.4g}", *reset)


def _gain_reset(config: Config) -> tuple[str, ...]:
    return ("init.gain=1",) if config.init.knobs["gain"] != 1 else ()


def _is_lenet(config: Config) -> bool:
    return config.model.name != "deep_mlp"


def _applied(config: Config, overrides: Sequence[str]) -> Config | None:
    """The configuration with overrides behind its own words; None where that is refused or changes nothing.

    A group's other option meets the knobs that were set for the present one, as on the command line.
    """
    container: dict[str, Any] = to_container(config)
    for override in overrides:
        key, _, value = override.partition("=")
        group, _, knob = key.partition(".")
        if knob:
            container[group][knob] = _parsed(value)
        elif container[group]["name"] != value:
            option: Option = getattr(config, group)
            defaults = type(option)(option.name).knobs
            # The command's own words meet the other option, be they the present one's defaults or not.
            said = {name for name in option.knobs if f"{group}.{name}" in config.written}
            kept = {name: set_to for name, set_to in option.knobs.items() if set_to != defaults[name] or name in said}
            container[group] = {**kept, "name": value}
    try:
        changed = from_hydra(container)
    except ConfigError:
        return None
    return None if changed == config else changed


def _parsed(value: str) -> Any:
    try:
        return float(value)
    except ValueError:
        return value


def _predicted(config: Config, inputs: Inputs, correlations: tuple[float, float] | None) -> float | None:
    """The depth factor that theory predicts; None without theory, and where no signal would come of it all the same."""
    try:
        prediction = expect(config, inputs, correlations)
    except NoTheory:
        return None
    share = signal_share(config, inputs)
    lost = share is not None and share < config.verdict.signal_share
    factor = prediction.depth_factor
    sound = math.isfinite(factor) and factor > 0 and not lost and float(prediction.q.max()) < LONG**2
    return factor if sound else None


def _decades(config: Config, factor: float) -> float:
    hidden: int = config.model.knobs.get("depth", 4)
    return (hidden - 1) * math.log10(factor)
