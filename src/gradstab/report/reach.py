"""Which layers a quantity has values for: a NaN that says so is told from one of a run that broke."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradstab.events import Records, Series
from gradstab.report.runs import Run

Mask = NDArray[np.bool_]
LOSS, NORM = "train/loss", "global_grad_norm/pre_clip"


def sound(records: Records, steps: NDArray[np.int64], *tags: str) -> Mask:
    """At which of ``steps`` all of these scalars that were recorded there were finite; where none was, at none."""
    told, fine = np.zeros(len(steps), bool), np.ones(len(steps), bool)
    for tag in tags:
        if tag in records.scalars:
            series = records.scalars[tag]
            told |= np.isin(steps, series.steps)
            fine &= ~np.isin(steps, series.steps[~np.isfinite(series.values)])
    return told & fine


def absent(values: NDArray[np.float64], whole: Mask, forward: Mask | None = None) -> Mask:
    """Which of ``values`` [steps, layers] are NaN because there was nothing to measure.

    Those of steps that were ``whole``, loss and gradients; and, of a layer that never had a value at such a step, all.
    ``forward`` are the steps to go by for the latter, where it takes less: activations need no sound gradient.
    """
    looked = whole if forward is None else forward
    nothing = np.isnan(values)
    never = nothing[looked].all(axis=0) & looked.any()
    mask: Mask = nothing & (whole[:, None] | never)
    return mask


def of_signal(records: Records) -> Mask:
    """:func:`absent` of signal_grad_norm: no gradient came, as below the lowest trainable layer, or none was read."""
    series = records.vectors["signal_grad_norm"]
    return absent(series.values, sound(records, series.steps, LOSS, NORM))


def of_activation(records: Records, series: Series) -> Mask:
    """:func:`absent` of an activation's statistic: layers that feed none, or that were passed over at a step."""
    forward = sound(records, series.steps, LOSS if LOSS in records.scalars else NORM)
    return absent(series.values, sound(records, series.steps, LOSS, NORM), forward)


def points(run: Run) -> int | None:
    """How many layers' values the line behind the run's depth factor went through; None where nothing tells."""
    listed, hidden = run.record.get("depth_layers"), run.record.get("hidden_layers")
    if isinstance(listed, list):
        places = [run.layers.index(tag) for tag in listed if tag in run.layers]
    else:
        count = hidden if isinstance(hidden, int) and not isinstance(hidden, bool) else run.hidden
        places = list(range(min(count, len(run.layers))))
    series = run.records.vectors.get("signal_grad_norm")
    if series is None:
        return len(places) or None
    values = series.values[:, [place for place in places if place < series.values.shape[1]]]
    counts = (np.isfinite(values) & (values > 0)).sum(axis=1)
    lines = counts[counts > 1]
    return int(lines[-1]) if len(lines) else None
