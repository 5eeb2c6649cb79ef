"""One step of a watched loop, until it is written: it may have several optimizers, and what clips comes after."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradstab.measure.quantities import Norms, Scalar, as_tensor
from gradstab.measure.recorder import StepRecord
from gradstab.monitor.layers import WatchedLayer
from gradstab.monitor.looking import Look, Looker, update_ratios


@dataclass(slots=True)
class Row:
    """A step that may still change: its record, and what is to be known of it once the optimizers have stepped.

    Its gradients were looked at after so many ``backwards``; ``unknown`` are the tags of what is not known so far.
    """

    record: StepRecord
    look: Look
    unknown: list[str]
    backwards: int
    awaiting: list[Optimizer]
    parts: list[Optimizer]
    before: list[list[Tensor]] | None = None
    update: Tensor | None = None
    post: Norms | None = None

    @classmethod
    def of(
        cls,
        step: int,
        loss: Scalar,
        known: bool,
        rate: float | None,
        look: Look,
        backwards: int,
        awaiting: list[Optimizer],
        parts: list[Optimizer],
    ) -> Row:
        """A step with this loss and learning rate, as far as known, looked at after so many backward passes."""
        unknown = ["train/loss"] * (not known) + ["train/learning_rate"] * (rate is None)
        record = StepRecord(step, math.nan if rate is None else rate, loss, norms=look.norms)
        return cls(record, look, unknown, backwards, awaiting, parts)

    def learn(self, loss: Scalar) -> None:
        """Take the step's loss, which was not known when it began."""
        if "train/loss" in self.unknown:
            self.unknown.remove("train/loss")
            self.record.loss = loss

    def take_update(self, layers: Sequence[WatchedLayer]) -> None:
        """Note how far each layer has moved since its weights were copied, if they were: an optimizer has stepped."""
        if self.before is not None:
            self.update = update_ratios(layers, self.before)

    def moved(self, layers: Sequence[WatchedLayer]) -> bool:
        """Whether an update was made by now; True where no weights were copied."""
        if self.before is None:
            return True
        return bool((update_ratios(layers, self.before) if self.update is None else self.update).any())

    def settle(self, layers: Sequence[WatchedLayer]) -> bool:
        """Put the update into the record, as an optimizer has left it or as it is by now; whether one was made."""
        if self.update is None:
            self.take_update(layers)
        if self.update is not None:
            self.record.quantities["update_ratio"] = self.update
        return self.moved(layers)

    def end(self) -> None:
        """The loop ended before the update: none is not an update of 0."""
        self.before, self.update, self.awaiting = None, None, []

    def lacks(self, optimizers: Sequence[Optimizer]) -> bool:
        """Whether an optimizer has still to step, or to be looked at, that belongs to this step."""
        return bool(self.awaiting) or (bool(self.parts) and len(self.parts) < len(optimizers))

    def takes(self, optimizer: Optimizer, positions: Callable[[Optimizer], Sequence[int]]) -> bool:
        """Whether another optimizer's turn belongs to this step: it has had none yet, nor have its parameters."""
        own = set(positions(optimizer))
        return bool(self.parts) and all(own.isdisjoint(positions(other)) for other in self.parts)

    def extend(self, look: Look, optimizer: Optimizer, places: Sequence[int], backwards: int) -> None:
        """Another optimizer's gradients were looked at for the same step; its parameters stand at ``places``."""
        assert self.record.norms is not None
        self.record.norms = _replaced(self.record.norms, look.norms, places)
        if self.post is not None:
            self.post = _replaced(self.post, look.norms, places)
        self.look = Look(self.record.norms, look.grads, look.versions)
        self.backwards = backwards
        self.parts.append(optimizer)
        self.awaiting.append(optimizer)

    def give_turn(self, optimizer: Optimizer, looker: Looker | None) -> None:
        """An optimizer that was awaited is about to step: what has become of its gradients since the look?

        Without a ``looker`` they are no longer those that were looked at.
        """
        self.awaiting = [other for other in self.awaiting if other is not optimizer]
        if looker is not None:
            norms = looker.look_again(self.look, optimizer, closely=self.before is not None or self.record.step == 0)
            if norms is not None:
                before = self.look.norms if self.post is None else self.post
                self.post = _replaced(before, norms, looker.positions(optimizer))
        if not self.awaiting:
            # Nobody asks again what they were, and held on to they would take memory beside the next ones.
            self.look.release()


def _replaced(norms: Norms, others: Norms, places: Sequence[int]) -> Norms:
    if len(places) == len(norms):
        return others
    norms, others = as_tensor(norms), as_tensor(others)
    merged = norms.to(torch.promote_types(norms.dtype, others.dtype)).clone()
    merged[places] = others[places].to(merged.dtype)
    return merged
