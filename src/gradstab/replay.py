"""Steps made once more: the one that broke, from its checkpoint, and a run's first steps under another clipping."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gradstab import checkpoint, reproducibility
from gradstab.assembly import build
from gradstab.batching import Batches
from gradstab.config import Config, from_hydra, to_container
from gradstab.errors import DataError, GradstabError
from gradstab.evaluation import evaluate
from gradstab.forensics.look import look_at, look_at_evaluation
from gradstab.forensics.snapshot import Look, Origin, Snapshot
from gradstab.forensics.story import same_origin, same_values
from gradstab.parts import Parts
from gradstab.run_directory import identity
from gradstab.training import train_step


@dataclass(frozen=True)
class Replay:
    """What the broken step was, made once more.

    ``confirmed`` is whether the same value was the first that was not finite, ``exact`` whether all others were the
    same bit for bit too. Both are False and ``problem`` says why where it could not be made again.
    """

    confirmed: bool
    exact: bool
    origin: Origin | None
    problem: str = ""


@dataclass(frozen=True)
class Trial:
    """The run from its start again, with the global gradient norm held to ``max_norm`` (None: as it was).

    ``steps`` were finite; ``finite`` is whether all were that were made, and the evaluation after the last.
    """

    max_norm: float | None
    steps: int
    finite: bool
    first_loss: float
    last_loss: float

    @property
    def calm(self) -> bool:
        """Whether it stayed finite, and its loss about as low as at the start at least."""
        return self.finite and self.last_loss <= 2 * self.first_loss


@contextmanager
def as_recorded(record: dict[str, Any]) -> Iterator[None]:
    """As many threads as the run had: sums that are split up in another way come out otherwise."""
    before, threads = torch.get_num_threads(), record.get("threads")
    if isinstance(threads, int) and not isinstance(threads, bool) and 0 < threads <= 1024:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def replay(config: Config, snapshot: Snapshot, folder: Path) -> Replay:
    """Make the broken step once more from its checkpoint, on the device it broke on."""
    if snapshot.checkpoint is None:
        return Replay(False, False, None, "no checkpoint was kept")
    path = folder / snapshot.checkpoint
    if path.exists() and not path.is_file():
        return Replay(False, False, None, f"{path}: is no file")
    try:
        state = checkpoint.read(path, identity(to_container(config)))
        parts = _built(replace(config, device=snapshot.device))
        _restore(parts, state, path)
        look, origin = _once_more(parts, snapshot)
    except GradstabError as error:
        return Replay(False, False, None, str(error).splitlines()[0])
    confirmed = same_origin(origin, snapshot.origin) and origin.kind != "unseen"
    return Replay(confirmed, confirmed and _same(look, snapshot), origin)


def _built(config: Config) -> Parts:
    """What a run is made of, from data that is there: telling of a run downloads nothing and writes nothing."""
    data: Any = config.data
    if "download" not in data.knobs:
        return build(config)
    try:
        return build(replace(config, data=replace(data, download=False)))
    except DataError as error:
        if "is not there" not in str(error):
            raise
        folder = Path(data.root).expanduser()
        relative = "" if folder.is_absolute() else "is relative to the current folder, and "
        missing = f"there is no {data.name} in {folder.resolve()}; nothing is downloaded to explain a run"
        raise DataError(f"data.root={data.root}: {relative}{missing}") from error


def _restore(parts: Parts, state: Mapping[str, Any], path: Path) -> None:
    try:
        parts.load_state_dict(state["parts"])
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise GradstabError(f"{path}: does not fit the network ({type(error).__name__})") from error


def _once_more(parts: Parts, snapshot: Snapshot) -> tuple[Look, Origin]:
    if snapshot.quantity == "test loss":
        loss, _ = evaluate(parts.model, parts.data.test, parts.loss, parts.data.is_classification)
        return look_at_evaluation(parts, loss)
    data = parts.data.train
    if not snapshot.batch or max(snapshot.batch) >= len(data):
        raise GradstabError(f"the batch's indices are not those of a training split of {len(data):,} samples")
    indices = torch.tensor(snapshot.batch, device=data.inputs.device)
    parts.model.train()
    return look_at(parts, data.inputs[indices], data.targets[indices])


def _same(look: Look, snapshot: Snapshot) -> bool:
    """Whether every value is what it was, those of the step itself included."""
    then, past = snapshot.look, snapshot.past
    same = all(
        same_values(one, other)
        for one, other in (
            ([look.loss], [then.loss]),
            (look.weight, then.weight),
            (look.activation, then.activation),
            (look.signal, then.signal),
            (look.grad_norm, then.grad_norm),
        )
    )
    if snapshot.quantity == "test loss":
        return same
    same = same and same_values([look.loss], past.loss[-1:])
    has_norms = bool(look.grad_norm) and bool(past.layer_grad_norm)
    return same and (not has_norms or same_values(look.grad_norm, past.layer_grad_norm[-1]))


def clipped_at(config: Config, max_norm: float) -> Config:
    """The same run with clip=norm; raises :class:`ConfigError` where that cannot be."""
    return from_hydra(to_container(config) | {"clip": {"name": "norm", "max_norm": max_norm}})


def rerun(config: Config, max_norm: float | None, steps: int, seconds: float = math.inf, at_least: int = 0) -> Trial:
    """Train from the start for ``steps`` of the configured steps, or until one is not finite; nothing is recorded.

    After ``seconds`` it ends early, though not before ``at_least`` steps.
    """
    started = time.perf_counter()
    parts = _built(config if max_norm is None else clipped_at(config, max_norm))
    parts.check_every_step = True
    torch.manual_seed(reproducibility.stream_seed(config.seed, "dropout"))
    stream = Batches(parts.data.train, config.batch, reproducibility.generator(config.seed, "order"))
    parts.model.train()
    losses = [math.nan, math.nan]
    for step in range(steps):
        inputs, targets, _ = next(stream)
        record = train_step(parts, step, inputs, targets, measure_all=False)
        if not record.updated:
            return Trial(max_norm, step, False, *losses)
        losses[1] = float(record.loss)
        losses[0] = losses[1] if step == 0 else losses[0]
        _move_schedule(config, parts, step + 1)
        if step + 1 >= at_least and time.perf_counter() - started > seconds:
            break
    return Trial(max_norm, step + 1, math.isfinite(_test_loss(parts)), *losses)


def _move_schedule(config: Config, parts: Parts, done: int) -> None:
    if parts.schedule is None:
        return
    parts.schedule.after_step()
    # Only this one asks for evaluations.
    if config.schedule.name == "plateau" and (done % config.eval_every == 0 or done == config.total_steps):
        parts.schedule.after_evaluation(_test_loss(parts))


def _test_loss(parts: Parts) -> float:
    return evaluate(parts.model, parts.data.test, parts.loss, parts.data.is_classification)[0]
