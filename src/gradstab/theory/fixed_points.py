"""Fixed points of the length map, whether they attract, and how deep a signal reaches.

(Poole et al. 2016, arXiv:1606.05340; Schoenholz et al. 2017, arXiv:1611.01232; half-stable points: Roberts, Yaida
and Hanin 2022, arXiv:2106.10165, §5.3)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np

from gradstab.theory.activations import Activation, Array
from gradstab.theory.arguments import check_variances
from gradstab.theory.errors import NoTheory
from gradstab.theory.maps import SMALLEST, chi_1, chi_parallel, length_map, stable_correlation

Stability = Literal["stable", "half-stable", "unstable", "neutral"]

_TANGENT = 1e-7  # a curve that comes within this of 0, relative to q, and turns, is said to touch it
_TURN = 0.5  # … if it is this much nearer to 0 there than at the grid's next points; flat ones run beside 0
_FLAT = 1e-11  # (V(q) - q)/q below this is rounding
_NEAR = 1e-3  # V leaves lengths this close to a fixed point where they are, as far as rounding tells
_CRITICAL = 1e-9  # χ this close to 1 is 1: a fixed point is known no better than _FLAT


@dataclass(frozen=True)
class FixedPoint:
    """A length q with V(q) = q.

    ``stable`` attracts from both sides (from above, for q = 0), be it only like 1/l where χ∥ = 1; ``half-stable``
    attracts on one side and repels on the other; ``unstable`` repels; ``neutral``: every length is a fixed point,
    and q = 1 stands for them all.
    """

    q: float
    stability: Stability
    chi_parallel: float
    chi_1: float


@dataclass(frozen=True)
class DepthScales:
    """Layers after which a deviation has shrunk by e: ξ = -1/ln χ.

    inf where χ = 1, 0 where χ = 0, negative where χ > 1: the deviation grows by e in |ξ| layers. ``xi_q`` is that of
    lengths, ``xi_c`` of correlations, ``xi_grad`` of *squared* gradient norms. ``c`` and ``xi_c`` are NaN where
    q* = 0, as nothing is left to correlate.
    """

    q: float
    c: float
    chi_parallel: float
    chi_1: float
    chi_c: float
    xi_q: float
    xi_c: float
    xi_grad: float


def crossings(f: Callable[[Array], Array], x: Array) -> list[float]:
    """Where f changes sign on the increasing grid x."""
    return _crossings(f, x, f(x))


def _crossings(f: Callable[[Array], Array], x: Array, y: Array) -> list[float]:
    sign = np.sign(y)
    return [_bisect(f, x[i], x[i + 1]) for i in np.flatnonzero(sign[:-1] * sign[1:] < 0)]


def roots(f: Callable[[Array], Array], x: Array) -> list[float]:
    """Zeros of f on the increasing grid x: crossings, touching points, and the start of each stretch of zeros."""
    y = f(x)
    found = _crossings(f, x, y)
    zero = np.concatenate([[False], y == 0])
    found += [float(root) for root in x[zero[1:] & ~zero[:-1]]]
    size = np.abs(y)
    for i in np.flatnonzero((size[1:-1] < size[:-2]) & (size[1:-1] < size[2:])) + 1:
        if not any(x[i - 1] <= root <= x[i + 1] for root in found):
            near = _minimum(lambda p: np.abs(f(p)), x[i - 1], x[i + 1])
            if abs(f(np.array([near]))[0]) < min(_TANGENT, _TURN * min(size[i - 1], size[i + 1])):
                found.append(near)
    return sorted(found)


def _bisect(f: Callable[[Array], Array], low: float, high: float) -> float:
    """A zero between two points of opposite sign; each round looks at 33 points in one call."""
    for _ in range(11):
        x = np.linspace(low, high, 33)
        y = np.sign(f(x))
        i = int(np.argmax(y != y[0]))
        if y[i] == 0:
            return float(x[i])
        low, high = x[i - 1], x[i]
    return float((low + high) / 2)


def _minimum(f: Callable[[Array], Array], low: float, high: float) -> float:
    for _ in range(11):
        x = np.linspace(low, high, 33)
        i = int(np.clip(np.argmin(f(x)), 1, 31))
        low, high = x[i - 1], x[i + 1]
    return float((low + high) / 2)


def fixed_points(act: Activation, sigma_w2: float, sigma_b2: float = 0.0) -> tuple[FixedPoint, ...]:
    """All fixed points of q → σ_w² E φ(√q z)² + σ_b², smallest first; none where q grows without bound.

    They are looked for between 1e-9 and 1e9, and as far beyond as σ_w² and σ_b² may put them. A σ_b² below 1e-290
    counts as 0.
    """
    check_variances(act, sigma_w2=sigma_w2, sigma_b2=sigma_b2)
    sigma_b2 = sigma_b2 if sigma_b2 >= SMALLEST else 0.0
    if act.scale_free is not None:
        return _scale_free_fixed_points(sigma_w2 * act.scale_free, sigma_b2)
    excess = partial(_excess, act, sigma_w2, sigma_b2)
    grid = _grid(act, sigma_w2, sigma_b2)
    # Where V(q)/q tends to 1 for large q, rounding alone makes it equal to 1.
    last = int(np.flatnonzero(excess(grid))[-1:].sum()) + 1
    points = roots(excess, grid[:last] if last > 1 else grid)
    if not sigma_b2 and not act.at_zero * sigma_w2:
        points = [0.0, *(q for q in points if q > 1e-8)]
    return tuple(
        FixedPoint(q, _stability(excess, q), float(chi_parallel(act, q, sigma_w2)), float(chi_1(act, q, sigma_w2)))
        for q in points
    )


def _grid(act: Activation, sigma_w2: float, sigma_b2: float) -> Array:
    """Lengths, 40 a decade, from well below V(0), where that is not 0, to well above what a bounded φ makes of any."""
    at_zero = sigma_b2 + sigma_w2 * act.at_zero**2
    low = 1e-3 * min(1e-6, at_zero if at_zero >= SMALLEST else 1.0)
    high = 1e3 * max(1e6, sigma_w2, sigma_b2)
    return np.geomspace(low, high, 1 + round(40 * math.log10(high / low)))


def _excess(act: Activation, sigma_w2: float, sigma_b2: float, q: Array) -> Array:
    """V(q)/q - 1, without its rounding."""
    relative = length_map(act, q, sigma_w2, sigma_b2) / q - 1
    return np.where(np.abs(relative) < _FLAT, 0.0, relative)


def _scale_free_fixed_points(chi: float, sigma_b2: float) -> tuple[FixedPoint, ...]:
    """V(q) = χ q + σ_b², a straight line."""
    if math.isclose(chi, 1.0, rel_tol=1e-12):
        return () if sigma_b2 else (FixedPoint(1.0, "neutral", 1.0, 1.0),)
    if chi > 1 and sigma_b2:
        return ()
    return (FixedPoint(abs(sigma_b2 / (1 - chi)), "stable" if chi < 1 else "unstable", chi, chi),)


def _stability(excess: Callable[[Array], Array], q: float) -> Stability:
    """From the signs of V(q) - q on both sides, at the nearest distance at which they stand out from rounding."""
    above = _first_sign(excess(q + np.geomspace(1e-3 * q or 1e-9, max(10.0, q), 60)))
    below = _first_sign(excess(q - np.geomspace(1e-3 * q, 0.9 * q, 60))) if q else -above
    if above == below:
        return "half-stable" if above else "neutral"
    return "stable" if above < 0 else "unstable"


def _first_sign(values: Array) -> float:
    return float(np.sign(values[np.flatnonzero(values)[:1]]).sum())


def depth_scales(
    act: Activation, sigma_w2: float, sigma_b2: float = 0.0, *, dropout: float = 0.0, start: float | None = None
) -> DepthScales:
    """q*, c* and the depth scales ξ_q, ξ_c, ξ_∇ at the length that ``start`` tends to, or the smallest that attracts.

    ``dropout`` is the rate p. Raises :class:`NoTheory` where no length attracts.
    """
    check_variances(act, dropout=dropout, sigma_w2=sigma_w2, sigma_b2=sigma_b2)
    if start is not None:
        check_variances(act, start=start)
    scaled = sigma_w2 / (1 - dropout)
    points = fixed_points(act, scaled, sigma_b2)
    if start is None:
        point = next((p for p in points if p.stability != "unstable"), None)
    else:
        point = _reached(points, partial(_excess, act, scaled, sigma_b2), start)
    if point is None:
        beyond = _grid(act, scaled, sigma_b2)[-1]
        end = "without bound" if act.scale_free is not None else f"beyond {beyond:g}"
        where = "" if start is None else f" from {start:.3g}"
        raise NoTheory(
            f"act={act.name} with sigma_w2={sigma_w2:g}, sigma_b2={sigma_b2:g}, dropout={dropout:g} tends to no "
            f"length: q grows with depth {end}{where}, so there are no depth scales"
        )
    c, slope = math.nan, math.nan
    if point.q > 0:
        c, slope = stable_correlation(act, point.q, sigma_w2, sigma_b2, dropout=dropout)
    return DepthScales(
        point.q, c, point.chi_parallel, point.chi_1, slope, *map(_depth, (point.chi_parallel, slope, point.chi_1))
    )


def _reached(points: Sequence[FixedPoint], excess: Callable[[Array], Array], start: float) -> FixedPoint | None:
    """The fixed point that a length tends to, be it the one at which it is; None where it grows without bound."""
    if start == 0:
        # V(0) is no less than 0: it stays there, or goes up.
        return min(points, key=lambda p: p.q, default=None)
    direction = _first_sign(excess(np.array([start])))
    if not direction:
        nearest = min(points, key=lambda p: abs(p.q - start), default=None)
        if nearest is not None and abs(nearest.q - start) <= _NEAR * max(start, _NEAR):
            return nearest
        if neutral := next((p for p in points if p.stability == "neutral"), None):
            return replace(neutral, q=start)  # Where every length stays as it is, this one does.
        direction = _drift(excess, start)
    if direction > 0:
        return next((p for p in points if p.q > start), None)
    return next((p for p in reversed(points) if p.q < start), None)


def _drift(excess: Callable[[Array], Array], start: float) -> float:
    """Which way V moves the nearest length that it moves, where rounding hides what it does to ``start``.

    A hardtanh with σ_w² = 1, σ_b² = 0 takes from small q no more than the tails beyond ±1, and yet they all shrink.
    """
    factors = np.geomspace(1, 1e9, 361)
    return _first_sign(np.stack([excess(start * factors), excess(start / factors)], axis=1).ravel())


def _depth(chi: float) -> float:
    if math.isnan(chi):
        return math.nan
    if chi <= 0:
        return 0.0
    return math.inf if abs(chi - 1) < _CRITICAL else -1 / math.log(chi)
