"""Data sets: what they hold, and real MNIST where there is one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from gradstab.assembly import build
from gradstab.config.training_options import N_TRAIN
from gradstab.data import load_data
from gradstab.errors import DataError
from gradstab.runner import run
from tests.conftest import Compose

GAUSSIAN = {"dim": 20, "classes": 3, "n_train": 500, "n_test": 100, "seed": 1}


def test_digits_are_scikit_learns_split_once_and_for_all() -> None:
    data = load_data("digits")
    assert (len(data.train), len(data.test), data.out_features, data.in_shape) == (
        N_TRAIN["digits"],
        360,
        10,
        (1, 8, 8),
    )
    assert data.train.inputs.mean().item() == pytest.approx(0, abs=1e-6)
    assert data.train.inputs.std().item() == pytest.approx(1, rel=1e-5)
    pixels, labels = load_digits(return_X_y=True)
    scale = (pixels.max() - pixels.min()) / (data.train.inputs.max() - data.train.inputs.min()).item()
    ours = torch.cat([data.train.inputs, data.test.inputs]).flatten(1).numpy()
    restored = np.rint((ours - ours.min()) * scale).astype(int)
    together = zip(restored, torch.cat([data.train.targets, data.test.targets]).tolist(), strict=True)
    assert sorted((*map(int, image), label) for image, label in together) == sorted(
        (*map(int, image), int(label)) for image, label in zip(pixels, labels, strict=True)
    )
    assert torch.equal(load_data("digits").test.inputs, data.test.inputs)


def test_gaussian_labels_come_from_a_linear_teacher() -> None:
    data = load_data("gaussian", **GAUSSIAN)
    assert data.train.inputs.std().item() == pytest.approx(1, rel=0.05)
    solution = torch.linalg.lstsq(data.train.inputs, torch.eye(3)[data.train.targets]).solution
    agreement = ((data.test.inputs @ solution).argmax(1) == data.test.targets).float().mean().item()
    assert agreement > 0.75
    assert not torch.equal(load_data("gaussian", **GAUSSIAN | {"seed": 2}).train.inputs, data.train.inputs)


def test_line() -> None:
    data = load_data("line")
    assert data.train.inputs.flatten().tolist() == data.train.targets.flatten().tolist() == [1, 2, 3, 4]
    assert not data.is_classification


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_missing_data_says_what_to_do(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"data\.root=.* is not there .*set data\.download=true"):
        load_data(name, root=str(tmp_path), download=False)


def test_no_network_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import urllib.request
    from urllib.error import URLError

    def unreachable(*_args: object, **_kwargs: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    with pytest.raises(DataError, match="could not be downloaded") as caught:
        load_data("mnist", root=str(tmp_path), download=True)
    assert "\n" not in str(caught.value)


def test_truncated_files_are_a_clear_error(tmp_path: Path, mnist_root: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in (mnist_root / "MNIST" / "raw").iterdir():
        content = path.read_bytes()
        (raw / path.name).write_bytes(content[:1000] if "train-images" in path.name else content)
    with pytest.raises(DataError, match=r"data\.root"):
        load_data("mnist", root=str(tmp_path), download=False)


def test_mnist_through_torchvision(mnist_root: Path) -> None:
    data = load_data("mnist", root=str(mnist_root), download=False)
    assert (len(data.train), len(data.test), data.in_shape) == (60_000, 10_000, (1, 28, 28))
    assert torch.bincount(data.test.targets).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_lenet5_learns_mnist(configure: Compose, mnist_root: Path, tmp_path: Path) -> None:
    overrides = ["experiment=lenet5_mnist", f"data.root={mnist_root}", "data.download=false"]
    record = run(configure(*overrides, "epochs=null", "steps=150", "quiet=true", "device=cpu"), tmp_path)
    assert record["parameters"] == 61_706
    assert record["test_accuracy"] > 0.93


def test_models_for_mnist_have_their_published_sizes(configure: Compose, mnist_root: Path) -> None:
    data = ("data=mnist", f"data.root={mnist_root}", "device=cpu")
    published = build(configure("model=lenet5_1998", *data)).model
    before_output = sum(p.numel() for p in published.parameters()) - 84 * 10 - 10
    assert before_output == 60_000
