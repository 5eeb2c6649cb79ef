"""What the activations of a layer look like at initialisation: their mean, spread, and the share that is saturated."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gradstab.theory.activations import Activation, Array
from gradstab.theory.arguments import check_network, check_variances
from gradstab.theory.errors import NoTheory
from gradstab.theory.maps import mean, second_moment
from gradstab.theory.prediction import Prediction
from gradstab.theory.quadrature import pair_expectation, sphere
from gradstab.theory.special import erfc

SATURATED = 0.05  # of the largest slope: below it, a unit of a bounded activation counts as saturated
_BOUNDED = ("sigmoid", "tanh", "scaled_tanh", "hardtanh", "softsign", "erf")


@np.errstate(all="ignore")  # variances of hundreds of decades come of networks that explode
def activation_statistics(
    act: Activation, prediction: Prediction, *, batch_size: int | None = None
) -> Mapping[str, Array]:
    """Expected ``activation_mean``, ``activation_std``, ``saturated_fraction`` and ``dead_fraction``, [layers] each.

    They are taken over samples and units together, as gradstab measures them. ``batch_size`` is that of BatchNorm
    before the activation, whose output is a coordinate of a random point on a sphere; None: a normal variable. What
    does not apply is left out: saturation of an unbounded activation, dead units of one that is flat somewhere (their
    share depends on how correlated all samples of a batch are) unless BatchNorm centres it, and everything where units
    differ in their variance, as LeNet-5's do. Raises :class:`NoTheory` for a ``batch_size`` of 3 or fewer, and
    TypeError for what is no prediction.
    """
    check_variances(act)
    if not isinstance(prediction, Prediction):
        raise TypeError(f"prediction={prediction!r}: has to be what predict gives")
    check_network((), 0.0, batch_size=batch_size)
    if batch_size is not None and batch_size <= 3:
        raise NoTheory(f"batch_size={batch_size}: batch norm has a prediction from 4 samples on")
    variance = prediction.phi_variance
    if variance is None:
        return {}
    found: dict[str, Array] = {}
    if batch_size is None:
        first, second = mean(act, variance).mean(axis=1), second_moment(act, variance).mean(axis=1)
    else:
        moments = pair_expectation(
            lambda x, _y: np.stack([act.phi(x), act.phi(x) ** 2]), 0.0, 1.0, act.kinks, sphere(batch_size - 1)
        )
        first, second = (np.full(len(variance), moment) for moment in moments)
    found["activation_mean"] = first
    found["activation_std"] = np.sqrt(np.maximum(second - first**2, 0))
    if act.name in _BOUNDED:
        found["saturated_fraction"] = _beyond(saturation_edge(act), variance, batch_size).mean(axis=1)
    # A normalised batch has mean 0 and variance 1: it cannot lie on one side of a kink, nor all beyond two.
    if batch_size is not None or act.slope(np.array([-2.0, 2.0])).all():
        found["dead_fraction"] = np.zeros(len(variance))
    return found


def saturation_edge(act: Activation) -> float:
    """The x > 0 from which on |φ'| is below 5 % of φ'(0), for a bounded activation."""
    low, high = 0.0, 100.0
    limit = SATURATED * float(act.slope(np.zeros(1))[0])
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if float(act.slope(np.array([middle]))[0]) >= limit else (low, middle)
    return high


def _beyond(edge: float, variance: Array, batch_size: int | None) -> Array:
    """P(|x| > edge) for x normal, or √(B-1) times a coordinate on the unit sphere of ℝ^(B-1)."""
    if batch_size is None:
        return erfc(edge / np.sqrt(2 * variance))
    from scipy.special import betainc  # type: ignore[import-untyped]

    inside = min(1.0, edge**2 / (batch_size - 1))
    return np.full_like(variance, float(betainc((batch_size - 2) / 2, 0.5, 1 - inside)))
