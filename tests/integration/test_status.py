"""``gradstab status`` of single runs: what it offers is what works."""

from __future__ import annotations

import datetime
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gradstab.claims import claimed
from gradstab.cli import main
from gradstab.events import EventWriter

KILLED = """
import os, signal, torch
from gradstab import watch
model = torch.nn.Linear(3, 2)
monitor = watch(model, "run")
for _ in range(3):
    loss = model(torch.ones(4, 3)).square().mean()
    loss.backward()
    monitor.step(loss)
os.kill(os.getpid(), signal.SIGKILL)
"""


def _said(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(["status", *args]) == 0
    return capsys.readouterr().out


def test_a_killed_loop_that_was_watched_is_offered_nothing_that_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    done = subprocess.run([sys.executable, "-c", KILLED], check=False, cwd=tmp_path, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    said = _said(capsys, "run")
    assert "interrupted" in said
    assert "--resume" not in said
    assert json.loads(_said(capsys, "run", "--json"))["watched"] is True
    assert main(["train", "--resume", "run"]) == 2
    assert "is a loop that was watched" in capsys.readouterr().err


def test_a_run_of_its_own_that_was_interrupted_is_offered_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a run"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"status": "interrupted", "steps": 3, "layers": ["00_output"]}))
    said = _said(capsys, str(folder))
    assert f"gradstab train --resume {shlex.quote(str(folder))} continues it" in said
    assert json.loads(_said(capsys, str(folder), "--json"))["watched"] is False


@pytest.mark.parametrize("when", ["seconds", "resumed"])
def test_times_that_no_float_holds_are_not_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], when: str) -> None:
    before = [{"step": 3, "at": "2026-01-01T00:00:00+00:00", "seconds": 10**400}]
    told = (
        {"status": "completed", "seconds": 10**400} if when == "seconds" else {"status": "running", "resumed": before}
    )
    (tmp_path / "run.json").write_text(json.dumps(told))
    with claimed(tmp_path):
        assert json.loads(_said(capsys, str(tmp_path), "--json"))["seconds"] is None


def test_time_between_two_parts_of_a_run_does_not_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now = datetime.datetime.now(datetime.UTC)
    began, resumed = (now - datetime.timedelta(hours=hours) for hours in (50, 1))
    record = {"status": "running", "started": began.isoformat(), "layers": []}
    record["resumed"] = [{"step": 7, "at": resumed.isoformat(), "seconds": 100.0}]
    (tmp_path / "run.json").write_text(json.dumps(record))
    with claimed(tmp_path):
        said = _said(capsys, str(tmp_path), "--json")
    assert json.loads(said)["seconds"] == pytest.approx(3700, abs=30)


def test_a_run_without_a_record_has_a_state_all_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = EventWriter(tmp_path, ["00_output"])
    writer.write(6, {"train/loss": 1.0}, {})
    writer.close()
    said = _said(capsys, str(tmp_path))
    assert "unknown  step 7" in said
    assert "run.json: cannot be read" in said


def test_a_ledger_that_names_no_cell_makes_no_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "000_a").mkdir()
    (tmp_path / "000_a/run.json").write_text("{}")
    (tmp_path / "ledger.jsonl").write_text("")
    assert main(["status", str(tmp_path)]) == 2
    told = capsys.readouterr()
    assert "its ledger.jsonl names no cell" in told.err
    assert f"such as {tmp_path / '000_a'}" in told.err
    # Where the folder is a run's too, that is what is told of.
    (tmp_path / "run.json").write_text('{"status": "completed"}')
    assert "completed" in _said(capsys, str(tmp_path))


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to nothing"])
def test_a_ledger_that_is_no_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    ledger = tmp_path / "ledger.jsonl"
    if kind == "folder":
        ledger.mkdir()
    elif kind == "pipe":
        os.mkfifo(ledger)
    else:
        ledger.symlink_to("nothing")
    assert main(["status", str(tmp_path)]) == (2 if kind == "link to nothing" else 1)
    told = capsys.readouterr()
    what = f"{tmp_path}: its ledger.jsonl names no cell" if kind == "link to nothing" else f"{ledger}: cannot be read"
    assert told.err.startswith(f"gradstab: {what}")
    assert (told.out, told.err.count("\n")) == ("", 1)


@pytest.mark.parametrize("text", ["", "[1]", '{"status": "comp'])
def test_a_run_whose_record_cannot_be_read_has_a_state_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / "run.json").write_text(text)
    assert "unknown" in _said(capsys, str(tmp_path))
