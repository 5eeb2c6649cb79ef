"""The loss and the penalty added to it: both end in one number of shape [] that autograd can go back through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gradstab.models.blocks import Layer

Loss = Callable[[Tensor, Tensor], Tensor]
Penalty = Callable[[], Tensor]


def cross_entropy(outputs: Tensor, targets: Tensor, *, label_smoothing: float) -> Tensor:
    """Softmax and negative log-likelihood in nats, the mean over the batch.

    ``outputs`` [B, k] are logits, ``targets`` int64 [B] classes. With ``label_smoothing`` s the target distribution
    is (1 - s) one-hot + s/k (Szegedy et al. 2016, arXiv:1512.00567).
    """
    return F.cross_entropy(outputs, targets, label_smoothing=label_smoothing)


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared error, the mean over batch and outputs.

    ``outputs`` are [B, k]; ``targets`` are float [B, k], or int64 [B] classes, which stand for one-hot rows.
    """
    if not targets.is_floating_point():
        classes = torch.arange(outputs.shape[-1], device=targets.device)
        targets = (targets.unsqueeze(-1) == classes).to(outputs.dtype)
    return F.mse_loss(outputs, targets)


LOSSES: dict[str, Callable[..., Tensor]] = {"cross_entropy": cross_entropy, "mse": mse}


def chance_loss(loss: Loss, targets: Tensor, classes: int) -> float:
    """The loss of the best constant output, which a network has to beat to have learnt anything.

    ``targets`` are int64 [n] of ``classes`` classes, or float [n, k]. The constant is the mean of (one-hot) targets
    for mse, and the logarithm of their frequencies for cross-entropy: chance level is then about ln k.
    """
    values = F.one_hot(targets, classes).double() if not targets.is_floating_point() else targets.double()
    mean = values.mean(0)
    if isinstance(loss, partial) and loss.func is cross_entropy:
        smoothing = loss.keywords["label_smoothing"]
        mean = torch.log((1 - smoothing) * mean + smoothing / classes)
    return loss(mean.expand(len(targets), -1), targets if not targets.is_floating_point() else values).item()


def least_loss(loss: Loss, classes: int) -> float:
    """The smallest loss there can be: the entropy of a smoothed target of so many classes, and 0 without smoothing."""
    smoothing = loss.keywords.get("label_smoothing", 0.0) if isinstance(loss, partial) else 0.0
    shares = torch.full((classes,), smoothing / classes, dtype=torch.float64)
    shares[0] += 1 - smoothing
    return float(torch.special.entr(shares).sum())


def build_loss(name: str, **knobs: Any) -> Loss:
    """The loss ``name`` as a function of outputs and targets, which returns the mean over samples, shape []."""
    return partial(LOSSES[name], **knobs)


def l1(layers: Sequence[Layer], *, strength: float) -> Tensor:
    """strength · Σ|w| over the layers' weights, shape []; the gradient at w = 0 is 0 (Tibshirani 1996)."""
    return strength * torch.stack([weight.abs().sum() for weight in _weights(layers)]).sum()


def l2(layers: Sequence[Layer], *, strength: float) -> Tensor:
    """strength/2 · Σw² over the layers' weights, shape [], with gradient strength · w (Krogh & Hertz 1992)."""
    return strength / 2 * torch.stack([weight.square().sum() for weight in _weights(layers)]).sum()


PENALTIES: dict[str, Callable[..., Tensor] | None] = {"none": None, "l1": l1, "l2": l2}


def build_penalty(name: str, layers: Sequence[Layer], **knobs: Any) -> Penalty | None:
    """The penalty ``name`` on the weights that ``layers`` compute with, or None for ``none``.

    Biases and normalisation are free. Where a constraint parametrizes a weight, the penalty is on the result, not on
    what it is computed from. It is evaluated afresh at every call.
    """
    penalty = PENALTIES[name]
    return None if penalty is None else partial(penalty, layers, **knobs)


def _weights(layers: Sequence[Layer]) -> list[Tensor]:
    weights = [layer.affine.weight for layer in layers]
    assert all(isinstance(weight, Tensor) for weight in weights)
    return weights  # type: ignore[return-value]
