"""What the launchers' tests have done in other processes: quick, and without anything that takes long to import."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from gradstab.launchers import Task


def _file(task: Task, name: str) -> Path:
    return Path(task.payload["folder"]) / f"{task.key}.{name}"


def tries(task: Task) -> int:
    """How often a task was called so far."""
    path = _file(task, "tries")
    return len(path.read_text().splitlines()) if path.exists() else 0


def _begin(task: Task) -> int:
    with _file(task, "tries").open("a") as file:
        file.write(f"{os.getpid()}\n")
    return tries(task)


def told(task: Task) -> str:
    """Writes down what it finds around it."""
    _begin(task)
    time.sleep(task.payload.get("seconds", 0))
    names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    found = {name: os.environ.get(name) for name in names} | {"pid": os.getpid(), "cwd": str(Path.cwd())}
    if "torch" in sys.modules or task.payload.get("torch"):
        import torch

        found["torch"] = torch.get_num_threads()
    _file(task, "json").write_text(json.dumps(found))
    return "completed"


def deadly(task: Task) -> str:
    """Kills its worker so many times, then completes."""
    if _begin(task) <= task.payload.get("deaths", 0):
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(task.payload.get("seconds", 0))
    return "completed"


def broken(task: Task) -> str:
    """Raises where it is asked to."""
    if task.payload.get("raises"):
        raise OSError("no such luck\nand a second line")
    return "completed"


def endless(task: Task) -> str:
    """Runs until it is told to end, the first ``rounds`` times; says that it did so in order."""
    if _begin(task) > task.payload.get("rounds", 1000):
        return "completed"
    try:
        _file(task, "started").touch()
        for _ in range(1200):
            time.sleep(0.1)
    except KeyboardInterrupt:
        time.sleep(0.3)  # Writing a checkpoint.
        with _file(task, "ended").open("a") as file:
            file.write("in order\n")
        raise
    return "too late"
