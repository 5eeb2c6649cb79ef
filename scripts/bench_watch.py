"""What watching costs: a loop with every layer's gradient norm recorded at every step, against the same loop bare.

    python scripts/bench_watch.py [mlp] [lenet5] [transformer] [--rounds N] [--steps N] [--all-quantities N]

Both loops train the same network on the same batches and take turns, because machines are noisy; the median of their
ratios over rounds is printed. --all-quantities also measures everything at every Nth step, as watch does by default
at every 50th.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradstab import watch
from gradstab.monitor import Monitor

LIMIT = 1.05
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def mlp() -> tuple[nn.Module, Tensor]:
    """20 hidden layers of 128 ReLUs, batches of 128."""
    parts: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise([784, *[128] * 20]):
        parts += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(128, 10)), torch.randn(128, 784)


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
        """How long so many steps take; writing all that was gathered, and the verdict on it, are part of that."""
        started = time.perf_counter()
        for _ in range(steps):
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(self.inputs), self.targets)
            loss.backward()  # type: ignore[no-untyped-call]
            if self.monitor is not None:
                self.monitor.step(loss)
            self.optimizer.step()
        if self.monitor is not None:
            self.monitor.verdict()
        if self.inputs.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - started


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
    """Print one network's ratio, watched over bare: the median over rounds, in each of which both take a turn."""
    with tempfile.TemporaryDirectory() as folder:
        bare, watched = Loop(network, None, every, device), Loop(network, Path(folder) / "run", every, device)
        for loop in (bare, watched):
            loop.seconds(5)
        pairs = []
        for number in range(rounds):
            turns = [bare, watched] if number % 2 else [watched, bare]
            times = {loop: loop.seconds(steps) / steps for loop in turns}
            pairs.append((times[bare], times[watched]))
        assert watched.monitor is not None
        watched.monitor.close()
    middle = [statistics.median(column) * 1e3 for column in zip(*pairs, strict=True)]
    ratios = sorted(with_it / without for without, with_it in pairs)
    best = min(with_it for _, with_it in pairs) / min(without for without, _ in pairs)
    print(
        f"{network}: bare {middle[0]:.3f} ms, watched {middle[1]:.3f} ms per step: {statistics.median(ratios):.3f} × "
        f"(rounds from {ratios[0]:.3f} to {ratios[-1]:.3f}, fastest against fastest {best:.3f}; limit {LIMIT} ×)"
    )


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
