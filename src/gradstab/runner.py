"""From a checked configuration to a finished run on disk."""

from __future__ import annotations

import datetime
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from gradstab import (
    clipping,
    console,
    constraints,
    dashboard,
    losses,
    optimizers,
    reproducibility,
    run_directory,
    schedules,
)
from gradstab.activations import build_activation
from gradstab.config import Config, to_container
from gradstab.data import Dataset, batches, load_data
from gradstab.errors import GradstabError
from gradstab.events import EventWriter
from gradstab.initializers import initialize
from gradstab.measure.probe import Probe
from gradstab.measure.recorder import Recorder
from gradstab.memory import keep_freed_memory
from gradstab.models import build_model
from gradstab.models.blocks import Model, parameter_blocks
from gradstab.training import Display, Outcome, Parts, Plan, fit

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
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
    record = _opening_record(config, parts)
    run_directory.write_config(directory, container)
    run_directory.write_run(directory, record)
    writer = EventWriter(directory, parts.probe.tags)
    recorder = Recorder(parts.probe, writer, skip_non_finite=parts.skip_non_finite)
    started = time.perf_counter()
    try:
        if parts.measure_norms:
            writer.write_summary(dashboard.layout(CHARTS))
        settings = {key: value for key, value in dashboard.flat(container).items() if key not in ("quiet", "out_dir")}
        for summary in dashboard.hparams(settings):
            writer.write_summary(summary)
        with console.display(config, parts) as display:
            outcome = _fit(config, parts, recorder, display)
        record |= _closing_record(outcome, recorder, time.perf_counter() - started)
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


def build(config: Config) -> Parts:
    """Build everything a run needs, on its device; every random number comes from the run's own streams."""
    keep_freed_memory()
    reproducibility.set_determinism(config.deterministic)
    device = reproducibility.resolve_device(config.device, config.precision)
    data = load_data(config.data.name, **config.data.knobs)
    model = build_initialised(config, data)
    constraint = constraints.apply_constraint(
        config.constraint.name,
        model.layers,
        generator_seed=reproducibility.stream_seed(config.seed, "constraint"),
        **config.constraint.knobs,
    )
    model.to(device, DTYPES[config.precision])
    blocks = parameter_blocks(model)
    probe = Probe(model, model.layers)
    optimizer = optimizers.build_optimizer(
        config.optimizer.name,
        probe.parameters,
        blocks=blocks,
        hidden_matrices=[p for layer in model.layers[:-1] for p in layer.weight_parameters() if p.ndim == 2],
        generator=reproducibility.generator(config.seed, "optimizer"),
        **config.optimizer.knobs,
    )
    block_of = {id(parameter): i for i, block in enumerate(blocks) for parameter in block}
    return Parts(
        model=model,
        data=data.to(device, DTYPES[config.precision]),
        loss=losses.build_loss(config.loss.name, **config.loss.knobs),
        penalty=losses.build_penalty(config.penalty.name, model.layers, **config.penalty.knobs),
        optimizer=optimizer,
        schedule=schedules.build_schedule(config.schedule.name, optimizer, config.total_steps, **config.schedule.knobs),
        clip=clipping.build_clip(
            config.clip.name, probe.parameters, [block_of[id(p)] for p in probe.parameters], **config.clip.knobs
        ),
        constraint=constraint,
        probe=probe,
        measure_norms=config.measure.name != "none",
        skip_non_finite=config.on_divergence == "skip",
        check_every_step=device.type == "cpu" or config.on_divergence == "skip" or config.target_loss is not None,
    )


def build_initialised(config: Config, data: Dataset) -> Model:
    """The configured network with its initial weights, on the CPU in float32, so that they are the same anywhere."""
    # Constructors draw weights that the init scheme replaces; the fork keeps that out of everyone else's numbers.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(reproducibility.stream_seed(config.seed, "init"))
        model = build_model(
            config.model.name,
            in_shape=data.in_shape,
            out_features=data.out_features,
            activation=lambda: build_activation(config.act.name, **config.act.knobs),
            **config.model.knobs,
        )
    initialize(
        model,
        config.init.name,
        act_name=config.act.name,
        act_knobs=config.act.knobs,
        generator=reproducibility.generator(config.seed, "init"),
        batch=data.train.inputs[: max(2, config.batch)],
        **config.init.knobs,
    )
    return model


def _fit(config: Config, parts: Parts, recorder: Recorder, display: Display) -> Outcome:
    plan = Plan(
        steps=config.total_steps,
        eval_every=config.eval_every,
        measure_every=config.measure.knobs.get("every"),
        measure=parts.measure_norms,
        target_loss=config.target_loss,
    )
    order = reproducibility.generator(config.seed, "order")
    # Dropout draws from the global stream; nothing else does during training.
    torch.manual_seed(reproducibility.stream_seed(config.seed, "dropout"))
    return fit(parts, plan, batches(parts.data.train, config.batch, order), recorder, display)


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
