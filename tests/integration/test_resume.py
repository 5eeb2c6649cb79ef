"""Runs that were stopped go on as if they had not been: same weights, same records, same run.json, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gradstab import checkpoint, examination, run_directory, training
from gradstab.config import GROUPS, OPTIONS, to_container
from gradstab.errors import ConfigError, GradstabError, Interrupted
from gradstab.events import read_events, read_records
from gradstab.report.history import Pictures
from gradstab.run_directory import identity, read_run, status_of, write_run
from gradstab.runner import run
from tests.conftest import Compose, Here
from tests.integration import killing

ROOT = Path(__file__).parents[2]

STEPS = 12
SMALL = ("model.depth=3", "model.width=8", "batch_size=200")
UNSEEN = ("quiet=true", "device=cpu", "images_after=null")
COMMON = (*UNSEEN, f"steps={STEPS}", "eval_every=5", f"checkpoint.every={STEPS}")
DOWNLOADED = ("mnist", "fashion_mnist", "cifar10")
# Groups that only decide what is done with a run, not what it is.
BESIDE = ("checkpoint",)
RESUMED = [(g, n) for g in GROUPS if g not in BESIDE for n in OPTIONS[g] if n not in DOWNLOADED]
EXTRA = {
    ("init", "fixup"): ("model.residual=add",),
    ("init", "lsuv"): ("model.norm=batch",),
    ("schedule", "step"): ("schedule.step_size=4",),
    ("schedule", "warmup_cosine"): ("schedule.warmup_steps=9",),
    ("schedule", "plateau"): ("schedule.patience=1", "eval_every=1", "optimizer.lr=0.3"),
    ("clip", "norm"): ("clip.max_norm=0.1",),
    ("clip", "percentile"): ("clip.window=5", "clip.percentile=50"),
    ("clip", "zclip"): ("clip.warmup_steps=4", "clip.z=0.5"),
    ("measure", "full"): ("measure.every=2",),
}
CROSSES = [
    ("model.norm=batch", "model.dropout=0.3"),
    ("model.norm=layer", "model.dropout=0.5", "model.residual=rezero"),
    ("model=lenet5", "model.norm=batch", "model.dropout=0.2", "clip=percentile", "clip.window=3"),
    ("constraint=spectral_norm", "model.dropout=0.1", "optimizer=adam", "penalty=l2"),
    ("constraint=spectral_norm", "measure=full", "measure.every=1", "optimizer=muon"),
    ("constraint=weight_norm", "optimizer=muon", "penalty=l1", "schedule=cosine"),
    ("constraint=max_norm", "constraint.bound=0.5", "optimizer=adamw", "schedule=exponential"),
    ("optimizer=coordinate_descent", "optimizer.order=random", "model.dropout=0.2"),
    ("optimizer=coordinate_descent", "optimizer.order=cyclic", "optimizer.block=coordinate"),
    ("precision=bfloat16", "optimizer=adam", "clip=zclip", "clip.warmup_steps=2"),
    ("precision=float64", "optimizer=rmsprop", "schedule=plateau", "schedule.patience=1"),
    ("batch_size=full", "optimizer=adagrad", "model.dropout=0.1"),
    ("loss=mse", "act=prelu", "model.residual=scaled"),
    ("measure=none", "model.dropout=0.2", "clip=norm"),
    ("experiment=exploding_init", "init.gain=1e6", "on_divergence=skip"),
    ("experiment=linear_regression", f"steps={STEPS}", "model.depth=2", "model.width=4"),
    ("stop_on=[vanishing,not_learning]", "act=sigmoid", "model.depth=8", "measure=full", "measure.every=2"),
    ("target_loss=1e-9", "model.dropout=0.1", "data=gaussian"),
    ("images_after=4", "clip=value", "model.dropout=0.2"),
]

Stopped = Callable[..., None]


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stopped]:
    """Do something that has a signal come while step ``at`` is made; the run is to end in order."""
    original = training.train_step

    def call(at: int, go: Callable[[], Any], number: int = signal.SIGINT) -> None:
        def with_signal(parts: Any, step: int, *rest: Any) -> Any:
            if step == at:
                os.kill(os.getpid(), number)
            return original(parts, step, *rest)

        monkeypatch.setattr(training, "train_step", with_signal)
        with pytest.raises(Interrupted) as caught:
            go()
        monkeypatch.setattr(training, "train_step", original)
        assert caught.value.signal == number

    yield call
    assert training.train_step is original


def records_of(directory: Path) -> list[tuple[int, Any]]:
    """Everything in a run's one event file but the times."""
    (path,) = directory.glob("events*")
    found = []
    for event in read_events(path):
        for value in event.summary.value:
            if not value.tag.startswith("_hparams_/"):
                found.append((event.step, value.SerializeToString(deterministic=True)))
    return found


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """Equal bit for bit, through all containers; NaN equals itself."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}/{i}")
    elif isinstance(one, Tensor):
        assert one.dtype == other.dtype, where
        assert one.shape == other.shape, where
        # As bytes, in which NaN equals itself.
        assert torch.equal(*(values.contiguous().reshape(-1).view(torch.uint8) for values in (one, other))), where
    else:
        assert one == other or (one != one and other != other), f"{where}: {one} != {other}"


def final_state(directory: Path) -> dict[str, Any]:
    """A run's last checkpoint, but for what differs between any two runs."""
    newest = next(iter(checkpoint.kept(directory)))
    state = checkpoint.read(newest, read_run(directory)["identity"])
    return {key: value for key, value in state.items() if key not in ("seconds", "events")} | {
        "position": state["events"]["position"]
    }


def assert_same_run(one: Path, other: Path, *, states: bool = True) -> None:
    """Two directories hold the same run."""
    first, second = (read_run(directory) for directory in (one, other))
    volatile = ("seconds", "started", "pid", "resumed")
    assert_same(*({k: v for k, v in r.items() if k not in volatile} for r in (first, second)))
    assert records_of(one) == records_of(other)
    if states:
        assert_same(final_state(one), final_state(other))
    steps = read_records(other).scalars["train/loss"].steps
    assert steps.tolist() == list(range(len(steps)))


def test_every_option_is_resumed() -> None:
    assert len(RESUMED) == 79 - len(DOWNLOADED) - 1
    assert {group for group, _ in RESUMED} == set(GROUPS) - set(BESIDE)
    assert EXTRA.keys() <= set(RESUMED)


@pytest.mark.parametrize("overrides", [
    *((f"{g}={n}", *EXTRA.get((g, n), ())) for g, n in RESUMED),
    *CROSSES,
], ids=" ".join)  # fmt: skip
def test_a_run_goes_on_bit_for_bit(
    configure: Compose, tmp_path: Path, stopped: Stopped, overrides: tuple[str, ...]
) -> None:
    texts = " ".join(overrides)
    whole = not any(text in texts for text in ("model=", "experiment="))
    size = SMALL if whole and "data=line" not in texts and "batch_size=" not in texts else SMALL[: 2 * whole]
    # With dropout, every stream of random numbers is in use.
    dropout = ("model.dropout=0.1",) if whole else ()
    config = configure(*size, *dropout, *COMMON, *overrides)
    run(config, tmp_path / "whole")
    done = read_run(tmp_path / "whole")["steps"] + read_run(tmp_path / "whole")["skipped_steps"]
    at = sum(map(ord, texts)) % max(done - 1, 1)
    stopped(at, lambda: run(config, tmp_path / "parts"))
    assert status_of(tmp_path / "parts") == "interrupted"
    assert [path.name for path in checkpoint.kept(tmp_path / "parts")] == [f"step_{at + 1:08d}.pt"]
    torch.rand(13)
    record = run(config, tmp_path / "parts", restart=True)
    assert [entry["step"] for entry in record["resumed"]] == [at + 1]
    completed = record["status"] == "completed"
    assert_same_run(tmp_path / "whole", tmp_path / "parts", states=completed)
    assert completed or "experiment=exploding" in texts


@pytest.mark.slow
def test_thirty_kills_lose_nothing(tmp_path: Path) -> None:
    """SIGKILL at any moment: what is left can be read, and the run goes on to the end of one that was left in peace."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.integration.killing", str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert said.returncode == 0, said.stderr
    found = json.loads(said.stdout)
    assert len(found["killed"]) == killing.KILLS
    assert len(found["finished"]) >= 5
    resumptions = 0
    for name in found["finished"]:
        assert_same_run(tmp_path / "whole", tmp_path / name)
        resumptions += len(read_run(tmp_path / name).get("resumed", ()))
        assert not list((tmp_path / name / "checkpoints").glob(".*"))
    assert resumptions >= 5


TINY = (*UNSEEN, "model.depth=2", "model.width=6", "batch_size=300")


@pytest.mark.parametrize("function", ["evaluate", "verdict", "finish", "write_run"])
def test_a_signal_during_anything_but_a_step_loses_nothing(
    configure: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    pictures = "images_after=100" if function == "finish" else "images_after=null"
    config = configure(*TINY, "steps=8", "eval_every=4", "checkpoint.every=8", pictures)
    run(config, tmp_path / "whole")
    owner: Any = {
        "evaluate": training,
        "verdict": examination.Examination,
        "finish": Pictures,
        "write_run": run_directory,
    }[function]
    original = getattr(owner, function)
    calls = []

    def with_signal(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        # The first run.json is written before the first step.
        if len(calls) == (2 if function in ("evaluate", "write_run") else 1):
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, function, with_signal)
        with pytest.raises(Interrupted) as caught:
            run(config, tmp_path / "parts")
    assert caught.value.signal == signal.SIGTERM
    if function == "write_run":
        # It had come to its end.
        assert read_run(tmp_path / "parts")["status"] == "completed"
    else:
        assert read_run(tmp_path / "parts")["status"] == "interrupted"
        run(config, tmp_path / "parts", restart=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_verdict_stops_a_resumed_run_where_it_would_have_stopped_it(
    configure: Compose, tmp_path: Path, stopped: Stopped
) -> None:
    config = configure(
        *("quiet=true", "device=cpu", "images_after=null", "act=sigmoid", "model.depth=10", "model.width=8"),
        *("batch_size=100", "steps=400", "eval_every=400", "measure=full", "measure.every=50", "stop_on=vanishing"),
        "checkpoint.every=400",
    )
    whole = run(config, tmp_path / "whole")
    assert whole["status"] == "completed"
    assert whole["steps"] < 400
    assert "stop_on=vanishing" in whole["reason"]
    stopped(whole["steps"] - 20, lambda: run(config, tmp_path / "parts"))
    run(config, tmp_path / "parts", restart=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def _damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    match how:
        case "cut off":
            path.write_bytes(content[: len(content) // 2])
        case "empty":
            path.write_bytes(b"")
        case "no checkpoint":
            path.write_text("hello")
        case "a flipped bit":
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        case "another run":
            checkpoint.write(path, "0" * 64, torch.load(path, weights_only=True))
        case "another format":
            torch.save(torch.load(path, weights_only=True) | {"format": 99}, path)
        case "code":
            torch.save({"format": checkpoint.FORMAT, "run me": _Bomb()}, path)
        case "a folder":
            path.unlink()
            path.mkdir()


class _Bomb:
    """What a stranger may hide in a file: to load it is to run it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("exploded"),)


DAMAGES = ("cut off", "empty", "no checkpoint", "a flipped bit", "another run", "another format", "code", "a folder")


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(
    configure: Compose,
    tmp_path: Path,
    stopped: Stopped,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    how: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    config = configure(*TINY, "steps=12", "eval_every=5", "checkpoint.every=3")
    run(config, tmp_path / "whole")
    stopped(7, lambda: run(config, tmp_path / "parts"))
    newest, before = checkpoint.kept(tmp_path / "parts")
    assert (newest.name, before.name) == ("step_00000008.pt", "step_00000006.pt")
    _damage(newest, how)
    capsys.readouterr()
    record = run(config, tmp_path / "parts", resume=True)
    assert [entry["step"] for entry in record["resumed"]] == [6]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (how != "a folder")
    assert all(str(newest) in line and "passed over" in line for line in lines)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert not Path("exploded").exists()


def test_records_beyond_the_checkpoint_are_cut_off(configure: Compose, tmp_path: Path, stopped: Stopped) -> None:
    """What a process wrote after the checkpoint is gone as soon as another goes on from there."""
    config = configure(*TINY, "steps=12", "checkpoint.every=3", "checkpoint.keep=9")
    stopped(9, lambda: run(config, tmp_path / "run"))
    assert read_records(tmp_path / "run").scalars["train/loss"].steps.tolist() == list(range(10))
    for step in (9, 10):
        checkpoint.path_of(tmp_path / "run", step).unlink()
    stopped(6, lambda: run(config, tmp_path / "run", restart=True))
    assert read_records(tmp_path / "run").scalars["train/loss"].steps.tolist() == list(range(7))


def test_without_a_good_checkpoint_a_run_is_not_thrown_away_unasked(
    configure: Compose, tmp_path: Path, stopped: Stopped
) -> None:
    config = configure(*TINY, "steps=12", "checkpoint.every=3")
    run(config, tmp_path / "whole")
    stopped(7, lambda: run(config, tmp_path / "parts"))
    for path in checkpoint.kept(tmp_path / "parts"):
        _damage(path, "cut off")
    before = sorted((p.name, p.stat().st_size) for p in (tmp_path / "parts").rglob("*"))
    with pytest.raises(GradstabError, match="none of its 2 checkpoints can be used"):
        run(config, tmp_path / "parts", resume=True)
    assert sorted((p.name, p.stat().st_size) for p in (tmp_path / "parts").rglob("*")) == before
    # A sweep asks for its cells to be completed, whatever that takes.
    record = run(config, tmp_path / "parts", restart=True)
    assert "resumed" not in record
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("lost", ["gone", "cut off"])
def test_a_checkpoint_is_no_use_without_its_records(
    configure: Compose, tmp_path: Path, stopped: Stopped, lost: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configure(*TINY, "steps=12", "checkpoint.every=5")
    stopped(7, lambda: run(config, tmp_path / "parts"))
    (events,) = (tmp_path / "parts").glob("events*")
    newest = checkpoint.read(next(iter(checkpoint.kept(tmp_path / "parts"))), read_run(tmp_path / "parts")["identity"])
    if lost == "gone":
        events.unlink()
        with pytest.raises(GradstabError, match="none of its 2"):
            run(config, tmp_path / "parts", resume=True)
        return
    with events.open("r+b") as file:
        file.truncate(newest["events"]["position"] - 1)
    assert [entry["step"] for entry in run(config, tmp_path / "parts", resume=True)["resumed"]] == [5]
    assert "cut off or damaged" in capsys.readouterr().err


def test_a_state_that_does_not_fit_changes_nothing(configure: Compose, tmp_path: Path, stopped: Stopped) -> None:
    config = configure(*TINY, "steps=12")
    stopped(7, lambda: run(config, tmp_path / "run"))
    (path,) = checkpoint.kept(tmp_path / "run")
    (events,) = (tmp_path / "run").glob("events*")
    size = events.stat().st_size
    good = torch.load(path, weights_only=True)
    for change in (
        {"parts": good["parts"] | {"model": {}}},
        {"judge": {"_losses": {"is": "os:system", "attributes": {}}}},
        {"judge": {"unheard_of": 1}},
        {"stream": 3},
        {"progress": good["progress"] | {"done": -5}},
        {"keeper": {"ring": [1]}},
        {"progress": good["progress"] | {"outcome": {"is": "gradstab.runner:run", "attributes": {}}}},
    ):
        checkpoint.write(path, good["identity"], good | change)
        with pytest.raises(GradstabError, match="the checkpoint does not fit this run"):
            run(config, tmp_path / "run", resume=True)
        assert events.stat().st_size == size
        assert status_of(tmp_path / "run") == "failed"
    checkpoint.write(path, good["identity"], good)
    assert run(config, tmp_path / "run", resume=True)["status"] == "completed"
    assert not (tmp_path / "run" / "failure.txt").exists()


def test_the_last_and_the_best_are_kept(configure: Compose, tmp_path: Path) -> None:
    config = configure(*TINY, "steps=30", "eval_every=3", "checkpoint.every=4", "checkpoint.keep=3", "optimizer.lr=0.3")
    record = run(config, tmp_path / "run")
    assert [path.name for path in checkpoint.kept(tmp_path / "run")] == [f"step_{n:08d}.pt" for n in (30, 28, 24)]
    best = checkpoint.read(tmp_path / "run" / "checkpoints" / "best.pt", record["identity"])
    accuracy = read_records(tmp_path / "run").scalars["test/accuracy"]
    assert best["test_accuracy"] == record["best_test_accuracy"] == pytest.approx(accuracy.values.max())
    assert best["step"] == accuracy.steps[accuracy.values.argmax()]
    early = configure(*TINY, f"steps={best['step']}", "eval_every=3", "checkpoint.every=1", "optimizer.lr=0.3")
    run(early, tmp_path / "early")
    assert_same(best["model"], dict(final_state(tmp_path / "early")["parts"]["model"]))
    without = run(configure(*TINY, "steps=6", "checkpoint.every=2", "checkpoint.best=false"), tmp_path / "without")
    assert without["status"] == "completed"
    assert not (tmp_path / "without" / "checkpoints" / "best.pt").exists()
    line = configure("experiment=linear_regression", "steps=9", "eval_every=2", "checkpoint.every=5", *UNSEEN)
    lowest = checkpoint.read(tmp_path / "line" / "checkpoints" / "best.pt", run(line, tmp_path / "line")["identity"])
    losses = read_records(tmp_path / "line").scalars["test/loss"]
    assert lowest["step"] == losses.steps[losses.values.argmin()]
    assert lowest["test_accuracy"] is None


def test_the_best_is_kept_of_a_run_that_diverged(configure: Compose, tmp_path: Path) -> None:
    words = (*TINY, "steps=60", "eval_every=2", "checkpoint.every=50", "act=identity", "optimizer=sgd")
    schedule = ("optimizer.lr=10", "schedule=warmup_cosine", "schedule.warmup_steps=55")
    record = run(configure(*words, *schedule), tmp_path / "run")
    assert record["status"] == "diverged"
    assert 2 < record["steps"] < 50
    best = checkpoint.read(tmp_path / "run" / "checkpoints" / "best.pt", record["identity"])
    assert best["test_accuracy"] == record["best_test_accuracy"]


def test_checkpoints_that_lead_nowhere_are_no_reason_to_start_anew(
    configure: Compose, tmp_path: Path, stopped: Stopped
) -> None:
    config = configure(*TINY, "steps=12")
    stopped(7, lambda: run(config, tmp_path / "run"))
    folder = tmp_path / "run" / "checkpoints"
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "nowhere")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.*") if path.is_file()}
    with pytest.raises(GradstabError, match="checkpoints: is no folder, or a link to none"):
        run(config, tmp_path / "run", resume=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.*") if path.is_file()} == before
    folder.unlink()
    folder.symlink_to(tmp_path / "elsewhere")
    assert run(config, tmp_path / "run", resume=True)["resumed"]


def test_checkpoints_come_by_the_clock_and_short_runs_write_none(configure: Compose, tmp_path: Path) -> None:
    run(configure(*TINY, "steps=40"), tmp_path / "default")
    assert not (tmp_path / "default" / "checkpoints").exists()
    run(configure(*TINY, "steps=40", "checkpoint.every=0.00001min"), tmp_path / "often")
    assert next(iter(checkpoint.kept(tmp_path / "often")))
    assert len(checkpoint.kept(tmp_path / "often")) == 2
    run(configure(*TINY, "steps=40", "checkpoint.every=1min"), tmp_path / "minute")
    assert not (tmp_path / "minute" / "checkpoints").exists()


@pytest.mark.parametrize("value", ["0", "-3", "1.5", "5m", "0min", "-1min", "soon", "true", "[1,2]", "1e400min"])
def test_what_every_may_be_is_said(configure: Compose, value: str) -> None:
    with pytest.raises(
        ConfigError, match=r"checkpoint\.every=.*a number of steps, such as 500, a time such as 30s, 10min or 2h"
    ):
        configure(f"checkpoint.every={value}")


@pytest.mark.parametrize(("value", "seconds"), [("30s", 30), ("1.5min", 90), ("2h", 7200), ("'2 h'", 7200)])
def test_a_time_is_in_seconds_minutes_or_hours(configure: Compose, value: str, seconds: float) -> None:
    checkpointing = configure(f"checkpoint.every={value}").checkpoint
    assert (checkpointing.seconds, checkpointing.steps) == (seconds, None)


def test_checkpoints_beyond_the_end_are_no_checkpoints(configure: Compose) -> None:
    with pytest.raises(ConfigError, match=r"checkpoint\.every=41: none would be written in 40 steps"):
        configure("steps=40", "checkpoint.every=41")


def test_who_is_at_work_in_a_directory_keeps_others_out(configure: Compose, tmp_path: Path, stopped: Stopped) -> None:
    config = configure(*TINY, "steps=12")
    stopped(3, lambda: run(config, tmp_path / "run"))
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        write_run(tmp_path / "run", read_run(tmp_path / "run") | {"status": "running"})
        assert status_of(tmp_path / "run") == "running"
        for keywords in ({}, {"restart": True}, {"resume": True}):
            with pytest.raises(ConfigError, match="another process is at work there"):
                run(config, tmp_path / "run", **keywords)
    finally:
        holder.kill()
        holder.communicate()
    # Dead, it holds nothing.
    assert status_of(tmp_path / "run") == "interrupted"
    with pytest.raises(ConfigError, match=r"holds a run already \(interrupted\); gradstab train --resume "):
        run(config, tmp_path / "run")
    with pytest.raises(ConfigError, match="holds a run of another configuration"):
        run(configure(*TINY, "steps=13"), tmp_path / "run", restart=True)
    assert run(config, tmp_path / "run", restart=True)["resumed"][0]["step"] == 4
    for keywords in ({}, {"restart": True}):
        with pytest.raises(ConfigError, match=r"holds a run already \(completed\); choose another, or remove it"):
            run(config, tmp_path / "run", **keywords)


HOLD = """
import sys
from pathlib import Path
from gradstab.claims import claimed
with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_without_checkpoints_starts_anew(
    configure: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: Stopped
) -> None:
    config = configure(*TINY, "steps=12", "checkpoint.every=12")
    run(config, tmp_path / "whole")
    stopped(5, lambda: run(config, tmp_path / "parts"))
    shutil.rmtree(tmp_path / "parts" / "checkpoints")
    (tmp_path / "parts" / "notes.txt").write_text("mine")
    # As a job that Slurm starts again after a node has failed.
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    with pytest.raises(ConfigError, match="--resume"):
        run(config, tmp_path / "parts")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    run(config, tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert (tmp_path / "parts" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "first", "again"), [("SLURM_RESTART_COUNT", "0", "1"), ("LSB_RESTART", "N", "Y"), ("RESTARTED", "0", "1")]
)
def test_a_requeued_job_goes_on(
    configure: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stopped: Stopped,
    name: str,
    first: str,
    again: str,
) -> None:
    config = configure(*TINY, "steps=12")
    monkeypatch.setenv(name, first)
    stopped(5, lambda: run(config, tmp_path / "run"), signal.SIGTERM)
    with pytest.raises(ConfigError, match="--resume"):
        run(config, tmp_path / "run")
    monkeypatch.setenv(name, again)
    assert [entry["step"] for entry in run(config, tmp_path / "run")["resumed"]] == [6]


def test_an_interrupted_run_has_a_verdict_with_remedies_until_it_goes_on(
    configure: Compose, tmp_path: Path, stopped: Stopped
) -> None:
    config = configure(*TINY, "steps=12", "model.depth=12", "act=sigmoid", "init=xavier_normal")
    stopped(5, lambda: run(config, tmp_path / "run"))
    record = read_run(tmp_path / "run")
    assert "vanishing" in record["verdict"]["labels"]
    assert ["init=critical"] in [remedy["overrides"] for remedy in record["verdict"]["remedies"]]
    assert run(config, tmp_path / "run", restart=True)["verdict"]["step"] == 11


def test_a_run_may_be_stopped_many_times(configure: Compose, tmp_path: Path, stopped: Stopped) -> None:
    config = configure(*TINY, "steps=12", "model.dropout=0.2", "checkpoint.every=12", "eval_every=4")
    run(config, tmp_path / "whole")
    stopped(0, lambda: run(config, tmp_path / "parts"))
    for at in (2, 3, 10):
        stopped(at, lambda: run(config, tmp_path / "parts", restart=True))
    record = run(config, tmp_path / "parts", restart=True)
    assert [entry["step"] for entry in record["resumed"]] == [1, 3, 4, 11]
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert record["seconds"] > 0


def test_a_disk_that_takes_no_checkpoint_still_lets_a_run_end_in_order(
    configure: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: Stopped
) -> None:
    def full(*_args: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write", full)
        stopped(5, lambda: run(configure(*TINY, "steps=12"), tmp_path / "run"))
        assert read_run(tmp_path / "run")["status"] == "interrupted"
        with pytest.raises(GradstabError, match="No space left"):
            run(configure(*TINY, "steps=12", "checkpoint.every=5"), tmp_path / "periodic")
        assert read_run(tmp_path / "periodic")["status"] == "failed"


def test_what_changed_around_a_run_is_recorded(
    configure: Compose, tmp_path: Path, stopped: Stopped, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configure(*TINY, "steps=12")
    stopped(5, lambda: run(config, tmp_path / "run"))
    record = read_run(tmp_path / "run")
    record["versions"]["torch"] = "1.0"
    write_run(tmp_path / "run", record | {"threads": 64})
    (entry,) = run(config, tmp_path / "run", resume=True)["resumed"]
    assert entry["changed"] == {"torch": f"1.0 -> {torch.__version__.split('+')[0]}", "threads": "64 -> 1"}
    assert "may differ in the last digits" in capsys.readouterr().err


def test_the_command_goes_on_and_refuses_what_makes_no_sense(
    here: Here, configure: Compose, tmp_path: Path, stopped: Stopped
) -> None:
    config = configure(*TINY, "steps=12", "data=gaussian", "clip=norm", "optimizer.lr=1e-5", "model.width=[4,5]")
    stopped(5, lambda: run(config, tmp_path / "run"))
    for words, said in {
        ("--resume", "run", "steps=20"): "steps=20: a run goes on as it was configured",
        ("--resume", "run", "-m"): "-m: a run goes on as it was configured",
        ("--resume",): "--resume: needs a run's folder",
        ("--resume=",): "is no folder",
        ("--resume", "run", "--resume", "run"): "was given already",
        ("--resume", "nowhere"): "holds no run",
        ("--resume", "run", "checkpoint.every=-1"): "checkpoint.every=-1: must be",
        ("--resume", "run", "quiet=[1"): "cannot be read",
        ("--resume", "run", "checkpoint.every="): "checkpoint.every=: must be a number of steps",
        ("--resume", "run", "checkpoint.every=~"): "checkpoint.every=~: must be a number of steps",
    }.items():
        answer = here("train", *words)
        assert (answer.returncode, answer.stdout) == (2, "")
        assert said in answer.stderr
        assert answer.stderr.count("\n") == 1
    assert status_of(tmp_path / "run") == "interrupted"
    first = here("train", "--resume", "run", "quiet=false", "checkpoint.every=4")
    assert first.returncode == 0, first.stderr
    assert "completed after 12 steps" in first.stdout
    assert [path.name for path in checkpoint.kept(tmp_path / "run")] == ["step_00000012.pt", "step_00000008.pt"]
    again = here("train", "--resume=run")
    assert (again.returncode, again.stdout) == (0, "run: completed after 12 steps; there is nothing to resume\n")
    for word in ("checkpoint.keep=nan", "checkpoint.best=maybe", "quiet=2"):
        answer = here("train", "--resume=run", word)
        assert (answer.returncode, answer.stdout, answer.stderr.count("\n")) == (2, "", 1)
        assert answer.stderr.startswith(f"gradstab: {word}: must be")


def test_the_command_says_when_its_config_was_changed(
    here: Here, configure: Compose, tmp_path: Path, stopped: Stopped
) -> None:
    stopped(5, lambda: run(configure(*TINY, "steps=12"), tmp_path / "run"))
    path = tmp_path / "run" / "config.yaml"
    text = path.read_text()
    path.write_text(text.replace("seed: 0", "seed: 1"))
    assert "another configuration" in here("train", "--resume", "run").stderr
    for broken in ("", "- a", "{", "a: &a 1\nb: *a\n"):
        path.write_text(broken)
        answer = here("train", "--resume", "run")
        assert answer.returncode in (1, 2)
        assert "config.yaml" in answer.stderr
    path.write_text(text)
    assert here("train", "--resume", "run").returncode == 0


def test_identity_leaves_out_where_a_run_lies(configure: Compose) -> None:
    def of(*overrides: str) -> str:
        return identity(to_container(configure(*overrides)))

    assert of() == of("quiet=true") == of("out_dir=x") == of("checkpoint.every=7", "checkpoint.keep=9")
    assert len({of(), of("seed=1"), of("verdict.patience=9"), of("model.dropout=0.1")}) == 4


def test_tab_completes_what_can_be_resumed(
    here: Here, configure: Compose, tmp_path: Path, stopped: Stopped, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(*TINY, "steps=12")
    (tmp_path / "outputs" / "train").mkdir(parents=True)
    stopped(5, lambda: run(config, tmp_path / "outputs" / "train" / "left"))
    run(config, tmp_path / "outputs" / "train" / "done")
    for line, said in {
        "gradstab train --re": "--resume",
        "gradstab train --resume ": "outputs/train/left",
        "gradstab train --resume outputs/train/left checkpoint.": "checkpoint.every= checkpoint.keep= checkpoint.best=",
    }.items():
        monkeypatch.setenv("COMP_LINE", line)
        monkeypatch.setenv("COMP_POINT", str(len(line)))
        assert here("-sc", "query=bash").stdout == said + "\n"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_run_on_a_gpu_goes_on(configure: Compose, tmp_path: Path, stopped: Stopped) -> None:
    config = configure(
        *("quiet=true", "device=cuda", "images_after=null", "deterministic=true", "steps=20", "checkpoint.every=20"),
        *(*SMALL, "model.dropout=0.3", "model.norm=batch", "optimizer=adam", "clip=zclip", "clip.warmup_steps=4"),
    )
    run(config, tmp_path / "whole")
    stopped(8, lambda: run(config, tmp_path / "parts"))
    run(config, tmp_path / "parts", restart=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
