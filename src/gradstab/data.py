"""Data sets as tensors on the device."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradstab.config.training_options import N_TEST, N_TRAIN, SAMPLES
from gradstab.errors import DataError

_REINSTALL = "reinstall scikit-learn"
_REMOVE = "remove its folder under {} and set data.download=true"


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


def load_data(name: str, **knobs: Any) -> Dataset:
    """Load a data set by name, inputs scaled to mean 0 and variance 1 over the training set (per colour channel)."""
    return _LOADERS[name](**knobs)


def kept_data(name: str, **knobs: Any) -> Dataset:
    """What :func:`load_data` gives, kept for the next run in this process that asks for the same; never write to it."""
    key = (name, *sorted(knobs.items()))
    if key not in _kept:
        # The one before goes first: two may not fit into memory.
        _kept.clear()
        _kept[key] = load_data(name, **knobs)
    return _kept[key]


_kept: dict[tuple[Any, ...], Dataset] = {}


def _standardised(train: Split, test: Split, out_features: int) -> Dataset:
    dims = [d for d in range(train.inputs.ndim) if d != 1]
    mean, std = train.inputs.mean(dims, keepdim=True), train.inputs.std(dims, keepdim=True)
    train, test = (Split((split.inputs - mean) / std, split.targets) for split in (train, test))
    return Dataset(train, test, out_features)


def _digits() -> Dataset:
    try:
        table = _digits_table()
    except Exception as error:
        raise DataError(f"data=digits: scikit-learn's file is damaged ({_first_line(error)}); {_REINSTALL}") from error
    if table.shape != (1797, 65) or not (table.min() >= 0 and table.max() <= 16 and table[:, -1].max() <= 9):
        raise DataError(f"data=digits: scikit-learn's file is not the one it was; {_REINSTALL}")
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

        def splits(fetch: bool) -> list[Split]:
            return [_images(source(root, train=part, download=fetch)) for part in (True, False)]

        try:
            train, test = splits(fetch=False)
        except Exception as error:
            # Whatever torchvision stumbles over in a file is the file's fault; what it misses, it says in these words.
            if not isinstance(error, OSError) and "not found" not in str(error):
                raise DataError(f"{where} is damaged ({_first_line(error)}); {_REMOVE.format(root)}") from error
            if not download:
                raise DataError(f"{where} is not there ({_first_line(error)}); set data.download=true") from error
            try:
                train, test = splits(fetch=True)
            except Exception as failure:
                raise DataError(
                    f"{where} is not there and could not be downloaded ({_first_line(failure)}); check the network, "
                    f"or put the files under {Path(root).resolve()}"
                ) from failure
        _check_whole(class_name, where, root, train, test)
        return _standardised(train, test, 10)

    return load


def _check_whole(class_name: str, where: str, root: str, train: Split, test: Split) -> None:
    """Files that can be read may still be another data set's, or lack some of their samples."""
    name = {"MNIST": "mnist", "FashionMNIST": "fashion_mnist", "CIFAR10": "cifar10"}[class_name]
    shape, classes = SAMPLES[name]
    for what, split, count in (("training", train, N_TRAIN[name]), ("test", test, N_TEST[name])):
        found = tuple(split.inputs.shape)
        problem = None
        if found != (count, *shape):
            problem = f"{what} images of shape {found}; allowed: {(count, *shape)}"
        elif len(split.targets) != count:
            problem = f"{len(split.targets):,} {what} labels; allowed: {count:,}"
        elif not 0 <= int(split.targets.min()) <= int(split.targets.max()) < classes:
            problem = f"a {what} label of {int(split.targets.max())}; allowed: 0 to {classes - 1}"
        if problem:
            raise DataError(f"{where} is damaged: it has {problem}; {_REMOVE.format(root)}")


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
