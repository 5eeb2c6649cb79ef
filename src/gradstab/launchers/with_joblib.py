"""Processes on this machine, through joblib's loky."""

from __future__ import annotations

import contextlib
import multiprocessing.resource_tracker
import os
import signal
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from gradstab.errors import GradstabError
from gradstab.launchers import knobs, machine
from gradstab.launchers.task import Done, Task, Work
from gradstab.launchers.worker import GRACE, deaf_to_ctrl_c, end_with, environment, guarded, in_one_line, settle

# A task that killed its worker may have been hit by chance once (the kernel out of memory); not twice.
_DEATHS = 2


class JoblibLauncher:
    """``n_jobs`` workers that stay, each with its threads and, where there are GPUs, one of them."""

    def __init__(self, chosen: knobs.Joblib) -> None:
        self._knobs = chosen

    def launch(self, tasks: Sequence[Task], work: Work) -> Iterator[Done]:
        if not tasks:
            return
        chosen, cores = self._knobs, machine.cores()
        gpus = machine.gpus()[: chosen.gpus] if any(task.gpu for task in tasks) else ()
        n_jobs = cores if chosen.n_jobs == -1 else chosen.n_jobs or len(gpus) or cores
        # Not by the number of tasks: what is left of a sweep is to run as it would have run with the rest.
        threads = chosen.threads or machine.threads_each(n_jobs, cores, os.environ)
        seats = machine.share_out(min(n_jobs, len(tasks)), gpus)
        # loky renews a worker that has grown by 300 MB, and says so, wrongly, as if work might be lost.
        warnings.filterwarnings("ignore", "A worker stopped while some jobs were given", UserWarning)
        team = [_Worker(threads, environment(threads, gpu, hide_gpus=chosen.gpus == 0)) for gpu in seats]
        try:
            yield from _run(team, seats, tasks, work)
        finally:
            _close(team)


def _run(team: Sequence[_Worker], seats: Sequence[str | None], tasks: Sequence[Task], work: Work) -> Iterator[Done]:
    waiting = deque(tasks)
    deaths: Counter[str] = Counter()
    running: dict[Future[str], tuple[int, Task]] = {}
    idle = set(range(len(team)))
    finished: list[Done] = []
    while waiting or running:
        while waiting and idle:
            chosen = machine.freest(sorted(idle), seats, [worker for worker, _ in running.values()])
            idle.remove(chosen)
            task = waiting.popleft()
            running[team[chosen].submit(work, task)] = chosen, task
        # Only now that nobody idles: whoever iterates may take its time.
        yield from finished
        finished = []
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            worker, task = running.pop(future)
            idle.add(worker)
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                how = team[worker].bury()
                deaths[task.key] += 1
                if deaths[task.key] < _DEATHS:
                    waiting.appendleft(task)
                else:
                    finished.append(Done(task, None, f"its worker died {_DEATHS} times; the last {how}"))
            elif error is not None:
                finished.append(Done(task, None, in_one_line(error)))
            else:
                finished.append(Done(task, future.result()))
    yield from finished


def _close(team: Sequence[_Worker]) -> None:
    """Workers in the middle of a task are told to end in order and waited for; none is left behind."""
    patient = False
    try:
        ending = [future for worker in team if (future := worker.interrupt()) is not None]
        patient = not wait(ending, timeout=GRACE).not_done
    finally:
        # At once: a process that has torch in it takes a while to leave.
        with ThreadPoolExecutor(len(team)) as hands:
            list(hands.map(lambda worker: worker.stop(kill=not patient), team))


class _Worker:
    """A loky pool of one process. In a larger one the death of a worker ends all others too, and their tasks."""

    def __init__(self, threads: int, variables: dict[str, str]) -> None:
        self._threads, self._variables = threads, variables
        self._pool: Any = None
        self._process: Any = None
        self._future: Future[str] | None = None

    def submit(self, work: Work, task: Task) -> Future[str]:
        try:
            future = self._submit(work, task)
        except BrokenProcessPool:  # It died between two tasks.
            self.bury()
            future = self._submit(work, task)
        return future

    def _submit(self, work: Work, task: Task) -> Future[str]:
        from joblib.externals.loky.backend import resource_tracker
        from joblib.externals.loky.process_executor import ProcessPoolExecutor

        # These start with the first worker, and in doing so let it hear Ctrl-C.
        multiprocessing.resource_tracker.ensure_running()
        resource_tracker.ensure_running()
        try:
            with deaf_to_ctrl_c():
                if self._pool is None:
                    self._pool = ProcessPoolExecutor(
                        1, env=self._variables, initializer=_begin, initargs=(self._threads, os.getpid())
                    )
                self._future = self._pool.submit(guarded, work, task)
        except OSError as error:
            raise GradstabError(f"hydra/launcher=joblib: a worker could not be started ({error.strerror})") from error
        self._process = next(iter(self._pool._processes.values()), self._process)
        assert self._future is not None
        return self._future

    def interrupt(self) -> Future[str] | None:
        """Ask the run in this worker to end in order; returns what to wait for, None where nothing runs."""
        if self._future is None or self._future.done():
            return None
        for pid in list(self._pool._processes):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        return self._future

    def bury(self) -> str:
        """Clear away what a death left, and say how it came."""
        self.stop(kill=True)
        self._pool = None
        code = getattr(self._process, "exitcode", None)
        if code is None or code >= 0:
            return f"exited with status {code}" if code is not None else "disappeared"
        name = signal.Signals(-code).name
        return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")

    def stop(self, *, kill: bool) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, kill_workers=kill)


def _begin(threads: int, driver: int) -> None:
    """What each worker does first. Where the driver is killed, it ends too, and the task it is at, in order."""
    settle(threads)
    end_with(lambda: os.getppid() == driver)
