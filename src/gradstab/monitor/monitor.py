"""Watching somebody's training loop: one call a step, between the backward pass and the optimizer."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn
from torch.optim import Optimizer

from gradstab.measure.quantities import as_tensor
from gradstab.measure.verdict import Verdict
from gradstab.monitor import gradients, looking, notes
from gradstab.monitor.arguments import as_number, as_rate, as_scalar, as_share
from gradstab.monitor.book import Book
from gradstab.monitor.closing import Closing, check_ending
from gradstab.monitor.following import Followed, checked, coupled_decay, holds, learning_rate
from gradstab.monitor.gradients import WatchedNorms
from gradstab.monitor.layers import WatchedLayer
from gradstab.monitor.looking import Looker
from gradstab.monitor.rows import Row
from gradstab.monitor.series import in_order
from gradstab.monitor.settings import RENEWED, Settings
from gradstab.monitor.signals import Signals
from gradstab.monitor.turns import LONGEST_WAIT, Turns


class Monitor(Closing):
    """Watches one network while somebody's own loop trains it; made by :func:`gradstab.watch`.

    Call :meth:`step` once for every update, after the backward passes and before the optimizer. Steps count from 0.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[WatchedLayer], directory: Path, settings: Settings, *, compiled: bool
    ) -> None:
        self._layers, self._model, self._settings = list(layers), model, settings
        self._turns = Turns(settings.every)
        self._compiled = compiled
        self._followed = Followed(self._at_update)
        self._optimizers = self._followed.optimizers
        self._norms = WatchedNorms(model.parameters(), self._layers)
        self._looker = Looker(self._norms, settings.scaler, self._optimizers)
        self._row: Row | None = None
        self._step = 0
        # Before this step nothing but norms is taken, as long as step() is told of no optimizer.
        self._quiet = 0
        self.signals = Signals(model, self._layers, settings.conventions)
        self._book = Book(directory, model, settings.thresholds, settings.chance_loss, scaled=bool(settings.scaler))
        self._book.notes += [notes.NORMS_ALONE] * (settings.every is None)
        if compiled:
            self._book.complain(notes.COMPILED, stacklevel=4)
        self._book.write_opening(self._norms)
        self._prepare()
        super().__init__()

    @property
    def layers(self) -> list[str]:
        """The watched layers' tags: in order of definition, and from the first step on as the network calls them."""
        return list(self._norms.tags)

    def follow(self, *optimizers: Optimizer) -> None:
        """Take these optimizers' learning rates, and look at gradients again as they step: what did clipping do?

        An optimizer takes the place of those followed before that update the same parameters.
        """
        self._book.check_open()
        for optimizer in self._followed.follow(optimizers, self._looker):
            self._book.uses(optimizer)
        self._book.decays(coupled_decay(self._optimizers, self._layers))

    def step(
        self, loss: Tensor | float | None = None, *, optimizer: Optimizer | None = None, lr: float | None = None
    ) -> None:
        """Record one update: call it after the backward passes, before clipping and before ``optimizer.step()``.

        ``loss`` is the step's, unscaled and averaged over micro-batches; without it there can be no verdict.
        ``optimizer`` limits the look to that optimizer's parameters; calls for several belong to one step until one of
        them comes again. ``lr`` is recorded where no optimizer is known.
        """
        self._book.check_open()
        self.check_process()
        lr = None if lr is None else as_rate(lr)
        if not (isinstance(loss, Tensor) and loss.ndim == 0 and loss.is_floating_point()):
            as_scalar(loss, self._norms.device)  # Refused, if so, before anything is settled.
        if optimizer is None and self._step < self._quiet:
            self._settle()
            self._row = self._begin(loss, None, lr)
            self._step += 1
            return
        if optimizer is not None:
            self.follow(optimizer := checked(optimizer))
        row = self._row
        if row is not None and optimizer is not None and row.takes(optimizer, self._looker.positions):
            self._extend(row, optimizer)
        else:
            self._settle()
            self.signals.passes.drop_earlier()
            measured = self._see_to(optimizer)
            row = self._begin(loss, optimizer, lr)
            self._measure(row, everything=measured)
            self._row, self._step = row, self._step + 1
        self._prepare(whole=optimizer is None or len(row.parts) >= len(self._optimizers))
        self._quiet = 0 if self.signals.active else self._turns.quiet_until(self._step)

    def look(self) -> None:
        """Look at the gradients now, for the next :meth:`step` to record as those before clipping."""
        self._book.check_open()
        self._looker.keep(self._followed.backwards)

    def supply(self, loss: Tensor | float) -> None:
        """Give the loss of the step recorded last, where :meth:`step` had none."""
        self._book.check_open()
        value = as_scalar(loss, self._norms.device, known=True)
        if self._row is not None:
            self._row.learn(value)

    def evaluated(self, loss: float, accuracy: float | None = None) -> None:
        """Record a loss, and an accuracy in [0, 1], on data that is not trained on, after the steps so far."""
        self._book.check_open()
        self.check_process()
        figures = as_number("loss", loss), as_share("accuracy", accuracy)
        self._unsettled()
        self._book.evaluated(self._step, *figures)

    def verdict(self) -> Verdict:
        """What is wrong, and the evidence, as far as all steps so far tell; :class:`GradstabError` before the first."""
        self.check_process()
        return self._book.verdict(self._norms, self._unsettled())

    def close(self, status: str = "completed", reason: str = "") -> None:
        """Write what is left and run.json, and take every hook away; only :meth:`verdict` can be asked afterwards."""
        check_ending(status)
        if self._book.closed or self.elsewhere:
            return
        self.forget()
        self.signals.stop()
        self._followed.close()
        if self._row is not None and not self._row.moved(self._layers):
            self._row.end()
        self._settle()
        if not self._book.close(status, reason, self._norms) and status == "completed":
            warnings.warn(f"{self.directory}: no step was recorded; call step(loss) after backward()", stacklevel=2)

    def _see_to(self, optimizer: Optimizer | None) -> bool:
        """See to all that is due before a step begins; whether everything is measured at it."""
        measured = self._turns.measures(self._step)
        self._turns.begin(self._step, optimizer, self._optimizers)
        if self._turns.rare:
            self._book.complain(notes.RARE, stacklevel=4, steps=LONGEST_WAIT)
        if self._step == 0:
            self._arrange()
        elif measured or self._step % RENEWED == 0:
            self._rearrange()
        if measured and not self.signals.seen and not self._compiled:
            self._compiled = self.signals.compiled
            self._book.complain(notes.COMPILED if self._compiled else notes.UNSEEN, stacklevel=4)
        return measured

    def _begin(self, loss: Tensor | float | None, optimizer: Optimizer | None, lr: float | None) -> Row:
        backwards = self._followed.backwards
        look = self._looker.take(optimizer, backwards)
        updating, parts = (list(self._optimizers), []) if optimizer is None else ([optimizer], [optimizer])
        rate = learning_rate(updating) if lr is None else lr
        value = as_scalar(loss, self._norms.device)
        return Row.of(self._step, value, loss is not None, rate, look, backwards, updating, parts)

    def _measure(self, row: Row, *, everything: bool) -> None:
        if (everything or row.record.step == 0) and not as_tensor(row.look.norms).any():
            self._book.complain(notes.NO_GRADIENT, stacklevel=4, step=row.record.step)
        if everything:
            self._book.decays(coupled_decay(self._optimizers, self._layers))
            row.record.quantities = self._read()
            row.before = looking.copied_weights(self._layers)

    def _extend(self, row: Row, optimizer: Optimizer) -> None:
        """Add what another optimizer is about to update to a step that has begun."""
        backwards = self._followed.backwards
        self._turns.take(optimizer)
        row.extend(self._looker.take(optimizer, backwards), optimizer, self._looker.positions(optimizer), backwards)
        if row.before is not None and self.signals.active:
            row.record.quantities = self._read()

    def _at_update(self, optimizer: Optimizer, done: bool) -> None:
        """An optimizer is about to step, or has stepped: see what has become of the gradients since the look."""
        if (row := self._row) is None:
            return
        if done:
            row.take_update(self._layers)
        if row.awaiting and holds(row.awaiting, optimizer):
            # After another backward pass gradients are the next batch's: step() came after the update.
            row.give_turn(optimizer, self._looker if row.backwards == self._followed.backwards else None)

    def _unsettled(self) -> Row | None:
        """The step begun last as long as its update is still to come; one that was made is recorded."""
        row = self._row
        if row is not None and (row.lacks(self._optimizers) or not row.moved(self._layers)):
            return row
        self._settle()
        return None

    def _settle(self) -> None:
        """Record the step that was begun last, its update made."""
        row, self._row = self._row, None
        if row is None:
            return
        idle = bool(row.awaiting) and self._followed.count_step() and self._settings.scaler is None
        if (row.before is None or row.settle(self._layers)) and idle:
            self._book.complain(notes.IDLE, stacklevel=4)
        self._book.add(row.record, row.post, row.unknown, self._norms)

    def _prepare(self, *, whole: bool = True) -> None:
        """Put the next step's hooks in place; until one is ``whole``, what follows may be its or the next one's."""
        wanted = self._turns.measures(self._step) and not self._compiled
        if not whole and self.signals.active and (wanted or (self._row is not None and self._row.before is not None)):
            self.signals.passes.divide()
            return
        self.signals.stop()
        if wanted:
            self.signals.start()

    def _arrange(self) -> None:
        """Put the layers into the order in which the first forward pass met them."""
        if self.signals.seen:
            self._layers[:] = in_order(self._layers, self.signals.order)
        # The network may have moved to another device or precision since.
        self._norms = norms = WatchedNorms(self._model.parameters(), self._layers)
        self._looker.rearrange(norms)
        if self.signals.seen:
            self.signals.tell_ways(norms, self._optimizers)
            self._book.note_series(norms)
        self._book.write_opening(self._norms, self._model, self._optimizers)

    def _rearrange(self) -> None:
        """Take in what has changed about the network: layers unfrozen, parameters exchanged."""
        self._followed.count_backwards(self._looker)
        if self.signals.tell_ways(self._norms, self._optimizers):
            self._book.rearrange(self._norms)
        new, gone = self._norms.exchanged(self._model.parameters())
        if new + gone:
            self._book.complain(notes.EXCHANGED, stacklevel=5, new=new, gone=gone)

    def _read(self) -> dict[str, Tensor]:
        for kind, why in self.signals.refusals.items():
            self._book.complain(notes.REFUSED, stacklevel=5, kind=kind, why=why)
        norms, scale = self._norms, gradients.scale_of(self._settings.scaler)
        found = self.signals.read(self._layers, norms.width, norms.stations, scale)
        return found | {"weight_norm": looking.weight_norms(self._layers)}
