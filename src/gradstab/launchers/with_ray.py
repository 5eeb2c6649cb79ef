"""Tasks on Ray: the cores and GPUs of one machine, or of many."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import uuid
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradstab.errors import ConfigError, GradstabError
from gradstab.launchers import knobs
from gradstab.launchers.task import Done, Task, Work
from gradstab.launchers.worker import GRACE, deaf_to_ctrl_c, environment, guarded, in_one_line, settle

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # What it would print of dead workers and nodes, a paragraph each; the ledger says what became of their cells.
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
    # A notice of what it will do with GPUs one day: which ones a cell sees is settled here.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


class RayLauncher:
    """One Ray task a cell; Ray places it, and starts it again where its worker or its node dies."""

    def __init__(self, chosen: knobs.Ray) -> None:
        self._knobs = chosen

    def launch(self, tasks: Sequence[Task], work: Work) -> Iterator[Done]:
        if not tasks:
            return
        with connected(self._knobs) as ray, token(self._knobs.shared_folder) as seen:
            num_gpus = self._num_gpus(ray, any(task.gpu for task in tasks))
            call = _Call(work, max(1, int(self._knobs.num_cpus)), num_gpus == 0, str(Path.cwd()), seen)
            run = ray.remote(
                num_cpus=self._knobs.num_cpus, num_gpus=num_gpus, max_retries=self._knobs.max_retries, name="gradstab"
            )(_run)
            call = ray.put(call)
            waiting = {run.remote(call, task): task for task in tasks}
            try:
                while waiting:
                    ready, _ = ray.wait(list(waiting), num_returns=1)
                    yield from [_outcome(ray, ref, waiting.pop(ref)) for ref in ready]
            finally:
                # Those that run get what Ctrl-C would send them, the rest never start.
                for ref in waiting:
                    ray.cancel(ref)
                if waiting:
                    ray.wait(list(waiting), num_returns=len(waiting), timeout=GRACE)

    def _num_gpus(self, ray: Any, wanted: bool) -> float:
        """GPUs for one cell: as many as were asked for, else one where the cluster has any and cells may use it."""
        has = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus, gpus = self._knobs.num_cpus, self._knobs.num_gpus
        if gpus is None:
            gpus = float(wanted and any(node.get("GPU", 0) >= 1 for node in has))
        if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in has):
            largest: dict[str, float] = max(has, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)), default={})
            warnings.warn(
                f"hydra.launcher.num_cpus={cpus:g} num_gpus={gpus:g}: no node of the Ray cluster has as much, the "
                f"largest {largest.get('CPU', 0):g} and {largest.get('GPU', 0):g}; cells wait until one joins that has",
                RuntimeWarning,
                stacklevel=3,
            )
        return gpus


class _NotSharedError(Exception):
    """Raised on a node that does not see the sweep's folder."""


@dataclass(frozen=True)
class _Call:
    """What all tasks of a launch have in common."""

    work: Work
    threads: int
    hide_gpus: bool
    folder: str
    token: str | None


def _run(call: _Call, task: Task) -> str:
    """The Ray task: one cell, from the folder that the sweep was started in."""
    if call.token is not None and not Path(call.token).is_file():
        raise _NotSharedError(socket.gethostname())
    settle(call.threads, environment(call.threads, None, hide_gpus=call.hide_gpus))
    with contextlib.suppress(OSError):
        os.chdir(call.folder)
    return guarded(call.work, task)


def _outcome(ray: Any, ref: Any, task: Task) -> Done:
    try:
        return Done(task, ray.get(ref))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, _NotSharedError):
            folder = Path(str(task.payload.get("folder", "")))
            raise GradstabError(
                f"hydra/launcher=ray: the node {error.cause} does not see the sweep's folder {folder}; "
                "allowed: a folder on a file system that all nodes share"
            ) from error
        return Done(task, None, in_one_line(error.cause))
    except ray.exceptions.RayError as error:
        return Done(task, None, in_one_line(error))


@contextlib.contextmanager
def connected(chosen: knobs.Ray) -> Iterator[Any]:
    """Ray, in a cluster; one that was started for this, or joined, is left afterwards."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield ray
        return
    try:
        # Not even Ray's own processes are to hear Ctrl-C before the cells have ended.
        with deaf_to_ctrl_c(), _sigterm_kept():
            _answers(chosen.address)
            ray.init(
                address=chosen.address,
                runtime_env=chosen.runtime_env,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except OSError as error:
        raise ConfigError(
            f"hydra.launcher.address={chosen.address}: no Ray cluster answers there; "
            "allowed: host:port of one, auto for one that this machine is part of, null to start one here"
        ) from error
    except (RuntimeError, ValueError) as error:
        raise GradstabError(f"hydra/launcher=ray: {in_one_line(error)}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Put SIGTERM's handler back over Ray's two, in Python and below, which would end the process on the spot."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _answers(address: str | None) -> None:
    """Raise OSError where nothing listens: Ray would take two minutes to say so."""
    host, colon, port = (address or "").rpartition(":")
    if colon and port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


@contextlib.contextmanager
def token(folder: str | None) -> Iterator[str | None]:
    """A file that nodes are to see, if the sweep's folder is on a file system that they share."""
    if folder is None:
        yield None
        return
    path = Path(folder).expanduser().absolute() / f".ray-{uuid.uuid4().hex}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    try:
        yield str(path)
    finally:
        path.unlink(missing_ok=True)
