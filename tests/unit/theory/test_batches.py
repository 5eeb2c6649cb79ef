"""BatchNorm over real batches: the Gram matrices that theory follows, against networks with autograd."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gradstab.theory import Batch, NoTheory, predict

SAMPLES, NUMBERS, CLASSES, WIDTH = 12, 40, 3, 2500
LAYERS = 3


def clustered() -> tuple[torch.Tensor, torch.Tensor]:
    """Samples of three classes, far apart and unequal in length."""
    generator = torch.Generator().manual_seed(3)
    targets = torch.arange(SAMPLES) % CLASSES
    centres = 2 * torch.randn(CLASSES, NUMBERS, generator=generator)
    lengths = torch.linspace(0.5, 1.5, SAMPLES).unsqueeze(1)
    return (centres[targets] + torch.randn(SAMPLES, NUMBERS, generator=generator)) * lengths, targets


def measured(phi: Any, residual: float | None, dropout: float) -> np.ndarray:
    """Squared norms of the gradients at h (of the stream, with ``residual``) of wide layers, over four draws."""
    x, targets = clustered()
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(4):
        torch.manual_seed(len(found))
        streams: list[torch.Tensor] = []
        a = x
        for layer in range(LAYERS):
            weight = torch.randn(WIDTH, a.shape[1], generator=generator) * (2 / a.shape[1]) ** 0.5
            h = F.linear(a, weight).requires_grad_()
            h = streams[-1] + residual * h if layer and residual is not None else h
            h.retain_grad()
            streams.append(h)
            a = F.dropout(phi(F.batch_norm(h, None, None, training=True)), dropout)
        # Small, so that all classes are about as likely.
        outputs = F.linear(a, torch.randn(CLASSES, WIDTH, generator=generator) * 1e-3)
        F.cross_entropy(outputs, targets).backward()  # type: ignore[no-untyped-call]
        found.append([stream.grad.double().square().sum().item() for stream in streams])  # type: ignore[union-attr]
    return np.exp(np.log(found).mean(axis=0))


@pytest.mark.parametrize(
    ("name", "phi", "residual", "dropout"),
    [
        ("relu", F.relu, None, 0.0),
        ("sigmoid", torch.sigmoid, None, 0.0),
        ("tanh", torch.tanh, 1.0, 0.0),
        ("relu", F.relu, None, 0.2),
    ],
)
def test_real_batches_are_followed_layer_by_layer(name: str, phi: Any, residual: float | None, dropout: float) -> None:
    x, targets = clustered()
    batch = Batch(x.double().numpy(), 1 / CLASSES - np.eye(CLASSES)[targets.numpy()])
    gram = batch.inputs @ batch.inputs.T / NUMBERS
    q0 = np.diag(gram).copy()
    c0 = (gram.sum() - q0.sum()) / (SAMPLES * (SAMPLES - 1)) / q0.mean()
    network: dict[str, Any] = {
        **{"act": name, "widths": [NUMBERS, *[WIDTH] * LAYERS, CLASSES], "q0": q0, "c0": c0, "norm": "batch"},
        **{"init": "variance", "init_knobs": {"sigma_w2": 2.0}, "batch_size": SAMPLES, "dropout": dropout},
        "residual": "none" if residual is None else "add",
    }
    norms = np.sqrt(measured(phi, residual, dropout))
    followed, alike = predict(**network, batches=[batch]), predict(**network)
    np.testing.assert_allclose(followed.signal_grad_norm, norms / norms[-1], rtol=0.03)
    # As if all samples were equally correlated, it is far off.
    assert np.abs(alike.signal_grad_norm * norms[-1] / norms - 1).max() > 0.05


def test_of_equally_correlated_samples_nothing_changes() -> None:
    rows = np.eye(16) * 4 + 1
    network: dict[str, Any] = {"act": "gelu", "widths": [16, *[100] * 30, 2], "norm": "batch", "batch_size": 16}
    gram = rows @ rows.T / 16
    q0, c0 = gram[0, 0], gram[0, 1] / gram[0, 0]
    batch = Batch(rows, np.eye(16))
    alike = predict(**network, q0=q0, c0=c0)
    followed = predict(**network, q0=q0, c0=c0, batches=[batch])
    np.testing.assert_allclose(followed.signal_grad_norm, alike.signal_grad_norm, rtol=0.02)
    # Of a thousand layers the first ones make no difference.
    deep = network | {"widths": [16, *[100] * 1000, 2]}
    found = predict(**deep, q0=q0, c0=c0, batches=[batch])
    assert found.depth_factor == predict(**deep, q0=q0, c0=c0).depth_factor


@pytest.mark.parametrize(
    ("inputs", "errors", "match"),
    [
        (np.ones(3), np.ones((3, 1)), r"inputs of shape \[3\]"),
        (np.ones((3, 2)), np.ones((4, 2)), "a row for each sample"),
        (np.ones((0, 2)), np.ones((0, 2)), "a row for each sample"),
        (np.full((3, 2), np.nan), np.ones((3, 2)), "have to be finite"),
        ([[1, "a"]], np.ones((1, 2)), "have to be matrices of numbers"),
        ([[1, 2], [3]], np.ones((2, 2)), "have to be matrices of numbers"),
    ],
)
def test_what_is_no_batch_is_refused(inputs: Any, errors: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Batch(inputs, errors)


@pytest.mark.parametrize(
    ("batches", "match"),
    [
        ([1, 2], "batches=list: has to be a list of gradstab.theory.Batch"),
        (5, "batches=int: has to be a list"),
        (
            [Batch(np.ones((8, 7)), np.ones((8, 2)))],
            r"inputs of shape \[8, 7\]: have to be 4 to 256 samples of 9 numbers",
        ),
        ([Batch(np.ones((3, 9)), np.ones((3, 2)))], r"inputs of shape \[3, 9\]: have to be 4 to 256 samples"),
        ([Batch(np.ones((300, 9)), np.ones((300, 2)))], r"inputs of shape \[300, 9\]: have to be 4 to 256 samples"),
    ],
)
def test_batches_that_do_not_fit_are_refused(batches: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        predict(act="relu", widths=[9, 20, 20, 2], q0=1.0, norm="batch", batch_size=8, batches=batches)


def test_lists_are_as_good_as_arrays() -> None:
    rows = np.random.default_rng(0).normal(size=(8, 9))
    network: dict[str, Any] = {"act": "relu", "widths": [9, 20, 20, 2], "q0": 1.0, "norm": "batch", "batch_size": 8}
    found = [
        predict(**network, batches=[one]) for one in (Batch(rows, np.eye(8)), Batch(rows.tolist(), np.eye(8).tolist()))
    ]  # type: ignore[arg-type]
    assert found[0].depth_factor == found[1].depth_factor


@pytest.mark.parametrize("size", [0.0, 1e-150, 1e-2, 1.0, 1e150])
def test_inputs_of_any_size_have_a_prediction_or_a_reason(size: float) -> None:
    rows = np.random.default_rng(0).normal(size=(8, 12)) * size
    rows[0] = 0
    squares = np.square(rows).sum(axis=1) / 12
    network: dict[str, Any] = {"act": "tanh", "widths": [12, 50, 50, 50, 2], "norm": "batch", "batch_size": 8}
    network |= {"init": "lecun_normal", "q0": squares, "batches": [Batch(rows, np.eye(8))]}
    if size < 1e-2:
        with pytest.raises(NoTheory, match="norm=batch: a variance over the batch is as small as"):
            predict(**network)
    else:
        assert np.isfinite(predict(**network).signal_grad_norm).all()
