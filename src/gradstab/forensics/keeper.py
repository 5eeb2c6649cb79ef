"""Beside a run, until a value is not finite: what is kept then. Measuring nothing itself, it changes nothing."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradstab import checkpoint
from gradstab.errors import GradstabError
from gradstab.forensics.look import Moved, look_at, look_at_evaluation
from gradstab.forensics.snapshot import CHECKPOINT_FILE, FOLDER, LAST_STEPS, SNAPSHOT_FILE, Look, Origin, Past, Snapshot
from gradstab.forensics.story import where
from gradstab.measure.recorder import FLUSH_STEPS, NonFinite, Row, StepRecord, first_broken, to_host
from gradstab.parts import Parts
from gradstab.progress import Outcome
from gradstab.training import train_step


class _Kept(NamedTuple):
    """One step as the ring holds it: references to what the step left on the device, and which samples it saw."""

    record: StepRecord
    indices: Tensor


class Keeper:
    """Watches a run's steps and keeps a snapshot of the first that was not finite in ``directory``/forensics.

    ``identity`` is that of the run's configuration, which a checkpoint carries; ``start`` is the first step to come.

    Where every step is looked at before its update, the state from just before a broken one is at hand: weights and
    optimizer have not moved, and :class:`Moved` holds what the forward pass did move. Where losses are looked at in
    bulk (on a GPU), the whole state is copied on the device at the first step after each look; from there the steps are
    run once more, looking at each.
    """

    def __init__(self, parts: Parts, directory: Path, identity: str, start: int = 0) -> None:
        self.folder = directory / FOLDER
        self._identity = identity
        self.problem = ""
        self._parts = parts
        self.kept = _kept_before(self.folder, start)
        self._moved = Moved(parts.model)
        in_bulk = not parts.check_every_step
        self._ring: deque[_Kept] = deque(maxlen=LAST_STEPS + 1 + (FLUSH_STEPS if in_bulk else 0))
        self._found: tuple[str, int | None, Origin] | None = None
        self._anchored: tuple[int, dict[str, Any]] | None = None
        self._anchor_due = in_bulk
        self._indices: Tensor | None = None

    @property
    def record(self) -> dict[str, str]:
        """What run.json says of it."""
        if self.problem:
            return {"forensics_problem": self.problem}
        return {"forensics": f"{FOLDER}/{SNAPSHOT_FILE}"} if self.kept else {}

    def before(self, step: int, indices: Tensor) -> None:
        """A step is about to see the samples ``indices`` of the training split."""
        self._indices = indices
        if self.kept:
            return
        if self._parts.check_every_step:
            self._moved.keep()
        elif self._anchor_due:
            self._anchored, self._anchor_due = (step, copy.deepcopy(self._parts.state_dict())), False

    def after(self, record: StepRecord) -> None:
        """The step has been made, or found broken; the schedule has not moved on yet."""
        assert self._indices is not None
        if self.kept:
            return
        self._ring.append(_Kept(record, self._indices))
        if not record.updated:
            self._keep(exact=True)

    def looked(self, broken: NonFinite | None) -> NonFinite | None:
        """All steps so far have been looked at in bulk; returns ``broken``, with the layer where it has been found."""
        if not self._parts.check_every_step and not self.kept:
            self._anchor_due = broken is None
            if broken is not None:
                broken = self._rewind(broken)
        if broken is None or self._found is None:
            return broken
        quantity, layer, origin = self._found
        if layer is None and quantity == "loss":
            tags = self._parts.probe.tags
            layer = len(tags) - 1 if origin.layer is None else tags.index(origin.layer)
        return replace(broken, quantity=quantity, layer=layer, where=where(origin, self._parts.probe.tags[-1]))

    def ended(self, outcome: Outcome) -> None:
        """The run is over; keeps a snapshot where only the loss on the test split was not finite."""
        if outcome.status == "diverged" and not self.kept and self._ring and not math.isfinite(outcome.test_loss):
            self._moved.keep()
            look, origin = look_at_evaluation(self._parts, outcome.test_loss)
            self._write(outcome.steps, "test loss", None, origin, look, self._past()[0], exact=True)

    def state_dict(self) -> dict[str, Any]:
        """The last steps, as far as a later snapshot tells of them."""
        rows = [row.record for row in self._ring]
        return {"ring": [(r.step, r.lr, r.loss, r.norms, r.post_norms) for r in rows]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""
        device = self._parts.probe.parameters[0].device
        self._ring.clear()
        for step, lr, loss, *sides in state_dict["ring"]:
            norms, post_norms = (side.to(device) if isinstance(side, Tensor) else side for side in sides)
            record = StepRecord(step, lr, loss.to(device), norms=norms, post_norms=post_norms)
            # Which samples it saw matters only to a step that may be made once more.
            self._ring.append(_Kept(record, torch.empty(0, dtype=torch.int64, device=device)))

    def _rewind(self, broken: NonFinite) -> NonFinite:
        """Run the steps since the last look once more, from the state that was copied, up to the broken one.

        ``parts`` are left in the state from just before it.
        """
        parts, data = self._parts, self._parts.data.train
        assert self._anchored is not None
        start, state = self._anchored
        rows = [row for row in self._ring if start <= row.record.step <= broken.step]
        parts.load_state_dict(state)
        parts.check_every_step = True
        for row in rows:
            self._moved.keep()
            record = train_step(
                parts, row.record.step, data.inputs[row.indices], data.targets[row.indices], measure_all=False
            )
            if not record.updated or row is rows[-1]:
                break
            if parts.schedule is not None:
                parts.schedule.after_step()
        parts.check_every_step = False
        while self._ring and self._ring[-1].record.step >= record.step:
            self._ring.pop()
        self._ring.append(_Kept(record, row.indices))
        if record.updated:
            # The device gave other numbers this time.
            return broken
        self._keep(exact=False)
        return replace(broken, step=record.step)

    def _keep(self, *, exact: bool) -> None:
        """Look at the ring's last step once more, and write what is to be kept."""
        parts, row = self._parts, self._ring[-1]
        past, last = self._past()
        broken = first_broken(last.loss, last.global_pre, last.pre)
        assert broken is not None
        quantity, layer = broken
        now = Moved(parts.model)
        now.keep()
        self._moved.put_back()
        data = parts.data.train
        look, origin = look_at(parts, data.inputs[row.indices], data.targets[row.indices])
        self._moved.put_back()
        self._found = quantity, layer, origin
        self._write(row.record.step, quantity, layer, origin, look, past, exact=exact)
        if parts.skip_non_finite:
            now.put_back()

    def _write(
        self, step: int, quantity: str, layer: int | None, origin: Origin, look: Look, past: Past, *, exact: bool
    ) -> None:
        """Write snapshot and checkpoint; a disk that does not take them does not end the run."""
        parts, last, tags = self._parts, self._ring[-1], self._parts.probe.tags
        on_step = last.record.step == step
        dtype = parts.probe.parameters[0].dtype
        snapshot = Snapshot(
            step=step,
            quantity=quantity,
            layer=None if layer is None else tags[layer],
            origin=origin,
            learning_rate=last.record.lr,
            batch=last.indices.tolist() if on_step else [],
            precision=str(dtype).removeprefix("torch."),
            largest=torch.finfo(dtype).max,
            device=str(parts.probe.parameters[0].device),
            skipped=parts.skip_non_finite,
            layers=tags,
            look=look,
            past=past,
            checkpoint=CHECKPOINT_FILE,
            exact=exact,
        )
        self.kept = True
        self._ring.clear()
        try:
            self.folder.mkdir(exist_ok=True)
            checkpoint.write(self.folder / CHECKPOINT_FILE, self._identity, {"parts": parts.state_dict()})
            snapshot.write(self.folder)
        except (OSError, GradstabError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            self.problem = f"no snapshot was kept: {self.folder / SNAPSHOT_FILE} could not be written ({reason})"

    def _past(self) -> tuple[Past, Row]:
        """The ring on the host, and its last step as it is there."""
        records = [row.record for row in self._ring][-LAST_STEPS - 1 :]
        rows = to_host(records, self._parts.probe)
        past = Past(
            [record.step for record in records],
            [row.loss for row in rows],
            [record.lr for record in records],
            [row.global_pre for row in rows if row.pre is not None],
            [row.global_post / row.global_pre if row.global_pre else 1.0 for row in rows if row.post is not None],
            [row.pre.tolist() for row in rows if row.pre is not None],
        )
        return past, rows[-1]


def _kept_before(folder: Path, start: int) -> bool:
    """Whether a run that goes on at step ``start`` has kept its first broken step already."""
    try:
        return start > 0 and Snapshot.read(folder).step < start
    except GradstabError:
        return False
