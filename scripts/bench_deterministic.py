"""What ``deterministic=true`` costs: training steps with it against steps without, taking turns.

    python scripts/bench_deterministic.py [--rounds N] [--device cuda]

Prints a ratio for each network, and on a GPU holds two runs of each against each other bit for bit. Without a GPU it
says so and measures the CPU.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from hydra import compose, initialize_config_module

from gradstab import reproducibility
from gradstab.assembly import build
from gradstab.batching import Batches
from gradstab.config import Config, from_hydra, register_schema
from gradstab.training import train_step

NETWORKS = {
    "MLP 20 × 128": ("model=deep_mlp", "optimizer.lr=1e-4"),
    "LeNet-5": ("model=lenet5", "optimizer.lr=1e-4"),
    "LeNet-5 of 1998": ("model=lenet5_1998", "act=scaled_tanh", "optimizer.lr=1e-4"),
}


def configured(*overrides: str) -> Config:
    """The configuration that `gradstab train` would run with these overrides."""
    register_schema()
    with initialize_config_module("gradstab.configs", version_base="1.3"):
        return from_hydra(compose("train", list(overrides)), overrides)


def steps_of(config: Config) -> Callable[[int], list[torch.Tensor]]:
    """A function that makes so many training steps and gives the weights."""
    parts = build(config)
    stream = Batches(parts.data.train, config.batch, reproducibility.generator(config.seed, "order"))

    def run(steps: int) -> list[torch.Tensor]:
        reproducibility.set_determinism(config.deterministic)
        for step in range(steps):
            inputs, targets, _ = next(stream)
            train_step(parts, step, inputs, targets, False)
        if parts.probe.parameters[0].is_cuda:
            torch.cuda.synchronize()
        return [p.detach().clone() for p in parts.model.parameters()]

    return run


def main() -> None:
    """Measure each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU: what follows is the CPU's")
    name = torch.cuda.get_device_name() if options.device.startswith("cuda") else f"{torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {options.device} ({name}), {options.rounds} rounds of {options.steps} steps")
    for network, words in NETWORKS.items():
        common = (*words, f"device={options.device}", "quiet=true")
        configs = {flag: configured(*common, f"deterministic={str(flag).lower()}") for flag in (False, True)}
        runs = {flag: steps_of(config) for flag, config in configs.items()}
        taken: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(options.rounds + 1):
            for flag, run in runs.items():
                start = time.perf_counter()
                run(options.steps)
                taken[flag].append((time.perf_counter() - start) / options.steps)
        free, fixed = (statistics.median(taken[flag][1:]) * 1e3 for flag in (False, True))
        pairs = zip(*(steps_of(configs[True])(options.steps) for _ in range(2)), strict=True)
        equal = all(torch.equal(one, other) for one, other in pairs)
        print(f"{network}: {free:.3f} ms without, {fixed:.3f} ms with: {fixed / free:.3f} ×; "
              f"two deterministic runs are {'equal bit for bit' if equal else 'NOT EQUAL'}")  # fmt: skip


if __name__ == "__main__":
    main()
