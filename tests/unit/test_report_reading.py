"""Event files decoded in bulk equal what protobuf gives value by value; runs are read however broken they are."""

from __future__ import annotations

import errno
import json
import math
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradstab import dashboard
from gradstab.claims import CLAIM_FILE, claimed
from gradstab.config.verdict_options import Thresholds
from gradstab.errors import ConfigError
from gradstab.events import EventWriter, layer_tags, read_events, read_records
from gradstab.measure.diagnosis import Judge
from gradstab.measure.verdict import Finding, Verdict
from gradstab.report import finding, reach, runs, table


def _one_by_one(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the file holds, read with protobuf alone."""
    scalars: dict[str, Any] = defaultdict(list)
    vectors: dict[str, Any] = defaultdict(list)
    for event in read_events(path):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                scalars[value.tag].append((event.step, value.simple_value))
            elif value.tag.startswith("layers/"):
                content = np.frombuffer(value.tensor.tensor_content, "<f8").tolist()
                vectors[value.tag.removeprefix("layers/")].append((event.step, content))
    return scalars, vectors


def _write(folder: Path, steps: int = 40) -> Path:
    """Records of several kinds, in turns: plain and measured steps, evaluations, hyperparameters, a picture."""
    rng = np.random.default_rng(0)
    writer = EventWriter(folder, layer_tags(["hidden"] * 3 + ["output"]))
    writer.write_summary(dashboard.layout())
    for step in (*range(steps), 127, 128, 20_000, 3_000_000):
        vectors = {"grad_norm": rng.standard_normal(4)}
        if step % 5 == 0:
            vectors |= {"signal_grad_norm": np.array([1e-300, math.inf, math.nan, 0.0]), "activation_std": np.ones(3)}
        writer.write(step, {"train/loss": float(rng.standard_normal()), "train/learning_rate": 0.0}, vectors)
        if step % 7 == 0:
            writer.write(step + 1, {"test/loss": math.nan, "test/accuracy": 0.5}, {})
        if step == 11:
            for summary in dashboard.hparams({"seed": 1}):
                writer.write_summary(summary, step)
            writer.write_summary(dashboard.image("depth/heatmap", b"png", 1, 1), step)
    writer.close()
    return writer.path


def test_bulk_decoding_gives_what_protobuf_gives(tmp_path: Path) -> None:
    scalars, vectors = _one_by_one(_write(tmp_path))
    records = read_records(tmp_path)
    assert records.damaged == []
    assert set(records.scalars) == set(scalars)
    assert set(records.vectors) == set(vectors)
    for tag, pairs in scalars.items():
        assert records.scalars[tag].steps.tolist() == [step for step, _ in pairs]
        np.testing.assert_array_equal(records.scalars[tag].values, [value for _, value in pairs])
    for name, pairs in vectors.items():
        assert records.vectors[name].steps.tolist() == [step for step, _ in pairs]
        np.testing.assert_array_equal(records.vectors[name].values, [value for _, value in pairs])


def test_of_two_files_with_the_same_steps_the_later_one_counts(tmp_path: Path) -> None:
    first = _write(tmp_path, steps=4)
    first.rename(tmp_path / "events.out.tfevents.0000000001.a")
    _write(tmp_path, steps=6)
    records = read_records(tmp_path)
    assert records.vectors["grad_norm"].steps.tolist() == [0, 1, 2, 3, 4, 5, 127, 128, 20_000, 3_000_000]
    assert records.scalars["train/loss"].steps.tolist() == [0, 1, 2, 3, 4, 5, 127, 128, 20_000, 3_000_000]
    assert records.left_out == ["events.out.tfevents.0000000001.a"]
    notes = runs.load(tmp_path, "run").notes
    assert "events.out.tfevents.0000000001.a is left out: another event file has the same steps" in notes


@pytest.mark.parametrize("name", ["events.out.tfevents.0000000001.a", "events.out.tfevents.9999999999.a.7.0"])
def test_a_file_of_somebody_elses_scalars_is_not_mixed_in(tmp_path: Path, name: str) -> None:
    (tmp_path / "own").mkdir()
    foreign = EventWriter(tmp_path / "own", [])
    for step in range(6):
        foreign.write(step, {"train/loss": 100.0 + step}, {})
    foreign.close()
    foreign.path.rename(tmp_path / name)
    _write(tmp_path, steps=4)
    alone = _write(tmp_path / "own", steps=4)
    records, wanted = read_records(tmp_path), read_records(alone.parent)
    assert records.left_out == [name]
    assert records.scalars["train/loss"].values.tolist() == wanted.scalars["train/loss"].values.tolist()


def test_what_is_newer_counts_among_files_that_overlap_and_the_rest_is_read(tmp_path: Path) -> None:
    for number, (tag, steps) in enumerate([("grad_norm", (0, 1)), ("grad_norm", (1, 2)), ("grad_norm", (5, 6))]):
        (tmp_path / "other").mkdir()
        writer = EventWriter(tmp_path / "other", ["a", "b"])
        for step in steps:
            writer.write(step, {"mine": 1.0}, {tag: np.array([number, 1.0])})
        writer.close()
        writer.path.rename(tmp_path / f"events.out.tfevents.000000000{number}.a")
        (tmp_path / "other").rmdir()
    records = read_records(tmp_path)
    assert records.left_out == ["events.out.tfevents.0000000000.a"]
    assert records.vectors["grad_norm"].values[:, 0].tolist() == [1.0, 1.0, 2.0, 2.0]


def test_files_with_steps_of_their_own_follow_one_another(tmp_path: Path) -> None:
    for number, steps in enumerate(((0, 1), (2, 3))):
        (tmp_path / "other").mkdir()
        writer = EventWriter(tmp_path / "other", ["a", "b"])
        for step in steps:
            writer.write(step, {"train/loss": float(step)}, {"grad_norm": np.array([1.0, 2.0])})
        writer.close()
        writer.path.rename(tmp_path / f"events.out.tfevents.000000000{number}.a")
        (tmp_path / "other").rmdir()
    records = read_records(tmp_path)
    assert records.scalars["train/loss"].values.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert records.left_out == []


def test_a_cut_file_is_named_and_read_up_to_the_cut(tmp_path: Path) -> None:
    path = _write(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    records = read_records(tmp_path)
    assert records.damaged == [path.name]
    kept = len(records.vectors["grad_norm"].steps)
    assert records.vectors["grad_norm"].steps.tolist() == [step for step, _ in _one_by_one(path)[1]["grad_norm"]]
    assert 10 < kept < 44


def test_a_record_that_is_no_event_ends_its_file(tmp_path: Path) -> None:
    from gradstab.framing import _masked_crc

    path = _write(tmp_path, steps=3)
    before = len(read_records(tmp_path).vectors["grad_norm"].steps)
    junk = b"\xff" * 20
    header = len(junk).to_bytes(8, "little")
    with path.open("ab") as file:
        file.write(header + _masked_crc(header) + junk + _masked_crc(junk))
    records = read_records(tmp_path)
    assert records.damaged == [path.name]
    assert len(records.vectors["grad_norm"].steps) == before


def test_vectors_of_different_lengths_are_filled_up(tmp_path: Path) -> None:
    for width in (2, 3):
        writer = EventWriter(tmp_path, layer_tags(["hidden"] * width))
        writer.write(width, {}, {"grad_norm": np.ones(width)})
        writer.close()
        writer.path.rename(tmp_path / f"events.out.tfevents.{width}")
    values = read_records(tmp_path).vectors["grad_norm"].values
    np.testing.assert_array_equal(values, [[1, 1, math.nan], [1, 1, 1]])


def test_runs_are_found_below_a_folder_each_once(tmp_path: Path) -> None:
    for name in ("b/001", "a/000", "a/.hydra"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("b/001", "a/000"):
        (tmp_path / name / "run.json").write_text("{}")
    (tmp_path / "a/mark").write_text("")
    found = finding.find([tmp_path, tmp_path / "a/000"], "mark")
    assert found == finding.Found([tmp_path / "a/000", tmp_path / "b/001"], [tmp_path / "a"], [])
    assert finding.names(found.runs) == ["a/000", "b/001"]
    assert finding.names(found.runs[:1]) == ["000"]


@pytest.mark.parametrize("stray", ["run.json", "events.out.tfevents.1"])
def test_a_stray_file_at_the_top_hides_no_run_below(tmp_path: Path, stray: str) -> None:
    top = tmp_path / "top"
    (top / "000").mkdir(parents=True)
    for path in (top / stray, top / "000/run.json"):
        path.write_text("{}")
    assert finding.find([top]).runs == finding.find([tmp_path]).runs == [top, top / "000"]


@pytest.mark.parametrize("count", [1, finding.NAMED, finding.NAMED + 2])
def test_what_may_not_be_read_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    shut = [tmp_path / f"{i:02d}" for i in range(count)]
    _refuse(monkeypatch, *shut)
    with pytest.raises(ConfigError) as raised:
        finding.find([tmp_path])
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text("{}")
    found = finding.find([tmp_path])
    lines = [f"{path}: cannot be read (Permission denied)" for path in shut[: finding.NAMED]]
    assert found.runs == [tmp_path / "run"]
    assert found.shut == lines + ["2 more cannot be read"] * (count > finding.NAMED)
    assert raised.value.problems[1:] == tuple(found.shut)
    with pytest.raises(ConfigError, match="Permission denied"):
        finding.find(shut[:1])


def _refuse(monkeypatch: pytest.MonkeyPatch, *shut: Path) -> None:
    """Make directories that may not be read, not by root either."""
    for path in shut:
        path.mkdir()
    scan = os.scandir

    def scandir(path: str) -> Any:
        if Path(path) in shut:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)


@pytest.mark.parametrize("what", ["missing", "empty", "file"])
def test_a_folder_without_runs_is_refused_by_name(tmp_path: Path, what: str) -> None:
    folder = tmp_path / what
    if what == "empty":
        folder.mkdir()
    elif what == "file":
        folder.write_text("")
    with pytest.raises(ConfigError) as raised:
        finding.find([folder])
    assert len(raised.value.problems) == 1
    assert str(folder) in raised.value.problems[0]


def test_aliases_in_a_configuration_are_refused(tmp_path: Path) -> None:
    levels = ["a: &a0 {x: 1, y: 2}"] + [f"b{i}: &a{i} {{l: *a{i - 1}, r: *a{i - 1}}}" for i in range(1, 40)]
    (tmp_path / "config.yaml").write_text("\n".join(levels))
    (tmp_path / "run.json").write_text("{}")
    run = runs.load(tmp_path, "bomb")
    assert run.settings == {}
    assert any("config.yaml cannot be read" in note for note in run.notes)


def test_the_theory_of_run_json_is_read_with_its_words_for_infinity(tmp_path: Path) -> None:
    theory = {"signal_grad_norm": ["inf", 0.5, 1], "depth_factor": 0.5, "depth_factor_r2": 1.0, "notes": ["wide"]}
    (tmp_path / "run.json").write_text(json.dumps({"status": "completed", "theory": theory}))
    assert runs.load(tmp_path, "x").theory["signal_grad_norm"] == [math.inf, 0.5, 1.0]
    (tmp_path / "run.json").write_text(json.dumps({"status": "completed", "theory": {"reason": "no theory of lsuv"}}))
    assert runs.load(tmp_path, "x").theory == {"reason": "no theory of lsuv"}


WHOLE = dict.fromkeys(Finding.__dataclass_fields__, 1) | {"layers": []}


@pytest.mark.parametrize(
    "found", [3, {}, WHOLE | {"kind": []}, WHOLE | {"value": "x"}, WHOLE | {"value": 10**400}, None]
)
def test_a_verdict_that_makes_no_sense_is_said_to_be_unreadable(tmp_path: Path, found: Any) -> None:
    verdict = {"labels": [], "step": 1, "findings": [found], "remedies": []}
    (tmp_path / "run.json").write_text(json.dumps({"status": "completed", "verdict": verdict}))
    run = runs.load(tmp_path, "x")
    assert run.verdict is None
    assert "the verdict in run.json cannot be read" in run.notes


@pytest.mark.parametrize("hidden", [-1, 10**12, 10**400])
def test_a_number_of_hidden_layers_that_cannot_be_ends_no_report(tmp_path: Path, hidden: int) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"layers": ["00_hidden", "01_output"], "hidden_layers": hidden}))
    assert reach.points(runs.load(tmp_path, "x")) in (None, 2)


def _judged_live(folder: Path, record: dict[str, Any], *, skipped: bool = False) -> Verdict:
    """Records of 30 steps with a signal lost towards the input, and what a judge said who saw them as they came."""
    tags = layer_tags(["hidden"] * 3 + ["output"])
    judge = Judge(
        tags,
        record["hidden_layers"],
        Thresholds(**record["thresholds"]),
        theory=record["theory"],
        chance_loss=record["chance_loss"],
        least_loss=record["least_loss"],
        depth_layers=record["depth_layers"],
    )
    writer = EventWriter(folder, tags)
    for step in range(30):
        scalars = {"train/loss": 2.25, "train/learning_rate": 0.5, "global_grad_norm/pre_clip": 1.0}
        vectors = {"grad_norm": np.ones(4), "signal_grad_norm": np.array([1e-2, 1e-1, 1.0, 1e4])}
        vectors |= {"weight_norm": np.full(4, 10.0), "update_ratio": np.full(4, 0.01)}
        if skipped and step == 20:
            scalars |= {"amp/skipped": 1.0, "global_grad_norm/pre_clip": math.inf}
            vectors = {"grad_norm": np.full(4, math.inf)}
        writer.write(step, scalars, vectors)
        judge.adaptive = record["adaptive_optimizer"] and step >= record["adaptive_since"]
        judge.observe(step, scalars, vectors)
    writer.close()
    (folder / "run.json").write_text(json.dumps(record))
    return judge.verdict()


OPENING: dict[str, Any] = {
    "status": "running",
    "hidden_layers": 3,
    "depth_layers": None,
    "adaptive_optimizer": False,
    "adaptive_since": 0,
    "chance_loss": 2.25,
    "least_loss": 0.0,
    "thresholds": {},
    "theory": {"depth_factor": 0.5},
}


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({}, {"depth_span"}),
        ({"thresholds": {"stalled_depth_decades": 2.5, "init_vanishing_decades": 2.5}}, set()),
        ({"theory": {"signal_share": 1e-6}}, {"lost_in_dropout", "depth_span"}),
        ({"theory": {"decay": 0.1}}, {"depth_span"}),
        ({"theory": {"decay": 0.3}}, {"decay", "depth_span"}),
        ({"adaptive_optimizer": True}, set()),
        ({"adaptive_optimizer": True, "adaptive_since": 30}, {"depth_span"}),
        ({"depth_layers": ["01_hidden", "02_hidden"]}, set()),
        ({"hidden_layers": 4}, {"depth_span"}),
        ({"chance_loss": 9.0}, set()),
        ({"chance_loss": 2.3}, {"depth_span"}),
        ({"chance_loss": 2.3, "least_loss": 1.9}, set()),
        ({"skipped": True}, {"depth_span"}),
    ],
)
def test_a_killed_run_gets_the_verdict_that_it_would_have_given_itself(
    tmp_path: Path, changed: dict[str, Any], found: set[str]
) -> None:
    record = OPENING | changed
    live = _judged_live(tmp_path, record, skipped=record.pop("skipped", False))
    assert {finding.rule for finding in live.findings} == found
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    run = runs.load(tmp_path, "x")
    assert run.verdict == live
    assert run.verdict.step == 29


@pytest.mark.parametrize(
    "broken",
    [
        {"thresholds": {"depth_decades": "x", "of_some_later_version": 1}},
        {"thresholds": {"stalled_depth_decades": True}},
        {"thresholds": 3},
        {"theory": {"signal_share": "x", "depth_factor": 0.5}},
        {"theory": {"signal_share": None, "depth_factor": 0.5}},
        {"theory": {"step_scale": None, "depth_factor": 0.5}},
        {"theory": {"decay": "x", "depth_factor": 0.5}},
        {"theory": {"step_scale": "inf", "depth_factor": 0.5}},
        {"hidden_layers": 10**12},
        {"hidden_layers": "many"},
        {"depth_layers": ["nobody"]},
        {"depth_layers": 3},
        {"adaptive_optimizer": "perhaps"},
    ],
)
def test_a_broken_entry_of_run_json_counts_as_missing_in_a_verdict(tmp_path: Path, broken: dict[str, Any]) -> None:
    live = _judged_live(tmp_path, OPENING)
    (tmp_path / "run.json").write_text(json.dumps(OPENING | broken))
    assert runs.load(tmp_path, "x").verdict == live


def test_without_thresholds_in_run_json_those_of_the_configuration_count(tmp_path: Path) -> None:
    _judged_live(tmp_path, OPENING)
    (tmp_path / "run.json").write_text(json.dumps({k: v for k, v in OPENING.items() if k != "thresholds"}))
    settings = "verdict:\n  name: default\n  stalled_depth_decades: {0}\n  init_vanishing_decades: {0}\n  plateau: x\n"
    for decades, labels in ((2.5, ("healthy",)), (1.5, ("vanishing",))):
        (tmp_path / "config.yaml").write_text(settings.format(decades))
        verdict = runs.load(tmp_path, "x").verdict
        assert verdict is not None
        assert verdict.labels == labels


def test_a_run_is_running_as_long_as_its_process_holds_its_directory(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"status": "running"}')
    with claimed(tmp_path):
        run = runs.load(tmp_path, "x")
        assert run.status == "running"
        assert "still running: no final figures" in run.notes
    assert runs.load(tmp_path, "x").status == "interrupted"


@pytest.mark.parametrize(("checkpoint", "watched"), [(True, False), (False, False), (True, True)])
def test_a_killed_run_is_said_to_go_on_only_from_a_checkpoint_of_its_own(
    tmp_path: Path, checkpoint: bool, watched: bool
) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"status": "running"} | ({"watched": "Net"} if watched else {})))
    (tmp_path / CLAIM_FILE).touch()
    (tmp_path / "checkpoints").mkdir()
    if checkpoint:
        (tmp_path / "checkpoints" / "step_00000010.pt").write_bytes(b"")
    more = " (gradstab train --resume continues it)" if checkpoint and not watched else ""
    assert f"killed: no final figures{more}" in runs.load(tmp_path, "x").notes


def test_a_watched_run_lacks_no_configuration(tmp_path: Path) -> None:
    _write(tmp_path)
    for record, missed in (({"status": "completed", "watched": "Net"}, False), ({"status": "completed"}, True)):
        (tmp_path / "run.json").write_text(json.dumps(record))
        assert ("no config.yaml" in runs.load(tmp_path, "x").notes) == missed


def test_clipped_and_skipped_steps_are_facts_only_where_there_were_any() -> None:
    for count, shown in ((0, []), (2, [("clipped steps", "2"), ("skipped steps", "2")])):
        record = {"steps": 0, "clipped_steps": count, "skipped_steps": count}
        assert table.facts(runs.Run(Path(), "x", record)) == [("steps", "0"), *shown]


def test_lists_in_a_configuration_are_joined_by_commas(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "config.yaml").write_text("model:\n  widths: [64, 32]\nstop_on: [vanishing, dead_units]\nnone: []\n")
    settings = runs.load(tmp_path, "x").settings
    assert settings == {"model.widths": "64,32", "stop_on": "vanishing,dead_units", "none": "none"}


def test_a_run_without_settings_makes_no_key_differ() -> None:
    settings = [{"a": 1, "b": 2}, {}, {"a": 1, "b": 3}]
    assert table.differing(settings) == ["b"]
    assert table.differing([{}, {"a": 1}]) == []
    assert table.differing([{"a": 1}, {"b": 1}]) == ["a", "b"]


@pytest.mark.parametrize(
    ("caption", "text"),
    [
        ("model=deep_mlp, seed=0", "model=deep_mlp, seed=0"),
        ("model.depth=20, optimizer.lr=0.1, optimizer.momentum=0.9, seed=3", "depth=20, lr=0.1, momentum=0.9, seed=3"),
        (
            "optimizer.eps=1, model.norm.eps=2, optimizer.weight_decay=0.001, seed=12345",
            "optimizer.eps=1, model.norm.eps=2, … 2 more",
        ),
        ("data.root=/" + "folder/" * 20 + "end, seed=1", "root=/folder/fold…/folder/end, seed=1"),
        ("a" * 50 + "b" * 50, "a" * 30 + "…" + "b" * 29),
        ("k" * 100 + "=1", "k" * 30 + "…" + "k" * 27 + "=1"),
    ],
)
def test_long_captions_are_shortened_where_it_hurts_least(caption: str, text: str) -> None:
    assert table.shortened(caption) == text
    assert all(len(table.shortened(caption, width)) <= width for width in (20, 52, 60))


@pytest.mark.parametrize(("count", "text"), [(0, "the whole network"), (3, "0, 1, 2"), (4, "0 … 3 (4 layers)")])
def test_more_than_three_layers_are_told_by_their_ends(count: int, text: str) -> None:
    assert table.spans(range(count)) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (math.nan, "NaN"),
        ("inf", "∞"),
        (-math.inf, "−∞"),
        (3.0, "3"),
        (12345, "12,345"),
        (0.123456, "0.1235"),
    ],
)
def test_numbers_as_people_read_them(value: Any, text: str) -> None:
    assert table.number(value) == text


@pytest.mark.parametrize(
    ("one", "other", "differ"),
    [
        (1, 1.0, False),
        (1, True, True),
        (1.0, "1.0", True),
        (0, False, True),
        (math.nan, math.nan, False),
        (1, 1.5, True),
    ],
)
def test_a_number_is_the_same_however_it_is_written(one: object, other: object, *, differ: bool) -> None:
    assert bool(table.differing([{"gain": one}, {"gain": other}])) == differ


def test_counts_are_whole_numbers_however_large() -> None:
    counts = {"steps": 2_000_001, "clipped_steps": 1_234_567, "skipped_steps": 1_000_000, "parameters": 12_345_678}
    run = runs.Run(Path(), "run", {**counts, "train_loss": 1_234_567.0})
    facts = dict(table.facts(run))
    for name, count in counts.items():
        assert facts[name.replace("_", " ")] == f"{count:,}"
    assert facts["train loss"] == "1.235e+06"
    cells = dict(zip(table.RESULTS, table.row(run, 0, [], None).cells, strict=True))
    assert (cells["steps done"].text, cells["steps done"].sort) == ("2,000,001", "2000001.0")
    assert table.number(2_000_001) == "2,000,001"
    assert table.number(10**300) == "1e+300"
