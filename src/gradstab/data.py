"""Data sets as tensors on the device, and batches drawn from them by index."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradstab.errors import DataError


@dataclass(frozen=True)
class Split:
    """Inputs [n, *shape] (float) and targets: classes [n] (int64), or values [n, k] (float) for a regression."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def to(self, device: torch.device, dtype: torch.dtype) -> Split:
        """The same split on another device, inputs and real-valued targets in another precision."""
        targets = self.targets.to(device, dtype) if self.targets.is_floating_point() else self.targets.to(device)
        return Split(self.inputs.to(device, dtype), targets)


@dataclass(frozen=True)
class Dataset:
    """A train and a test split, and how many outputs a network for them has."""

    train: Split
    test: Split
    out_features: int

    @property
    def in_shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return tuple(self.train.inputs.shape[1:])

    @property
    def is_classification(self) -> bool:
        """Whether targets are classes, so that there is an accuracy."""
        return not self.train.targets.is_floating_point()

    def to(self, device: torch.device, dtype: torch.dtype) -> Dataset:
        """Both splits on another device."""
        return Dataset(self.train.to(device, dtype), self.test.to(device, dtype), self.out_features)


def batches(split: Split, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches (inputs, targets, indices) without end, reshuffled each epoch by ``generator`` (on the CPU).

    The last, incomplete batch of an epoch is left out, so that every step sees the same number of samples. A
    batch of all samples is the split itself, in its own order.
    """
    n = len(split)
    if batch_size == n:
        everything = torch.arange(n, device=split.inputs.device)
        while True:
            yield split.inputs, split.targets, everything
    while True:
        order = torch.randperm(n, generator=generator).to(split.inputs.device)
        for start in range(0, n - batch_size + 1, batch_size):
            chosen = order[start : start + batch_size]
            yield split.inputs.index_select(0, chosen), split.targets.index_select(0, chosen), chosen


def load_data(name: str, **knobs: Any) -> Dataset:
    """Load a data set by name, inputs scaled to mean 0 and variance 1 over the training set (per colour channel)."""
    return _LOADERS[name](**knobs)


def _standardised(train: Split, test: Split, out_features: int) -> Dataset:
    dims = [d for d in range(train.inputs.ndim) if d != 1]
    mean, std = train.inputs.mean(dims, keepdim=True), train.inputs.std(dims, keepdim=True)
    train, test = (Split((split.inputs - mean) / std, split.targets) for split in (train, test))
    return Dataset(train, test, out_features)


def _digits() -> Dataset:
    table = _digits_table()
    images = torch.from_numpy(table[:, :-1].astype(np.float32)).view(-1, 1, 8, 8)
    targets = torch.from_numpy(table[:, -1].astype(np.int64))
    # The file is ordered by writer: a fixed shuffle, no part of any run's seed, gives every run the same split.
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[:1437], order[1437:]
    return _standardised(Split(images[train], targets[train]), Split(images[test], targets[test]), 10)


def _digits_table() -> NDArray[np.float64]:
    """scikit-learn's digits, 64 pixels and the class in a row, [1797, 65]."""
    # Its loader reads this file, but importing scikit-learn takes more than a second.
    package = importlib.util.find_spec("sklearn")
    for folder in (package.submodule_search_locations or ()) if package else ():
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            return np.loadtxt(path, delimiter=",")
    from sklearn.datasets import load_digits

    return np.column_stack(load_digits(return_X_y=True))


def _line() -> Dataset:
    x = torch.arange(1.0, 5.0).unsqueeze(1)
    return Dataset(Split(x, x), Split(x, x), 1)


def _gaussian(dim: int, classes: int, n_train: int, n_test: int, seed: int) -> Dataset:
    # A run's own streams have small seeds too: from an equal one, inputs would be the first layer's weights over again.
    draw = torch.Generator().manual_seed((seed + 1) * 0x9E3779B1 % 2**32)
    inputs = torch.randn(n_train + n_test, dim, generator=draw)
    teacher = torch.randn(dim, classes, generator=draw)
    labels = (inputs @ teacher).argmax(1)
    return Dataset(Split(inputs[:n_train], labels[:n_train]), Split(inputs[n_train:], labels[n_train:]), classes)


def _torchvision(class_name: str) -> Callable[..., Dataset]:
    """A loader for one of torchvision's data sets, imported only when it is asked for."""

    def load(root: str, download: bool) -> Dataset:
        from torchvision import datasets

        source = getattr(datasets, class_name)
        where = f"data.root={root}: {class_name}"
        try:
            train, test = (source(root, train=part, download=False) for part in (True, False))
        except (RuntimeError, OSError, ValueError, EOFError, AssertionError) as missing:
            if not download:
                raise DataError(f"{where} is not there ({_first_line(missing)}); set data.download=true") from missing
            try:
                train, test = (source(root, train=part, download=True) for part in (True, False))
            except Exception as error:
                raise DataError(
                    f"{where} is not there and could not be downloaded ({_first_line(error)}); check the network, "
                    f"or put the files under {Path(root).resolve()}"
                ) from error
        return _standardised(_images(train), _images(test), 10)

    return load


def _images(source: Any) -> Split:
    pixels = torch.as_tensor(source.data).float() / 255
    images = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    return Split(images.contiguous(), torch.as_tensor(source.targets, dtype=torch.int64))


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0].rstrip(":") if str(error).strip() else type(error).__name__


_LOADERS: dict[str, Callable[..., Dataset]] = {
    "digits": _digits,
    "line": _line,
    "gaussian": _gaussian,
    "mnist": _torchvision("MNIST"),
    "fashion_mnist": _torchvision("FashionMNIST"),
    "cifar10": _torchvision("CIFAR10"),
}
