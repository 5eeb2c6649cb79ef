"""The rules of a verdict that look along the layers: each says whether it holds, where, and by how much."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradstab.config.verdict_options import Thresholds
from gradstab.encoding import Vector
from gradstab.measure.depth import depth_factor
from gradstab.measure.verdict import Finding

# Below this R² there is no line to speak of.
TREND = 0.5


@dataclass
class Holding:
    """A rule that holds now, and counts once it has held at ``needs`` looks in a row.

    ``about_depth`` is whether theory's depth factor bears on it; ``unit`` is what its value counts, empty where it is
    the quantity itself.
    """

    kind: str
    rule: str
    quantity: str
    value: float
    threshold: float
    key: str
    explanation: str
    layers: tuple[str, ...] = ()
    about_depth: bool = False
    needs: int = 1
    unit: str = ""

    def found(self, first: int, last: int, times: int, theory: str) -> Finding:
        """This, as it held at so many looks in a row; ``theory`` is what that says of depth."""
        return Finding(
            kind=self.kind,
            rule=self.rule,
            quantity=self.quantity,
            layers=self.layers,
            first_step=first,
            last_step=last,
            persistence=times,
            value=self.value,
            threshold=self.threshold,
            key=f"verdict.{self.key}" if self.key else "",
            explanation=self.explanation,
            theory=theory if self.about_depth else "",
            unit=self.unit,
        )


@dataclass(frozen=True)
class Profile:
    """All quantities of one measured step, ``depth`` being the layers a line is drawn through: ``first`` before any
    update, ``stalled`` with a loss on the plateau, ``rising`` with a learning rate that grows, or may, ``fallen``
    with one that was far higher, ``recovering`` with an error that has fallen by itself, ``adaptive`` with steps that
    do not shrink as gradients do, ``signal_share`` what theory leaves of the signal under dropout at initialisation,
    1 without, ``step_scale`` how it weighs relative steps (0 where it has no word on them), ``batch_norm`` whether it
    had to reckon with batch norm, ``projected`` whether a constraint moves weights after a step, ``decay`` the weight
    decay that is part of the gradient by which they move, ``reach`` the share of the loss that differences between
    outputs may make (0 where nobody knows), and ``base`` what losses are counted in.
    """

    layers: Sequence[str]
    hidden: int
    depth: NDArray[np.int64]
    vectors: dict[str, Vector]
    first: bool
    stalled: bool
    rising: bool
    fallen: bool
    recovering: bool
    adaptive: bool
    signal_share: float
    step_scale: float
    batch_norm: bool
    projected: bool
    decay: float
    reach: float
    base: str


def profile_rules(profile: Profile, t: Thresholds) -> list[Holding]:
    """What one measured step tells, layer by layer."""
    rules = (_depth_span, _collapse, _lost_in_dropout, _dead, _saturated)
    return [holding for rule in rules for holding in rule(profile, t)]


def _depth_span(profile: Profile, t: Thresholds) -> list[Holding]:
    """The per-sample gradient δ spans too many decades over the hidden layers."""
    # Beside skip paths, what goes into branches stands for them.
    quantity = "stream_grad_norm" if "stream_grad_norm" in profile.vectors else "signal_grad_norm"
    signals = profile.vectors[quantity][profile.depth]
    smallest, largest = (float(signals.min()), float(signals.max())) if len(signals) else (math.nan, math.nan)
    # Most looks end here.
    if 0 < smallest <= largest < math.inf and math.log10(largest) - math.log10(smallest) <= _least(profile, t):
        return []
    # NaN stands for a layer that never shows a gradient: frozen, or not used. Damaged records may hold what is no norm.
    known = (signals >= 0) & ((signals != 0) | (not _some_start_at_zero(profile)))
    if len(delta := np.minimum(signals[known], np.finfo(np.float64).max)) < 2:
        return []
    low, high = int(delta.argmin()), int(delta.argmax())
    layers = [profile.layers[int(i)] for i in profile.depth[known]]
    if delta[high] == 0:
        text = "no gradient reaches any hidden layer: δ is 0 in all of them"
        return [_span("vanishing", quantity, math.inf, *_depth_limit(profile, t, True), text, tuple(layers))]
    powers = np.log10(delta, out=np.full(len(delta), -math.inf), where=delta > 0)
    decades = float(powers[high] - powers[low])
    if decades <= _least(profile, t):
        return []
    line = depth_factor(delta.tolist(), profile.depth[known].tolist())
    # A line goes through the layers that have a gradient; where some have none at all, they decide.
    falls = low < high if line is None or delta[low] == 0 else line.factor < 1
    limit, key = _depth_limit(profile, t, falls)
    if quantity == "stream_grad_norm" and profile.batch_norm and not falls:
        # Batch norm in branches makes the stream's gradient grow with every block, and steps as much smaller.
        limit, key = limit * t.adaptive_slack, f"{key} × verdict.adaptive_slack"
    # An error that falls says that gradients large in one place and small in another do their work.
    if decades <= limit or (profile.recovering and not falls):
        return []
    # Two points are always on a line.
    straight = line is not None and delta[low] > 0 and line.r2 >= TREND and line.layers > 2
    fit = f", {line.factor:.3g} per layer towards the input (R² {line.r2:.2f})" if line and straight else ""
    size = f"{10**decades:.2g}" if decades < 300 else f"10^{decades:.0f}"
    span = (
        f"spans a factor of {size} between {layers[high]} and"
        if delta[low] > 0
        else f"falls to 0 from {layers[high]} to"
    )
    # The layers beyond the limit, counted from the sound end.
    beyond = powers < powers[high] - limit if falls else powers > powers[low] + limit
    where = tuple(layers[int(i)] for i in np.flatnonzero(beyond))
    small, large = ("near", "grows") if beyond[0] else ("on the way to", "is largest")
    meaning = (
        f"layers {small} the input hardly get a gradient" if falls else f"the gradient {large} on its way to the input"
    )
    text = f"δ {span} {layers[low]}{fit}: {meaning}"
    return [_span("vanishing" if falls else "exploding", quantity, decades, limit, key, text, where)]


def _some_start_at_zero(profile: Profile) -> bool:
    """Fixup, adapters and their like: the first update gives such layers weights, and gradients a way through."""
    weights, gradients = profile.vectors.get("weight_norm"), profile.vectors.get("grad_norm")
    if not profile.first or weights is None or gradients is None:
        return False
    # Where hidden weights are 0 as well, all units of a layer stay the same.
    return bool(((weights == 0) & (gradients > 0)).any() and weights[:-1].any())


def _least(profile: Profile, t: Thresholds) -> float:
    """How many decades are all right in either direction."""
    if profile.first:
        return min(t.init_vanishing_decades, t.init_exploding_decades)
    return t.stalled_depth_decades if profile.stalled else t.depth_decades


def _depth_limit(profile: Profile, t: Thresholds, falls: bool) -> tuple[float, str]:
    """How many decades are too many, and the threshold that says so."""
    if profile.first:
        key = "init_vanishing_decades" if falls else "init_exploding_decades"
    else:
        key = "stalled_depth_decades" if profile.stalled else "depth_decades"
    limit: float = getattr(t, key)
    if falls and profile.adaptive:
        return limit * t.adaptive_slack, f"{key} × verdict.adaptive_slack"
    return limit, key


def _span(
    kind: str, quantity: str, decades: float, limit: float, key: str, text: str, layers: tuple[str, ...]
) -> Holding:
    rule, unit = "depth_span", "decades"
    return Holding(kind, rule, quantity, decades, limit, key, text, layers, about_depth=True, unit=unit)


def _collapse(profile: Profile, t: Thresholds) -> list[Holding]:
    """All samples look alike to the output: what told them apart has vanished on the way forward."""
    correlation = profile.vectors.get("correlation")
    # Outputs of networks that learn may be alike too, where classes are: what is lost then shows in the loss.
    if correlation is None or len(correlation) <= profile.hidden or not (profile.first or profile.stalled):
        return []
    value = float(correlation[-1])
    key = "adaptive_similarity" if profile.adaptive else "init_similarity" if profile.first else "similarity"
    limit: float = getattr(t, key)
    # What outputs have in common, the mean of all targets, say, may be large beside differences that move the loss.
    if not value > limit or profile.reach**2 > 1 - limit:
        return []
    layers = _where(profile, correlation > limit)
    rest = max(1 - value, 0.0)
    size = f"1 - {rest:.1g}" if rest > 1e-6 else "1, as far as single precision tells"
    text = f"outputs of two samples correlate to {size}: what sets inputs apart is lost on the way"
    return [Holding("vanishing", "collapse", "correlation", value, limit, key, text, layers)]


def _lost_in_dropout(profile: Profile, t: Thresholds) -> list[Holding]:
    """Masks drown what their inputs have to say; measuring this would take a second forward pass, theory does not."""
    share = profile.signal_share
    # Batch norm's statistics carry what theory takes for lost, and a network that learns has found its way; one whose
    # steps shrink with the signal will not.
    slow = not profile.adaptive if profile.first else profile.stalled
    key = "stalled_signal_share" if slow and not profile.batch_norm else "signal_share"
    limit: float = getattr(t, key)
    if not share < limit:
        return []
    text = f"of what sets two outputs apart, their inputs explain only {share:.1g}, dropout's masks the rest"
    return [Holding("vanishing", "lost_in_dropout", "signal_share", share, limit, key, text)]


def _dead(profile: Profile, t: Thresholds) -> list[Holding]:
    """Units whose slope is 0 for every sample."""
    return _share(profile, "dead_fraction", "dead_units", t.dead_fraction, "units get no gradient from any sample")


def _saturated(profile: Profile, t: Thresholds) -> list[Holding]:
    """Bounded activations at their flat ends."""
    return _share(
        profile, "saturated_fraction", "saturated", t.saturated_fraction, "activations are at their flat ends"
    )


def _share(profile: Profile, quantity: str, kind: str, limit: float, what: str) -> list[Holding]:
    shares = profile.vectors.get(quantity)
    if shares is None or not len(shares):
        return []
    # A share is NaN where the signal is; fmax passes over it, and comparisons with it do not hold.
    if not np.fmax.reduce(shares) > limit:
        return []
    worst = int(np.where(np.isnan(shares), -1.0, shares).argmax())
    layers = _where(profile, shares > limit)
    text = f"{shares[worst]:.0%} of {profile.layers[worst]}'s {what}"
    if len(layers) > 1:
        text += f", and more than {limit:.0%} in {len(layers)} layers"
    return [Holding(kind, quantity, quantity, float(shares[worst]), limit, quantity, text, layers)]


def _where(profile: Profile, holds: NDArray[np.bool_]) -> tuple[str, ...]:
    return tuple(profile.layers[int(i)] for i in np.flatnonzero(holds))
