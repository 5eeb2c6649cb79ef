"""What is measured, as pure functions: tensors in, tensors on the same device out, nothing read on the host.

Symbols: layer l computes h = W a + b (pre-activation), its activation is φ(h); a batch has B samples and the loss
is the mean of the samples' own losses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# One norm per parameter [P], and one number: on the device, or as numbers where they have crossed to the host already.
Norms = Tensor | list[float]
Scalar = Tensor | float
HALF = (torch.bfloat16, torch.float16)


def widest(device: torch.device) -> torch.dtype:
    """The widest float that there is on a device."""
    return torch.float32 if device.type == "mps" else torch.float64


def wide(x: Tensor) -> Tensor:
    """Half precisions as float32: their sums would lose most digits."""
    return x.float() if x.dtype in HALF else x


def norms(tensors: Sequence[Tensor], dtype: torch.dtype | None = None) -> Tensor:
    """The Frobenius norm of each tensor, as a 1-D tensor.

    ``dtype`` is the one that squares are summed in. In float32 they overflow for norms above about 1e19 and
    vanish below about 1e-22; float64 has neither limit but is slower.
    """
    return torch.stack(torch._foreach_norm(list(tensors), 2, dtype=dtype))


def as_tensor(values: Norms | Scalar) -> Tensor:
    """Norms, or one number, as a tensor; what is on the host in double precision."""
    return values if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.float64, device="cpu")


def finite(norms: Norms) -> bool:
    """Whether all are finite; crosses to the host if they have not."""
    return all(map(math.isfinite, norms if isinstance(norms, list) else norms.tolist()))


def stacked(rows: Sequence[Norms], dtype: torch.dtype) -> Tensor:
    """Several steps' norms, [steps, P]."""
    numbers = [row for row in rows if isinstance(row, list)]
    if len(numbers) == len(rows):
        return torch.from_numpy(np.array(numbers)).to(dtype)
    return torch.stack([as_tensor(row).to(dtype) for row in rows])


def column(values: Sequence[Scalar], dtype: torch.dtype) -> Tensor:
    """Several steps' numbers, [steps, 1]."""
    if any(isinstance(value, Tensor) for value in values):
        return torch.stack([as_tensor(value).detach() for value in values]).to(dtype).unsqueeze(1)
    return torch.tensor(values, dtype=dtype).unsqueeze(1)


def safe_norm(x: Tensor, dim: int) -> Tensor:
    """The Euclidean norm over ``dim``, exact also where squares would overflow or vanish; inf and NaN stay so."""
    if x.shape[dim] == 0:
        return x.sum(dim)
    peak = x.abs().amax(dim, keepdim=True)
    scale = torch.where(torch.isfinite(peak) & (peak > 0), peak, torch.ones_like(peak))
    # vector_norm loses digits with every power of ten that it sums, sum adds in pairs.
    return (x / scale).square().sum(dim).sqrt() * scale.squeeze(dim)


def signal_grad_norm(h_grad: Tensor) -> Tensor:
    """√(mean over samples of ‖∂ℓ_i/∂h_i‖²), ℓ_i being the sample's own loss; 0-d.

    ``h_grad`` is ∂L/∂h of the mean loss, [B, units] or [B, channels, height, width]; a sample's norm runs over
    all but the first dimension, and the factor B turns the mean loss's gradient into the samples' own. This is
    the quantity that mean-field theory predicts (Schoenholz et al. 2017, arXiv:1611.01232).
    """
    batch = len(h_grad)
    per_sample = safe_norm(wide(h_grad).reshape(batch, -1), 1)
    return safe_norm(per_sample, 0) * math.sqrt(batch)


def activation_mean(a: Tensor) -> Tensor:
    """The mean of an activation over batch and units; 0-d."""
    return wide(a).mean()


def activation_std(a: Tensor) -> Tensor:
    """The standard deviation of an activation over batch and units together; 0-d."""
    return wide(a).std(correction=0)


def saturated_fraction(slope: Tensor, max_slope: float) -> Tensor:
    """The share of (sample, unit) pairs where |φ'(h)| is below 5 % of its maximum; 0-d, in [0, 1].

    ``slope`` is φ'(h), of h's shape. Meant for bounded activations, the only ones that saturate. NaN if any slope is.
    """
    return (slope.abs() < 0.05 * max_slope).float().mean().masked_fill(slope.isnan().any(), math.nan)


def dead_fraction(slope: Tensor) -> Tensor:
    """The share of units whose φ'(h) is 0 for every sample of the batch; 0-d, in [0, 1].

    ``slope`` is [B, units] or [B, channels, height, width], where a unit is a channel: its weights get no
    gradient only if it is 0 at every position. NaN if any slope is: of such a layer nobody knows.
    """
    per_unit = (slope == 0).flatten(2).all(2) if slope.ndim > 2 else slope == 0
    return per_unit.all(0).float().mean().masked_fill(slope.isnan().any(), math.nan)


def update_ratio(before: Tensor, after: Tensor) -> Tensor:
    """‖ΔW‖_F / ‖W‖_F of the step actually taken, W being the weights before it; 0-d, inf where W was 0."""
    before, after = wide(before).flatten(), wide(after).flatten()
    return safe_norm(after - before, 0) / safe_norm(before, 0)


def spread(h: Tensor) -> Tensor:
    """√(mean over samples of ‖h_i - mean h‖²): how far apart samples are; 0-d. ``h`` is [B, …]."""
    return wide(h).var(0, correction=0).sum().sqrt()


def correlation(h: Tensor) -> Tensor:
    """How alike two samples' pre-activations are: the mean of ⟨h_i, h_j⟩ over pairs i ≠ j, over that of ‖h_i‖²; 0-d.

    1 where all samples look alike to the layer, 0 where they have nothing in common; NaN for a single sample or
    where all are 0. ``h`` is [B, units] or [B, channels, height, width]. For samples of one length it is the c^l of
    Poole et al. 2016 (arXiv:1606.05340), averaged over pairs.
    """
    flat = wide(h).reshape(len(h), -1)
    # In float32, squares of tiny or huge values would vanish or overflow.
    peak = flat.abs().amax()
    flat = flat / torch.where(torch.isfinite(peak) & (peak > 0), peak, torch.ones_like(peak))
    squares = flat.square().sum()
    return (flat.sum(0).square().sum() - squares) / ((len(h) - 1) * squares)
