"""Event files decoded in bulk equal what protobuf gives value by value; runs are read however broken they are."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradstab import dashboard
from gradstab.errors import ConfigError
from gradstab.events import EventWriter, layer_tags, read_events, read_records
from gradstab.measure.verdict import Finding
from gradstab.report import finding, runs, table


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
    writer.write_summary(dashboard.layout(["grad_norm"]))
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


def test_two_files_follow_one_another(tmp_path: Path) -> None:
    first = _write(tmp_path, steps=4)
    first.rename(tmp_path / "events.out.tfevents.0000000001.a")
    _write(tmp_path, steps=6)
    steps = read_records(tmp_path).vectors["grad_norm"].steps.tolist()
    assert steps == [0, 1, 2, 3, 127, 128, 20_000, 3_000_000, 0, 1, 2, 3, 4, 5, 127, 128, 20_000, 3_000_000]


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
    from gradstab.events import _masked_crc

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
    found = finding.find([tmp_path, tmp_path / "a/000"])
    assert found == [tmp_path / "a/000", tmp_path / "b/001"]
    assert finding.names(found) == ["a/000", "b/001"]
    assert finding.names(found[:1]) == ["000"]


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


@pytest.mark.parametrize("found", [3, {}, WHOLE | {"kind": []}, WHOLE | {"value": "x"}, None])
def test_a_verdict_that_makes_no_sense_is_said_to_be_unreadable(tmp_path: Path, found: Any) -> None:
    verdict = {"labels": [], "step": 1, "findings": [found], "remedies": []}
    (tmp_path / "run.json").write_text(json.dumps({"status": "completed", "verdict": verdict}))
    run = runs.load(tmp_path, "x")
    assert run.verdict is None
    assert "the verdict in run.json cannot be read" in run.notes


def test_a_missing_verdict_is_found_with_the_runs_own_thresholds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradstab.measure import diagnosis

    seen: list[tuple[Any, ...]] = []
    judge = diagnosis.judge_records
    monkeypatch.setattr(diagnosis, "judge_records", lambda *given: seen.append(given) or judge(*given))
    _write(tmp_path)
    record = {"status": "running", "adaptive_optimizer": True, "hidden_layers": 3, "chance_loss": 2.3}
    (tmp_path / "run.json").write_text(json.dumps(record))
    (tmp_path / "config.yaml").write_text("verdict:\n  name: default\n  depth_decades: 77.5\n  plateau: x\n")
    run = runs.load(tmp_path, "x")
    assert run.verdict is not None
    assert run.verdict.step == 3_000_000
    ((records, known, thresholds),) = seen
    assert (thresholds.depth_decades, thresholds.plateau) == (77.5, type(thresholds)().plateau)
    assert known.items() >= {"adaptive_optimizer": True, "hidden_layers": 3, "chance_loss": 2.3}.items()
    assert not any("/00_hidden" in tag for tag in records.scalars)


def test_differing_keys_are_those_two_configurations_disagree_on() -> None:
    first = {"seed": 0, "act": "relu", "model.width": "[3, 4]", "clip": "norm", "clip.max_norm": 1.0}
    second = {"seed": 0, "act": "tanh", "model.width": "[3, 4]", "clip": "none"}
    assert table.differing([first, second]) == ["act", "clip", "clip.max_norm"]
    assert table.differing([first, first]) == []
    assert table.differing([first, {}]) == list(first)
    assert table.differing([{"a": 1}, {"a": True}]) == ["a"]


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
