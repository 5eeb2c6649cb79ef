"""What a diagnosis says: findings with their evidence, and what may mend them. Nothing here imports torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gradstab.config.verdict_options import KINDS

HEALTHY = "healthy"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, with its evidence.

    ``kind`` is one of ``KINDS``; ``rule`` is the rule that found it; ``quantity`` is what it looked at, ``layers`` the
    tags of the layers where it held, nearest the input first (empty where it is about the whole network). It held at
    ``persistence`` measured steps in a row, from ``first_step`` to ``last_step``; ``value`` is the last one's, to be
    held against ``threshold``, which stands in the configuration under ``key``. ``explanation`` is one sentence;
    ``theory`` is what mean-field theory says, empty where it has no word; ``unit`` is what ``value`` and ``threshold``
    count, empty where it is the quantity itself.
    """

    kind: str
    rule: str
    quantity: str
    layers: tuple[str, ...]
    first_step: int
    last_step: int
    persistence: int
    value: float
    threshold: float
    key: str
    explanation: str
    theory: str = ""
    unit: str = ""

    @classmethod
    def non_finite(
        cls, quantity: str, value: float, step: int, layers: tuple[str, ...], of: int, theory: str
    ) -> Finding:
        """A quantity that was inf or NaN for the first time, in these layers of so many."""
        where = f", in {len(layers)} of {of} layers" if layers else ""
        text = f"{quantity} was inf or NaN at step {step}{where}"
        kind = "non_finite"
        return cls(kind, kind, quantity, layers, step, step, 1, value, math.inf, "", text, theory)


@dataclass(frozen=True)
class Remedy:
    """Overrides to paste behind the command; ``predicted_factor`` is the depth factor that theory expects of them."""

    overrides: tuple[str, ...]
    reason: str
    predicted_factor: float | None = None


@dataclass(frozen=True)
class Verdict:
    """The findings up to ``step``, none of them for a healthy network, and remedies, the most promising first."""

    step: int
    findings: tuple[Finding, ...] = ()
    remedies: tuple[Remedy, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """The kinds found, in the order of ``KINDS``; ``("healthy",)`` where nothing was."""
        found = {finding.kind for finding in self.findings}
        return tuple(kind for kind in KINDS if kind in found) or (HEALTHY,)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, as run.json holds them."""
        return {"labels": list(self.labels), **asdict(self)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Verdict:
        """What :meth:`to_dict` made, also after a way through JSON."""
        findings = tuple(
            Finding(
                **{**f, "layers": tuple(f["layers"]), "value": float(f["value"]), "threshold": float(f["threshold"])}
            )
            for f in content["findings"]
        )
        remedies = tuple(Remedy(**{**r, "overrides": tuple(r["overrides"])}) for r in content["remedies"])
        return cls(content["step"], findings, remedies)
