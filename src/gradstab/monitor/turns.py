"""Which steps of a watched loop are measured in full, where several optimizers may take turns."""

from __future__ import annotations

from collections.abc import Sequence

from torch.optim import Optimizer

from gradstab.monitor.following import holds
from gradstab.monitor.settings import RENEWED

# So many steps in a row are measured at most, in waiting for an optimizer's turn.
LONGEST_WAIT = 20


class Turns:
    """Every so many steps one is measured, and the next ones too until each optimizer has had its turn among them.

    Else a critic's five turns to its generator's one would, by the bad luck of the numbers, be the only ones measured.
    ``rare`` are the optimizers that were waited for in vain; they are waited for again once they have had a turn.
    """

    def __init__(self, every: int | None) -> None:
        self.rare: list[Optimizer] = []
        self._every = every
        self._waiting: list[Optimizer] = []
        self._since = 0

    def measures(self, step: int) -> bool:
        """Whether all quantities are taken at this step, and not norms alone."""
        return self._every is not None and (step % self._every == 0 or bool(self._waiting))

    def quiet_until(self, step: int) -> int:
        """The first step, from this one on, at which more is to be seen to than norms.

        That is one at which parameters are looked at anew, or the one before a measured one, to prepare for that.
        """
        if self._waiting:
            return step
        renewed = step + -step % RENEWED
        return renewed if self._every is None else min(renewed, step + -step % self._every - 1)

    def begin(self, step: int, optimizer: Optimizer | None, followed: Sequence[Optimizer]) -> None:
        """A step begins, with this optimizer's turn or, for None, with all of them at once."""
        if self._waiting and step - self._since >= LONGEST_WAIT:
            self.rare, self._waiting = self.rare + self._waiting, []
        if optimizer is None:
            self._waiting = []
            return
        if self._every is not None and step % self._every == 0 and not self._waiting:
            self._waiting, self._since = [one for one in followed if not holds(self.rare, one)], step
        self.take(optimizer)

    def take(self, optimizer: Optimizer) -> None:
        """An optimizer has its turn."""
        self._waiting = [one for one in self._waiting if one is not optimizer]
        self.rare = [one for one in self.rare if one is not optimizer]
