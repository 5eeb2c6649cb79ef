"""How weights start: every scheme of ``init``, drawn from one generator."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gradstab.errors import ConfigError
from gradstab.models.blocks import Layer, Model, TableConv2d, projections, residual_blocks


class Share(NamedTuple):
    """Weights that have the same fans, and their biases: a whole layer, or one output map of a ``TableConv2d``.

    ``weight`` and ``bias`` are the parameters or views of them. The fans count connections: inputs that a unit sums
    over and units that an input feeds, positions of the kernel included.
    """

    weight: Tensor
    bias: Tensor | None
    fan_in: int
    fan_out: int


def shares(affine: nn.Module) -> list[Share]:
    """The parts of an affine map whose weights have the same fans.

    The input maps of a ``TableConv2d`` are taken to feed equally many output maps, as those of LeNet-5's C3 do.
    """
    if isinstance(affine, TableConv2d):
        fan_out = affine.weight.numel() // affine.in_channels
        return [Share(weight, bias, weight.numel(), fan_out) for weight, bias in affine.units()]
    weight, bias = _weight(affine), affine.bias
    assert bias is None or isinstance(bias, nn.Parameter)
    return [Share(weight, bias, weight[0].numel(), weight.numel() // weight.shape[1])]


def _weight(affine: nn.Module) -> nn.Parameter:
    assert isinstance(affine.weight, nn.Parameter), "weights are initialised before they are parametrized"
    return affine.weight


@dataclass(frozen=True)
class Draw:
    """One initialisation of one network: what a scheme draws from, and what it may depend on."""

    name: str
    model: Model
    generator: torch.Generator
    gain: float
    slope: float
    batch: Tensor | None

    def affines(self) -> list[nn.Module]:
        return [layer.affine for layer in self.model.layers]

    def dense(self) -> list[nn.Module]:
        """The affine maps, for a scheme that is about whole matrices."""
        if any(isinstance(affine, TableConv2d) for affine in self.affines()):
            raise ConfigError(
                f"init={self.name} needs layers whose connections are dense; C3 of model=lenet5_1998 has a table"
            )
        return self.affines()

    def shares(self) -> Iterator[Share]:
        for affine in self.affines():
            yield from shares(affine)


def _normal(values: Tensor, variance: float, generator: torch.Generator) -> None:
    nn.init.normal_(values, std=math.sqrt(variance), generator=generator)


def _uniform(values: Tensor, variance: float, generator: torch.Generator) -> None:
    bound = math.sqrt(3 * variance)
    nn.init.uniform_(values, -bound, bound, generator=generator)


def _independent(
    fill: Callable[[Tensor, float, torch.Generator], None],
    variance: Callable[..., float],
    bias_variance: Callable[..., float] | None = None,
) -> Callable[..., None]:
    """A scheme of independent draws; the variances are functions of draw, share and the scheme's knobs."""

    def scheme(draw: Draw, **knobs: float) -> None:
        for share in draw.shares():
            fill(share.weight, draw.gain**2 * variance(draw, share, **knobs), draw.generator)
            if share.bias is not None and bias_variance is not None:
                fill(share.bias, bias_variance(draw, share, **knobs), draw.generator)

    return scheme


def _lecun_normal(affine: nn.Module, generator: torch.Generator) -> None:
    for share in shares(affine):
        _normal(share.weight, 1 / share.fan_in, generator)


def _kaiming(draw: Draw, share: Share) -> float:
    return 2 / ((1 + draw.slope**2) * share.fan_in)


def _constant(draw: Draw, *, value: float) -> None:
    for affine in draw.affines():
        nn.init.constant_(_weight(affine), draw.gain * value)


def _orthogonal(draw: Draw) -> None:
    """Orthonormal rows or columns, whichever are fewer; kernels as [out, in·k·k] (Saxe 2014, arXiv:1312.6120)."""
    for affine in draw.dense():
        nn.init.orthogonal_(_weight(affine), draw.gain, draw.generator)


def _delta_orthogonal(draw: Draw) -> None:
    """Orthonormal columns at a kernel's centre, 0 elsewhere; dense layers orthogonal (arXiv:1806.05393)."""
    for layer, affine in zip(draw.model.layers, draw.dense(), strict=True):
        weight = _weight(affine)
        centre = weight.zero_()
        if isinstance(affine, nn.Conv2d):
            if affine.out_channels < affine.in_channels:
                sizes = f"{layer.name} has {affine.in_channels} input and {affine.out_channels} output channels"
                raise ConfigError(f"init=delta_orthogonal needs at least as many output as input channels: {sizes}")
            centre = weight[:, :, weight.shape[2] // 2, weight.shape[3] // 2]
        nn.init.orthogonal_(centre, draw.gain, draw.generator)


def _identity(draw: Draw) -> None:
    """The identity matrix, rectangular where need be; for a convolution, the kernel that passes its input on."""
    for affine in draw.dense():
        weight = _weight(affine)
        (nn.init.eye_ if weight.dim() == 2 else nn.init.dirac_)(weight)
        weight.mul_(draw.gain)


def _lsuv(draw: Draw) -> None:
    """Orthonormal, then each layer in turn rescaled so that h has standard deviation ``gain`` over batch and units.

    Mishkin & Matas (2016, arXiv:1511.06422) rescale repeatedly. With biases at 0, h is linear in W, so that one
    factor is exact and one pass through the network enough. Normal weights of variance 1/fan_in stand in for
    orthonormal ones in a ``TableConv2d``. BatchNorm normalises by the batch, its running statistics untouched, and
    no dropout mask is drawn: the pass goes through a copy.
    """
    assert draw.batch is not None, "lsuv needs a batch"
    for affine in draw.affines():
        if isinstance(affine, TableConv2d):
            _lecun_normal(affine, draw.generator)
        else:
            nn.init.orthogonal_(_weight(affine), generator=draw.generator)
    twin = copy.deepcopy(draw.model)
    for module in twin.modules():
        module.training = not isinstance(module, nn.Dropout)
    for index, (layer, watched) in enumerate(zip(draw.model.layers, twin.layers, strict=True)):
        watched.affine.register_forward_hook(_rescaling(layer, index, draw.gain))
    twin(draw.batch)


def _rescaling(layer: Layer, index: int, target: float) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """A hook that scales the output to the standard deviation ``target``, and the weights of ``layer`` alike."""

    def hook(_module: nn.Module, _args: Any, h: Tensor) -> Tensor:
        std = h.double().std(correction=0).item()
        if not (std > 0 and math.isfinite(std)):
            raise ConfigError(
                f"init=lsuv cannot scale layer {index} ({layer.name}): "
                f"its output on the first batch has standard deviation {std:g}"
            )
        _weight(layer.affine).mul_(target / std)
        return h * (target / std)

    return hook


def _fixup(draw: Draw) -> None:
    """The stem as in kaiming_normal, branches and output layer 0 (Zhang et al. 2019, arXiv:1901.09321).

    Fixup sets a branch's last layer to 0 and scales its m - 1 others by blocks^(-1/(2m-2)); the branches here have
    m = 1 layer, which is the last. The scalar biases and multipliers that the paper adds are left out.
    """
    blocks = residual_blocks(draw.model)
    added = all(isinstance(block.scale, float) and block.scale == 1 for block in blocks)
    norms = nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm
    if not blocks or not added or any(isinstance(module, norms) for module in draw.model.modules()):
        raise ConfigError("init=fixup works on residual blocks alone: it needs model.residual=add and model.norm=none")
    stem, *others = draw.affines()
    for share in shares(stem):
        _normal(share.weight, draw.gain**2 * _kaiming(draw, share), draw.generator)
    for affine in others:
        nn.init.zeros_(_weight(affine))


SCHEMES: dict[str, Callable[..., None]] = {
    "default": _independent(_uniform, lambda _, share: 1 / (3 * share.fan_in), lambda _, share: 1 / (3 * share.fan_in)),
    "zeros": lambda draw: _constant(draw, value=0.0),
    "constant": _constant,
    "normal": _independent(_normal, lambda _draw, _share, std: std**2),
    "uniform": _independent(_uniform, lambda _draw, _share, bound: bound**2 / 3),
    "xavier_uniform": _independent(_uniform, lambda _, share: 2 / (share.fan_in + share.fan_out)),
    "xavier_normal": _independent(_normal, lambda _, share: 2 / (share.fan_in + share.fan_out)),
    "kaiming_uniform": _independent(_uniform, _kaiming),
    "kaiming_normal": _independent(_normal, _kaiming),
    "lecun_normal": _independent(_normal, lambda _, share: 1 / share.fan_in),
    "orthogonal": _orthogonal,
    "delta_orthogonal": _delta_orthogonal,
    "identity": _identity,
    "variance": _independent(
        _normal,
        lambda _, share, sigma_w2, **_knobs: sigma_w2 / share.fan_in,
        lambda _draw, _share, sigma_b2, **_knobs: sigma_b2,
    ),
    "lsuv": _lsuv,
    "fixup": _fixup,
}


@torch.no_grad()
def initialize(
    model: Model,
    name: str,
    *,
    act_name: str,
    act_knobs: dict[str, Any],
    generator: torch.Generator,
    batch: Tensor | None,
    gain: float = 1.0,
    **knobs: float,
) -> None:
    """Set the weights and biases of every layer of ``model`` in place, by the scheme ``name``.

    ``model`` is in float32 on the CPU, and every random number is drawn from ``generator``, a CPU generator.
    ``gain`` is a factor on the weights drawn; for lsuv it is the standard deviation aimed at. ``batch``, inputs
    [B, *in_shape], is what lsuv measures on; the others do without. Biases are 0, except for ``default`` and
    ``variance``. Projections on skip paths are normal with variance 1/fan_in whatever the scheme. Parameters of norm
    layers, activations, ReZero and subsampling keep the values that they were constructed with.
    """
    slope = {"leaky_relu": act_knobs.get("slope", 0.01), "prelu": 0.25}.get(act_name, 0.0)
    draw = Draw(name, model, generator, gain, slope, batch)
    for share in draw.shares():
        if share.bias is not None:
            share.bias.zero_()
    for projection in projections(model):
        _lecun_normal(projection, generator)
    SCHEMES[name](draw, **knobs)
