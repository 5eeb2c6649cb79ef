"""The mean-field maps of one wide layer: lengths, correlations, and their slopes.

h^l is normal with variance q; W has variance σ_w²/fan_in, b has variance σ_b². σ_w² enters every map as a factor on
an expectation over φ, so that dropout at rate p (inverted) is σ_w²/(1-p).
(Poole et al. 2016, arXiv:1606.05340; Schoenholz et al. 2017, arXiv:1611.01232)
"""

from __future__ import annotations

import numpy as np

from gradstab.theory.activations import Activation, Array
from gradstab.theory.arguments import check_correlation, check_lengths, check_variances
from gradstab.theory.quadrature import gaussian_expectation, pair_expectation

# x φ(x) and x² stay normal numbers between these.
SMALLEST, LARGEST = 1e-290, 1e290
# Where φ(0) ≠ 0, x φ φ' is odd to leading order and cancels to q times what is left: below this no digit remains.
_SMALLEST_WITH_OFFSET = 1e-10


def _representable(q: Array | float) -> Array:
    return np.minimum(np.maximum(q, SMALLEST), LARGEST)


def second_moment(act: Activation, q: Array | float) -> Array:
    """E φ(√q z)², for each q ≥ 0."""
    if act.scale_free is not None:
        return act.scale_free * np.asarray(q, dtype=np.float64)
    q = _representable(q)
    if act.moments:
        return act.moments.square(q)
    return gaussian_expectation(lambda x: act.phi(x) ** 2, q, act.kinks, act.odd)


def slope_moment(act: Activation, q: Array | float) -> Array:
    """E φ'(√q z)², for each q ≥ 0."""
    q = _representable(q)
    if act.moments:
        return act.moments.slope(q)
    return gaussian_expectation(lambda x: act.slope(x) ** 2, q, act.kinks, act.odd)


def second_moment_slope(act: Activation, q: Array | float) -> Array:
    """d E φ(√q z)² / dq, for each q ≥ 0.

    As E[z φ φ']/√q, which is (1/2q) E[(z²-1) φ²] integrated by parts once, holds with kinks all the same, and does
    not lose its digits where q is small.
    """
    q = np.maximum(_representable(q), _SMALLEST_WITH_OFFSET if act.at_zero else SMALLEST)
    if act.moments:
        return act.moments.growth(q)
    return gaussian_expectation(lambda x: x * act.phi(x) * act.slope(x), q, act.kinks, act.odd) / q


def mean(act: Activation, q: Array | float) -> Array:
    """E φ(√q z), for each q ≥ 0."""
    q = _representable(q)
    if act.odd:
        return np.zeros_like(q)
    return act.moments.mean(q) if act.moments and act.moments.mean else gaussian_expectation(act.phi, q, act.kinks)


def mean_and_variance(act: Activation, q: Array | float) -> tuple[Array, Array]:
    """E φ(√q z) and the variance of φ(√q z), for each q ≥ 0."""
    if act.odd or act.moments:
        first, second = mean(act, q), second_moment(act, q)
    else:

        def powers(x: Array) -> Array:
            phi = act.phi(x)
            return np.stack([phi, phi**2])

        first, second = gaussian_expectation(powers, _representable(q), act.kinks)
    return first, np.maximum(second - first**2, 0)


def mean_slope(act: Activation, q: Array | float) -> Array:
    """d E φ(√q z) / dq = E[z φ'] / (2√q), for each q ≥ 0."""
    q = _representable(q)
    if act.odd:
        return np.zeros_like(q)
    if act.moments and act.moments.mean_growth:
        return act.moments.mean_growth(q)
    q = np.maximum(q, _SMALLEST_WITH_OFFSET)
    return gaussian_expectation(lambda x: x * act.slope(x), q, act.kinks) / (2 * q)


def length_map(act: Activation, q: Array | float, sigma_w2: float, sigma_b2: float = 0.0) -> Array:
    """q of the next layer: σ_w² E φ(√q z)² + σ_b² (Poole 2016, Eq. 3)."""
    check_lengths(act, q, sigma_w2=sigma_w2, sigma_b2=sigma_b2)
    return sigma_w2 * second_moment(act, q) + sigma_b2


def chi_parallel(act: Activation, q: Array | float, sigma_w2: float) -> Array:
    """χ∥, the slope of the length map: σ_w² dE φ²/dq. Below 1, a fixed point attracts."""
    check_lengths(act, q, sigma_w2=sigma_w2)
    return sigma_w2 * second_moment_slope(act, q)


def chi_1(act: Activation, q: Array | float, sigma_w2: float) -> Array:
    """χ₁ = σ_w² E φ'(√q z)²: the factor per layer on the *squared* gradient norm; the norm's is √χ₁."""
    check_lengths(act, q, sigma_w2=sigma_w2)
    return sigma_w2 * slope_moment(act, q)


def correlation_map(
    act: Activation, c: float, q: float, sigma_w2: float, sigma_b2: float = 0.0, *, dropout: float = 0.0
) -> float:
    """c of the next layer: (σ_w² E φ(u)φ(v) + σ_b²)/q*, with u, v of variance q and correlation c (Poole 2016, Eq. 5).

    q* is the next layer's variance, q itself at the fixed point. With ``dropout`` at rate p two samples have two
    masks: σ_w² is divided by 1-p in q* alone, and c = 1 is no fixed point any more (Schoenholz 2017, §5).
    """
    check_variances(act, dropout=dropout, q=q, sigma_w2=sigma_w2, sigma_b2=sigma_b2)
    check_correlation("c", c)
    return _correlation_and_slope(act, c, q, sigma_w2, sigma_b2, dropout)[0]


def chi_c(
    act: Activation, c: float, q: float, sigma_w2: float, sigma_b2: float = 0.0, *, dropout: float = 0.0
) -> float:
    """The slope of the correlation map at c, q/q* σ_w² E φ'(u)φ'(v); at a fixed point q* = q."""
    check_variances(act, dropout=dropout, q=q, sigma_w2=sigma_w2, sigma_b2=sigma_b2)
    check_correlation("c", c)
    return _correlation_and_slope(act, c, q, sigma_w2, sigma_b2, dropout)[1]


def stable_correlation(
    act: Activation, q: float, sigma_w2: float, sigma_b2: float = 0.0, *, dropout: float = 0.0
) -> tuple[float, float]:
    """The correlation c* that any two inputs approach, and the map's slope there.

    The map is a power series in c without negative terms, so it is convex on [0, 1]: c* = 1 where χ₁ ≤ 1, else the
    one fixed point below 1, which Newton's method reaches from 0 without overshooting. NaN where every c stays.
    """
    if not dropout and (chi := float(chi_1(act, q, sigma_w2))) <= 1 + 1e-9:
        # Convex, and with this slope at both ends: a straight line, which the identity's is at χ₁ = 1.
        stays = chi > 1 - 1e-9 and _correlation_and_slope(act, 0.0, q, sigma_w2, sigma_b2, dropout)[1] > 1 - 1e-9
        return np.nan if stays else 1.0, chi
    c = 0.0
    for _ in range(60):
        value, slope = _correlation_and_slope(act, c, q, sigma_w2, sigma_b2, dropout)
        step = (value - c) / (1 - slope)
        c = min(c + step, 1.0)
        if abs(step) < 1e-12:
            break
    return c, _correlation_and_slope(act, c, q, sigma_w2, sigma_b2, dropout)[1]


def _correlation_and_slope(
    act: Activation, c: float, q: float, sigma_w2: float, sigma_b2: float, dropout: float
) -> tuple[float, float]:
    def products(x: Array, y: Array) -> Array:
        return np.stack([act.phi(x) * act.phi(y), act.slope(x) * act.slope(y)])

    if q == 0 and not sigma_b2 and not act.at_zero:
        raise ValueError("q=0: two inputs without length have no correlation")
    product, slopes = pair_expectation(products, c, q, act.kinks)
    following = float(length_map(act, q, sigma_w2 / (1 - dropout), sigma_b2))
    if not following:
        raise ValueError(f"sigma_w2={sigma_w2:g}: leaves two inputs no length in the next layer, and no correlation")
    return float(sigma_w2 * product + sigma_b2) / following, float(sigma_w2 * slopes) * q / following
