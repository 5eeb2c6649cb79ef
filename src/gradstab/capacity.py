"""How much memory there is, and the refusal of what would need more."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
from pathlib import Path

from gradstab.config import Config
from gradstab.config.fitting import largest_that_fits, sizes_in
from gradstab.config.sizes import Footprint, footprint, in_words
from gradstab.errors import ConfigError

# More layers than anyone has trained, and what Python goes through in seconds rather than minutes at each step.
MAX_DEPTH = 100_000
# Where a system does not say what it has.
UNKNOWN = 2**50
_UNLIMITED = 2**60


def check_host(config: Config, *, probing: bool = False, elsewhere: bool = False) -> None:
    """Refuse a configuration that this machine's memory cannot hold, or that is deeper than 100,000 layers.

    ``elsewhere`` says that the run computes on another device, whose memory :func:`check_device` asks about; this
    one then holds data and initial weights. Raises :class:`ConfigError` with what it would take, what there is, and
    the largest value that would fit.
    """
    needed = footprint(config, probing=probing)
    size = needed.host if elsewhere else needed.total
    free = free_memory()
    if size > free:
        # What earlier runs in this process left behind is not lost.
        _give_back()
        free = free_memory()
    depth = config.model.knobs.get("depth") or 0
    if size > free or depth > MAX_DEPTH:
        raise ConfigError(_refusal(config, needed, free, "this machine has", probing=probing))


def check_device(config: Config, free: int, name: str, *, probing: bool = False) -> None:
    """The same for a device with ``free`` bytes."""
    needed = footprint(config, probing=probing)
    if needed.total > free:
        raise ConfigError(_refusal(config, needed, free, f"{name} has", probing=probing))


def _refusal(config: Config, needed: Footprint, free: int, place: str, *, probing: bool) -> str:
    knobs = sizes_in(config)
    depth = config.model.knobs.get("depth") or 0
    if depth > MAX_DEPTH:
        # Too deep is too deep even on a machine with enough memory.
        most = largest_that_fits(config, "model.depth", min(depth, MAX_DEPTH + 1), 1, free, probing=probing)
        refused = f"networks of more than {MAX_DEPTH:,} layers are refused on any machine"
        return f"model.depth={depth}: {refused}; allowed: at most {MAX_DEPTH}" + _and_here(most)
    said = f"would take {needed}; {place} {in_words(free)} free"
    for key, value, smallest in knobs:
        most = largest_that_fits(config, key, value, smallest, free, probing=probing)
        if most is not None:
            return f"{key}={_shown(config, key, value)}: {said}; allowed here: at most {most} with the rest as it is"
    settings = ", ".join(f"{key}={_shown(config, key, value)}" for key, value, _ in knobs[:3])
    return f"{settings}: {said}; allowed: less of several of these"


def _and_here(most: int | None) -> str:
    return f", and here {most}" if most is not None and most < MAX_DEPTH else ""


def _shown(config: Config, key: str, value: int) -> str:
    """The value as it was set."""
    if key == "batch_size":
        return str(config.batch_size)
    return (
        f"[…, {value}, …]" if isinstance(getattr(config.model, "width", None), tuple) and "width" in key else str(value)
    )


# --------------------------------------------------------------------------------------------- what there is


def free_memory() -> int:
    """Bytes that this process can still have: what is available, within the limits of its container and its own."""
    found = [_available(), *_limits_of_groups(), *_limit_of_process()]
    return max(0, min(found))


def _available() -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return UNKNOWN


def _limits_of_groups() -> list[int]:
    """What is left in the control groups that this process is in, of either version."""
    left = []
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                root, limit, used, cache = Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"
            elif "memory" in controllers.split(","):
                root, limit, used = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"
                cache = "total_inactive_file"
            else:
                continue
            # A container sees its own group as the root, whatever path it has outside.
            for folder in {root, *(root / own for own in _upwards(path))}:
                left += _left_in(folder, limit, used, cache)
    return left


def _upwards(path: str) -> list[str]:
    parts = path.strip("/").split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _left_in(folder: Path, limit: str, used: str, cache: str) -> list[int]:
    try:
        most = int((folder / limit).read_text(encoding="ascii"))
        if most >= _UNLIMITED:
            return []
        taken = int((folder / used).read_text(encoding="ascii"))
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):  # "max" is no number: no limit
        return []
    # Files that were read count as used, and make way.
    return [most - taken + int(statistics.get(cache, 0))]


def _limit_of_process() -> list[int]:
    """What ``ulimit -v`` leaves."""
    if sys.platform == "win32":
        return []
    import resource

    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most == resource.RLIM_INFINITY:
        return []
    with contextlib.suppress(OSError, ValueError, IndexError):
        taken = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
        return [most - taken]
    return [most]


def _give_back() -> None:
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
