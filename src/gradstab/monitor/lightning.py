"""Watching a network that Lightning trains: ``Trainer(callbacks=[GradstabCallback("outputs/mine")])``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from gradstab.errors import ConfigError
from gradstab.measure.verdict import Verdict
from gradstab.monitor.attached import Attached, MissingLibraryError
from gradstab.monitor.closing import ending
from gradstab.monitor.following import inside
from gradstab.monitor.gradients import scale_of
from gradstab.monitor.monitor import Monitor

# One project under two names, whose classes differ: the trainer's own is the one that is loaded already.
try:
    if "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules:
        from pytorch_lightning import Callback, LightningModule
    else:
        from lightning.pytorch import Callback, LightningModule
except ImportError:
    try:
        from pytorch_lightning import Callback, LightningModule
    except ImportError as error:
        raise MissingLibraryError("lightning is not installed; pip install 'gradstab[lightning]'") from error


class GradstabCallback(Callback):  # type: ignore[misc]
    """Records a LightningModule's training as :func:`gradstab.watch` does; takes the same arguments.

    One step is one update of all optimizers. Norms are those before clipping, unscaled, and those after it; gradient
    accumulation, mixed precision and manual optimisation (by ``self.manual_backward`` and ``optimizer.step``) are seen
    through. With several processes the first records its own samples' signals and everybody's gradients.
    """

    def __init__(self, directory: str | Path | None = None, **arguments: Any) -> None:
        self._attached = Attached(directory, arguments)
        self._loss: Tensor | None = None
        self._parts = 0
        self._scaler: Any = None
        self._own: set[int] = set()
        self._clips_first = False

    @property
    def monitor(self) -> Monitor | None:
        """The monitor of the run at hand, or of the last one; None before any."""
        return self._attached.monitor

    def verdict(self) -> Verdict:
        """The verdict on the run so far."""
        return self._attached.verdict()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Put a monitor on the module, once optimizers are there."""
        strategy = type(trainer.strategy).__name__
        if any(word in strategy for word in ("FSDP", "DeepSpeed", "ModelParallel", "XLA")):
            raise ConfigError(f"strategy={strategy}: shards parameters, so no process has a layer's gradient")
        if not trainer.is_global_zero:
            return
        self._loss, self._parts = None, 0
        self._scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._clips_first = not pl_module.automatic_optimization or (
            type(pl_module).on_after_backward is not LightningModule.on_after_backward
        )
        self._own = {id(parameter) for parameter in pl_module.parameters()}
        optimizers = [optimizer for optimizer in trainer.optimizers if self._moves(optimizer)]
        monitor = self._attached.begin(pl_module, optimizers, self._scaler)
        # training_step need not call the module itself; a batch is a pass.
        monitor.signals.pass_by_hand()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """A micro-batch begins."""
        monitor = self._watching(trainer)
        if monitor is not None:
            monitor.signals.begin_pass(batch)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Add up the losses that go into one update: Lightning has divided each by the number of micro-batches."""
        if self._watching(trainer) is not None:
            scale = scale_of(self._scaler)
            own = loss.detach() if scale is None else loss.detach() / scale
            self._loss = own if self._loss is None else self._loss + own
            self._parts += 1

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """Look before the module can: what it does by hand may clip before it steps."""
        monitor = self._watching(trainer)
        if monitor is not None and self._clips_first:
            monitor.look()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Optimizer) -> None:
        """Gradients are whole, unscaled and not clipped yet."""
        monitor = self._watching(trainer)
        if monitor is None or not self._moves(optimizer):
            return
        if self._loss is None and pl_module.automatic_optimization:
            return  # training_step gave no loss to send back: nothing moves.
        if self._loss is not None and self._parts and pl_module.automatic_optimization:
            # At an epoch's end there may be fewer of them than each was divided by.
            self._loss = self._loss * (trainer.accumulate_grad_batches / self._parts)
        monitor.step(self._loss, optimizer=optimizer)
        self._loss, self._parts = None, 0

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Training is done."""
        self._attached.end("interrupted" if trainer.interrupted else "completed")

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Training has failed, or was interrupted."""
        self._attached.end(*ending(exception))

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """The trainer lets go."""
        self._attached.end("interrupted", "the trainer ended before training did")

    def _moves(self, optimizer: Any) -> bool:
        """Whether an optimizer updates parameters of the module: one of latent codes, say, does not."""
        groups = inside(optimizer).param_groups
        return any(id(parameter) in self._own for group in groups for parameter in group["params"])

    def _watching(self, trainer: Any) -> Monitor | None:
        return self._attached.monitor if trainer.training and trainer.is_global_zero else None
