"""What a training step works with, and its state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradstab.clipping import Clip
from gradstab.data import Dataset
from gradstab.losses import Loss
from gradstab.measure.probe import Probe
from gradstab.models.blocks import Model
from gradstab.schedules import Schedule


@dataclass
class Parts:
    """Everything a training step works with, built and ready on the device."""

    model: Model
    data: Dataset
    loss: Loss
    penalty: Callable[[], Tensor] | None
    optimizer: torch.optim.Optimizer
    schedule: Schedule | None
    clip: Clip | None
    constraint: Callable[[], None] | None
    probe: Probe
    measure_norms: bool
    skip_non_finite: bool
    check_every_step: bool

    def state_dict(self) -> dict[str, Any]:
        """Everything that a step changes: numbers, text and tensors, which are still those of the run itself.

        A constraint's power iteration stands in the model's buffers; dropout draws from torch's own generators.
        """
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "clip": None if self.clip is None else self.clip.state_dict(),
            "generators": generator_states(self.probe.parameters[0].device),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        # Sets the optimizer's rates, which come with the optimizer's own state too.
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        if self.clip is not None:
            self.clip.load_state_dict(state["clip"])
        set_generators(state["generators"], self.probe.parameters[0].device)


def generator_states(device: torch.device) -> dict[str, Tensor]:
    """Where torch's global generators stand: the CPU's, and that of ``device``."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_generators(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Put torch's global generators where :func:`generator_states` found them."""
    torch.set_rng_state(states["cpu"].cpu())
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)
    if device.type == "mps":
        torch.mps.set_rng_state(states["mps"].cpu())
