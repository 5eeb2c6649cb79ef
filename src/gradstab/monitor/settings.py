"""What a monitor is told about the loop it watches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from gradstab.config.verdict_options import Thresholds

# Every so many steps somebody looks whether the network has other parameters.
RENEWED = 50


@dataclass
class Conventions:
    """How to read somebody's network: the loss's ``reduction`` over samples, where the batch is, own activations."""

    reduction: str = "mean"
    batch_dim: int = 0
    activations: tuple[type[nn.Module], ...] = ()


@dataclass(frozen=True)
class Settings:
    """What a monitor is told about the loop it watches; :func:`gradstab.watch` explains each."""

    every: int | None = 50
    scaler: Any = None
    conventions: Conventions = field(default_factory=Conventions)
    thresholds: Thresholds = field(default_factory=Thresholds)
    chance_loss: float | None = None
