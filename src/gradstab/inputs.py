"""What theory needs of a data set, measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gradstab.theory import BATCH, Batch
from gradstab.theory.activations import Array

if TYPE_CHECKING:
    from torch import Tensor

    from gradstab.data import Dataset

# So many samples are looked at, and more of fewer numbers each: they vary more in length and direction.
MAX_SAMPLES, MAX_NUMBERS = 256, 1 << 14
# So many batches stand for all, of so many samples at least.
_BATCHES, _SAMPLES = 4, 128


@dataclass(frozen=True, eq=False)
class Inputs:
    """What theory needs of a data set.

    ``q0`` holds ‖x‖²/N_0 of some training samples, [samples]; ``c0`` is the mean of ⟨x, x'⟩/N_0 over pairs of them,
    over the mean of ``q0``. ``n_in`` numbers make up a sample of shape ``in_shape``; a network has ``n_out`` outputs.
    ``lenet_q0`` is the mean square of what LeNet-5's first kernels see, padding included; None where it takes no such
    samples. ``samples`` are the samples themselves, [samples, n_in], and ``targets`` their values or one-hot classes.
    """

    q0: Array
    c0: float
    n_in: int
    n_out: int
    in_shape: tuple[int, ...]
    lenet_q0: float | None = None
    samples: Array | None = None
    targets: Array | None = None

    def batches(self, batch_size: int, guess: float) -> list[Batch]:
        """Batches of these samples, none where they are too few for one; ``guess`` is what all outputs start from."""
        size = min(batch_size, BATCH)
        if self.samples is None or self.targets is None:
            return []
        order = np.random.default_rng(0).permutation(len(self.samples))
        count = min(max(_BATCHES, _SAMPLES // size), len(order) // size)
        parts = order[: count * size].reshape(count, size)
        return [Batch(self.samples[part], guess - self.targets[part]) for part in parts]


def inputs_of(dataset: Dataset) -> Inputs:
    """Measure up to 256 training samples, or 16,384 numbers, evenly spaced; works on any device and precision."""
    samples = dataset.train.inputs
    most = max(MAX_SAMPLES, MAX_NUMBERS // max(samples[0].numel(), 1))
    chosen = np.linspace(0, len(samples) - 1, min(len(samples), most)).astype(np.int64).tolist()
    images = samples[chosen].detach().cpu().double()
    x: Array = images.numpy().reshape(len(chosen), -1)
    n = x.shape[1]
    q0 = np.square(x).sum(axis=1) / n
    c0 = 0.0
    if len(x) > 1 and q0.any():
        products = (np.square(x.sum(axis=0)).sum() / n - q0.sum()) / (len(x) * (len(x) - 1))
        c0 = float(products / q0.mean())
    targets = dataset.train.targets[chosen].detach().cpu().numpy()
    rows: Array = targets.astype(np.float64) if targets.ndim > 1 else np.eye(dataset.out_features)[targets]
    return Inputs(q0, c0, n, dataset.out_features, dataset.in_shape, _seen_by_lenet(images), x, rows)


def _seen_by_lenet(images: Tensor) -> float | None:
    """The mean square over all positions of a 5×5 kernel; pixels at the border count less often."""
    shape = images.shape[1:]
    if len(shape) != 3 or shape[1] != shape[2] or shape[1] > 32:
        return None
    from gradstab.models.lenet5 import to_lenet_input

    squares: Array = to_lenet_input(images).square().mean(dim=(0, 1)).numpy()
    return float(np.lib.stride_tricks.sliding_window_view(squares, (5, 5)).mean())
