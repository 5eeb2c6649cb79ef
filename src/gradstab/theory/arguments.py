"""What predictions are asked of: refused where there can be no such network, and few lengths in place of many."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike

from gradstab.theory.activations import Activation, Array
from gradstab.theory.errors import NoTheory

# Layers × lengths followed through them. Beyond some twenty lengths the prediction no longer changes, and those of a
# thousand layers are to cost less than a tenth of a second.
_MOST_LENGTHS, _BUDGET = 32, 1600
# Layer norm takes away the mean and the length: over 3 or 4 numbers depth factors were 28 to 99 % off, over 8 4 %.
LEAST_NORMED = 8
_NORMS, _POSITIONS = ("none", "batch", "layer"), ("before", "after")
_POSITIVE = ("sigma_w2", "sigma_b2", "std", "bound", "gain")
# Squares of knobs have to be numbers, too.
_MOST = 1e100
_KNOBS = {"init_knobs": ("gain", "std", "bound", "value", "sigma_w2", "sigma_b2"), "act_knobs": ("slope", "alpha")}


def check_network(
    widths: Sequence[int],
    dropout: float,
    norm: str = "none",
    norm_position: str | None = None,
    batch_size: int | None = None,
    c0: float = 0.0,
) -> None:
    """Raises ValueError for what no network can have, :class:`NoTheory` for layer norm over fewer than 8 numbers."""
    if isinstance(cast(object, widths), str) or not isinstance(widths, Sequence | np.ndarray):
        raise ValueError(f"widths={widths!r}: has to be a list of whole numbers of at least 1")
    if not all(_is_count(width) for width in widths):
        raise ValueError(f"widths={list(widths)}: have to be whole numbers of at least 1")
    check_rate(dropout)
    if norm not in _NORMS:
        raise ValueError(f"norm={norm}: allowed: {', '.join(_NORMS)}")
    if norm_position not in (None, *_POSITIONS):
        raise ValueError(f"norm_position={norm_position}: allowed: {', '.join(_POSITIONS)}")
    if batch_size is not None and not _is_count(batch_size):
        raise ValueError(f"batch_size={batch_size!r}: has to be a whole number of at least 1, or None")
    if math.isnan(_number("c0", c0)):
        raise NoTheory("c0: the inputs' correlation is not known")
    check_correlation("c0", c0)
    narrowest = min(list(widths)[1:-1], default=LEAST_NORMED)
    if norm == "layer" and narrowest < LEAST_NORMED:
        left = (
            "leaves a gradient of 0" if narrowest <= 2 else f"of fewer than {LEAST_NORMED} what is left scatters widely"
        )
        raise NoTheory(f"norm=layer over {narrowest} numbers: it takes two directions away, and {left}")


def check_rate(dropout: float) -> None:
    """Raises ValueError for a rate of dropout outside [0, 1)."""
    if not 0 <= _number("dropout", dropout) < 1:
        raise ValueError(f"dropout={dropout:g}: has to be at least 0 and below 1")


def check_correlation(name: str, *values: float) -> None:
    """Raises ValueError for what is no correlation."""
    for value in values:
        if not abs(_number(name, value)) <= 1 + 1e-6:
            raise ValueError(f"{name}={value:g}: has to be a correlation between -1 and 1")


def check_variances(act: Activation, *, dropout: float = 0.0, **variances: float) -> None:
    """Raises TypeError for what is no :class:`Activation`, ValueError for what cannot be a variance or a rate."""
    if not isinstance(act, Activation):
        raise TypeError(f"act={act!r}: has to be an Activation, as activation(name) gives it")
    check_rate(dropout)
    for name, value in variances.items():
        if not 0 <= _number(name, value) < _MOST:
            raise ValueError(f"{name}={value:g}: has to be a finite number of at least 0, below {_MOST:g}")


def check_lengths(act: Activation, q: ArrayLike, **variances: float) -> None:
    """As :func:`check_variances`, and ValueError where a mean square is negative or NaN."""
    check_variances(act, **variances)
    least = np.min(lengths(q), initial=np.inf)
    if not least >= 0:
        raise ValueError(f"q={least:g}: has to be at least 0")


def lengths(q: ArrayLike) -> Array:
    """A mean square or an array of them as numpy's; ValueError for what is none. Their range is not looked at."""
    try:
        values = np.asarray(q)
        # Of these numpy makes a NaN, and of a complex number its real part.
        if None in values.ravel().tolist() if values.dtype == object else np.iscomplexobj(values):
            raise TypeError
        return values.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"q={q!r}: has to be a number of at least 0, or an array of them") from None


def checked_knobs(kind: str, given: Mapping[str, float] | None) -> Mapping[str, float]:
    """An activation's (``act_knobs``) or an init's (``init_knobs``); ValueError for names and values that are none."""
    given, known = given or {}, _KNOBS[kind]
    if not isinstance(given, Mapping):
        raise ValueError(f"{kind}={given!r}: has to be a mapping from names to numbers")
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"{kind}: {name} is not known; allowed: {', '.join(known)}")
        if not abs(_number(f"{kind}: {name}", value)) < _MOST or (name in _POSITIVE and value < 0):
            least = " of at least 0" if name in _POSITIVE else ""
            raise ValueError(f"{kind}: {name}={value:g}: has to be a finite number{least}, below {_MOST:g}")
    return given


def _number(name: str, value: Any) -> float:
    """The value as it is; ValueError for what is no number."""
    try:
        if not isinstance(value, str | bytes):
            return float(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f"{name}={value!r}: has to be a number")


def _is_count(value: Any) -> bool:
    """Whether this is a whole number of at least 1."""
    return isinstance(value, int | float | np.number) and bool(1 <= value < math.inf and value == int(value))


def lengths_of(q0: ArrayLike, depth: int) -> Array:
    """Mean squares of inputs, [samples], as few as a network of so many layers affords: means over equal parts of them.

    Raises ValueError for negative ones and for none, :class:`NoTheory` where one is not finite.
    """
    try:
        lengths = np.atleast_1d(np.asarray(q0, dtype=np.float64)).ravel()
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"q0={q0!r}: has to be a mean square of at least 0, or an array of them") from None
    if not np.isfinite(lengths).all():
        raise NoTheory("q0: the inputs' mean squares are not all finite")
    if not lengths.size or (lengths < 0).any():
        raise ValueError("q0: has to be a mean square of at least 0, or an array of them")
    count = max(1, min(_MOST_LENGTHS, _BUDGET // max(depth, 1)))
    if count >= lengths.size:
        return lengths
    parts: Array = np.sort(lengths).repeat(count).reshape(count, -1)
    return np.asarray(parts.mean(axis=1))
