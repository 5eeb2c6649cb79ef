"""What finite widths and few lengths leave out, where the layers that follow make more of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from gradstab.theory.activations import Array
from gradstab.theory.prediction import Prediction
from gradstab.theory.trajectory import Forward

# A mean square over N rectified normal numbers scatters by √(5/N) of itself; that of most other units by less.
_SPREAD = 5.0
# Where lengths settle, they do not grow at all; and a percent is what wide networks agree to.
_LEAST_GROWTH, _LEAST_SCATTER = 1.5, 0.01
# Of N units, the part of δ along the signal starts as so many Nths of the squared gradient: measured on softplus, depth
# 10 to 60, widths of 128 to 3000 (17 to 59, for the most part 20 to 35).
_ALONG = 25.0
# Lengths whose group's mean is so much smaller are not what the group stands for.
_FAR = 1.2
_STEP = 1e-3
_SMALLEST = 1e-280


def notes_on_width(
    prediction: Prediction, passed: Array, backward: Forward, widths: Sequence[int], blocks: int, longest: float
) -> Iterator[str]:
    """A line for each reason why finite widths, or few lengths in place of many, may move the depth factor.

    ``passed`` is d ln q^{l+1} / d ln q^l, [layers - 1], ``backward`` the units' factor on squared gradients by length,
    ``widths`` are those of the hidden layers, of which ``blocks`` feed residual blocks; ``longest`` is the largest
    input's mean square over the largest one followed.
    """
    q = prediction.q
    if len(q) < 2 or not ((q > _SMALLEST) & (q < 1 / _SMALLEST)).all():
        return  # The maps end there.
    growth = _largest_growth(passed)
    if not growth >= _LEAST_GROWTH:
        yield from _of_signal(prediction, passed, min(widths))
        return
    if longest > _FAR:
        yield (
            f"q0: means stand for many lengths, the largest of which is {longest:.2g} times the largest mean; lengths "
            "do not settle, and the longest inputs may have gradients that no mean tells of"
        )
    scatter = _scatter(prediction, backward, passed, widths, blocks)
    if scatter >= _LEAST_SCATTER:
        yield (
            f"widths: lengths do not settle, and what {min(widths)} units add to them grows {growth:.2g}-fold: depth "
            f"factors scatter by about {min(scatter, 1.0):.0%} for it, and their mean may be off as far"
        )


def _of_signal(prediction: Prediction, passed: Array, narrowest: int) -> Iterator[str]:
    """Where the part of δ along the signal, a small one at the outputs, shrinks slower than all others.

    Squared, it changes by χ∥² q^l/q^{l+1} from layer to layer, and they by χ₁: where E φ φ'' > 0 that is less.
    """
    slower = np.log(np.maximum(passed * prediction.chi_parallel[:-1] / prediction.chi_1[:-1], 1e-300))
    grown = math.exp(min(700.0, max(0.0, float(np.cumsum(slower[::-1])[-1]))))
    off = math.expm1(math.log1p(_ALONG * (grown - 1) / narrowest) / (2 * len(passed)))
    if off >= _LEAST_SCATTER:
        yield (
            f"widths: the part of a gradient along the signal, small at the outputs of {narrowest} units, shrinks more "
            f"slowly than the rest: depth factors may be about {off:.1%} larger"
        )


def _scatter(prediction: Prediction, backward: Forward, passed: Array, widths: Sequence[int], blocks: int) -> float:
    """How far draws of the depth factor lie apart, as a share of it, for what widths add to lengths.

    A relative deviation of q^l is passed on times d ln q^{l+1} / d ln q^l and changes ln χ₁ by d ln χ₁ / d ln q^l; both
    are followed to first order along the trajectory. At width 128 and depth 30 a GELU's draws (``init=kaiming_normal``)
    scatter by 9 %, with a mean 11 % off; this says 7 %.
    """
    q, depth = prediction.q, len(prediction.q)
    with np.errstate(all="ignore"):
        slope = np.log(backward(q * (1 + _STEP)) / backward(q)) / math.log1p(_STEP)
    # The depth factor's line through ½ Σ ln χ₁ of the layers from l on up.
    layers = np.arange(depth) - (depth - 1) / 2
    moved = slope * -0.5 * np.cumsum(layers / (layers @ layers))
    for layer in reversed(range(depth - 1)):
        moved[layer] += passed[layer] * moved[layer + 1]
    stream = q[:-1] * (np.arange(depth - 1) < blocks)
    added = (q[1:] - stream) / q[1:] * np.sqrt(_SPREAD / np.array(widths[:-1], dtype=np.float64))
    return math.sqrt(float(np.square(added * moved[1:]).sum()))


def _largest_growth(factors: Array) -> float:
    """The largest product of neighbouring factors, at least 1."""
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.maximum(factors, 1e-300)))])
    return math.exp(min(700.0, float((logs - np.minimum.accumulate(logs)).max())))
