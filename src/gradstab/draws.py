"""A network's first step, measured on several draws of its weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from gradstab import reproducibility
from gradstab.assembly import build, check_memory
from gradstab.batching import Batches
from gradstab.config import Config
from gradstab.config.probe_options import ProbeKnobs
from gradstab.data import Dataset
from gradstab.encoding import Vector
from gradstab.examination import Examination, correlations_of
from gradstab.inputs import inputs_of
from gradstab.jacobians import Jacobians, jacobians
from gradstab.losses import chance_loss, least_loss
from gradstab.measure.diagnosis import Judge
from gradstab.measure.quantities import as_tensor
from gradstab.measure.symmetry import identical_units
from gradstab.measure.verdict import Verdict
from gradstab.parts import Parts


def draw(config: Config, knobs: ProbeKnobs, data: Dataset) -> tuple[list[Step], Jacobians | None, Examination]:
    """Draw the network ``knobs.seeds`` times, from ``config.seed`` on: first steps, and all of them examined.

    Singular values are those of the first draw, None where none are wanted. LeNet-5's correlations are the mean over
    draws, and units are copies of one another if they start so in each.
    """
    steps: list[Step] = []
    correlations: list[tuple[float, float]] = []
    jacobian, identical = None, True
    for i in range(knobs.seeds):
        own = replace(config, seed=config.seed + i)
        parts = build(own, data)
        identical = identical and identical_units(parts.model)
        if (found := correlations_of(config, parts)) is not None:
            correlations.append(found)
        steps.append(_first_step(own, parts))
        if knobs.jacobian and jacobian is None:
            batch, _ = _batch(own, parts)
            jacobian = jacobians(parts.model, parts.probe.tags, batch, knobs.samples)
        steps[-1].vectors["update_ratio"] = _update(parts, steps[-1])
    examination = Examination(
        config,
        parts.probe.tags,
        len(parts.probe.hidden),
        chance_loss(parts.loss, parts.data.train.targets, data.out_features),
        least_loss(parts.loss, data.out_features),
        inputs_of(data),
        (sum(c[0] for c in correlations) / knobs.seeds, sum(c[1] for c in correlations) / knobs.seeds)
        if correlations
        else None,
        identical,
    )
    return steps, jacobian, examination


@dataclass(frozen=True)
class Step:
    """Loss, norm of the whole gradient, and each quantity by layer, the size of the update that follows included."""

    loss: float
    global_norm: float
    vectors: dict[str, Vector]


def judged(examination: Examination, step: Step) -> Judge:
    """A judge who has seen one draw, as far as one looks at what the event file's first step would hold."""
    scalars = {"train/loss": step.loss, "global_grad_norm/pre_clip": step.global_norm}
    judge = examination.judge()
    judge.observe(0, scalars, step.vectors)
    return judge


def trial(data: Dataset) -> Callable[[Config], Verdict]:
    """What tries a configuration on this data: draws its network, makes one step, and gives the verdict on that.

    It raises :class:`gradstab.errors.ConfigError` where there is no memory for that network.
    """

    def verdict(config: Config) -> Verdict:
        check_memory(config, probing=True)
        with torch.random.fork_rng(devices=[]):
            parts = build(config, data)
            examination, step = Examination.of(config, parts), _first_step(config, parts)
            step.vectors["update_ratio"] = _update(parts, step)
        return judged(examination, step).verdict()

    return verdict


def _batch(config: Config, parts: Parts) -> tuple[torch.Tensor, torch.Tensor]:
    order = reproducibility.generator(config.seed, "order")
    inputs, targets, _ = next(Batches(parts.data.train, config.batch, order))
    return inputs, targets


def _first_step(config: Config, parts: Parts) -> Step:
    """Forward and backward as the first training step has them, with every quantity of the hidden layers."""
    inputs, targets = _batch(config, parts)
    torch.manual_seed(reproducibility.stream_seed(config.seed, "dropout"))
    parts.model.train()
    with parts.probe.watching() as read:
        loss = parts.loss(parts.model(inputs), targets)
        whole = loss if parts.penalty is None else loss + parts.penalty()
        whole.backward()  # type: ignore[no-untyped-call]
        quantities = read()
    grads = parts.probe.gradients()
    norms = as_tensor(parts.probe.norms_of(grads))
    vectors = {"grad_norm": parts.probe.by_layer(norms).cpu().double().numpy()}
    vectors |= {name: values.cpu().double().numpy() for name, values in quantities.items()}
    return Step(loss.item(), float(torch.linalg.vector_norm(norms.cpu().double())), vectors)


def _update(parts: Parts, step: Step) -> Vector:
    """‖ΔW‖/‖W‖ of each layer by the update that follows this step, clipping included; NaN where none can follow."""
    if not (math.isfinite(step.loss) and math.isfinite(step.global_norm)):
        return np.full(len(parts.probe.layers), np.nan)
    before = parts.probe.weights()
    if parts.clip is not None:
        grads = parts.probe.gradients()
        parts.clip(grads, as_tensor(parts.probe.norms_of(grads)))
    parts.optimizer.step()
    if parts.constraint is not None:
        parts.constraint()
    ratios: Vector = parts.probe.update_ratio(before).cpu().double().numpy()
    return ratios
