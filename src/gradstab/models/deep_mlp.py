"""The multilayer perceptron of any depth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

from torch import nn

from gradstab.models.blocks import Hidden, Layer, Model, assemble, dense_norm, hidden_unit, shortcut


def deep_mlp(
    *,
    in_shape: tuple[int, ...],
    out_features: int,
    activation: Callable[[], nn.Module],
    depth: int,
    width: int | Sequence[int] = 128,
    norm: str = "none",
    norm_position: str | None = None,
    dropout: float = 0.0,
    residual: str = "none",
    bias: bool = True,
) -> Model:
    """``depth`` hidden layers and a linear output layer; depth 0 is one affine map.

    x: [B, *in_shape], flattened to [B, N_0]; outputs [B, out_features]. ``width`` is one number, or a sequence with
    one for each hidden layer. ``norm`` is none, batch or layer, and ``norm_position`` before (also for None) or
    after the activation; ``dropout`` is the rate p at the end of each hidden unit. ``residual`` is none, add, scaled
    or rezero: x' = x + s Wφ(x) from the second hidden layer on (He et al. 2016, arXiv:1603.05027), with a linear
    projection of x where widths differ.
    """
    widths = [width] * depth if isinstance(width, int) else list(width)
    assert len(widths) == depth
    fans = [math.prod(in_shape), *widths]
    hidden = []
    for fan_in, features in pairwise(fans):
        layer = Layer("hidden", nn.Linear(fan_in, features, bias=bias), act := activation())
        unit = hidden_unit(act, norm=dense_norm(norm, features), norm_position=norm_position, dropout=dropout)
        hidden.append(Hidden(layer, unit, partial(shortcut, fan_in, features)))
    output = Layer("output", nn.Linear(fans[-1], out_features, bias=bias), None)
    head = [nn.Flatten()] if len(in_shape) > 1 else []
    return assemble(hidden, output, residual=residual, head=head)
