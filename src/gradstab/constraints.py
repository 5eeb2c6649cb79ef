"""What holds weights in check: reparametrizations, which act now, and projections, which act after every step.

A unit is an entry of a weight's first dimension: an output, or one kernel of a ``TableConv2d``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from gradstab.errors import ConfigError
from gradstab.models.blocks import Layer

Projection = Callable[[], None]


def apply_constraint(
    name: str, layers: Sequence[Layer], generator_seed: int | None = None, **knobs: Any
) -> Projection | None:
    """Put the constraint ``name`` on the weights of ``layers``; biases are free.

    ``weight_norm`` and ``spectral_norm`` reparametrize the weights at once and return None, as ``none`` does.
    ``weight_clip`` and ``max_norm`` leave them alone and return the projection to be called after each optimizer
    step. Only ``spectral_norm`` is random: its start vectors follow ``generator_seed``, or torch's global generator
    where that is None. Raises :class:`ConfigError` where a norm to divide by is 0.
    """
    return CONSTRAINTS[name](layers, generator_seed, **knobs)


def _weight_norm(layers: Sequence[Layer], _seed: int | None) -> None:
    """Each unit's weights as g·v/‖v‖, with g = ‖w‖ and v = w at first (Salimans & Kingma 2016, arXiv:1602.07868)."""
    for layer in layers:
        zero_units = int((_weight(layer).detach().flatten(1) == 0).all(dim=1).sum())
        if zero_units:
            raise ConfigError(
                f"constraint=weight_norm: divides by the norm of each unit's weights, and layer {layer.name} has "
                f"{zero_units} units whose weights are all 0; allowed: an init without such units"
            )
        parametrizations.weight_norm(layer.affine, "weight", dim=0)


def _spectral_norm(layers: Sequence[Layer], seed: int | None, *, n_power_iterations: int) -> None:
    """Weights, flattened to [units, fan_in], over their largest singular value (Miyato et al. 2018, arXiv:1802.05957).

    In training mode every read of the weight moves the power iteration's vectors by ``n_power_iterations``.
    """
    for layer in layers:
        if not _weight(layer).detach().any():
            raise ConfigError(
                f"constraint=spectral_norm: divides by the largest singular value, and the weights of layer "
                f"{layer.name} are all 0; allowed: an init without such layers"
            )
    with _seeded(seed, [_weight(layer) for layer in layers]):
        for layer in layers:
            parametrizations.spectral_norm(layer.affine, "weight", n_power_iterations=n_power_iterations, dim=0)


@contextmanager
def _seeded(seed: int | None, weights: Sequence[Tensor]) -> Iterator[None]:
    """Seed the generators that draw for ``weights`` and put them back afterwards; a seed of None changes nothing."""
    if seed is None:
        yield
        return
    cuda = {weight.device for weight in weights if weight.is_cuda}
    with torch.random.fork_rng(devices=cuda):
        # torch.manual_seed would also seed the GPUs that were not forked.
        torch.default_generator.manual_seed(seed)
        for device in cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _weight_clip(layers: Sequence[Layer], _seed: int | None, *, bound: float) -> Projection:
    """Clamp each weight to ±bound (Arjovsky et al. 2017, arXiv:1701.07875); NaN stays NaN."""

    @torch.no_grad()
    def project() -> None:
        weights: list[Tensor] = [_weight(layer) for layer in layers]
        torch._foreach_clamp_min_(weights, -bound)
        torch._foreach_clamp_max_(weights, bound)

    return project


def _max_norm(layers: Sequence[Layer], _seed: int | None, *, bound: float) -> Projection:
    """Rescale each unit's incoming weights to a norm of at most bound (Srebro & Shraibman 2005)."""

    @torch.no_grad()
    def project() -> None:
        weights: list[Tensor] = [_weight(layer) for layer in layers]
        torch._foreach_mul_(weights, [max_norm_scale(weight, bound) for weight in weights])

    return project


def max_norm_scale(weight: Tensor, bound: float) -> Tensor:
    """The factor on each unit of ``weight`` [N, ...], shape [N, 1, ...]: min(1, bound/norm), exactly 1 inside.

    A unit with entries that are not finite keeps them: its factor is 1.
    """
    units = weight.flatten(1)
    peak = units.abs().amax(dim=1, keepdim=True)
    # Squares of what an exploding run leaves behind overflow; squares of entries over the largest one cannot. For a
    # unit that is all 0 or not finite this is NaN, and no comparison with NaN holds.
    relative = torch.linalg.vector_norm(units / peak, dim=1, keepdim=True)
    scale = torch.where(peak * relative > bound, bound / peak / relative, 1)
    return scale.view(-1, *[1] * (weight.ndim - 1))


def _weight(layer: Layer) -> nn.Parameter:
    (weight,) = layer.weight_parameters()
    return weight


CONSTRAINTS: dict[str, Callable[..., Projection | None]] = {
    "none": lambda _layers, _seed: None,
    "weight_norm": _weight_norm,
    "spectral_norm": _spectral_norm,
    "weight_clip": _weight_clip,
    "max_norm": _max_norm,
}
