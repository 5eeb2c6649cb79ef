"""SIGINT and SIGTERM to real processes: they end in order and in time, and say so."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gradstab import checkpoint, cli, interrupts
from gradstab.errors import Interrupted
from gradstab.events import read_records
from gradstab.interrupts import caught
from gradstab.run_directory import holds_run, read_run, status_of
from gradstab.runner import run
from tests.conftest import Compose

# Seconds: two that are promised, and what a machine may take that has other work to do.
PROMISED = 2.0
LENIENT = 2.0
ENDLESS = ("train", "steps=1000000", "device=cpu", "out_dir=run", "model.width=16")

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start gradstab in ``tmp_path``; whatever still runs at the end is killed."""
    processes = []

    def call(*words: str) -> subprocess.Popen[str]:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "100"}
        process = subprocess.Popen(
            [sys.executable, "-m", "gradstab", *words],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        processes.append(process)
        return process

    yield call
    for process in processes:
        process.kill()
        process.communicate()


def wait_for_steps(directory: Path) -> None:
    """Wait until a run has recorded some."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if directory.exists() and (losses := read_records(directory).scalars.get("train/loss")) is not None:
            assert len(losses.steps)
            return
        time.sleep(0.1)
    raise AssertionError("the run did not start")


def ends(process: subprocess.Popen[str]) -> tuple[int, str, float]:
    """Exit code, what was said on standard error, and how long it took."""
    begin = time.monotonic()
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors, time.monotonic() - begin


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_in_order(start: Start, tmp_path: Path, number: int, code: int) -> None:
    process = start(*ENDLESS)
    wait_for_steps(tmp_path / "run")
    assert status_of(tmp_path / "run") == "running"
    process.send_signal(number)
    returned, errors, seconds = ends(process)
    assert returned == code
    assert seconds < PROMISED + LENIENT
    record = read_run(tmp_path / "run")
    steps = record["steps"]
    assert record["status"] == "interrupted"
    assert record["reason"] == f"interrupted by {signal.Signals(number).name} after {steps} steps"
    assert errors == f"gradstab: interrupted after {steps:,} steps; gradstab train --resume run continues it\n"
    (path,) = checkpoint.kept(tmp_path / "run")
    state = checkpoint.read(path, record["identity"])
    losses = read_records(tmp_path / "run").scalars["train/loss"].steps
    assert losses.tolist() == list(range(steps))
    assert state["step"] == steps
    (events,) = (tmp_path / "run").glob("events*")
    assert state["events"]["position"] == events.stat().st_size


def test_a_second_ctrl_c_ends_a_run_at_once(start: Start, tmp_path: Path) -> None:
    # One step of it takes far longer than the test has patience.
    process = start(*ENDLESS[:-1], "model.width=1400", "model.depth=40", "batch_size=full", "measure=none")
    deadline = time.monotonic() + 90
    while not list((tmp_path / "run").glob("events*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    assert status_of(tmp_path / "run") == "running"
    process.send_signal(signal.SIGINT)
    returned, errors, seconds = ends(process)
    assert returned == 130
    assert seconds < PROMISED + LENIENT
    assert errors == ""
    assert read_run(tmp_path / "run")["status"] == "running"
    assert status_of(tmp_path / "run") == "interrupted"


@pytest.mark.slow
def test_signals_at_random_moments_leave_nothing_broken(start: Start, tmp_path: Path) -> None:
    """From the interpreter's start over building and training to the pictures and the verdict at the end."""
    words = ("train", "steps=30", "device=cpu", "model.depth=3", "model.width=8", "eval_every=10", "checkpoint.every=9")
    begin = time.monotonic()
    whole = start(*words, "out_dir=whole")
    assert ends(whole)[0] == 0
    takes = time.monotonic() - begin
    count = 4
    draw = random.Random(5)
    # Not before the interpreter has come as far as our own first line; all at once take longer than one.
    moments = sorted(draw.uniform(0.3, count / 2) * takes for _ in range(count))
    begin = time.monotonic()
    processes = [start(*words, f"out_dir={i}") for i in range(count)]
    for i, (process, moment) in enumerate(zip(processes, moments, strict=True)):
        number, code = ((signal.SIGINT, 130), (signal.SIGTERM, 143))[i % 2]
        time.sleep(max(0.0, begin + moment - time.monotonic()))
        ended = process.poll() is not None
        process.send_signal(number)
        returned, errors, _ = ends(process)
        assert "Traceback" not in errors
        # In its very last moment, as in its first, a process leaves signals to the system.
        assert returned in ((0,) if ended else (code, -number, 0)), errors
        if holds_run(tmp_path / str(i)):
            assert status_of(tmp_path / str(i)) in ("interrupted", "completed")
            read_records(tmp_path / str(i))


def test_handlers_are_there_only_while_a_run_is(configure: Compose, tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with caught() as stop:
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == [stop.receive] * 2
    run(configure("quiet=true", "device=cpu", "steps=2", "model.depth=2", "images_after=null"), tmp_path / "run")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_run_in_another_thread_takes_no_signals(configure: Compose, tmp_path: Path) -> None:
    config = configure("quiet=true", "device=cpu", "steps=2", "model.depth=2", "images_after=null")
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(run(config, tmp_path / "run")))
    thread.start()
    thread.join()
    assert found[0]["status"] == "completed"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_told_whatever_others_make_of_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, code: int
) -> None:
    def swallowed(*_: object) -> int:
        with contextlib.suppress(Interrupted):
            interrupts._interrupt(number, None)
        raise TypeError("argument of type 'NoneType' is not iterable")

    monkeypatch.setattr(interrupts, "_heard", [])
    monkeypatch.setattr(cli, "_command", swallowed)
    assert cli.main(["train"]) == code
    assert capsys.readouterr().err == "gradstab: interrupted\n"
    # What was swallowed without a trace is not forgotten by the run that follows either.
    with pytest.raises(Interrupted), caught():
        raise AssertionError("went on")


AT_THE_END = """
import atexit, signal, time
import gradstab.cli as cli
def main(args):
    atexit.register(lambda: (print("ending", flush=True), time.sleep(60)))
    return 3
cli.main = main
cli.entry_point()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_when_all_is_said_ends_the_process_without_a_word(number: int) -> None:
    command = [sys.executable, "-c", AT_THE_END]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ending\n"
        process.send_signal(number)
        assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 3


def test_signals_that_wait_are_not_lost() -> None:
    def terminated(times: int) -> None:
        with stop.waiting():
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGTERM)
            reached.append(True)

    reached: list[bool] = []
    with caught() as stop:
        with pytest.raises(Interrupted) as late:
            terminated(2)
        assert reached
        assert late.value.signal == signal.SIGTERM
        # What ends already is not ended once more.
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
    with caught() as stop, pytest.raises(Interrupted):
        os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(Interrupted, match="interrupted by signal 2"):
        stop.poll()


TWICE = """
import os, signal, sys
from gradstab.interrupts import caught
with caught() as stop:
    try:
        with stop.waiting():
            for number in map(int, sys.argv[1:]):
                os.kill(os.getpid(), number)
            print("went on", flush=True)
    finally:
        print("ended in order", flush=True)
"""


@pytest.mark.parametrize(
    ("numbers", "code", "said"),
    [
        ((2, 2), 130, ""),
        ((15, 2, 2), 130, ""),
        ((2, 15), 1, "went on\nended in order\n"),
        ((15, 15, 15), 1, "went on\nended in order\n"),
        ((15, 2), 1, "went on\nended in order\n"),
    ],
)
def test_only_a_second_ctrl_c_is_impatient(numbers: tuple[int, ...], code: int, said: str) -> None:
    command = [sys.executable, "-c", TWICE, *map(str, numbers)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert answer.stdout == said
    # Uncaught, the exception that ends it is a keyboard interrupt to Python.
    assert answer.returncode == code or (code == 1 and answer.returncode in (1, 130, -2))


def test_a_shell_scripts_background_job_listens(tmp_path: Path) -> None:
    """There, SIGINT is ignored from the start."""
    command = f"{sys.executable} -m gradstab {' '.join(ENDLESS)} quiet=true & echo $!; wait $!; echo $?"
    shell = subprocess.Popen(["sh", "-c", command], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert shell.stdout is not None
    job = int(shell.stdout.readline())
    try:
        wait_for_steps(tmp_path / "run")
        os.kill(job, signal.SIGINT)
        assert shell.stdout.readline() == "130\n"
    finally:
        shell.wait()
        shell.stdout.close()
    assert status_of(tmp_path / "run") == "interrupted"


def test_a_run_goes_on_when_nobody_reads_what_it_says(tmp_path: Path) -> None:
    """As in ``gradstab train | head -1``; rich, left to itself, ends the process and leaves run.json at "running"."""
    size = ("steps=40", "eval_every=5", "device=cpu", "out_dir=run", "model.depth=2", "model.width=4")
    command = [sys.executable, "-m", "gradstab", "train", *size, "images_after=null"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    # Before anything is said: the headline itself finds nobody.
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), said) == (0, "")
    assert read_run(tmp_path / "run")["status"] == "completed"
