"""What a submitit job runs: one task, which goes back to the queue when its time is up or it is preempted."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradstab.launchers.task import Task, Work
from gradstab.launchers.worker import INTERRUPTED, end_with, environment, guarded, in_one_line, settle

# Slurm says twice that it preempts a job: the signal that submitit requeues by follows SIGTERM, if it comes at all.
_SECOND_SIGNAL = 5.0


@dataclass
class Job:
    """Called by submitit in the job, and asked for its ``checkpoint`` before it is requeued.

    ``driver`` is the process to end with, None where a job outlives whoever submitted it.
    """

    work: Work
    task: Task
    threads: int
    gpu: str | None = None
    hide_gpus: bool = False
    driver: int | None = None

    def __call__(self) -> tuple[str | None, str | None]:
        """Status and error, one of them None."""
        settle(self.threads, environment(self.threads, self.gpu, hide_gpus=self.hide_gpus))
        if self.driver is not None:
            driver, parent = self.driver, os.getppid()
            end_with(lambda: os.getppid() == parent and _lives(driver))
        # submitit would requeue out of the middle of a training step. A run ends in order on SIGTERM; then it may.
        from submitit.core.job_environment import JobEnvironment

        requeue_signal = JobEnvironment._usr_sig()
        requeue: Any = signal.getsignal(requeue_signal)
        told: list[int] = []

        def end_in_order(number: int, _frame: Any) -> None:
            told.append(number)
            signal.raise_signal(signal.SIGTERM)

        signal.signal(requeue_signal, end_in_order)
        try:
            status = guarded(self.work, self.task)
        except Exception as error:
            traceback.print_exc()
            return None, in_one_line(error)
        if status != INTERRUPTED or (self.driver is not None and not told):
            return status, None
        deadline = time.monotonic() + _SECOND_SIGNAL
        while not told and time.monotonic() < deadline:
            time.sleep(0.1)
        if told:
            requeue(told[0], None)
        # Cancelled, or preempted by a cluster that requeues by itself: that is for Slurm to say, not for a result.
        sys.exit(128 + signal.SIGTERM)

    def checkpoint(self) -> Any:
        """The same call again: a task continues from its run's last checkpoint by itself."""
        from submitit.core.utils import DelayedSubmission

        return DelayedSubmission(self)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    try:
        # One that has died stays a zombie until its own parent asks for it.
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return True
