"""What a run says of its own determinism; and that deterministic=true holds what it says, on a GPU too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from gradstab.config import OPTIONS
from gradstab.determinism import kernels, nondeterministic
from gradstab.events import read_records
from gradstab.run_directory import RUN_FILE
from gradstab.runner import run
from tests.conftest import Compose, Train

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SMALL = ("model.depth=3", "model.width=8", "steps=5", "batch_size=16")


def test_on_the_cpu_nothing_is_left_to_chance(train: Train) -> None:
    directories = [train(*SMALL, "model.dropout=0.2")["directory"] for _ in range(2)]
    record = json.loads((directories[0] / RUN_FILE).read_text())
    assert record["nondeterministic"] == []
    assert record["kernels"] == {"deterministic_algorithms": False}
    one, other = (read_records(directory) for directory in directories)
    assert one.scalars["train/loss"].values.tolist() == other.scalars["train/loss"].values.tolist()
    assert one.vectors["grad_norm"].values.tolist() == other.vectors["grad_norm"].values.tolist()


@pytest.mark.parametrize("model", OPTIONS["model"])
def test_on_a_gpu_what_is_left_to_chance_is_named(configure: Compose, model: str) -> None:
    said = nondeterministic(configure(f"model={model}"), CUDA)
    assert any("cuBLAS" in line for line in said)
    assert any("cuDNN" in line for line in said) == (model != "deep_mlp")
    assert nondeterministic(configure(f"model={model}", "deterministic=true"), CUDA) == []
    assert nondeterministic(configure(f"model={model}"), torch.device("mps")) != []


def test_what_is_particular_to_an_option_is_named(configure: Compose) -> None:
    for words, said in (
        (("constraint=weight_norm",), "norms of layers"),
        (("optimizer=coordinate_descent", "optimizer.order=gauss_southwell"), "choice of a block"),
        (("model=lenet5_1998",), "C3's table"),
    ):
        assert any(said in line for line in nondeterministic(configure(*words), CUDA))
        assert not any(said in line for line in nondeterministic(configure(), CUDA))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "words",
    [
        *((f"model={model}",) for model in OPTIONS["model"]),
        ("model=deep_mlp", "model.norm=batch", "model.dropout=0.3", "model.residual=rezero", "optimizer=adam"),
        ("model=lenet5", "model.pooling=max", "model.norm=batch", "model.dropout=0.3", "model.residual=add"),
        ("model=deep_mlp", "constraint=weight_norm", "measure=full", "measure.every=2"),
        ("model=deep_mlp", "constraint=spectral_norm"),
        ("model=deep_mlp", "optimizer=coordinate_descent", "optimizer.order=gauss_southwell"),
        ("model=deep_mlp", "act=prelu", "clip=percentile"),
    ],
    ids=" ".join,
)
def test_deterministic_runs_on_a_gpu_are_equal_bit_for_bit(
    configure: Compose, tmp_path: Path, words: tuple[str, ...]
) -> None:
    found = []
    for name in ("one", "other"):
        config = configure("device=cuda", "deterministic=true", "quiet=true", "steps=30", "images_after=null", *words)
        record = run(config, tmp_path / name)
        assert record["nondeterministic"] == []
        assert record["kernels"]["deterministic_algorithms"]
        assert record["kernels"]["cublas_workspace"]
        assert kernels(CUDA)["cudnn_benchmark"] is False
        records = read_records(tmp_path / name)
        found.append((records.scalars["train/loss"].values.tolist(), records.vectors["grad_norm"].values.tolist()))
    assert found[0] == found[1]
