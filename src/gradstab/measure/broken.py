"""What is inf or NaN of a step: its loss, or its gradients, and where."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gradstab.encoding import Vector

# What single precision holds, with some room for parameters that are no layer's.
SINGLE = 1e38


@dataclass(frozen=True)
class Broken:
    """A step's non-finite quantity, the layers whose gradients it is in, and its value."""

    quantity: str
    layers: tuple[str, ...]
    value: float


def broken(
    loss: float | None, norm: float | None, vectors: Mapping[str, Vector], layers: Sequence[str]
) -> Broken | None:
    """What is inf or NaN of one step, if anything: its loss, or its gradients."""
    if loss is not None and not math.isfinite(loss):
        # The gradients of a broken loss are broken everywhere; that says nothing of where it began.
        return Broken("train/loss", (), loss)
    found: list[int] = []
    norms = vectors.get("grad_norm")
    if norms is not None and (norm is None or not math.isfinite(norm)):
        found = np.flatnonzero(~np.isfinite(norms)).tolist()
    signals = vectors.get("signal_grad_norm")
    # A signal is NaN where a layer never shows one, which fmax passes over.
    if not found and signals is not None and len(signals) and math.isinf(np.fmax.reduce(signals)):
        found = np.flatnonzero(np.isinf(signals)).tolist()
    if not found and (norm is None or math.isfinite(norm)):
        return None
    # Of float64's huge but finite norms, the squares overflow when they are put together.
    if not found and norms is not None and math.isinf(norm or 0.0) and float(np.linalg.norm(norms)) >= SINGLE:
        return None
    return Broken("grad_norm", tuple(layers[i] for i in found), math.inf)
