"""What gradstab costs, as ratios of two things run in turn.

    python scripts/bench.py [steps] [start] [depth] [sweep] [--rounds N]

steps: gradstab's loop, every layer's gradient norm measured and written at every step, against a bare PyTorch loop
over tensors in memory that measures nothing. start: `gradstab --help` and the time to the first training step,
against the imports they cannot do without. depth: the same as steps for a 1,000-layer network, and memory over time.
sweep: what a cell costs beyond its training, and the rate of two processes against one.
Medians over rounds are compared; within a round the contenders take turns, because machines are noisy.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from bench_sweep import bench_sweep
from hydra import compose, initialize_config_module
from torch import Tensor, nn

from gradstab.assembly import build
from gradstab.batching import Batches
from gradstab.config import Config, from_hydra, register_schema
from gradstab.data import Dataset
from gradstab.events import EventWriter
from gradstab.measure.diagnosis import Judge
from gradstab.measure.recorder import NonFinite, Recorder
from gradstab.progress import Plan, Progress
from gradstab.training import fit

Contender = Callable[[int], None]


class Silent:
    """A display that shows nothing, a saver that saves nothing, and a witness that looks away."""

    def _nothing(self, *_args: Any, **_named: Any) -> None:
        """Whatever is told."""

    progress = evaluated = poll = save = before = after = ended = _nothing

    def due(self, done: int) -> bool:  # noqa: ARG002
        """Never."""
        return False

    def looked(self, broken: NonFinite | None) -> NonFinite | None:
        """As it is."""
        return broken


def configured(*overrides: str) -> Config:
    """The configuration that `gradstab train` would run with these overrides."""
    register_schema()
    with initialize_config_module("gradstab.configs", version_base="1.3"):
        return from_hydra(compose("train", list(overrides)))


def bare_mlp(depth: int, width: int, in_features: int) -> nn.Module:
    """A plain ReLU MLP with He's initialisation, built without gradstab."""
    widths = [in_features, *[width] * depth]
    parts: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in itertools.pairwise(widths):
        parts += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return _he(nn.Sequential(*parts, nn.Linear(width, 10)))


def bare_lenet5() -> nn.Module:
    """A plain LeNet-5 for 32×32 images, built without gradstab."""
    convolutions = [nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)]
    dense = [nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)]
    return _he(nn.Sequential(*convolutions, *dense))


def _he(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return model


def bare_loop(model: nn.Module, inputs: Tensor, targets: Tensor, lr: float, fused: bool | None) -> Contender:
    """The limit to be held against: index, forward, backward, step, nothing else."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, fused=fused)
    size = 128

    def run(steps: int) -> None:
        order, position = torch.randperm(len(inputs)), 0
        for _ in range(steps):
            if position + size > len(inputs):
                order, position = torch.randperm(len(inputs)), 0
            chosen = order[position : position + size]
            position += size
            optimizer.zero_grad()
            F.cross_entropy(model(inputs[chosen]), targets[chosen]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return run


def gradstab_loop(config: Config, inputs: Tensor | None, folder: Path) -> Contender:
    """gradstab's own loop: every layer's gradient norm measured and written to an event file at every step."""
    parts = build(config)
    train = parts.data.train if inputs is None else dataclasses.replace(parts.data.train, inputs=inputs)
    # An evaluation comes with the end of every fit; on one sample it costs nothing.
    parts.data = Dataset(train, dataclasses.replace(train, inputs=train.inputs[:1], targets=train.targets[:1]), 10)
    stream = Batches(train, config.batch, torch.Generator().manual_seed(0))
    folder.mkdir()
    judge = Judge(parts.probe.tags, len(parts.probe.hidden), config.verdict, chance_loss=math.log(10))
    recorder = Recorder(parts.probe, EventWriter(folder, parts.probe.tags), skip_non_finite=False, observers=[judge])

    def run(steps: int) -> None:
        plan = Plan(steps, eval_every=10**9, measure_every=None, measure=False, target_loss=None)
        idle = Silent()
        ended = fit(parts, plan, stream, recorder, idle, judge, progress=Progress(), saver=idle, witness=idle)
        assert ended.status == "completed"

    return run


def compare(contenders: dict[str, Contender], steps: int, rounds: int) -> dict[str, float]:
    """Median seconds per step of each, taking turns, the first round thrown away."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            run(steps)
            taken[name].append((time.perf_counter() - start) / steps)
    return {name: statistics.median(times[1:]) for name, times in taken.items()}


def report(title: str, medians: dict[str, float], limit: float, unit: float = 1e3, name: str = "ms") -> None:
    """One line: the contenders' medians and the ratio of the first to each other one."""
    (ours, our_time), *others = medians.items()
    print(f"{title}: {ours} {our_time * unit:.2f} {name}")
    for other, other_time in others:
        print(f"    against {other} {other_time * unit:.2f} {name}: {our_time / other_time:.3f} ×   (limit {limit} ×)")


def bench_steps(rounds: int) -> None:
    """Cost of measuring and writing at every step."""
    lr = 0.001
    with tempfile.TemporaryDirectory() as scratch:
        config = configured(f"optimizer.lr={lr}")
        data = build(config).data.train
        contenders: dict[str, Contender] = {
            "gradstab": gradstab_loop(config, None, Path(scratch, "mlp")),
            "bare loop": bare_loop(bare_mlp(20, 128, 64), data.inputs, data.targets, lr, None),
            "bare loop with a fused optimizer": bare_loop(bare_mlp(20, 128, 64), data.inputs, data.targets, lr, True),
        }
        report("MLP 20 × 128, batch 128, per step", compare(contenders, 100, rounds), 1.05)
        config = configured("model=lenet5", f"optimizer.lr={lr}")
        images = F.interpolate(data.inputs, size=(32, 32))
        contenders = {
            "gradstab": gradstab_loop(config, images, Path(scratch, "lenet5")),
            "bare loop": bare_loop(bare_lenet5(), images, data.targets, lr, None),
            "bare loop with a fused optimizer": bare_loop(bare_lenet5(), images, data.targets, lr, True),
        }
        report("LeNet-5, batch 128, per step", compare(contenders, 50, rounds), 1.05)


def bench_depth(rounds: int) -> None:
    """A very deep network, and memory over many measured steps."""
    lr = 1e-6
    with tempfile.TemporaryDirectory() as scratch:
        config = configured("model.depth=1000", f"optimizer.lr={lr}")
        data = build(config).data.train
        contenders: dict[str, Contender] = {
            "gradstab": gradstab_loop(config, None, Path(scratch, "deep")),
            "bare loop": bare_loop(bare_mlp(1000, 128, 64), data.inputs, data.targets, lr, None),
        }
        report("MLP 1000 × 128, batch 128, per step", compare(contenders, 10, rounds), 1.10)
        config = configured("model.depth=50", "model.width=16", f"optimizer.lr={lr}")
        loop = gradstab_loop(config, None, Path(scratch, "memory"))
        loop(1000)
        before = _resident_mib()
        loop(10_000)
        print(f"memory over 10,000 measured steps: {before:.0f} MiB -> {_resident_mib():.0f} MiB")


def bench_start(rounds: int) -> None:
    """Time to help, and to the first training step."""
    imports = "import torch, torch.utils.tensorboard, hydra, sklearn.datasets"
    python = sys.executable
    contenders: dict[str, Contender] = {
        "gradstab --help": _command([python, "-m", "gradstab", "--help"]),
        "python -c 'import hydra'": _command([python, "-c", "import hydra"]),
    }
    report("help", compare(contenders, 1, rounds), 3)
    contenders = {"first step": _first_step, "imports": _command([python, "-c", imports])}
    medians = compare(contenders, 1, rounds)
    difference = medians["first step"] - medians["imports"]
    print(
        f"from typing `gradstab train` to the first step: {medians['first step']:.2f} s; "
        f"bare imports {medians['imports']:.2f} s; difference {difference:+.2f} s   (limit +0.5 s)"
    )


def _command(command: Sequence[str]) -> Contender:
    def run(_: int) -> None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    return run


def _first_step(_: int) -> None:
    """A whole `gradstab train` that ends when its first step begins."""
    program = (
        "import os, sys, gradstab.cli, gradstab.training\n"
        "gradstab.training.train_step = lambda *args: os._exit(0)\n"
        "sys.argv = ['gradstab', 'train']\n"
        "gradstab.cli.entry_point()\n"
    )
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL, cwd=scratch)


def _resident_mib() -> float:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    """Run the benchmarks that were asked for, or all."""
    benches = {"steps": bench_steps, "start": bench_start, "depth": bench_depth, "sweep": bench_sweep}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=[*benches, []], help="which; all without")
    parser.add_argument("--rounds", type=int, default=9, help="counted rounds (default 9)")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.rounds} rounds")
    for name in args.what or benches:
        benches[name](args.rounds)


if __name__ == "__main__":
    main()
