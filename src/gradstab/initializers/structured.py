"""Schemes that need more than independent draws: whole matrices, or the network that they start."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from gradstab.errors import ConfigError
from gradstab.initializers.draw import Draw, kaiming, lecun_normal, normal, shares, weight_of
from gradstab.models.blocks import Layer, TableConv2d, residual_blocks


def constant(draw: Draw, *, value: float) -> None:
    for affine in draw.affines():
        nn.init.constant_(weight_of(affine), draw.gain * value)


def orthogonal(draw: Draw) -> None:
    """Orthonormal rows or columns, whichever are fewer; kernels as [out, in·k·k] (Saxe 2014, arXiv:1312.6120)."""
    for affine in draw.dense():
        nn.init.orthogonal_(weight_of(affine), draw.gain, draw.generator)


def delta_orthogonal(draw: Draw) -> None:
    """Orthonormal columns at a kernel's centre, 0 elsewhere; dense layers orthogonal (arXiv:1806.05393)."""
    for layer, affine in zip(draw.model.layers, draw.dense(), strict=True):
        weight = weight_of(affine)
        centre = weight.zero_()
        if isinstance(affine, nn.Conv2d):
            if affine.out_channels < affine.in_channels:
                sizes = f"{layer.name} has {affine.in_channels} input and {affine.out_channels} output channels"
                raise ConfigError(f"init=delta_orthogonal needs at least as many output as input channels: {sizes}")
            centre = weight[:, :, weight.shape[2] // 2, weight.shape[3] // 2]
        nn.init.orthogonal_(centre, draw.gain, draw.generator)


def identity(draw: Draw) -> None:
    """The identity matrix, rectangular where need be; for a convolution, the kernel that passes its input on."""
    for affine in draw.dense():
        weight = weight_of(affine)
        (nn.init.eye_ if weight.dim() == 2 else nn.init.dirac_)(weight)
        weight.mul_(draw.gain)


def lsuv(draw: Draw) -> None:
    """Orthonormal, then each layer in turn rescaled so that h has standard deviation ``gain`` over batch and units.

    Mishkin & Matas (2016, arXiv:1511.06422) rescale repeatedly. With biases at 0, h is linear in W, so that one
    factor is exact and one pass through the network enough. Normal weights of variance 1/fan_in stand in for
    orthonormal ones in a ``TableConv2d``. BatchNorm normalises by the batch, its running statistics untouched, and
    no dropout mask is drawn: the pass goes through a copy.
    """
    assert draw.batch is not None, "lsuv needs a batch"
    for affine in draw.affines():
        if isinstance(affine, TableConv2d):
            lecun_normal(affine, draw.generator)
        else:
            nn.init.orthogonal_(weight_of(affine), generator=draw.generator)
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
        weight_of(layer.affine).mul_(target / std)
        return h * (target / std)

    return hook


def fixup(draw: Draw) -> None:
    """The stem as in kaiming_normal, branches and output layer 0 (Zhang et al. 2019, arXiv:1901.09321).

    Fixup sets a branch's last layer to 0 and scales its m - 1 others by blocks^(-1/(2m-2)); the branches here have
    m = 1 layer, which is the last. The scalar biases and multipliers that the paper adds are left out.
    """
    assert residual_blocks(draw.model)
    stem, *others = draw.affines()
    for share in shares(stem):
        normal(share.weight, draw.gain**2 * kaiming(draw, share), draw.generator)
    for affine in others:
        nn.init.zeros_(weight_of(affine))
