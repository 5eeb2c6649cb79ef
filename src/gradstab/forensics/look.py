"""One step's passes looked at layer by layer, to find where the first value stood that was not finite."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from gradstab.config.sizes import EVALUATION_BATCH
from gradstab.forensics.snapshot import Look, Origin
from gradstab.measure.quantities import as_tensor, widest
from gradstab.models.blocks import Layer
from gradstab.parts import Parts, generator_states, set_generators


class Moved:
    """What a forward pass moves besides its result: the random stream that dropout draws from, and buffers.

    ``keep`` remembers them as they are; ``put_back`` makes them so again.
    """

    def __init__(self, model: nn.Module) -> None:
        self._buffers = [buffer for buffer in model.buffers() if buffer.numel()]
        self._kept = [torch.empty_like(buffer) for buffer in self._buffers]
        self._device = next(model.parameters()).device
        self._draws = any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in model.modules())
        self._generators: dict[str, Tensor] | None = None

    def keep(self) -> None:
        """Remember everything as it is now."""
        if self._buffers:
            # No buffer wants a gradient.
            torch._foreach_copy_(self._kept, self._buffers)
        if self._draws:
            self._generators = generator_states(self._device)

    def put_back(self) -> None:
        """Everything as it was when it was remembered last."""
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._kept)
        if self._generators is not None:
            set_generators(self._generators, self._device)


@dataclass
class _Seen:
    """What one pass showed: h of each layer by its index, and the modules whose output was not finite, in order."""

    h: dict[int, Tensor] = field(default_factory=dict)
    broken: list[nn.Module] = field(default_factory=list)


def look_at(parts: Parts, inputs: Tensor, targets: Tensor) -> tuple[Look, Origin]:
    """Forward and, where that stays finite, backward once more, from the state that ``parts`` are in.

    Gradients are as before afterwards; what :class:`Moved` holds is not.
    """
    kept = [parameter.grad for parameter in parts.probe.parameters]
    for parameter in parts.probe.parameters:
        parameter.grad = None
    try:
        with _watched(parts, retain=True) as seen:
            loss = parts.loss(parts.model(inputs), targets)
            penalty = parts.penalty() if parts.penalty is not None else None
            origin = _broken_weights(parts) or _broken_forward(parts, seen, loss, penalty)
            signal, grad_norm = [], []
            if origin is None:
                (loss if penalty is None else loss + penalty).backward()  # type: ignore[no-untyped-call]
                grads = parts.probe.gradients()
                norms = as_tensor(parts.probe.norms_of(grads))
                grad_norm = parts.probe.by_layer(norms.to(widest(norms.device))).tolist()
                signal = _largest(seen.h[i].grad for i in range(len(parts.probe.layers)))
                origin = _broken_backward(parts, seen) or _broken_norm(parts, norms, grad_norm)
        found = Look(
            loss.item(),
            None if penalty is None else penalty.item(),
            _largest(_together(layer.weight_parameters()) for layer in parts.probe.layers),
            _largest(seen.h.get(i) for i in range(len(parts.probe.layers))),
            signal,
            grad_norm,
        )
    finally:
        for parameter, grad in zip(parts.probe.parameters, kept, strict=True):
            parameter.grad = grad
    return found, origin or Origin("unseen")


@torch.no_grad()
def look_at_evaluation(parts: Parts, test_loss: float) -> tuple[Look, Origin]:
    """The same for an evaluation on the test split; the first batch that is not finite is looked at."""
    origin, last = _broken_weights(parts), _Seen()
    split = parts.data.test
    parts.model.eval()
    for start in range(0, len(split), EVALUATION_BATCH):
        part = slice(start, start + EVALUATION_BATCH)
        with _watched(parts, retain=False) as seen:
            loss = parts.loss(parts.model(split.inputs[part]), split.targets[part])
        last = seen
        if not bool(torch.isfinite(loss)):
            origin = origin or _broken_buffer(parts) or _broken_forward(parts, seen, loss, None)
            break
    parts.model.train()
    layers = parts.probe.layers
    weights = _largest(_together(layer.weight_parameters()) for layer in layers)
    found = Look(test_loss, None, weights, _largest(last.h.get(i) for i in range(len(layers))), [], [])
    return found, origin or Origin("test_loss")


@contextlib.contextmanager
def _watched(parts: Parts, *, retain: bool) -> Iterator[_Seen]:
    """Hooks on every module for one pass; with ``retain``, h keeps its gradient."""
    seen = _Seen()
    index_of = {id(layer.preactivation): i for i, layer in enumerate(parts.probe.layers)}

    def hook(index: int | None) -> Callable[[nn.Module, object, object], None]:
        def look(module: nn.Module, _args: object, output: object) -> None:
            if not isinstance(output, Tensor):
                return
            if index is not None:
                if retain and output.requires_grad:
                    output.retain_grad()
                seen.h[index] = output
            if not bool(torch.isfinite(output.detach()).all()):
                seen.broken.append(module)

        return look

    modules = [module for module in parts.model.modules() if module is not parts.model]
    handles = [module.register_forward_hook(hook(index_of.get(id(module)))) for module in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _broken_weights(parts: Parts) -> Origin | None:
    """Parameters that were not finite when the step began: the first layer's weights or bias, else one beside them."""
    for layer, tag in zip(parts.probe.layers, parts.probe.tags, strict=True):
        if not all(map(_finite, layer.weight_parameters())):
            return Origin("weights", tag)
        beside = next((name for name, other in layer.affine.named_parameters() if not _finite(other)), None)
        if beside is not None:
            return Origin("weights", tag, beside)
    for name, parameter in parts.model.named_parameters():
        if not _finite(parameter):
            return Origin("weights", None, name)
    return None


def _broken_buffer(parts: Parts) -> Origin | None:
    """A running average that is not finite; while training, batch statistics stand in its place."""
    for name, buffer in parts.model.named_buffers():
        if not _finite(buffer):
            return Origin("buffer", None, name)
    return None


def _broken_forward(parts: Parts, seen: _Seen, loss: Tensor, penalty: Tensor | None) -> Origin | None:
    tags = parts.probe.tags
    broken = next((i for i in sorted(seen.h) if not _finite(seen.h[i])), None)
    if broken is not None:
        # Modules are told of as they finish, so the innermost and earliest comes first.
        first, own = seen.broken[0], parts.probe.layers[broken]
        is_own = first is own.affine or first is own.preactivation
        return Origin("activation", tags[broken], None if is_own else _name_of(parts.model, first))
    if not _finite(loss):
        return Origin("loss", None, _name_of(parts.model, seen.broken[0]) if seen.broken else None)
    return None if penalty is None or _finite(penalty) else Origin("penalty")


def _broken_backward(parts: Parts, seen: _Seen) -> Origin | None:
    """Backward runs from the output down: the broken layer nearest the output is where it began."""
    for i in reversed(range(len(parts.probe.layers))):
        tag, h_grad = parts.probe.tags[i], seen.h[i].grad
        if h_grad is not None and not _finite(h_grad):
            return Origin("signal", tag)
        layer = parts.probe.layers[i]
        if not all(p.grad is None or _finite(p.grad) for p in layer.affine.parameters()):
            norm = _overflown_norm(layer)
            return Origin("gradient", tag, None if norm is None else _name_of(parts.model, norm))
    for name, parameter in parts.model.named_parameters():
        if parameter.grad is not None and not _finite(parameter.grad):
            return Origin("gradient", None, name)
    return None


def _overflown_norm(layer: Layer) -> nn.Module | None:
    """A layer's weight norm where ‖v‖ overflows: weights v·g/‖v‖ are 0 then, and nothing breaks but their gradient."""
    if not parametrize.is_parametrized(layer.affine, "weight"):
        return None
    assert isinstance(layer.affine.parametrizations, nn.ModuleDict)
    chain = layer.affine.parametrizations["weight"]
    assert isinstance(chain, parametrize.ParametrizationList)
    (module,) = chain
    if not isinstance(module, parametrizations._WeightNorm):
        return None
    _, v = layer.weight_parameters()
    return None if _finite(torch.norm_except_dim(v.detach(), 2, module.dim)) else module


def _broken_norm(parts: Parts, norms: Tensor, by_layer: Sequence[float]) -> Origin | None:
    """A gradient whose entries are finite and whose norm is not: no type is wide enough for float64's squares."""
    broken = [i for i, norm in enumerate(by_layer) if not math.isfinite(norm)]
    if broken:
        return Origin("norm", parts.probe.tags[broken[-1]])
    for parameter, norm in zip(parts.probe.parameters, norms.tolist(), strict=True):
        if not math.isfinite(norm):
            name = next(name for name, other in parts.model.named_parameters() if other is parameter)
            return Origin("norm", None, name)
    return None


def _name_of(model: nn.Module, module: nn.Module) -> str:
    name = next((name for name, other in model.named_modules() if other is module), "")
    return f"{type(module).__name__} {name}".strip()


def _finite(x: Tensor) -> bool:
    return bool(torch.isfinite(x.detach()).all())


def _together(parameters: Iterable[nn.Parameter]) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in parameters])


def _largest(tensors: Iterable[Tensor | None]) -> list[float]:
    """The largest magnitude of each, NaN where there is any among them, 0 for what is not there."""
    zero = torch.zeros(())
    peaks = [zero if x is None or not x.numel() else x.detach().abs().amax().cpu().double() for x in tensors]
    return [peak.item() for peak in peaks]
