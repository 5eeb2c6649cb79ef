"""``gradstab explain``: from a run's directory to what broke, how it came to that, and what would have caught it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradstab.catching import Catch, catch
from gradstab.config import from_hydra
from gradstab.errors import ConfigError, GradstabError
from gradstab.forensics import story
from gradstab.forensics.growth import Growth, History, growth, history
from gradstab.forensics.snapshot import FOLDER, SNAPSHOT_FILE, Snapshot
from gradstab.replay import Replay, as_recorded, replay
from gradstab.report import table
from gradstab.report.runs import Run, load
from gradstab.run_directory import RUN_FILE, as_json, holds_run, read_config, read_run, status_of
from gradstab.wording import counted


@dataclass(frozen=True)
class Explanation:
    """All there is to tell of a run that had a value that was not finite."""

    directory: Path
    headline: str
    status: str
    clip: str
    constraint: str
    planned: int
    snapshot: Snapshot
    past: History
    growth: Growth | None
    catch: Catch
    replay: Replay
    notes: list[str]

    @property
    def confirmed(self) -> bool:
        """Whether the replay found the same."""
        return self.replay.confirmed

    def to_dict(self) -> dict[str, Any]:
        """Plain containers fit for JSON."""
        snapshot = asdict(self.snapshot)
        found = {
            "run": str(self.directory),
            "status": self.status,
            "first": {
                key: snapshot[key] for key in ("step", "quantity", "learning_rate", "precision", "device", "skipped")
            }
            | asdict(self.snapshot.origin)
            | {"direction": self.snapshot.origin.direction, "text": story.first(self.snapshot)},
            "batch": snapshot["batch"],
            "layers": snapshot["layers"],
            "look": snapshot["look"],
            "past": snapshot["past"],
            "growth": None
            if self.growth is None
            else asdict(self.growth)
            | {
                "grew": self.growth.grew,
                "layer": None if self.growth.layer is None else self.snapshot.layers[self.growth.layer],
            },
            "clip": asdict(self.catch),
            "replay": asdict(self.replay) | {"checkpoint": self.snapshot.checkpoint},
            "notes": self.notes,
        }
        known: dict[str, Any] = as_json(found)
        return known


def explain(directory: Path, *, prove: bool = False) -> Explanation | str:
    """The story of a run's first value that was not finite; one sentence where there is none to tell.

    The broken step is made once more from its checkpoint. What clipping would have caught it is put to the test by
    running the run from its start, where that is quickly done, or else on ``prove``. Raises
    :class:`ConfigError` for a directory that holds no run, :class:`GradstabError` for files that cannot be read.
    """
    if not holds_run(directory):
        raise ConfigError(f"{directory}: holds no run: there is no {RUN_FILE} in it; allowed: a run's directory")
    run = load(directory, directory.resolve().name)
    folder = directory / FOLDER
    if not (folder / SNAPSHOT_FILE).exists():
        return _nothing_to_tell(run)
    snapshot = Snapshot.read(folder)
    past = history(snapshot.past, snapshot.step).before(run.records)
    found = growth(past)
    notes = [] if snapshot.exact else ["the state before the step was come by through running the last steps again"]
    try:
        config = from_hydra(read_config(directory))
    except GradstabError as error:
        problem = Replay(False, False, None, str(error).splitlines()[0])
        caught, seen, planned = Catch(reason="unknown: the configuration cannot be read"), problem, 0
    else:
        planned = config.total_steps
        with as_recorded(run.record):
            seen = replay(config, snapshot, folder)
            caught = catch(config, snapshot, past, found, prove=prove, try_out=not seen.problem)
    return Explanation(
        directory=directory,
        headline=table.headline(run),
        status=status_of(directory),
        clip=run.settings.get("clip", "none"),
        constraint=run.settings.get("constraint", "none"),
        planned=planned,
        snapshot=snapshot,
        past=past,
        growth=found,
        catch=caught,
        replay=seen,
        notes=notes,
    )


def _nothing_to_tell(run: Run) -> str:
    """Why there is no story; raises :class:`GradstabError` where there should be one, or where nothing tells."""
    read_run(run.directory)
    status = status_of(run.directory)
    problem = run.record.get("forensics_problem")
    if status == "diverged":
        why = str(problem).splitlines()[0] if problem else f"it holds no {FOLDER}/{SNAPSHOT_FILE}"
        if "watched" in run.record:
            why = "a watched loop keeps none"
        raise GradstabError(f"{run.directory}: diverged, but there is no snapshot to explain it from ({why})")
    steps = run.number("steps")
    after = "" if steps is None or not math.isfinite(steps) else f" after {counted(int(steps))}"
    so_far = " so far" if status in ("running", "interrupted") else ""
    stood = f"{run.directory}: {status}{after}"
    penalty = run.records.scalars.get("train/penalty")
    if penalty is not None and not np.isfinite(penalty.values).all():
        first = int(penalty.steps[~np.isfinite(penalty.values)][0])
        followed = f"every value that updates follow was finite{so_far}, so nothing broke"
        return f"{stood}; {followed}: the penalty was not, first at step {first:,}, but its gradient was"
    return f"{stood}; every value that is looked at was finite{so_far}, so there is nothing to explain"
