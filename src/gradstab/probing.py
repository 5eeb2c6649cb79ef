"""A network's gradient before any training: measured on a few draws of its weights, beside what theory predicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gradstab.assembly import check_memory
from gradstab.asymptotics import infinite_depth
from gradstab.config import Config
from gradstab.config.fields import MAX_SEED
from gradstab.config.probe_options import ProbeKnobs
from gradstab.config.verdict_options import KINDS
from gradstab.data import load_data
from gradstab.draws import draw, judged, trial
from gradstab.encoding import Vector
from gradstab.errors import ConfigError
from gradstab.expectation import expect
from gradstab.jacobians import Jacobians
from gradstab.measure.depth import DepthFactor, depth_factor
from gradstab.measure.verdict import HEALTHY, Verdict
from gradstab.run_directory import as_json
from gradstab.theory import Prediction, activation, activation_statistics

# Scales, whose logarithms are averaged over seeds; shares and means are averaged as they are.
_SCALES = ("grad_norm", "signal_grad_norm", "weight_norm", "activation_std", "update_ratio")


@dataclass(frozen=True)
class Findings:
    """All that a probe found.

    ``measured`` holds for each quantity one value per layer, or per hidden layer, the mean over seeds: geometric for
    norms and spreads, because their logarithms are what a depth factor is fitted to and what scatters evenly, and
    arithmetic for shares. Draws in which a scale is 0 or not finite are left out of its mean while there are others.
    ``predicted`` has the same shape, for those that theory knows. ``factors`` are the seeds' own depth factors.
    ``theory`` is what run.json holds under that key, ``scales`` what theory says of infinite depth, None where it does
    not apply. ``labels`` are those of each seed's own verdict, and ``verdict`` is the typical seed's.
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
    labels: list[tuple[str, ...]]
    jacobian: Jacobians | None

    @property
    def agreeing(self) -> int:
        """How many seeds' own verdicts have the labels of the typical one."""
        return self.labels.count(self.verdict.labels)

    @property
    def agreement(self) -> str:
        """The same in words."""
        return f"{self.agreeing} of {len(self.labels)} draw{'s' if len(self.labels) > 1 else ''}"

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
            "agreement": self.agreement,
            "theory": self.theory | {"scales": self.scales},
            "seeds": self.seeds,
        }
        if self.jacobian is not None:
            found["jacobian"] = asdict(self.jacobian)
        known: dict[str, Any] = as_json(found)
        return known


def probe(config: Config, knobs: ProbeKnobs) -> Findings:
    """Draw the configured network ``knobs.seeds`` times, from ``config.seed`` on, and look at one step of each.

    Each is what ``gradstab train`` would see at step 0 with that seed, batch, dropout masks and the size of the first
    update included. Raises :class:`gradstab.errors.ConfigError` and DataError as a training run would.
    """
    last = config.seed + knobs.seeds - 1
    if last > MAX_SEED:
        raise ConfigError(f"probe.seeds={knobs.seeds}: from seed={config.seed} up to {last}; allowed: up to {MAX_SEED}")
    check_memory(config, probing=True)
    data = load_data(config.data.name, **config.data.knobs)
    steps, jacobian, examination = draw(config, knobs, data)
    tags, hidden = examination.tags, examination.hidden
    measured = {name: _over_seeds(name, [step.vectors[name] for step in steps]) for name in steps[0].vectors}
    theory = examination.theory
    prediction = None if "reason" in theory else expect(config, examination.inputs, examination.correlations)
    factors = [depth_factor(step.vectors["signal_grad_norm"][:hidden].tolist()) for step in steps]
    judges = [judged(examination, step) for step in steps]
    labels = [judge.verdict().labels for judge in judges]
    return Findings(
        tags=tags,
        hidden=hidden,
        seeds=[config.seed + i for i in range(knobs.seeds)],
        measured=measured,
        predicted={} if prediction is None else _predicted(config, prediction, measured),
        factors=[factor for factor in factors if factor is not None],
        theory=theory,
        scales=None if prediction is None else infinite_depth(config, prediction),
        verdict=examination.verdict(judges[typical_draw(labels)], trial(data)),
        labels=labels,
        jacobian=jacobian,
    )


def _over_seeds(name: str, values: Sequence[Vector]) -> Vector:
    """The mean over seeds; one draw that is dead or broken does not stand for all."""
    stacked = np.stack(values)
    usable = np.isfinite(stacked)
    if name in _SCALES:
        usable &= stacked > 0
    # Where no draw is usable, their mean says what all of them are.
    usable |= ~usable.any(axis=0)
    with np.errstate(all="ignore"):
        if name in _SCALES:
            return np.asarray(np.exp(np.mean(np.log(stacked), axis=0, where=usable)))
        return np.asarray(np.mean(stacked, axis=0, where=usable))


def typical_draw(labels: Sequence[tuple[str, ...]]) -> int:
    """The first seed with exactly the labels found in at least half of the draws, or else with the commonest set."""
    common = tuple(kind for kind in KINDS if 2 * sum(kind in own for own in labels) >= len(labels)) or (HEALTHY,)
    return labels.index(common if common in labels else max(labels, key=labels.count))


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
