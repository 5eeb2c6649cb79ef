"""A hidden unit, [norm] → φ → [norm] → dropout, as the theory sees it: what it does to lengths and to gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gradstab.theory.activations import Activation, Array
from gradstab.theory.batchnorm import BatchNormMoments, batch_norm_moments
from gradstab.theory.errors import NoTheory
from gradstab.theory.maps import mean_and_variance, mean_slope, second_moment, second_moment_slope, slope_moment

EPS = 1e-5  # of PyTorch's LayerNorm and BatchNorm


class Unit(Protocol):
    """Functions of the pre-activation's mean square q over units, elementwise."""

    def forward(self, q: Array) -> Array:
        """Mean square of the unit's output."""

    def forward_slope(self, q: Array) -> Array:
        """Derivative of ``forward`` by q."""

    def backward(self, q: Array) -> Array:
        """Factor on the mean square of a gradient that is independent of the unit's input."""


@dataclass(frozen=True)
class Plain:
    """φ alone."""

    act: Activation

    def forward(self, q: Array) -> Array:
        return second_moment(self.act, q)

    def forward_slope(self, q: Array) -> Array:
        return second_moment_slope(self.act, q)

    def backward(self, q: Array) -> Array:
        return slope_moment(self.act, q)


@dataclass(frozen=True)
class LayerNormBefore:
    """φ(LN(h)): φ sees the variance q/(q+ε); LN's Jacobian is 1/√(q+ε) but for two directions out of N."""

    act: Activation

    def forward(self, q: Array) -> Array:
        return second_moment(self.act, q / (q + EPS))

    def forward_slope(self, q: Array) -> Array:
        return second_moment_slope(self.act, q / (q + EPS)) * EPS / (q + EPS) ** 2

    def backward(self, q: Array) -> Array:
        return slope_moment(self.act, q / (q + EPS)) / (q + EPS)


@dataclass(frozen=True)
class LayerNormAfter:
    """LN(φ(h)): V/(V+ε) with V = Var φ(√q z); LN's Jacobian is 1/√(V+ε) but for two directions out of N."""

    act: Activation

    def forward(self, q: Array) -> Array:
        _, variance = mean_and_variance(self.act, q)
        return variance / (variance + EPS)

    def forward_slope(self, q: Array) -> Array:
        mean, variance = mean_and_variance(self.act, q)
        slope = second_moment_slope(self.act, q) - 2 * mean * mean_slope(self.act, q)
        return slope * EPS / (variance + EPS) ** 2

    def backward(self, q: Array) -> Array:
        _, variance = mean_and_variance(self.act, q)
        return slope_moment(self.act, q) / (variance + EPS)


@dataclass(frozen=True)
class BatchNormBefore:
    """φ(BN(h)) and its dropout. ``backward`` is a function of h's variance over the batch, not of q.

    It is that of gradients which add up to 0 over the batch, as they do below another BatchNorm; ``parts`` has the two
    terms of it, (own, cross): where any two samples' gradients have the mean product ``share``/(B-1) times their mean
    square, the factor is own - share cross. That of gradients below a BatchNorm is -1.
    """

    moments: BatchNormMoments
    rate: float

    def forward(self, q: Array) -> Array:
        return np.full_like(q, self.moments.square / (1 - self.rate))

    def forward_slope(self, q: Array) -> Array:
        return np.zeros_like(q)

    def forward_variance(self, q: Array) -> Array:
        """Variance over the batch of the next layer's pre-activation, for σ_w² = 1."""
        return np.full_like(q, self.moments.variance(self.rate))

    def backward(self, q: Array) -> Array:
        own, cross = self.parts(q)
        return own + cross

    def parts(self, q: Array) -> tuple[Array, Array]:
        return self.moments.own / (1 - self.rate) / q, self.moments.cross / q


@dataclass(frozen=True)
class Dropped:
    """A unit with inverted dropout at its end: a mask's second moment is 1/(1-p)."""

    unit: Unit
    rate: float

    def forward(self, q: Array) -> Array:
        return self.unit.forward(q) / (1 - self.rate)

    def forward_slope(self, q: Array) -> Array:
        return self.unit.forward_slope(q) / (1 - self.rate)

    def backward(self, q: Array) -> Array:
        return self.unit.backward(q) / (1 - self.rate)


def build_unit(act: Activation, norm: str, position: str | None, batch_size: int | None, dropout: float) -> Unit:
    """The unit of a layer; ``position`` is before (also for None) or after the activation."""
    after = position == "after"
    if norm == "batch":
        if after:
            raise NoTheory(
                "norm=batch with norm_position=after: what BatchNorm divides by depends on the slopes φ' that the "
                "gradient passes, and no formula for their ratio at a finite batch size is known"
            )
        return BatchNormBefore(batch_norm_moments(act, batch_size), dropout)
    plain: Unit = Plain(act) if norm == "none" else LayerNormAfter(act) if after else LayerNormBefore(act)
    return Dropped(plain, dropout) if dropout else plain


def phi_variance(norm: str, position: str | None, q: Array) -> Array:
    """Variance of what φ is applied to, for :func:`build_unit`'s pre-activations of mean square q."""
    if norm == "none" or position == "after":
        return q
    return np.ones_like(q) if norm == "batch" else q / (q + EPS)
