"""Singular values of a network's Jacobians, and how much a gradient's scale grows between two layers."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from gradstab.errors import ConfigError
from gradstab.events import shown_layers
from gradstab.measure.quantities import safe_norm
from gradstab.models.blocks import Model

MAX_LAYERS = 32
# Multiplications in the decompositions, a few dozen seconds of one core; and entries of one Jacobian, half a gigabyte.
MAX_WORK, MAX_ENTRIES = 2e11, 6e7
# From this side on, eigenvalues of a Gram matrix; and the multiplications that finding small values may take again.
GRAM_FROM, MAX_AGAIN = 256, 1e9


@dataclass(frozen=True)
class Spectrum:
    """Singular values of a Jacobian: their mean, largest and smallest, averaged over samples.

    ``condition`` is the median over samples of largest over smallest, inf where the smallest is 0 up to rounding.
    """

    mean: float
    largest: float
    smallest: float
    condition: float


@dataclass(frozen=True)
class LayerJacobian:
    """The Jacobian from the h of the layer before (the input, for the first) to this layer's h.

    ``gsc`` is the gradient scale coefficient from this layer's h to the outputs, averaged over samples.
    """

    tag: str
    spectrum: Spectrum
    gsc: float


@dataclass(frozen=True)
class Jacobians:
    """Those of a network: from the input to the outputs, with its gradient scale coefficient, and layer by layer."""

    samples: int
    network: Spectrum
    gsc: float
    layers: tuple[LayerJacobian, ...]


def jacobians(model: Model, tags: Sequence[str], inputs: Tensor, samples: int) -> Jacobians:
    """Jacobians of ``model`` at the first ``samples`` of ``inputs``, [B, *in_shape]; at most 32 layers, evenly spaced.

    They are per sample and in float64 on the CPU; images and maps count as vectors. Layer l maps h^{l-1} to h^l: W^l
    diag φ'(h^{l-1}), with norm, pooling and skip path between the two where there are any. BatchNorm takes its
    statistics from all of ``inputs``, of which the sample is one; dropout is left out. ``model`` is copied.

    The gradient scale coefficient of h^k and outputs y is ‖J‖²_qm ‖h^k‖²/‖y‖², where ‖J‖²_qm is the sum of squared
    singular values over the dimension of h^k (Philipp et al. 2018, arXiv:1712.05577, Definition 2): the relative
    change of y for a small random relative change of h^k, squared. A gradient explodes where it grows exponentially
    with the number of layers between. Of maps too large to decompose by themselves, singular values below about a
    millionth of the largest count as 0 (:func:`singular_values`). Raises :class:`ConfigError` where all this would
    take too long.
    """
    twin = copy.deepcopy(model).cpu().double().eval()
    coupled = _forget_running_statistics(twin)
    parts = segments(twin)
    x = inputs.detach().cpu().double()
    shown = shown_layers(len(parts), MAX_LAYERS)
    states = _states(parts, x if coupled else x[:1])
    samples = min(samples, len(x))
    _check_work(states, shown, samples)
    spectra: dict[int, list[Tensor]] = {layer: [] for layer in shown}
    whole: list[Tensor] = []
    scales: dict[int, list[float]] = {}
    for sample in range(samples):
        # Without BatchNorm, samples have nothing to do with each other.
        row, batch = (sample, x) if coupled else (0, x[sample : sample + 1])
        states = _states(parts, batch)
        for layer in shown:
            spectra[layer].append(singular_values(_own_jacobian(parts[layer], states[layer], row)))
        to_outputs = _jacobians_to_outputs(parts, batch, states, [0, *(layer + 1 for layer in shown)], row)
        outputs = _size(states[-1][row])
        for position, jacobian in to_outputs.items():
            own = states[position][row]
            relative = _size(jacobian) / math.sqrt(own.numel()) * (_size(own) / outputs)
            scales.setdefault(position, []).append((relative**2).item())
        whole.append(singular_values(to_outputs[0]))
    layers = [LayerJacobian(tags[i], _spectrum(spectra[i]), _mean(scales[i + 1])) for i in shown]
    return Jacobians(samples, _spectrum(whole), _mean(scales[0]), tuple(layers))


def singular_values(matrix: Tensor) -> Tensor:
    """The min(n, m) singular values of a float64 matrix [n, m], largest first.

    With 256 or more non-zero rows and columns they are the roots of the Gram matrix's eigenvalues, which takes a tenth
    of the time. Rounding there is relative to the largest eigenvalue: a singular value s is right to about
    1e-15 (largest/s)², relatively, and below √(n ε) of the largest, 6e-7 for n = 1600, nothing is left of it. Where
    that concerns any, they are decomposed after all if this is quick, and else such values are set to 0. Of a matrix
    that is not finite, all are NaN.
    """
    count = min(matrix.shape)
    if not matrix.isfinite().all():
        return torch.full((count,), math.nan, dtype=matrix.dtype)
    # Units that are off have rows or columns of zeros, which add singular values 0.
    matrix = matrix[matrix.any(dim=1)][:, matrix.any(dim=0)]
    rows = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    side = len(rows)
    if side < GRAM_FROM:
        values = torch.linalg.svdvals(rows)
    else:
        squares = torch.linalg.eigvalsh(rows @ rows.T).flip(0)
        resolved = squares > side * torch.finfo(squares.dtype).eps * squares[0]
        if not resolved.all() and rows.numel() * side <= MAX_AGAIN:
            values = torch.linalg.svdvals(rows)
        else:
            values = torch.where(resolved, squares, 0.0).sqrt()
    return nn.functional.pad(values, (0, count - side))


def _size(x: Tensor) -> Tensor:
    """The Euclidean norm of all entries, also where their squares would overflow or vanish; 0-d."""
    return safe_norm(x.flatten(), 0)


def segments(model: Model) -> list[nn.Sequential]:
    """The network cut behind every layer's h: the first part maps x to h^1, the last one h^L to the outputs."""
    ends = {id(layer.preactivation) for layer in model.layers}
    assert isinstance(model.body, nn.Sequential)
    found: list[nn.Sequential] = []
    current: list[nn.Module] = []
    for module in model.body:
        current.append(module)
        if id(module) in ends:
            found.append(nn.Sequential(*current))
            current = []
    assert len(found) == len(model.layers)
    assert not current
    return found


def _forget_running_statistics(model: nn.Module) -> bool:
    """Make BatchNorm normalise by its batch in evaluation too; returns whether there is any."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.track_running_stats = False
        norm.running_mean = norm.running_var = norm.num_batches_tracked = None
    return bool(norms)


@torch.no_grad()
def _states(parts: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
    """The input and every layer's h."""
    states = [x]
    for part in parts:
        states.append(part(states[-1]))
    return states


def _own_jacobian(part: nn.Module, before: Tensor, row: int) -> Tensor:
    """∂(row of part(before))/∂(that row of before), [out, in], all other rows held fixed."""

    def own(shift: Tensor) -> Tensor:
        output: Tensor = part(_shifted(before, row, shift))
        return output[row].flatten()

    jacobian: Tensor = torch.func.jacrev(own)(torch.zeros_like(before[row]))
    return jacobian.detach().flatten(1)


def _jacobians_to_outputs(
    parts: Sequence[nn.Module], x: Tensor, states: Sequence[Tensor], positions: Sequence[int], row: int
) -> dict[int, Tensor]:
    """∂y/∂(state) for the states at ``positions``, all in one backward pass; 0 is the input, 1 the first h."""

    def outputs(shifts: dict[int, Tensor]) -> Tensor:
        h = x
        for position, part in enumerate(parts):
            h = part(_shifted(h, row, shifts[position]) if position in shifts else h)
        last = len(parts)
        y = _shifted(h, row, shifts[last]) if last in shifts else h
        return y[row].flatten()

    zeros = {position: torch.zeros_like(states[position][row]) for position in positions}
    found: dict[int, Tensor] = torch.func.jacrev(outputs)(zeros)
    return {position: jacobian.detach().flatten(1) for position, jacobian in found.items()}


def _shifted(h: Tensor, row: int, shift: Tensor) -> Tensor:
    return h.index_add(0, torch.tensor([row]), shift.unsqueeze(0))


def _check_work(states: Sequence[Tensor], shown: Sequence[int], samples: int) -> None:
    work = 0.0
    for layer in shown:
        n, m = states[layer][0].numel(), states[layer + 1][0].numel()
        work += samples * n * m * min(n, m)
        if n * m > MAX_ENTRIES:
            raise ConfigError(
                f"probe.jacobian=true: the Jacobian of layer {layer} has {m:,} × {n:,} entries; "
                f"allowed: {MAX_ENTRIES:,.0f}, with narrower layers"
            )
    if work > MAX_WORK:
        raise ConfigError(
            f"probe.jacobian=true: decomposing {len(shown)} Jacobians of probe.samples={samples} samples takes about "
            f"{work:.0e} multiplications; allowed: {MAX_WORK:.0e}, with fewer samples or narrower layers"
        )


def _spectrum(values: Sequence[Tensor]) -> Spectrum:
    largest = [float(v[0]) for v in values]
    smallest = [0.0 if float(v[-1]) <= 1e-13 * float(v[0]) else float(v[-1]) for v in values]
    conditions = [high / low if low else math.inf for high, low in zip(largest, smallest, strict=True)]
    return Spectrum(
        _mean([float(v.mean()) for v in values]), _mean(largest), _mean(smallest), float(np.median(conditions))
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
