"""The error function over arrays, and what follows from it.

Element by element with Python's own: the theory asks for few values, and importing scipy.special for them takes longer
than the whole prediction of a thousand layers.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_erf, _erfc = np.frompyfunc(math.erf, 1, 1), np.frompyfunc(math.erfc, 1, 1)
# Below it, the two terms of the mass of x² cancel.
_SMALL = 0.02
_ALL = 30.0  # nothing lies beyond


def erf(x: Array) -> Array:
    """The error function, of an array of any shape."""
    return np.asarray(_erf(x), np.float64)


def erfc(x: Array) -> Array:
    """1 - erf(x), exact in the upper tail too."""
    return np.asarray(_erfc(x), np.float64)


def normal_cdf(x: Array) -> Array:
    """Φ, the distribution function of the standard normal."""
    return 0.5 * erfc(-x / np.sqrt(2))


def square_within(edge: Array) -> Array:
    """E[x²; |x| < √2 edge] for a standard normal x and edge ≥ 0: the incomplete gamma function P(3/2, edge²).

    erf(e) - 2e exp(-e²)/√π, and its series where that cancels (DLMF 8.4.1, 8.5.1, 8.8.5).
    """
    edge = np.minimum(edge, _ALL)
    z = np.square(edge)
    whole = erf(edge) - 2 / np.sqrt(np.pi) * edge * np.exp(-z)
    small = np.minimum(z, _SMALL)
    series = 1 + small / 2.5 * (1 + small / 3.5 * (1 + small / 4.5 * (1 + small / 5.5 * (1 + small / 6.5))))
    return np.asarray(np.where(z < _SMALL, 4 / (3 * np.sqrt(np.pi)) * edge * z * np.exp(-small) * series, whole))
