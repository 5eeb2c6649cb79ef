"""The rules of a verdict: each looks at one step's values and says whether it holds, where, and by how much."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradstab.config.verdict_options import Thresholds
from gradstab.events import Vector
from gradstab.measure.depth import depth_factor

# Decades between the largest float64 and the smallest: what stands for the span of a profile that reaches 0 or inf.
WHOLE_RANGE = 600.0
# What single precision holds, with some room for parameters that are no layer's.
SINGLE = 1e38


@dataclass(frozen=True)
class Holding:
    """A rule that holds now, and counts once it has held at ``needs`` looks in a row.

    ``about_depth`` is whether theory's depth factor bears on it.
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


@dataclass(frozen=True)
class Profile:
    """All quantities of one measured step, ``depth`` being the layers a line is drawn through: ``first`` before any
    update, ``stalled`` with a loss on the plateau,
    ``rising`` with a learning rate that was lower before, ``adaptive`` with steps that do not shrink as gradients do,
    ``signal_share`` what theory leaves of the signal under dropout at initialisation, 1 without.
    """

    layers: Sequence[str]
    hidden: int
    depth: NDArray[np.int64]
    vectors: dict[str, Vector]
    first: bool
    stalled: bool
    rising: bool
    adaptive: bool
    signal_share: float


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
    if not found and "signal_grad_norm" in vectors:
        # A signal is NaN where a layer never shows one.
        found = np.flatnonzero(np.isinf(vectors["signal_grad_norm"])).tolist()
    if not found and (norm is None or math.isfinite(norm)):
        return None
    # The event file's scalars are in single precision, which huge but finite norms of float64 overflow.
    if not found and norms is not None and math.isinf(norm or 0.0) and float(np.linalg.norm(norms)) >= SINGLE:
        return None
    return Broken("grad_norm", tuple(layers[i] for i in found), math.inf)


def loss_rules(level: float, first: bool, t: Thresholds) -> list[Holding]:
    """What the loss tells, ``level`` being its recent mean over that of guessing; ``first`` before any update."""
    found = []
    limit, key = (t.init_loss_ratio, "init_loss_ratio") if first else (t.loss_ratio, "loss_ratio")
    if level > limit:
        text = f"the loss is {level:.3g} times that of guessing: the signal exploded on its way forward"
        found.append(Holding("exploding", "forward_explosion", "train/loss", level, limit, key, text, about_depth=True))
    if level > t.plateau:
        text = f"the loss has stayed at {level:.3g} times that of guessing, without progress"
        found.append(
            Holding("not_learning", "plateau", "train/loss", level, t.plateau, "plateau", text, needs=t.patience)
        )
    return found


def profile_rules(profile: Profile, t: Thresholds) -> list[Holding]:
    """What one measured step tells, layer by layer."""
    rules = (_depth_span, _collapse, _lost_in_dropout, _dead, _saturated, _tiny_updates)
    return [holding for rule in rules for holding in rule(profile, t)]


def _depth_span(profile: Profile, t: Thresholds) -> list[Holding]:
    """The per-sample gradient δ spans too many decades over the hidden layers."""
    signals = profile.vectors["signal_grad_norm"][profile.depth]
    # NaN stands for a layer that never shows a gradient: frozen, or not used.
    known = ~np.isnan(signals)
    delta = np.minimum(signals[known], np.finfo(np.float64).max)
    if len(delta) < 2 or _output_starts_at_zero(profile):
        return []
    low, high = int(delta.argmin()), int(delta.argmax())
    if delta[high] == 0:
        layers = [profile.layers[int(i)] for i in profile.depth[known]]
        text = "no gradient reaches any hidden layer: δ is 0 in all of them"
        return [_span("vanishing", WHOLE_RANGE, *_depth_limit(profile, t, True), text, tuple(layers))]
    decades = float(np.log10(delta[high]) - np.log10(delta[low])) if delta[low] > 0 else WHOLE_RANGE
    # Most looks end here; the line through the profile is for those that do not.
    if decades <= min(_depth_limit(profile, t, falls)[0] for falls in (True, False)):
        return []
    layers = [profile.layers[int(i)] for i in profile.depth[known]]
    line = depth_factor(delta.tolist())
    falls = low < high if line is None else line.factor < 1
    limit, key = _depth_limit(profile, t, falls)
    if decades <= limit:
        return []
    fit = "" if line is None else f", {line.factor:.3g} per layer towards the input (R² {line.r2:.2f})"
    size = f"{10**decades:.2g}" if decades < 300 else f"10^{decades:.0f}"
    ratio = f"a factor of {size}" if delta[low] > 0 else "down to 0"
    text = f"δ spans {ratio} between {layers[high]} and {layers[low]}{fit}: " + (
        "layers near the input hardly get a gradient" if falls else "the gradient grows on its way to the input"
    )
    # The layers beyond the limit, counted from the sound end.
    beyond = delta < delta[high] * 10**-limit if falls else delta > delta[low] * 10**limit
    where = tuple(layers[int(i)] for i in np.flatnonzero(beyond))
    return [_span("vanishing" if falls else "exploding", decades, limit, key, text, where)]


def _output_starts_at_zero(profile: Profile) -> bool:
    """Fixup and its like: the first update gives the output layer weights, and gradients a way through."""
    weights, gradients = profile.vectors.get("weight_norm"), profile.vectors.get("grad_norm")
    if not profile.first or weights is None or gradients is None:
        return False
    return bool(weights[-1] == 0 and gradients[-1] > 0)


def _depth_limit(profile: Profile, t: Thresholds, falls: bool) -> tuple[float, str]:
    """How many decades are too many, and the threshold that says so."""
    if profile.first:
        key = "init_vanishing_decades" if falls else "init_exploding_decades"
    else:
        key = "stalled_depth_decades" if profile.stalled else "depth_decades"
    return t.knobs[key] * (t.adaptive_slack if falls and profile.adaptive else 1.0), key


def _span(kind: str, decades: float, limit: float, key: str, text: str, layers: tuple[str, ...]) -> Holding:
    return Holding(kind, "depth_span", "signal_grad_norm", decades, limit, key, text, layers, about_depth=True)


def _collapse(profile: Profile, t: Thresholds) -> list[Holding]:
    """All samples look alike to the output: what told them apart has vanished on the way forward."""
    correlation = profile.vectors.get("correlation")
    # Outputs of networks that learn may be alike too, where classes are: what is lost then shows in the loss.
    if correlation is None or len(correlation) <= profile.hidden or not (profile.first or profile.stalled):
        return []
    value = float(correlation[-1])
    limit, key = (t.init_similarity, "init_similarity") if profile.first else (t.similarity, "similarity")
    if not value > limit:
        return []
    layers = _where(profile, correlation > limit)
    rest = max(1 - value, 0.0)
    size = f"1 - {rest:.1g}" if rest > 1e-6 else "1, as far as single precision tells"
    text = f"outputs of two samples correlate to {size}: what sets inputs apart is lost on the way"
    return [Holding("vanishing", "collapse", "correlation", value, limit, key, text, layers)]


def _lost_in_dropout(profile: Profile, t: Thresholds) -> list[Holding]:
    """Masks drown what their inputs have to say; measuring this would take a second forward pass, theory does not."""
    share = profile.signal_share
    if not share < t.signal_share:
        return []
    text = f"of what sets two outputs apart, their inputs explain only {share:.1g}, dropout's masks the rest"
    return [Holding("vanishing", "lost_in_dropout", "signal_share", share, t.signal_share, "signal_share", text)]


def _dead(profile: Profile, t: Thresholds) -> list[Holding]:
    """Units whose slope is 0 for every sample."""
    return _share(profile, "dead_fraction", "dead_units", t.dead_fraction, "units get no gradient from any sample")


def _saturated(profile: Profile, t: Thresholds) -> list[Holding]:
    """Bounded activations at their flat ends."""
    return _share(
        profile, "saturated_fraction", "saturated", t.saturated_fraction, "activations are at their flat ends"
    )


def _tiny_updates(profile: Profile, t: Thresholds) -> list[Holding]:
    """No layer moves, and the loss shows it."""
    ratios = profile.vectors.get("update_ratio")
    if ratios is None or profile.first or profile.rising or not profile.stalled or not np.isfinite(ratios).all():
        return []
    value = float(ratios.max())
    if not value < t.update_ratio:
        return []
    text = f"no layer changes by more than {value:.2g} of its size in a step, and the loss stays where it was"
    return [Holding("not_learning", "tiny_updates", "update_ratio", value, t.update_ratio, "update_ratio", text)]


def _share(profile: Profile, quantity: str, kind: str, limit: float, what: str) -> list[Holding]:
    shares = profile.vectors.get(quantity)
    if shares is None or not len(shares):
        return []
    # A share is NaN where the signal is; comparisons with it do not hold.
    worst = int(np.where(np.isnan(shares), -1.0, shares).argmax())
    if not shares[worst] > limit:
        return []
    layers = _where(profile, shares > limit)
    text = f"{shares[worst]:.0%} of {profile.layers[worst]}'s {what}"
    if len(layers) > 1:
        text += f", and more than {limit:.0%} in {len(layers)} layers"
    return [Holding(kind, quantity, quantity, float(shares[worst]), limit, quantity, text, layers)]


def _where(profile: Profile, holds: NDArray[np.bool_]) -> tuple[str, ...]:
    return tuple(profile.layers[int(i)] for i in np.flatnonzero(holds))
