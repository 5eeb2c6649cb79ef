"""From a checked configuration to the objects that a run works with."""

from __future__ import annotations

import torch

from gradstab import clipping, constraints, losses, optimizers, reproducibility, schedules
from gradstab.activations import build_activation
from gradstab.capacity import check_device, check_host
from gradstab.config import Config
from gradstab.data import Dataset, load_data
from gradstab.initializers import initialize
from gradstab.measure.probe import Probe
from gradstab.memory import keep_freed_memory
from gradstab.models import build_model
from gradstab.models.blocks import Model, parameter_blocks
from gradstab.parts import Parts

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


def build(config: Config, data: Dataset | None = None) -> Parts:
    """Build everything a run needs, on its device; every random number comes from the run's own streams.

    ``data`` is what :func:`load_data` gave for this configuration, where it has been read already.
    """
    device = reproducibility.resolve_device(config.device, config.precision)
    if data is None:
        check_memory(config)
    keep_freed_memory()
    reproducibility.set_determinism(config.deterministic)
    data = load_data(config.data.name, **config.data.knobs) if data is None else data
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


def check_memory(config: Config, *, probing: bool = False) -> None:
    """Refuse what its device or this machine has no memory for, before anything is allocated; ConfigError says why."""
    device = reproducibility.resolve_device(config.device, config.precision)
    check_host(config, probing=probing, elsewhere=device.type == "cuda")
    if device.type == "cuda":
        # What torch holds and does not use is free to us.
        free = torch.cuda.mem_get_info(device)[0]
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        check_device(config, free + cached, str(device), probing=probing)


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
