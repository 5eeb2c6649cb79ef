"""Slurm as far as submitit knows it, on one machine and for one test: called with sbatch, srun … and their arguments.

A job array's elements run as processes of their own, so many at a time, with Slurm's variables around the batch script;
they are told to end, killed and requeued as Slurm does it. GRADSTAB_SLURM names the folder of its state: for each job a
file with the process group of the script, and one with its state.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

STATE = Path(os.environ.get("GRADSTAB_SLURM", "."))
KILL_WAIT = 5.0


def _set(job: str, state: str) -> None:
    temporary = STATE / f".{job}.{os.getpid()}"
    temporary.write_text(state)
    temporary.rename(STATE / f"{job}.state")


def _states() -> dict[str, str]:
    return {path.name.removesuffix(".state"): path.read_text() for path in sorted(STATE.glob("[0-9]*.state"))}


def _named(text: str, variables: dict[str, str]) -> str:
    job, element = variables.get("SLURM_ARRAY_JOB_ID", ""), variables.get("SLURM_ARRAY_TASK_ID", "")
    whole = f"{job}_{element}" if job else variables["SLURM_JOB_ID"]
    return text.replace("%A", job).replace("%a", element).replace("%j", whole).replace("%t", "0")


def sbatch(script: str) -> None:
    """Start the jobs of a script in the background, and say which number they have."""
    text = Path(script).read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(.+)$", text, re.M))
    if options.get("partition", "main") != "main":
        sys.exit("sbatch: error: invalid partition specified: " + options["partition"])
    number = str(1 + max((int(name.split("_")[0]) for name in _states()), default=0))
    array = re.fullmatch(r"0-(\d+)%(\d+)", options.get("array", ""))
    jobs = [f"{number}_{i}" for i in range(int(array[1]) + 1)] if array else [number]
    for job in jobs:
        _set(job, "PENDING")
    copy = STATE / f"{number}.sh"
    copy.write_text(text)
    subprocess.Popen(
        [sys.executable, "-S", __file__, "supervise", str(copy), array[2] if array else "1", *jobs],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    print(f"Submitted batch job {number}")  # noqa: T201


def _supervise(script: str, at_once: str, jobs: list[str]) -> None:
    """Run an array's elements, ``at_once`` at a time, each again as long as it is requeued."""
    room = threading.Semaphore(int(at_once))

    def run(job: str) -> None:
        array, _, element = job.partition("_")
        variables = {"SLURM_JOB_ID": job.replace("_", "00"), "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1"}
        variables |= {"SLURM_NODEID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
        if element:
            variables |= {"SLURM_ARRAY_JOB_ID": array, "SLURM_ARRAY_TASK_ID": element}
        with room:
            while _states()[job] == "PENDING":
                _set(job, "RUNNING")
                process = subprocess.Popen(["bash", script], env=os.environ | variables, start_new_session=True)
                (STATE / f"{job}.group").write_text(str(process.pid))
                code = process.wait()
                state = _states()[job]
                if state == "REQUEUED":
                    _set(job, "PENDING")
                elif state == "RUNNING":
                    _set(job, "COMPLETED" if code == 0 else "FAILED")

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def srun(arguments: list[str]) -> None:
    """Become the command, writing where the flags say."""
    while arguments[0].startswith("-"):
        flag, _, value = arguments.pop(0).partition("=")
        if flag in ("--output", "--error"):
            value = value or arguments.pop(0)
            handle = os.open(_named(value, dict(os.environ)), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(handle, 1 if flag == "--output" else 2)
    os.execvp(arguments[0], arguments)


def _send(job: str, number: int) -> bool:
    """Signal a job's steps, not the shell around them; whether there are any."""
    try:
        group = (STATE / f"{job}.group").read_text()
    except OSError:
        return False
    steps = subprocess.run(["pgrep", "-g", group], capture_output=True, text=True, check=False).stdout.split()
    for process in steps:
        if number == signal.SIGKILL or process != group:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process), number)
    return bool(steps)


def _end(job: str, state: str) -> None:
    running = _states().get(job) == "RUNNING"
    _set(job, state)
    if not running:
        return
    _send(job, signal.SIGCONT)
    _send(job, signal.SIGTERM)
    deadline = time.monotonic() + KILL_WAIT
    while _send(job, 0) and time.monotonic() < deadline:
        time.sleep(0.05)
    _send(job, signal.SIGKILL)


def scancel(arguments: list[str]) -> None:
    """End jobs in order, or only send them a signal."""
    names = [word for word in arguments if not word.startswith("-")]
    signals = [word.partition("=")[2] for word in arguments if word.startswith("--signal=")]
    jobs = [job for job in _states() for name in names if job == name or job.startswith(f"{name}_")]
    if signals:
        for job in jobs:
            _send(job, signal.Signals[f"SIG{signals[0]}"])
        return
    threads = [threading.Thread(target=_end, args=(job, "CANCELLED")) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> None:
    """Be the program that the first word names."""
    program, *arguments = sys.argv[1:]
    if program == "sbatch":
        sbatch(arguments[-1])
    elif program == "srun":
        srun(arguments)
    elif program == "scancel":
        scancel(arguments)
    elif program == "scontrol" and arguments[0] == "requeue":
        # The requeued job is ended by Slurm, out of its sight: whoever asks may be in it.
        _set(arguments[1], "REQUEUED")
    elif program == "squeue":
        queued = [job for job, state in _states().items() if state in ("PENDING", "RUNNING", "REQUEUED")]
        print("\n".join(queued))  # noqa: T201
    elif program == "sacct":
        lines = [f"{job}|{state}|here" for job, state in _states().items()]
        print("\n".join(["JobID|State|NodeList", *lines]))  # noqa: T201
    elif program == "supervise":
        _supervise(arguments[0], arguments[1], arguments[2:])
    else:
        sys.exit(f"{program}: not played here")


if __name__ == "__main__":
    main()
