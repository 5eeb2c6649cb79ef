"""Jobs on Slurm, through submitit: one array for a sweep."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from gradstab.errors import ConfigError, GradstabError
from gradstab.launchers import knobs
from gradstab.launchers.job import Job
from gradstab.launchers.task import Done, Task, Work
from gradstab.launchers.with_submitit import check_delay, follow, new_folder, quiet_submitit
from gradstab.launchers.worker import GRACE, deaf_to_ctrl_c, in_one_line


class SlurmLauncher:
    """A job array on Slurm: one cell a job, in the cluster's own time."""

    def __init__(self, chosen: knobs.SubmititSlurm) -> None:
        missing = [tool for tool in ("sbatch", "srun", "squeue", "scancel") if shutil.which(tool) is None]
        if missing:
            raise ConfigError(
                f"hydra/launcher=submitit_slurm: there is no {missing[0]} here; allowed: a machine that submits to "
                "Slurm, or submitit_local"
            )
        check_delay(chosen.signal_delay_s, chosen.timeout_min)
        self._knobs = chosen

    def launch(self, tasks: Sequence[Task], work: Work) -> Iterator[Done]:
        if tasks:
            yield from follow(Slurm(self._knobs), [None] * len(tasks), tasks, work)


class Slurm:
    """The cluster's queue, as far as one launch is concerned."""

    # A result may arrive after the news that its job has ended: network file systems keep what they know for a while.
    late, look_every = 20.0, 1.0
    # Slurm itself requeues what a failing node took down.
    retries = 0
    # Slurm takes arrays of up to 1,001 by default.
    array, ask_every = 1000, 10.0

    def __init__(self, chosen: knobs.SubmititSlurm) -> None:
        self._threads = chosen.cpus_per_task or 1
        self._asked = time.monotonic()
        self._unseen: list[Any] = []
        submitit = quiet_submitit()
        self._executor = submitit.AutoExecutor(
            new_folder(chosen.submitit_folder), cluster="slurm", slurm_max_num_timeout=chosen.max_num_timeout
        )
        common = ("timeout_min", "cpus_per_task", "gpus_per_node", "mem_gb")
        given = {name: value for name, value in asdict(chosen).items() if value is not None}
        own = given.keys() - {*common, "submitit_folder", "max_num_timeout"}
        self._executor.update_parameters(
            **{name: given[name] for name in common if name in given},
            **{f"slurm_{name}": _plain(given[name]) for name in own},
        )

    def submit(self, starting: Sequence[tuple[int, Task]], work: Work) -> Iterator[tuple[Any, int, Task]]:
        for first in range(0, len(starting), self.array):
            part = starting[first : first + self.array]
            try:
                # A Ctrl-C in here would leave an array in the queue that nobody knows of.
                with deaf_to_ctrl_c():
                    self._unseen = self._executor.submit_array([Job(work, task, self._threads) for _, task in part])
            except Exception as error:
                said = [line for line in str(error).splitlines() if "error:" in line] or [in_one_line(error)]
                raise GradstabError(f"hydra/launcher=submitit_slurm: {said[0].strip()}") from error
            for seat, task in part:
                yield self._unseen.pop(0), seat, task

    def ended(self, jobs: Sequence[Any]) -> set[str]:
        if time.monotonic() - self._asked < self.ask_every:
            return set()
        self._asked = time.monotonic()
        queued = self._queued()
        return set() if queued is None else {job.job_id for job in jobs} - queued

    def _queued(self) -> set[str] | None:
        """Ids of this user's jobs that are in the queue in any way; None where Slurm does not answer."""
        # Not sacct, which submitit asks: it has no answer where a cluster keeps no accounts.
        command = ["squeue", "--noheader", "--array", "--format=%i", f"--user={os.getuid()}"]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        except (OSError, subprocess.SubprocessError):
            return None
        return set(answer.stdout.split())

    def end(self, jobs: Sequence[Any]) -> None:
        ids = {job.job_id for job in (*jobs, *self._unseen)}
        if not ids:
            return
        subprocess.run(["scancel", *sorted(ids)], capture_output=True, check=False)
        deadline = time.monotonic() + 2 * GRACE
        while ids & (self._queued() or set()) and time.monotonic() < deadline:
            time.sleep(self.look_every)

    def how(self, job: Any) -> str:
        state = job.watcher.get_state(job.job_id, mode="force")
        return f"Slurm ended its job {job.job_id} without a result ({state}); see {job.paths.stderr}"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
