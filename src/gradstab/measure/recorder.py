"""From the tensors that steps leave behind on the device to the event file, in bulk."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gradstab import plain
from gradstab.encoding import Vector
from gradstab.events import EventWriter
from gradstab.measure.depth import DepthFactor, depth_factor
from gradstab.measure.probe import GradientNorms
from gradstab.measure.quantities import Norms, Scalar, column, stacked, widest

FLUSH_STEPS = 64
FLUSH_SECONDS = 1.0
_COUNTED = ("latest", "clipped_steps", "skipped_steps", "recorded_steps")


@dataclass(slots=True)
class StepRecord:
    """One step as it is left on the device: 0-d loss, norms [P] per parameter before and after clipping.

    ``updated`` is False where the loss or a gradient was seen to be non-finite and the update was not made.
    """

    step: int
    lr: float
    loss: Scalar
    penalty: Tensor | None = None
    norms: Norms | None = None
    post_norms: Norms | None = None
    quantities: dict[str, Tensor] = field(default_factory=dict)
    updated: bool = True


@dataclass
class NonFinite:
    """The first step that had a non-finite loss or gradient; ``layer`` is an index, None where nothing tells.

    ``where`` says in words where it began, as far as somebody has looked.
    """

    step: int
    quantity: str
    layer: int | None
    where: str = ""


@dataclass
class Latest:
    """The last values that reached the host, for the terminal and for run.json.

    Norms are those of the last step at which all were finite: what was before it broke says more than NaN does.
    ``depth`` is of ``depth_step``, which is not ``measured_step`` where too few layers had a gradient since.
    """

    loss: float = math.nan
    layer_grad_norms: list[float] = field(default_factory=list)
    signal_grad_norms: list[float] = field(default_factory=list)
    depth: DepthFactor | None = None
    depth_step: int = 0
    measured_step: int = 0


class Observer(Protocol):
    """What is told of every step's values when they reach the host, as the event file is."""

    def observe(self, step: int, scalars: Mapping[str, float], vectors: Mapping[str, Vector]) -> None:
        """Take one step's values; steps come in order."""


class Recorder:
    """Collects step records and crosses to the host once per flush: all steps' values in one transfer."""

    def __init__(
        self,
        probe: GradientNorms[Any],
        writer: EventWriter,
        *,
        skip_non_finite: bool,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.latest = Latest()
        self.layer_tags = probe.tags
        self.clipped_steps = 0
        self.skipped_steps = 0
        self.recorded_steps = 0
        self._probe = probe
        self._writer = writer
        self._observers = observers
        self._pending: list[StepRecord] = []
        self._wall_times: list[float] = []
        self._flushed_at = time.time()
        self._skip_non_finite = skip_non_finite

    def add(self, record: StepRecord) -> None:
        """Keep one step's record; nothing leaves the device yet."""
        self._pending.append(record)
        self._wall_times.append(time.time())

    @property
    def due(self) -> bool:
        """Whether enough has gathered, in steps or in time, to be worth a transfer.

        Time decides when something is shown and written, nothing that a run does depends on it.
        """
        waited = len(self._pending) > 0 and self._wall_times[-1] - self._flushed_at > FLUSH_SECONDS
        return waited or len(self._pending) >= FLUSH_STEPS

    def flush(self) -> NonFinite | None:
        """Write everything gathered; returns the first non-finite step, which ends what is written."""
        pending, wall_times = self._pending, self._wall_times
        self._pending, self._wall_times = [], []
        self._flushed_at = time.time()
        if not pending:
            return None
        rows = to_host(pending, self._probe)
        for record, wall_time, row in zip(pending, wall_times, rows, strict=True):
            self._write(record, wall_time, row)
            broken = first_broken(row.loss, row.global_pre, row.pre)
            if broken is not None and not self._skip_non_finite:
                self._writer.flush()
                return NonFinite(record.step, *broken)
        self._writer.flush()
        return None

    def state_dict(self) -> dict[str, Any]:
        """What has been counted and seen so far; to be taken after a flush."""
        assert not self._pending
        return {name: plain.pack(getattr(self, name)) for name in _COUNTED}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""
        for name in _COUNTED:
            setattr(self, name, plain.unpack(state_dict[name]))

    def write_evaluation(self, step: int, loss: float, accuracy: float | None) -> None:
        """Record an evaluation on the test split after ``step`` steps."""
        scalars = {"test/loss": loss} | ({} if accuracy is None else {"test/accuracy": accuracy})
        self._writer.write(step, scalars, {})
        for observer in self._observers:
            observer.observe(step, scalars, {})

    def _write(self, record: StepRecord, wall_time: float, row: Row) -> None:
        self.recorded_steps += 1
        self.skipped_steps += self._skip_non_finite and not record.updated
        latest = self.latest
        latest.loss = row.loss
        scalars = {"train/loss": row.loss, "train/learning_rate": record.lr}
        vectors: dict[str, Vector] = {}
        if record.penalty is not None:
            scalars["train/penalty"] = row.penalty
        if row.pre is not None:
            vectors["grad_norm"] = row.pre
            if math.isfinite(row.global_pre):
                latest.layer_grad_norms = row.pre.tolist()
            scalars["global_grad_norm/pre_clip"] = row.global_pre
            scalars["global_grad_norm/post_clip"] = row.global_post
            if row.post is not None:
                vectors["grad_norm_post_clip"] = row.post
                with np.errstate(all="ignore"):
                    vectors["clip_scale"] = np.where(row.pre == 0, 1.0, row.post / row.pre)
                scale = row.global_post / row.global_pre if row.global_pre else 1.0
                triggered = row.global_post < row.global_pre * (1 - 1e-6)
                self.clipped_steps += triggered
                scalars["clip/scale"], scalars["clip/triggered"] = scale, float(triggered)
        vectors |= row.quantities
        if "signal_grad_norm" in vectors:
            signals = vectors["signal_grad_norm"].tolist()
            depth = depth_factor(signals[: len(self._probe.hidden)])
            latest.signal_grad_norms, latest.measured_step = signals, record.step
            if depth is not None:
                latest.depth, latest.depth_step = depth, record.step
                scalars["depth_factor"], scalars["depth_factor_r2"] = depth.factor, depth.r2
        self._writer.write(record.step, scalars, vectors, wall_time)
        for observer in self._observers:
            observer.observe(record.step, scalars, vectors)


@dataclass
class Row:
    """One step's values on the host: without norms ``pre`` is None and the global one 0, unclipped ``post`` is None."""

    loss: float
    penalty: float
    global_pre: float
    global_post: float
    pre: Vector | None
    post: Vector | None
    quantities: dict[str, Vector]


def first_broken(loss: float, whole: float, norms: Vector | None) -> tuple[str, int | None] | None:
    """Which of loss and gradient is not finite, if any, and the layer where a gradient broke, as far as that shows.

    ``whole`` is the norm of the whole gradient, ``norms`` are those by layer.
    """
    if not math.isfinite(loss):
        return "loss", None
    if math.isfinite(whole):
        return None
    bad = [] if norms is None else np.flatnonzero(~np.isfinite(norms)).tolist()
    # Backward runs from the output down: the broken layer nearest the output is where it began.
    return "gradient", bad[-1] if bad else None


def to_host(pending: Sequence[StepRecord], probe: GradientNorms[Any]) -> list[Row]:
    """All values of all steps in one transfer; norms are summed up to layers and to the whole on the device."""
    device = probe.parameters[0].device
    wide = widest(device)
    parts = [column([r.loss for r in pending], wide)]
    penalties = [r.penalty for r in pending if r.penalty is not None]
    parts.append(column(penalties, wide) if len(penalties) == len(pending) else torch.zeros_like(parts[0]))
    sides = []
    for side in ([r.norms for r in pending], [r.post_norms for r in pending]):
        present = [norms for norms in side if norms is not None]
        sides.append(len(present) == len(pending))
        if sides[-1]:
            norms = stacked(present, wide)
            parts += [torch.linalg.vector_norm(norms, dim=1, keepdim=True), probe.by_layer(norms)]
    extras = [(i, name, values) for i, r in enumerate(pending) for name, values in r.quantities.items()]
    flat = torch.cat([torch.cat(parts, 1).flatten(), *(values.to(device, wide) for _, _, values in extras)])
    host = flat.cpu().double().numpy()
    width = sum(part.shape[1] for part in parts)
    table = host[: width * len(pending)].reshape(len(pending), width)
    rows = [_row(values, len(probe.layers), *sides) for values in table]
    start = table.size
    for i, name, values in extras:
        rows[i].quantities[name] = host[start : start + len(values)]
        start += len(values)
    return rows


def _row(values: Vector, n_layers: int, has_pre: bool, has_post: bool) -> Row:
    loss, penalty = float(values[0]), float(values[1])
    if not has_pre:
        return Row(loss, penalty, 0.0, 0.0, None, None, {})
    global_pre, pre = float(values[2]), values[3 : 3 + n_layers]
    if not has_post:
        return Row(loss, penalty, global_pre, global_pre, pre, None, {})
    return Row(loss, penalty, global_pre, float(values[3 + n_layers]), pre, values[4 + n_layers :], {})
