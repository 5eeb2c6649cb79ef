"""The rules of AutoTrainer and SageMaker Debugger, as their own code and documentation state them, for comparison.

AutoTrainer (Zhang et al., ICSE 2021): ``gradient_issue`` and ``loss_issue`` of its monitor with its default
parameters: vanishing where the first layer's gradient norm is below 1e-3 of the last's and below 1e-4, exploding where
that ratio is above 70, dying ReLU where 70 % of all gradient entries are 0, NaN or a loss of 1e5. It counts the first
three only where training accuracy is unsatisfactory, below 0.7; before the first step there is none, and they count.

SageMaker Debugger: VanishingGradient (a layer's mean |g| below 1e-7), ExplodingTensor (NaN or inf), DeadRelu (more
than half of a layer's ReLUs active for less than 1 % of inputs), SaturatedActivation (more than half of a layer's tanh
inputs beyond ±9.4999, of sigmoid's beyond -23 and 16.99999), WeightUpdateRatio (above 10 or below 1e-8), and
LossNotDecreasing (less than 0.1 % lower than ten steps before, or more than 5 % higher).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Seen:
    """What the rules look at after one step: gradients of the layers' weights, nearest the input first, inputs and
    outputs of each layer's activation on the batch, its update ratios, losses up to now, accuracy on the batch."""

    gradients: list[Tensor]
    activations: list[tuple[Tensor, Tensor]]
    act: str
    update_ratios: list[float]
    losses: list[float]
    accuracy: float | None


def autotrainer(seen: Seen) -> list[str]:
    """The problems that AutoTrainer names."""
    broken = not all(bool(torch.isfinite(g).all()) for g in seen.gradients)
    if broken or not seen.losses[-1] < 1e5:
        return ["explode"]
    if seen.accuracy is not None and seen.accuracy >= 0.7:
        return []
    first, last = seen.gradients[0].double().norm().item(), seen.gradients[-1].double().norm().item()
    ratio = first / last if last else float("nan")
    zeros = sum(int((g == 0).sum()) for g in seen.gradients) / sum(g.numel() for g in seen.gradients)
    found = []
    if zeros >= 0.7:
        found.append("relu")
    elif ratio > 70:
        found.append("explode")
    elif ratio < 1e-3 and first < 1e-4:
        found.append("vanish")
    return found


def sagemaker(seen: Seen) -> list[str]:
    """The rules of SageMaker Debugger that fire."""
    found = []
    if any(g.double().abs().mean().item() < 1e-7 for g in seen.gradients):
        found.append("VanishingGradient")
    if not all(bool(torch.isfinite(g).all()) for g in seen.gradients):
        found.append("ExplodingTensor")
    if seen.act == "relu" and any(
        ((out > 0).double().mean(0) < 0.01).double().mean().item() > 0.5 for _, out in seen.activations
    ):
        found.append("DeadRelu")
    low, high = {"tanh": (-9.4999, 9.4999), "sigmoid": (-23.0, 16.99999)}.get(seen.act, (-torch.inf, torch.inf))
    if any(((h < low) | (h > high)).double().mean().item() > 0.5 for h, _ in seen.activations):
        found.append("SaturatedActivation")
    if any(not 1e-8 <= ratio <= 10 for ratio in seen.update_ratios):
        found.append("WeightUpdateRatio")
    if len(seen.losses) > 10:
        change = 100 * (seen.losses[-1] / seen.losses[-11] - 1) if seen.losses[-11] else 0.0
        if not change <= -0.1:
            found.append("LossNotDecreasing")
    return found
