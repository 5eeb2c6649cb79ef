"""Networks: built by name from flat keyword arguments, seen by the rest of gradstab as a ``Model`` of layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from gradstab.models.blocks import Layer, Model, TableConv2d, parameter_blocks
from gradstab.models.deep_mlp import deep_mlp
from gradstab.models.lenet5 import lenet5, to_lenet_input
from gradstab.models.lenet5_1998 import lenet5_1998

__all__ = ["MODELS", "Layer", "Model", "TableConv2d", "build_model", "parameter_blocks", "to_lenet_input"]

MODELS: dict[str, Callable[..., Model]] = {"deep_mlp": deep_mlp, "lenet5": lenet5, "lenet5_1998": lenet5_1998}


def build_model(
    name: str, *, in_shape: tuple[int, ...], out_features: int, activation: Callable[[], nn.Module], **knobs: Any
) -> Model:
    """The network ``name`` for samples of ``in_shape`` (no batch dimension) and ``out_features`` outputs.

    ``activation`` makes a new module at every call; ``knobs`` are the option's own (``width``, ``pooling``, …), with
    the depth of deep_mlp a number by now. Weights are PyTorch's defaults, drawn from the global generator, until
    ``initializers.initialize`` sets them. ``config/rules.py`` has seen to it that they fit the data.
    """
    return MODELS[name](in_shape=in_shape, out_features=out_features, activation=activation, **knobs)
