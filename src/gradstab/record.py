"""What run.json says of a run: its beginning, its end, and that it went on in between."""

from __future__ import annotations

import datetime
import os
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gradstab import reproducibility, run_directory
from gradstab.config import Config, to_container
from gradstab.determinism import kernels, nondeterministic
from gradstab.measure.depth import DepthFactor
from gradstab.measure.recorder import Recorder

if TYPE_CHECKING:
    # What a watched loop does without.
    from gradstab.parts import Parts
    from gradstab.progress import Outcome


def surroundings(model: nn.Module) -> dict[str, Any]:
    """What is known of any run before its first step, be it trained or watched: what runs, where, with what."""
    parameters = list(model.parameters())
    device = parameters[0].device
    return {
        "status": "running",
        "reason": "",
        "started": _clock(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "versions": reproducibility.versions(),
        "git_commit": reproducibility.git_commit(),
        "parameters": sum(p.numel() for p in parameters),
    }


def opening_record(config: Config, parts: Parts) -> dict[str, Any]:
    """What is known of a run before its first step."""
    device = parts.probe.parameters[0].device
    return surroundings(parts.model) | {
        "identity": run_directory.identity(to_container(config)),
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "planned_steps": config.total_steps,
        "seed": config.seed,
        "nondeterministic": nondeterministic(config, device),
        "kernels": kernels(device),
        "layers": parts.probe.tags,
    }


def norms(recorder: Recorder, depth: DepthFactor | None) -> dict[str, Any]:
    """How large gradients were at the step that was measured last, and how they change through depth."""
    latest = recorder.latest.layer_grad_norms
    return {
        "depth_factor": depth.factor if depth else None,
        "depth_factor_r2": depth.r2 if depth else None,
        "first_layer_grad_norm": latest[0] if latest else None,
        "last_layer_grad_norm": latest[-1] if latest else None,
    }


def closing_record(outcome: Outcome, recorder: Recorder, seconds: float) -> dict[str, Any]:
    """What has come of a run, at its end or as far as it got."""
    latest = recorder.latest
    record: dict[str, Any] = {
        "status": outcome.status,
        "reason": outcome.reason,
        "steps": outcome.steps,
        "skipped_steps": recorder.skipped_steps,
        "clipped_steps": recorder.clipped_steps,
        "train_loss": _known(latest.loss, recorder.recorded_steps > 0),
        "test_loss": _known(outcome.test_loss, outcome.evaluated),
        "test_accuracy": outcome.test_accuracy,
        "best_test_accuracy": outcome.best_test_accuracy,
        **norms(recorder, latest.depth),
        "seconds": seconds,
    }
    if outcome.broken is not None:
        layer = outcome.broken.layer
        record["non_finite"] = {
            "step": outcome.broken.step,
            "quantity": outcome.broken.quantity,
            "layer": None if layer is None else recorder.layer_tags[layer],
        }
    return record


def _known(value: float, known: bool) -> float | None:
    """A measured value, which may be NaN, or None for one that was never measured."""
    return value if known else None


def resumption(earlier: Mapping[str, Any], now: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
    """What run.json keeps of a run's beginning, and that it goes on from a checkpoint's ``state``.

    With it stands whatever has changed around the run since, and how many seconds it had taken up to there.
    """
    entry: dict[str, Any] = {"step": state["step"], "at": _clock(), "seconds": state["seconds"]}
    before = earlier.get("versions")
    changed = {
        name: f"{before[name]} -> {version}"
        for name, version in now["versions"].items()
        if isinstance(before, Mapping) and before.get(name, version) != version
    }
    if earlier.get("threads", now["threads"]) != now["threads"]:
        changed["threads"] = f"{earlier['threads']} -> {now['threads']}"
    if changed:
        entry["changed"] = changed
    past = earlier.get("resumed")
    begun = {key: earlier[key] for key in ("started", "versions", "git_commit") if key in earlier}
    return begun | {"resumed": [*(past if isinstance(past, list) else []), entry]}


def _clock() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
