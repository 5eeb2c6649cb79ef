"""What mean-field theory expects of a configured network: from a checked configuration to a prediction."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gradstab.config import Config
from gradstab.config.training_options import PROJECTING
from gradstab.inputs import Inputs
from gradstab.step_scale import coupled_decay, step_scale
from gradstab.theory import (
    Batch,
    NoTheory,
    Prediction,
    activation,
    caveat,
    predict,
    predict_lenet5,
    signal_shares,
    window_correlation,
)

if TYPE_CHECKING:
    from torch import Tensor

    from gradstab.models.blocks import Model

# Batch norm's theory is within 0.3 % for samples of 9 and 10 normal numbers, 2 to 5 % off for 2 to 6, 30 % for one.
_FEW = 8
# E[1/q] E[q] of the inputs, which is 1 for equal lengths, 1.3 for samples of 8 normal numbers and 2.7 for 3.
_UNEVEN = 2.0


def window_correlations(model: Model, inputs: Tensor) -> tuple[float, float]:
    """How correlated C1's and C3's pre-activations are within a pooling window of an initialised ``lenet5``.

    ``inputs``, [B, *in_shape], go through a copy of the network in training mode, on the CPU in float32; its weights,
    its buffers and all random streams stay as they are.
    """
    import copy

    import torch

    twin = copy.deepcopy(model).cpu().float().train()
    found: list[float] = []

    def keep(_module: object, _args: object, h: Tensor) -> None:
        found.append(window_correlation(h.double().numpy()))

    for layer in twin.layers[:2]:
        layer.preactivation.register_forward_hook(keep)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        # Dropout between the two layers takes correlation away; its mask here is no run's.
        torch.default_generator.manual_seed(0)
        twin(inputs.detach().cpu().float())
    return found[0], found[1]


def expect(config: Config, inputs: Inputs, correlations: tuple[float, float] | None = None) -> Prediction:
    """What theory predicts of the configured network before its first step, in training mode.

    ``correlations`` are those of :func:`window_correlations`, without which there is no prediction for lenet5.
    Constraints that leave the initial weights alone (weight_norm, and those that act after a step) change nothing.
    Raises :class:`gradstab.theory.NoTheory` with the reason where there is none.
    """
    if config.constraint.name == "spectral_norm":
        raise NoTheory(
            "constraint=spectral_norm: divides weights by a largest singular value that its power iteration has not "
            "found yet at the first step"
        )
    common: dict[str, Any] = {
        "act": config.act.name,
        "act_knobs": config.act.knobs,
        "init": config.init.name,
        "init_knobs": config.init.knobs,
    }
    knobs: Mapping[str, Any] = config.model.knobs
    if config.model.name == "deep_mlp":
        if knobs["norm"] == "batch" and inputs.n_in < min(_FEW, config.batch - 1):
            raise NoTheory(
                f"norm=batch: samples of {inputs.n_in} numbers span too few of a batch's directions: batches differ "
                "too much for some to stand for all"
            )
        batches = _batches(config, inputs)
        shared = {key: knobs[key] for key in ("norm", "norm_position", "dropout", "residual", "bias")}
        found = predict(
            **common,
            **shared,
            widths=_widths(config, inputs),
            q0=inputs.q0,
            c0=inputs.c0,
            batch_size=config.batch,
            batches=batches,
        )
        notes = (*_notes_on_lengths(config, inputs), *_notes_on_loss(config, bool(batches)))
        return replace(found, notes=(*found.notes, *notes))
    if config.model.name != "lenet5":
        raise NoTheory(
            f"model={config.model.name}: its maps are only partly connected and pass two activations a layer"
        )
    if inputs.lenet_q0 is None:
        raise NoTheory(f"model=lenet5: takes square images of at most 32×32, not samples of shape {inputs.in_shape}")
    shared = {key: knobs[key] for key in ("pooling", "norm", "dropout", "residual")}
    found = predict_lenet5(
        **common,
        **shared,
        q0=inputs.lenet_q0,
        correlations=correlations,
        in_channels=inputs.in_shape[0],
        out_features=inputs.n_out,
    )
    return replace(found, notes=(*found.notes, *_notes_on_loss(config, False)))


def _batches(config: Config, inputs: Inputs) -> list[Batch]:
    if config.model.knobs["norm"] != "batch":
        return []
    # Before training all classes are about as likely, and the outputs are about 0.
    return inputs.batches(config.batch, 1 / inputs.n_out if config.loss.name == "cross_entropy" else 0.0)


def _notes_on_lengths(config: Config, inputs: Inputs) -> Iterator[str]:
    """What layer norm, which divides by it, makes of inputs that differ much in length."""
    if (
        config.model.knobs["norm"] == "layer"
        and inputs.q0.all()
        and (1 / inputs.q0).mean() * inputs.q0.mean() > _UNEVEN
    ):
        yield (
            "norm=layer: the inputs differ so much in length that the first layer's gradient hangs on the shortest; "
            "for samples of 2 and 3 numbers predictions were 11% and 2% too small"
        )


def _notes_on_loss(config: Config, shown: bool) -> Iterator[str]:
    """What is taken for granted of the gradient at the outputs, of which batch norm was ``shown`` what classes do."""
    if mse := config.loss.name == "mse":
        yield (
            "loss=mse: gradients at the outputs are taken as of one size, and as independent of the weights below; "
            "where inputs differ much in length (data=line), those of 5 layers were 3% too small to 10% too large, "
            "and of 2 layers up to 30%"
        )
    if config.model.name == "deep_mlp" and config.model.knobs["norm"] == "batch" and (mse or not shown):
        yield "norm=batch: what gradients at the outputs have in common is lost, and all δ are smaller for it"


def theory_record(config: Config, inputs: Inputs, correlations: tuple[float, float] | None = None) -> dict[str, Any]:
    """The prediction as run.json holds it, or the reason why there is none; entries are for the hidden layers.

    ``signal_share``, of a deep_mlp with dropout, is what masks leave of the output's signal (1: all of it), ``decay``
    and ``step_scale`` are those of :mod:`gradstab.step_scale`, ``projected`` says that a constraint changes steps,
    ``constant_rate`` that the learning rate stays as it is, ``batch_norm`` that there is some.
    """
    projected = True if config.constraint.name in PROJECTING else None
    known = {"step_scale": step_scale(config), "decay": coupled_decay(config), "projected": projected}
    known["constant_rate"] = True if config.schedule.name == "constant" else None
    known["signal_share"] = signal_share(config, inputs)
    normed = config.model.name == "deep_mlp" and config.model.knobs["norm"] == "batch"
    known["batch_norm"] = True if normed else None
    shared = {name: value for name, value in known.items() if value is not None}
    try:
        prediction = expect(config, inputs, correlations)
    except NoTheory as reason:
        return {"reason": str(reason), **shared}
    return as_record(prediction) | shared


def signal_share(config: Config, inputs: Inputs) -> float | None:
    """What dropout leaves of the output's signal at initialisation; None without dropout or where theory is silent.

    See :func:`gradstab.theory.signal_shares`.
    """
    if config.model.name != "deep_mlp" or not config.model.knobs["dropout"] or not config.model.knobs["depth"]:
        return None
    shared = ("norm", "norm_position", "dropout", "residual", "bias")
    try:
        shares = signal_shares(
            act=config.act.name,
            act_knobs=config.act.knobs,
            init=config.init.name,
            init_knobs=config.init.knobs,
            widths=_widths(config, inputs),
            q0=float(inputs.q0.mean()),
            c0=inputs.c0,
            **{key: config.model.knobs[key] for key in shared},
        )
    except NoTheory:
        return None
    return None if math.isnan(shares[-1]) else float(shares[-1])


def _widths(config: Config, inputs: Inputs) -> list[int]:
    depth, width = config.model.knobs["depth"], config.model.knobs["width"]
    return [inputs.n_in, *([width] * depth if isinstance(width, int) else width), inputs.n_out]


def as_record(prediction: Prediction) -> dict[str, Any]:
    """A prediction in plain containers; the depth factor of a single hidden layer is None."""
    return {
        "depth_factor": _known(prediction.depth_factor),
        "depth_factor_r2": _known(prediction.depth_factor_r2),
        "signal_grad_norm": prediction.signal_grad_norm.tolist(),
        "q": prediction.q.tolist(),
        "chi_1": prediction.chi_1.tolist(),
        "notes": list(prediction.notes),
    }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def caveats(config: Config) -> tuple[str, ...]:
    """What a person should know before a run of this configuration, one line each: an edge of chaos that is not stable.

    Free of cost but for ``init=critical``.
    """
    # Behind a norm lengths are the norm's.
    if config.init.name != "critical" or config.model.knobs.get("norm", "none") != "none":
        return ()
    try:
        said = caveat(activation(config.act.name, **config.act.knobs), config.init.knobs["sigma_b2"])
    except NoTheory:
        return ()  # drawing from it will say so
    return () if said is None else (f"init=critical: {said}",)
