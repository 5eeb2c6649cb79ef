"""The activations as the theory needs them: φ, φ', their kinks and, where they exist, closed-form Gaussian moments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gradstab.theory.special import erf, erfc, normal_cdf, square_within

Array = NDArray[np.float64]
Function = Callable[[Array], Array]

PRELU_SLOPE = 0.25
SELU_ALPHA = 1.6732632423543772
SELU_SCALE = 1.0507009873554805


@dataclass(frozen=True)
class Moments:
    """E φ², E φ'² and dE φ²/dq, each as a function of the variance q > 0 of a normal pre-activation.

    ``mean`` is E φ and ``mean_growth`` its derivative by q, of activations that are not odd.
    """

    square: Function
    slope: Function
    growth: Function
    mean: Function | None = None
    mean_growth: Function | None = None


@dataclass(frozen=True)
class Activation:
    """φ, continuous, with derivative φ' almost everywhere.

    ``kinks`` are the points where φ is not smooth. ``moments`` are closed forms, where they exist and keep their
    digits for every q. ``scale_free`` is E φ²/q = E φ'² of a homogeneous φ (identity and the ReLUs). ``monotone``:
    φ never falls; ``odd``: φ(-x) = -φ(x).
    """

    name: str
    phi: Function
    slope: Function
    kinks: tuple[float, ...] = ()
    moments: Moments | None = None
    scale_free: float | None = None
    monotone: bool = True
    odd: bool = False

    @property
    def at_zero(self) -> float:
        """φ(0)."""
        return float(self.phi(np.zeros(1))[0])


def activation(name: str, *, slope: float = 0.01, alpha: float = 1.0) -> Activation:
    """The activation of that name in gradstab's config.

    ``slope`` is that of leaky_relu, ``alpha`` that of elu; the others ignore both. PReLU is taken as it starts, with
    a slope of 1/4. Raises ValueError for a name that does not exist, and for knobs that are no finite numbers.
    """
    for knob, value in cast(Any, (("slope", slope), ("alpha", alpha))):
        known = value.item() if isinstance(value, np.number) else value
        if not isinstance(known, int | float) or not abs(known) < 1e100:
            raise ValueError(f"act={name}: {knob}={value!r}: has to be a finite number, below 1e100")
    if name == "leaky_relu":
        return _rectifier(name, slope)
    if name == "elu":
        return _elu(name, alpha, scale=1.0)
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise ValueError(f"act={name}: allowed: {', '.join(sorted([*_ACTIVATIONS, 'elu', 'leaky_relu']))}")
    return _ACTIVATIONS[name]


def _rectifier(name: str, slope: float) -> Activation:
    moment = (1 + slope**2) / 2

    def constant(q: Array) -> Array:
        return np.full_like(q, moment)

    return Activation(
        name,
        lambda x: np.where(x > 0, x, slope * x),
        lambda x: np.where(x > 0, 1.0, slope),
        kinks=() if slope == 1 else (0.0,),
        moments=Moments(
            *(lambda q: moment * q, constant, constant),
            mean=lambda q: (1 - slope) * np.sqrt(q / (2 * np.pi)),
            mean_growth=lambda q: (1 - slope) / np.sqrt(8 * np.pi * q),
        ),
        scale_free=moment,
        monotone=slope >= 0,
        odd=slope == 1,
    )


def _elu(name: str, alpha: float, scale: float) -> Activation:
    # No closed forms here: ½ − erfcx(√(q/2)) + ½ erfcx(√(2q)) in E φ² loses all its digits as q → 0.
    def phi(x: Array) -> Array:
        return np.where(x > 0, scale * x, scale * alpha * np.expm1(np.minimum(x, 0)))

    def slope(x: Array) -> Array:
        return np.where(x > 0, scale, scale * alpha * np.exp(np.minimum(x, 0)))

    return Activation(name, phi, slope, kinks=(0.0,), monotone=alpha * scale >= 0)


def _scaled_tanh(name: str, height: float, rate: float) -> Activation:
    def slope(x: Array) -> Array:
        return np.asarray(height * rate * (1 - np.square(np.tanh(rate * x))))

    return Activation(name, lambda x: height * np.tanh(rate * x), slope, odd=True)


def _sigmoid(x: Array) -> Array:
    return 0.5 * (1 + np.tanh(0.5 * x))


def _sigmoid_slope(x: Array) -> Array:
    return np.asarray(0.25 * (1 - np.square(np.tanh(0.5 * x))))


def _silu_slope(x: Array) -> Array:
    return _sigmoid(x) + x * _sigmoid_slope(x)


def _softplus(x: Array) -> Array:
    return np.logaddexp(0.0, x)


def _tanh_softplus(x: Array) -> Array:
    """(e^2x + 2e^x) / (e^2x + 2e^x + 2), which is 1 to the last digit beyond x = 20."""
    e = np.exp(np.minimum(x, 20.0))
    w = e * (e + 2)
    return np.asarray(w / (w + 2))


def _mish(x: Array) -> Array:
    return x * _tanh_softplus(x)


def _mish_slope(x: Array) -> Array:
    t = _tanh_softplus(x)
    return np.asarray(t + x * (1 - np.square(t)) * _sigmoid(x))


def _erf_slope(x: Array) -> Array:
    return np.asarray(2 / np.sqrt(np.pi) * np.exp(-np.square(x)))


# Williams 1997: E φ² = (2/π) asin(2q/(1+2q)), E φ'² = (4/π)/√(1+4q).
_ERF = Moments(
    square=lambda q: 2 / np.pi * np.arcsin(2 * q / (1 + 2 * q)),
    slope=lambda q: 4 / np.pi / np.sqrt(1 + 4 * q),
    growth=lambda q: 4 / np.pi / np.sqrt(1 + 4 * q) / (1 + 2 * q),
)


def _gelu_slope(x: Array) -> Array:
    return np.asarray(normal_cdf(x) + x * np.exp(-0.5 * np.square(x)) / np.sqrt(2 * np.pi))


# Beyond it squares overflow, and of E φ²/q and E φ'² nothing changes any more.
_LONG = 1e60


def _gelu_angle(q: Array, wide: Array) -> Array:
    """asin(q/(1+q)), which would lose half of its digits at large q."""
    return np.arctan2(q, wide)


def _gelu_square_per_length(q: Array) -> Array:
    wide = np.sqrt(1 + 2 * q)
    return np.asarray(0.25 + (_gelu_angle(q, wide) + 2 * q / ((1 + q) * wide)) / (2 * np.pi))


def _gelu_square(q: Array) -> Array:
    """Tsuchida et al. 2021 (arXiv:2002.08517), at correlation 1."""
    return q * _gelu_square_per_length(np.minimum(q, _LONG))


def _gelu_slope_square(q: Array) -> Array:
    """Tsuchida et al. 2021 (arXiv:2002.08517), at correlation 1."""
    q = np.minimum(q, _LONG)
    wide = np.sqrt(1 + 2 * q)
    return np.asarray(0.25 + (_gelu_angle(q, wide) + q * (3 + 5 * q) / ((1 + q) * wide**3)) / (2 * np.pi))


def _gelu_growth(q: Array) -> Array:
    """The derivative of E φ² by q."""
    q = np.minimum(q, _LONG)
    wide = np.sqrt(1 + 2 * q)
    turn = 1 / ((1 + q) * wide) + 2 * (1 + q - q**2) / ((1 + q) ** 2 * wide**3)
    return np.asarray(_gelu_square_per_length(q) + q * turn / (2 * np.pi))


# E xΦ(x) is q times the mean density of a normal variable at x (Stein's lemma).
_GELU = Moments(
    *(_gelu_square, _gelu_slope_square, _gelu_growth),
    mean=lambda q: q / np.sqrt(2 * np.pi * (1 + q)),
    mean_growth=lambda q: (1 + q / 2) / (np.sqrt(2 * np.pi * (1 + q)) * (1 + q)),
)


def _edge(q: Array) -> Array:
    """Where |x| reaches 1, as erf counts: over √(2q)."""
    return 1 / np.sqrt(2 * q)


# E[x²; |x|<1] + P(|x|>1), P(|x|<1) and E[x²; |x|<1]/q.
_HARDTANH = Moments(
    square=lambda q: q * square_within(_edge(q)) + erfc(_edge(q)),
    slope=lambda q: erf(_edge(q)),
    growth=lambda q: square_within(_edge(q)),
)


_ACTIVATIONS: dict[str, Activation] = {
    known.name: known
    for known in (
        _rectifier("identity", 1.0),
        _rectifier("relu", 0.0),
        _rectifier("prelu", PRELU_SLOPE),
        _elu("selu", SELU_ALPHA, SELU_SCALE),
        _scaled_tanh("tanh", 1.0, 1.0),
        _scaled_tanh("scaled_tanh", 1.7159, 2 / 3),
        Activation("sigmoid", _sigmoid, _sigmoid_slope),
        Activation(
            "softsign", lambda x: x / (1 + np.abs(x)), lambda x: (1 + np.abs(x)) ** -2.0, kinks=(0.0,), odd=True
        ),
        Activation("softplus", _softplus, _sigmoid),
        Activation("silu", lambda x: x * _sigmoid(x), _silu_slope, monotone=False),
        Activation("gelu", lambda x: x * normal_cdf(x), _gelu_slope, moments=_GELU, monotone=False),
        Activation("mish", _mish, _mish_slope, monotone=False),
        Activation("erf", erf, _erf_slope, moments=_ERF, odd=True),
        Activation(
            "hardtanh",
            lambda x: np.clip(x, -1, 1),
            lambda x: np.where(np.abs(x) < 1, 1.0, 0.0),
            kinks=(-1.0, 1.0),
            moments=_HARDTANH,
            odd=True,
        ),
    )
}
