"""LeNet-5 as it was published: C3's connection table and trainable subsampling (LeCun et al. 1998)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradstab.models.blocks import Hidden, Layer, Model, TableConv2d, assemble
from gradstab.models.lenet5 import LeNetInput, image_channels

# The input maps of each of C3's 16 output maps: Table I of the paper, column by column.
C3_TABLE: tuple[tuple[int, ...], ...] = (
    *((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5)),
    *((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5)),
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5)),
    (0, 1, 2, 3, 4, 5),
)


class Subsampling(nn.Module):
    """The sum over each 2×2 square times a coefficient plus a bias, one of either for each map.

    x: [B, C, H, W] to [B, C, H/2, W/2]. Coefficients start at 1/4, which makes the sum an average, and biases at 0.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.coefficient = nn.Parameter(torch.full((channels,), 0.25))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        sums = F.avg_pool2d(x, 2, divisor_override=1)
        return torch.addcmul(self.bias[:, None, None], sums, self.coefficient[:, None, None])


def lenet5_1998(*, in_shape: tuple[int, ...], out_features: int, activation: Callable[[], nn.Module]) -> Model:
    """LeNet-5 of 1998: 60,000 parameters for one channel, before its output layer, which is linear here.

    x: [B, C, S, S], S ≤ 32, brought to 32×32 by ``to_lenet_input``; outputs [B, out_features]. The activation
    follows C1, S2, C3, S4, C5 and F6. The layers are those that ``lenet5`` has; S2 and S4 have parameters, but are
    part of the units after C1 and C3. C5 sees all of S4 at once, so it is a linear map of 400 to 120. The paper's
    output units, radial basis functions of fixed centres, are replaced by a linear layer.
    """

    def hidden(name: str, affine: nn.Module, *after: nn.Module) -> Hidden:
        act = activation()
        return Hidden(Layer(name, affine, act), [act, *after], nn.Identity)

    stages = [
        hidden("C1", nn.Conv2d(image_channels(in_shape), 6, 5), Subsampling(6), activation()),
        hidden("C3", TableConv2d(6, C3_TABLE, 5), Subsampling(16), activation(), nn.Flatten()),
        hidden("C5", nn.Linear(400, 120)),
        hidden("F6", nn.Linear(120, 84)),
    ]
    output = Layer("output", nn.Linear(84, out_features), None)
    return assemble(stages, output, residual="none", head=[LeNetInput()])
