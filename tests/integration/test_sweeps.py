"""Sweeps on the command line, in this process: the ledger, resuming, failures, the result."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn

import gradstab.runner
from gradstab.claims import claimed
from gradstab.cli.sweep import _returned
from gradstab.config import from_hydra, to_container
from gradstab.errors import GradstabError, Interrupted
from gradstab.launchers import Done, Task, Work
from gradstab.launchers.serial import SerialLauncher
from gradstab.sweeps.ledger import Entry, Ledger
from gradstab.sweeps.naming import key_of
from gradstab.sweeps.results import Row
from tests.conftest import Compose, Here

TINY = (
    *("model.depth=1", "model.width=4", "steps=2", "batch_size=32", "device=cpu"),
    *("images_after=null", "measure=none", "checkpoint.every=null"),
)


def statuses(folder: Path) -> dict[str, str]:
    """What the ledger says last, by the cells' swept fields."""
    entries, damaged = Ledger(folder).read()
    assert damaged == []
    return {",".join(f"{k}={v}" for k, v in e.swept.items()): e.status for e in entries.values()}


def table(folder: Path, name: str = "results.csv") -> list[dict[str, str]]:
    with (folder / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], bool]], None]:
    """Make those runs fail, while they build their parts, whose configuration is one of these."""
    real = gradstab.runner.build

    def install(broken: Callable[[Any], bool]) -> None:
        def build(config: Any, *args: Any, **kwargs: Any) -> Any:
            if broken(config):
                raise RuntimeError(f"seed {config.seed} caught fire\nand burnt down")
            return real(config, *args, **kwargs)

        monkeypatch.setattr(gradstab.runner, "build", build)

    return install


def test_the_same_command_finds_its_folder_and_runs_nothing_twice(here: Here, tmp_path: Path, runs: list[Any]) -> None:
    first = here("train", "-m", *TINY, "act=relu,tanh", "seed=1,2")
    assert (first.returncode, first.stderr) == (0, "")
    assert len(runs) == 4
    (folder,) = (tmp_path / "outputs" / "sweeps").iterdir()
    assert folder.name.startswith("act=relu,tanh_seed=1,2_")
    names = sorted(path.name for path in folder.glob("*/"))
    assert [name.rpartition("_")[0] for name in names] == [
        "000_act=relu,seed=1",
        "001_act=relu,seed=2",
        "002_act=tanh,seed=1",
        "003_act=tanh,seed=2",
    ]
    assert set(statuses(folder).values()) == {"completed"}
    # In another order, and more or less loudly, it is the same command.
    again = here("-m", "train", "seed=1,2", "act=relu,tanh", *TINY, "quiet=true")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert len(runs) == 4
    assert [folder] == list((tmp_path / "outputs" / "sweeps").iterdir())


def test_a_changed_configuration_is_another_cell(here: Here, tmp_path: Path, runs: list[Any]) -> None:
    here("train", "-m", *TINY, "act=relu,tanh", "out_dir=s")
    assert here("train", "-m", *TINY, "act=relu,tanh", "steps=3", "out_dir=s").returncode == 0
    assert len(runs) == 4
    rows = table(tmp_path / "s")
    assert [(row["number"], row["act"], row["steps"]) for row in rows] == [
        *(("0", "relu", "2"), ("1", "tanh", "2"), ("2", "relu", "3"), ("3", "tanh", "3")),
    ]
    head = (tmp_path / "s" / "results.csv").read_text().splitlines()[0].split(",")
    assert len(set(head)) == len(head)
    assert [row["steps_done"] for row in rows] == ["2", "2", "3", "3"]
    # And one that was swept before is the same one, in its directory.
    done = here("train", "-m", *TINY, "act=elu,tanh", "out_dir=s")
    assert len(runs) == 5
    assert "1 of them done before" in done.stdout
    assert len(list((tmp_path / "s").glob("*/run.json"))) == 5


def test_what_is_no_part_of_a_run_makes_no_other_cell(here: Here, runs: list[Any]) -> None:
    here("train", "-m", *TINY, "act=relu,tanh", "out_dir=s")
    words = ("checkpoint.every=1", "quiet=true", "objective=train_loss", "hydra/launcher=serial")
    assert here("train", "-m", *TINY[:-1], "act=relu,tanh", "out_dir=s", *words).returncode == 0
    assert len(runs) == 2


def test_settings_that_do_not_go_together_are_refused_before_any_cell_runs(
    here: Here, tmp_path: Path, runs: list[Any]
) -> None:
    done = here("train", "-m", *TINY, "schedule=cosine", "schedule.min_lr=0,0.5", "optimizer.lr=0.1", "out_dir=s")
    assert (done.returncode, runs, (tmp_path / "s").exists()) == (2, [], False)
    assert "schedule.min_lr=0.5: is above optimizer.lr=0.1; allowed: 0 to 0.1" in done.stderr


def test_equal_cells_run_once(here: Here, runs: list[Any]) -> None:
    done = here("train", "-m", *TINY, "optimizer.lr=0.1,1e-1", "out_dir=s")
    assert (done.returncode, len(runs)) == (0, 1)
    assert "sweep of 1 cell " in done.stdout


def test_a_knob_of_options_that_are_swept_need_not_be_the_default_options(
    here: Here, tmp_path: Path, runs: list[Any]
) -> None:
    words = ("optimizer=momentum,nesterov", "optimizer.momentum=0.5")
    done = here("train", "-m", *TINY, *words, "out_dir=s")
    assert (done.returncode, done.stderr) == (0, "")
    assert [(run.optimizer.name, run.optimizer.knobs["momentum"]) for run in runs] == [
        ("momentum", 0.5),
        ("nesterov", 0.5),
    ]
    # A knob that is the same in all cells is not among what differs, also where there is one cell.
    here("train", "-m", *TINY, "optimizer=momentum", *words[1:], "out_dir=one")
    assert statuses(tmp_path / "one") == {"": "completed"}
    # TINY's depth comes after the study's, and replaces it.
    here("train", "-m", *TINY, "experiment=activation_by_depth", "act=relu,tanh", "out_dir=study")
    assert statuses(tmp_path / "study") == dict.fromkeys(("act=relu", "act=tanh"), "completed")
    assert {run.model.knobs["depth"] for run in runs} == {1}


def test_the_ledger_and_the_directories(here: Here, tmp_path: Path, configure: Compose) -> None:
    here("train", "-m", *TINY, "act=relu,tanh", "out_dir=s")
    entries, _ = Ledger(tmp_path / "s").read()
    for key, entry in entries.items():
        config = configure(*TINY, f"act={entry.swept['act']}")
        assert key == key_of(to_container(config))
        assert entry.directory.endswith(f"_{key[:8]}")
        # What a worker is given is the same configuration.
        assert from_hydra(json.loads(json.dumps(entry.settings))) == from_hydra(to_container(config))
        record = json.loads((tmp_path / "s" / entry.directory / "run.json").read_text())
        assert record["status"] == "completed"
    lines = (tmp_path / "s" / "ledger.jsonl").read_text().splitlines()
    assert [json.loads(line)["status"] for line in lines] == ["pending"] * 2 + ["running", "completed"] * 2


def test_a_failure_stops_nothing_and_is_told_at_the_end(
    here: Here, tmp_path: Path, breaking: Callable[..., None], runs: list[Any]
) -> None:
    breaking(lambda config: config.seed in (1, 3))
    done = here("train", "-m", *TINY, "seed=0,1,2,3", "out_dir=s")
    assert done.returncode == 1
    became = ["completed", "failed", "completed", "failed"]
    assert statuses(tmp_path / "s") == {f"seed={seed}": status for seed, status in enumerate(became)}
    told = done.stderr.splitlines()
    assert len(told) == 2
    for line, seed in zip(told, (1, 3), strict=True):
        assert re.match(rf"gradstab: 00{seed}_seed={seed}_\w+: failed: .*seed {seed} caught fire \(see (\S+)\)$", line)
    logs = sorted((tmp_path / "s").glob("*_seed=1_*/log.txt"))
    assert "Traceback" in logs[0].read_text()
    assert "caught fire\nand burnt down" in logs[0].read_text()
    rows = table(tmp_path / "s")
    assert [row["status"] for row in rows] == became
    assert "seed 1 caught fire" in rows[1]["reason"]
    assert rows[1]["test_accuracy"] == ""
    # It stays a failure, and is not tried again unasked.
    again = here("train", "-m", *TINY, "seed=0,1,2,3", "out_dir=s")
    assert (again.returncode, again.stderr, len(runs)) == (1, done.stderr, 4)


def test_where_all_failed_there_is_one_column_for_accuracy(here: Here, breaking: Callable[..., None]) -> None:
    breaking(lambda _: True)
    done = here("train", "-m", *TINY, "seed=0,1", "out_dir=s")
    assert (done.stdout.count("accuracy"), done.stdout.count("test loss")) == (2, 0)


def test_retry(here: Here, tmp_path: Path, breaking: Callable[..., None], runs: list[Any]) -> None:
    breaking(lambda config: config.seed == 1)
    command = ("train", "-m", *TINY, "seed=0,1,2", "out_dir=s", "quiet=true")
    assert here(*command).returncode == 1
    breaking(lambda _config: False)
    done = here(*command, "sweep.retry=failed")
    assert (done.returncode, done.stderr) == (0, "")
    assert [config.seed for config in runs] == [0, 1, 2, 1]
    assert set(statuses(tmp_path / "s").values()) == {"completed"}
    assert len(list((tmp_path / "s").glob("*/"))) == 3


def test_retry_of_diverged_cells(here: Here, tmp_path: Path, runs: list[Any]) -> None:
    command = ("train", "-m", *TINY, "optimizer.lr=0.01,1e30", "steps=30", "out_dir=s", "quiet=true")
    assert here(*command).returncode == 0
    assert statuses(tmp_path / "s") == {"optimizer.lr=0.01": "completed", "optimizer.lr=1e+30": "diverged"}
    assert here(*command).returncode == 0
    assert here(*command, "sweep.retry=failed").returncode == 0
    assert len(runs) == 2
    assert here(*command, "sweep.retry=failed,diverged").returncode == 0
    assert [config.optimizer.lr for config in runs] == [0.01, 1e30, 1e30]


def test_force(here: Here, tmp_path: Path, runs: list[Any]) -> None:
    command = ("train", "-m", *TINY, "seed=0,1", "out_dir=s", "quiet=true")
    here(*command)
    (tmp_path / "s" / "mine.txt").write_text("kept")
    before = {path: path.read_text() for path in (tmp_path / "s").glob("*/run.json")}
    assert here(*command, "sweep.force=true").returncode == 0
    assert len(runs) == 4
    assert {path: path.read_text() for path in (tmp_path / "s").glob("*/run.json")}.keys() == before.keys()
    assert all(path.read_text() != text for path, text in before.items())
    assert all(len(list(path.parent.glob("events*"))) == 1 for path in before)
    assert (tmp_path / "s" / "mine.txt").read_text() == "kept"


def test_a_forced_sweep_that_was_interrupted_goes_on(
    here: Here, monkeypatch: pytest.MonkeyPatch, runs: list[Any]
) -> None:
    command = ("train", "-m", *TINY, "seed=0,1,2", "out_dir=s", "quiet=true")
    here(*command)
    counted = gradstab.runner.run

    def stopped(config: Any, *args: Any, **kwargs: Any) -> Any:
        if config.seed == 1:
            raise KeyboardInterrupt
        return counted(config, *args, **kwargs)

    monkeypatch.setattr(gradstab.runner, "run", stopped)
    done = here(*command, "sweep.force=true")
    assert done.returncode == 130
    told = "interrupted: 1 of 3 cells are done; the same command goes on with the rest"
    assert done.stderr == f"gradstab: {told}\n"
    monkeypatch.setattr(gradstab.runner, "run", counted)
    assert here(*command).returncode == 0
    assert [config.seed for config in runs] == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), Interrupted(15)])
def test_a_cell_that_was_interrupted_before_its_run_says_so(
    here: Here, monkeypatch: pytest.MonkeyPatch, raised: KeyboardInterrupt
) -> None:
    def stopped(*_args: Any, **_kwargs: Any) -> Any:
        raise raised

    monkeypatch.setattr(gradstab.runner, "run", stopped)
    assert here("train", "-m", *TINY, "seed=0,1", "out_dir=s").returncode in (130, 143)
    (told,) = json.loads(here("status", "s", "--json").stdout)["failures"]
    assert (told["status"], told["reason"]) == ("interrupted", "interrupted before it began to train")


def test_fail_fast(here: Here, tmp_path: Path, breaking: Callable[..., None], runs: list[Any]) -> None:
    breaking(lambda config: config.seed == 1)
    command = ("train", "-m", *TINY, "seed=0,1,2", "out_dir=s")
    done = here(*command, "sweep.fail_fast=true")
    assert done.returncode == 1
    assert "sweep.fail_fast=true: ended at the first failure" in done.stderr.splitlines()[-1]
    assert statuses(tmp_path / "s") == {"seed=0": "completed", "seed=1": "failed", "seed=2": "pending"}
    assert here(*command).returncode == 1
    assert [config.seed for config in runs] == [0, 1, 2]


def test_a_removed_run_is_made_again(here: Here, tmp_path: Path, runs: list[Any]) -> None:
    command = ("train", "-m", *TINY, "seed=0,1", "out_dir=s", "quiet=true")
    here(*command)
    (run,) = (tmp_path / "s").glob("*_seed=1_*/run.json")
    run.unlink()
    assert here(*command).returncode == 0
    assert [config.seed for config in runs] == [0, 1, 1]


def test_a_run_whose_end_the_ledger_did_not_hear_of_counts(here: Here, tmp_path: Path, runs: list[Any]) -> None:
    command = ("train", "-m", *TINY, "seed=0,1", "out_dir=s", "quiet=true")
    here(*command)
    ledger = tmp_path / "s" / "ledger.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    # Cut in the middle of a line, as by a kill while it was written.
    ledger.write_bytes(b"".join(lines[:-1]) + lines[-1][:30])
    assert here(*command).returncode == 0
    assert len(runs) == 2


def test_a_damaged_ledger_is_named_and_does_not_stop_a_sweep(here: Here, tmp_path: Path, runs: list[Any]) -> None:
    command = ("train", "-m", *TINY, "seed=0,1", "out_dir=s", "quiet=true")
    here(*command)
    ledger = tmp_path / "s" / "ledger.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"\x00garbage\n" + b"".join(lines[1:]))
    done = here(*command)
    assert (done.returncode, len(runs)) == (0, 2)
    assert done.stderr.startswith("gradstab: s/ledger.jsonl, line 1: is damaged")
    assert done.stderr.count("\n") == 1
    assert here("status", "s").stderr == done.stderr
    # What the line said is known again.
    assert [row["seed"] for row in table(tmp_path / "s")] == ["0", "1"]
    entries, _ = Ledger(tmp_path / "s").read()
    assert all(entry.swept and entry.settings and entry.status == "completed" for entry in entries.values())


@pytest.mark.parametrize("lost", ["the ledger", "all lines of a cell"])
def test_cells_that_the_ledger_has_lost_are_found_by_their_directories(
    here: Here, tmp_path: Path, runs: list[Any], lost: str
) -> None:
    command = ("train", "-m", *TINY, "seed=0,1,2", "out_dir=s", "quiet=true")
    here(*command)
    before = table(tmp_path / "s")
    ledger = tmp_path / "s" / "ledger.jsonl"
    if lost == "the ledger":
        ledger.unlink()
    else:
        lines = ledger.read_bytes().splitlines(keepends=True)
        ledger.write_bytes(b"".join(b"garbage\n" if b"001_seed=1" in line else line for line in lines))
    for path in (tmp_path / "s").glob("002_*/run.json"):
        path.unlink()
    # A cell more, before those that were there.
    done = here(*command[:-3], "seed=3,0,1,2", *command[-2:])
    assert (done.returncode, [config.seed for config in runs]) == (0, [0, 1, 2, 3, 2])
    rows = table(tmp_path / "s")
    assert [(row["number"], row["seed"]) for row in rows] == [("0", "0"), ("1", "1"), ("2", "2"), ("3", "3")]
    assert rows[:2] == before[:2]
    assert len(list((tmp_path / "s").glob("*/"))) == 4
    entries, _ = Ledger(tmp_path / "s").read()
    assert all(entry.swept and entry.settings and entry.status == "completed" for entry in entries.values())


@pytest.mark.parametrize("damaged", [False, True])
def test_a_cell_that_another_process_runs_is_left_to_it(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[Any], damaged: bool
) -> None:
    command = ("train", "-m", *TINY, "seed=0,1,2", "out_dir=s")
    here(*command, "quiet=true")
    (theirs,) = (tmp_path / "s").glob("*_seed=0_*")
    (theirs / "run.json").unlink()
    if damaged:  # What the cell's settings are is not told any more.
        ledger = tmp_path / "s" / "ledger.jsonl"
        ledger.write_bytes(b"\x00garbage\n" + b"".join(ledger.read_bytes().splitlines(keepends=True)[1:]))
    claim = claimed(theirs)
    claim.__enter__()
    naps: list[float] = []

    def died(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 2:
            claim.__exit__(None, None, None)

    monkeypatch.setattr("gradstab.sweeps.engine.time.sleep", died)
    done = here(*command)
    assert done.returncode == 0
    assert len(naps) == 2
    assert "waiting for 1 cell that another process runs" in done.stdout
    # It died without having run it, so this one did.
    assert [config.seed for config in runs] == [0, 1, 2, 0]


def test_cells_that_another_process_ended_meanwhile_are_told_as_its(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[Any]
) -> None:
    command = ("train", "-m", *TINY, "seed=0,1,2", "out_dir=s")
    here(*command, "quiet=true")
    first, second, third = sorted((tmp_path / "s").glob("*/run.json"))
    ended = {path: path.read_text() for path in (first, third)}
    for path in (first, second, third):
        path.unlink()
    claim = claimed(first.parent)
    claim.__enter__()
    counted = gradstab.runner.run

    def meanwhile(*args: Any, **kwargs: Any) -> Any:
        for path, text in ended.items():
            path.write_text(text)
        claim.__exit__(None, None, None)
        return counted(*args, **kwargs)

    monkeypatch.setattr(gradstab.runner, "run", meanwhile)
    done = here(*command)
    assert (done.returncode, [config.seed for config in runs]) == (0, [0, 1, 2, 1])
    cells = [line for line in done.stdout.splitlines() if line.startswith("cell ")]
    assert cells == [
        f"cell 1/3  completed    {second.parent.name}",
        f"cell 2/3  completed    {third.parent.name}  run by another process",
        f"cell 3/3  completed    {first.parent.name}  run by another process",
    ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["optimizer.lr=-1,0.01"], ["optimizer.lr=-1: must be", "(in cell optimizer.lr=-1)"]),
        (["optimizer.lr=-1", "seed=1,2"], ["optimizer.lr=-1: must be"]),
        (["act=relu,sigmod"], ["act=sigmod", "did you mean sigmoid"]),
        (["optimizer.lr=interval(0,1)"], ["gradstab: optimizer.lr=interval(0,1): is endless", "optuna"]),
        (["act=relu,tanh", "model.widht=3"], ["gradstab: model.widht=3: ", "did you mean width"]),
        (["act=relu,tanh", "model.width=a[b"], ["gradstab: model.width=a[b: cannot be read"]),
        (["optimizer=momentum,sgd", "optimizer.momentum=0.5"], ["optimizer.momentum=0.5", "(in cell optimizer=sgd)"]),
        (["steps=1,2", "data.root=${nope}"], ["nope"]),
        (["seed=0,1", "sweep.retry=all"], ["sweep.retry=all", "failed, diverged"]),
        (["seed=0,1", "sweep.retry=failed", "sweep.force=true"], ["sweep.retry=failed", "no effect"]),
        (["seed=0,1", "sweep.force=maybe"], ["sweep.force=maybe", "true or false"]),
        (["seed=0,1", "sweep.forc=true"], ["sweep.forc=true", "did you mean force"]),
        (["seed=0,1", "sweep.force=true", "sweep.force=false"], ["sweep.force=false", "once"]),
        (["seed=0,1", "sweep.fail_fast=true,false"], ["sweep.fail_fast=true,false", "one"]),
        (["seed=0,1", "objective=acuracy"], ["objective=acuracy", "did you mean", "test_accuracy"]),
        (["seed=0,1", "objective=test_loss,depth_factor"], ["objective=test_loss,depth_factor", "allowed"]),
        (["seed=0,1", "objective=test_loss", "objective=seconds"], ["objective=seconds", "already"]),
        (["seed=0,1", "hydra/launcher=basic"], ["hydra/launcher=basic", "joblib"]),
        (["seed=0,1", "hydra/launcher=jobli"], ["hydra/launcher=jobli", "did you mean"]),
        (["seed=0,1", "hydra/launcher=serial", "hydra.launcher.n_jobs=2"], ["n_jobs"]),
        (["seed=0,1", "hydra.sweep.subdir=x"], ["hydra.sweep.subdir=x", "no effect"]),
        (["seed=0,1", "++hydra.sweep.subdir=x"], ["++hydra.sweep.subdir=x", "no effect"]),
        (["seed=0,1", "hydra.run.dir=x"], ["hydra.run.dir=x: no effect, as a cell's directory follows from"]),
        (["hydra.sweeper.params.seed=[0,1]"], ["hydra.sweeper.params.seed=[0,1]: ", "allowed here: seed=VALUE,VALUE"]),
        (["seed=0,1", "out_dir=a file"], ["out_dir=a file: cannot be written to"]),
    ],
)
def test_a_wrong_sweep_is_refused_before_anything_runs(
    here: Here, tmp_path: Path, words: list[str], told: list[str], runs: list[Any]
) -> None:
    (tmp_path / "a file").write_text("")
    done = here("train", "-m", *TINY, *words)
    assert (done.returncode, done.stdout, runs) == (2, "", [])
    assert done.stderr.count("\n") == 1, done.stderr
    assert all(text in done.stderr for text in told), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a file"]


@pytest.mark.parametrize(
    "word",
    [
        *("sweep.retry=failed", "sweep.force=true", "objective=test_loss"),
        *("hydra/launcher=joblib", "hydra.sweep.dir=x", "++hydra.sweep.dir=x"),
    ],
)
def test_what_is_for_sweeps_is_refused_without_one(here: Here, tmp_path: Path, word: str) -> None:
    done = here("train", *TINY, word)
    assert done.returncode == 2
    assert done.stderr == f"gradstab: {word}: no effect on a single run; add -m for a sweep\n"
    assert not any(tmp_path.iterdir())


def test_where_hydra_puts_runs_is_no_knob_of_a_run(here: Here, tmp_path: Path) -> None:
    done = here("train", *TINY, "hydra.run.dir=x")
    assert done.returncode == 2
    assert (
        done.stderr == "gradstab: hydra.run.dir=x: no effect, as a run lies where out_dir says; allowed: out_dir=DIR\n"
    )
    assert not any(tmp_path.iterdir())


def test_a_sweep_where_a_run_lies_is_refused(here: Here) -> None:
    assert here("train", *TINY, "out_dir=run", "quiet=true").returncode == 0
    done = here("train", "-m", *TINY, "seed=0,1", "out_dir=run")
    assert done.returncode == 2
    assert "out_dir=run: holds a single run" in done.stderr


def test_a_run_where_a_sweep_lies_is_refused(here: Here) -> None:
    command = ("train", "-m", *TINY, "seed=0,1", "out_dir=s", "quiet=true")
    assert here(*command).returncode == 0
    done = here("train", *TINY, "out_dir=s")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "gradstab: out_dir=s: holds a sweep; choose another\n"
    assert here(*command).returncode == 0
    # A folder of its own in there is no matter.
    assert here("train", *TINY, "out_dir=s/mine", "quiet=true").returncode == 0


def test_seeds(here: Here, tmp_path: Path) -> None:
    done = here("train", "-m", *TINY, "measure=norms", "steps=10", "act=relu,tanh", "seed=0,1,2", "out_dir=s")
    rows = table(tmp_path / "s")
    groups = table(tmp_path / "s", "results_over_seeds.csv")
    assert [group["act"] for group in groups] == ["relu", "tanh"]
    for group in groups:
        values = [float(row["test_accuracy"]) for row in rows if row["act"] == group["act"]]
        mean = sum(values) / 3
        assert float(group["test_accuracy_mean"]) == pytest.approx(mean)
        assert float(group["test_accuracy_std"]) == pytest.approx((sum((v - mean) ** 2 for v in values) / 2) ** 0.5)
        assert (group["cells"], group["completed"]) == ("3", "3")
        assert f"{100 * mean:.2f} ± " in done.stdout
    assert "standard deviation" in done.stdout


@pytest.mark.parametrize("first", [("act=tanh,relu",), ("seed=2,3",)])
def test_what_tells_cells_of_two_commands_apart_is_a_column(here: Here, tmp_path: Path, first: tuple[str]) -> None:
    here("train", "-m", *TINY, *first, "optimizer.lr=0.2", "out_dir=s")
    done = here("train", "-m", *TINY, "seed=0,1", "optimizer.lr=0.1", "out_dir=s")
    assert (done.returncode, done.stderr) == (0, "")
    assert [row["optimizer.lr"] for row in table(tmp_path / "s")] == ["0.2", "0.2", "0.1", "0.1"]
    settings = [
        (group["optimizer.lr"], group.get("act"), group["cells"])
        for group in table(tmp_path / "s", "results_over_seeds.csv")
    ]
    if first == ("seed=2,3",):
        assert settings == [("0.2", None, "2"), ("0.1", None, "2")]
    else:
        assert settings == [("0.2", "tanh", "1"), ("0.2", "relu", "1"), ("0.1", "relu", "2")]


def test_no_seeds_no_spread(here: Here, tmp_path: Path) -> None:
    done = here("train", "-m", *TINY, "act=relu,tanh", "out_dir=s")
    assert "±" not in done.stdout
    header = next(line for line in done.stdout.splitlines() if "accuracy" in line)
    assert header.split() == ["#", "act", "status", "accuracy", "depth", "f.", "verdict", "s"]
    assert not (tmp_path / "s" / "results_over_seeds.csv").exists()


def test_values_are_shown_as_they_were_meant(here: Here, tmp_path: Path) -> None:
    words = (
        "model.depth=2",
        *TINY[1:],
        "model.width=[8,4],[4,4]",
        "device=cpu,cuda:99",
        "hydra.sweeper.max_batch_size=3",
    )
    done = here("train", "-m", *words, "out_dir=s")
    assert done.stdout.startswith("sweep of 4 cells")
    assert {(row["model.width"], row["device"]) for row in table(tmp_path / "s")} == {
        *(("[8,4]", "cpu"), ("[8,4]", "cuda:99"), ("[4,4]", "cpu"), ("[4,4]", "cuda:99")),
    }
    # A GPU that is not there is found out by the cell itself.
    assert done.returncode == 1
    assert "device=cuda:99: this machine has" in done.stderr


@pytest.mark.parametrize("columns", [60, 80, 140])
def test_a_wide_sweep_stays_readable(here: Here, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    words = ("act=leaky_relu,scaled_tanh", "init=kaiming_normal,xavier_uniform", "optimizer.lr=0.000125,1", "seed=1,2")
    done = here("train", "-m", *TINY, "measure=norms", *words, "out_dir=s")
    lines = done.stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if "accuracy" in line)
    assert all(len(line.rstrip()) <= columns for line in lines[start : start + 17])
    figures = [re.findall(r"\d+\.\d\d %", line) for line in lines[start + 1 : start + 17]]
    assert all(len(found) == 1 for found in figures)
    if columns == 60:
        assert "results.csv also has" in done.stdout


def test_an_experiment_that_carries_a_sweep(here: Here, tmp_path: Path, runs: list[Any]) -> None:
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    text = "# @package _global_\nsteps: 2\nhydra:\n  sweeper:\n    params:\n      act: relu,tanh,elu\n      seed: 1,2\n"
    (folder / "own.yaml").write_text(text)
    (folder / "none.yaml").write_text("# @package _global_\nsteps: 2\n")
    words = ("--config-dir", "mine", *(word for word in TINY if not word.startswith("steps")))
    alone = here("train", *words, "experiment=own")
    assert alone.returncode == 2
    assert alone.stderr == "gradstab: experiment=own: is a sweep of 6 runs; add -m to run them\n"
    assert here("train", "-m", *words, "experiment=own", "seed=3", "out_dir=s").returncode == 0
    assert [(config.act.name, config.seed) for config in runs] == [("relu", 3), ("tanh", 3), ("elu", 3)]
    assert [row["act"] for row in table(tmp_path / "s")] == ["relu", "tanh", "elu"]
    runs.clear()
    assert here("train", "-m", *words, "experiment=none", "out_dir=t").returncode == 0
    assert len(runs) == 1
    both = here("train", "-m", *words, "experiment=own,none", "out_dir=u")
    assert both.returncode == 2
    told = "experiment=own: carries a sweep of its own; allowed: that one alone (in cell experiment=own)"
    assert both.stderr == f"gradstab: {told}\n"
    assert not (tmp_path / "u").exists()


def test_an_experiment_may_choose_the_launcher(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    text = "# @package _global_\ndefaults:\n  - override /hydra/launcher: joblib\nobjective: train_loss\n"
    (folder / "own.yaml").write_text(text)
    asked: list[Any] = []

    def build(name: str, **knobs: Any) -> Any:
        asked.append((name, knobs["threads"]))
        return SerialLauncher()

    monkeypatch.setattr("gradstab.cli.sweep.build_launcher", build)
    words = ("--config-dir", "mine", *TINY, "experiment=own", "seed=1,2", "hydra.launcher.threads=3")
    done = here("train", "-m", *words, "out_dir=s")
    assert (done.returncode, asked) == (0, [("joblib", 3)])
    assert "train loss" in done.stdout


def test_a_runs_own_configuration_can_be_swept(here: Here, tmp_path: Path, runs: list[Any]) -> None:
    here("train", *TINY, "act=elu", "out_dir=run", "quiet=true")
    done = here("train", "-m", "--config-dir", "run", "seed=1,2", "objective=train_loss", "sweep.retry=failed")
    assert (done.returncode, done.stderr) == (0, "")
    assert [(config.act.name, config.seed) for config in runs[1:]] == [("elu", 1), ("elu", 2)]
    assert len(list(tmp_path.glob("outputs/sweeps/seed=1,2_*/*/run.json"))) == 2


class Mortal:
    """A launcher whose second worker is killed in the middle, and whose third is told to end."""

    def launch(self, tasks: Sequence[Task], work: Work) -> Iterator[Done]:
        for i, task in enumerate(tasks):
            if i == 1:
                directory = Path(task.payload["folder"]) / task.payload["directory"]
                directory.mkdir()
                Ledger(directory.parent).mark(task.key, directory.name, "running")
                (directory / "run.json").write_text('{"status": "running"}')
                yield Done(task, None, "killed by signal 9")
            elif i == 2:
                Ledger(Path(task.payload["folder"])).mark(task.key, task.payload["directory"], "interrupted", "SIGTERM")
                yield Done(task, "interrupted")
            else:
                yield Done(task, work(task))


def test_a_worker_that_dies_is_a_failure_of_its_cell_alone(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[Any]
) -> None:
    command = ("train", "-m", *TINY, "seed=0,1,2,3", "out_dir=s", "quiet=true")
    with monkeypatch.context() as patched:
        patched.setattr("gradstab.cli.sweep.build_launcher", lambda _name: Mortal())
        done = here(*command)
    assert done.returncode == 1
    assert list(statuses(tmp_path / "s").values()) == ["completed", "failed", "interrupted", "completed"]
    killed, ended = done.stderr.splitlines()
    assert "failed: its process died: killed by signal 9 (see s/001_seed=1_" in killed
    assert "interrupted: SIGTERM" in ended
    assert json.loads(next(tmp_path.glob("s/*seed=1*/run.json")).read_text())["status"] == "failed"
    # What was interrupted goes on by itself, what failed when it is asked for.
    assert here(*command).returncode == 1
    assert [config.seed for config in runs] == [0, 3, 2]
    assert here(*command, "sweep.retry=failed").returncode == 0
    assert [config.seed for config in runs] == [0, 3, 2, 1]


class Deadly:
    """A launcher whose workers all die."""

    def launch(self, tasks: Sequence[Task], work: Work) -> Iterator[Done]:  # noqa: ARG002
        for task in tasks:
            yield Done(task, None, "killed by signal 9")


@pytest.mark.parametrize("launcher", [SerialLauncher, Deadly])
@pytest.mark.parametrize("obstacle", ["a file", "a folder for its record"])
def test_a_cells_directory_that_cannot_be_used_is_a_failure_of_its_cell_alone(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[Any], obstacle: str, launcher: type[Any]
) -> None:
    command = ("train", "-m", *TINY, "seed=0,1,2", "out_dir=s")
    here(*command, "quiet=true")
    (cell,) = (tmp_path / "s").glob("000_*")
    shutil.rmtree(tmp_path / "s")
    (tmp_path / "s").mkdir()
    if obstacle == "a file":
        cell.touch()
    else:
        (cell / "run.json").mkdir(parents=True)
    runs.clear()
    monkeypatch.setattr("gradstab.cli.sweep.build_launcher", lambda _name: launcher())
    done = here(*command)
    assert done.returncode == 1
    if launcher is Deadly:
        assert done.stdout.count("its process died") == 3
        return
    reason = f"s/{cell.name}: cannot be written to ({'File exists' if obstacle == 'a file' else 'Is a directory'})"
    assert done.stderr == f"gradstab: {cell.name}: failed: {reason} (see s/{cell.name})\n"
    assert f"cell 1/3  failed       {cell.name}  {reason}\n" in done.stdout
    assert [config.seed for config in runs] == [1, 2]
    assert [row["status"] for row in table(tmp_path / "s")] == ["failed", "completed", "completed"]
    # It stays a failure, until that is out of the way.
    assert (here(*command).stderr, len(runs)) == (done.stderr, 2)
    if obstacle == "a file":
        cell.unlink()
        assert here(*command).returncode == 0
        assert [config.seed for config in runs] == [1, 2, 0]


def test_what_a_sweeper_is_told_of_a_cell() -> None:
    def returned(status: str, **record: Any) -> JobReturn:
        return _returned(Row(Entry("0" * 16, "000", status=status, reason="why"), record), ["a=1"], "test_loss")

    assert returned("completed", test_loss=0.5).return_value == 0.5
    assert returned("diverged", test_loss="inf").return_value == math.inf
    assert math.isnan(returned("diverged", test_loss="nan").return_value)
    assert math.isnan(returned("diverged").return_value)
    for status in ("failed", "interrupted", "pending"):
        with pytest.raises(GradstabError, match=f"{status}: why"):
            _ = returned(status).return_value


def test_status_of_a_sweep(here: Here, tmp_path: Path, breaking: Callable[..., None]) -> None:
    breaking(lambda config: config.seed == 1)
    here("train", "-m", *TINY, "seed=0,1,2", "out_dir=s", "sweep.fail_fast=true")
    done = here("status", "s")
    assert (done.returncode, done.stderr) == (0, "")
    assert "sweep of 3 cells · s" in done.stdout
    assert "1 pending, 1 completed, 1 failed" in done.stdout
    assert "seed 1 caught fire" in done.stdout
    state = json.loads(here("status", "--json", "s").stdout)
    assert state["counts"] == {
        **dict.fromkeys(("running", "diverged", "interrupted"), 0),
        **dict.fromkeys(("pending", "completed", "failed"), 1),
    }
    assert [cell["status"] for cell in state["ledger"]] == ["completed", "failed", "pending"]
    (directory,) = (tmp_path / "s").glob("*_seed=2_*") if any((tmp_path / "s").glob("*_seed=2_*")) else (None,)
    assert directory is None
    (tmp_path / "s" / state["ledger"][2]["directory"]).mkdir()
    with claimed(tmp_path / "s" / state["ledger"][2]["directory"]):
        running = json.loads(here("status", "--json", "s").stdout)["running"]
    assert [cell["directory"] for cell in running] == [state["ledger"][2]["directory"]]


def test_status_of_a_run_and_of_neither(here: Here, tmp_path: Path) -> None:
    here("train", *TINY, "out_dir=run", "quiet=true")
    done = here("status", "run")
    assert done.returncode == 0
    assert "completed  step 2/2" in done.stdout
    state = json.loads(here("status", "run", "--json").stdout)
    assert (state["kind"], state["steps"], state["planned_steps"]) == ("run", 2, 2)
    (tmp_path / "empty").mkdir()
    for args, told in (
        (["empty"], "empty: holds neither; allowed: a sweep's folder"),
        (["nowhere"], "nowhere: there is no such folder"),
        ([], "needs a folder"),
        (["a", "b"], "takes one folder, not 2"),
        (["--", "--jsno"], "--jsno: there is no such folder"),
        (["run", "--jsno"], "--jsno: there is no such flag; allowed: --json, -h, --help"),
        (["."], "such as run"),
    ):
        wrong = here("status", *args)
        assert (wrong.returncode, wrong.stdout) == (2, "")
        assert told in wrong.stderr
        assert wrong.stderr.count("\n") == 1


@pytest.mark.parametrize("seconds", ["NaN", "1e999"])
def test_status_of_a_record_that_no_run_wrote(here: Here, tmp_path: Path, seconds: str) -> None:
    cell = tmp_path / "000_0"
    cell.mkdir()
    (cell / "run.json").write_text(
        f'{{"status": "completed", "seconds": {seconds}, "test_accuracy": NaN, "depth_factor": -Infinity}}'
    )
    Ledger(tmp_path).append({"key": "0" * 16, "directory": "000_0", "status": "completed"})

    def refused(word: str) -> None:
        raise AssertionError(word)

    for folder in (tmp_path, cell):
        assert here("status", str(folder)).returncode == 0
        state = json.loads(here("status", str(folder), "--json").stdout, parse_constant=refused)
        assert state.get("seconds", state.get("seconds_per_cell")) is None


def test_status_needs_no_torch(tmp_path: Path) -> None:
    Ledger(tmp_path).append({"key": "0" * 16, "directory": "000_0", "status": "pending"})
    code = (
        "import sys; from gradstab.cli import main; "
        "code = main(sys.argv[1:]); sys.exit(99 if 'torch' in sys.modules else code)"
    )
    assert subprocess.run([sys.executable, "-c", code, "status", str(tmp_path)], check=False).returncode == 0


def test_hydras_own_launchers_under_the_same_name_do_not_stand_in_the_way(here: Here) -> None:
    # What installing hydra-joblib-launcher does when Hydra looks for plugins.
    ConfigStore.instance().store("joblib", {"_target_": "hydra_plugins.x.J", "backend": None}, group="hydra/launcher")
    done = here("train", "-m", "seed=0", *TINY, "out_dir=s", "hydra/launcher=joblib", "hydra.launcher.n_jobs=0")
    # Our own knob, and our own words.
    assert done.returncode == 2
    assert "hydra.launcher.n_jobs=0" in done.stderr
    assert "backend" not in done.stderr


@pytest.mark.parametrize("theirs", ["another cell's", "nobody's", "another's that failed"])
def test_a_run_that_is_not_the_cells_own_is_not_counted_as_its(
    here: Here, tmp_path: Path, runs: list[Any], theirs: str
) -> None:
    words = ("train", "-m", *TINY, "seed=0,1", "out_dir=s", "quiet=true")
    here(*words)
    first, second = sorted((tmp_path / "s").glob("*/run.json"))
    good = json.loads(second.read_text())
    record = {"status": "completed"} if theirs == "nobody's" else json.loads(first.read_text())
    second.write_text(json.dumps(record | ({"status": "failed"} if theirs == "another's that failed" else {})))
    assert json.loads(here("status", "s", "--json").stdout)["counts"]["pending"] == 1
    assert here(*words).returncode == 0
    assert [config.seed for config in runs] == [0, 1, 1]
    made = json.loads(second.read_text())
    assert (made["status"], made["train_loss"], made["identity"]) == ("completed", good["train_loss"], good["identity"])


@pytest.mark.parametrize("content", ["", "[]", '{"status": ', '{"status": "running"}'])
def test_a_finished_cell_whose_record_is_damaged_runs_again(
    here: Here, tmp_path: Path, runs: list[Any], content: str
) -> None:
    words = ("train", "-m", *TINY, "seed=0,1", "out_dir=sweep")
    assert here(*words).returncode == 0
    before = (tmp_path / "sweep" / "results_over_seeds.csv").read_text().split(",")[:3]
    (damaged,) = (tmp_path / "sweep").glob("000_*/run.json")
    damaged.write_text(content)
    stands = json.loads(here("status", "sweep", "--json").stdout)
    assert (stands["counts"]["completed"], stands["done"]) == (1, 1)
    assert here(*words).returncode == 0
    assert [config.seed for config in runs] == [0, 1, 0]
    assert json.loads(damaged.read_text())["status"] == "completed"
    assert (tmp_path / "sweep" / "results_over_seeds.csv").read_text().split(",")[:3] == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("seed=range(3,1)",), "seed=range(3,1): stands for no value"),
        (("act=glob(zzz*)",), "act=glob(zzz*): stands for no value"),
        (("seed=range(0,10,0)",), "seed=range(0,10,0): "),
        (("hydra.sweeper.max_batch_size=0", "seed=0,1"), "hydra.sweeper.max_batch_size=0: must be an integer"),
        (("hydra.sweeper.max_batch_size=abc", "seed=0,1"), "hydra.sweeper.max_batch_size=abc: must be an integer"),
        (("hydra.sweeper.params=3",), "hydra.sweeper.params=3: must be keys with their values"),
        (("hydra/sweeper=optuna", "act=glob(zzz*)"), "act=glob(zzz*): stands for no value"),
        (("hydra/sweeper=optuna", "seed=range(3,1)"), "seed=range(3,1): stands for no value"),
        (("hydra/sweeper=optuna", "optimizer.lr=interval(0.1,inf)"), "optimizer.lr=interval(0.1,inf): has no end"),
        (("optimizer.lr=range(0.1,nan)",), "optimizer.lr=range(0.1,nan): is no range of numbers"),
        (("seed=range(0,1000000000)",), "seed: more than 100,000 cells"),
        (("seed=shuffle(range(0,1000000000))",), "seed: more than 100,000 cells"),
        (("seed=range(0,1000)", "batch_size=range(1,1001)"), "batch_size, seed: more than 100,000 cells"),
        (("hydra/sweeper=optuna", "optimizer.lr=range(0,1,1e-9)"), "stands for too many values to choose from"),
        # Of a search that can make no trial at all, the first says why.
        (("hydra/sweeper=optuna", "optimizer.lrr=interval(0,1)"), "optimizer.lrr="),
    ],
)
def test_a_sweep_of_nothing_or_without_bounds_is_refused_in_one_line(
    here: Here, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    done = here("train", "-m", *TINY, *words, "out_dir=sweep")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert not list(tmp_path.glob("sweep/*/run.json"))


@pytest.mark.parametrize("spelling", ["optimizer.lr=1e-2", "optimizer.lr=0.01", "optimizer.lr=0.010"])
def test_a_cells_name_does_not_follow_from_how_its_settings_were_spelt(
    here: Here, tmp_path: Path, spelling: str
) -> None:
    here("train", "-m", *TINY, "hydra.sweeper.max_batch_size=2", "seed=0,1,2", spelling, "out_dir=sweep")
    names = [path.parent.name for path in sorted((tmp_path / "sweep").glob("*/run.json"))]
    assert [name.rpartition("_")[0] for name in names] == ["000_seed=0", "001_seed=1", "002_seed=2"]
    here("train", "-m", *TINY, "seed=3", spelling, "out_dir=alone")
    assert all(re.fullmatch(r"000_[0-9a-f]{8}", path.parent.name) for path in (tmp_path / "alone").glob("*/run.json"))


def test_a_sweeps_folder_may_be_a_number(here: Here, tmp_path: Path) -> None:
    assert here("train", "-m", *TINY, "seed=0,1", "out_dir=2024").returncode == 0
    assert len(list((tmp_path / "2024").glob("*/run.json"))) == 2
