"""How weights start: every scheme of ``init``, drawn from one generator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gradstab.initializers.critical import critical
from gradstab.initializers.draw import Draw, Share, kaiming, lecun_normal, normal, shares, uniform
from gradstab.initializers.structured import constant, delta_orthogonal, fixup, identity, lsuv, orthogonal
from gradstab.models.blocks import Model, projections

__all__ = ["SCHEMES", "Draw", "Share", "initialize", "shares"]


def _independent(
    fill: Callable[[Tensor, float, torch.Generator], None],
    variance: Callable[..., float],
    bias_variance: Callable[..., float] | None = None,
) -> Callable[..., None]:
    """A scheme of independent draws; the variances are functions of draw, share and the scheme's knobs."""

    def scheme(draw: Draw, **knobs: float) -> None:
        for share in draw.shares():
            fill(share.weight, draw.gain**2 * variance(draw, share, **knobs), draw.generator)
            if share.bias is not None and bias_variance is not None:
                fill(share.bias, bias_variance(draw, share, **knobs), draw.generator)

    return scheme


SCHEMES: dict[str, Callable[..., None]] = {
    "default": _independent(uniform, lambda _, share: 1 / (3 * share.fan_in), lambda _, share: 1 / (3 * share.fan_in)),
    "zeros": lambda draw: constant(draw, value=0.0),
    "constant": constant,
    "normal": _independent(normal, lambda _draw, _share, std: std**2),
    "uniform": _independent(uniform, lambda _draw, _share, bound: bound**2 / 3),
    "xavier_uniform": _independent(uniform, lambda _, share: 2 / (share.fan_in + share.fan_out)),
    "xavier_normal": _independent(normal, lambda _, share: 2 / (share.fan_in + share.fan_out)),
    "kaiming_uniform": _independent(uniform, kaiming),
    "kaiming_normal": _independent(normal, kaiming),
    "lecun_normal": _independent(normal, lambda _, share: 1 / share.fan_in),
    "orthogonal": orthogonal,
    "delta_orthogonal": delta_orthogonal,
    "identity": identity,
    "variance": _independent(
        normal,
        lambda _, share, sigma_w2, **_knobs: sigma_w2 / share.fan_in,
        lambda _draw, _share, sigma_b2, **_knobs: sigma_b2,
    ),
    "lsuv": lsuv,
    "fixup": fixup,
    "critical": critical,
}


@torch.no_grad()
def initialize(
    model: Model,
    name: str,
    *,
    act_name: str,
    act_knobs: Mapping[str, Any],
    generator: torch.Generator,
    batch: Tensor | None,
    gain: float = 1.0,
    **knobs: float,
) -> None:
    """Set the weights and biases of every layer of ``model`` in place, by the scheme ``name``.

    ``model`` is in float32 on the CPU, and every random number is drawn from ``generator``, a CPU generator.
    ``gain`` is a factor on the weights drawn; for lsuv it is the standard deviation aimed at. ``batch``, inputs
    [B, *in_shape], is what lsuv measures on; the others do without. Biases are 0, except for ``default``, ``variance``
    and ``critical``. Projections on skip paths are normal with variance 1/fan_in whatever the scheme. Parameters of
    norm layers, activations, ReZero and subsampling keep the values that they were constructed with.
    """
    draw = Draw(model, act_name, act_knobs, generator, gain, batch)
    for share in draw.shares():
        if share.bias is not None:
            share.bias.zero_()
    for projection in projections(model):
        lecun_normal(projection, generator)
    SCHEMES[name](draw, **knobs)
