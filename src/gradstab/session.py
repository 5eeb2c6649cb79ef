"""A run under way: what records it, how far it has come, and all of that as one state."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from gradstab import checkpoint, dashboard, plain, reproducibility, run_directory
from gradstab.batching import Batches
from gradstab.config import Config, flat, to_container
from gradstab.errors import GradstabError
from gradstab.events import EventWriter, whole_bytes
from gradstab.examination import Examination
from gradstab.forensics.keeper import Keeper
from gradstab.interrupts import Stop
from gradstab.measure.recorder import Observer, Recorder
from gradstab.parts import Parts
from gradstab.progress import Display, Outcome, Plan, Progress
from gradstab.report.history import Pictures
from gradstab.training import fit

_STATE = ("step", "seconds", "parts", "stream", "recorder", "judge", "pictures", "progress", "keeper", "events", "best")


class Session:
    """Everything of one run but its directory's run.json; with the ``state`` of a checkpoint it goes on from there.

    ``parts`` are to be as they were built: theory looks at the network as it was drawn.
    """

    def __init__(
        self, config: Config, parts: Parts, examination: Examination, directory: Path, state: Mapping[str, Any] | None
    ) -> None:
        self.config = config
        self.parts = parts
        self.writer = EventWriter(directory, parts.probe.tags, None if state is None else state["events"])
        self.judge = examination.judge()
        observers: list[Observer] = [self.judge]
        self.pictures = None
        if parts.measure_norms and config.images_after is not None:
            self.pictures = Pictures(self.writer, parts.probe.tags, examination.theory, config.images_after)
            observers.append(self.pictures)
        self.recorder = Recorder(parts.probe, self.writer, skip_non_finite=parts.skip_non_finite, observers=observers)
        order = reproducibility.generator(config.seed, "order")
        self.stream = Batches(parts.data.train, config.batch, order)
        self.progress = Progress(outcome=Outcome(latest=self.recorder.latest))
        self._began = time.perf_counter()
        self._earlier = 0.0
        identity = run_directory.identity(to_container(config))
        self.keeper = Keeper(parts, directory, identity, 0 if state is None else state["step"])
        # Dropout draws from the global stream; nothing else does during training.
        torch.manual_seed(reproducibility.stream_seed(config.seed, "dropout"))
        if state is not None:
            try:
                self._load(state)
            except (LookupError, ValueError, TypeError, RuntimeError, AttributeError) as error:
                self.writer.close()
                said = str(error).strip().partition("\n")[0]
                raise GradstabError(f"the checkpoint does not fit this run ({type(error).__name__}: {said})") from error
            self.writer.rewind()

    @property
    def seconds(self) -> float:
        """How long the run has taken, in all its processes."""
        return self._earlier + time.perf_counter() - self._began

    def write_header(self, container: Mapping[str, Any], differing: Collection[str]) -> None:
        """What stands at the beginning of an event file: the layout of charts, and the settings.

        ``differing`` names the settings that other runs beside this one have otherwise.
        """
        if self.parts.measure_norms:
            self.writer.write_summary(dashboard.layout())
        beside = ("quiet", "out_dir")
        settings = {
            key: value
            for key, value in flat(container).items()
            if value is not None and key not in beside and key.partition(".")[0] != "checkpoint"
        }
        for summary in dashboard.hparams(settings, differing):
            self.writer.write_summary(summary)

    def fit(self, display: Display, checkpoints: Checkpoints) -> Outcome:
        """Train, from wherever the run stands, to its end."""
        config, parts = self.config, self.parts
        plan = Plan(
            steps=config.total_steps,
            eval_every=config.eval_every,
            measure_every=config.measure.knobs.get("every"),
            measure=parts.measure_norms,
            target_loss=config.target_loss,
            stop_on=config.stop_on or (),
        )
        return fit(
            parts,
            plan,
            self.stream,
            self.recorder,
            display,
            self.judge,
            progress=self.progress,
            saver=checkpoints,
            witness=self.keeper,
        )

    def state_dict(self) -> dict[str, Any]:
        """The whole run between two steps, in numbers, text and tensors; those of ``parts`` are still its own."""
        return {
            "step": self.progress.done,
            "seconds": self.seconds,
            "parts": self.parts.state_dict(),
            "stream": self.stream.state_dict(),
            "recorder": self.recorder.state_dict(),
            "judge": plain.state_of(self.judge),
            "pictures": None if self.pictures is None else self.pictures.state_dict(),
            "progress": plain.state_of(self.progress),
            "keeper": self.keeper.state_dict(),
            "events": self.writer.state_dict(),
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        self.parts.load_state_dict(state["parts"])
        self.stream.load_state_dict(state["stream"])
        self.recorder.load_state_dict(state["recorder"])
        plain.restore(self.judge, state["judge"])
        if self.pictures is not None:
            self.pictures.load_state_dict(state["pictures"])
        plain.restore(self.progress, state["progress"])
        if self.progress.done != state["step"]:
            raise ValueError(f"step {self.progress.done} is not {state['step']}")
        self.keeper.load_state_dict(state["keeper"])
        self._earlier = state["seconds"]


def obstacle(directory: Path, state: Mapping[str, Any]) -> str | None:
    """What keeps a run from going on with a checkpoint's state, if anything does: the event file may not match it."""
    missing = [key for key in _STATE if key not in state]
    if missing:
        return f"lacks {', '.join(missing)}"
    step, seconds = state["step"], state["seconds"]
    if not (isinstance(step, int) and step >= 0 and isinstance(seconds, int | float)):
        return "names no step"
    events = state["events"]
    name, position = (events.get("name"), events.get("position")) if isinstance(events, dict) else (None, None)
    if not isinstance(name, str) or not isinstance(position, int) or position < 0 or Path(name).name != name:
        return "names no event file"
    if not name.startswith(run_directory.EVENT_FILES) or not (directory / name).is_file():
        return f"goes with the event file {name}, which is not there"
    if whole_bytes(directory / name) < position:
        return f"goes with the event file {name}, which is cut off or damaged before that step"
    return None


class Checkpoints:
    """Writes a session's state when it is due, and keeps the weights that did best on the test split.

    The best are those of the highest accuracy or, in a regression, the lowest loss, the first of equals. They are kept
    in memory and written with the next checkpoint.
    """

    def __init__(
        self, directory: Path, identity: str, session: Session, stop: Stop, state: Mapping[str, Any] | None
    ) -> None:
        self._directory = directory
        self._identity = identity
        self._session = session
        self._stop = stop
        self._knobs = session.config.checkpoint
        self._best: dict[str, Any] | None = None if state is None else state["best"]
        self._best_model: dict[str, Any] | None = None
        self._step = None if state is None else state["step"]
        self._at = time.monotonic()

    def poll(self) -> None:
        """Raise :class:`Interrupted` if a signal has come."""
        self._stop.poll()

    def due(self, done: int) -> bool:
        """Whether ``checkpoint.every`` has gone by, in steps or minutes."""
        if done in (0, self._step):
            return False
        if self._knobs.steps is not None:
            return done % self._knobs.steps == 0
        return self._knobs.seconds is not None and time.monotonic() - self._at >= self._knobs.seconds

    def save(self) -> None:
        """Write the session's state as it is."""
        self.write(self._session.state_dict())

    def write(self, state: Mapping[str, Any]) -> None:
        """Write a state of the session, the best weights before it, and remove what is no longer to be kept."""
        self._write_best()
        # A checkpoint is no use without the records it goes with.
        self._session.writer.sync()
        self._step = state["step"]
        path = checkpoint.path_of(self._directory, self._step)
        checkpoint.write(path, self._identity, {**state, "best": self._best})
        checkpoint.prune(self._directory, self._step, self._knobs.keep)
        self._at = time.monotonic()

    def finish(self, state: Mapping[str, Any], *, completed: bool) -> None:
        """Keep what a run has come to, if it was long enough to write checkpoints at all; only the best if it broke."""
        if self._step is None and self._knobs.steps is None:
            return
        if completed:
            self.write(state)
        else:
            self._write_best()

    def _write_best(self) -> None:
        if self._best_model is not None:
            best = self._directory / run_directory.CHECKPOINTS / checkpoint.BEST
            checkpoint.write(best, self._identity, {**(self._best or {}), "model": self._best_model})
            self._best_model = None

    def evaluated(self, progress: Progress, model: torch.nn.Module) -> None:
        """Keep the weights if none did better."""
        outcome = progress.outcome
        if not self._knobs.best or not math.isfinite(outcome.test_loss):
            return
        score = -outcome.test_loss if outcome.test_accuracy is None else outcome.test_accuracy
        if self._best is None or score > self._best["score"]:
            self._best = {
                "step": progress.evaluated_step,
                "score": score,
                "test_loss": outcome.test_loss,
                "test_accuracy": outcome.test_accuracy,
            }
            self._best_model = {key: value.to("cpu", copy=True) for key, value in model.state_dict().items()}
