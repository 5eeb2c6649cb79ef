"""Runs one configuration again and again, killed at random moments: ``python -m tests.integration.killing FOLDER``.

One process imports everything, then forks: a fresh interpreter for each of many runs would take minutes. Prints, as
JSON, the folders of the runs that came to their end and when the others were killed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from hydra import compose, initialize_config_module

from gradstab.config import Config, from_hydra, register_schema
from gradstab.events import read_records
from gradstab.run_directory import holds_run, read_run, status_of
from gradstab.runner import run

KILLS = 30
OVERRIDES = (
    *("quiet=true", "device=cpu", "images_after=null", "steps=40", "eval_every=7", "checkpoint.every=4"),
    *("model.depth=3", "model.width=16", "batch_size=64", "model.norm=batch", "model.dropout=0.2"),
    *("optimizer=adam", "clip=zclip", "clip.warmup_steps=5", "constraint=spectral_norm", "schedule=cosine"),
)


def started(config: Config, directory: Path) -> int:
    """A process that runs ``config`` to its end."""
    child = os.fork()
    if child:
        return child
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 2)
    code = 1
    try:
        run(config, directory, restart=True)
        code = 0
    finally:
        os._exit(code)


def ended(child: int, within: float) -> bool:
    """Whether a process comes to its end in time."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG)[0]:
            return True
        time.sleep(0.001)
    return False


def check(directory: Path) -> None:
    """What a killed run leaves behind can be read."""
    if holds_run(directory):
        assert read_run(directory)["identity"]
        assert status_of(directory) in ("interrupted", "completed")
        read_records(directory)


def main(folder: Path) -> None:
    """Run once in peace, then until there were enough kills."""
    torch.set_num_threads(1)
    register_schema()
    with initialize_config_module("gradstab.configs", version_base="1.3"):
        config = from_hydra(compose("train", list(OVERRIDES)), OVERRIDES)
    begin = time.monotonic()
    assert ended(started(config, folder / "whole"), 60)
    takes = time.monotonic() - begin
    draw = random.Random(0)
    killed: list[float] = []
    finished: list[str] = []
    while len(killed) < KILLS:
        directory = folder / f"{len(finished):03d}"
        while True:
            moment = draw.uniform(0, takes) if len(killed) < KILLS else 60
            child = started(config, directory)
            if ended(child, moment):
                break
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            killed.append(moment)
            check(directory)
        finished.append(directory.name)
    print(json.dumps({"finished": finished, "killed": killed, "takes": takes}))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))
