"""What dropout leaves of a signal: how much of the difference between two outputs comes of their inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from gradstab.theory.activations import Activation, Array, activation
from gradstab.theory.arguments import check_network, check_variances, checked_knobs
from gradstab.theory.maps import second_moment
from gradstab.theory.quadrature import hermite_coefficients
from gradstab.theory.trajectory import branch_scale, scaled_up
from gradstab.theory.variances import Fan, Variances, layer_variances

_ORDER = 64
_POWERS = np.arange(_ORDER)

# Mean square, covariance of two samples, covariance of a sample under two masks: of one layer's units.
_Moments = tuple[float, float, float]


def signal_shares(
    *,
    act: str,
    widths: Sequence[int],
    q0: float,
    c0: float,
    dropout: float,
    init: str = "default",
    act_knobs: Mapping[str, float] | None = None,
    init_knobs: Mapping[str, float] | None = None,
    norm: str = "none",
    norm_position: str | None = None,
    residual: str = "none",
    bias: bool = True,
) -> Array:
    """The share of each layer's variance between samples that its inputs account for, the rest being masks' noise.

    (c_mask - c) / (1 - c), [depth + 1], the output layer last: c_mask is the correlation of one sample's
    pre-activations under two dropout masks, c that of two samples'. 1 without dropout. Dropout of rate p divides
    E φ² by 1-p but leaves both covariances alone, so c_mask falls from layer to layer to the fixed point where c
    goes too: what tells samples apart is lost after a few ξ_c (Schoenholz et al. 2017, arXiv:1611.01232, §5).
    The arguments are those of :func:`gradstab.theory.predict`; accurate to about 1e-3.

    Raises :class:`NoTheory` for initialisations that mean-field theory has no word on, ValueError for what cannot be.
    """
    check_network(widths, dropout, norm, norm_position, c0=c0)
    check_variances(phi := activation(act, **checked_knobs("act_knobs", act_knobs)), q0=q0)
    init_knobs = checked_knobs("init_knobs", init_knobs)
    fans = [Fan(fan_in, fan_out) for fan_in, fan_out in pairwise(widths)]
    depth = len(fans) - 1
    if depth < 0:
        raise ValueError(f"widths={list(widths)}: have to be those of inputs and outputs at least")
    drawn = layer_variances(init, init_knobs, fans, act=act, act_knobs=act_knobs or {}, dropout=dropout, bias=bias)
    blocks = depth - 1 if residual != "none" else 0
    scale2 = branch_scale(residual, blocks) ** 2
    covariances = _Covariances(phi)

    def walk(drawn: Sequence[Variances], rate: float) -> tuple[list[Variances], list[float]]:
        unit: _Moments = (q0, c0 * q0, q0)
        stream: _Moments = (0.0, 0.0, 0.0)
        known, shares = [], []
        for layer, v in enumerate(drawn):
            if layer:
                unit = _unit(stream, covariances, norm, norm_position, rate)
            sigma_w2 = v.sigma_w2 if v.sigma_w2 is not None else scaled_up(v, unit[0])
            known.append(Variances(sigma_w2, v.sigma_b2))
            affine = [sigma_w2 * moment + v.sigma_b2 for moment in unit]
            if 1 <= layer <= blocks:
                affine = [before + scale2 * moment for before, moment in zip(stream, affine, strict=True)]
            stream = (affine[0], affine[1], affine[2])
            between = stream[0] - stream[1]
            shares.append((stream[2] - stream[1]) / between if between > 1e-12 * stream[0] else math.nan)
        return known, shares

    if init == "lsuv":
        drawn, _ = walk(drawn, 0.0)  # It measures what it scales by without dropout.
    return np.array(walk(drawn, dropout)[1])


def _unit(h: _Moments, covariances: _Covariances, norm: str, position: str | None, dropout: float) -> _Moments:
    """[norm] → φ → [norm] → dropout."""
    if norm != "none" and position != "after":
        h = _normalised(h, h[1] if norm == "batch" else 0.0)
    a, mean = covariances(h)
    if norm != "none" and position == "after":
        a = _normalised(a, a[1] if norm == "batch" else mean**2)
    return a[0] / (1 - dropout), a[1], a[2]


def _normalised(m: _Moments, common: float) -> _Moments:
    """BatchNorm takes away what all samples share, LayerNorm what all units do; both divide by what is left."""
    variance = max(m[0] - common, 1e-300)
    return 1.0, (m[1] - common) / variance, (m[2] - common) / variance


class _Covariances:
    """E φ(u)φ(v) = Σ a_k² c^k for u, v of variance q and correlation c, a_k being Hermite coefficients of φ(√q z)."""

    def __init__(self, act: Activation) -> None:
        self._act = act
        self._q = math.nan
        self._squares = np.zeros(_ORDER)
        self._second = self._mean = self._beyond = 0.0

    def __call__(self, h: _Moments) -> tuple[_Moments, float]:
        """The moments of φ's output, and its mean over units."""
        q = h[0]
        if not q:
            constant = self._act.at_zero
            return (constant**2, constant**2, constant**2), constant
        if not abs(q - self._q) <= 1e-12 * q:
            self._q = q
            coefficients, self._second = hermite_coefficients(self._act.phi, q, _ORDER, self._act.kinks)
            if self._act.moments:
                self._second = float(second_moment(self._act, q))
            self._squares, self._mean = coefficients**2, float(coefficients[0])
            self._beyond = self._second - float(self._squares.sum())
        return (self._second, self._at(h[1] / q), self._at(h[2] / q)), self._mean

    def _at(self, c: float) -> float:
        c = min(max(c, -1.0), 1.0)
        # What is beyond the order counts as of that order: exact at c = 1.
        return float(c**_POWERS @ self._squares) + self._beyond * c**_ORDER
