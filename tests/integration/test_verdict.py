"""The verdict on real runs: at the end, in run.json, afterwards from the directory, and as what stops a run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from gradstab.config.verdict_options import Thresholds
from gradstab.errors import ConfigError
from gradstab.events import read_records
from gradstab.measure.afterwards import judge_records
from gradstab.measure.verdict import Verdict
from gradstab.run_directory import read_run
from tests.conftest import Compose, Here, Train

SMALL = ("model.width=32", "device=cpu", "steps=30", "eval_every=10")


@pytest.mark.parametrize(
    ("overrides", "label"),
    [
        (("model.depth=4",), "healthy"),
        (("model.depth=12", "act=sigmoid", "init=xavier_normal"), "vanishing"),
        (("model.depth=40", "act=tanh", "init=lecun_normal", "init.gain=2", "optimizer.lr=1e-6"), "exploding"),
        (("model.depth=3", "init=zeros"), "vanishing"),
        (("model.depth=3", "init=zeros", "act=sigmoid"), "vanishing"),
        (("model.depth=3", "optimizer.lr=1e-9"), "not_learning"),
        (("model.depth=40", "model.dropout=0.3", "act=tanh", "init=critical"), "vanishing"),
        (("model.depth=10", "init.gain=30", "on_divergence=skip"), "non_finite"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_a_run_gets_the_verdict_it_deserves(train: Train, overrides: tuple[str, ...], label: str) -> None:
    record = train(*SMALL, *overrides)
    verdict = Verdict.from_dict(record["verdict"])
    assert label in verdict.labels
    assert all(finding.explanation for finding in verdict.findings)
    assert bool(verdict.remedies) == (label != "healthy")


def test_a_first_step_that_is_far_too_large_is_named_before_the_loss_shows_it(train: Train) -> None:
    overrides = ("model.depth=8", "act=relu", "init=orthogonal", "init.gain=2.4", "optimizer.lr=0.06", "steps=1")
    verdict = Verdict.from_dict(train(*SMALL, "batch_size=64", *overrides)["verdict"])
    assert "overshoot" in [finding.rule for finding in verdict.findings]
    assert "clip=norm" in [override for found in verdict.remedies for override in found.overrides]


@pytest.mark.parametrize(
    ("overrides", "factor"),
    [
        (("model.depth=12", "act=sigmoid", "init=xavier_normal"), 0.236),
        # A loss that is finite in double precision and would not be in single.
        (("precision=float64", "model.depth=100", "model.residual=add", "init.gain=10", "on_divergence=skip"), 10.1),
    ],
)
def test_the_directory_tells_the_same_afterwards(train: Train, overrides: tuple[str, ...], factor: float) -> None:
    where = train(*SMALL, *overrides)["directory"]
    run = read_run(where)
    told = Verdict.from_dict(run["verdict"])
    again = judge_records(read_records(where), run)
    # As text, in which NaN equals NaN.
    assert str(again.findings) == str(told.findings)
    assert run["theory"]["depth_factor"] == pytest.approx(factor, rel=0.04)


@pytest.mark.parametrize("model", [("model.depth=3",), pytest.param(("model=lenet5",), marks=pytest.mark.slow)])
def test_copies_of_one_unit_are_told_although_the_loss_leaves_the_plateau(train: Train, model: tuple[str, ...]) -> None:
    record = train(*model, "init=constant", "act=relu", "optimizer=adam", "steps=120")
    verdict = Verdict.from_dict(record["verdict"])
    assert "identical_units" in [finding.rule for finding in verdict.findings]
    assert record["train_loss"] < 0.95 * math.log(10)
    assert record["test_accuracy"] < 0.4
    assert str(judge_records(read_records(record["directory"]), record).findings) == str(verdict.findings)
    mended = train(*model, "act=relu", "optimizer=adam", "steps=120", *verdict.remedies[0].overrides)
    assert mended["test_accuracy"] > 0.8


def test_where_a_gradient_explodes_chains_come_with_the_rate_that_their_own_first_step_allows(train: Train) -> None:
    sick = ("act=identity", "model.depth=40", "model.width=32", "init.gain=2", "steps=150", "seed=0")
    remedies = [remedy.overrides for remedy in Verdict.from_dict(train(*sick)["verdict"]).remedies]
    (chain,) = [words for words in remedies if words[:2] == ("init=critical", "init.gain=1")]
    assert [word.split("=")[0] for word in chain[2:]] == ["optimizer.lr"]
    skipping = [words for words in remedies if words[0].startswith("model.residual")]
    assert skipping
    assert not any(word.startswith("optimizer.lr") for words in skipping for word in words)  # They stand larger steps.
    without = train(*sick, *chain[:2])
    mended = train(*sick, *chain)
    assert mended["status"] == "completed"
    assert mended["test_accuracy"] > 0.7
    assert without["status"] == "diverged" or without["test_accuracy"] < mended["test_accuracy"] - 0.3


def test_the_first_remedy_mends_the_network(train: Train) -> None:
    sick = ("model.depth=15", "model.width=64", "act=tanh", "init=xavier_normal", "init.gain=0.4", "steps=150")
    record = train(*sick)
    remedy = Verdict.from_dict(record["verdict"]).remedies[0]
    mended = train(*sick, *remedy.overrides)
    assert record["test_accuracy"] < 0.2
    assert mended["test_accuracy"] > 0.7
    assert remedy.predicted_factor is not None
    assert abs(remedy.predicted_factor - 1) < abs(record["theory"]["depth_factor"] - 1)


def test_stop_on_ends_a_run_early_and_says_why(train: Train) -> None:
    record = train(
        *("model.depth=12", "act=sigmoid", "init=xavier_normal", "device=cpu", "model.width=32"),
        *("steps=500", "eval_every=10", "stop_on=[exploding,vanishing]"),
    )
    assert record["status"] == "completed"
    assert record["reason"].startswith("stop_on=vanishing: ")
    assert record["steps"] < 30
    assert "vanishing" in record["verdict"]["labels"]


@pytest.mark.parametrize(("overrides", "steps"), [((), 15), (("verdict.stop_persistence=4",), 29)])
def test_stop_on_looks_at_each_measured_step(train: Train, overrides: tuple[str, ...], steps: int) -> None:
    sick = ("model.depth=12", "act=sigmoid", "init=xavier_normal", "device=cpu", "model.width=32")
    record = train(*sick, "steps=200", "measure=full", "measure.every=7", "stop_on=vanishing", *overrides)
    # Before the first update it does not count: at steps 7 and 14, or 7, 14, 21 and 28.
    assert (record["steps"], record["reason"][:17]) == (steps, "stop_on=vanishing")


def test_steps_that_are_skipped_stop_a_run_at_once(train: Train) -> None:
    record = train(*SMALL, "init.gain=40", "stop_on=non_finite", "on_divergence=skip")
    assert record["reason"].startswith("stop_on=non_finite: ")
    assert record["steps"] + record["skipped_steps"] < 10


def test_a_run_from_its_own_configuration_is_offered_knobs_alone(here: Here, tmp_path: Path) -> None:
    sick = ("act=sigmoid", "model.width=32", "model.depth=12", "steps=3", "device=cpu")
    assert here("train", *sick, "out_dir=first").returncode == 0
    again = ("--config-dir", "first", "--config-name", "config")
    assert here("train", *again, "out_dir=second").returncode == 0
    first, second = (
        [
            remedy["overrides"]
            for remedy in json.loads((tmp_path / name / "run.json").read_text())["verdict"]["remedies"]
        ]
        for name in ("first", "second")
    )
    assert ["init=critical"] in first
    assert second
    assert all("." in word.partition("=")[0] for words in second for word in words)
    for words in second:
        done = here("train", *again, *words, "--cfg", "job")
        assert done.returncode == 0, done.stderr


def test_what_stopped_a_run_is_said_beside_a_test_loss_that_is_not_finite(here: Here, tmp_path: Path) -> None:
    every = ("measure=full", "measure.every=1")
    done = here("train", *SMALL, *every, "optimizer.lr=10", "stop_on=non_finite", "on_divergence=skip", "out_dir=r")
    record = json.loads((tmp_path / "r" / "run.json").read_text())
    assert record["status"] == "diverged"
    assert record["reason"].startswith("stop_on=non_finite: ")
    assert "; non-finite test loss after step " in record["reason"]
    # The table shows the last measured step, and δ there is NaN.
    assert "\nat step 1, going towards the input, δ changes" in done.stdout


def test_stop_on_leaves_a_healthy_run_alone(train: Train) -> None:
    record = train(*SMALL, "model.depth=4", "stop_on=[exploding,vanishing,not_learning,dead_units,saturated]")
    assert (record["steps"], record["reason"]) == (30, "")


def test_several_kinds_on_the_command_line(here: Here, tmp_path: Path) -> None:
    done = here("train", "steps=2", "model.depth=2", "device=cpu", "stop_on=exploding,vanishing", "out_dir=r")
    assert done.returncode == 0, done.stderr
    assert "verdict: healthy" in done.stdout
    assert json.loads((tmp_path / "r" / "run.json").read_text())["verdict"]["labels"] == ["healthy"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("stop_on=melting",), "stop_on=melting: must be one or several of vanishing, exploding"),
        (("stop_on=[vanishing,melting]",), "must be one or several of vanishing"),
        (("stop_on=[]",), "must be one or several of vanishing"),
        (("stop_on=vanishing", "measure=none"), "needs measurements"),
        (("stop_on=non_finite",), "on_divergence=stop ends a run there anyway"),
        (("verdict.depth_decades=-1",), "verdict.depth_decades=-1: must be a finite number, above 0"),
        (("verdict.patience=1.5",), "verdict.patience=1.5: must be a whole number"),
    ],
)
def test_nonsense_is_refused(configure: Compose, overrides: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("[", r"\[")):
        configure(*overrides)


def test_thresholds_can_be_set(train: Train) -> None:
    record = train(*SMALL, "model.depth=4", "verdict.depth_decades=0.001", "verdict.stalled_depth_decades=0.001")
    assert record["verdict"]["labels"] != ["healthy"]
    assert Thresholds().depth_decades != 0.001
