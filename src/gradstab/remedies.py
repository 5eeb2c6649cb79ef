"""What may mend a verdict, as overrides to paste behind the command; theory says which of them it expects to work."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gradstab.config import Config, from_hydra, to_container
from gradstab.config.registry import Option
from gradstab.errors import ConfigError
from gradstab.expectation import Inputs, expect
from gradstab.measure.verdict import HEALTHY, Remedy, Verdict
from gradstab.theory import NoTheory, activation, critical_point

MOST, MOST_OTHERS = 6, 3
# Decades over the whole depth that are as good as none, and that a remedy may leave at most.
STEADY, USEFUL = 1.0, 2.0

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

    Each can be pasted behind the command that made ``config``. Changes to the network are offered with the depth
    factor that theory predicts for them, and only where it is steady; those on which theory has no word follow.
    ``typical_norm`` is the global gradient norm of the first steps, which a clipping threshold goes by.
    """
    if verdict.labels == (HEALTHY,):
        return ()
    now = _predicted(config, inputs, correlations)
    steady = now is not None and abs(_decades(config, now)) < STEADY
    proven: list[tuple[float, Remedy]] = []
    others: list[Remedy] = []
    tried: list[Config] = []
    for candidate in _candidates(config, verdict, steady, typical_norm):
        changed = _applied(config, candidate.overrides)
        if changed is None or changed in tried:
            continue
        tried.append(changed)
        factor = _predicted(changed, inputs, correlations) if candidate.about_depth else None
        remedy = Remedy(candidate.overrides, candidate.reason, factor)
        if factor is None:
            others.append(remedy)
        elif abs(decades := _decades(changed, factor)) < USEFUL:
            proven.append((max(abs(decades), STEADY), remedy))
    ranked = [remedy for _, remedy in sorted(proven, key=lambda pair: pair[0])]
    others = others[:MOST_OTHERS]
    return (*ranked[: MOST - len(others)], *others)


def _candidates(config: Config, verdict: Verdict, steady: bool, typical_norm: float | None) -> Iterator[_Candidate]:
    """What is worth trying, the smallest change first."""
    kinds = set(verdict.labels)
    rate = config.optimizer.knobs["lr"]
    slower = _Candidate((f"optimizer.lr={rate / 10:.3g}",), "smaller steps", about_depth=False)
    if "dead_units" in kinds and config.act.name == "relu":
        yield _Candidate(("act=leaky_relu",), "a slope below 0, so that no unit dies")
    if any(finding.rule == "lost_in_dropout" for finding in verdict.findings):
        yield _Candidate(("model.dropout=0",), "no masks, no noise")
        yield _Candidate(("model.residual=scaled",), "skip paths carry the signal past the masks")
    if kinds & _ABOUT_DEPTH and not steady:
        yield from _depth_candidates(config)
    if kinds & {"exploding", "non_finite"}:
        limit = min(1.0, typical_norm or 1.0)
        reason = "bounds every step, whatever the gradient (Pascanu et al. 2013)"
        yield _Candidate(("clip=norm", f"clip.max_norm={limit:.2g}"), reason, about_depth=False)
        yield slower
    if kinds & {"dead_units", "saturated"}:
        yield slower
    if "not_learning" in kinds and steady:
        yield _Candidate((f"optimizer.lr={rate * 10:.3g}",), "larger steps", about_depth=False)
        yield slower
    if kinds & {"vanishing", "not_learning"} and config.optimizer.name in ("sgd", "momentum", "nesterov"):
        yield _Candidate(("optimizer=adam",), "steps of one size, however small the gradient", about_depth=False)


def _depth_candidates(config: Config) -> Iterator[_Candidate]:
    """Networks whose gradient may pass: first the same one drawn otherwise, then others."""
    initial = _critical_overrides(config)
    reset = ("init.gain=1",) if config.init.knobs["gain"] != 1 else ()
    if initial:
        yield _Candidate(initial, "weights at the activation's edge of chaos, where the gradient keeps its size")
    if config.model.name == "lenet5_1998":
        return
    yield _Candidate(("model.residual=scaled",), "skip paths, branches scaled by 1/√blocks")
    yield _Candidate(("model.residual=rezero",), "skip paths, branches that start at 0")
    if initial:
        yield _Candidate(("model.residual=scaled", *initial), "skip paths and critical weights")
    yield _Candidate(("model.norm=layer",), "normalised pre-activations")
    yield _Candidate(("model.norm=batch",), "pre-activations normalised over the batch")
    if not _own_knobs(config.act) and set(config.init.knobs) == {"gain"}:
        yield _Candidate(("act=relu", "init=kaiming_normal", *reset), "the pair that keeps variances")
        yield _Candidate(("act=tanh", "init=critical", *reset), "a bounded activation at its edge of chaos")


def _critical_overrides(config: Config) -> tuple[str, ...]:
    """How to draw at the edge of chaos, in words that leave the other words of the command valid."""
    reset = ("init.gain=1",) if config.init.knobs["gain"] != 1 else ()
    if config.init.name not in ("variance", "normal", "uniform"):
        return () if config.init.name == "critical" and not reset else ("init=critical", *reset)
    try:
        phi = activation(config.act.name, **config.act.knobs)
        point = critical_point(phi, config.init.knobs.get("sigma_b2", 0.0))
    except NoTheory:
        return ()
    variance = point.sigma_w2 * (1 - config.model.knobs.get("dropout", 0.0))
    if config.init.name == "variance":
        return (f"init.sigma_w2={variance:.6g}", *reset)
    width = config.model.knobs.get("width")
    if not isinstance(width, int):
        return ()
    knob, value = ("std", variance / width) if config.init.name == "normal" else ("bound", 3 * variance / width)
    return (f"init.{knob}={math.sqrt(value):.4g}", *reset)


def _own_knobs(option: Option) -> bool:
    """Whether a knob is off its default: another option would not know it."""
    return option != type(option)(option.name)


def _applied(config: Config, overrides: Sequence[str]) -> Config | None:
    """The configuration with overrides applied; None where that is refused or changes nothing."""
    container: dict[str, Any] = to_container(config)
    for override in overrides:
        key, _, value = override.partition("=")
        group, _, knob = key.partition(".")
        if knob:
            container[group][knob] = _parsed(value)
        else:
            kept = {"gain": container[group]["gain"]} if group == "init" else {}
            container[group] = {"name": value, **kept}
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
    try:
        factor = expect(config, inputs, correlations).depth_factor
    except NoTheory:
        return None
    return factor if math.isfinite(factor) and factor > 0 else None


def _decades(config: Config, factor: float) -> float:
    hidden: int = config.model.knobs.get("depth", 4)
    return (hidden - 1) * math.log10(factor)
