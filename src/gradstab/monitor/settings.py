"""What a monitor is told about the loop it watches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gradstab.config.verdict_options import Thresholds
from gradstab.monitor.signals import Conventions

# Every so many steps somebody looks whether the network has other parameters.
RENEWED = 50


@dataclass(frozen=True)
class Settings:
    """What a monitor is told about the loop it watches; :func:`gradstab.watch` explains each."""

    every: int | None = 50
    scaler: Any = None
    conventions: Conventions = field(default_factory=Conventions)
    thresholds: Thresholds = field(default_factory=Thresholds)
    chance_loss: float | None = None
