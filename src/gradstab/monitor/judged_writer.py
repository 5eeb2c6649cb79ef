"""The event file of a watched run, which the judge reads along."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradstab.encoding import Vector
from gradstab.events import EventWriter
from gradstab.measure.depth import DepthFactor, depth_factor
from gradstab.measure.diagnosis import Judge
from gradstab.measure.losses import Skips
from gradstab.measure.recorder import first_broken

SKIPPED, REACH = "amp/skipped", "output_reach"
# A GradScaler's factor is a power of two, and never this small in practice.
LEAST_SCALE = 64


class JudgedWriter(EventWriter):
    """The event file of a watched run, and the judge, which is told the same.

    ``depth`` are the positions of the layers that a depth factor is taken over. What is not known of a step
    (:meth:`leave_out`) is left out, not written as NaN. With ``scaled`` losses a step whose gradients were not finite
    is one that the GradScaler skips: it is marked as such, and the judge is not told of it. ``divided`` counts the
    steps in a row whose gradients were divided by a large power of two, ``factor``, before the update, as a GradScaler
    does.
    """

    def __init__(
        self, directory: Path, layers: Sequence[str], judge: Judge, *, depth: Sequence[int], scaled: bool
    ) -> None:
        super().__init__(directory, layers)
        self.non_finite: dict[str, Any] | None = None
        self.skipped_steps = 0
        self.latest_loss: float | None = None
        self.ends_broken = False
        self.latest_depth: DepthFactor | None = None
        self.judge = judge
        self.depth = list(depth)
        self.divided, self.factor = 0, 1.0
        self._scaled, self._skips = scaled, Skips()
        self._unknown: dict[int, set[str]] = {}
        self._rehearses = False

    def rehearsal(self) -> JudgedWriter:
        """A writer whose judge knows all that this one's does, and which writes nothing."""
        twin = copy.copy(self)
        twin.judge, twin._skips = copy.deepcopy(self.judge), copy.copy(self._skips)
        twin._unknown, twin._rehearses = {}, True
        return twin

    def leave_out(self, step: int, *tags: str) -> None:
        """Say which scalars of a step are not known."""
        self._unknown.setdefault(step, set()).update(tags)

    def write(
        self, step: int, scalars: Mapping[str, float], vectors: Mapping[str, Vector], wall_time: float | None = None
    ) -> None:
        known, vectors = dict(scalars), dict(vectors)
        if (reach := vectors.pop(REACH, None)) is not None:
            known[REACH] = float(reach[0])
        if "test/loss" not in known:
            known = self._of_a_step(step, known, vectors)
        if not self._rehearses:
            super().write(step, known, vectors, wall_time)
        self.judge.observe(step, known, vectors)

    def _of_a_step(self, step: int, scalars: dict[str, float], vectors: Mapping[str, Vector]) -> dict[str, float]:
        """What is known of a step, with what follows from it."""
        unknown = self._unknown.pop(step, ())
        known = {tag: value for tag, value in scalars.items() if tag not in unknown}
        loss, whole = known.get("train/loss"), known.get("global_grad_norm/pre_clip", 0.0)
        self.factor = 1 / (known.get("clip/scale") or 1.0)
        self.divided = self.divided + 1 if self.factor >= LEAST_SCALE and _is_power_of_two(self.factor) else 0
        skipped = self._scaled and not math.isfinite(whole)
        if "signal_grad_norm" in vectors:
            line = depth_factor(vectors["signal_grad_norm"][self.depth].tolist())
            if line is not None:
                self.latest_depth = line
                known["depth_factor"], known["depth_factor_r2"] = line.factor, line.r2
        if self._scaled and "grad_norm" in vectors:
            known[SKIPPED] = float(skipped)
            self.skipped_steps += skipped
        forgiven = self._skips.forgive(skipped, loss)
        if self.non_finite is None and not forgiven:
            broken = first_broken(0.0 if loss is None else loss, whole, vectors.get("grad_norm"))
            if broken is not None:
                quantity, layer = broken
                name = None if layer is None else self._layers[layer]
                self.non_finite = {"step": step, "quantity": quantity, "layer": name}
        self.latest_loss = self.latest_loss if loss is None else loss
        # Where a loss is known it tells whether training went on: a loop may leave out a broken gradient's update.
        self.ends_broken = (skipped or not math.isfinite(whole if loss is None else loss)) and not forgiven
        return known


def _is_power_of_two(number: float) -> bool:
    """Whether it is one as far as norms in single precision tell."""
    return math.isfinite(number) and abs(2 * math.frexp(number * (1 + 1e-6))[0] - 1) < 1e-5
