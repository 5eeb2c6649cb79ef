"""The launchers' knobs, with their defaults and ranges: what ``hydra.launcher.KNOB=VALUE`` may say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gradstab.config.fields import checked, number, positive_int


def _jobs(value: Any) -> str | None:
    return None if value == -1 or positive_int(value) else "must be at least 1, or -1 for one for each core"


def _of_text(value: Any) -> str | None:
    fits = isinstance(value, list | tuple) and all(isinstance(line, str) for line in value)
    return None if fits else "must be a list of texts"


def _mapping(value: Any) -> str | None:
    return (
        None if isinstance(value, dict) and all(isinstance(key, str) for key in value) else "must be keys with values"
    )


def _retries(value: Any) -> str | None:
    return None if value >= -1 else "must be at least 0, or -1 for without end"


def _named(*examples: str) -> Callable[[Any], str | None]:
    return lambda value: None if value.strip() else f"must not be empty; allowed: null, or as {' or '.join(examples)}"


@dataclass(frozen=True)
class Serial:
    """No knobs: one cell after the other."""


@dataclass(frozen=True)
class Joblib:
    """``n_jobs`` processes at a time: as many as cores, or as GPUs where cells use them; ``threads`` for each."""

    n_jobs: int | None = checked(None, _jobs, "at least 1, or -1 for one for each core")
    threads: int | None = number(None, at_least=1)
    gpus: int | None = number(None, at_least=0)


@dataclass(frozen=True)
class SubmititLocal:
    """Jobs on this machine, ``max_workers`` at a time, as on a cluster: each a process with a log and a time limit."""

    submitit_folder: str = checked("outputs/.submitit/%j", _named("outputs/.submitit/%j"), "a folder")
    max_workers: int | None = number(None, at_least=1)
    cpus_per_task: int | None = number(None, at_least=1)
    gpus: int | None = number(None, at_least=0)
    timeout_min: float = number(24 * 60.0, above=0)
    signal_delay_s: int = number(30, at_least=1)
    # The process that watches over a local job starts it six times at most.
    max_num_timeout: int = number(3, at_least=0, at_most=5)


@dataclass(frozen=True)
class SubmititSlurm:
    """One job array on Slurm, one cell a job; what is left null, the cluster decides."""

    submitit_folder: str = checked("outputs/.submitit/%j", _named("outputs/.submitit/%j"), "a folder")
    job_name: str = checked("gradstab", _named("gradstab"), "text")
    timeout_min: int = number(60, at_least=1)
    signal_delay_s: int = number(120, at_least=1)
    max_num_timeout: int = number(3, at_least=0)
    array_parallelism: int = number(256, at_least=1)
    cpus_per_task: int | None = number(None, at_least=1)
    gpus_per_node: int | None = number(None, at_least=0)
    gpus_per_task: int | None = number(None, at_least=0)
    cpus_per_gpu: int | None = number(None, at_least=1)
    mem_gb: float | None = number(None, above=0)
    mem_per_cpu: str | None = None
    mem_per_gpu: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    gres: str | None = None
    comment: str | None = None
    setup: Any = checked(None, _of_text, "a list of shell commands")
    srun_args: Any = checked(None, _of_text, "a list of arguments")
    additional_parameters: Any = checked(None, _mapping, "keys with values")


@dataclass(frozen=True)
class Ray:
    """Tasks on a Ray cluster: ``num_cpus`` and ``num_gpus`` are what one cell takes."""

    address: str | None = checked(None, _named("auto", "host:6379"), "null, auto, host:port")
    num_cpus: float = number(1.0, above=0)
    num_gpus: float | None = number(None, at_least=0)
    max_retries: int = checked(3, _retries, "at least 0, or -1 for without end")
    runtime_env: Any = checked(None, _mapping, "keys with values")
    shared_folder: str | None = checked(None, _named("outputs/sweeps/mine"), "a folder")
