"""What steps are made of: what the first one means for those after it, in a deep network, and weight decay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gradstab.config import Config
from gradstab.config.optimizer_options import DECOUPLED
from gradstab.config.training_options import REPARAMETRIZING


def step_scale(config: Config) -> float | None:
    """How much a layer's first relative step weighs in a chain of L hidden layers: L^(3/2), times its growth.

    In ReLU networks, the largest rate at which one step of gradient descent leaves the change of pre-activations
    bounded falls as L^(-3/2) (Jelassi et al. 2023, arXiv:2305.07810); that relative steps of other activations and
    optimizers may be weighed alike is what ``docs/verdict.md`` measures. Growth is that of :func:`step_growth`. None
    for networks whose skip paths or batch norm stand larger steps, and for LeNet-5.
    """
    knobs: Mapping[str, Any] = config.model.knobs
    if config.model.name != "deep_mlp" or not knobs["depth"] or knobs["residual"] != "none" or knobs["norm"] == "batch":
        return None
    return chain_scale(knobs["depth"], step_growth(config.optimizer.name, config.optimizer.knobs))


def chain_scale(depth: int, growth: float) -> float:
    """L^(3/2) times growth, for a chain of so many hidden layers."""
    scale: float = depth**1.5 * growth
    return scale


def coupled_decay(config: Config) -> float | None:
    """The weight decay that is part of the gradient; None without, or where it pulls at other than the weights."""
    if config.optimizer.name in DECOUPLED or config.constraint.name in REPARAMETRIZING:
        return None
    return config.optimizer.knobs.get("weight_decay") or None


def step_growth(optimizer: str, knobs: Mapping[str, Any]) -> float:
    """The mean size of an optimizer's first 20 steps over that of the first, were the gradient to stay as it is.

    ``knobs`` are those of the option ``optimizer`` of this name: RMSprop's ``alpha``, and ``momentum``.
    """
    count = np.arange(1.0, 21.0)
    sizes = np.ones(20)
    if optimizer == "rmsprop":
        sizes = np.sqrt((1 - knobs["alpha"]) / (1 - knobs["alpha"] ** count))
    elif optimizer == "adagrad":
        sizes = 1 / np.sqrt(count)
    if optimizer in ("momentum", "nesterov", "rmsprop"):
        momentum = knobs["momentum"]
        velocity = [sum(momentum ** (last - k) * sizes[k] for k in range(last + 1)) for last in range(20)]
        sizes = sizes + momentum * np.array(velocity) if optimizer == "nesterov" else np.array(velocity)
    return float(sizes.mean() / sizes[0])
