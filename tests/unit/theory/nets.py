"""Plain torch networks at initialisation, and the gradients that the theory predicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gradstab.theory import activation
from gradstab.theory.unit import BatchNormBefore, build_unit

Phi = Callable[[Tensor], Tensor]


def gaussian_inputs(samples: int, features: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 + seed)
    x = torch.randn(samples, features, generator=generator)
    return x * math.sqrt(features) / x.norm(dim=1, keepdim=True)


def profile(
    x: Tensor,
    widths: Sequence[int],
    phi: Phi,
    seed: int,
    *,
    sigma_w2: float | Callable[[int, int], float] = 1.0,
    sigma_b2: float = 0.0,
    orthogonal: bool = False,
    before: Phi | None = None,
    after: Phi | None = None,
    dropout: float = 0.0,
    residual: float | None = None,
) -> tuple[list[float], list[float]]:
    """Mean square of h (of the stream, with ``residual``) and √(mean_i ‖∂ℓ_i/∂h_i‖²) of each hidden layer.

    ``residual`` is the scale of the branches.
    """
    generator = torch.Generator().manual_seed(seed)
    affine_outputs: list[Tensor] = []
    streams: list[float] = []
    a = stream = x
    for layer, (n, m) in enumerate(pairwise(widths)):
        w2 = sigma_w2(n, m) if callable(sigma_w2) else sigma_w2
        weight = torch.empty(m, n)
        if orthogonal:
            torch.nn.init.orthogonal_(weight, generator=generator)
        else:
            weight.normal_(std=math.sqrt(w2 / n), generator=generator)
        bias = torch.empty(m).normal_(std=math.sqrt(sigma_b2), generator=generator)
        h = F.linear(a, weight, bias).requires_grad_() if layer == 0 else F.linear(a, weight, bias)
        if residual is not None and 0 < layer < len(widths) - 2:
            skip = stream
            if n != m:
                skip = F.linear(stream, torch.empty(m, n).normal_(std=math.sqrt(1 / n), generator=generator))
            stream = skip + residual * h
        else:
            stream = h
        stream.retain_grad()
        affine_outputs.append(stream)
        streams.append(stream.detach().square().mean().item())
        u = before(stream) if before else stream
        u = phi(u)
        u = after(u) if after else u
        if dropout:
            u = u * torch.empty_like(u).bernoulli_(1 - dropout, generator=generator) / (1 - dropout)
        a = u
    labels = torch.arange(len(x)) % widths[-1]
    F.cross_entropy(affine_outputs[-1], labels, reduction="sum").backward()
    signals = [h.grad.square().sum(dim=1).mean().sqrt().item() for h in affine_outputs[:-1] if h.grad is not None]
    return streams[:-1], signals


def mean_log_profile(seeds: int, samples: int, widths: Sequence[int], phi: Phi, **knobs: object) -> np.ndarray:
    """log of the signal profile relative to the top hidden layer, the mean over seeds."""
    logs = []
    for seed in range(seeds):
        x = gaussian_inputs(samples, widths[0], seed)
        signals = np.log(profile(x, widths, phi, seed, **knobs)[1])  # type: ignore[arg-type]
        logs.append(signals - signals[-1])
    return np.mean(logs, axis=0)


def depth_factor(logs: np.ndarray) -> float:
    return math.exp(-np.polyfit(np.arange(len(logs)), logs, 1)[0])


def norm_rate(act: str, norm: str, samples: int | None = None) -> float:
    """The factor per layer on the *squared* gradient norm of a plain net with a norm before φ, whatever its σ_w is.

    Of LayerNorm that is E φ'(z)²/E φ(z)²; BatchNorm's is over batches of so many samples, None for infinitely many.
    """
    unit = build_unit(activation(act), norm, None, samples, 0.0)
    q = np.array([1e12])  # So long that PyTorch's ε counts for nothing.
    forward = unit.forward_variance(q) if isinstance(unit, BatchNormBefore) else unit.forward(q)
    return float((q * unit.backward(q) / forward)[0])


def layer_norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[1:])


def batch_norm(x: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, training=True)
