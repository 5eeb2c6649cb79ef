"""What predictions are asked of: refused where there can be no such network, and few lengths in place of many."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from gradstab.theory.activations import Array
from gradstab.theory.errors import NoTheory

# Layers × lengths followed through them. Beyond some twenty lengths the prediction no longer changes, and those of a
# thousand layers are to cost less than a tenth of a second.
_MOST_LENGTHS, _BUDGET = 32, 1600


def check_network(widths: Sequence[int], dropout: float) -> None:
    """Raises ValueError for widths below 1 and rates outside [0, 1)."""
    if any(width < 1 or width != int(width) for width in widths):
        raise ValueError(f"widths={list(widths)}: have to be whole numbers of at least 1")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout:g}: has to be at least 0 and below 1")


def lengths_of(q0: ArrayLike, depth: int) -> Array:
    """Mean squares of inputs, [samples], as few as a network of so many layers affords: means over equal parts of them.

    Raises ValueError for negative ones and for none, :class:`NoTheory` where one is not finite.
    """
    lengths = np.atleast_1d(np.asarray(q0, dtype=np.float64)).ravel()
    if not np.isfinite(lengths).all():
        raise NoTheory("q0: the inputs' mean squares are not all finite")
    if not lengths.size or (lengths < 0).any():
        raise ValueError("q0: has to be a mean square of at least 0, or an array of them")
    count = max(1, min(_MOST_LENGTHS, _BUDGET // max(depth, 1)))
    if count >= lengths.size:
        return lengths
    parts: Array = np.sort(lengths).repeat(count).reshape(count, -1)
    return np.asarray(parts.mean(axis=1))
