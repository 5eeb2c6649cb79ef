"""A long run of a small network under full measuring: does its memory, its pace or its disk use grow?

    python scripts/soak.py [--steps N] [--every N] [--directory DIR]

Trains in a process of its own, whose resident memory is read from /proc every second (Linux). Afterwards the event
file tells how long each tenth of the steps took, and its size is held against the documented one. Exits with 1 where
memory, pace or file size is not flat: more than 2 % or 4 MiB between the second tenth and the last, a last tenth more
than 1.25 times as slow as the second, or a file that is not as large as the formula says by more than 1 %.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from gradstab.events import layer_tags, read_events
from gradstab.wording import shown_layers

DEPTH = 4
NETWORK = (
    f"model.depth={DEPTH}",
    "model.width=16",
    "batch_size=32",
    "act=tanh",
    "init=xavier_normal",
    "optimizer.lr=0.001",
)
# Bytes of a record but for names: its frame, time and step; a scalar; a vector without its entries, and an entry.
FRAME, SCALAR, VECTOR, ENTRY = 30, 9, 16, 8
MIB = 2**20


def resident(pid: int) -> int:
    """Bytes of a process in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * 4096


def train(directory: Path, steps: int, every: int) -> list[tuple[float, int]]:
    """Run it; returns (seconds since the start, bytes) as it went."""
    command = [sys.executable, "-m", "gradstab", "train", *NETWORK, f"steps={steps}", "eval_every=1000", "device=cpu"]
    command += ["measure=full", f"measure.every={every}", f"out_dir={directory}", "quiet=true"]
    started = time.perf_counter()
    samples = []
    # More threads than one make a network this small slower, and its pace depend on who else is at work.
    with subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
        while process.poll() is None:
            try:
                samples.append((time.perf_counter() - started, resident(process.pid)))
            except (OSError, IndexError):
                break
            time.sleep(1)
    if process.returncode:
        sys.exit(f"the run ended with exit code {process.returncode}")
    return samples


def main() -> int:
    """Train, then print what grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--directory", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = options.directory or Path(scratch) / "run"
        samples = train(directory, options.steps, options.every)
        return tell(directory, samples, options.steps)


def tell(directory: Path, samples: list[tuple[float, int]], steps: int) -> int:
    """Print the figures; 1 where something grew."""
    (path,) = directory.glob("events.out.tfevents.*")
    times, expected, others = walls(path)
    ends = np.linspace(0, len(times) - 1, 11).astype(int)
    pace = np.diff(times[ends]) / np.diff(ends) * 1e6
    sizes = np.array([size for _, size in samples], float)
    # Memory by tenths of the time, for want of a step beside each sample.
    memory = np.array([part.mean() for part in np.array_split(sizes, 10)])
    print(f"{steps:,} steps, {samples[-1][0]:,.0f} s")
    print("memory by tenths, MiB:    ", " ".join(f"{value / MIB:8.2f}" for value in memory))
    print("µs a step by tenths:      ", " ".join(f"{value:8.1f}" for value in pace))
    print(f"memory, last tenth over second:  {memory[-1] / memory[1]:.4f} ({(memory[-1] - memory[1]) / MIB:+.2f} MiB)")
    print(f"pace, last tenth over second:    {pace[-1] / pace[1]:.3f}")
    actual = path.stat().st_size - others
    print(f"event file: {path.stat().st_size:,} bytes, of them {others:,} pictures, settings and evaluations")
    print(f"records of steps: {actual:,} bytes; by the formula {expected:,} ({actual / expected:.4f})")
    rest = {file.name: file.stat().st_size for file in directory.rglob("*") if file.is_file() and file != path}
    print("other files:", json.dumps(rest))
    grew = memory[-1] - memory[1] > max(4 * MIB, 0.02 * memory[1])
    return int(grew or pace[-1] > 1.25 * pace[1] or abs(actual / expected - 1) > 0.01)


def size_of(tag: str, layers: int) -> int:
    """Bytes of one quantity in a record: the vector, and the layers that are shown one by one as well."""
    quantity = tag.removeprefix("layers/")
    tags = layer_tags(["hidden"] * (layers if layers < DEPTH + 1 else DEPTH) + ["output"] * (layers - DEPTH))
    shown = sum(SCALAR + len(f"{quantity}/{tags[i]}") for i in shown_layers(layers))
    return VECTOR + len(tag) + ENTRY * layers + shown


def walls(path: Path) -> tuple[np.ndarray, int, int]:
    """When each step was taken; what the formula gives for their records; the bytes of all other records."""
    times, expected, others = [], 0, 0
    for event in read_events(path):
        vectors = [value for value in event.summary.value if value.tag.startswith("layers/")]
        if not vectors:
            others += event.ByteSize() + 16
            continue
        times.append(event.wall_time)
        expected += FRAME + sum(size_of(value.tag, len(value.tensor.tensor_content) // ENTRY) for value in vectors)
        quantities = {"layers", *(value.tag.removeprefix("layers/") for value in vectors)}
        scalars = (value.tag for value in event.summary.value if value.tag.partition("/")[0] not in quantities)
        expected += sum(SCALAR + len(tag) for tag in scalars)
    return np.array(times), expected, others


if __name__ == "__main__":
    sys.exit(main())
