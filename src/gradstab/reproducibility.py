"""What makes a run repeatable: separate random streams, the device, determinism, and the versions in play."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

from gradstab.errors import ConfigError

PACKAGES = ("gradstab", "torch", "torchvision", "numpy", "hydra-core", "omegaconf", "tensorboard", "scikit-learn")

# One stream each, so that drawing more of one thing (a deeper network, say) leaves the others as they were.
_STREAMS = ("init", "order", "dropout", "optimizer", "constraint")


def stream_seed(seed: int, stream: str) -> int:
    """The seed of one named stream of a run: distinct for every pair of run seed and stream."""
    return seed * len(_STREAMS) + _STREAMS.index(stream)


def generator(seed: int, stream: str) -> torch.Generator:
    """A CPU generator for one of the run's streams: the same numbers whatever the device."""
    return torch.Generator().manual_seed(stream_seed(seed, stream))


def resolve_device(name: str, precision: str) -> torch.device:
    """The device for ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``; :class:`ConfigError` where there is none."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ConfigError(f"device={name}: this machine has {count} CUDA devices; allowed: {_available(count)}")
    if device.type == "mps":
        if not torch.backends.mps.is_available():
            raise ConfigError(f"device={name}: this machine has no MPS device; allowed: {_available(0)}")
        if precision == "float64":
            raise ConfigError("precision=float64: MPS has no float64; allowed: float32, bfloat16")
    return device


def _available(cuda_devices: int) -> str:
    return ", ".join(["auto", "cpu", *(f"cuda:{i}" for i in range(cuda_devices))])


def set_determinism(deterministic: bool) -> None:
    """Ask for deterministic kernels, or leave torch as it is by default. cuBLAS needs its workspace fixed too."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Setting it, even to what it is, imports torch's compiler: a second and a half for nothing.
    if torch.are_deterministic_algorithms_enabled() != deterministic:
        torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = False


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a run's numbers depend on."""
    return dict(_versions())


# The code that runs is that of the process's start; and a sweep asks once a cell.
@functools.cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def git_commit() -> str | None:
    """The commit of the working directory, where it is a git checkout and git is installed."""
    return _commit_of(Path.cwd())


@functools.cache
def _commit_of(folder: Path) -> str | None:
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True, cwd=folder
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
