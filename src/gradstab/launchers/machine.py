"""What this machine has for workers to share: cores and GPUs. CUDA is never started here."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

_CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def cores() -> int:
    """Cores that this process may use: those it is bound to, or fewer where a container has been given fewer."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CGROUP_LIMIT.read_text(encoding="ascii").split()
        allowed = -(-int(quota) // int(period))
    except (OSError, ValueError):  # There is no such file, or the quota is "max".
        return bound
    return max(1, min(bound, allowed))


def threads_each(workers: int, of: int, environ: Mapping[str, str]) -> int:
    """Threads for each of ``workers`` processes on ``of`` cores, at least one; OMP_NUM_THREADS may ask for fewer."""
    share = max(1, of // workers)
    asked = environ.get("OMP_NUM_THREADS", "")
    return min(share, int(asked)) if asked.isdecimal() and int(asked) > 0 else share


def gpus() -> tuple[str, ...]:
    """GPUs that a process started here could use, as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return visible(given)
    try:
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        # Containers may have the devices but not the tool.
        numbers = sorted(int(path.name[6:]) for path in Path("/dev").glob("nvidia[0-9]*") if path.name[6:].isdecimal())
        return tuple(map(str, range(len(numbers))))
    return listed(answer)


def visible(value: str) -> tuple[str, ...]:
    """The GPUs in a value of CUDA_VISIBLE_DEVICES; as for CUDA, one that names no device ends the list."""
    found: list[str] = []
    for name in (part.strip() for part in value.split(",")):
        if not re.fullmatch(r"\d+|(GPU|MIG)-.+", name):
            break
        found.append(name)
    return tuple(found)


def listed(answer: str) -> tuple[str, ...]:
    """The UUIDs in what ``nvidia-smi -L`` prints: a GPU that is cut up stands for nothing beside its parts."""
    found: list[str] = []
    whole = ""
    for line in answer.splitlines():
        uuid = re.search(r"\(UUID: ((?:GPU|MIG)-[^)]+)\)", line)
        if uuid is None:
            continue
        if uuid[1].startswith("GPU-"):
            whole = uuid[1]
        elif found and found[-1] == whole:
            found.pop()
        found.append(uuid[1])
    return tuple(found)


def share_out(workers: int, among: Sequence[str]) -> list[str | None]:
    """One GPU for each worker, in turn, so that no two numbers of workers on a GPU differ by more than one."""
    return [among[i % len(among)] if among else None for i in range(workers)]


def freest(idle: Sequence[int], seats: Sequence[str | None], busy: Sequence[int]) -> int:
    """Which of the ``idle`` workers is to have the next task: the first on a GPU that fewest ``busy`` ones are on."""
    if not any(seats):
        return idle[0]
    load = [seats[worker] for worker in busy]
    return min(idle, key=lambda worker: (load.count(seats[worker]), worker))
