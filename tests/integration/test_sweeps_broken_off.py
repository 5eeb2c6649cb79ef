"""Sweeps that end in the middle, run side by side, have many cells, or a disk too small."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradstab.events import read_records
from gradstab.sweeps.ledger import Ledger
from gradstab.sweeps.state import true_state
from tests.conftest import Here

SWEEP = (
    *("train", "-m", "act=relu,tanh", "seed=0,1", "model.depth=4", "model.width=16", "steps=160", "batch_size=32"),
    *("device=cpu", "images_after=null", "measure=full", "eval_every=20", "checkpoint.every=30", "out_dir=s"),
)
# What is not the same in two runs of the same configuration.
OWN = ("started", "seconds", "pid", "host", "resumed", "continued")


def start(cwd: Path, *args: str) -> subprocess.Popen[str]:
    env = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    return subprocess.Popen(
        [sys.executable, "-m", "gradstab", *args],
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def told(folder: Path) -> list[dict[str, Any]]:
    """The ledger's lines as far as they are whole."""
    path = folder / "ledger.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def outcome(folder: Path) -> dict[str, Any]:
    """What each cell's run left, without what belongs to when and where it ran."""
    found = {}
    for directory in sorted(folder.glob("*/")):
        record = json.loads((directory / "run.json").read_text())
        records = read_records(directory)
        series = {tag: (s.steps.tolist(), np.asarray(s.values).tobytes()) for tag, s in records.scalars.items()}
        vectors = {tag: (s.steps.tolist(), s.values.tobytes()) for tag, s in records.vectors.items()}
        config = (directory / "config.yaml").read_text().split("\n", 1)[1]
        plain = {key: value for key, value in record.items() if key not in OWN}
        found[directory.name] = (plain, series, vectors, config)
    return found


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("whole")
    process = start(folder, *SWEEP, "quiet=true")
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    return outcome(folder / "s")


@pytest.mark.parametrize(
    "number",
    [signal.SIGKILL, *(pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGINT, signal.SIGTERM))],
)
def test_the_union_of_two_halves_is_the_whole(
    here: Here, tmp_path: Path, uninterrupted: dict[str, Any], number: signal.Signals
) -> None:
    process = start(tmp_path, *SWEEP, "quiet=true")
    deadline = time.monotonic() + 120
    try:
        # Half of the second cell is done, and it has written a checkpoint.
        while process.poll() is None and time.monotonic() < deadline:
            lines = told(tmp_path / "s")
            if Counter(line["status"] for line in lines)["running"] == 2 and list(
                tmp_path.glob("s/001*/checkpoints/*")
            ):
                break
            time.sleep(0.02)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    entries, damaged = Ledger(tmp_path / "s").read()
    states = [true_state(tmp_path / "s", entry).status for entry in entries.values()]
    assert (states, damaged) == (["completed", "interrupted", "pending", "pending"], [])
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number
        assert errors == "gradstab: interrupted: 1 of 4 cells are done; the same command goes on with the rest\n"
    first = (next(tmp_path.glob("s/000*")) / "run.json").read_bytes()
    again = here(*SWEEP, "quiet=true")
    assert (again.returncode, again.stderr) == (0, "")
    assert (next(tmp_path.glob("s/000*")) / "run.json").read_bytes() == first
    assert outcome(tmp_path / "s") == uninterrupted
    assert (tmp_path / "s" / "results.csv").read_text().count("completed") == 4


def test_two_commands_at_once_share_the_cells(tmp_path: Path) -> None:
    command = ("train", "-m", "seed=0,1,2,3,4,5", "model.depth=2", "steps=150", "device=cpu", "images_after=null")
    both = [start(tmp_path, *command) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert [errors for _, errors in said] == ["", ""]
    (folder,) = (tmp_path / "outputs" / "sweeps").iterdir()
    lines = told(folder)
    assert Counter(line["status"] for line in lines if line["status"] != "pending") == {"running": 6, "completed": 6}
    assert len({line["key"] for line in lines}) == 6
    assert len(list(folder.glob("*/"))) == 6
    assert all(len(list(directory.glob("events*"))) == 1 for directory in folder.glob("*/"))
    assert Ledger(folder).read()[1] == []
    # Each shows the whole sweep at its end.
    for output, _ in said:
        assert "6 completed" in output


@pytest.mark.slow
def test_five_hundred_cells(here: Here, tmp_path: Path) -> None:
    tiny = ("model.depth=1", "model.width=2", "steps=1", "measure=none", "images_after=null", "checkpoint.every=null")
    words = ("data=line", "loss=mse", "device=cpu", "seed=range(0,500)", "out_dir=s", "quiet=true")
    done = here("train", "-m", *tiny, *words)
    assert (done.returncode, done.stderr) == (0, "")
    lines = (tmp_path / "s" / "results.csv").read_text().splitlines()
    assert len(lines) == 501
    assert sum(",completed," in line for line in lines) == 500
    assert len({line["key"] for line in told(tmp_path / "s")}) == 500
    assert here("status", "s").stdout.splitlines()[1].endswith("500/500")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with one megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except OSError as error:
        pytest.skip(f"cannot mount: {error}")
    if mounted.returncode:
        pytest.skip(f"may not mount a file system here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True, timeout=30)


@pytest.mark.slow
@pytest.mark.parametrize("room", [0, 100_000, 300_000])
def test_a_full_disk_is_one_clear_error(here: Here, small_disk: Path, room: int) -> None:
    words = ("model.depth=6", "model.width=8", "steps=60", "measure=full", "device=cpu", "images_after=null")
    command = ("train", "-m", *words, "measure.every=1", "seed=0,1,2,3,4,5,6,7,8,9", f"out_dir={small_disk}/s")
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * (os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize - room))
    done = here(*command, "quiet=true")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert "No space left on device" in done.stderr
    finished = {
        path: path.read_bytes() for path in small_disk.glob("s/*/run.json") if '"completed"' in path.read_text()
    }
    assert finished or room < 250_000
    for path in finished:
        assert read_records(path.parent).damaged == []
    assert Ledger(small_disk / "s").read()[1] == []
    if room:
        assert here("status", f"{small_disk}/s").returncode == 0
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True, timeout=30)
    again = here(*command, "quiet=true")
    assert (again.returncode, again.stderr) == (0, "")
    assert all(path.read_bytes() == content for path, content in finished.items())
    assert (small_disk / "s" / "results.csv").read_text().count("completed") == 10
