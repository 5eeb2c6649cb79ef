"""The walk of lengths through a network's layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from gradstab.theory.activations import Array
from gradstab.theory.errors import NoTheory
from gradstab.theory.variances import Variances

Forward = Callable[[Array], Array]


def trajectory(
    drawn: Sequence[Variances],
    forwards: Sequence[Forward],
    q0: Array,
    blocks: int = 0,
    scale: float = 1.0,
    measured: int | None = None,
) -> tuple[list[Variances], Array]:
    """The variances with lsuv's in place, and mean squares of the hidden layers' pre-activations, [layers, samples].

    ``q0`` are the mean squares of the inputs, [samples]. ``forwards`` has each hidden layer's map from the mean square
    of its pre-activation to the one of its unit's output. Hidden layers 1 to ``blocks`` add ``scale`` times their
    affine map to the stream. lsuv's σ_w² is the output's variance over the mean square of the inputs, of the first
    ``measured`` samples where that is given.
    """
    q, square, known, found = np.zeros_like(q0), q0, [], []
    for layer, v in enumerate(drawn):
        sigma_w2 = v.sigma_w2
        if sigma_w2 is None:
            sigma_w2 = scaled_up(v, float(square[:measured].mean()))
            v = Variances(sigma_w2, v.sigma_b2)
        known.append(v)
        if layer == len(forwards):
            break
        before, affine = q, sigma_w2 * square + v.sigma_b2
        q = q + scale**2 * affine if 1 <= layer <= blocks else affine
        # Most deep networks reach a fixed point after some ten layers, and need no quadrature from there on.
        same = layer and forwards[layer] is forwards[layer - 1]
        # One sample that moved spares looking at all.
        same = same and abs(q.item(0) - before.item(0)) <= 1e-15 * q.item(0)
        if not (same and bool((np.abs(q - before) <= 1e-15 * q).all())):
            square = forwards[layer](q)
        found.append(q)
    return known, np.stack(found)


def scaled_up(v: Variances, square: float) -> float:
    """lsuv's σ_w² of a layer from the mean ``square`` of what it is given; raises :class:`NoTheory` where that is 0."""
    if not square:
        raise NoTheory("init=lsuv: what a layer is given is all 0, and no weights make outputs of another size of it")
    return v.output / square


def branch_scale(residual: str, blocks: int) -> float:
    """s: 1, 1/√blocks or 0 at initialisation; raises ValueError for a name that is no kind of path."""
    if residual not in ("none", "add", "scaled", "rezero"):
        raise ValueError(f"residual={residual}: allowed: none, add, scaled, rezero")
    if not blocks or residual == "add":
        return 1.0
    return 1 / math.sqrt(blocks) if residual == "scaled" else 0.0
