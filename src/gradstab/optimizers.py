"""How weights move: torch's own optimizers, Muon beside AdamW, and coordinate descent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn, optim
from torch.optim import Optimizer

from gradstab.coordinate_descent import CoordinateDescent
from gradstab.eager import eager
from gradstab.errors import ConfigError


@dataclass(frozen=True)
class _Weights:
    """What there is to move, as each builder is given it."""

    all: list[nn.Parameter]
    blocks: Sequence[Sequence[nn.Parameter]]
    hidden_matrices: Sequence[nn.Parameter]
    generator: torch.Generator


def build_optimizer(
    name: str,
    parameters: Sequence[nn.Parameter],
    *,
    blocks: Sequence[Sequence[nn.Parameter]],
    hidden_matrices: Sequence[nn.Parameter],
    generator: torch.Generator,
    **knobs: Any,
) -> Optimizer:
    """The optimizer ``name`` for ``parameters``, which are to be on their device already.

    ``blocks`` split the parameters by layer, for coordinate descent, which draws from the CPU ``generator``;
    ``hidden_matrices`` are the weights that Muon may take. A parameter whose gradient is None stays where it is.
    Raises :class:`ConfigError` where Muon cannot work.
    """
    return OPTIMIZERS[name](_Weights(list(parameters), blocks, hidden_matrices, generator), **knobs)


# -------------------------------------------------------------------------------------------- torch's own


def _sgd(weights: _Weights, *, lr: float, weight_decay: float) -> Optimizer:
    return _build(optim.SGD, weights.all, lr=lr, weight_decay=weight_decay)


def _momentum(weights: _Weights, *, lr: float, momentum: float, weight_decay: float) -> Optimizer:
    return _build(optim.SGD, weights.all, lr=lr, momentum=momentum, weight_decay=weight_decay)


def _nesterov(weights: _Weights, *, lr: float, momentum: float, weight_decay: float) -> Optimizer:
    return _build(optim.SGD, weights.all, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=True)


def _adam(weights: _Weights, *, beta1: float, beta2: float, **knobs: float) -> Optimizer:
    return _build(optim.Adam, weights.all, betas=(beta1, beta2), **knobs)


def _adamw(weights: _Weights, *, beta1: float, beta2: float, **knobs: float) -> Optimizer:
    return _build(optim.AdamW, weights.all, betas=(beta1, beta2), **knobs)


def _rmsprop(weights: _Weights, **knobs: float) -> Optimizer:
    return _build(optim.RMSprop, weights.all, **knobs)


def _adagrad(weights: _Weights, **knobs: float) -> Optimizer:
    return _build(optim.Adagrad, weights.all, **knobs)


def _build(cls: Any, parameters: Sequence[nn.Parameter], **knobs: Any) -> Optimizer:
    """An optimizer with one fused kernel for all parameters, where torch has one for their devices and dtypes."""
    fused = all(_has_fused(cls, kind) for kind in {(p.device, p.dtype) for p in parameters})
    optimizer: Optimizer = eager(cls)(parameters, **knobs, **({"fused": True} if fused else {}))
    return optimizer


@cache
def _has_fused(cls: Any, kind: tuple[torch.device, torch.dtype]) -> bool:
    """Whether a fused step works: not every class has one, and some fail only at the first step."""
    device, dtype = kind
    trial = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))
    trial.grad = torch.zeros_like(trial)
    try:
        eager(cls)([trial], fused=True).step()
    except (RuntimeError, NotImplementedError, TypeError):
        return False
    return True


# --------------------------------------------------------------------------------------------------- muon


class Combined(eager(Optimizer)):  # type: ignore[misc]
    """Several optimizers as one: ``param_groups`` are the very dicts of its parts, in their order."""

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        # The parts made new dicts.
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def _muon(weights: _Weights, *, lr: float, momentum: float, weight_decay: float, adamw_lr: float) -> Optimizer:
    """Nesterov momentum, orthogonalised, for hidden matrices; AdamW with torch's moments for all else.

    Convolutions, and vectors that are stored as a matrix, go to AdamW too. ``weight_decay`` is decoupled and for
    both, each at its own rate. Jordan et al. 2024, https://kellerjordan.github.io/posts/muon.
    """
    muon: Any = getattr(optim, "Muon", None)
    if muon is None:
        raise ConfigError(f"optimizer=muon: is in torch 2.9 and later, and this is torch {torch.__version__}")
    matrices = [p for p in weights.hidden_matrices if p.ndim == 2 and min(p.shape) > 1]
    if not matrices:
        raise ConfigError(
            "optimizer=muon: orthogonalises hidden weight matrices, and this model has none; "
            "allowed: a model with a hidden layer of width 2 or more, or another optimizer"
        )
    taken = set(matrices)
    rest = [p for p in weights.all if p not in taken]
    parts = [_build(muon, matrices, lr=lr, momentum=momentum, weight_decay=weight_decay)]
    if rest:
        parts.append(_build(optim.AdamW, rest, lr=adamw_lr, weight_decay=weight_decay))
    return Combined(parts)


def _coordinate_descent(weights: _Weights, *, lr: float, block: str, order: str) -> Optimizer:
    return CoordinateDescent(weights.all, weights.blocks, weights.generator, lr=lr, block=block, order=order)


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": _sgd,
    "momentum": _momentum,
    "nesterov": _nesterov,
    "adam": _adam,
    "adamw": _adamw,
    "rmsprop": _rmsprop,
    "adagrad": _adagrad,
    "muon": _muon,
    "coordinate_descent": _coordinate_descent,
}
