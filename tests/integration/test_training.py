"""Whole runs: every option trains, measuring changes nothing, seeds repeat, divergence is a result."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gradstab import training
from gradstab.assembly import build
from gradstab.batching import Batches
from gradstab.config import GROUPS, OPTIONS
from gradstab.events import EventWriter, read_records
from gradstab.measure.recorder import Recorder
from gradstab.parts import Parts
from gradstab.reproducibility import generator
from gradstab.runner import run
from tests.conftest import Compose, Train

SMALL = ("model.depth=3", "model.width=16", "batch_size=32")
DOWNLOADED = ("mnist", "fashion_mnist", "cifar10")
OPTIONS_TO_TRAIN = [(g, n) for g in GROUPS for n in OPTIONS[g] if n not in DOWNLOADED]
REQUIRED_KEYS = {
    *("status", "reason", "steps", "train_loss", "test_loss", "test_accuracy", "best_test_accuracy"),
    *("depth_factor", "depth_factor_r2", "first_layer_grad_norm", "last_layer_grad_norm", "seconds"),
    *("device", "seed", "versions"),
}


def _weights_after(configure: Compose, directory: Path, *overrides: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of a model after a run, and the run's record."""
    kept: dict[str, Tensor] = {}
    config = configure("quiet=true", "device=cpu", *overrides)
    original = training.evaluate_into

    def keep(outcome: Any, parts: Parts, *rest: Any) -> None:
        original(outcome, parts, *rest)
        kept.update({name: value.clone() for name, value in parts.model.state_dict().items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "evaluate_into", keep)
        record = run(config, directory)
    return kept, record


@pytest.mark.parametrize(("group", "name"), OPTIONS_TO_TRAIN)
def test_every_option_trains(train: Train, group: str, name: str) -> None:
    overrides = [f"{group}={name}", "steps=3", "eval_every=2"]
    if (group, name) == ("init", "fixup"):
        overrides.append("model.residual=add")
    if group != "model":
        overrides += SMALL if name != "line" else SMALL[:2]
    record = train(*overrides)
    assert record["status"] in ("completed", "diverged")
    assert record.keys() >= REQUIRED_KEYS
    on_disk = json.loads((record["directory"] / "run.json").read_text())
    assert on_disk["status"] == record["status"]
    losses = read_records(record["directory"]).scalars["train/loss"]
    assert losses.steps.tolist() == list(range(len(losses.steps)))
    assert len(losses.steps) >= record["steps"] >= 1


# Pairs of groups whose options meet in the same tensors.
CROSSES = [
    *((f"model={m}", f"act={a}", f"init={i}") for m, a, i in [
        ("lenet5", "prelu", "delta_orthogonal"),
        ("lenet5", "selu", "lsuv"),
        ("lenet5_1998", "softsign", "lsuv"),
        ("lenet5_1998", "tanh", "default"),
        ("deep_mlp", "prelu", "orthogonal"),
    ]),
    *((f"model={m}", f"constraint={c}", f"optimizer={o}", f"clip={p}") for m, c, o, p in [
        ("lenet5", "spectral_norm", "muon", "agc"),
        ("lenet5_1998", "weight_norm", "adam", "layer"),
        ("lenet5_1998", "max_norm", "coordinate_descent", "zclip"),
        ("deep_mlp", "weight_norm", "muon", "percentile"),
        ("deep_mlp", "spectral_norm", "coordinate_descent", "value"),
    ]),
    ("model.norm=batch", "model.residual=rezero", "model.dropout=0.2", "penalty=l1", "loss=mse"),
    ("model=lenet5", "model.norm=layer", "model.norm_position=after", "model.residual=scaled", "model.pooling=avg"),
    ("model.width=[20,10,30]", "model.residual=add", "init=fixup"),
    ("data=gaussian", "batch_size=full", "schedule=plateau", "optimizer=coordinate_descent"),
    ("optimizer=coordinate_descent", "optimizer.block=coordinate", "optimizer.order=gauss_southwell"),
    ("data=line", "model.depth=0", "precision=float64"),
    ("model.bias=false", "precision=bfloat16", "measure=full", "measure.every=1", "clip=norm"),
    ("model=lenet5", "precision=bfloat16", "model.norm=batch", "optimizer=adamw"),
    ("deterministic=true", "on_divergence=skip", "measure=none"),
]  # fmt: skip


@pytest.mark.parametrize("overrides", CROSSES, ids=" ".join)
def test_options_train_together(train: Train, overrides: tuple[str, ...]) -> None:
    extra = () if "batch_size=full" in overrides or "data=line" in overrides else ("batch_size=32",)
    record = train(*overrides, *extra, "steps=3", "eval_every=2")
    assert record["status"] == "completed"
    assert math.isfinite(float(record["test_loss"]))


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.norm=batch", "model.dropout=0.3"),
        ("model=lenet5", "model.norm=batch", "model.dropout=0.3", "clip=zclip"),
        ("constraint=spectral_norm", "model.dropout=0.1", "optimizer=adam"),
        ("constraint=weight_norm", "model.norm=layer", "model.residual=rezero", "optimizer=muon"),
    ],
    ids=" ".join,
)
def test_measuring_changes_nothing_bit_for_bit(configure: Compose, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    size = () if "model=lenet5" in overrides else SMALL[:2]
    common = (*overrides, *size, "steps=12", "batch_size=32", "eval_every=5")
    states = {}
    for name, extra in {
        "none": ("measure=none",),
        "norms": ("measure=norms",),
        "full": ("measure=full", "measure.every=1"),
    }.items():
        states[name], _ = _weights_after(configure, tmp_path / name, *common, *extra)
    assert len(states["none"]) > 4
    for name in ("norms", "full"):
        assert states[name].keys() == states["none"].keys()
        assert all(torch.equal(states[name][key], value) for key, value in states["none"].items()), name


def test_same_seed_same_run_bit_for_bit_and_another_seed_another(configure: Compose, tmp_path: Path) -> None:
    common = (*SMALL, "model.dropout=0.2", "model.norm=batch", "optimizer=adam", "steps=15", "measure=full")
    first, record = _weights_after(configure, tmp_path / "a", *common)
    torch.rand(17)
    again, repeated = _weights_after(configure, tmp_path / "b", *common)
    other, _ = _weights_after(configure, tmp_path / "c", *common, "seed=1")
    assert all(torch.equal(again[key], value) for key, value in first.items())
    assert not all(torch.equal(other[key], value) for key, value in first.items())
    same = REQUIRED_KEYS - {"seconds"}
    assert {k: record[k] for k in same} == {k: repeated[k] for k in same}
    norms, norms_again = (read_records(tmp_path / d).vectors["grad_norm"].values for d in "ab")
    assert np.array_equal(norms, norms_again)


def test_streams_are_apart(configure: Compose) -> None:
    """Runs that differ in activation, depth, dropout or init see the same batches."""
    order = [
        next(Batches(build(configure("device=cpu", *SMALL[2:], *o)).data.train, 32, generator(0, "order")))[2]
        for o in [(), ("act=tanh",), ("model.depth=7",), ("model.dropout=0.5", "init=orthogonal")]
    ]
    assert all(torch.equal(order[0], indices) for indices in order[1:])
    plain, dropped = (build(configure("device=cpu", *SMALL, o)) for o in ("model.dropout=0", "model.dropout=0.5"))
    for before, after in zip(plain.model.parameters(), dropped.model.parameters(), strict=True):
        assert torch.equal(before, after)


def test_batches_cover_an_epoch_without_repeats(configure: Compose) -> None:
    train = build(configure("device=cpu", *SMALL)).data.train
    stream = Batches(train, 100, generator(3, "order"))
    epochs = [torch.cat([next(stream)[2] for _ in range(len(train) // 100)]) for _ in range(2)]
    assert all(len(set(epoch.tolist())) == 1400 for epoch in epochs)
    assert not torch.equal(*epochs)
    inputs, targets, indices = next(stream)
    assert torch.equal(inputs, train.inputs[indices])
    assert torch.equal(targets, train.targets[indices])


def test_gradient_descent_on_a_line_contracts_as_its_hessian_says(train: Train) -> None:
    lr = 0.05
    record = train("experiment=linear_regression", "precision=float64", "steps=60")
    x = np.array([1.0, 2, 3, 4])
    hessian = 2 * np.array([[(x**2).mean(), x.mean()], [x.mean(), 1.0]])
    # The error (w - 1, b) starts at (-1, 0) and is multiplied by I - lr·H at every step.
    error, expected = np.array([-1.0, 0.0]), []
    for _ in range(60):
        expected.append(0.5 * error @ hessian @ error)
        error = error - lr * hessian @ error
    losses = read_records(record["directory"]).scalars["train/loss"].values
    assert losses == pytest.approx(expected, rel=1e-6)
    assert record["test_accuracy"] is None


def test_too_large_a_rate_diverges_and_that_is_a_result(train: Train) -> None:
    record = train("experiment=linear_regression", "optimizer.lr=0.2")
    assert record["status"] == "diverged"
    assert "step" in record["reason"]
    assert "00_output" in record["reason"]
    assert 0 < record["steps"] < 500
    assert record["non_finite"]["step"] == record["steps"]
    records = read_records(record["directory"])
    assert records.scalars["train/loss"].steps[-1] == record["steps"]
    assert not math.isfinite(records.scalars["train/loss"].values[-1])


def test_divergence_names_the_layer_whose_output_breaks_first(train: Train) -> None:
    record = train("experiment=exploding_init", "init.gain=1000", "model.depth=20", "model.width=32", "steps=5")
    assert record["status"] == "diverged"
    assert record["steps"] == 0
    # 1000 per layer: float32 ends at 3.4e38, after the thirteenth layer.
    layer = int(record["non_finite"]["layer"].split("_")[0])
    assert 10 <= layer <= 13
    assert record["non_finite"]["layer"] in record["reason"]


def test_a_gradient_that_overflows_backwards_is_named(configure: Compose, tmp_path: Path) -> None:
    parts = build(configure("device=cpu", *SMALL, "act=identity"))
    with torch.no_grad():
        for layer in parts.model.layers:
            layer.affine.weight.fill_(1e-10)  # type: ignore[operator, union-attr]
    parts.model.layers[1].affine.register_full_backward_hook(lambda _m, g_in, _g_out: (g_in[0] * math.inf,))
    inputs, targets = parts.data.train.inputs[:4], parts.data.train.targets[:4]
    record = training.train_step(parts, 0, inputs, targets, measure_all=False)
    assert not record.updated
    writer = EventWriter(tmp_path, parts.probe.tags)
    recorder = Recorder(parts.probe, writer, skip_non_finite=False)
    recorder.add(record)
    broken = recorder.flush()
    writer.close()
    assert broken is not None
    assert (broken.quantity, broken.layer) == ("gradient", 0)


def test_skipping_non_finite_steps_counts_them_and_keeps_the_weights(train: Train) -> None:
    record = train("experiment=exploding_init", "init.gain=1000", "model.width=32", "on_divergence=skip", "steps=30")
    assert (record["steps"], record["skipped_steps"]) == (0, 30)
    assert record["status"] == "diverged"
    stuck = train("experiment=exploding_init", "init.gain=1000", "model.width=16", "on_divergence=skip", "steps=300")
    assert stuck["status"] == "diverged"
    assert stuck["skipped_steps"] == 100


def test_a_skipped_step_leaves_no_trace_in_running_averages(configure: Compose) -> None:
    words = (*SMALL, "model.norm=batch", "device=cpu")
    skipping, plain = (build(configure(*words, *more)) for more in (("on_divergence=skip",), ()))
    for parts in (skipping, plain):
        parts.model.train()
        inputs, targets = parts.data.train.inputs[:32], parts.data.train.targets[:32]
        assert training.train_step(parts, 0, inputs, targets, measure_all=False).updated
        if parts is skipping:
            assert not training.train_step(parts, 1, inputs * math.inf, targets, measure_all=True).updated
        assert training.train_step(parts, 2, inputs, targets, measure_all=False).updated
    both = zip(skipping.model.state_dict().items(), plain.model.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) and one.isfinite().all() for (_, one), other in both)


def test_a_network_broken_by_its_last_update_has_diverged(train: Train) -> None:
    record = train(*SMALL, "optimizer.lr=1e30", "steps=1")
    assert (record["status"], record["steps"], record["test_accuracy"]) == ("diverged", 1, 0.0)
    assert "test loss after step 0" in record["reason"]
    assert "non_finite" in record["verdict"]["labels"]
    assert read_records(record["directory"]).scalars["test/loss"].steps.tolist() == [1]


def test_target_loss_ends_a_run_early(train: Train) -> None:
    record = train(*SMALL, "optimizer=adam", "optimizer.lr=0.01", "steps=1000", "target_loss=0.5")
    assert record["status"] == "completed"
    assert record["train_loss"] <= 0.5
    assert record["steps"] < 1000
    assert "target_loss" in record["reason"]


def test_sigmoid_vanishes_and_relu_does_not(train: Train) -> None:
    sigmoid = train("act=sigmoid", "steps=1")
    relu = train("steps=1")
    assert sigmoid["depth_factor"] < 0.5
    assert sigmoid["first_layer_grad_norm"] < 1e-6 * sigmoid["last_layer_grad_norm"]
    assert 0.9 < relu["depth_factor"] < 1.1
    assert sigmoid["depth_factor_r2"] > 0.99


@pytest.mark.parametrize(("clip", "scales"), [("norm", True), ("value", False), ("layer", False), ("agc", False)])
def test_norms_before_and_after_clipping_are_both_recorded(train: Train, clip: str, scales: bool) -> None:
    limit = {"norm": "max_norm", "value": "max_value", "layer": "max_norm", "agc": "clipping"}[clip]
    record = train(*SMALL, f"clip={clip}", f"clip.{limit}=0.001", "steps=5")
    records = read_records(record["directory"])
    pre, post = (records.scalars[f"global_grad_norm/{side}_clip"].values for side in ("pre", "post"))
    layers_pre, layers_post = (records.vectors[name].values for name in ("grad_norm", "grad_norm_post_clip"))
    assert (post < pre).all()
    assert (layers_post <= layers_pre * (1 + 1e-6)).all()
    assert records.vectors["clip_scale"].values == pytest.approx(layers_post / layers_pre)
    if scales:
        assert post == pytest.approx([0.001] * 5, rel=1e-5)
    assert record["clipped_steps"] == 5


def test_quantities_come_at_the_first_step_and_before_evaluations(train: Train) -> None:
    record = train(*SMALL, "act=tanh", "steps=25", "eval_every=10")
    records = read_records(record["directory"])
    assert records.vectors["grad_norm"].steps.tolist() == list(range(25))
    for name in ("signal_grad_norm", "activation_std", "saturated_fraction", "update_ratio"):
        assert records.vectors[name].steps.tolist() == [0, 9, 19, 24], name
    assert records.scalars["test/accuracy"].steps.tolist() == [10, 20, 25]
    full = train(*SMALL, "steps=25", "eval_every=10", "measure=full", "measure.every=5")
    steps = read_records(full["directory"]).vectors["weight_norm"].steps.tolist()
    assert steps == [0, 5, 9, 10, 15, 19, 20, 24]
    none = train(*SMALL, "steps=25", "measure=none")
    assert none["depth_factor"] is None
    assert not read_records(none["directory"]).vectors


def test_rezero_passes_the_gradient_unchanged_at_first(train: Train) -> None:
    record = train("model.residual=rezero", "model.depth=5", "model.width=16", "steps=1", "batch_size=32")
    first = read_records(record["directory"]).vectors["signal_grad_norm"].values[0]
    assert first[:5].tolist() == pytest.approx([first[0]] * 5, rel=1e-6)
    assert record["depth_factor"] == pytest.approx(1.0, rel=1e-6)
    assert read_records(record["directory"]).vectors["grad_norm"].values[0][1:5].tolist() == [0.0] * 4


def test_scaled_residuals_bound_the_gradient_as_theory_says(train: Train) -> None:
    overrides = ("model.residual=scaled", "model.depth=17", "model.width=256", "init=variance", "init.sigma_w2=2.0")
    norms = [
        read_records(train(*overrides, f"seed={seed}", "steps=1")["directory"]).vectors["signal_grad_norm"].values[0]
        for seed in range(3)
    ]
    # ReLU with σ_w² = 2 has χ₁ = 1: the squared norm grows by 1 + 1/L in each of the L = 16 blocks.
    growth = np.mean([(values[0] / values[16]) ** 2 for values in norms])
    assert growth == pytest.approx((1 + 1 / 16) ** 16, rel=0.15)


def test_precision_reaches_the_numbers(train: Train) -> None:
    losses = {
        p: read_records(train(*SMALL, f"precision={p}", "steps=2")["directory"]).scalars["train/loss"].values
        for p in ("float32", "float64", "bfloat16")
    }
    assert losses["float32"] == pytest.approx(losses["float64"], rel=1e-5)
    assert losses["bfloat16"] == pytest.approx(losses["float64"], rel=0.05)
    assert losses["bfloat16"].tolist() != losses["float32"].tolist()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_runs_like_the_cpu(configure: Compose, tmp_path: Path) -> None:
    common = ("quiet=true", *SMALL, "precision=float64", "steps=20", "measure=full", "clip=norm")
    records = {}
    for device in ("cpu", "cuda"):
        run(configure(f"device={device}", *common), tmp_path / device)
        records[device] = read_records(tmp_path / device).vectors["grad_norm"].values
    assert records["cuda"] == pytest.approx(records["cpu"], rel=1e-6)
