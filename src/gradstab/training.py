"""The training loop: one step, and the fit of a whole run."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from gradstab.errors import Interrupted
from gradstab.evaluation import evaluate
from gradstab.measure.diagnosis import Judge
from gradstab.measure.losses import STUCK_STEPS
from gradstab.measure.quantities import as_tensor, finite
from gradstab.measure.recorder import NonFinite, Recorder, StepRecord
from gradstab.parts import Parts
from gradstab.progress import Display, Outcome, Plan, Progress, Saver, Witness

Batch = tuple[Tensor, Tensor, Tensor]

# How often a run is judged between evaluations, where a verdict may end it.
JUDGED_STEPS = 64


def train_step(parts: Parts, step: int, inputs: Tensor, targets: Tensor, measure_all: bool) -> StepRecord:
    """One step: forward, backward, measure, check, clip, update. Values stay on the device.

    One that is skipped leaves no trace in the model, running averages included.
    """
    averages = [buffer.clone() for buffer in parts.model.buffers()] if parts.skip_non_finite else []
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
        record.norms = parts.probe.norms_of(grads)
        if parts.check_every_step:
            record.updated = finite(record.norms)
        if parts.clip is not None:
            record.post_norms = parts.clip(grads, as_tensor(record.norms))
    if parts.check_every_step and not (record.updated and math.isfinite(loss.item())):
        record.updated = False
        for buffer, earlier in zip(parts.model.buffers(), averages, strict=False):
            buffer.copy_(earlier)
        return record
    before = parts.probe.weights() if measure_all else []
    parts.optimizer.step()
    if parts.constraint is not None:
        parts.constraint()
    if measure_all:
        record.quantities["update_ratio"] = parts.probe.update_ratio(before)
    return record


def fit(
    parts: Parts,
    plan: Plan,
    stream: Iterator[Batch],
    recorder: Recorder,
    display: Display,
    judge: Judge,
    *,
    progress: Progress,
    saver: Saver,
    witness: Witness,
) -> Outcome:
    """Train until the planned steps are done, the target loss is reached, or the run diverges or is stopped.

    It goes on from ``progress``. Raises :class:`Interrupted` where ``saver`` does, everything being saved.
    """
    outcome = progress.outcome
    outcome.latest = recorder.latest
    parts.model.train()
    if progress.done:
        display.progress(progress.done, recorder.latest)
    try:
        while True:
            if progress.owes_evaluation:
                evaluate_into(outcome, parts, recorder, display, progress.evaluated_step, saver.poll)
                progress.owes_evaluation = False
                saver.evaluated(progress, parts.model)
            saver.poll()
            if progress.ended:
                break
            if saver.due(progress.done):
                _flush(progress, parts, recorder, display, witness)
                saver.save()
            else:
                _advance(progress, parts, plan, stream, recorder, display, judge, witness)
    except Interrupted:
        _flush(progress, parts, recorder, display, witness)
        saver.save()
        raise
    if outcome.status == "completed" and outcome.evaluated and not math.isfinite(outcome.test_loss):
        said = f"non-finite test loss after step {outcome.steps - 1}"
        outcome.status, outcome.reason = "diverged", "; ".join(filter(None, [outcome.reason, said]))
    witness.ended(outcome)
    return outcome


def _advance(
    progress: Progress,
    parts: Parts,
    plan: Plan,
    stream: Iterator[Batch],
    recorder: Recorder,
    display: Display,
    judge: Judge,
    witness: Witness,
) -> None:
    """Make one step, and see what follows from it: an evaluation, or the end."""
    outcome = progress.outcome
    inputs, targets, indices = next(stream)
    witness.before(progress.done, indices)
    measured = plan.measures(progress.done)
    record = train_step(parts, progress.done, inputs, targets, measured)
    witness.after(record)
    recorder.add(record)
    if parts.schedule is not None:
        parts.schedule.after_step()
    progress.done += 1
    progress.stuck = 0 if record.updated else progress.stuck + 1
    reached = plan.target_loss is not None and float(record.loss) <= plan.target_loss
    broken = not record.updated and not parts.skip_non_finite
    looks = broken or reached or progress.stuck == STUCK_STEPS or plan.evaluates(progress.done)
    # What a run does may depend on how many steps it has made, never on how fast: a resumed one is to do the same.
    judges = looks or progress.done % JUDGED_STEPS == 0
    judges |= bool(plan.stop_on) and (measured or not record.updated)
    if judges or recorder.due:
        _flush(progress, parts, recorder, display, witness)
    if progress.ended:
        return
    outcome.steps += record.updated
    found = judge.to_stop(plan.stop_on) if judges else None
    progress.owes_evaluation = looks
    if reached:
        progress.end("completed", f"train loss {float(record.loss):.6g} reached target_loss={plan.target_loss:g}")
    elif found is not None:
        progress.end("completed", f"stop_on={found.kind}: {found.explanation}")
    elif progress.stuck == STUCK_STEPS:
        progress.end("diverged", f"non-finite for {STUCK_STEPS} steps in a row, all skipped")
    elif progress.done == plan.steps:
        progress.end("completed", "")


def _flush(progress: Progress, parts: Parts, recorder: Recorder, display: Display, witness: Witness) -> None:
    """Bring what has gathered to the host; a step among it that was not finite ends the run."""
    broken = witness.looked(recorder.flush())
    display.progress(progress.done, recorder.latest)
    if broken is not None:
        progress.outcome.broken, progress.outcome.steps = broken, broken.step
        progress.end("diverged", _describe(broken, parts.probe.tags))


def evaluate_into(
    outcome: Outcome, parts: Parts, recorder: Recorder, display: Display, done: int, poll: Callable[[], None]
) -> None:
    """Evaluate on the test split, and pass the result on to all who want it; ``poll`` may raise to break it off."""
    loss, accuracy = evaluate(parts.model, parts.data.test, parts.loss, parts.data.is_classification, poll)
    outcome.test_loss, outcome.test_accuracy, outcome.evaluated = loss, accuracy, True
    if accuracy is not None:
        outcome.best_test_accuracy = max(accuracy, outcome.best_test_accuracy or 0.0)
    if parts.schedule is not None:
        parts.schedule.after_evaluation(loss)
    recorder.write_evaluation(done, loss, accuracy)
    display.evaluated(done, loss, accuracy, recorder.latest)


def _describe(broken: NonFinite, tags: Sequence[str]) -> str:
    """The reason of a divergence in one line, with the layer where it began."""
    if broken.where:
        where = broken.where
    elif broken.layer is not None:
        where = f"first in layer {tags[broken.layer]} on the way back"
    elif broken.quantity == "gradient":
        where = "in no layer's weights but in other parameters"
    else:
        where = "losses on a GPU are looked at in bulk, so no layer is named; on_divergence=skip looks at each"
    return f"non-finite {broken.quantity} at step {broken.step}, {where}"
