"""The gradient through depth as one number: the factor per layer. Nothing here imports torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DepthFactor:
    """The factor by which a gradient grows per layer towards the input, and how straight the line was."""

    factor: float
    r2: float
    layers: int


def depth_factor(profile: Sequence[float], places: Sequence[int] | None = None) -> DepthFactor | None:
    """exp(-slope) of the least-squares line through log ‖δ‖ over the hidden layers, nearest the input first.

    ``places`` say how many layers from the input each stands, one behind the other where nothing is said.

    Below 1 the gradient vanishes towards the input, above 1 it explodes. Layers whose value is 0 (underflow), inf
    or NaN have no logarithm and are left out; None with fewer than two left. R² is 1 where all values are equal.
    """
    layers = range(len(profile)) if places is None else places
    points = [(layer, math.log(value)) for layer, value in zip(layers, profile, strict=True) if 0 < value < math.inf]
    if len(points) < 2:
        return None
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    sxx = sum((x - mean_x) ** 2 for x, _ in points)
    sxy = sum((x - mean_x) * (y - mean_y) for x, y in points)
    syy = sum((y - mean_y) ** 2 for _, y in points)
    slope = sxy / sxx
    # A profile flat to rounding has no variance to explain; its line fits it all the same.
    r2 = 1.0 if syy <= 1e-12 * len(points) else sxy**2 / (sxx * syy)
    return DepthFactor(math.exp(-slope), r2, len(points))


def over_depth(factor: float, layers: int) -> str:
    """What a factor per layer makes over ``layers`` layers, as text: a float may not hold the number itself."""
    decades = (layers - 1) * math.log10(factor) if factor > 0 else -math.inf
    return f"{10**decades:.2g}" if -300 < decades < 300 else f"10^{decades:.0f}"


def said_of_depth(theory: Mapping[str, Any], kind: str, layers: int, steady: float) -> str:
    """What theory, as run.json holds it, says of a gradient that is ``kind``; up to ``steady`` decades are none."""
    factor = theory.get("depth_factor")
    if factor is None:
        reason = theory.get("reason")
        return f"no prediction: {reason}" if reason else ""
    decades = math.log10(factor) * (layers - 1) if factor > 0 else -math.inf
    agrees = decades < -steady if kind == "vanishing" else decades > steady
    word = "expects this" if agrees else "expects no such thing of the initial weights"
    whole = over_depth(factor, layers)
    return f"mean-field theory {word}: {factor:.3g} per layer at initialisation, {whole} over the depth"
