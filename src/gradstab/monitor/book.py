"""What a watched run leaves on disk: run.json from the start on, the event file, and the verdict on both."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import nn
from torch.optim import Optimizer

from gradstab import dashboard, run_directory
from gradstab.claims import claim
from gradstab.config.optimizer_options import ADAPTIVE
from gradstab.config.verdict_options import Thresholds
from gradstab.errors import GradstabError
from gradstab.measure.diagnosis import Judge
from gradstab.measure.quantities import Norms
from gradstab.measure.recorder import Recorder, StepRecord
from gradstab.measure.symmetry import identical_units
from gradstab.measure.verdict import Verdict
from gradstab.monitor.chains import watched_step_scale
from gradstab.monitor.gradients import WatchedNorms
from gradstab.monitor.judged_writer import JudgedWriter
from gradstab.monitor.notes import SCALED, on_depth
from gradstab.monitor.record import closing_record, opening_record
from gradstab.monitor.rows import Row
from gradstab.report.history import Pictures

# From so many steps on a run gets pictures in TensorBoard.
PICTURED = 500
# So many steps in a row divided by a power of two are a GradScaler's work.
DIVIDED = 3
# Optimizers whose steps keep their size too, and which gradstab has no option for.
ADAPTIVE_ELSEWHERE = ("adafactor", "adadelta", "rprop", "lion", "lamb", "lars", "shampoo", "soap", "sophia", "prodigy")


class Book:
    """Records one watched run in its directory; the event file is opened once its layers have an order.

    ``notes`` are lines on what could not be measured.
    """

    def __init__(
        self, directory: Path, model: nn.Module, thresholds: Thresholds, chance_loss: float | None, *, scaled: bool
    ) -> None:
        self.directory = directory
        self._give_back = claim(directory)
        self.notes: list[str] = []
        self._on_depth: list[str] = []
        self.closed = False
        self._thresholds = thresholds
        self._scaled = scaled
        self._said: set[str] = set()
        self._clips = False
        self._evaluations: list[tuple[int, float, float | None]] = []
        self._started = time.perf_counter()
        self._evaluation: tuple[float, float | None] | None = None
        self._record = opening_record(model, chance_loss) | {"thresholds": thresholds.knobs}
        self._trouble = ""
        self._opened: tuple[Recorder, JudgedWriter, Judge] | None = None
        self._pictures: Pictures | None = None

    def check_open(self) -> None:
        """Raises :class:`GradstabError` once the record has ended."""
        if self.closed:
            raise GradstabError(f"{self.directory}: this monitor is closed; watch again to record another run")

    def complain(self, note: str, *, stacklevel: int, **values: object) -> None:
        """Note what could not be measured, with these values filled in, and warn of it; once of each kind."""
        if note not in self._said:
            self._said.add(note)
            self.notes.append(note.format(**values))
            warnings.warn(f"watch: {self.notes[-1]}", stacklevel=stacklevel)

    def uses(self, optimizer: Optimizer) -> None:
        """Note that this optimizer moves the network: steps of some keep their size however small gradients are."""
        name = type(optimizer).__name__.lower()
        if self._record["adaptive_optimizer"] or not any(kind in name for kind in (*ADAPTIVE, *ADAPTIVE_ELSEWHERE)):
            return
        self._record["adaptive_optimizer"] = True
        if self._opened is not None:
            recorder, _, judge = self._opened
            with self._writing():
                recorder.flush()
            self._record["adaptive_since"] = recorder.recorded_steps
            judge.adaptive = True
            self._rewrite()

    def decays(self, decay: float) -> None:
        """Note the weight decay that is part of the gradient; another than before leaves none that all steps had."""
        theory = self._record["theory"]
        if self._opened is None:
            theory["decay"] = decay
        elif theory.get("decay") not in (decay, 0.0):
            theory["decay"] = 0.0
            self._opened[2].forget("decay")
            self._rewrite()

    def write_opening(
        self, norms: WatchedNorms, start: nn.Module | None = None, optimizers: Sequence[Optimizer] = ()
    ) -> None:
        """Write run.json as far as it is known, with the layers in their present order.

        ``start`` is the network before its first update, once that is about to come, and ``optimizers`` will make it.
        """
        if start is not None:
            self._record["theory"] |= {"identical_units": True} if identical_units(start) else {}
            self._record["theory"] |= watched_step_scale(norms, start, optimizers)
        self._record |= {"layers": norms.tags, "hidden_layers": len(norms.hidden)}
        self._record["depth_layers"] = [norms.tags[i] for i in norms.depth]
        self._record["trunk_layers"] = [norms.tags[i] for i in norms.trunk]
        self._rewrite()

    def _rewrite(self) -> None:
        """A run that is killed is judged by what run.json says of it."""
        with self._writing():
            run_directory.write_run(self.directory, self._record | {"notes": self.notes})

    def note_series(self, norms: WatchedNorms) -> None:
        """Note what a line over depth is not taken along, and does not show."""
        self.notes[:] = [note for note in self.notes if note not in self._on_depth]
        self._on_depth = on_depth(norms)
        self.notes += self._on_depth

    def rearrange(self, norms: WatchedNorms) -> None:
        """More layers stand in series than were known so far."""
        self.note_series(norms)
        self._record["theory"].pop("step_scale", None)
        self.write_opening(norms)
        if self._opened is not None:
            _, writer, judge = self._opened
            writer.depth = norms.depth
            judge.arrange(len(norms.hidden), self._record["trunk_layers"])
            judge.forget("large_steps", "deep_steps")

    def add(self, record: StepRecord, post: Norms | None, unknown: Sequence[str], norms: WatchedNorms) -> None:
        """Record one step. ``post`` are the norms after clipping where it was seen, ``unknown`` tags to leave out."""
        recorder, writer, _ = self._open(norms)
        if writer.divided >= DIVIDED:
            self.complain(SCALED, stacklevel=6, factor=writer.factor)
        if post is not None and not self._clips:
            # Steps cross to the host together only where all have the same values.
            with self._writing():
                recorder.flush()
            self._clips = True
        if self._clips:
            record.post_norms = record.norms if post is None else post
        if unknown:
            writer.leave_out(record.step, *unknown)
        recorder.add(record)
        if recorder.due:
            with self._writing():
                recorder.flush()

    def evaluated(self, step: int, loss: float, accuracy: float | None) -> None:
        """Record an evaluation after ``step`` steps; before the first one is added, layers have no order yet."""
        self._evaluation = (loss, accuracy)
        if self._opened is None:
            self._evaluations.append((step, loss, accuracy))
        else:
            with self._writing():
                self._opened[0].flush()
                self._opened[0].write_evaluation(step, loss, accuracy)

    def verdict(self, norms: WatchedNorms, row: Row | None = None) -> Verdict:
        """The verdict on all that was added, and on what is known so far of a step that stays open."""
        if self._opened is not None and not self.closed:
            with self._writing():
                self._opened[0].flush()
        if row is None and not (self._opened and self._opened[0].recorded_steps):
            raise GradstabError(f"{self.directory}: no step was recorded yet; call step(loss) after backward()")
        _, writer, judge = self._open(norms)
        if row is None:
            return judge.verdict()
        writer = writer.rehearsal()
        writer.leave_out(row.record.step, *row.unknown)
        trial = Recorder(norms, writer, skip_non_finite=True)
        trial.add(row.record)
        trial.flush()
        return writer.judge.verdict()

    def close(self, status: str, reason: str, norms: WatchedNorms) -> int:
        """Write what is left, the verdict and run.json; returns how many steps were recorded."""
        recorder, writer, judge = self._open(norms)
        with contextlib.ExitStack() as stack:
            stack.callback(self._give_back)
            stack.enter_context(self._writing())
            stack.enter_context(contextlib.closing(writer))
            self.closed = True
            recorder.flush()
            if not writer.in_place:
                # What is there by now is another run's.
                warnings.warn(f"watch: {self.directory} was removed or replaced; its record is not ended", stacklevel=4)
                return recorder.recorded_steps
            if self._trouble and status == "completed":
                status, reason = "failed", self._trouble
            self._draw(recorder.recorded_steps)
            record = self._record | closing_record(recorder, writer, status, reason)
            record["seconds"] = time.perf_counter() - self._started
            if self._evaluation is not None:
                record["test_loss"], record["test_accuracy"] = self._evaluation
            if recorder.recorded_steps:
                record["verdict"] = judge.verdict().to_dict()
            run_directory.write_run(self.directory, record | {"notes": self.notes})
        return recorder.recorded_steps

    def _draw(self, steps: int) -> None:
        """TensorBoard's pictures: at the end alone, as they take a second, and not of what is over at once."""
        if self._pictures is None or steps < PICTURED:
            return
        try:
            self._pictures.finish()
        except OSError:
            raise
        except Exception as error:
            self.notes.append(f"there are no pictures for TensorBoard ({type(error).__name__}: {error})")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._trouble = f"{self.directory}: cannot be written to ({error.strerror or error})"
            raise GradstabError(self._trouble) from error

    def _open(self, norms: WatchedNorms) -> tuple[Recorder, JudgedWriter, Judge]:
        if self._opened is None:
            chance = self._record["chance_loss"]
            judge = Judge(
                norms.tags,
                len(norms.hidden),
                self._thresholds,
                theory=self._record["theory"],
                chance_loss=chance,
                adaptive=self._record["adaptive_optimizer"],
                depth_layers=self._record["trunk_layers"],
            )
            with self._writing():
                writer = JudgedWriter(self.directory, norms.tags, judge, depth=norms.depth, scaled=self._scaled)
                writer.write_summary(dashboard.layout())
            self._pictures = Pictures(writer, norms.tags, None, after=math.inf)
            recorder = Recorder(norms, writer, skip_non_finite=True, observers=[self._pictures])
            self._opened = recorder, writer, judge
            for evaluation in self._evaluations:
                self._opened[0].write_evaluation(*evaluation)
        return self._opened
