"""The story of a broken step in words, without torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gradstab.config.training_options import REPARAMETRIZING
from gradstab.forensics.growth import Growth, History, growth, history
from gradstab.forensics.snapshot import Origin, Snapshot
from gradstab.measure.depth import depth_factor
from gradstab.wording import counted

_REPARAMETRIZATIONS = {"_SpectralNorm": "spectral norm", "_WeightNorm": "weight norm"}


def key_sentences(snapshot: Snapshot) -> list[str]:
    """What broke first and how norms grew before it, from the snapshot alone."""
    past = history(snapshot.past, snapshot.step)
    told = grown(snapshot, past, growth(past))
    return [f"Broke {when(snapshot)}.", f"The first value that was not finite: {first(snapshot)}.", f"Growth: {told}."]


def number(value: float) -> str:
    """Three digits, as people read them."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.3g}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.2e}"


def first(snapshot: Snapshot) -> str:
    """Which value was the first that was not finite, in one sentence without its full stop."""
    origin, look, tags = snapshot.origin, snapshot.look, snapshot.layers
    where = None if origin.layer is None else tags.index(origin.layer)
    limit = f"{snapshot.precision} ends at {snapshot.largest:.2g}"
    match origin.kind:
        case "weights":
            others = sum(not math.isfinite(value) for i, value in enumerate(look.weight) if i != where)
            more = f" (and the weights of {counted(others, 'more layer')})" if others else ""
            them, they, were = ("it", "it", "was") if origin.name else ("them", "they", "were")
            by = f"the update before it broke {them}" if snapshot.step else f"{they} {were} never finite"
            return f"{_parameter(origin)}{more} {were} not finite when step {snapshot.step} began: {by}"
        case "buffer":
            return f"buffer {origin.name} was not finite, which evaluations use where training uses the batch's own"
        case "activation":
            assert where is not None
            if (norm := _reparametrization(origin)) is not None:
                broke = f"the norm that it divides by broke, as {limit}"
                return f"the weights that {norm} computes for layer {origin.layer}, on the way forward: {broke}"
            what = "outputs" if where == len(tags) - 1 else "h"
            inside = f" in {origin.name}" if origin.name else ""
            below = ""
            if where > 0 and where <= len(look.activation) and math.isfinite(look.activation[where - 1]):
                below = f"; the largest |h| of the layer before it was {number(look.activation[where - 1])}"
            return f"the {what} of layer {origin.layer}{inside}, on the way forward: {limit}{below}"
        case "loss":
            peak = f" (up to {number(look.activation[-1])})" if look.activation else ""
            return f"the loss itself: every layer's h and the outputs were finite{peak}, and {limit}"
        case "penalty":
            return f"the penalty on the weights: loss and outputs were finite, and {limit}"
        case "signal":
            return f"δ of layer {origin.layer}, on the way back: all was finite on the way forward"
        case "gradient":
            what = f"the weight gradient of layer {origin.layer}" if origin.layer else f"the gradient of {origin.name}"
            back = f"{what}, on the way back: loss and δ were finite there"
            if (norm := _reparametrization(origin)) is None:
                return back
            overflown = f"the norm that {norm} divides a unit's weights by had overflowed"
            return f"{back}; {overflown} on the way forward, and made 0 of them ({limit})"
        case "norm":
            what = f"layer {origin.layer}" if origin.layer else str(origin.name)
            return f"the norm of the gradient of {what}: its entries were finite, their squares were not, as {limit}"
        case "test_loss":
            return "the loss on the test split: each batch of it was finite, their sum was not"
        case _:
            return "not to be found: looked at once more, the step was finite"


def _parameter(origin: Origin) -> str:
    return f"the {origin.name or 'weights'} of layer {origin.layer}" if origin.layer else f"parameter {origin.name}"


def _reparametrization(origin: Origin) -> str | None:
    """What computes a layer's weights, where that is the module which broke."""
    kind, _, place = (origin.name or "").partition(" ")
    return _REPARAMETRIZATIONS.get(kind, kind) if ".parametrizations." in place else None


def when(snapshot: Snapshot) -> str:
    """The step that broke, in one line."""
    skipped = ", skipped" if snapshot.skipped else ""
    if snapshot.quantity == "test loss":
        return f"after {counted(snapshot.step)}: non-finite test loss"
    where = f" of layer {snapshot.layer}" if snapshot.layer else ""
    rate = f"learning rate {snapshot.learning_rate:g}"
    return f"at step {snapshot.step:,}{skipped}: non-finite {snapshot.quantity}{where}, {rate}"


def where(origin: Origin, last: str) -> str:
    """The same in a few words; ``last`` is the output layer's tag."""
    match origin.kind:
        case "weights":
            return f"first in {_parameter(origin)} before it"
        case "activation":
            norm = _reparametrization(origin)
            what = "output of" if norm is None else f"weights that {norm} computes for"
            return f"first in the {what} layer {origin.layer} on the way forward"
        case "loss":
            return f"first in the loss, the output of layer {last} being finite"
        case "penalty":
            return "first in the penalty on the weights"
        case "signal" | "gradient" | "norm":
            return f"first in {'layer ' + origin.layer if origin.layer else origin.name} on the way back"
        case _:
            return "but every value was finite when it was looked at once more"


def forward(snapshot: Snapshot) -> str | None:
    """How |h| grew through depth at the broken step, where it grew by enough to tell."""
    values = snapshot.look.activation
    usable = [value for value in values if 0 < value < math.inf]
    # The factor is per layer towards the input.
    fitted = depth_factor(values)
    if fitted is None or len(usable) < 3 or fitted.factor > 0.8:
        return None
    low = next(i for i, value in enumerate(values) if value == usable[0])
    high = max(i for i, value in enumerate(values) if 0 < value < math.inf)
    return (
        f"at this step the largest |h| grows by a factor of {number(1 / fitted.factor)} per layer, from "
        f"{number(values[low])} in {snapshot.layers[low]} to {number(values[high])} in {snapshot.layers[high]}"
    )


def weights(snapshot: Snapshot, constraint: str) -> str | None:
    """The largest weight when the step began, or what weights are computed from; None where it was not finite."""
    values = snapshot.look.weight
    if not values or not all(map(math.isfinite, values)):
        return None
    largest = max(range(len(values)), key=lambda i: values[i])
    what = f"parameter that {constraint} computes weights from" if constraint in REPARAMETRIZING else "weight"
    return f"the largest {what} was {number(values[largest])} by then, in layer {snapshot.layers[largest]}"


def grown(snapshot: Snapshot, past: History, found: Growth | None) -> str:
    """How norms grew before the step, in one sentence without its full stop."""
    if snapshot.step == 0:
        return "none to tell of: it broke in the first step, before any update"
    if found is None:
        known = len(past.step)
        return f"unknown: {known} step{'s are' if known != 1 else ' is'} known before it, which is too few"
    what = "the global gradient norm" if found.quantity == "global_grad_norm" else "the loss"
    missing = "" if past.has_norms else " (gradient norms were not taken: measure=none)"
    calm = f"{what} was calm at {number(found.calm)} " if found.calm_steps else ""
    if not found.grew:
        last = number((past.global_norm if past.has_norms else past.loss)[-1])
        return f"{what} did not grow beforehand ({last} at step {past.step[-1]}): one step broke it{missing}"
    text = (
        f"by a factor of {number(found.factor)} per step, from {number(found.start)} at step {found.since} "
        f"to {number(found.end)} at step {found.until}"
    )
    text = f"{calm}until step {found.since}, and then grew {text}" if calm else f"{what} grew {text}"
    if found.mean_factor > 1.5 * found.factor:
        text += f", ever faster ({number(found.mean_factor)} per step on average)"
    if found.layer is not None and len(snapshot.layers) > 1:
        text += f"; fastest in layer {snapshot.layers[found.layer]}"
        text += f", by {number(found.layer_factor)} per step" if found.layer_factor >= found.factor else ""
    return text + missing


def rates(snapshot: Snapshot) -> str | None:
    """How the learning rate moved over the ring's steps; None where it hardly did."""
    values = snapshot.past.learning_rate
    if not values or max(values) <= 1.01 * min(values):
        return None
    return f"the learning rate went from {number(values[0])} to {number(values[-1])} over these steps"


def clipped(snapshot: Snapshot, clip: str) -> str | None:
    """What the run's own clipping did in the steps before; None for a run without."""
    if clip == "none":
        return None
    past = snapshot.past
    before = [scale for step, scale in zip(past.step, past.clip_scale, strict=False) if step < snapshot.step]
    acted = sum(scale < 1 - 1e-6 for scale in before)
    return f"clip={clip} was in force and acted in {acted} of the last {counted(len(before))}"


def hopeless(snapshot: Snapshot) -> str | None:
    """Why no clipping could have caught it; None where some might have."""
    if snapshot.step > 0:
        return None
    way = "back" if snapshot.origin.direction == "backward" else "forward"
    return (
        f"none: it broke on the way {way} of the first step, before there was an update to clip; "
        "the initial weights are too large (init, init.gain)"
    )


def same_origin(one: Origin, other: Origin) -> bool:
    """Whether two looks found the same."""
    return (one.kind, one.layer, one.name) == (other.kind, other.layer, other.name)


def same_values(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two lists are equal bit for bit, NaN being equal to NaN."""
    return len(one) == len(other) and all(
        a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(one, other, strict=True)
    )
