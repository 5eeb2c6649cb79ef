"""Activation functions φ, their slopes φ', and where those slopes are bounded by saturation."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

_SCALE, _STEEPNESS = 1.7159, 2 / 3


class ScaledTanh(nn.Module):
    """1.7159 tanh(2x/3), elementwise: ±1 map to ±1, where the slope is still large (LeCun et al. 1998)."""

    def forward(self, x: Tensor) -> Tensor:
        return _SCALE * torch.tanh(_STEEPNESS * x)


class Erf(nn.Module):
    """The Gauss error function, elementwise; its mean-field maps are closed forms (Williams 1997)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.erf(x)


def _leaky_relu(slope: float = 0.01) -> nn.Module:
    return nn.LeakyReLU(negative_slope=slope)


def _elu(alpha: float = 1.0) -> nn.Module:
    return nn.ELU(alpha=alpha)


ACTIVATIONS: dict[str, Callable[..., nn.Module]] = {
    "identity": nn.Identity,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "scaled_tanh": ScaledTanh,
    "hardtanh": nn.Hardtanh,
    "softsign": nn.Softsign,
    "relu": nn.ReLU,
    "leaky_relu": _leaky_relu,
    "prelu": nn.PReLU,
    "elu": _elu,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "softplus": nn.Softplus,
    "erf": Erf,
}

_MAX_SLOPES: dict[type[nn.Module], float] = {
    nn.Sigmoid: 1 / 4,
    nn.Tanh: 1.0,
    ScaledTanh: _SCALE * _STEEPNESS,
    nn.Hardtanh: 1.0,
    nn.Hardsigmoid: 1 / 6,
    nn.ReLU6: 1.0,
    nn.Softsign: 1.0,
    Erf: 2 / math.sqrt(math.pi),
}


def build_activation(name: str, **knobs: float) -> nn.Module:
    """A new module for the activation ``name``, which maps a tensor of any shape elementwise and never in place.

    ``knobs`` are the option's own: ``slope`` of leaky_relu, ``alpha`` of elu. GELU is the exact one, x Φ(x). PReLU
    has one learnt slope, 0.25 at the start (arXiv:1502.01852), so that each layer needs a module of its own.
    """
    return ACTIVATIONS[name](**knobs)


def derivative(activation: nn.Module, h: Tensor) -> Tensor:
    """φ'(h), elementwise, in the shape and dtype of ``h`` and detached from any graph.

    It is the slope that the backward pass multiplies by, so a kink has the value PyTorch gives it (0 for ReLU at 0);
    NaN where h is NaN, although PyTorch has a slope for that too.
    Pure: no hook runs, no parameter's ``.grad`` moves, and ``torch.no_grad`` around it makes no difference.
    """
    # Hooks on saved tensors are a checkpoint's, say, which would recompute its whole block for these.
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is):
        h = h.detach().requires_grad_()
        # forward, not __call__: the hooks by which a probe watches the module would take this for a step.
        outputs = activation.forward(h)
        if outputs.shape != h.shape:
            raise ValueError(f"shape {list(outputs.shape)} for {list(h.shape)}")
        # Of a sum, and not by torch.func.vjp or with grad_outputs: those import torch's compiler or sympy.
        (slope,) = torch.autograd.grad(outputs.sum(), h)
    return slope.masked_fill(h.isnan(), torch.nan)


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def max_slope(activation: nn.Module) -> float | None:
    """The maximum of |φ'| for a bounded activation; None for an unbounded one, which cannot saturate."""
    return _MAX_SLOPES.get(type(activation))
