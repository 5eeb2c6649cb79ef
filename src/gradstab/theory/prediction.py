"""What a prediction holds, and the line through it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradstab.theory.activations import Array
from gradstab.theory.variances import Variances


@dataclass(frozen=True, eq=False)
class Prediction:
    """Expected values at initialisation, one for each hidden layer, the one nearest the input first.

    ``q``: mean over samples and units of the squared pre-activation (in a residual net: of the stream that the layer
    adds to). ``chi_parallel``: dq^{l+1}/dq^l. ``chi_1``: E‖δ^l‖²/E‖δ^{l+1}‖², a factor of *squared* norms (in a
    residual net: of the gradients on the stream); the last is that of the output layer. ``signal_grad_norm``: the
    expected √(mean over samples of ‖δ^l‖²), the topmost hidden layer's being 1. ``depth_factor``: its growth per
    layer towards the input, with the ``depth_factor_r2`` of the fit; both NaN where fewer than two layers have a
    gradient. ``sigma_w2``, ``sigma_b2``: variances of weights (times fan_in) and biases, the output layer's
    included. ``phi_variance``: variance over units of what φ is applied to, [layers, samples]; None where units of a
    layer differ in it. ``notes``: what the prediction takes for granted beyond width, one line each.
    """

    q: Array
    chi_parallel: Array
    chi_1: Array
    signal_grad_norm: Array
    depth_factor: float
    depth_factor_r2: float
    sigma_w2: Array
    sigma_b2: Array
    phi_variance: Array | None = None
    notes: tuple[str, ...] = ()


def assemble(
    known: Sequence[Variances],
    q: Array,
    forward_slope: Array,
    backward: Array,
    blocks: int = 0,
    scale: float = 1.0,
    *,
    phi_variance: Array | None = None,
    notes: tuple[str, ...] = (),
) -> Prediction:
    """The prediction of a network from the slopes of its units, all [layers, samples], for σ_w² = 1.

    The first ``blocks`` layers feed residual blocks whose branches are scaled by ``scale``; δ is the gradient on the
    stream.
    """
    stream, branch = _paths(known, blocks, scale)
    with np.errstate(over="ignore", under="ignore", divide="ignore"):
        log_stream = _log_gradients(stream + branch * backward)
        log_norms = 0.5 * log_stream[:-1]
        top = log_norms[-1]
        factor, r2 = fit_depth_factor(log_norms)
        return Prediction(
            q=q.mean(axis=1),
            chi_parallel=(stream + branch * forward_slope).mean(axis=1),
            chi_1=np.exp(-np.diff(log_stream)),
            signal_grad_norm=np.exp(log_norms - top),
            depth_factor=factor,
            depth_factor_r2=r2,
            sigma_w2=np.array([v.sigma_w2 for v in known]),
            sigma_b2=np.array([v.sigma_b2 for v in known]),
            phi_variance=phi_variance,
            notes=notes,
        )


def passed_on(known: Sequence[Variances], q: Array, forward_slope: Array, blocks: int, scale: float) -> Array:
    """d ln q^{l+1} / d ln q^l where all samples' lengths change by one factor, q being their mean; [layers - 1]."""
    stream, branch = _paths(known, blocks, scale)
    changed: Array = ((stream + branch * forward_slope) * q)[:-1].mean(axis=1)
    following: Array = q[1:].mean(axis=1)
    return changed / following


def _paths(known: Sequence[Variances], blocks: int, scale: float) -> tuple[Array, Array]:
    """What a residual block's stream passes on, 1 or 0, and its branch's σ_w² as the block scales it; [layers, 1]."""
    sigma_w2 = np.array([v.sigma_w2 for v in known[1:]], dtype=np.float64)[:, None]
    stream = (np.arange(len(sigma_w2)) < blocks)[:, None].astype(np.float64)
    return stream, np.where(stream, scale**2, 1.0) * sigma_w2


def _log_gradients(chi: Array) -> Array:
    """log of the mean over samples of ‖δ^l‖², for factors [layers, samples]; the output layer's, 0, comes last."""
    summed = np.cumsum(np.log(chi)[::-1], axis=0)[::-1]
    return np.append(np.logaddexp.reduce(summed, axis=1) - np.log(chi.shape[1]), 0.0)


def fit_depth_factor(log_norms: Array) -> tuple[float, float]:
    """exp(-slope) of the least-squares line through log ‖δ^l‖ over the layers, and its R².

    Layers without a gradient (-inf) are left out; NaN with fewer than two left. R² is 1 where all are equal.
    """
    layers = np.flatnonzero(np.isfinite(log_norms)).astype(np.float64)
    if layers.size < 2:
        return math.nan, math.nan
    x = layers - layers.mean()
    y = log_norms[np.isfinite(log_norms)]
    y = y - y.mean()
    sxx, sxy, syy = float(x @ x), float(x @ y), float(y @ y)
    r2 = 1.0 if syy <= 1e-12 * y.size else sxy**2 / (sxx * syy)
    return math.exp(-sxy / sxx), r2
