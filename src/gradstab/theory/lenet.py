"""The prediction for LeNet-5, through the fan-ins of its layers and the pooling between them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gradstab.theory.activations import Activation, Array, Function, activation
from gradstab.theory.arguments import check_correlation, check_network, checked_knobs, lengths_of
from gradstab.theory.errors import NoTheory
from gradstab.theory.prediction import Prediction, assemble
from gradstab.theory.quadrature import gaussian_expectation, largest_of_four, pair_expectation
from gradstab.theory.trajectory import branch_scale, trajectory
from gradstab.theory.unit import Dropped, Plain, Unit
from gradstab.theory.variances import Fan, layer_variances


@dataclass(frozen=True)
class AveragePooled:
    """φ and the mean over windows of 2×2: E p² = (E φ² + 3 E φφ')/4, backwards E φ'²/4."""

    act: Activation
    correlation: float

    def _pair(self, q: Array, weigh_first: bool) -> Array:
        def product(x: Array, y: Array) -> Array:
            return x * self.act.slope(x) * self.act.phi(y) if weigh_first else self.act.phi(x) * self.act.phi(y)

        return np.stack([pair_expectation(product, self.correlation, float(v), self.act.kinks) for v in q.ravel()])

    def forward(self, q: Array) -> Array:
        return (Plain(self.act).forward(q) + 3 * self._pair(q, False).reshape(q.shape)) / 4

    def forward_slope(self, q: Array) -> Array:
        return (Plain(self.act).forward_slope(q) + 3 * self._pair(q, True).reshape(q.shape) / q) / 4

    def backward(self, q: Array) -> Array:
        return Plain(self.act).backward(q) / 4


@dataclass(frozen=True)
class MaxPooled:
    """φ and the maximum over windows of 2×2, where φ never falls: φ of the window's largest pre-activation."""

    act: Activation
    correlation: float

    def _expectation(self, f: Function, q: Array) -> Array:
        return np.stack(
            [
                gaussian_expectation(
                    lambda x, v=v: f(x) * largest_of_four(x / np.sqrt(v), self.correlation),  # type: ignore[misc]
                    float(v),
                    self.act.kinks,
                )
                for v in q.ravel()
            ]
        ).reshape(q.shape)

    def forward(self, q: Array) -> Array:
        return self._expectation(lambda x: self.act.phi(x) ** 2, q)

    def forward_slope(self, q: Array) -> Array:
        return self._expectation(lambda x: x * self.act.phi(x) * self.act.slope(x), q) / q

    def backward(self, q: Array) -> Array:
        return self._expectation(lambda x: self.act.slope(x) ** 2, q)


def window_correlation(h: Array) -> float:
    """Mean correlation of two pre-activations in a pooling window of 2×2: E hh'/E h², for maps [..., H, W].

    NaN where all are 0 or one is not finite, or where no window fits in; ValueError for fewer than two axes.
    """
    h = np.asarray(h, dtype=np.float64)
    if h.ndim < 2:
        raise ValueError(f"h: has shape {list(h.shape)}; has to be maps [..., H, W]")
    rows, columns = h.shape[-2] // 2, h.shape[-1] // 2
    windows = h[..., : 2 * rows, : 2 * columns].reshape(*h.shape[:-2], rows, 2, columns, 2)
    with np.errstate(over="ignore", invalid="ignore"):
        squares = float((windows**2).sum())
    if not 0 < squares < math.inf:
        return math.nan
    return (float((windows.sum(axis=(-3, -1)) ** 2).sum()) - squares) / (3 * squares)


def predict_lenet5(
    *,
    act: str,
    q0: float,
    correlations: tuple[float, float] | None,
    init: str = "default",
    pooling: str = "max",
    act_knobs: Mapping[str, float] | None = None,
    init_knobs: Mapping[str, float] | None = None,
    norm: str = "none",
    dropout: float = 0.0,
    residual: str = "none",
    in_channels: int = 1,
    out_features: int = 10,
) -> Prediction:
    """Lengths, slopes and gradient norms of gradstab's lenet5 at initialisation; layers C1, C3, C5, F6.

    ``q0`` is the mean square of what C1's kernels see, padding included. ``correlations`` are those of the
    pre-activations of C1 and of C3 within a pooling window, which depend on the images:
    :func:`window_correlation` takes them from maps measured under the same dropout. Positions and channels count as
    alike and as Gaussian, which few channels are only roughly; no kernel but C1's meets padding, so fan-ins are exact.
    (Xiao et al. 2018, arXiv:1806.05393)

    Raises :class:`NoTheory` where there is none, ValueError for what cannot be.
    """
    check_network((in_channels, out_features), dropout, norm)
    branch_scale(residual, 0)
    if norm != "none" or residual != "none":
        raise NoTheory(
            f"model=lenet5 with norm={norm}, residual={residual}: both mix positions of an image, whose "
            "correlations beyond a pooling window are not known"
        )
    if correlations is None:
        raise NoTheory(
            f"model=lenet5: pooling={pooling} depends on how correlated pre-activations are within a window, "
            "which the images decide; measure it with window_correlation"
        )
    if not isinstance(correlations, Sequence | np.ndarray) or len(correlations) != 2:
        raise ValueError(f"correlations={correlations!r}: has to be two correlations, or None")
    if any(correlation != correlation for correlation in correlations if np.ndim(correlation) == 0):
        raise NoTheory("correlations: there is nothing to correlate where pre-activations are 0, inf or NaN")
    check_correlation("correlations", *correlations)
    act_knobs, init_knobs = checked_knobs("act_knobs", act_knobs), checked_knobs("init_knobs", init_knobs)
    phi = activation(act, **act_knobs)
    units: list[Unit] = [Dropped(unit, dropout) for unit in _units(phi, pooling, correlations)]
    # lsuv measures what it scales by without dropout, whose masks add to C3's squares but not to its products.
    drawing = _units(phi, pooling, (correlations[0], correlations[1] / (1 - dropout)))
    fans = [
        Fan(25 * in_channels, 25 * 6, kernel=25),
        Fan(25 * 6, 25 * 16, kernel=25),
        Fan(400, 120),
        Fan(120, 84),
        Fan(84, out_features),
    ]
    drawn = layer_variances(init, init_knobs, fans, act=act, act_knobs=act_knobs, dropout=dropout, bias=True)
    start = lengths_of(q0, len(drawn))
    known, _ = trajectory(drawn, [unit.forward for unit in drawing], start)
    _, q = trajectory(known, [unit.forward for unit in units], start)
    forward_slope = np.stack([unit.forward_slope(v) for unit, v in zip(units, q, strict=True)])
    backward = np.stack([unit.backward(v) for unit, v in zip(units, q, strict=True)])
    notes = (
        f"model=lenet5: pre-activations in a pooling window are taken as equally correlated, {correlations[0]:.3g} in "
        f"C1 and {correlations[1]:.3g} in C3",
        "model=lenet5: 6 and 16 channels are few; single draws of the weights scatter widely around the prediction",
    )
    return assemble(known, q, forward_slope, backward, notes=notes)


def _units(act: Activation, pooling: str, correlations: tuple[float, float]) -> list[Unit]:
    """The hidden units, without dropout."""
    # Of four values that are equally correlated no less than -1/3 is possible; what is measured below 0 is chance.
    pooled = [_pooled(act, pooling, min(max(correlation, 0.0), 1.0)) for correlation in correlations]
    return [*pooled, Plain(act), Plain(act)]


def _pooled(act: Activation, pooling: str, correlation: float) -> Unit:
    if pooling == "avg":
        return AveragePooled(act, correlation)
    if pooling != "max":
        raise ValueError(f"pooling={pooling}: allowed: avg, max")
    if not act.monotone:
        raise NoTheory(
            f"model=lenet5 with pooling=max, act={act.name}: φ falls somewhere, so the largest activation of a "
            "window need not be that of its largest pre-activation"
        )
    return MaxPooled(act, correlation)
