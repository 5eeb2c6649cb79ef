"""Singular values of a matrix, and what is told of those of several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

# From this side on, eigenvalues of a Gram matrix; and the multiplications that finding small values may take again.
GRAM_FROM, MAX_AGAIN = 256, 1e9


@dataclass(frozen=True)
class Spectrum:
    """Singular values of a Jacobian: their mean, largest and smallest, averaged over samples.

    ``condition`` is the median over samples of largest over smallest, inf where the smallest is 0 up to rounding.
    """

    mean: float
    largest: float
    smallest: float
    condition: float


def singular_values(matrix: Tensor) -> Tensor:
    """The min(n, m) singular values of a float64 matrix [n, m], largest first.

    With 256 or more non-zero rows and columns they are the roots of the Gram matrix's eigenvalues, which takes a tenth
    of the time. Rounding there is relative to the largest eigenvalue: a singular value s is right to about
    1e-15 (largest/s)², relatively, and below √(n ε) of the largest, 6e-7 for n = 1600, nothing is left of it. Where
    that concerns any, they are decomposed after all if this is quick, and else such values are set to 0. Of a matrix
    that is not finite, all are NaN.
    """
    count = min(matrix.shape)
    if not matrix.isfinite().all():
        return torch.full((count,), math.nan, dtype=matrix.dtype)
    # Units that are off have rows or columns of zeros, which add singular values 0.
    matrix = matrix[matrix.any(dim=1)][:, matrix.any(dim=0)]
    rows = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    side = len(rows)
    if side < GRAM_FROM:
        values = torch.linalg.svdvals(rows)
    else:
        squares = torch.linalg.eigvalsh(rows @ rows.T).flip(0)
        resolved = squares > side * torch.finfo(squares.dtype).eps * squares[0]
        if not resolved.all() and rows.numel() * side <= MAX_AGAIN:
            values = torch.linalg.svdvals(rows)
        else:
            values = torch.where(resolved, squares, 0.0).sqrt()
    return nn.functional.pad(values, (0, count - side))


def spectrum(values: Sequence[Tensor]) -> Spectrum:
    """That of several samples' singular values, each [count], largest first."""
    largest = [float(v[0]) for v in values]
    smallest = [0.0 if float(v[-1]) <= 1e-13 * float(v[0]) else float(v[-1]) for v in values]
    conditions = [high / low if low else math.inf for high, low in zip(largest, smallest, strict=True)]
    return Spectrum(
        mean_of([float(v.mean()) for v in values]), mean_of(largest), mean_of(smallest), float(np.median(conditions))
    )


def mean_of(values: Sequence[float]) -> float:
    """Their mean."""
    return sum(values) / len(values)
