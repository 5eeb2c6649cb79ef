"""LeNet-5 as it is used today, and the way images are brought to its 32×32 pixels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from gradstab.models.blocks import Hidden, Layer, Model, assemble, dense_norm, hidden_unit, shortcut

SIDE = 32


def to_lenet_input(x: Tensor) -> Tensor:
    """Square images [B, C, S, S], S ≤ 32, as [B, C, 32, 32].

    Images of 28×28 are padded by 2 zeros on each side, as LeCun et al. (1998) set MNIST's into a larger field;
    smaller ones such as the 8×8 digits are scaled up to the nearest neighbour; those of 32×32 are returned as is.
    """
    side = x.shape[-1]
    if side == SIDE:
        return x
    if side == SIDE - 4:
        return F.pad(x, (2, 2, 2, 2))
    return F.interpolate(x, size=(SIDE, SIDE), mode="nearest")


class LeNetInput(nn.Module):
    """``to_lenet_input`` as a network's first module; costs nothing for images that are 32×32 already."""

    def forward(self, x: Tensor) -> Tensor:
        return to_lenet_input(x)


def image_channels(in_shape: tuple[int, ...]) -> int:
    """C of a shape (C, S, S) with S ≤ 32, as all data sets of images have."""
    channels, height, width = in_shape
    assert height == width <= SIDE
    return channels


def _image_norm(norm: str, channels: int) -> nn.Module | None:
    makers: dict[str, Callable[[int], nn.Module]] = {"batch": nn.BatchNorm2d, "layer": partial(nn.GroupNorm, 1)}
    return None if norm == "none" else makers[norm](channels)


def lenet5(
    *,
    in_shape: tuple[int, ...],
    out_features: int,
    activation: Callable[[], nn.Module],
    pooling: str = "max",
    norm: str = "none",
    norm_position: str | None = None,
    dropout: float = 0.0,
    residual: str = "none",
) -> Model:
    """LeNet-5 with a full C3, pooling without weights (``avg`` or ``max``, 2×2) and a linear output layer.

    x: [B, C, S, S], S ≤ 32, brought to 32×32 by ``to_lenet_input``; outputs [B, out_features]. 61,706 parameters for
    one channel and ten classes. A hidden unit is [norm] → activation → [norm] → [pooling] → [dropout]; ``norm``
    layer is one group over channels and positions for images. With ``residual``, C1 is the stem and C3, C5, F6 are
    blocks whose skip path pools the stream likewise, projects it without bias, and for C3 crops the centre that
    its kernel leaves. (LeCun et al. 1998, Gradient-based learning applied to document recognition.)
    """
    pool: Callable[[], nn.Module] = partial({"avg": nn.AvgPool2d, "max": nn.MaxPool2d}[pooling], 2)
    unit = partial(hidden_unit, norm_position=norm_position, dropout=dropout)

    def convolution(name: str, fan_in: int, channels: int, skip: Callable[[], nn.Module]) -> Hidden:
        layer = Layer(name, nn.Conv2d(fan_in, channels, 5), act := activation())
        return Hidden(layer, unit(act, norm=_image_norm(norm, channels), pool=pool()), skip)

    def dense(name: str, fan_in: int, features: int, skip: Callable[[], nn.Module]) -> Hidden:
        layer = Layer(name, nn.Linear(fan_in, features), act := activation())
        return Hidden(layer, unit(act, norm=dense_norm(norm, features)), skip)

    def skip_c3() -> nn.Module:
        return nn.Sequential(pool(), nn.ZeroPad2d(-2), nn.Conv2d(6, 16, 1, bias=False))

    def skip_c5() -> nn.Module:
        return nn.Sequential(pool(), nn.Flatten(), shortcut(400, 120))

    c1 = convolution("C1", image_channels(in_shape), 6, nn.Identity)
    c3 = convolution("C3", 6, 16, skip_c3)
    c3.unit.append(nn.Flatten())
    c5 = dense("C5", 400, 120, skip_c5)
    f6 = dense("F6", 120, 84, partial(shortcut, 120, 84))
    output = Layer("output", nn.Linear(84, out_features), None)
    return assemble([c1, c3, c5, f6], output, residual=residual, head=[LeNetInput()])
