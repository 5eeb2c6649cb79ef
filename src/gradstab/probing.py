"""A network's gradient before any training: measured on a few draws of its weights, beside what theory predicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from gradstab import reproducibility
from gradstab.assembly import build
from gradstab.asymptotics import infinite_depth
from gradstab.config import Config
from gradstab.config.probe_options import ProbeKnobs
from gradstab.data import Dataset, batches, load_data
from gradstab.events import Vector
from gradstab.examination import Examination, correlations_of
from gradstab.expectation import expect, inputs_of
from gradstab.jacobians import Jacobians, jacobians
from gradstab.losses import chance_loss
from gradstab.measure.depth import DepthFactor, depth_factor
from gradstab.measure.verdict import Verdict
from gradstab.theory import Prediction, activation, activation_statistics
from gradstab.training import Parts

# Scales, whose logarithms are averaged over seeds; shares and means are averaged as they are.
_SCALES = ("grad_norm", "signal_grad_norm", "weight_norm", "activation_std")


@dataclass(frozen=True)
class Findings:
    """All that a probe found.

    ``measured`` holds for each quantity one value per layer, or per hidden layer, the mean over seeds: geometric for
    norms and spreads, because their logarithms are what a depth factor is fitted to and what scatters evenly, and
    arithmetic for shares. ``predicted`` has the same shape, for those that theory knows. ``factors`` are the seeds' own
    depth factors. ``theory`` is what run.json holds under that key, ``scales`` what theory says of infinite depth, None
    where it does not apply.
    """

    tags: list[str]
    hidden: int
    seeds: list[int]
    measured: dict[str, Vector]
    predicted: dict[str, Vector]
    factors: list[DepthFactor]
    theory: dict[str, Any]
    scales: dict[str, Any] | None
    verdict: Verdict
    jacobian: Jacobians | None

    @property
    def factor(self) -> float | None:
        """The mean of the seeds' depth factors; None where no seed has one."""
        return float(np.mean([f.factor for f in self.factors])) if self.factors else None

    @property
    def spread(self) -> float | None:
        """The standard deviation of the seeds' depth factors (unbiased); None for fewer than two."""
        return float(np.std([f.factor for f in self.factors], ddof=1)) if len(self.factors) > 1 else None

    @property
    def r2(self) -> float | None:
        """The mean of the seeds' R²."""
        return float(np.mean([f.r2 for f in self.factors])) if self.factors else None

    def to_dict(self) -> dict[str, Any]:
        """Plain containers fit for JSON: None for what is unknown, "inf", "-inf" and "nan" for what is not finite."""
        layers = [
            {"name": tag}
            | {
                name: {"measured": values[i], "predicted": _entry(self.predicted.get(name), i)}
                for name, values in self.measured.items()
                if i < len(values)
            }
            for i, tag in enumerate(self.tags)
        ]
        predicted = self.theory.get("depth_factor")
        found = {
            "depth_factor": {"measured": self.factor, "spread": self.spread, "r2": self.r2, "predicted": predicted},
            "layers": layers,
            "verdict": self.verdict.to_dict(),
            "theory": self.theory | {"scales": self.scales},
            "seeds": self.seeds,
        }
        if self.jacobian is not None:
            found["jacobian"] = asdict(self.jacobian)
        plain: dict[str, Any] = _plain(found)
        return plain


def probe(config: Config, knobs: ProbeKnobs) -> Findings:
    """Draw the configured network ``knobs.seeds`` times, from ``config.seed`` on, and look at one step of each.

    Each is what ``gradstab train`` would see at step 0 with that seed, batch and dropout masks included; nothing is
    updated. Raises :class:`gradstab.errors.ConfigError` and DataError as a training run would.
    """
    data = load_data(config.data.name, **config.data.knobs)
    inputs = inputs_of(data)
    draws = _draw(config, knobs, data)
    steps, tags, hidden = draws.steps, draws.tags, draws.hidden
    measured = {name: _over_seeds(name, [step.vectors[name] for step in steps]) for name in steps[0].vectors}
    examination = Examination(config, tags, hidden, draws.chance_loss, inputs, draws.correlations)
    theory = examination.theory
    prediction = None if "reason" in theory else expect(config, inputs, draws.correlations)
    factors = [depth for step in steps if (depth := depth_factor(step.vectors["signal_grad_norm"][:hidden].tolist()))]
    judge = examination.judge()
    judge.observe(0, _scalars(steps, factors), measured)
    return Findings(
        tags=tags,
        hidden=hidden,
        seeds=[config.seed + i for i in range(knobs.seeds)],
        measured=measured,
        predicted={} if prediction is None else _predicted(config, prediction, measured),
        factors=factors,
        theory=theory,
        scales=None if prediction is None else infinite_depth(config, prediction),
        verdict=examination.verdict(judge),
        jacobian=draws.jacobian,
    )


@dataclass(frozen=True)
class _Draws:
    """What several draws of one network showed; ``correlations`` are LeNet-5's, the mean over draws."""

    tags: list[str]
    hidden: int
    chance_loss: float
    steps: list[_Step]
    correlations: tuple[float, float] | None
    jacobian: Jacobians | None


def _draw(config: Config, knobs: ProbeKnobs, data: Dataset) -> _Draws:
    steps: list[_Step] = []
    correlations: list[tuple[float, float]] = []
    jacobian = None
    for i in range(knobs.seeds):
        own = replace(config, seed=config.seed + i)
        parts = build(own, data)
        if (found := correlations_of(config, parts)) is not None:
            correlations.append(found)
        steps.append(_first_step(own, parts))
        if knobs.jacobian and jacobian is None:
            batch, _ = _batch(own, parts)
            jacobian = jacobians(parts.model, parts.probe.tags, batch, knobs.samples)
    return _Draws(
        parts.probe.tags,
        len(parts.probe.hidden),
        chance_loss(parts.loss, parts.data.train.targets, data.out_features),
        steps,
        (sum(c[0] for c in correlations) / knobs.seeds, sum(c[1] for c in correlations) / knobs.seeds)
        if correlations
        else None,
        jacobian,
    )


@dataclass(frozen=True)
class _Step:
    loss: float
    global_norm: float
    vectors: dict[str, Vector]


def _batch(config: Config, parts: Parts) -> tuple[torch.Tensor, torch.Tensor]:
    order = reproducibility.generator(config.seed, "order")
    inputs, targets, _ = next(batches(parts.data.train, config.batch, order))
    return inputs, targets


def _first_step(config: Config, parts: Parts) -> _Step:
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
    norms, _ = parts.probe.checked(grads, parts.probe.grad_norms(grads))
    wide = norms.cpu().double()
    vectors = {"grad_norm": parts.probe.by_layer(norms).cpu().double().numpy()}
    vectors |= {name: values.cpu().double().numpy() for name, values in quantities.items()}
    return _Step(loss.item(), float(torch.linalg.vector_norm(wide)), vectors)


def _over_seeds(name: str, values: Sequence[Vector]) -> Vector:
    stacked = np.stack(values)
    with np.errstate(all="ignore"):
        return np.asarray(np.exp(np.log(stacked).mean(axis=0)) if name in _SCALES else stacked.mean(axis=0))


def _scalars(steps: Sequence[_Step], factors: Sequence[DepthFactor]) -> dict[str, float]:
    """What the event file's first step holds, over seeds; a single broken seed breaks the mean."""
    norms = np.array([step.global_norm for step in steps])
    scalars = {
        "train/loss": float(np.mean([step.loss for step in steps])),
        "global_grad_norm/pre_clip": float(_over_seeds("grad_norm", list(norms[:, None]))[0]),
    }
    if factors:
        scalars["depth_factor"] = float(np.mean([f.factor for f in factors]))
        scalars["depth_factor_r2"] = float(np.mean([f.r2 for f in factors]))
    return scalars


def _predicted(config: Config, prediction: Prediction, measured: Mapping[str, Vector]) -> dict[str, Vector]:
    """Expected values of the hidden layers.

    Theory follows δ down from the output layer's, which depends on loss and labels and is taken as measured.
    """
    with np.errstate(all="ignore"):
        top = measured["signal_grad_norm"][-1] * math.sqrt(prediction.chi_1[-1])
        found: dict[str, Vector] = {"signal_grad_norm": prediction.signal_grad_norm * top}
    batch = config.batch if config.model.knobs.get("norm") == "batch" else None
    act = activation(config.act.name, **config.act.knobs)
    return found | dict(activation_statistics(act, prediction, batch_size=batch))


def _entry(values: Vector | None, index: int) -> float | None:
    return None if values is None or index >= len(values) else float(values[index])


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    return value
