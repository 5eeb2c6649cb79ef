"""BatchNorm before the activation, for batches of any size (Yang et al. 2019, arXiv:1902.08129, Theorem 8)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from gradstab.theory.activations import Activation, Array
from gradstab.theory.errors import NoTheory
from gradstab.theory.maps import mean, second_moment, slope_moment
from gradstab.theory.quadrature import pair_expectation, sphere


@dataclass(frozen=True)
class BatchNormMoments:
    """Expectations over x = √B u, u uniform on the unit sphere of the centred subspace of ℝ^B, and x' ≠ x.

    ``square`` is E φ², ``product`` E φφ'; ``own`` and ``cross`` are the parts of
    [(B-1) E φ'² - E x²φ'² + E φ'φ' + E xx'φ'φ'] / (B-3) in which a unit's slope meets itself and another sample's.
    """

    square: float
    product: float
    own: float
    cross: float

    def variance(self, dropout: float = 0.0) -> float:
        """Variance over the batch of a unit's pre-activation in the next layer, for σ_w² = 1 (unbiased)."""
        return self.square / (1 - dropout) - self.product


# From here on rounding costs more digits than the limit.
_AS_GOOD_AS_INFINITE = 1e9


@lru_cache(maxsize=256)
def batch_norm_moments(act: Activation, batch_size: int | None = None) -> BatchNormMoments:
    """The moments that BatchNorm makes of φ with a batch of B samples, None for B → ∞.

    Raises :class:`NoTheory` for B ≤ 3, where the expected squared gradient norm is infinite (B = 3) or, but for
    BatchNorm's eps, every gradient is 0 (B = 2).
    """
    if batch_size is None or batch_size > _AS_GOOD_AS_INFINITE:
        own = float(slope_moment(act, 1.0))
        return BatchNormMoments(float(second_moment(act, 1.0)), float(mean(act, 1.0)) ** 2, own, 0.0)
    if batch_size <= 3:
        raise NoTheory(
            f"norm=batch with batch_size={batch_size}: the expected squared gradient is finite from 4 samples on"
        )

    def integrands(x: Array, y: Array) -> Array:
        phi, slopes = act.phi(x), act.slope(x)
        both = slopes * act.slope(y)
        return np.stack([phi**2, phi * act.phi(y), slopes**2, both, (x * slopes) ** 2, x * y * both])

    b = batch_size
    square, product, slope2, slopes, weighted2, weighted = (
        float(moment) for moment in pair_expectation(integrands, -1 / (b - 1), 1.0, act.kinks, sphere(b - 1))
    )
    own, cross = (b - 1) * slope2 - weighted2, slopes + weighted
    return BatchNormMoments(square, product, own / (b - 3), cross / (b - 3))
