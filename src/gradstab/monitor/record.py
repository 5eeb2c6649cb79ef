"""What run.json says of a watched run."""

from __future__ import annotations

import datetime
from typing import Any

import torch
from torch import nn

from gradstab import reproducibility
from gradstab.measure.recorder import Recorder
from gradstab.monitor.judged_writer import JudgedWriter


def opening_record(model: nn.Module, chance_loss: float | None) -> dict[str, Any]:
    """What run.json says of a watched run from the start on."""
    parameters = list(model.parameters())
    device = parameters[0].device
    return {
        "status": "running",
        "reason": "",
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "planned_steps": None,
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "seed": None,
        "versions": reproducibility.versions(),
        "git_commit": reproducibility.git_commit(),
        "watched": type(model).__name__,
        "parameters": sum(p.numel() for p in parameters),
        "adaptive_optimizer": False,
        "adaptive_since": 0,
        "chance_loss": chance_loss,
        "theory": {"reason": "a watched network has no configuration that theory could predict from"},
    }


def closing_record(recorder: Recorder, writer: JudgedWriter, status: str, reason: str) -> dict[str, Any]:
    """What run.json says besides once the run has ended."""
    latest, depth, broken = recorder.latest, writer.latest_depth, writer.non_finite
    if status == "completed" and broken is not None and writer.ends_broken:
        status, reason = "diverged", f"non-finite {broken['quantity']} since step {broken['step']}"
    norms = latest.layer_grad_norms
    record: dict[str, Any] = {
        "status": status,
        "reason": reason,
        "steps": recorder.recorded_steps,
        "skipped_steps": writer.skipped_steps,
        "clipped_steps": recorder.clipped_steps,
        "train_loss": writer.latest_loss,
        "test_loss": None,
        "test_accuracy": None,
        "best_test_accuracy": None,
        "depth_factor": depth.factor if depth else None,
        "depth_factor_r2": depth.r2 if depth else None,
        "first_layer_grad_norm": norms[0] if norms else None,
        "last_layer_grad_norm": norms[-1] if norms else None,
    }
    return record | ({} if broken is None else {"non_finite": broken})
