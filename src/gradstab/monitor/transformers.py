"""Watching a network that Hugging Face's Trainer trains: ``Trainer(callbacks=[GradstabCallback("outputs/mine")])``."""

from __future__ import annotations

from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.optim import Optimizer

from gradstab.errors import ConfigError
from gradstab.measure.verdict import Verdict
from gradstab.monitor.attached import Attached, MissingLibraryError
from gradstab.monitor.gradients import scale_of
from gradstab.monitor.layers import unwrapped
from gradstab.monitor.monitor import Monitor

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise MissingLibraryError("transformers is not installed; pip install 'gradstab[transformers]'") from error


class GradstabCallback(TrainerCallback):  # type: ignore[misc]
    """Records a network's training as :func:`gradstab.watch` does; takes the same arguments.

    The Trainer clips before it calls anybody, so gradients are looked at as every backward pass ends: norms before
    clipping are those of the last one of a step, where all have been added up, and norms after it come with the update.
    The loss is the network's own output ``loss``, weighted as the Trainer weights it over micro-batches. Where the
    loss is computed outside the network (label smoothing, ``compute_loss_func``) only the logged one is known, a mean
    over the steps since the one before; what an overridden ``compute_loss`` makes of the network's own is not known.
    Updates of fewer micro-batches than others, as at an epoch's end, have no loss.
    Evaluations count while training goes on, those on one data set.
    """

    def __init__(self, directory: str | Path | None = None, **arguments: Any) -> None:
        self._attached = Attached(directory, arguments)
        self._handles: list[Any] = []
        self._scaler: Any = None
        self._queued = False
        self._looked = False
        self._loss: Tensor | None = None
        self._parts, self._usual = 0, 0

    def __deepcopy__(self, _memo: object) -> GradstabCallback:
        # Of a network that is copied, whose hooks are bound to this: what they then find is nobody's.
        return _again(type(self), self._attached.directory, self._attached.arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self._attached.directory, self._attached.arguments)

    @property
    def monitor(self) -> Monitor | None:
        """The monitor of the run at hand, or of the last one; None before any."""
        return self._attached.monitor

    def verdict(self) -> Verdict:
        """The verdict on the run so far."""
        return self._attached.verdict()

    def close(self, status: str = "completed", reason: str = "") -> None:
        """End the record: where training fails the Trainer tells no callback, and the interpreter's end does this."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._attached.end(status, reason)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        """Put a monitor on the network."""
        if args.world_size > 1 or args.n_gpu > 1 or getattr(args, "deepspeed", None):
            raise ConfigError(
                f"world_size={args.world_size}, n_gpu={args.n_gpu}: the Trainer can be watched in one process on one "
                "device, without DeepSpeed"
            )
        self.close("interrupted", "another run began")
        inner = unwrapped(model)[0]
        optimizer, self._scaler = _inside(optimizer)
        self._attached.begin(model, [optimizer], self._scaler)
        self._loss, self._parts, self._usual, self._queued, self._looked = None, 0, 0, False, False
        trainable = [p for p in inner.parameters() if p.requires_grad]
        # The first of them to get its gradient tells that a backward pass is under way; not all need to get one.
        for parameter in {id(p): p for p in (*trainable[:: max(len(trainable) // 16, 1)], *trainable[-1:])}.values():
            hook = parameter.register_post_accumulate_grad_hook(self._on_gradient)  # type: ignore[no-untyped-call]
            self._handles.append(hook)
        self._handles.append(inner.register_forward_hook(self._on_output))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The gradients of a step have been looked at, and clipped since."""
        monitor = self._attached.monitor
        if monitor is None:
            return
        if not self._looked and args.max_grad_norm:
            raise ConfigError("model: its gradients come without the backward pass being seen, and clipped")
        # Of fewer micro-batches, as at an epoch's end, it may be the sum, and says nothing beside the others.
        self._usual = max(self._usual, self._parts)
        monitor.step(self._loss if self._parts == self._usual else None)
        self._loss, self._parts, self._looked = None, 0, False

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Take the logged loss for the step just made, should it have shown none of its own."""
        monitor = self._attached.monitor
        if monitor is not None and not monitor.closed and logs and (loss := _number(logs.get("loss"))) is not None:
            monitor.supply(loss)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, Any] | None = None, **_: Any) -> None:
        """Record the evaluation, while training goes on; an accuracy that is no share is somebody's own metric."""
        monitor, metrics = self._attached.monitor, metrics or {}
        loss, accuracy = _number(metrics.get("eval_loss")), _number(metrics.get("eval_accuracy"))
        if monitor is not None and not monitor.closed and loss is not None:
            monitor.evaluated(loss, accuracy if accuracy is not None and 0 <= accuracy <= 1 else None)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Training is done."""
        self.close()

    def _on_output(self, module: nn.Module, _args: object, output: Any) -> None:
        """Have the loss tell, as the backward pass begins, how much of it goes into the step."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled() or not module.training:
            return
        loss = output.get("loss") if isinstance(output, dict) else output[0] if isinstance(output, tuple) else None
        if not isinstance(loss, Tensor) or not loss.requires_grad or loss.numel() != 1:
            return
        value = loss.detach()

        def on_weight(weight: Tensor) -> None:
            scale = scale_of(self._scaler)
            own = value * (weight if scale is None else weight / scale)
            self._loss = own if self._loss is None else self._loss + own
            self._parts += 1

        loss.register_hook(on_weight)  # type: ignore[no-untyped-call]

    def _on_gradient(self, _parameter: Tensor) -> None:
        if not self._queued:
            self._queued = True
            Variable._execution_engine.queue_callback(self._after_backward)

    def _after_backward(self) -> None:
        self._queued = False
        if self._attached.monitor is not None:
            self._attached.monitor.look()
            self._looked = True


def _again(kind: type[GradstabCallback], directory: Any, arguments: dict[str, Any]) -> GradstabCallback:
    """A callback like another, before any training."""
    return kind(directory, **arguments)


def _number(value: Any) -> float | None:
    """What a Trainer reports as a number; None for anything else."""
    return float(value) if isinstance(value, Real) else None


def _inside(optimizer: Any) -> tuple[Optimizer, Any]:
    """Torch's own optimizer inside accelerate's, and the GradScaler that goes with it."""
    scaler = None
    while hasattr(optimizer, "optimizer"):
        scaler = scaler or getattr(optimizer, "scaler", None)
        optimizer = optimizer.optimizer
    return optimizer, scaler
