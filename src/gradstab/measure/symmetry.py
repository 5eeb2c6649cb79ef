"""Whether a network's units start as copies of one another, which gradients never tell apart."""

from __future__ import annotations

import torch
from torch import nn

_READABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@torch.no_grad()
def identical_units(model: nn.Module) -> bool:
    """Whether every parameter holds a single number, and nothing in the network sets its units apart later.

    All units of a layer then compute the same, get the same gradient and stay the same: a layer is worth one unit
    (Goodfellow et al. 2016, Deep Learning, section 8.4). Dropout's masks, and slopes drawn at random, set them apart.
    """
    noisy = (nn.modules.dropout._DropoutNd, nn.RReLU)
    if any(isinstance(module, noisy) and getattr(module, "p", 1) > 0 for module in model.modules()):
        return False
    # Of drawn weights, the first matrix ends this.
    return all(_holds_one_number(parameter) for parameter in model.parameters())


def _holds_one_number(parameter: nn.Parameter) -> bool:
    readable = type(parameter) is nn.Parameter and parameter.dtype in _READABLE and not parameter.is_meta
    if not readable or parameter.layout != torch.strided:
        return False
    return not parameter.numel() or bool((parameter == parameter.flatten()[:1]).all())
