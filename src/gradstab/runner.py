"""From a checked configuration to a finished run on disk."""

from __future__ import annotations

import datetime
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from gradstab import console, dashboard, reproducibility, run_directory
from gradstab.assembly import build
from gradstab.config import Config, to_container
from gradstab.data import batches
from gradstab.errors import GradstabError
from gradstab.events import EventWriter
from gradstab.examination import Examination
from gradstab.measure.diagnosis import Judge
from gradstab.measure.recorder import Observer, Recorder
from gradstab.report.history import Pictures
from gradstab.training import Display, Outcome, Parts, Plan, fit

CHARTS = ("grad_norm", "signal_grad_norm", "activation_std")


def run(config: Config, directory: Path | None = None) -> dict[str, Any]:
    """Train as configured and record it in ``directory`` (or ``out_dir``, or a new one under outputs/train).

    Returns what was written to run.json. Raises :class:`gradstab.errors.ConfigError` before anything is written;
    KeyboardInterrupt and failures are recorded, then raised again.
    """
    parts = build(config)
    directory = directory or Path(config.out_dir or f"outputs/train/{run_directory.new_name()}").expanduser()
    run_directory.create(directory)
    container = to_container(config)
    examination = Examination.of(config, parts)
    record = _opening_record(config, parts) | examination.record
    run_directory.write_config(directory, container)
    run_directory.write_run(directory, record)
    writer = EventWriter(directory, parts.probe.tags)
    judge = examination.judge()
    observers: list[Observer] = [judge]
    pictures = None
    if parts.measure_norms and config.images_after is not None:
        pictures = Pictures(writer, parts.probe.tags, examination.theory, config.images_after)
        observers.append(pictures)
    recorder = Recorder(parts.probe, writer, skip_non_finite=parts.skip_non_finite, observers=observers)
    started = time.perf_counter()
    try:
        if parts.measure_norms:
            writer.write_summary(dashboard.layout(CHARTS))
        settings = {key: value for key, value in dashboard.flat(container).items() if key not in ("quiet", "out_dir")}
        for summary in dashboard.hparams(settings):
            writer.write_summary(summary)
        with console.display(config, parts) as display:
            outcome = _fit(config, parts, recorder, display, judge)
        if parts.measure_norms:
            record["verdict"] = examination.verdict(judge).to_dict()
        record |= _closing_record(outcome, recorder, time.perf_counter() - started)
        if pictures is not None:
            pictures.finish()
        writer.write_summary(dashboard.hparams_end(outcome.status == "completed"))
    except KeyboardInterrupt:
        record |= {"status": "interrupted", "seconds": time.perf_counter() - started}
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        record |= {"status": "failed", "reason": reason, "seconds": time.perf_counter() - started}
        (directory / "failure.txt").write_text(traceback.format_exc(), encoding="utf-8")
        raise GradstabError(f"failed: {reason} (see {directory / 'failure.txt'})") from error
    finally:
        writer.close()
        run_directory.write_run(directory, record)
    if outcome.status == "interrupted":
        raise KeyboardInterrupt
    console.summary(config, parts, outcome, record, directory)
    return record


def _fit(config: Config, parts: Parts, recorder: Recorder, display: Display, judge: Judge) -> Outcome:
    plan = Plan(
        steps=config.total_steps,
        eval_every=config.eval_every,
        measure_every=config.measure.knobs.get("every"),
        measure=parts.measure_norms,
        target_loss=config.target_loss,
        stop_on=config.stop_on or (),
    )
    order = reproducibility.generator(config.seed, "order")
    # Dropout draws from the global stream; nothing else does during training.
    torch.manual_seed(reproducibility.stream_seed(config.seed, "dropout"))
    return fit(parts, plan, batches(parts.data.train, config.batch, order), recorder, display, judge)


def _opening_record(config: Config, parts: Parts) -> dict[str, Any]:
    device = parts.probe.parameters[0].device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "status": "running",
        "reason": "",
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "planned_steps": config.total_steps,
        "device": str(device),
        "device_name": name,
        "threads": torch.get_num_threads(),
        "seed": config.seed,
        "versions": reproducibility.versions(),
        "git_commit": reproducibility.git_commit(),
        "parameters": sum(p.numel() for p in parts.model.parameters()),
        "layers": parts.probe.tags,
    }


def _closing_record(outcome: Outcome, recorder: Recorder, seconds: float) -> dict[str, Any]:
    latest = recorder.latest
    depth = latest.depth
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
        "depth_factor": depth.factor if depth else None,
        "depth_factor_r2": depth.r2 if depth else None,
        "first_layer_grad_norm": latest.layer_grad_norms[0] if latest.layer_grad_norms else None,
        "last_layer_grad_norm": latest.layer_grad_norms[-1] if latest.layer_grad_norms else None,
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
