"""What is known of a network before a verdict on it: theory's prediction, the loss of guessing; then the verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from gradstab.config import Config
from gradstab.config.optimizer_options import ADAPTIVE
from gradstab.expectation import theory_record, window_correlations
from gradstab.inputs import Inputs, inputs_of
from gradstab.losses import chance_loss, least_loss
from gradstab.measure.diagnosis import Judge
from gradstab.measure.symmetry import identical_units
from gradstab.measure.verdict import Verdict
from gradstab.parts import Parts
from gradstab.remedies import remedies_for


@dataclass
class Examination:
    """One configured network under examination; ``correlations`` are LeNet-5's of the network as it was drawn, and
    ``identical`` is whether its units start as copies of one another.
    """

    config: Config
    tags: list[str]
    hidden: int
    chance_loss: float
    least_loss: float
    inputs: Inputs
    correlations: tuple[float, float] | None = None
    identical: bool = False
    theory: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.theory = theory_record(self.config, self.inputs, self.correlations)
        if self.identical:
            self.theory["identical_units"] = True

    @classmethod
    def of(cls, config: Config, parts: Parts) -> Examination:
        """Of a network as it starts."""
        return cls(
            config,
            parts.probe.tags,
            len(parts.probe.hidden),
            chance_loss(parts.loss, parts.data.train.targets, parts.data.out_features),
            least_loss(parts.loss, parts.data.out_features),
            inputs_of(parts.data),
            correlations_of(config, parts),
            identical_units(parts.model),
        )

    @property
    def record(self) -> dict[str, Any]:
        """What run.json keeps, so that a verdict can be had from the directory alone."""
        return {
            "hidden_layers": self.hidden,
            "adaptive_optimizer": self.config.optimizer.name in ADAPTIVE,
            "chance_loss": self.chance_loss,
            "least_loss": self.least_loss,
            "thresholds": self.config.verdict.knobs,
            "theory": self.theory,
        }

    def judge(self) -> Judge:
        """A judge who knows all this."""
        return Judge(
            self.tags,
            self.hidden,
            self.config.verdict,
            theory=self.theory,
            chance_loss=self.chance_loss,
            least_loss=self.least_loss,
            adaptive=self.config.optimizer.name in ADAPTIVE,
        )

    def verdict(self, judge: Judge, trial: Callable[[Config], Verdict] | None = None) -> Verdict:
        """What the judge finds, with remedies, which a ``trial`` gives the verdict on one step of."""
        verdict = judge.verdict()
        remedies = remedies_for(
            self.config,
            self.inputs,
            verdict,
            correlations=self.correlations,
            typical_norm=judge.typical_norm,
            trial=trial,
        )
        return replace(verdict, remedies=remedies)


def correlations_of(config: Config, parts: Parts) -> tuple[float, float] | None:
    """What theory needs of LeNet-5's first maps; None for other models."""
    if config.model.name != "lenet5":
        return None
    return window_correlations(parts.model, parts.data.train.inputs[: config.batch])
