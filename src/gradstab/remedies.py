"""What may mend a verdict, as overrides to paste behind the command; theory says which of them it expects to work."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gradstab.candidates import Expected, candidates
from gradstab.config import Config, from_hydra, to_container
from gradstab.config.registry import Option
from gradstab.errors import ConfigError, GradstabError
from gradstab.expectation import expect, signal_share
from gradstab.inputs import Inputs
from gradstab.measure.verdict import HEALTHY, Remedy, Verdict
from gradstab.rates import fitting_rate
from gradstab.theory import NoTheory, Prediction

MOST = 6
# Mean squares of pre-activations beyond which an activation has little of its input left to answer to.
LONG = 25.0


def remedies_for(
    config: Config,
    inputs: Inputs,
    verdict: Verdict,
    *,
    correlations: tuple[float, float] | None = None,
    typical_norm: float | None = None,
    trial: Callable[[Config], Verdict] | None = None,
) -> tuple[Remedy, ...]:
    """At most six remedies, those that mean-field theory expects to work first, the smallest change before others.

    Before them comes a smaller rate, where the first step shows that the rate is what is wrong.

    Each can be pasted behind the command that made ``config``: what its knobs would make invalid is not offered.
    Changes to the network come with the depth factor that theory predicts for them, and only where that is steady over
    the depth, lengths stay moderate and dropout leaves a signal. Without theory, only changes to rates, clipping and
    optimizers are offered, and to LeNet-5's initial weights and norm. ``typical_norm`` is the global gradient norm of
    the first steps, which a clipping threshold goes by. Where a gradient explodes, the first step says nothing of a
    chain where it does not: such a chain comes with the rate that a ``trial``, the verdict on its own first step, says
    that it stands.
    """
    if verdict.labels == (HEALTHY,):
        return ()
    now = _predicted(config, inputs, correlations)
    present = now.decades if now is not None and now.sound else math.inf
    proven: list[tuple[float, Remedy]] = []
    unproven: list[Remedy] = []
    others: list[Remedy] = []
    first: list[Remedy] = []
    tried: list[Config] = []
    for candidate in candidates(config, verdict, now, typical_norm):
        overrides = (*candidate.overrides, *candidate.besides)
        changed = None if _applied(config, candidate.overrides) is None else _applied(config, overrides)
        if changed is None or changed in tried:
            continue
        if not candidate.about_depth:
            tried.append(changed)
            (first if candidate.first else others).append(Remedy(overrides, candidate.reason))
        elif _is_lenet(config):
            # Theory would need the pooling windows' correlations in the changed network.
            if not candidate.overrides[0].startswith("model.residual"):
                unproven.append(Remedy(overrides, candidate.reason))
        elif (then := _predicted(changed, inputs, None)) is not None:
            # Where theory is silent, another reason may still speak for the same.
            tried.append(changed)
            if then.sound and then.decades < min(config.verdict.remedy_decades, candidate.share * present):
                remedy = Remedy(overrides, candidate.reason, None if _hidden(changed) == 1 else then.factor)
                proven.append((max(then.decades, config.verdict.steady_decades), remedy))
        elif candidate.masks and _signal_passes(changed, inputs):
            tried.append(changed)
            unproven.append(Remedy(overrides, candidate.reason))
    ranked = [remedy for _, remedy in sorted(proven, key=lambda pair: pair[0])]
    shown = [*ranked, *unproven][: MOST - len(first) - len(others)]
    if trial is not None and "exploding" in verdict.labels:
        shown = [_with_a_rate(config, remedy, trial) for remedy in shown]
    return (*first, *shown, *others)


def _with_a_rate(config: Config, remedy: Remedy, trial: Callable[[Config], Verdict]) -> Remedy:
    """The same network at the rate that it stands, should it be a chain for whose depth steps are too large."""
    changed = _applied(config, remedy.overrides)
    if changed is None or not _is_chain(changed) or any(word.startswith("optimizer.lr=") for word in remedy.overrides):
        return remedy
    try:
        words = fitting_rate(changed, trial(changed))
    except (GradstabError, RuntimeError):
        return remedy  # There may be no memory for another network.
    overrides = (*remedy.overrides, *words)
    return remedy if _applied(config, overrides) is None else replace(remedy, overrides=overrides)


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
        elif not isinstance(container[group], dict):
            container[group] = int(value)
        elif container[group]["name"] != value:
            if config.fixed:
                return None
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


def _predicted(config: Config, inputs: Inputs, correlations: tuple[float, float] | None) -> Expected | None:
    """What theory expects; None where it is silent. A single hidden layer keeps every gradient as it is."""
    try:
        prediction = expect(config, inputs, correlations)
    except NoTheory:
        return None
    factor = prediction.depth_factor if _hidden(config) > 1 else 1.0
    known = math.isfinite(factor) and factor > 0
    decades = abs((_hidden(config) - 1) * math.log10(factor)) if known else math.inf
    sound = known and _signal_passes(config, inputs) and float(prediction.q.max()) < LONG**2
    return Expected(factor, decades, sound, _room(config, prediction))


def _room(config: Config, prediction: Prediction) -> float:
    """The bound that leaves most weights, or units, as they are drawn; 0 without such a constraint."""
    typical = math.sqrt(float(np.median(prediction.sigma_w2)))
    if config.constraint.name == "max_norm":
        return 1.4 * typical
    if config.constraint.name != "weight_clip" or "width" not in config.model.knobs:
        return 0.0
    return 3 * typical / math.sqrt(float(np.median(config.model.knobs["width"])))


def _signal_passes(config: Config, inputs: Inputs) -> bool:
    """Whether dropout's masks leave a signal, as far as theory knows."""
    share = signal_share(config, inputs)
    batch_norm = config.model.knobs["norm"] == "batch"
    limit = config.verdict.signal_share if batch_norm else config.verdict.stalled_signal_share
    return share is None or share >= limit


def _is_chain(config: Config) -> bool:
    """Whether neither skip paths nor batch norm let it stand larger steps."""
    return config.model.knobs.get("residual", "none") == "none" and config.model.knobs.get("norm") != "batch"


def _hidden(config: Config) -> int:
    depth: int = config.model.knobs.get("depth", 4)
    return depth
