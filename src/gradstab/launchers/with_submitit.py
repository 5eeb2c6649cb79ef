"""Jobs through submitit: how they are followed, and those that run on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from gradstab.errors import ConfigError
from gradstab.launchers import knobs, machine
from gradstab.launchers.job import Job
from gradstab.launchers.task import Done, Task, Work
from gradstab.launchers.worker import GRACE, deaf_to_ctrl_c, in_one_line


class Queue(Protocol):
    """Where jobs go. ``late`` is how many seconds a result may arrive after its job has ended."""

    late: float
    look_every: float
    retries: int

    def submit(self, starting: Sequence[tuple[int, Task]], work: Work) -> Iterator[tuple[Any, int, Task]]:
        """One job for each task, which comes with the number of its seat."""
        ...

    def ended(self, jobs: Sequence[Any]) -> set[str]:
        """Those that have ended, with or without a result, by their ids."""
        ...

    def end(self, jobs: Sequence[Any]) -> None:
        """Have them end in order, and wait for it."""
        ...

    def how(self, job: Any) -> str:
        """In a line, how a job ended that left no result."""
        ...


def follow(queue: Queue, seats: Sequence[str | None], tasks: Sequence[Task], work: Work) -> Iterator[Done]:
    """Keep a job in the queue for each of the ``seats``, and yield each as its result appears or it ends without."""
    waiting, free = deque(tasks), list(range(len(seats)))
    running: dict[str, tuple[Any, int, Task]] = {}
    deaths: Counter[str] = Counter()
    ended_at: dict[str, float] = {}
    finished: list[Done] = []
    try:
        while waiting or running:
            starting: list[tuple[int, Task]] = []
            while free and waiting:
                busy = [seat for _, seat, _ in running.values()] + [seat for seat, _ in starting]
                starting.append((machine.freest(free, seats, busy), waiting.popleft()))
                free.remove(starting[-1][0])
            for job, seat, task in queue.submit(starting, work) if starting else ():
                running[job.job_id] = job, seat, task
            # Only now that no seat is free: whoever iterates may take its time.
            yield from finished
            ready = _with_result([job for job, _, _ in running.values()])
            now = time.monotonic()
            for name in queue.ended([job for name, (job, _, _) in running.items() if name not in ready]):
                ended_at.setdefault(name, now)
            lost = {name for name, since in ended_at.items() if now - since >= queue.late} - ready
            finished = []
            for name in ready | lost:
                job, seat, task = running.pop(name)
                ended_at.pop(name, None)
                free.append(seat)
                deaths[task.key] += name in lost
                if name in ready:
                    finished.append(_outcome(job, task))
                elif deaths[task.key] <= queue.retries:
                    waiting.appendleft(task)
                else:
                    finished.append(Done(task, None, queue.how(job)))
            if not finished:
                time.sleep(queue.look_every)
        yield from finished
    finally:
        queue.end([job for job, _, _ in running.values()])


def _with_result(jobs: Sequence[Any]) -> set[str]:
    """Jobs whose result is there. Folders are listed, which on network file systems asks anew, once each."""
    files: dict[Path, set[str]] = {}
    for folder in {job.paths.folder for job in jobs}:
        with contextlib.suppress(OSError):
            files[folder] = {path.name for path in folder.iterdir()}
    return {job.job_id for job in jobs if job.paths.result_pickle.name in files.get(job.paths.folder, ())}


def _outcome(job: Any, task: Task) -> Done:
    try:
        status, error = job.result()
        return Done(task, status, error)
    except Exception as failure:
        # submitit frames the traceback with dashes; its last line says what was raised.
        parts = str(failure).split("-" * 22)
        trace = parts[1].strip().splitlines() if len(parts) > 1 else []
        return Done(task, None, trace[-1] if trace else in_one_line(failure))


def new_folder(pattern: str) -> str:
    """The folder of one launch, apart from others': local jobs are numbered by process ids, which come again."""
    launch = f"{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}"
    before, _, after = pattern.partition("%j")
    return str(Path(before, launch, f"%j{after}"))


def check_delay(signal_delay_s: int, timeout_min: float) -> None:
    """Refuse a warning that would have to come before its job."""
    if signal_delay_s >= timeout_min * 60:
        raise ConfigError(
            f"hydra.launcher.signal_delay_s={signal_delay_s}: so many seconds before its time is up, a cell is told; "
            f"allowed: less than timeout_min={timeout_min:g} minutes"
        )


def quiet_submitit() -> Any:
    import submitit

    # It logs each submission to the terminal, and each failing sacct.
    logging.getLogger("submitit").setLevel(logging.ERROR)
    return submitit


class LocalLauncher:
    """Jobs on this machine as on a cluster: a process, a log and a limit of time for each."""

    def __init__(self, chosen: knobs.SubmititLocal) -> None:
        check_delay(chosen.signal_delay_s, chosen.timeout_min)
        self._knobs = chosen

    def launch(self, tasks: Sequence[Task], work: Work) -> Iterator[Done]:
        if not tasks:
            return
        chosen, cores = self._knobs, machine.cores()
        gpus = machine.gpus()[: chosen.gpus] if any(task.gpu for task in tasks) else ()
        workers = chosen.max_workers or len(gpus) or max(1, cores // (chosen.cpus_per_task or 1))
        threads = chosen.cpus_per_task or machine.threads_each(workers, cores, os.environ)
        seats = machine.share_out(min(workers, len(tasks)), gpus)
        yield from follow(_Local(chosen, threads, seats), seats, tasks, work)


class _Local:
    # Another try for a task that died, as it may have been hit by chance.
    late, look_every, retries = 0.0, 0.1, 1

    def __init__(self, chosen: knobs.SubmititLocal, threads: int, seats: Sequence[str | None]) -> None:
        self._threads, self._seats, self._hide = threads, seats, chosen.gpus == 0
        self._executor = quiet_submitit().LocalExecutor(new_folder(chosen.submitit_folder), chosen.max_num_timeout)
        self._executor.update_parameters(timeout_min=chosen.timeout_min, signal_delay_s=chosen.signal_delay_s)

    def submit(self, starting: Sequence[tuple[int, Task]], work: Work) -> Iterator[tuple[Any, int, Task]]:
        for seat, task in starting:
            with deaf_to_ctrl_c():
                job = self._executor.submit(
                    Job(work, task, self._threads, self._seats[seat], self._hide, driver=os.getpid())
                )
            yield job, seat, task

    def ended(self, jobs: Sequence[Any]) -> set[str]:
        return {job.job_id for job in jobs if job.done()}

    def end(self, jobs: Sequence[Any]) -> None:
        # What submitit calls cancelling leaves a job one second. The process that watches over it passes SIGTERM on.
        signals = (signal.SIGTERM, signal.SIGKILL)
        for number in signals:
            try:
                for job in jobs:
                    if not job.done():
                        os.kill(int(job.job_id), number)
                deadline = time.monotonic() + GRACE
                while not all(job.done() for job in jobs) and time.monotonic() < deadline:
                    time.sleep(self.look_every)
            except KeyboardInterrupt:  # Asked for a second time: no more waiting.
                continue

    def how(self, job: Any) -> str:
        return f"its job died twice without a result; see {job.paths.stderr}"
