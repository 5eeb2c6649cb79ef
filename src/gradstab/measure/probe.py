"""Reading a network's gradients and activations during a training step, without changing that step."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gradstab.activations import derivative, max_slope
from gradstab.events import layer_tags
from gradstab.measure import quantities as q
from gradstab.models.blocks import Layer

# Each quantity by name: a 1-D tensor with an entry for each layer or, where there is none for the output, for
# each hidden layer; nearest the input first.
Quantities = dict[str, Tensor]

# Between these, squares add up exactly enough in single precision.
SMALLEST, LARGEST = 1e-16, 1e18

# torch sums the squares of a norm on one core, and in single precision loses digits with every power of ten (6e-4 of
# 1.7e7 entries); products of so many entries it sums on all cores, and of no more than a chunk to 1e-6.
MANY, CHUNK = 1 << 16, 1 << 20


@dataclass
class _Seen:
    """What one forward pass showed of one layer: h with its gradient to come, φ's input and output."""

    h: Tensor | None = None
    activation_input: Tensor | None = None
    activation: Tensor | None = None


class Weighted(Protocol):
    """What norms need to know of a layer."""

    @property
    def name(self) -> str:
        """The layer's own name, which may repeat."""

    @property
    def activation(self) -> nn.Module | None:
        """The module that makes its activation, None for the output or where there is none."""

    def weight_parameters(self) -> Sequence[nn.Parameter]:
        """The parameters its weight is made of."""


L = TypeVar("L", bound=Weighted)


class GradientNorms(Generic[L]):
    """The norms of a network's gradients, by parameter and by layer.

    ``parameters`` fixes the order of everything that is per parameter: weights first. A layer's gradient norm is that
    of the parameters its weight is made of: W itself, or g and v together under weight normalisation, which is what
    the optimizer sees. A parameter that several layers share counts in each of them.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], layers: Sequence[L]) -> None:
        self.layers = tuple(layers)
        self.tags = layer_tags([layer.name for layer in self.layers])
        weights = [layer.weight_parameters() for layer in self.layers]
        first = list({id(parameter): parameter for group in weights for parameter in group}.values())
        position = {id(parameter): i for i, parameter in enumerate(first)}
        self.parameters = [*first, *(p for p in parameters if id(p) not in position)]
        self.n_weights = len(first)
        device = self.parameters[0].device
        pairs = [(position[id(p)], layer) for layer, group in enumerate(weights) for p in group]
        self._parameter_of = torch.tensor([parameter for parameter, _ in pairs], device=device)
        self._layer_of = torch.tensor([layer for _, layer in pairs], device=device)
        self._one_each = pairs == [(i, i) for i in range(len(self.layers))]
        # On a GPU the wider sum is free next to the memory traffic; on the CPU it would double the cost of a norm.
        half = self.parameters[0].dtype in q.HALF
        self._dtype = torch.float64 if device.type == "cuda" else torch.float32 if half else None
        self._on_cpu = device.type == "cpu"

    @property
    def hidden(self) -> tuple[L, ...]:
        """The layers that have an activation."""
        return tuple(layer for layer in self.layers if layer.activation is not None)

    def gradients(self) -> list[Tensor]:
        """The gradient of every parameter; zeros for one that the loss does not depend on."""
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]

    def norms_of(self, grads: list[Tensor]) -> q.Norms:
        """The norm of each of these gradients, dense and on one device: numbers on the CPU, elsewhere a tensor there.

        Where single precision could not hold the squares of tiny or huge ones, it is taken again in float64.
        """
        if not self._on_cpu:
            return q.norms(grads, self._dtype).detach()
        if not grads:
            return []
        many = {i for i, n in enumerate(map(Tensor.numel, grads)) if n >= MANY and grads[i].is_contiguous()}
        dtype = torch.float32 if grads[0].dtype in q.HALF else None
        few = [grad for i, grad in enumerate(grads) if i not in many] if many else grads
        # It is quicker to read them one by one than to stack them.
        values = list(map(Tensor.item, torch._foreach_norm(few, 2, dtype=dtype))) if few else []
        for i in sorted(many):
            values.insert(i, _norm_of_many(grads[i], dtype))
        # NaN compares as it likes here; a norm that is NaN stays NaN in float64.
        if not (min(values) > SMALLEST and max(values) < LARGEST):
            for i, value in enumerate(values):
                if not SMALLEST < value < LARGEST:
                    values[i] = torch.linalg.vector_norm(grads[i], dtype=torch.float64).item()
        return values

    def by_layer(self, norms: Tensor) -> Tensor:
        """Norms per parameter [..., P] as norms per layer [..., L]."""
        if self._one_each:
            return norms[..., : self.n_weights]
        own = norms[..., self._parameter_of]
        squares = torch.zeros(*own.shape[:-1], len(self.layers), dtype=own.dtype, device=own.device)
        return squares.index_add_(-1, self._layer_of, own**2).sqrt_()


def _norm_of_many(grad: Tensor, dtype: torch.dtype | None) -> float:
    """The norm of a contiguous gradient, its products summed in ``dtype`` or in its own."""
    flat = grad.view(-1)
    chunks = [flat] if len(flat) <= CHUNK else torch.split(flat, CHUNK)
    if dtype is not None:
        chunks = [chunk.to(dtype) for chunk in chunks]
    return math.sqrt(sum(torch.dot(chunk, chunk).item() for chunk in chunks))


class Probe(GradientNorms[Layer]):
    """Measures one of gradstab's own networks; its hooks live only while it watches a step."""

    def __init__(self, model: nn.Module, layers: Sequence[Layer]) -> None:
        super().__init__(model.parameters(), layers)

    @contextlib.contextmanager
    def watching(self) -> Iterator[Callable[[], Quantities]]:
        """Watch one forward and backward pass; the callable gives all quantities once backward has run.

        Hooks live only inside the context. They keep references to tensors that the pass makes anyway.
        """
        seen = [_Seen() for _ in self.layers]
        handles = []
        for layer, slot in zip(self.layers, seen, strict=True):
            handles.append(layer.preactivation.register_forward_hook(_keep_h(slot)))
            if layer.activation is not None:
                handles.append(layer.activation.register_forward_hook(_keep_activation(slot)))
        try:
            yield lambda: self._reading(seen)
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def _reading(self, seen: Sequence[_Seen]) -> Quantities:
        values: dict[str, list[Tensor]] = {}
        for layer, slot in zip(self.layers, seen, strict=True):
            assert slot.h is not None
            h_grad = torch.zeros_like(slot.h) if slot.h.grad is None else slot.h.grad
            values.setdefault("signal_grad_norm", []).append(q.signal_grad_norm(h_grad))
            values.setdefault("correlation", []).append(q.correlation(slot.h))
            values.setdefault("weight_norm", []).append(q.safe_norm(effective_weight(layer).flatten(), 0))
            if layer.activation is not None:
                assert slot.activation is not None
                assert slot.activation_input is not None
                values.setdefault("activation_mean", []).append(q.activation_mean(slot.activation))
                values.setdefault("activation_std", []).append(q.activation_std(slot.activation))
                slope = derivative(layer.activation, slot.activation_input)
                values.setdefault("dead_fraction", []).append(q.dead_fraction(slope))
                steepest = max_slope(layer.activation)
                if steepest is not None:
                    values.setdefault("saturated_fraction", []).append(q.saturated_fraction(slope, steepest))
        return {name: torch.stack(per_layer) for name, per_layer in values.items()}

    @torch.no_grad()
    def weights(self) -> list[Tensor]:
        """Copies of every layer's effective weight, to hold the next step's against."""
        return [effective_weight(layer).clone() for layer in self.layers]

    @torch.no_grad()
    def update_ratio(self, before: Sequence[Tensor]) -> Tensor:
        """‖ΔW‖/‖W‖ of each layer since :meth:`weights` gave ``before``, [L]."""
        after = (effective_weight(layer) for layer in self.layers)
        return torch.stack([q.update_ratio(old, new) for old, new in zip(before, after, strict=True)])


def effective_weight(layer: Layer) -> Tensor:
    """The layer's W as its forward pass uses it, read without touching it."""
    if not parametrize.is_parametrized(layer.affine, "weight"):
        return layer.weight_parameters()[0]
    return parametrized_tensor(layer.affine, "weight")


def parametrized_tensor(module: nn.Module, name: str) -> Tensor:
    """The tensor ``name`` that a parametrization of ``module`` computes.

    Reading a spectrally normalised weight in training mode runs a power iteration, which would change the run;
    the parametrization is asked as if in evaluation, random numbers that it draws all the same are drawn again, and
    buffers that it moves are put back.
    """
    parametrization = module.get_submodule(f"parametrizations.{name}")
    modes = [(part, part.training) for part in parametrization.modules()]
    on_gpu = {p.device for p in parametrization.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(on_gpu), buffers_kept(parametrization):
        parametrization.eval()
        tensor: Tensor = parametrization()
    for part, training in modes:
        part.training = training
    return tensor


@contextlib.contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    """Put back what happens to a module's buffers inside the context, whether in place or not."""
    tables = [(part._buffers, dict(part._buffers)) for part in module.modules() if part._buffers]
    kept = [(b, b._version, b.clone()) for _, table in tables for b in table.values() if b is not None]
    try:
        yield
    finally:
        for buffers, before in tables:
            buffers.clear()
            buffers.update(before)
        for buffer, version, value in kept:
            if buffer._version != version and buffer.shape == value.shape:
                buffer.data.copy_(value)
            elif buffer._version != version:
                buffer.data = value


def _keep_h(slot: _Seen) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def hook(_module: nn.Module, _args: tuple[Tensor, ...], h: Tensor) -> None:
        if h.requires_grad:
            h.retain_grad()
        slot.h = h

    return hook


def _keep_activation(slot: _Seen) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def hook(_module: nn.Module, args: tuple[Tensor, ...], a: Tensor) -> None:
        slot.activation_input, slot.activation = args[0].detach(), a.detach()

    return hook
