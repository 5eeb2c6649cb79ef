"""Losses and penalties against sums written out in numpy, and gradients against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from gradstab.losses import Loss, build_loss, build_penalty, chance_loss, least_loss
from gradstab.models.blocks import Layer


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def two_layers() -> list[Layer]:
    layers = [Layer("00_a", nn.Linear(3, 4).double(), nn.Tanh()), Layer("01_b", nn.Linear(4, 2).double(), None)]
    for seed, layer in enumerate(layers):
        assert isinstance(layer.affine.weight, nn.Parameter)
        layer.affine.weight.data = rand(*layer.affine.weight.shape, seed=seed)
    return layers


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_is_the_mean_negative_log_likelihood_of_the_smoothed_targets(smoothing: float) -> None:
    outputs, targets = rand(6, 4) * 3, torch.tensor([0, 1, 2, 3, 1, 1])
    logits = outputs.numpy()
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    wanted = (1 - smoothing) * np.eye(4)[targets.numpy()] + smoothing / 4
    loss = build_loss("cross_entropy", label_smoothing=smoothing)(outputs, targets)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(-(wanted * log_p).sum(1).mean(), rel=1e-12)


def test_cross_entropy_of_equal_logits_is_log_k() -> None:
    loss = build_loss("cross_entropy", label_smoothing=0.0)
    assert loss(torch.zeros(5, 10), torch.arange(5)).item() == pytest.approx(math.log(10))


CLASSES, NUMBERS = torch.tensor([2, 0, 1, 1, 2]), rand(5, 3, seed=1)


@pytest.mark.parametrize(("targets", "rows"), [(CLASSES, np.eye(3)[CLASSES]), (NUMBERS, NUMBERS.numpy())])
def test_mse_is_the_mean_over_batch_and_outputs_classes_being_one_hot_rows(targets: Tensor, rows: np.ndarray) -> None:
    outputs = rand(5, 3)
    wanted = ((outputs.numpy() - rows) ** 2).mean()
    assert build_loss("mse")(outputs, targets).item() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize(("name", "knobs"), [("mse", {}), ("cross_entropy", {"label_smoothing": 0.1})])
def test_losses_lift_to_many_models(name: str, knobs: dict[str, float]) -> None:
    outputs, targets = rand(3, 5, 4), torch.tensor([0, 1, 2, 3, 0])
    loss = build_loss(name, **knobs)
    lifted = torch.func.vmap(loss, in_dims=(0, None))(outputs, targets)
    torch.testing.assert_close(lifted, torch.stack([loss(each, targets) for each in outputs]))


@pytest.mark.parametrize("name", ["l1", "l2"])
def test_penalties_and_their_gradients_have_the_closed_form(name: str) -> None:
    layers = two_layers()
    weights = [layer.affine.weight for layer in layers]
    weights[0].data[0, 0] = 0.0
    penalty = build_penalty(name, layers, strength=0.3)
    assert penalty is not None
    value = penalty()
    value.backward()
    flat = np.concatenate([w.detach().numpy().ravel() for w in weights])
    wanted = 0.3 * np.abs(flat).sum() if name == "l1" else 0.15 * (flat**2).sum()
    assert value.shape == ()
    assert value.item() == pytest.approx(wanted, rel=1e-12)
    for layer, weight in zip(layers, weights, strict=True):
        slope = weight.detach().sign() if name == "l1" else weight.detach()
        torch.testing.assert_close(weight.grad, 0.3 * slope)
        assert layer.affine.bias.grad is None


@pytest.mark.parametrize("name", ["l1", "l2"])
def test_penalties_see_the_effective_weight_of_a_parametrized_layer(name: str) -> None:
    layers = two_layers()
    for layer in layers:
        parametrizations.weight_norm(layer.affine, "weight")
        (gain, direction) = layer.weight_parameters()
        gain.data *= 3
        direction.data *= 7
    penalty = build_penalty(name, layers, strength=2.0)
    assert penalty is not None
    flat = np.concatenate([layer.affine.weight.detach().numpy().ravel() for layer in layers])
    wanted = 2 * np.abs(flat).sum() if name == "l1" else (flat**2).sum()
    assert penalty().item() == pytest.approx(wanted, rel=1e-12)


def test_a_penalty_is_evaluated_afresh() -> None:
    layers = two_layers()
    penalty = build_penalty("l2", layers, strength=1.0)
    assert penalty is not None
    before = penalty().item()
    for layer in layers:
        layer.affine.weight.data *= 2
    assert penalty().item() == pytest.approx(4 * before)


def test_no_penalty_is_none() -> None:
    assert build_penalty("none", two_layers()) is None


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_chance_loss_is_the_least_that_a_constant_output_can_have(smoothing: float) -> None:
    """Against gradient descent on the constant itself."""
    targets = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)
    for loss in (build_loss("cross_entropy", label_smoothing=smoothing), build_loss("mse")):
        constant = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([constant], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-12)

        def closure(loss: Loss = loss, constant: torch.Tensor = constant) -> torch.Tensor:
            constant.grad = None
            value = loss(constant.expand(10, -1), targets)
            value.backward()
            return value

        optimizer.step(closure)
        assert chance_loss(loss, targets, 3) == pytest.approx(closure().item(), rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9, 1.0])
def test_least_loss_is_what_a_descent_on_the_logits_comes_to(smoothing: float) -> None:
    loss = build_loss("cross_entropy", label_smoothing=smoothing)
    logits = torch.zeros(1, 5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.5)
    for _ in range(400):
        optimizer.zero_grad()
        value = loss(logits, torch.tensor([2]))
        value.backward()
        optimizer.step()
    assert least_loss(loss, 5) == pytest.approx(value.item(), abs=1e-3)
    assert least_loss(build_loss("mse"), 5) == 0


def test_chance_loss_of_a_regression_is_the_variance() -> None:
    targets = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    assert chance_loss(build_loss("mse"), targets, 1) == pytest.approx(1.25)


def test_chance_loss_with_a_class_that_never_occurs() -> None:
    targets = torch.tensor([0, 0, 1, 1])
    assert chance_loss(build_loss("cross_entropy", label_smoothing=0.0), targets, 3) == pytest.approx(math.log(2))
