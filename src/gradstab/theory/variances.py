"""What an initialisation scheme is to the theory: σ_w² and σ_b² of each layer, from its fans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gradstab.theory.activations import PRELU_SLOPE, activation
from gradstab.theory.critical import critical_sigma_w2
from gradstab.theory.errors import NoTheory


@dataclass(frozen=True)
class Fan:
    """Connections of one layer: inputs that a unit sums over, units that an input feeds.

    ``kernel`` is the number of positions that both count, k² for a convolution.
    """

    fan_in: int
    fan_out: int
    kernel: int = 1


@dataclass(frozen=True)
class Variances:
    """Weights of variance ``sigma_w2``/fan_in and biases of variance ``sigma_b2``.

    A ``sigma_w2`` of None stands for lsuv's: whatever gives the layer's output the variance ``output``.
    """

    sigma_w2: float | None
    sigma_b2: float
    output: float = 0.0


INITS = (
    *("critical", "default", "delta_orthogonal", "kaiming_normal", "kaiming_uniform", "lecun_normal", "lsuv"),
    *("normal", "orthogonal", "uniform", "variance", "xavier_normal", "xavier_uniform"),
)
_NO_THEORY = {
    "zeros": "every weight is 0, so no signal passes and no gradient reaches a hidden layer",
    "constant": "all units of a layer are one and the same; mean-field theory needs independent weights",
    "identity": "its weights are not random; mean-field theory needs weights without a preferred direction",
    "fixup": "the output layer starts at 0, so no gradient reaches a hidden layer at the first step",
}


def layer_variances(
    init: str,
    knobs: Mapping[str, float],
    fans: Sequence[Fan],
    *,
    act: str,
    act_knobs: Mapping[str, float],
    bias: bool,
    dropout: float = 0.0,
) -> list[Variances]:
    """σ_w² and σ_b² of each layer for ``init`` of gradstab's config; ``knobs`` are its own, ``gain`` included.

    ``act_knobs`` are the activation's: its slope matters to the kaiming schemes, all of it and ``dropout`` to critical.
    Raises :class:`NoTheory` for schemes that mean-field theory has no word on, where weights have variance 0, and for
    critical where there is no edge of chaos.
    """
    if not isinstance(init, str):
        raise ValueError(f"init={init}: has to be a name; allowed: {', '.join(INITS)}")
    if not isinstance(bias, bool | np.bool_):
        raise ValueError(f"bias={bias}: allowed: True, False")
    if init in _NO_THEORY:
        raise NoTheory(f"init={init}: {_NO_THEORY[init]}")
    gain2 = knobs.get("gain", 1.0) ** 2
    if init == "lsuv":
        if not gain2:
            raise NoTheory(f"init={init}: {_NO_THEORY['zeros']}")
        return [Variances(None, 0.0, gain2) for _ in fans]
    if init == "critical":
        sigma_b2 = knobs.get("sigma_b2", 0.0)
        sigma_w2 = critical_sigma_w2(activation(act, **act_knobs), sigma_b2, dropout)
        return [Variances(gain2 * sigma_w2, sigma_b2 if bias else 0.0) for _ in fans]
    act_slope = act_knobs.get("slope", 0.01)
    found = [
        Variances(gain2 * _sigma_w2(init, knobs, fan, act, act_slope), _sigma_b2(init, knobs, fan) if bias else 0.0)
        for fan in fans
    ]
    if not all(variances.sigma_w2 for variances in found):
        raise NoTheory(f"init={init}: {_NO_THEORY['zeros']}")
    return found


def _sigma_w2(init: str, knobs: Mapping[str, float], fan: Fan, act: str, act_slope: float) -> float:
    """fan_in · Var W, for a gain of 1."""
    match init:
        case "default":
            return 1 / 3
        case "normal":
            return _knob(init, knobs, "std") ** 2 * fan.fan_in
        case "uniform":
            return _knob(init, knobs, "bound") ** 2 / 3 * fan.fan_in
        case "xavier_uniform" | "xavier_normal":
            return 2 * fan.fan_in / (fan.fan_in + fan.fan_out)
        case "kaiming_uniform" | "kaiming_normal":
            slope = {"leaky_relu": act_slope, "prelu": PRELU_SLOPE}.get(act, 0.0)
            return 2 / (1 + slope**2)
        case "lecun_normal":
            return 1.0
        case "orthogonal":
            # Orthonormal rows have entries of variance 1/fan_in, orthonormal columns of 1/units.
            return min(1.0, fan.fan_in * fan.kernel / fan.fan_out)
        case "delta_orthogonal":
            return min(1.0, fan.fan_in / fan.fan_out)
        case "variance":
            return _knob(init, knobs, "sigma_w2")
    raise ValueError(f"init={init}: not known to the theory; allowed: {', '.join(INITS)}")


def _sigma_b2(init: str, knobs: Mapping[str, float], fan: Fan) -> float:
    match init:
        case "default":
            return 1 / (3 * fan.fan_in)
        case "variance":
            return knobs.get("sigma_b2", 0.0)
    return 0.0


def _knob(init: str, knobs: Mapping[str, float], name: str) -> float:
    if name not in knobs:
        raise ValueError(f"init_knobs: init={init} needs {name}")
    return knobs[name]
