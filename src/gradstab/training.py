"""The training loop: one step, and the fit of a whole run."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from gradstab.clipping import Clip
from gradstab.data import Dataset, Split
from gradstab.losses import Loss
from gradstab.measure.diagnosis import Judge
from gradstab.measure.probe import Probe
from gradstab.measure.recorder import Latest, NonFinite, Recorder, StepRecord
from gradstab.models.blocks import Model
from gradstab.schedules import Schedule

Batch = tuple[Tensor, Tensor, Tensor]

EVALUATION_BATCH = 2048
STUCK_STEPS = 100


@dataclass
class Parts:
    """Everything a training step works with, built and ready on the device."""

    model: Model
    data: Dataset
    loss: Loss
    penalty: Callable[[], Tensor] | None
    optimizer: torch.optim.Optimizer
    schedule: Schedule | None
    clip: Clip | None
    constraint: Callable[[], None] | None
    probe: Probe
    measure_norms: bool
    skip_non_finite: bool
    check_every_step: bool


@dataclass(frozen=True)
class Plan:
    """How long to train and when to look."""

    steps: int
    eval_every: int
    measure_every: int | None
    measure: bool
    target_loss: float | None
    stop_on: tuple[str, ...] = ()

    def measures(self, step: int) -> bool:
        """Whether all quantities are taken at this step: the first, each before an evaluation, each in between."""
        if not self.measure:
            return False
        between = self.measure_every is not None and step % self.measure_every == 0
        return step == 0 or self.evaluates(step + 1) or between

    def evaluates(self, done: int) -> bool:
        """Whether the test split is evaluated after ``done`` steps."""
        return done % self.eval_every == 0 or done == self.steps


@dataclass
class Outcome:
    """How a run ended. ``steps`` are those whose update was made; losses are NaN where nothing was evaluated."""

    status: str = "completed"
    reason: str = ""
    steps: int = 0
    test_loss: float = math.nan
    test_accuracy: float | None = None
    best_test_accuracy: float | None = None
    evaluated: bool = False
    broken: NonFinite | None = None
    latest: Latest = field(default_factory=Latest)


class Display(Protocol):
    """What shows a run's progress to a person."""

    def progress(self, done: int, latest: Latest) -> None:
        """Values have reached the host."""

    def evaluated(self, done: int, loss: float, accuracy: float | None, latest: Latest) -> None:
        """The test split was evaluated."""


def train_step(parts: Parts, step: int, inputs: Tensor, targets: Tensor, measure_all: bool) -> StepRecord:
    """One step: forward, backward, measure, check, clip, update. Values stay on the device."""
    parts.optimizer.zero_grad(set_to_none=True)
    watching = parts.probe.watching() if measure_all else contextlib.nullcontext(None)
    with watching as read:
        loss = parts.loss(parts.model(inputs), targets)
        penalty = parts.penalty() if parts.penalty is not None else None
        (loss if penalty is None else loss + penalty).backward()  # type: ignore[no-untyped-call]
        quantities = read() if read is not None else {}
    # The graph goes now, not at the end of the step: its memory serves the next tensors.
    loss, penalty = loss.detach(), None if penalty is None else penalty.detach()
    record = StepRecord(step, parts.optimizer.param_groups[0]["lr"], loss, penalty, quantities=quantities)
    if parts.measure_norms or parts.clip is not None:
        grads = parts.probe.gradients()
        record.norms = parts.probe.grad_norms(grads)
        if parts.check_every_step:
            record.norms, record.updated = parts.probe.checked(grads, record.norms)
        if parts.clip is not None:
            record.post_norms = parts.clip(grads, record.norms)
    if parts.check_every_step and not (record.updated and math.isfinite(loss.item())):
        record.updated = False
        return record
    before = parts.probe.weights() if measure_all else []
    parts.optimizer.step()
    if parts.constraint is not None:
        parts.constraint()
    if measure_all:
        record.quantities["update_ratio"] = parts.probe.update_ratio(before)
    return record


def fit(
    parts: Parts, plan: Plan, stream: Iterator[Batch], recorder: Recorder, display: Display, judge: Judge
) -> Outcome:
    """Train until the planned steps are done, the target loss is reached, or the run diverges or is stopped."""
    outcome = Outcome(latest=recorder.latest)
    parts.model.train()
    stuck = 0
    try:
        for step in range(plan.steps):
            inputs, targets, _ = next(stream)
            record = train_step(parts, step, inputs, targets, plan.measures(step))
            recorder.add(record)
            if parts.schedule is not None:
                parts.schedule.after_step()
            stuck = 0 if record.updated else stuck + 1
            reached = plan.target_loss is not None and record.loss.item() <= plan.target_loss
            broken = not record.updated and not parts.skip_non_finite
            looks = broken or reached or stuck == STUCK_STEPS or plan.evaluates(step + 1)
            if looks or recorder.due:
                outcome.broken = recorder.flush()
                display.progress(step + 1, recorder.latest)
            if outcome.broken is not None:
                outcome.status, outcome.reason = "diverged", _describe(outcome.broken, parts, inputs)
                break
            outcome.steps += record.updated
            found = judge.to_stop(plan.stop_on) if looks or recorder.emptied else None
            looks = looks or found is not None
            if looks:
                evaluate_into(outcome, parts, recorder, display, step + 1)
            if reached:
                outcome.reason = f"train loss {record.loss.item():.6g} reached target_loss={plan.target_loss:g}"
                break
            if found is not None:
                outcome.reason = f"stop_on={found.kind}: {found.explanation}"
                break
            if stuck == STUCK_STEPS:
                outcome.status, outcome.reason = "diverged", f"non-finite for {STUCK_STEPS} steps in a row, all skipped"
                break
    except KeyboardInterrupt:
        recorder.flush()
        outcome.status, outcome.reason = "interrupted", "interrupted from the keyboard"
    if outcome.broken is not None:
        outcome.steps = outcome.broken.step
        evaluate_into(outcome, parts, recorder, display, outcome.steps)
    elif outcome.status == "completed" and outcome.evaluated and not math.isfinite(outcome.test_loss):
        outcome.status, outcome.reason = "diverged", f"non-finite test loss after step {outcome.steps - 1}"
    return outcome


def evaluate_into(outcome: Outcome, parts: Parts, recorder: Recorder, display: Display, done: int) -> None:
    """Evaluate on the test split, and pass the result on to all who want it."""
    loss, accuracy = evaluate(parts.model, parts.data.test, parts.loss, parts.data.is_classification)
    outcome.test_loss, outcome.test_accuracy, outcome.evaluated = loss, accuracy, True
    if accuracy is not None:
        outcome.best_test_accuracy = max(accuracy, outcome.best_test_accuracy or 0.0)
    if parts.schedule is not None:
        parts.schedule.after_evaluation(loss)
    recorder.write_evaluation(done, loss, accuracy)
    display.evaluated(done, loss, accuracy, recorder.latest)


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, loss: Loss, classification: bool) -> tuple[float, float | None]:
    """Mean loss and, for classes, accuracy in [0, 1] over a split, in evaluation mode; one transfer at the end."""
    model.eval()
    total = torch.zeros((), device=split.inputs.device)
    correct = torch.zeros((), device=split.inputs.device)
    for start in range(0, len(split), EVALUATION_BATCH):
        part = slice(start, start + EVALUATION_BATCH)
        inputs, targets = split.inputs[part], split.targets[part]
        outputs = model(inputs)
        total += loss(outputs, targets) * len(inputs)
        if classification:
            # NaN has an argmax too; it is no answer.
            correct += ((outputs.argmax(1) == targets) & outputs.isfinite().all(1)).sum()
    model.train()
    loss_sum, right = torch.stack([total, correct]).tolist()
    return loss_sum / len(split), right / len(split) if classification else None


def _describe(broken: NonFinite, parts: Parts, inputs: Tensor) -> str:
    """The reason of a divergence in one line, with the layer where it began."""
    names = parts.probe.tags
    if broken.layer is not None:
        where = f"first in layer {names[broken.layer]} on the way back"
    elif broken.quantity == "gradient":
        where = "in no layer's weights but in other parameters"
    elif not parts.check_every_step:
        where = "losses on a GPU are looked at in bulk, so no layer is named; on_divergence=skip looks at each"
    else:
        layer = first_overflowing_layer(parts, inputs)
        where = f"first in the output of layer {names[layer]} on the way forward"
        broken.layer = layer
    return f"non-finite {broken.quantity} at step {broken.step}, {where}"


@torch.no_grad()
def first_overflowing_layer(parts: Parts, inputs: Tensor) -> int:
    """The index of the first layer whose h is inf or NaN for these inputs; the output's where the loss alone is.

    Runs forward on the model as it is, and puts its buffers back.
    """
    finite: list[bool] = []
    buffers = copy.deepcopy(dict(parts.model.named_buffers()))
    handles = [
        layer.preactivation.register_forward_hook(lambda _m, _a, h: finite.append(bool(torch.isfinite(h).all())))
        for layer in parts.probe.layers
    ]
    try:
        parts.model(inputs)
    finally:
        for handle in handles:
            handle.remove()
        for name, buffer in parts.model.named_buffers():
            buffer.copy_(buffers[name])
    return finite.index(False) if False in finite else len(finite) - 1
