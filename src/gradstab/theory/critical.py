"""The edge of chaos: where a squared gradient norm neither grows nor shrinks, χ₁ = 1."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from gradstab.theory.activations import Activation, Array
from gradstab.theory.arguments import check_variances, lengths
from gradstab.theory.errors import NoTheory
from gradstab.theory.fixed_points import Stability, crossings, fixed_points, roots
from gradstab.theory.maps import second_moment, second_moment_slope, slope_moment

_LOW, _HIGH, _HIGHEST = 1e-9, 1e9, 1e16
# Below this, φ's curvature at the edge is lost in rounding, and no length tells the edge from that at σ_b² = 0.
_LEAST_BIAS = 1e-18


@dataclass(frozen=True)
class CriticalPoint:
    """Variances at which χ₁ = 1 at a fixed point q of the length map.

    ``kind`` is that fixed point's stability: ``stable`` and ``neutral`` (ReLU, linear: any q stays as it is) are
    good to start from; ``half-stable`` holds for lengths on one side of q only; ``unstable`` is left by every q.
    """

    sigma_w2: float
    sigma_b2: float
    q: float
    chi_parallel: float
    kind: Stability


def critical_line(act: Activation, q: Array | float) -> tuple[Array, Array, Array]:
    """(σ_w², σ_b², χ∥) of the edge of chaos with fixed point q, for each q > 0 (Pennington et al. 2017).

    σ_w² = 1/E φ'², σ_b² = q - σ_w² E φ². Where σ_b² < 0 there is no such network; where χ∥ > 1 its q is unstable.
    Raises :class:`NoTheory` for a q at which E φ'² is 0, as it is for tanh beyond some 1e40.
    """
    check_variances(act)
    q = lengths(q)
    if not (np.isfinite(q) & (q > 0)).all():
        raise ValueError(f"q={q}: has to be a finite length above 0, or an array of them")
    slopes = slope_moment(act, q)
    if not np.all(slopes > 0):
        raise NoTheory(f"q={np.max(q):g}: act={act.name} is flat there, and no sigma_w2 makes chi_1=1")
    sigma_w2 = 1 / slopes
    return sigma_w2, q - sigma_w2 * second_moment(act, q), sigma_w2 * second_moment_slope(act, q)


def critical_point(act: Activation, sigma_b2: float = 0.0) -> CriticalPoint:
    """The edge of chaos of an activation at σ_b² = ``sigma_b2``; of several, the most stable.

    At σ_b² = 0 the fixed point is q = 0 with σ_w² = 1/E φ'(0)² where φ(0) = 0. Raises :class:`NoTheory` where there
    is none: softplus at any σ_b², ReLU at σ_b² > 0.
    """
    check_variances(act, sigma_b2=sigma_b2)
    if act.scale_free is not None:
        if sigma_b2:
            raise NoTheory(
                f"act={act.name} has its edge of chaos at sigma_b2=0 alone: "
                f"with sigma_b2={sigma_b2:g} and chi_1=1, q grows by sigma_b2 in every layer"
            )
        return CriticalPoint(1 / act.scale_free, 0.0, 1.0, 1.0, "neutral")
    found = [_described(act, 1 / float(slope_moment(act, q)), sigma_b2, q) for q in _edges(act, sigma_b2)]
    return min(found, key=lambda point: ("stable", "neutral", "half-stable", "unstable").index(point.kind))


@lru_cache(maxsize=64)
def _edges(act: Activation, sigma_b2: float) -> tuple[float, ...]:
    """The fixed points q of all points of the critical line at σ_b²; there is at least one."""
    if not sigma_b2 and not act.at_zero:
        return (0.0,)
    if 0 < sigma_b2 < _LEAST_BIAS and not act.at_zero:
        raise NoTheory(
            f"act={act.name}: sigma_b2={sigma_b2:g} is too small to tell its edge of chaos from that at 0; "
            f"allowed: 0, or at least {_LEAST_BIAS:g}"
        )

    def miss(q: Array) -> Array:
        return 1 - (second_moment(act, q) / slope_moment(act, q) + sigma_b2) / q

    # Of what is a ReLU but near 0, V(q) is short of q by √q there: the edge is at q ~ σ_b⁴.
    high = max(_HIGH, 1e3 * sigma_b2, min(1e10 * sigma_b2**2, _HIGHEST))
    if found := tuple(roots(miss, np.geomspace(_LOW, high, 1 + round(40 * math.log10(high / _LOW))))):
        return found
    raise NoTheory(
        f"act={act.name} has no edge of chaos at sigma_b2={sigma_b2:g}: where chi_1=1, "
        f"the length map has no fixed point up to {high:g}"
    )


def critical_sigma_w2(act: Activation, sigma_b2: float = 0.0, dropout: float = 0.0) -> float:
    """σ_w² of the edge of chaos of a network with dropout at rate p: that of the point, times 1-p.

    Dropout divides σ_w² by 1-p in the maps of lengths and of gradients alike, so that both are critical again; two
    samples' correlation is not, as their masks differ (Schoenholz et al. 2017, §5; Pretorius et al. 2018,
    arXiv:1811.00293). Raises :class:`NoTheory` where there is no point.
    """
    check_variances(act, dropout=dropout, sigma_b2=sigma_b2)
    if act.scale_free is None and len(edges := _edges(act, sigma_b2)) == 1:
        # Stability, which takes most of the time, has nothing to choose from.
        return (1 - dropout) / float(slope_moment(act, edges[0]))
    return critical_point(act, sigma_b2).sigma_w2 * (1 - dropout)


def has_edge(act: Activation, sigma_b2: float = 0.0) -> bool:
    """Whether there is an edge of chaos at σ_b²."""
    try:
        critical_point(act, sigma_b2)
    except NoTheory:
        return False
    return True


def caveat(act: Activation, sigma_b2: float = 0.0) -> str | None:
    """One line on an edge of chaos that lengths drift away from, and where it is stable; None for a good one."""
    point = critical_point(act, sigma_b2)
    if point.kind in ("stable", "neutral"):
        return None
    where = f"the edge of chaos of act={act.name} at sigma_b2={sigma_b2:g} (sigma_w2={point.sigma_w2:.6g}) "
    drift = "repels every length" if point.kind == "unstable" else "attracts lengths from one side of q only"
    edge = half_stable_point(act)
    if edge is None or point.kind == "half-stable":
        return f"{where}is {point.kind}: q={point.q:.4g} {drift}"
    return (
        f"{where}is {point.kind}: q={point.q:.4g} {drift}; it is half-stable at sigma_b2={edge.sigma_b2:.6g}, "
        f"sigma_w2={edge.sigma_w2:.6g}, and stable above"
    )


def half_stable_point(act: Activation) -> CriticalPoint | None:
    """The point where χ₁ = χ∥ = 1 at some q > 0, or None where the edge of chaos has no such point.

    GELU, SiLU and Mish have one: their critical line is unstable for σ_b² below it and stable above (Roberts, Yaida
    and Hanin 2022, arXiv:2106.10165, §5.3.4).
    """
    check_variances(act)
    if act.scale_free is not None:
        return None
    for q in crossings(lambda q: critical_line(act, q)[2] - 1, np.geomspace(1e-3, 1e6, 361)):
        sigma_w2, sigma_b2, chi = (float(value) for value in critical_line(act, q))
        if sigma_b2 >= 0:
            return CriticalPoint(sigma_w2, sigma_b2, q, chi, "half-stable")
    return None


def _described(act: Activation, sigma_w2: float, sigma_b2: float, q: float) -> CriticalPoint:
    """The critical point with the stability of its fixed point."""
    point = min(fixed_points(act, sigma_w2, sigma_b2), key=lambda p: abs(p.q - q), default=None)
    # Where V(q) touches q, rounding may leave no fixed point near: such a point is half-stable by construction.
    kind: Stability = point.stability if point and abs(point.q - q) <= 1e-2 * q else "half-stable"
    return CriticalPoint(sigma_w2, sigma_b2, q, sigma_w2 * float(second_moment_slope(act, q)), kind)
