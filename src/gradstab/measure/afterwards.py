"""The verdict on a recorded run: the same judge sees the same records in the same order as it did live."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradstab.config.verdict_options import Thresholds
from gradstab.encoding import Vector
from gradstab.events import Records
from gradstab.measure.diagnosis import LOOKED_AT, Judge
from gradstab.measure.verdict import Verdict


def judge_records(records: Records, run: Mapping[str, Any]) -> Verdict:
    """The verdict on a recorded run, as far as its event file and run.json got."""
    layers = records.layers or list(run.get("layers", ()))
    hidden = run.get("hidden_layers", len(layers) - 1)
    judge = Judge(
        layers,
        hidden,
        Thresholds(**run.get("thresholds", {})),
        theory=run.get("theory"),
        chance_loss=run.get("chance_loss"),
        least_loss=run.get("least_loss", 0.0),
        depth_layers=run.get("depth_layers") if run.get("trunk_layers") is None else run["trunk_layers"],
    )
    scalars: dict[int, dict[str, float]] = {}
    for tag in LOOKED_AT & records.scalars.keys():
        series = records.scalars[tag]
        for step, value in zip(series.steps.tolist(), series.values.tolist(), strict=True):
            scalars.setdefault(step, {})[tag] = value
    vectors: dict[int, dict[str, Vector]] = {}
    for quantity, series in records.vectors.items():
        for step, vector in zip(series.steps.tolist(), series.values, strict=True):
            vectors.setdefault(step, {})[quantity] = vector
    for step in sorted(scalars.keys() | vectors.keys()):
        judge.adaptive = run.get("adaptive_optimizer", False) and step >= run.get("adaptive_since", 0)
        judge.observe(step, scalars.get(step, {}), vectors.get(step, {}))
    return judge.verdict()
