"""What tests share: composing configurations as the command line does, and training without a terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

import gradstab.runner
from gradstab.cli import main
from gradstab.cli.cells import CellLoader
from gradstab.config import GROUPS, Config, from_hydra, register_schema
from gradstab.run_directory import new_name
from gradstab.runner import run

Compose = Callable[..., Config]
Train = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session", autouse=True)
def _process() -> None:
    """The suite runs in several processes; each taking every core would make all of them slow."""
    torch.set_num_threads(1)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # Shells start what runs in the background so, and programs that are to be interrupted would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    register_schema()


@pytest.fixture(scope="session")
def quickly(_process: None) -> Callable[..., DictConfig | None]:
    """Compose as a sweep's cells are, in a tenth of Hydra's time; None for what is unusual, or wrong."""
    OmegaConf.register_new_resolver("gradstab_sweep_dir", lambda out_dir: out_dir or "sweep", replace=True)
    with initialize_config_module("gradstab.configs", version_base="1.3"):
        loader = CellLoader(GlobalHydra.instance().config_loader().get_search_path())
    master = loader.load_configuration("train", [], RunMode.MULTIRUN)
    defaults = {group: master.hydra.runtime.choices[group] for group in GROUPS}

    def composed(*overrides: str) -> DictConfig | None:
        pairs = [override.partition("=") for override in overrides]
        # Experiments and data=line choose for other groups, too.
        if "data=line" in overrides or any(name.startswith(("experiment", "hydra", "+", "~")) for name, _, _ in pairs):
            return None
        # With every group named, cells are put together from compositions that differ in one choice.
        choices = defaults | {name: option for name, _, option in pairs if name in defaults}
        values = ["".join(pair) for pair in pairs if pair[0] not in defaults]
        try:
            cell = loader.load_sweep_config(master, [*map("=".join, choices.items()), *values])
        except Exception:
            return None
        with read_write(cell), open_dict(cell):
            del cell["hydra"]
        return cell

    return composed


@pytest.fixture
def configure(quickly: Callable[..., DictConfig | None]) -> Compose:
    """Compose, check and freeze a configuration from overrides, as ``gradstab train`` does."""

    def composed(*overrides: str) -> Config:
        cell = quickly(*overrides)
        if cell is not None:
            return from_hydra(cell, overrides)
        # Left initialised: it keeps the files it has read, which is most of the time of composing.
        if not GlobalHydra.instance().is_initialized():
            initialize_config_module("gradstab.configs", version_base="1.3")
        return from_hydra(compose("train", list(overrides)), overrides)

    return composed


@pytest.fixture
def train(configure: Compose, tmp_path: Path) -> Train:
    """Train from overrides into a directory of its own; returns run.json's record with ``directory`` added."""

    def trained(*overrides: str) -> dict[str, Any]:
        directory = tmp_path / new_name()
        # Drawing takes longer than most of these runs.
        drawn = any(override.startswith("images_after=") for override in overrides)
        unseen = ("quiet=true", "device=cpu", *(() if drawn else ("images_after=null",)))
        record = run(configure(*unseen, *overrides), directory)
        return record | {"directory": directory}

    return trained


@pytest.fixture(scope="session")
def mnist_root() -> Path:
    """A torchvision root that holds MNIST, named by GRADSTAB_DATA."""
    root = os.environ.get("GRADSTAB_DATA")
    if not root or not (Path(root) / "MNIST" / "raw" / "train-images-idx3-ubyte").exists():
        pytest.skip("GRADSTAB_DATA names no folder that holds MNIST")
    return Path(root)


Here = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The configurations that were really run, in order."""
    made: list[Any] = []
    real = gradstab.runner.run

    def counted(config: Any, *args: Any, **kwargs: Any) -> Any:
        made.append(config)
        return real(config, *args, **kwargs)

    monkeypatch.setattr(gradstab.runner, "run", counted)
    return made


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """``gradstab`` in this process, where starting another would only cost time; ``tmp_path`` is its folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gradstab"])

    def call(*args: str) -> subprocess.CompletedProcess[str]:
        GlobalHydra.instance().clear()
        code = main(args)
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(args, code, out, err)

    return call
