"""What a sweep costs beyond its runs' training, and what several processes gain; called by bench.py."""

from __future__ import annotations

import contextlib
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradstab.session
from gradstab.cli import main
from gradstab.events import EventWriter

STEPS = 200
CELLS = 64
# Groups and values in turn, so that composing has both to do.
OVERHEAD_WORDS = ("act=relu,tanh", "init=kaiming_normal,orthogonal", "seed=range(0,6)")


class Clock:
    """Adds up the time spent in functions that it stands in for."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


@contextlib.contextmanager
def clocked(owner: Any, *names: str) -> Iterator[Clock]:
    """A clock in place of some of an object's functions, none of which calls another."""
    clock = Clock()
    before = {name: getattr(owner, name) for name in names}
    for name in names:
        setattr(owner, name, clock.around(before[name]))
    try:
        yield clock
    finally:
        for name in names:
            setattr(owner, name, before[name])


def bench_overhead(rounds: int) -> None:
    """A serial sweep of 200-step cells in this process: all that is not the training loop, or writes its events."""
    shares, extra, whole = [], [], []
    for number in range(rounds + 1):
        with (
            tempfile.TemporaryDirectory() as scratch,
            clocked(gradstab.session, "fit") as training,
            clocked(EventWriter, "write", "flush") as writing,
            contextlib.redirect_stdout(io.StringIO()),
        ):
            start = time.perf_counter()
            words = (f"steps={STEPS}", "device=cpu", f"out_dir={scratch}/sweep")
            assert main(["train", "-m", *OVERHEAD_WORDS, *words]) == 0
            seconds = time.perf_counter() - start
            cells = len(list(Path(scratch, "sweep").glob("*/run.json")))
        if number:
            beyond = seconds - training.seconds + writing.seconds
            shares.append(beyond / seconds)
            extra.append(beyond / cells)
            whole.append(seconds / cells)
    print(
        f"a cell of {STEPS} steps, {cells} in a serial sweep: {statistics.median(whole):.2f} s, of which "
        f"{statistics.median(extra) * 1e3:.0f} ms beyond training: {statistics.median(shares):.1%} "
        f"(rounds from {min(shares):.1%} to {max(shares):.1%}; limit 10 %)"
    )


def bench_rate(rounds: int) -> None:
    """64 cells of 200 steps: whole commands, joblib with two processes against serial, in turn."""
    contenders = {
        "joblib": (["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], {}),
        "serial": ([], {}),
        "serial on one thread": ([], {"OMP_NUM_THREADS": "1"}),
    }
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, (words, variables) in contenders.items():
            taken[name].append(_command_seconds(words, variables))
    joblib = statistics.median(taken.pop("joblib"))
    print(
        f"{CELLS} cells of {STEPS} steps, joblib with 2 processes: {joblib:.1f} s, {CELLS / joblib:.2f} cells a second"
    )
    for name, times in taken.items():
        seconds = statistics.median(times)
        limit = "   (limit 1.7 ×)" if name == "serial" else ""
        print(f"    against {name} {seconds:.1f} s: {seconds / joblib:.2f} × the rate{limit}")


def _command_seconds(words: list[str], variables: dict[str, str]) -> float:
    with tempfile.TemporaryDirectory() as scratch:
        sweep = [f"seed=range(0,{CELLS})", f"steps={STEPS}", "device=cpu", f"out_dir={scratch}/sweep"]
        command = [sys.executable, "-m", "gradstab", "train", "-m", *sweep, *words]
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | variables)
        seconds = time.perf_counter() - start
        assert len(list(Path(scratch, "sweep").glob("*/run.json"))) == CELLS
    return seconds


def bench_sweep(rounds: int) -> None:
    """Both; a round takes a minute or several, so there are a third as many."""
    bench_overhead(max(1, rounds // 3))
    bench_rate(max(1, rounds // 3))
