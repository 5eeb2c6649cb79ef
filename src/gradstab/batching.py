"""The order in which a run sees its samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from gradstab.data import Split


class Batches:
    """Batches (inputs, targets, indices) without end, reshuffled each epoch by ``generator`` (on the CPU).

    The last, incomplete batch of an epoch is left out, so that every step sees the same number of samples. A
    batch of all samples is the split itself, in its own order.
    """

    def __init__(self, split: Split, batch_size: int, generator: torch.Generator) -> None:
        self._split = split
        self._size = batch_size
        self._generator = generator
        self._everything = batch_size == len(split)
        # The generator as it was when this epoch began, and how many of its batches have been given out.
        self._epoch = generator.get_state()
        self._given = 0
        self._order: Tensor | None = None

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> tuple[Tensor, Tensor, Tensor]:
        if self._everything:
            if self._order is None:
                self._order = torch.arange(len(self._split), device=self._split.inputs.device)
            return self._split.inputs, self._split.targets, self._order
        if self._order is None or (self._given + 1) * self._size > len(self._split):
            self._shuffle()
        assert self._order is not None
        chosen = self._order[self._given * self._size : (self._given + 1) * self._size]
        self._given += 1
        return self._split.inputs.index_select(0, chosen), self._split.targets.index_select(0, chosen), chosen

    def _shuffle(self) -> None:
        self._epoch, self._given = self._generator.get_state(), 0
        self._order = torch.randperm(len(self._split), generator=self._generator).to(self._split.inputs.device)

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` needs to give the next batch."""
        return {"epoch": self._epoch.clone(), "given": self._given}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""
        self._generator.set_state(state_dict["epoch"])
        self._order = None
        if state_dict["given"] and not self._everything:
            self._shuffle()
        self._given = state_dict["given"]
