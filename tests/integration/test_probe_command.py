"""``gradstab probe`` as a person meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gradstab.catalogue import listing
from tests.conftest import Here

TINY = ("model.depth=3", "model.width=16", "batch_size=32", "device=cpu", "probe.seeds=2")


def test_measured_beside_predicted_and_a_verdict(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    done = here("probe", *TINY, "act=sigmoid", "init=xavier_normal", "model.depth=12")
    assert (done.returncode, done.stderr) == (0, "")
    assert all(word in done.stdout for word in ("00_hidden", "11_hidden", "12_output", "theory", "sat.", "dead"))
    assert "depth factor" in done.stdout
    assert "vanishing" in done.stdout
    assert "init=critical" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_json_is_the_only_thing_on_standard_output(here: Here) -> None:
    done = here("probe", "--json", *TINY, "act=gelu", "init=critical")
    found = json.loads(done.stdout)
    assert found["seeds"] == [0, 1]
    assert len(found["layers"]) == 4
    assert done.stdout.count("\n") == 1
    assert done.stderr.count("\n") == 1
    assert "half-stable at sigma_b2=0.172922" in done.stderr


def test_a_runs_directory_is_probed_as_it_was_configured(here: Here) -> None:
    trained = ("model.depth=3", "model.width=16", "batch_size=32", "device=cpu", "act=tanh", "steps=1", "quiet=true")
    assert here("train", *trained, "out_dir=run").returncode == 0
    done = here("probe", "--config-dir", "run", "--json", "probe.seeds=1")
    record = json.loads(Path("run/run.json").read_text(encoding="utf-8"))
    found = json.loads(done.stdout)
    assert found["depth_factor"]["measured"] == pytest.approx(record["depth_factor"], rel=1e-6)
    assert found["depth_factor"]["predicted"] == record["theory"]["depth_factor"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("-m", "seed=1,2"), "-m: a probe looks at one network"),
        (("out_dir=x",), "out_dir=x: no effect"),
        (("quiet=true",), "quiet=true: no effect"),
        (("probe.seeds=0",), "probe.seeds=0: must be"),
        (("+probe.seeds=2",), "+probe.seeds=2: a probe's knobs are set one by one; allowed: probe.seeds=, "),
        (("probe={seeds: 2}",), "probe={seeds: 2}: a probe's knobs are set one by one; allowed: probe.seeds=, "),
        (("~probe.jacobian",), "~probe.jacobian: a probe's knobs are set one by one; allowed: probe.seeds=, "),
        (("act=relu", "init=critical", "init.sigma_b2=0.1"), "allowed: init.sigma_b2=0, or another act"),
        (("--jsn",), "--jsn: there is no such flag; allowed: --json, -h, --help, --cfg"),
        (("--json=true",), "--json=true: takes no value; allowed: --json"),
        (("probe.seeds=2", "probe.seeds=3"), "probe.seeds=3: probe.seeds was given already"),
        (("stop_on=vanishing",), "stop_on=vanishing: no effect, as a probe"),
        (("measure=none",), "measure=none: no effect, as a probe"),
        (("hydra.run.dir=x",), "hydra.run.dir=x: no effect, as a probe writes nothing"),
        (("hydra/launcher=joblib",), "hydra/launcher=joblib: no effect, as a probe is one network"),
        (("--json", "--cfg", "job"), "--json: no effect with --cfg"),
        (("act=gelu", "init=critical", "init.sigma_b2=1e-300"), "too small to tell its edge of chaos from that at 0"),
        (
            ("experiment=activation_by_depth",),
            "experiment=activation_by_depth: is a sweep of 25 runs; a probe looks at one",
        ),
        (("probe.seeds=2", "seed=4294967295"), "probe.seeds=2: from seed=4294967295 up to 4294967296; allowed: up to"),
        (("measure.every=2",), "measure.every=2: no effect, as a probe"),
        (("images_after=5",), "images_after=5: no effect, as a probe"),
        (("target_loss=0.1",), "target_loss=0.1: no effect, as a probe"),
        (("eval_every=7",), "eval_every=7: no effect, as a probe"),
        (("on_divergence=skip",), "on_divergence=skip: no effect, as a probe"),
    ],
)
def test_bad_input_is_one_line(here: Here, words: tuple[str, ...], named: str) -> None:
    done = here("probe", "device=cpu", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("gradstab: ")
    assert named in done.stderr
    assert "--multirun" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_draw_that_differs_is_named(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    words = ("model.width=6", "model.depth=10", "device=cpu")
    done = here("probe", *words, "seed=32", "probe.seeds=3")
    assert "draws        the verdict below is that of 2 of 3 draws; seed 33: vanishing, dead_units" in done.stdout
    assert "verdict: healthy" in done.stdout
    assert "0.00e+00" not in done.stdout
    assert "draws   " not in here("probe", *words, "seed=34", "probe.seeds=1").stdout


def test_gradients_that_are_not_finite_are_called_so(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    words = ("act=relu", "init=normal", "init.std=1e6", "model.depth=12", "device=cpu", "probe.seeds=1")
    done = here("probe", *words)
    assert done.returncode == 0
    assert "depth factor none: the gradients are not finite" in done.stdout
    assert "nan" in done.stdout
    assert "nan%" not in done.stdout
    alone = here("probe", "model.depth=1", "device=cpu", "probe.seeds=1")
    assert "depth factor none: it takes two hidden layers with a gradient" in alone.stdout


def test_its_knobs_are_no_part_of_a_run(here: Here) -> None:
    done = here("train", "probe.seeds=3")
    assert done.returncode == 2
    assert done.stderr.startswith("gradstab: probe")
    assert done.stderr.count("\n") == 1
    assert "probe.jacobian=false" in listing("probe")
    assert "probe.seeds=5" in listing()


@pytest.mark.parametrize("columns", [40, 90])
def test_numbers_stay_whole_on_any_terminal(here: Here, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    done = here("probe", *TINY, "act=tanh", "model.depth=60", "probe.jacobian=true", "probe.samples=1")
    rows = [line for line in done.stdout.splitlines() if line.startswith(tuple(f"{i:02d}_" for i in range(61)))]
    # 24 layers of the profile and 32 of the Jacobians.
    assert len(rows) == 24 + 32
    assert all("…" not in row and len(row) <= columns for row in rows)
    assert all("e" in cell or cell.endswith("%") or float(cell) >= 0 for row in rows for cell in row.split()[1:])
    assert "24 of 61 layers, evenly spaced" in done.stdout
