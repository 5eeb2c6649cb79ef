"""Studies that carry their own sweep, and cells that an optimizer chooses."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import gradstab.data
import gradstab.runner
from gradstab.catalogue import listing, studies
from gradstab.cli import optimizing
from gradstab.config.sweep_options import FIGURES
from gradstab.sweeps.ledger import Entry, Ledger
from tests.conftest import Compose, Here

TINY = (
    *("model.depth=2", "model.width=8", "steps=4", "eval_every=4", "batch_size=32", "device=cpu"),
    *("images_after=null", "checkpoint.every=null", "measure=none"),
)
SHIPPED = {"activation_by_depth", "init_by_activation", "clipping_policies", "norm_and_residual", "learning_rates"}


def cells(folder: Path) -> list[Entry]:
    """The ledger's cells in the order of their numbers."""
    entries, damaged = Ledger(folder).read()
    assert damaged == []
    return sorted(entries.values(), key=lambda entry: entry.number)


# ------------------------------------------------------------------------------------------------ studies


def test_five_studies_are_shipped_and_the_list_says_that_they_are_sweeps() -> None:
    found = studies()
    assert set(found) == SHIPPED
    text = " ".join(listing("experiment").split())
    for name, count in found.items():
        assert 10 <= count <= 40
        assert re.search(rf"{name} .*?\(\w+ et al\. \d{{4}}|{name} .*?& \w+ \d{{4}}", text)
        assert f"a sweep of {count} runs" in text
    assert "vanishing_sigmoid" not in found


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_every_cell_of_a_study_is_valid(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Through the command itself, training nothing."""
    made: list[Any] = []

    def unmade(config: Any, *_: Any, **_knobs: Any) -> dict[str, Any]:
        made.append(config)
        raise RuntimeError("not today")

    monkeypatch.setattr(gradstab.runner, "run", unmade)
    done = here("train", "-m", f"experiment={name}", "out_dir=s")
    assert done.returncode == 1
    assert len(made) == len(set(made)) == studies()[name]
    assert {entry.reason for entry in cells(tmp_path / "s")} == {"RuntimeError: not today"}


def test_a_study_runs_narrowed_and_shortened(here: Here, tmp_path: Path) -> None:
    words = ("experiment=learning_rates", "optimizer=sgd", "optimizer.lr=0.01,1000", "out_dir=s")
    done = here("train", "-m", *words, *TINY)
    assert done.returncode == 0, done.stderr
    swept = [(entry.swept, entry.status) for entry in cells(tmp_path / "s")]
    assert [fields["optimizer.lr"] for fields, _ in swept] == ["0.01", "1000"]
    assert "2 completed" in done.stdout or "1 diverged" in done.stdout


# -------------------------------------------------------------------------------------------- TensorBoard


def test_tensorboard_shows_each_cell_once_with_what_differs_in_front(here: Here, tmp_path: Path) -> None:
    """What its HParams tab gets from its own backend."""
    measured = [word for word in TINY if word not in ("images_after=null", "measure=none")]
    words = ("act=relu,tanh", "optimizer.lr=0.1,0.2", "init.gain=1,1e30", "out_dir=s")
    assert here("train", "-m", *measured, *words).returncode == 0
    names = {entry.directory for entry in cells(tmp_path / "s")}
    experiment, groups, runs = _hparams(tmp_path / "s")
    assert set(runs) == names
    assert not any(tag.startswith("depth/") for tags in runs.values() for tag in tags)
    shown = [info.name for info in experiment.hparam_infos]
    assert shown[:3] == ["act", "init.gain", "optimizer.lr"]
    assert [info.name.tag for info in experiment.metric_infos] == ["test/accuracy", "test/loss", "depth_factor"]
    assert {group.name for group in groups} == names
    for group in groups:
        assert f"act={group.hparams['act'].string_value}" in group.name
        values = {value.name.tag: value.value for value in group.metric_values}
        assert "test/accuracy" in values
        diverged = group.hparams["init.gain"].number_value > 1 and group.hparams["act"].string_value == "relu"
        assert group.sessions[0].status == (_FAILURE if diverged else _SUCCESS)


def test_a_cell_draws_pictures_where_it_comes_to_them_on_its_way(here: Here, tmp_path: Path) -> None:
    measured = [word for word in TINY if word not in ("images_after=null", "measure=none")]
    assert here("train", "-m", *measured, "images_after=4,5", "out_dir=s").returncode == 0
    assert here("train", *measured, "images_after=5", "out_dir=s/alone").returncode == 0
    _, _, runs = _hparams(tmp_path / "s")
    drawn = {name.partition("_")[2][:14]: "depth/heatmap" in tags for name, tags in runs.items()}
    assert drawn == {"images_after=4": True, "images_after=5": False, "": True}


def test_cells_in_a_process_read_their_data_once(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = gradstab.data.load_data

    def load_data(name: str, **knobs: Any) -> Any:
        read.append(name)
        return real(name, **knobs)

    monkeypatch.setattr(gradstab.data, "_kept", {})
    monkeypatch.setattr(gradstab.data, "load_data", load_data)
    small = ("data.dim=4", "data.n_train=64", "data.n_test=8")
    words = ("data=gaussian", *small, "data.seed=1,2", "seed=0,1,2", "out_dir=s")
    assert here("train", "-m", *TINY, *words).returncode == 0
    assert read == ["gaussian", "gaussian"]
    kept = gradstab.data.kept_data("gaussian", dim=4, classes=10, n_train=64, n_test=8, seed=2)
    assert len(read) == 2
    assert kept.train.inputs.equal(real("gaussian", dim=4, classes=10, n_train=64, n_test=8, seed=2).train.inputs)


_SUCCESS, _FAILURE = 1, 2


def _hparams(folder: Path) -> tuple[Any, list[Any], dict[str, list[str]]]:
    """The experiment, a row for each run, and every run with its tags, as TensorBoard's server would send them."""
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams import api_pb2, backend_context, get_experiment, list_session_groups

    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(folder))
    context = backend_context.Context(TBContext(data_provider=provider, logdir=str(folder)))
    experiment = get_experiment.Handler(RequestContext(), context, "", api_pb2.GetExperimentRequest()).run()
    statuses = [api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE, api_pb2.STATUS_RUNNING]
    request = api_pb2.ListSessionGroupsRequest(
        start_index=0, slice_size=1000, allowed_statuses=statuses, include_metrics=True
    )
    rows = list_session_groups.Handler(RequestContext(), context, "", request).run().session_groups
    tags = {
        run: [tag for found in kinds.values() if isinstance(found, list) for tag in found]
        for run, kinds in multiplexer.Runs().items()
    }
    return experiment, list(rows), tags


# ---------------------------------------------------------------------------------------------- objective

SEARCH = (
    *("hydra/sweeper=optuna", "hydra.sweeper.n_trials=6", "optimizer.lr=tag(log,interval(1e-3,1))"),
    "init.gain=choice(1,1e30)",
)


def results(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((folder / optimizing.RESULTS_FILE).read_text(encoding="utf-8"))
    return content


def test_optuna_searches_and_a_diverged_trial_is_a_bad_one(here: Here, tmp_path: Path) -> None:
    done = here("train", "-m", *SEARCH, *TINY, "objective=test_loss", "out_dir=s")
    assert (done.returncode, done.stderr) == (0, "")
    found = cells(tmp_path / "s")
    assert len(found) == 6
    assert {entry.status for entry in found} == {"completed", "diverged"}
    assert {entry.swept["init.gain"] for entry in found if entry.status == "diverged"} == {"1e+30"}
    assert all(re.fullmatch(r"[0-9.e-]+", entry.swept["optimizer.lr"]) for entry in found)
    assert all(1e-3 <= float(entry.swept["optimizer.lr"]) <= 1 for entry in found)
    best = results(tmp_path / "s")
    assert (best["objective"], best["direction"], best["trials"]) == ("test_loss", "minimize", 6)
    losses = [_loss(tmp_path / "s", entry) for entry in found if entry.status == "completed"]
    assert best["best_value"] == min(losses)
    assert best["best_params"]["init.gain"] == "1"


def _loss(folder: Path, entry: Entry) -> float:
    from gradstab.run_directory import read_run

    return float(read_run(folder / entry.directory)["test_loss"])


def test_the_same_search_again_finds_its_trials_in_the_ledger(here: Here, tmp_path: Path, runs: list[Any]) -> None:
    first = here("train", "-m", *SEARCH, *TINY, "out_dir=s")
    assert (first.returncode, len(runs)) == (0, 6)
    before = results(tmp_path / "s")
    again = here("train", "-m", *SEARCH, *TINY, "out_dir=s")
    assert (again.returncode, len(runs)) == (0, 6)
    # The first trial says nothing of how many are done.
    assert "sweep of 6 cells · s\n" in again.stdout
    assert results(tmp_path / "s") == before
    assert before["direction"] == "maximize"
    # More trials go on where these ended.
    more = here("train", "-m", *SEARCH, *TINY, "out_dir=s", "hydra.sweeper.n_trials=8")
    assert (more.returncode, len(runs)) == (0, 8)
    assert results(tmp_path / "s")["trials"] == 8


def test_a_trial_that_makes_no_sense_is_told_and_does_not_end_the_search(here: Here, tmp_path: Path) -> None:
    words = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=8", "hydra.sweeper.seed=3", "out_dir=s", *TINY)
    space = ("model.norm=none,batch,layer", "model.norm_position=before,after,null")
    done = here("train", "-m", *words, *space)
    assert done.returncode == 0
    lines = done.stderr.splitlines()
    assert lines
    assert all(
        re.match(r"gradstab: trial \d: model\.norm_position=\w+: no effect with model\.norm=none", x) for x in lines
    )
    assert results(tmp_path / "s")["trials"] == 8
    assert {entry.status for entry in cells(tmp_path / "s")} == {"completed"}
    assert here("train", "-m", *words, *space).stderr == done.stderr


def test_a_search_whose_folder_cannot_be_written_is_refused_at_once(here: Here, tmp_path: Path) -> None:
    (tmp_path / "s").write_text("")
    done = here("train", "-m", *SEARCH, *TINY, "out_dir=s")
    assert done.returncode == 2
    assert done.stderr.startswith("gradstab: out_dir=s: cannot be written to")
    assert done.stderr.count("\n") == 1


def test_a_failed_trial_ends_neither_the_search_nor_goes_unsaid(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = gradstab.runner.build

    def build(config: Any, *args: Any, **kwargs: Any) -> Any:
        if config.act.name == "tanh":
            raise RuntimeError("tanh caught fire")
        return real(config, *args, **kwargs)

    monkeypatch.setattr(gradstab.runner, "build", build)
    words = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=6", "hydra.sweeper.sampler=random")
    done = here("train", "-m", *words, "act=tanh,relu", "optimizer.lr=interval(0.01,0.1)", *TINY, "out_dir=s")
    assert done.returncode == 1
    assert "tanh caught fire" in done.stderr
    statuses = {(entry.swept["act"], entry.status) for entry in cells(tmp_path / "s")}
    assert statuses == {("tanh", "failed"), ("relu", "completed")}
    assert results(tmp_path / "s")["best_params"]["act"] == "relu"
    assert results(tmp_path / "s")["trials"] == 6


def test_trials_at_a_time_and_one_cell_twice_in_a_batch(here: Here, tmp_path: Path, runs: list[Any]) -> None:
    words = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=6", "hydra.sweeper.n_jobs=3", "seed=range(0,2)")
    done = here("train", "-m", *words, *TINY, "out_dir=s")
    assert (done.returncode, done.stderr) == (0, "")
    # Two cells there are; six trials of them run each once.
    assert sorted(config.seed for config in runs) == [0, 1]
    assert results(tmp_path / "s")["trials"] == 6


def test_an_interval_is_searched_in_the_numbers_that_its_key_takes(here: Here, runs: list[Any]) -> None:
    words = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "hydra.sweeper.sampler=random", "out_dir=s")
    whole = ("model.depth=interval(1,3)", "seed=interval(1,500)", "batch_size=tag(log,interval(8,128))")
    numbers = ("optimizer.lr=interval(0,1)", "init.gain=int(interval(1,9))")
    done = here("train", "-m", *words, *TINY[1:4:2], *TINY[5:], *whole, *numbers, "steps=4")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(runs) == 4
    assert all(1 <= run.model.depth <= 3 and 1 <= run.seed <= 500 and 8 <= run.batch <= 128 for run in runs)
    assert not any(run.optimizer.lr.is_integer() for run in runs)
    assert all(run.init.gain.is_integer() for run in runs)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["act=relu"], "nothing to search"),
        (["seed=1,2", "objective=depth_factor"], "needs hydra.sweeper.direction; allowed: maximize, minimize"),
        (["seed=1,2", "objective=accuracy"], "did you mean"),
        (["seed=1,2", "hydra.sweeper.direction=up"], "hydra.sweeper.direction=up: must be one of maximize, minimize"),
        (["seed=1,2", "hydra.sweeper.sampler=grid"], "hydra.sweeper.sampler=grid"),
        (["seed=1,2", "hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials=0: must be a whole number, at least 1"),
        (["seed=1,2", "hydra.sweeper.n_trails=3"], "n_trails"),
        (["optimizer.lr=interval(1,0.1)"], "is no interval to search"),
        (["optimizer.lr=tag(log,interval(0,1))"], "above 0"),
        (["seed=interval(0.5,9)"], "seed=interval(0.5,9): has ends that seed does not take; allowed: whole numbers"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_one_line(
    here: Here, tmp_path: Path, words: list[str], said: str
) -> None:
    done = here("train", "-m", "hydra/sweeper=optuna", *words, *TINY, "out_dir=s")
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "s").exists()


def test_every_objective_with_a_direction_of_its_own_is_one() -> None:
    assert set(optimizing.DIRECTIONS) < set(FIGURES)
    assert math.isinf(optimizing.worst("maximize"))
    assert optimizing.worst("maximize") < 0 < optimizing.worst("minimize")


def test_a_study_may_be_configured_like_any_other(configure: Compose) -> None:
    config = configure("experiment=norm_and_residual")
    assert config.model.knobs["depth"] == 40
