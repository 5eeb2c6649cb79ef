"""The walk of lengths through a network's layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from gradstab.theory.activations import Array
from gradstab.theory.variances import Variances

Forward = Callable[[Array], Array]


def trajectory(
    known: Sequence[Variances], forwards: Sequence[Forward], q0: Array, blocks: int = 0, scale: float = 1.0
) -> Array:
    """Mean squares of the hidden layers' pre-activations, [layers, samples], from those of the inputs, [samples].

    ``forwards`` has each hidden layer's map from that mean square to the one of its unit's output. Hidden layers 1 to
    ``blocks`` add ``scale`` times their affine map to the stream.
    """
    q, square, found = np.zeros_like(q0), q0, []
    for layer, forward in enumerate(forwards):
        before, q = q, _following(q, square, known[layer], 1 <= layer <= blocks, scale)
        # Most deep networks reach a fixed point after some ten layers, and need no quadrature from there on.
        if not (layer and forward is forwards[layer - 1] and bool((np.abs(q - before) <= 1e-15 * q).all())):
            square = forward(q)
        found.append(q)
    return np.stack(found)


def resolved(
    drawn: Sequence[Variances], forwards: Sequence[Forward], q0: Array, blocks: int = 0, scale: float = 1.0
) -> Iterator[Variances]:
    """The variances with lsuv's in place: σ_w² is the output's variance over the mean square of the inputs."""
    if all(v.sigma_w2 is not None for v in drawn):
        yield from drawn
        return
    q, square = np.zeros_like(q0), q0
    for layer, v in enumerate(drawn):
        known = Variances(v.output / float(square.mean()), 0.0)
        yield known
        if layer < len(forwards):
            q = _following(q, square, known, 1 <= layer <= blocks, scale)
            square = forwards[layer](q)


def _following(q: Array, square: Array, v: Variances, in_block: bool, scale: float) -> Array:
    assert v.sigma_w2 is not None, "lsuv's variances are resolved before they are used"
    affine = v.sigma_w2 * square + v.sigma_b2
    return q + scale**2 * affine if in_block else affine
