"""How much memory a configuration takes, worked out from its numbers alone: before anything is allocated."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from gradstab.config.network_options import DeepMLP
from gradstab.config.run import Config
from gradstab.config.training_options import N_TEST, SAMPLES, Gaussian

ITEM = {"float32": 4, "float64": 8, "bfloat16": 2}
EVALUATION_BATCH = 2048
# Tensors as large as the weights that an optimizer keeps.
_STATES = {"momentum": 1, "nesterov": 1, "adam": 2, "adamw": 2, "rmsprop": 1, "adagrad": 1, "muon": 1}
# Their backward pass needs the output alone.
_OUTPUT_ONLY = ("identity", "relu", "sigmoid", "tanh")
# Bytes a hidden layer takes however narrow it is: Python's objects, autograd's, and what is kept to draw it.
_PER_LAYER = {"layer": 11 << 10, "measured": 9 << 10, "norm": 13 << 10, "dropout": 4 << 10, "residual": 6 << 10}


@dataclass(frozen=True)
class Layers:
    """``times`` equal layers: entries of the weight, other parameters, units, and numbers in h for each sample.

    ``weight`` is the part that a constraint acts on and Muon may take, ``units`` its first dimension, and ``kept``
    the numbers behind the activation (fewer than ``h`` where they are pooled).
    """

    weight: int
    others: int
    units: int
    h: int
    kept: int
    hidden: bool = True
    times: int = 1


@dataclass(frozen=True)
class Footprint:
    """Bytes by what they are for. ``host`` is what the CPU's memory holds of a run on another device."""

    parts: dict[str, int]
    parameters: int
    host: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        largest = sorted(self.parts.items(), key=lambda item: -item[1])[:3]
        return f"{in_words(self.total)} of memory ({', '.join(f'{in_words(n)} of {name}' for name, n in largest if n)})"


def in_words(size: int) -> str:
    """A number of bytes for people, to two or three digits."""
    for power, unit in enumerate(("B", "KiB", "MiB", "GiB", "TiB", "PiB")):
        if size < 1000 * 1024**power:
            amount = size / 1024**power
            return f"{amount:.2g} {unit}" if 0 < amount < 10 and power else f"{amount:.0f} {unit}"
    whole = size >> 60
    return f"{whole:,} EiB" if whole < 10**6 else f"{whole:.1e} EiB" if whole < 10**300 else "more than 1e300 EiB"


def footprint(config: Config, *, probing: bool = False) -> Footprint:
    """What a run, or a probe's look at the first step, takes at its peak, by a few per cent.

    Parameters are counted exactly. It holds what has to be there at once: weights, gradients, the optimizer's state,
    activations until backward has passed them, data, and what measuring keeps of them.
    """
    size = ITEM[config.precision]
    groups = list(layers_of(config))
    weight = sum(group.times * group.weight for group in groups)
    parameters = sum(group.times * (group.weight + group.others) for group in groups)
    measuring = config.measure.name != "none" or probing
    # The weights that a reparametrization computes, and what its backward pass needs.
    held = {"weight_norm": 3, "spectral_norm": 1}.get(config.constraint.name, 0)
    largest = max(group.weight for group in groups)
    data, features = _data(config, size)
    depth = sum(group.times for group in groups)
    parts = {
        # They are drawn in float32, whatever they become.
        "weights": parameters * max(size, 4) + (held * weight + 2 * largest) * size,
        "gradients": parameters * size,
        "optimizer state": _optimizer(config, groups, parameters, size),
        "copies of weights to measure updates by": weight * size if measuring else 0,
        "activations": _activations(config, groups, size, measuring) + config.batch * features * size,
        "data": data,
        "layers' own objects": depth * _per_layer(config, measuring),
    }
    return Footprint(parts, parameters, parameters * 4 + data + parts["layers' own objects"])


def layers_of(config: Config) -> Iterator[Layers]:
    """The network's layers from the input on, neighbours that are equal taken together."""
    per_unit = 1 if config.constraint.name == "weight_norm" else 0
    slopes = 1 if config.act.name == "prelu" else 0
    shape, outputs = sample_shape(config)
    if isinstance(config.model, DeepMLP):
        yield from _mlp(config.model, math.prod(shape), outputs, per_unit, slopes)
        return
    normed = config.model.knobs.get("norm", "none") != "none"
    blocks = config.model.knobs.get("residual", "none")
    published = config.model.name == "lenet5_1998"
    # Fan-in of a unit's weight, units, h, what is left of it, and a skip path's projection.
    stages = (
        (shape[0] * 25, 6, 6 * 784, 6 * 196, 0),
        (25 if published else 150, 16, 1600, 400, 96),
        (400, 120, 120, 120, 48_000),
        (120, 84, 84, 84, 10_080),
    )
    for index, (fan_in, units, h, kept, projection) in enumerate(stages):
        kernels = 60 * 25 if published and index == 1 else units * fan_in
        # C3 of 1998 has a norm for each of its 60 kernels.
        others = units + slopes + per_unit * kernels // fan_in + (2 * units if normed else 0)
        if published and index < 2:
            others += 2 * units + slopes
        if blocks != "none" and index:
            others += projection + (blocks == "rezero")
        yield Layers(kernels, others, units, h, kept)
    yield Layers(84 * outputs, outputs + per_unit * outputs, outputs, outputs, 0, hidden=False)


def _mlp(model: DeepMLP, n_in: int, n_out: int, per_unit: int, slopes: int) -> Iterator[Layers]:
    depth = model.depth or 0
    # The first map, those between equal widths, and so on: never a list as long as the network is deep.
    widths = [n_in, *model.width] if isinstance(model.width, tuple) else [n_in, model.width, model.width]
    times = [1] * depth if isinstance(model.width, tuple) else [min(depth, 1), max(depth - 1, 0)]
    for index, ((fan_in, units), count) in enumerate(zip(pairwise(widths), times, strict=False)):
        others = (units if model.bias else 0) + slopes + per_unit * units + (2 * units if model.norm != "none" else 0)
        if model.residual != "none" and index:
            others += (fan_in * units if fan_in != units else 0) + (model.residual == "rezero")
        yield Layers(fan_in * units, others, units, units, units, times=count)
    last = widths[-1] if depth else n_in
    yield Layers(last * n_out, n_out * (model.bias + per_unit), n_out, n_out, 0, hidden=False)


def sample_shape(config: Config) -> tuple[tuple[int, ...], int]:
    """The shape of one input, and how many outputs a network for the data has."""
    if isinstance(config.data, Gaussian):
        return (config.data.dim,), config.data.classes
    return SAMPLES[config.data.name]


def _data(config: Config, size: int) -> tuple[int, int]:
    """Bytes of both splits while they are read and made ready, and the numbers in a sample."""
    shape, outputs = sample_shape(config)
    features = math.prod(shape)
    if isinstance(config.data, Gaussian):
        samples = config.data.n_train + config.data.n_test
        # A teacher labels them: its weights, and its outputs for every sample.
        read = 4 * (samples * (features + outputs) + features * outputs)
    else:
        samples = config.n_train + N_TEST[config.data.name]
        read = samples * features * (4 + 4)
    return read + (samples * features * size if size != 4 else 0) + samples * 16, features


def _optimizer(config: Config, groups: list[Layers], parameters: int, size: int) -> int:
    name, knobs = config.optimizer.name, config.optimizer.knobs
    if name == "coordinate_descent":
        # Single coordinates are numbered, and the steepest is looked for in a copy of the gradient.
        single = parameters * 8 if knobs["block"] == "coordinate" else 0
        return single + (parameters * size if knobs["order"] == "gauss_southwell" else 0)
    count = _STATES.get(name, 0) * parameters
    if name == "rmsprop" and knobs["momentum"]:
        count += parameters
    if name == "muon":
        # All but hidden matrices has AdamW's two moments.
        count += parameters - sum(group.times * group.weight for group in groups if group.hidden)
    return count * size


def _activations(config: Config, groups: list[Layers], size: int, measuring: bool) -> int:
    """Until backward has passed; or what an evaluation of the test split holds of two neighbouring layers."""
    knobs = config.model.knobs
    own = 0 if config.act.name in _OUTPUT_ONLY and not measuring else 1
    # h, where backward or measuring needs it; where it is measured, its gradient and the slopes there.
    per_h = own + 2 * measuring + (knobs.get("norm", "none") != "none") + (knobs.get("residual", "none") != "none")
    per_sample = 0
    for group in groups:
        kept = group.kept * (1 + 1.25 * (knobs.get("dropout", 0) > 0))
        more = group.h if group.kept != group.h else 0
        per_sample += group.times * (group.h * per_h + more + int(kept) if group.hidden else 2 * group.h)
    widest = max(group.h for group in groups)
    test = config.data.n_test if isinstance(config.data, Gaussian) else N_TEST[config.data.name]
    return size * max(config.batch * (per_sample + widest), 2 * widest * min(test, EVALUATION_BATCH))


def _per_layer(config: Config, measuring: bool) -> int:
    knobs = config.model.knobs
    return sum(
        _PER_LAYER[what]
        for what, there in (
            ("layer", True),
            ("measured", measuring),
            ("norm", knobs.get("norm", "none") != "none"),
            ("dropout", knobs.get("dropout", 0) > 0),
            ("residual", knobs.get("residual", "none") != "none"),
        )
        if there
    )
