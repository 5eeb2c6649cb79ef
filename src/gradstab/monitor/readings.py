"""From what hooks kept of a step's forward passes to one value per layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from gradstab.activations import derivative, max_slope
from gradstab.measure import quantities as q
from gradstab.measure.probe import buffers_kept
from gradstab.models.blocks import TableConv2d
from gradstab.monitor.layers import WatchedLayer


@dataclass
class Statistics:
    """What one call's activation was like: how many values, and 0-d tensors.

    ``alive`` is for each unit 1 where its slope differs from 0 for any sample, else 0, and NaN where any slope is NaN;
    None where units are not known.
    """

    count: int
    alive: Tensor | None
    saturated: Tensor | None
    mean: Tensor | None = None
    std: Tensor | None = None


@dataclass(eq=False)
class Call:
    """One call of a layer: the samples in its batch, and ∂L/∂h of its outputs once a backward pass has brought it.

    ``spread`` is how far apart the samples' outputs are, where that is asked for; ``task`` is the backward pass.
    """

    samples: int
    grads: dict[int, Tensor] = field(default_factory=dict)
    norms: list[Tensor] = field(default_factory=list)
    correlation: Tensor | None = None
    spread: Tensor | None = None
    task: int = -1
    statistics: Statistics | None = None

    def compact(self) -> None:
        """Keep the gradients' norms in their stead."""
        for grad in self.grads.values():
            real = torch.view_as_real(grad) if grad.is_complex() else grad
            wide = q.wide(real)
            # In two stages: float32 loses digits over long sums.
            rows = wide.reshape(len(wide), -1) if wide.ndim > 1 else wide.reshape(1, -1)
            self.norms.append(q.safe_norm(q.safe_norm(rows, 1), 0))
        self.grads = {}


def combine(
    passes: Sequence[Mapping[int, list[Call]]],
    layers: Sequence[WatchedLayer],
    hidden: int,
    reduction: str,
    scale: Tensor | None,
) -> dict[str, Tensor]:
    """All quantities, [layers] or [hidden], NaN for a layer that showed none; what no layer showed is left out.

    Passes, each with its calls by the layer's id, are the parts of one batch, and the calls of a layer within a pass
    are one sample's: their gradients add in quadrature, so that a recurrent layer's is that of all its time steps
    together.
    """
    found: dict[str, dict[int, Tensor]] = {}
    for position, layer in enumerate(layers):
        calls = [_that_went_back(one[id(layer)]) for one in passes if id(layer) in one]
        for name, value in _of_layer(calls, reduction, scale).items():
            if name in ("signal_grad_norm", "correlation") or position < hidden:
                found.setdefault(name, {})[position] = value
    widths = {"signal_grad_norm": len(layers), "correlation": len(layers)}
    return {name: _row(values, widths.get(name, hidden)) for name, values in found.items()}


def on_streams(
    passes: Sequence[Mapping[int, list[Call]]],
    stations: Mapping[int, int],
    found: Mapping[str, Tensor],
    reduction: str,
    scale: Tensor | None,
) -> dict[str, Tensor]:
    """δ on the way that no gradient passes by, [layers], where any was ``found``: a layer's, or its branch's input's.

    ``stations`` are the modules, by id, at whose input the branch of the layer at that position begins; ``passes`` have
    what went into modules.
    """
    if "signal_grad_norm" not in found:
        return {}
    values = found["signal_grad_norm"].clone()
    for position, module in stations.items():
        calls = [_that_went_back(one[module]) for one in passes if module in one]
        value = _of_layer(calls, reduction, scale).get("signal_grad_norm")
        values[position] = math.nan if value is None else value.to(values.device, values.dtype)
    return {"stream_grad_norm": values}


def reach(outputs: Sequence[list[Call]], reduction: str, scale: Tensor | None) -> Tensor | None:
    """What differences between the network's outputs make of the loss, to first order and at most, [1].

    That is their spread over samples, times the gradient that a sample's own loss has at its output, and times their
    number for a loss that is a sum. Far below the loss, it is that of a constant output. None where no pass has shown
    both, of more than one sample.
    """
    calls = [_that_went_back(one) for one in outputs]
    spreads = [call.spread for one in calls for call in one if call.spread is not None]
    gradient = _of_layer(calls, reduction, scale).get("signal_grad_norm")
    if gradient is None or not spreads:
        return None
    samples = sum(one[0].samples for one in calls if one) if reduction == "sum" else 1
    return (torch.stack(spreads).amax() * gradient * samples).reshape(1)


def _that_went_back(calls: list[Call]) -> list[Call]:
    """The calls that a gradient came to; all of them where none came to any."""
    return [call for call in calls if call.norms] or calls


def _row(values: Mapping[int, Tensor], width: int) -> Tensor:
    some = next(iter(values.values()))
    wide = q.widest(some.device)
    missing = torch.full((), math.nan, dtype=wide, device=some.device)
    return torch.stack([values.get(i, missing).to(some.device, wide) for i in range(width)])


def _of_layer(passes: Sequence[Sequence[Call]], reduction: str, scale: Tensor | None) -> dict[str, Tensor]:
    """One layer's values, over its calls in each of the passes."""
    values: dict[str, Tensor] = {}
    gone_back = [[norm for call in calls for norm in call.norms] for calls in passes]
    norms = [norm for one in gone_back for norm in one]
    if norms:
        samples = sum(calls[0].samples for calls, one in zip(passes, gone_back, strict=True) if one)
        # ∂L/∂h of a mean loss holds 1/B of every sample's own gradient, that of a sum the whole.
        factor = math.sqrt(samples) if reduction == "mean" else 1 / math.sqrt(samples)
        signal = q.safe_norm(torch.stack(norms), 0) * factor
        values["signal_grad_norm"] = signal if scale is None else signal / scale.to(signal.device)
    calls = [call for one in passes for call in one]
    correlations = [call.correlation for call in calls if call.correlation is not None]
    if correlations:
        values["correlation"] = torch.stack(correlations).mean()
    statistics = [call.statistics for call in calls if call.statistics is not None]
    return values | _activation(statistics)


def _activation(parts: Sequence[Statistics]) -> dict[str, Tensor]:
    """The statistics of several calls as if of one."""
    values: dict[str, Tensor] = {}
    whole = [(part.count, part.mean, part.std) for part in parts if part.mean is not None and part.std is not None]
    if whole:
        shares = [count / sum(count for count, _, _ in whole) for count, _, _ in whole]
        mean = _weighted([mean for _, mean, _ in whole], shares)
        values["activation_mean"] = mean
        # The spread within the parts and between them.
        spreads = [std.square() + (own - mean).square() for _, own, std in whole]
        values["activation_std"] = whole[0][2] if len(whole) == 1 else _weighted(spreads, shares).sqrt()
    alive = [part.alive for part in parts if part.alive is not None]
    if alive and all(one.shape == alive[0].shape for one in alive):
        # Of a layer with a slope that nobody knows, nobody knows; amax hands it on.
        ever = torch.stack(alive).amax(0)
        values["dead_fraction"] = (ever == 0).float().mean().masked_fill(ever.isnan().any(), math.nan)
    saturated = [(part.count, part.saturated) for part in parts if part.saturated is not None]
    if saturated:
        total = sum(count for count, _ in saturated)
        values["saturated_fraction"] = _weighted([x for _, x in saturated], [count / total for count, _ in saturated])
    return values


def _weighted(values: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    return torch.stack([value * share for value, share in zip(values, shares, strict=True)]).sum(0)


def slopes(activation: nn.Module, h: Tensor, owner: nn.Module) -> Statistics:
    """What an activation's slopes at h tell of the units of the layer that ``owner`` belongs to."""
    with buffers_kept(activation):
        slope, steepest = derivative(_out_of_place(activation), h), max_slope(activation)
    saturated = None if steepest is None else q.saturated_fraction(slope, steepest)
    return Statistics(slope.numel(), alive_units(slope, owner), saturated)


def _out_of_place(activation: nn.Module) -> nn.Module:
    """The same activation, never in place."""
    if not getattr(activation, "inplace", False):
        return activation
    twin = object.__new__(type(activation))
    twin.__dict__ = {**activation.__dict__, "inplace": False}
    return twin


def alive_units(slope: Tensor, module: nn.Module) -> Tensor | None:
    """For each unit whether any slope differs from 0, [units]; None where it is not known which axis is the units'.

    In numbers: 1 where one does, 0 where none does, and NaN where any is.

    Units are a convolution's channels, and the last axis of anything else that torch knows, or of a matrix.
    """
    if isinstance(module, _ConvNd | TableConv2d):
        kernel = len(module.kernel_size) if isinstance(module, _ConvNd) else 2
        axis = slope.ndim - kernel - 1
    elif slope.ndim <= 2 or type(module).__module__.startswith("torch.nn."):
        axis = slope.ndim - 1
    else:
        return None
    if axis < 0:
        return None
    differs = (slope != 0).float().masked_fill(slope.isnan(), math.nan)
    return differs.movedim(axis, -1).reshape(-1, slope.shape[axis]).amax(0)
