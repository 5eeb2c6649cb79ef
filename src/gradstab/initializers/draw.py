"""What a scheme of initialisation draws from and writes to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gradstab.models.blocks import Model, TableConv2d


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
    weight, bias = weight_of(affine), affine.bias
    assert bias is None or isinstance(bias, nn.Parameter)
    return [Share(weight, bias, weight[0].numel(), weight.numel() // weight.shape[1])]


def weight_of(affine: nn.Module) -> nn.Parameter:
    assert isinstance(affine.weight, nn.Parameter), "weights are initialised before they are parametrized"
    return affine.weight


@dataclass(frozen=True)
class Draw:
    """One initialisation of one network: what a scheme draws from, and what it may depend on."""

    model: Model
    act_name: str
    act_knobs: Mapping[str, float]
    generator: torch.Generator
    gain: float
    batch: Tensor | None

    @property
    def slope(self) -> float:
        """The slope that the kaiming schemes count, that of a leaky ReLU below 0."""
        return {"leaky_relu": self.act_knobs.get("slope", 0.01), "prelu": 0.25}.get(self.act_name, 0.0)

    @property
    def dropout(self) -> float:
        """The rate p of the network's dropout, 0 without."""
        return max((module.p for module in self.model.modules() if isinstance(module, nn.Dropout)), default=0.0)

    def affines(self) -> list[nn.Module]:
        return [layer.affine for layer in self.model.layers]

    def dense(self) -> list[nn.Module]:
        """The affine maps, for a scheme that is about whole matrices."""
        assert not any(isinstance(affine, TableConv2d) for affine in self.affines())
        return self.affines()

    def shares(self) -> Iterator[Share]:
        for affine in self.affines():
            yield from shares(affine)


def normal(values: Tensor, variance: float, generator: torch.Generator) -> None:
    nn.init.normal_(values, std=math.sqrt(variance), generator=generator)


def uniform(values: Tensor, variance: float, generator: torch.Generator) -> None:
    bound = math.sqrt(3 * variance)
    nn.init.uniform_(values, -bound, bound, generator=generator)


def lecun_normal(affine: nn.Module, generator: torch.Generator) -> None:
    for share in shares(affine):
        normal(share.weight, 1 / share.fan_in, generator)


def kaiming(draw: Draw, share: Share) -> float:
    return 2 / ((1 + draw.slope**2) * share.fan_in)
