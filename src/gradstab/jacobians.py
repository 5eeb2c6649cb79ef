"""Singular values of a network's Jacobians, and how much a gradient's scale grows between two layers."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradstab.capacity import free_memory
from gradstab.config.sizes import in_words
from gradstab.errors import ConfigError
from gradstab.measure.quantities import safe_norm
from gradstab.models.blocks import Model
from gradstab.spectra import Spectrum, mean_of, singular_values, spectrum
from gradstab.wording import shown_layers

MAX_LAYERS = 32
# Multiplications, a few dozen seconds of one core; and entries of one Jacobian, half a gigabyte.
MAX_WORK, MAX_ENTRIES = 2e11, 6e7
# Numbers in a layer's gradients that are taken at once, 16 MB.
ROOM = 2**21


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
    take too long or too much memory.
    """
    twin = copy.deepcopy(model).cpu().double().eval().requires_grad_(False)
    x = inputs.detach().cpu().double()
    shapes = _states(segments(twin), x[:1])
    norms = _norm_by_batch(twin)
    parts = segments(twin)
    shown = shown_layers(len(parts), MAX_LAYERS)
    samples = min(samples, len(x))
    _check_work(parts, shapes, shown, samples, len(x) if norms else 1)
    together = _states(parts, x) if norms else []
    spectra: dict[int, list[Tensor]] = {layer: [] for layer in shown}
    whole: list[Tensor] = []
    scales: dict[int, list[float]] = {}
    for sample in range(samples):
        # Without BatchNorm, samples have nothing to do with each other.
        row, batch = (sample, x) if norms else (0, x[sample : sample + 1])
        states = together or _states(parts, batch)
        for norm in norms:
            norm.leave(row)
        for layer in shown:
            spectra[layer].append(singular_values(_own_jacobian(parts[layer], states[layer][row])))
        for norm in norms:
            norm.others = None
        to_outputs = _jacobians_to_outputs(parts, batch, states, [0, *(layer + 1 for layer in shown)], row)
        outputs = _size(states[-1][row])
        for position, jacobian in to_outputs.items():
            own = states[position][row]
            relative = _size(jacobian) / math.sqrt(own.numel()) * (_size(own) / outputs)
            scales.setdefault(position, []).append((relative**2).item())
        whole.append(singular_values(to_outputs[0]))
    layers = [LayerJacobian(tags[i], spectrum(spectra[i]), mean_of(scales[i + 1])) for i in shown]
    return Jacobians(samples, spectrum(whole), mean_of(scales[0]), tuple(layers))


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


class _BatchNorm(nn.Module):
    """BatchNorm by the statistics of its batch, in evaluation too; or of one row, its batch's others held fixed.

    The first batch it sees is the one that rows are taken of.
    """

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm = norm
        self.seen: Tensor | None = None
        # Of the other rows: how many numbers in a channel, their means, and their sums of squares about those.
        self.others: tuple[int, Tensor, Tensor] | None = None

    def leave(self, row: int) -> None:
        """From here on take one row at a time, in the place of this one of its batch."""
        assert self.seen is not None
        self.others = _moments(torch.cat([self.seen[:row], self.seen[row + 1 :]]))

    def forward(self, x: Tensor) -> Tensor:
        count, mean, squares = _moments(x)
        if self.seen is None:
            self.seen = x
        if self.others is not None:
            # Two groups' sums of squares, put together (Chan, Golub & LeVeque 1979).
            n, centre, spread = self.others
            apart, total = centre - mean, n + count
            mean, squares = mean + apart * (n / total), squares + spread + apart.square() * (n * count / total)
            count = total
        shape = (1, -1, *(1 for _ in x.shape[2:]))
        scale = self.norm.weight / (squares / count + self.norm.eps).sqrt()
        return (x - mean.view(shape)) * scale.view(shape) + self.norm.bias.view(shape)


def _moments(x: Tensor) -> tuple[int, Tensor, Tensor]:
    """How many numbers a channel of [B, C, *positions] has, their mean, and the sum of squares about it, [C]."""
    rows = x.transpose(0, 1).flatten(1)
    mean = rows.mean(1)
    return rows.shape[1], mean, (rows - mean.unsqueeze(1)).square().sum(1)


def _norm_by_batch(model: nn.Module) -> list[_BatchNorm]:
    """Put a :class:`_BatchNorm` in the place of each BatchNorm; returns them."""
    found: list[_BatchNorm] = []
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                found.append(_BatchNorm(child))
                setattr(parent, name, found[-1])
    return found


@torch.no_grad()
def _states(parts: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
    """The input and every layer's h."""
    states = [x]
    for part in parts:
        states.append(part(states[-1]))
    return states


def _own_jacobian(part: nn.Module, before: Tensor) -> Tensor:
    """∂(part's output)/∂(one row before it), [out, in]; the batch's other rows are held fixed."""

    def own(h: Tensor) -> Tensor:
        output: Tensor = part(h.unsqueeze(0))
        return output[0].flatten()

    at_once = max(1, ROOM // before.numel())
    jacobian: Tensor = torch.func.jacrev(own, chunk_size=at_once)(before)
    return jacobian.detach().flatten(1)


def _jacobians_to_outputs(
    parts: Sequence[nn.Module], x: Tensor, states: Sequence[Tensor], positions: Sequence[int], row: int
) -> dict[int, Tensor]:
    """∂y/∂(state) for the states at ``positions``; 0 is the input, 1 the first h.

    One output after the other: torch.func keeps what it would take to differentiate each gradient once more.
    """
    shifts = {position: torch.zeros_like(states[position][row], requires_grad=True) for position in positions}
    h = x
    for position, part in enumerate(parts):
        h = part(_shifted(h, row, shifts[position]) if position in shifts else h)
    last = len(parts)
    y = (_shifted(h, row, shifts[last]) if last in shifts else h)[row].flatten()
    found = zip(*(torch.autograd.grad(output, list(shifts.values()), retain_graph=True) for output in y), strict=True)
    return {position: torch.stack(rows).flatten(1) for position, rows in zip(positions, found, strict=True)}


def _shifted(h: Tensor, row: int, shift: Tensor) -> Tensor:
    return h.index_add(0, torch.tensor([row]), shift.unsqueeze(0))


def _check_work(
    parts: Sequence[nn.Module], states: Sequence[Tensor], shown: Sequence[int], samples: int, rows: int
) -> None:
    """Refuse what takes too long or too much memory; ``rows`` are those of a batch that gradients pass through."""
    work, largest = 0.0, 0
    for layer in shown:
        n, m = states[layer][0].numel(), states[layer + 1][0].numel()
        work += samples * n * m * min(n, m)
        largest = max(largest, n * m)
        if n * m > MAX_ENTRIES:
            raise ConfigError(
                f"probe.jacobian=true: the Jacobian of layer {layer} has {m:,} × {n:,} entries; "
                f"allowed: {MAX_ENTRIES:,.0f}, with narrower layers"
            )
    less = "narrower layers"
    if rows > 1:
        less += " or a smaller batch"
        for part, h in zip(parts, states[1:], strict=True):
            # Each weight meets every row of the batch, and in a map every position.
            weights = sum(parameter.numel() for parameter in part.parameters())
            work += samples * rows * states[-1][0].numel() * weights * h[0][0].numel()
    if work > MAX_WORK:
        raise ConfigError(
            f"probe.jacobian=true: {len(shown)} Jacobians of probe.samples={samples} samples take about {work:.0e} "
            f"multiplications; allowed: {MAX_WORK:.0e}, with fewer samples or {less}"
        )
    # States stay, with what their backward pass needs; so do the parts that a Jacobian is put together of.
    size = 8 * (6 * rows * sum(state[0].numel() for state in states) + 8 * largest + 4 * ROOM)
    if size > (free := free_memory()):
        raise ConfigError(
            f"probe.jacobian=true: would take {in_words(size)} of memory; this machine has {in_words(free)} free; "
            f"allowed: {less}"
        )
