"""Units that are copies of one another: seen in the weights, and true of what training makes of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradstab.config.verdict_options import Thresholds
from gradstab.measure.diagnosis import Judge
from gradstab.measure.symmetry import identical_units


def network(*between: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), *between, nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def filled(model: nn.Sequential, value: float) -> nn.Sequential:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    return model


def one_layer_drawn(which: int) -> nn.Sequential:
    torch.manual_seed(0)
    model = filled(network(), 0.1)
    nn.init.normal_(model[which].weight)  # type: ignore[arg-type]
    return model


@pytest.mark.parametrize(
    ("make", "identical"),
    [
        (lambda: filled(network(), 0.1), True),
        (lambda: filled(network(nn.LayerNorm(8)), 0.1), True),
        (lambda: filled(network(nn.Dropout(0.0)), 0.1), True),
        (lambda: filled(network(nn.Dropout(0.3)), 0.1), False),
        (lambda: filled(network(nn.RReLU()), -0.1), False),
        (network, False),
        (lambda: one_layer_drawn(2), False),
        (lambda: one_layer_drawn(4), False),
    ],
)
def test_units_that_start_as_copies_stay_copies(make: Callable[[], nn.Sequential], identical: bool) -> None:
    """What the weights foretell is held against what thirty steps make of the hidden units."""
    torch.manual_seed(1)
    model = make()
    assert identical_units(model) is identical
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    inputs, targets = torch.randn(32, 6), torch.randint(3, (32,))
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    hidden = [module.weight for module in model if isinstance(module, nn.Linear)][:-1]
    assert all(torch.allclose(weight, weight[:1].expand_as(weight), atol=1e-6) for weight in hidden) is identical


def test_one_network_without_parameters_to_read_is_not_judged() -> None:
    assert not identical_units(nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.LazyLinear(2)))
    assert not identical_units(filled(network(), 0.1).to("meta"))


def verdict(losses: list[float], hidden: int) -> tuple[str, ...]:
    judge = Judge(["00_hidden", "01_output"], hidden, Thresholds(), theory={"identical_units": True}, chance_loss=1.0)
    for step, loss in enumerate(losses):
        judge.observe(step, {"train/loss": loss}, {})
    found = judge.verdict()
    assert all(finding.rule == "identical_units" for finding in found.findings)
    return found.labels


def test_copies_count_until_the_network_learns_all_the_same() -> None:
    assert verdict([1.0], 1) == ("not_learning",)
    assert verdict([1.0] * 20 + [0.8] * 20, 1) == ("not_learning",)
    assert verdict([1.0] * 20 + [0.4] * 20, 1) == ("healthy",)


def test_without_hidden_units_there_are_none_to_be_copies() -> None:
    """Logistic regression starts from zeros, and is convex."""
    assert verdict([1.0] * 20, 0) == ("healthy",)
