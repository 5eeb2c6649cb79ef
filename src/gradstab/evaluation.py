"""How well a network does on a split."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from gradstab.config.sizes import EVALUATION_BATCH
from gradstab.data import Split
from gradstab.losses import Loss


@torch.no_grad()
def evaluate(
    model: nn.Module, split: Split, loss: Loss, classification: bool, poll: Callable[[], None] = lambda: None
) -> tuple[float, float | None]:
    """Mean loss and, for classes, accuracy in [0, 1] over a split, in evaluation mode; one transfer at the end.

    ``poll`` is called before every batch, and may raise to break it off.
    """
    model.eval()
    total = torch.zeros((), device=split.inputs.device)
    correct = torch.zeros((), device=split.inputs.device)
    try:
        for start in range(0, len(split), EVALUATION_BATCH):
            poll()
            part = slice(start, start + EVALUATION_BATCH)
            inputs, targets = split.inputs[part], split.targets[part]
            outputs = model(inputs)
            total += loss(outputs, targets) * len(inputs)
            if classification:
                # NaN has an argmax too; it is no answer.
                correct += ((outputs.argmax(1) == targets) & outputs.isfinite().all(1)).sum()
    finally:
        model.train()
    loss_sum, right = torch.stack([total, correct]).tolist()
    return loss_sum / len(split), right / len(split) if classification else None
