"""Networks whose gradient may pass, as overrides of a configuration: the same one drawn otherwise, then others."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gradstab.config import Config
from gradstab.theory import NoTheory, activation, critical_point, half_stable_point

# Biases of a larger variance drown what tells inputs apart, at the edge of chaos too.
LARGE_BIASES = 0.5

# Overrides, and why.
Change = tuple[tuple[str, ...], str]


def drawn_at_random(config: Config) -> Iterator[Change]:
    """The same network with weights drawn at random."""
    reset = _gain_reset(config)
    if initial := _critical_overrides(config):
        yield initial, "weights drawn at random, at the activation's edge of chaos"
    for init in ("kaiming_normal", "xavier_normal", "orthogonal"):
        yield (f"init={init}", *reset), "weights drawn at random"


def passing(config: Config, exploding: bool) -> Iterator[Change]:
    """Networks whose gradient may pass: first the same one drawn otherwise, then others."""
    # Behind a norm the scale of weights means nothing.
    initial = _critical_overrides(config) if config.model.knobs.get("norm", "none") == "none" else ()
    drowned = config.init.knobs.get("sigma_b2", 0.0) > LARGE_BIASES and bool(initial)
    if (reset := _gain_reset(config)) and not drowned:
        yield reset, "weights as large as the init draws them by itself"
    if initial:
        yield initial, "weights at the activation's edge of chaos, where the gradient keeps its size"
    yield ("model.residual=scaled",), "skip paths, branches scaled by 1/√blocks"
    # Theory says nothing of what is in branches that start at 0, and they grow.
    inside = initial if exploding else ()
    yield ("model.residual=rezero", *inside), "skip paths, branches that start at 0"
    if initial:
        yield ("model.residual=scaled", *initial), "skip paths and critical weights"
    yield ("model.norm=layer",), "normalised pre-activations"
    yield ("model.norm=batch",), "pre-activations normalised over the batch"
    yield ("act=relu", "init=kaiming_normal", *reset), "the pair that keeps variances"
    yield ("act=tanh", "init=critical", *reset), "a bounded activation at its edge of chaos"


def _critical_overrides(config: Config) -> tuple[str, ...]:
    """How to draw at the edge of chaos, in words that leave the command's others valid; () where there is no edge.

    Where the edge is unstable without biases (GELU, SiLU, Mish), it is taken beyond the half-stable point, and
    elsewhere without biases if the present ones are large.
    """
    reset = _gain_reset(config)
    knobs = config.init.knobs
    try:
        phi = activation(config.act.name, **config.act.knobs)
        half = half_stable_point(phi)
        sigma_b2 = knobs.get("sigma_b2", 0.0)
        # As little as leaves a stable edge.
        least = round(1.15 * half.sigma_b2, 2) if half is not None and config.model.knobs.get("bias", True) else 0.0
        if sigma_b2 > max(LARGE_BIASES, least) or (half is not None and sigma_b2 < min(half.sigma_b2, least)):
            sigma_b2 = least
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
