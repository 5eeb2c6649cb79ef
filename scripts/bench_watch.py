"""What watching costs: a loop with every layer's gradient norm recorded at every step, against the same loop bare.

    python scripts/bench_watch.py [mlp] [mlp256] [lenet5] [transformer] [--rounds N] [--steps N] [--all-quantities N]

Three loops train the same network on the same batches, two of them bare, and take turns of a few steps, because
machines are noisy and drift within seconds: printed are the median over rounds of the watched loop's time over the mean
of the bare ones', and of one bare loop's over the other's, which is 1 but for noise. --all-quantities also measures
everything at every Nth step, as watch does by default at every 50th.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradstab import watch
from gradstab.monitor import Monitor

LIMIT = 1.05
TURN = 4
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def mlp(width: int = 128) -> tuple[nn.Module, Tensor]:
    """20 hidden layers of ReLUs, batches of 128."""
    parts: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise([784, *[width] * 20]):
        parts += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(width, 10)), torch.randn(128, 784)


def lenet5() -> tuple[nn.Module, Tensor]:
    """The modern LeNet-5, batches of 128."""
    convolutions = [nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)]
    dense = [nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)]
    return nn.Sequential(*convolutions, *dense), torch.randn(128, 1, 32, 32)


class Transformer(nn.Module):
    """4 encoder layers of width 128 with 4 heads on 64 positions; the mean over positions is classified."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.encoder(x).mean(1))
        return y


def transformer() -> tuple[nn.Module, Tensor]:
    """A small transformer, batches of 16 sequences of 64 positions."""
    return Transformer(), torch.randn(16, 64, 128)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "mlp": mlp,
    "mlp256": partial(mlp, 256),
    "lenet5": lenet5,
    "transformer": transformer,
}


class Loop:
    """One network's training, watched where there is a directory to record it in."""

    def __init__(self, network: str, directory: Path | None, every: int | None, device: str) -> None:
        torch.manual_seed(0)
        model, inputs = NETWORKS[network]()
        self.model, self.inputs = model.to(device), inputs.to(device)
        self.targets = torch.randint(10, (len(inputs),), device=device)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
        self.monitor: Monitor | None = None
        if directory is not None:
            self.monitor = watch(model, directory, optimizer=self.optimizer, every=every)

    def seconds(self, steps: int) -> float:
        """How long so many steps take."""
        started = time.perf_counter()
        for _ in range(steps):
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(self.inputs), self.targets)
            loss.backward()  # type: ignore[no-untyped-call]
            if self.monitor is not None:
                self.monitor.step(loss)
            self.optimizer.step()
        if self.inputs.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - started

    def round(self, turns: int) -> Iterator[float]:
        """How long each of so many turns takes, and what is to be written of them all, with the verdict on it."""
        for _ in range(turns):
            yield self.seconds(TURN)
        started = time.perf_counter()
        if self.monitor is not None:
            self.monitor.verdict()
        yield time.perf_counter() - started


def keep_the_heap() -> None:
    """Let freed memory stay with the process, where that can be told to the C library.

    Else a step's tensors go back to the system or not by how the heap happens to lie, and taking a thousand pages anew
    costs a network of convolutions more than watching does.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(M_TRIM_THRESHOLD, 2**30)
        mallopt(M_MMAP_THRESHOLD, 2**25)


def compare(network: str, rounds: int, steps: int, every: int | None, device: str) -> None:
    """Print one network's ratio, watched over bare: the median over rounds, in which all take turns."""
    turns = -(-steps // TURN)
    with tempfile.TemporaryDirectory() as folder:
        loops = [Loop(network, directory, every, device) for directory in (None, Path(folder) / "run", None)]
        for loop in loops:
            loop.seconds(5)
        taken = [[sum(times) for times in zip(*_in_turn(loops, turns), strict=True)] for _ in range(rounds)]
        assert loops[1].monitor is not None
        loops[1].monitor.close()
    without, with_it, again = (torch.tensor(column) / (turns * TURN) for column in zip(*taken, strict=True))
    ratios, noise = 2 * with_it / (without + again), again / without
    low, middle, high = torch.quantile(ratios, torch.tensor([0.25, 0.5, 0.75])).tolist()
    print(
        f"{network}: bare {1e3 * without.median():.3f} ms, watched {1e3 * with_it.median():.3f} ms per step: "
        f"{middle:.3f} × (half of the rounds from {low:.3f} to {high:.3f}; bare against bare {noise.median():.3f}; "
        f"limit {LIMIT} ×)"
    )


def _in_turn(loops: Sequence[Loop], turns: int) -> list[list[float]]:
    """One round's turns, and what each loop has to write at its end."""
    rounds = [loop.round(turns) for loop in loops]
    return [[next(times) for times in rounds] for _ in range(turns + 1)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare the networks that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="|".join(NETWORKS))
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--all-quantities", type=int, default=None, metavar="N")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.networks if name not in NETWORKS]:
        parser.error(f"{', '.join(unknown)}: there are {', '.join(NETWORKS)}")
    keep_the_heap()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.rounds} rounds of {options.steps}")
    for network in options.networks or NETWORKS:
        compare(network, options.rounds, options.steps, options.all_quantities, options.device)


if __name__ == "__main__":
    main()
