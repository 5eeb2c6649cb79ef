"""What run.json says of a watched run."""

from __future__ import annotations

from typing import Any

from torch import nn

from gradstab.measure.recorder import Recorder
from gradstab.monitor.judged_writer import JudgedWriter
from gradstab.record import norms, surroundings


def opening_record(model: nn.Module, chance_loss: float | None) -> dict[str, Any]:
    """What run.json says of a watched run from the start on."""
    return surroundings(model) | {
        "planned_steps": None,
        "seed": None,
        "watched": type(model).__name__,
        "adaptive_optimizer": False,
        "adaptive_since": 0,
        "chance_loss": chance_loss,
        "theory": {"reason": "a watched network has no configuration that theory could predict from"},
    }


def closing_record(recorder: Recorder, writer: JudgedWriter, status: str, reason: str) -> dict[str, Any]:
    """What run.json says besides once the run has ended."""
    broken = writer.non_finite
    if status == "completed" and broken is not None and writer.ends_broken:
        status, reason = "diverged", f"non-finite {broken['quantity']} since step {broken['step']}"
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
        **norms(recorder, writer.latest_depth),
    }
    return record | ({} if broken is None else {"non_finite": broken})
