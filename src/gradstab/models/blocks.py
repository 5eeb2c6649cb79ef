"""The pieces that networks are built from, and the ``Layer`` by which the rest of gradstab sees them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Layer:
    """One layer with weights, h = W a + b, as it is measured.

    ``affine`` computes W a + b (an ``nn.Linear``, an ``nn.Conv2d`` or a ``TableConv2d``); ``activation`` is the module
    that turns h, normalised or not, into the layer's activation, and is None for the output layer. ``block`` is the
    residual block around the affine map, whose output, the stream, is then h; None in a plain network.
    """

    name: str
    affine: nn.Module
    activation: nn.Module | None
    block: nn.Module | None = None

    @property
    def preactivation(self) -> nn.Module:
        """The module whose output is h, which the layer's activation is a function of."""
        return self.affine if self.block is None else self.block

    def weight_parameters(self) -> list[nn.Parameter]:
        """The parameters that make up W: the weight itself, or what a parametrization computes it from."""
        if nn.utils.parametrize.is_parametrized(self.affine, "weight"):
            assert isinstance(self.affine.parametrizations, nn.ModuleDict)
            return list(self.affine.parametrizations["weight"].parameters())
        assert isinstance(self.affine.weight, nn.Parameter)
        return [self.affine.weight]


class Model(nn.Module):
    """A network with its layers at hand: nearest the input first, the output layer last.

    ``body`` maps x, [B, *in_shape] float, to the outputs, [B, out_features]. ``layers`` name modules of ``body``;
    they are no modules of their own, so nothing is registered twice.
    """

    def __init__(self, body: nn.Module, layers: Iterable[Layer]) -> None:
        super().__init__()
        self.body = body
        self.layers = tuple(layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y


class TableConv2d(nn.Module):
    """A convolution, stride 1, whose output maps each see only some of the input maps (LeCun et al. 1998, Table I).

    ``table`` lists for every output map the input maps it is connected to. Only kernels that exist are stored: the
    weight is [connections, k, k], the kernels of output map 0 first; the bias is [out_channels]. Both start uniform
    in ±1/√fan_in of their map. x: [B, in_channels, H, W] to [B, out_channels, H-k+1, W-k+1].
    """

    positions: Tensor

    def __init__(self, in_channels: int, table: Sequence[Sequence[int]], kernel_size: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.kernel_size = in_channels, len(table), kernel_size
        self.connections = [len(inputs) for inputs in table]
        self.weight = nn.Parameter(torch.empty(sum(self.connections), kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.empty(len(table)))
        positions = [out * in_channels + i for out, inputs in enumerate(table) for i in inputs]
        self.register_buffer("positions", torch.tensor(positions), persistent=False)
        for weight, bias in self.units():
            nn.init.uniform_(weight, -1 / math.sqrt(weight.numel()), 1 / math.sqrt(weight.numel()))
            nn.init.uniform_(bias, -1 / math.sqrt(weight.numel()), 1 / math.sqrt(weight.numel()))

    def units(self) -> list[tuple[Tensor, Tensor]]:
        """For every output map a view of its kernels, [its connections, k, k], and one of its bias, [1]."""
        return list(zip(torch.split(self.weight, self.connections), torch.split(self.bias, 1), strict=True))

    def dense_weight(self) -> Tensor:
        """The kernels as a convolution has them, [out_channels, in_channels, k, k]: 0 where there is no connection."""
        size = self.kernel_size
        dense = self.weight.new_zeros(self.out_channels * self.in_channels, size, size)
        return dense.index_copy(0, self.positions, self.weight).view(self.out_channels, self.in_channels, size, size)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.dense_weight(), self.bias)


class ResidualBlock(nn.Module):
    """x' = skip(x) + s · affine(unit(x)): pre-activation residual learning (He et al. 2016, arXiv:1603.05027).

    ``x`` is a pre-activation and x' the next one. ``scale`` is the fixed number s, or None for a learnt one that
    starts at 0 (ReZero, arXiv:2003.04887).
    """

    def __init__(self, unit: nn.Module, affine: nn.Module, skip: nn.Module, scale: float | None) -> None:
        super().__init__()
        self.unit, self.affine, self.skip = unit, affine, skip
        self.scale = nn.Parameter(torch.zeros(())) if scale is None else scale

    def forward(self, x: Tensor) -> Tensor:
        stream: Tensor = self.skip(x)
        branch: Tensor = self.affine(self.unit(x))
        if isinstance(self.scale, nn.Parameter):
            return stream + self.scale * branch
        return torch.add(stream, branch, alpha=self.scale)


@dataclass(frozen=True)
class Hidden:
    """A hidden layer yet to be put in place: its layer, the modules of the unit that follows its affine map, and
    what makes the skip path around that map, should the network be residual."""

    layer: Layer
    unit: list[nn.Module]
    skip: Callable[[], nn.Module]


def hidden_unit(
    activation: nn.Module,
    *,
    norm: nn.Module | None,
    norm_position: str | None,
    dropout: float,
    pool: nn.Module | None = None,
) -> list[nn.Module]:
    """[norm] → activation → [norm] → [pool] → [dropout], with the norm ``before`` (also for None) or ``after``.

    What is None is left out, and so is dropout at rate 0.
    """
    after = norm_position == "after"
    modules = [None if after else norm, activation, norm if after else None, pool]
    present = [module for module in modules if module is not None]
    return [*present, nn.Dropout(dropout)] if dropout else present


def dense_norm(norm: str, features: int) -> nn.Module | None:
    """The normalisation of [B, features]; None for ``none``."""
    makers: dict[str, Callable[[int], nn.Module]] = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}
    return None if norm == "none" else makers[norm](features)


def shortcut(in_features: int, out_features: int) -> nn.Module:
    """The skip path of a dense block: the identity, or a linear projection without bias where widths differ."""
    return nn.Identity() if in_features == out_features else nn.Linear(in_features, out_features, bias=False)


def assemble(hidden: Sequence[Hidden], output: Layer, *, residual: str, head: Sequence[nn.Module] = ()) -> Model:
    """The network ``head``, affine_0, unit_0, affine_1, …, unit_{L-1}, output, as one flat ``nn.Sequential``.

    With ``residual`` other than ``none``, affine_0 is the stem and every later hidden layer a ``ResidualBlock``
    around affine_l ∘ unit_{l-1}, its branch scaled by 1 (``add``), by 1/√blocks (``scaled``), or by a learnt scalar
    (``rezero``).
    """
    body: list[nn.Module] = list(head)
    layers = [part.layer for part in hidden]
    if residual == "none":
        for part in hidden:
            body += [part.layer.affine, *part.unit]
    elif hidden:
        blocks = len(hidden) - 1
        scale = {"add": 1.0, "scaled": 1 / math.sqrt(max(blocks, 1)), "rezero": None}[residual]
        body.append(hidden[0].layer.affine)
        for index, (before, part) in enumerate(pairwise(hidden), start=1):
            body.append(ResidualBlock(nn.Sequential(*before.unit), part.layer.affine, part.skip(), scale))
            layers[index] = replace(part.layer, block=body[-1])
        body += hidden[-1].unit
    return Model(nn.Sequential(*body, output.affine), [*layers, output])


def residual_blocks(model: nn.Module) -> list[ResidualBlock]:
    """The residual blocks of a network, nearest the input first; none for a plain one."""
    return [module for module in model.modules() if isinstance(module, ResidualBlock)]


def projections(model: nn.Module) -> list[nn.Module]:
    """The maps with weights on skip paths (``nn.Linear`` or 1×1 ``nn.Conv2d``, no bias), nearest the input first."""
    skips = [module for block in residual_blocks(model) for module in block.skip.modules()]
    return [module for module in skips if isinstance(module, nn.Linear | nn.Conv2d)]


def parameter_blocks(model: Model) -> list[list[nn.Parameter]]:
    """Every parameter exactly once, in blocks: one for each layer, and a last one for all others if there are any.

    A layer's block holds what its affine map is computed from, the parameters of a parametrization included. The
    others are those of norm layers, activations, ReZero scalars, projections and subsampling.
    """
    blocks = [list(layer.affine.parameters()) for layer in model.layers]
    seen = {id(parameter) for block in blocks for parameter in block}
    others = [parameter for parameter in model.parameters() if id(parameter) not in seen]
    return [*blocks, others] if others else blocks
