"""Looking at gradients and weights once: unscaled norms, what changed them since, and the update that followed."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradstab.errors import ConfigError
from gradstab.measure.quantities import Norms, as_tensor, safe_norm, widest
from gradstab.monitor import gradients
from gradstab.monitor.gradients import WatchedNorms
from gradstab.monitor.layers import WatchedLayer

_GRAD, _VERSION = operator.attrgetter("grad"), operator.attrgetter("_version")


@dataclass(slots=True)
class Look:
    """Gradients as they were when they were looked at: norms [P], and what tells whether they changed since."""

    norms: Norms
    grads: list[Tensor | None]
    versions: list[int]

    def reordered(self, places: Sequence[int]) -> Look:
        """The same look with the parameters in another order: for each, where it stands here."""
        norms = self.norms[list(places)] if isinstance(self.norms, Tensor) else [self.norms[i] for i in places]
        if not self.grads:
            return Look(norms, [], [])
        return Look(norms, [self.grads[i] for i in places], [self.versions[i] for i in places])

    def split(self, places: Sequence[int]) -> Look:
        """What of this look is at these places, norms elsewhere being 0; gradients there are let go of here."""
        norms, own = torch.zeros_like(as_tensor(self.norms)), list(places)
        norms[own] = as_tensor(self.norms)[own]
        part = Look(norms, list(self.grads), list(self.versions))
        if self.grads:
            for place in own:
                self.grads[place] = None
        return part

    def release(self) -> None:
        """Let go of the gradients."""
        self.grads, self.versions = [], []


class Looker:
    """Takes norms as they would be without a GradScaler's factor, of all parameters or of one optimizer's."""

    def __init__(self, norms: WatchedNorms, scaler: Any, optimizers: Sequence[Optimizer]) -> None:
        self.norms = norms
        self._scaler = scaler
        self._optimizers = optimizers
        self._positions: dict[int, tuple[list[int], list[int]]] = {}
        self._traceless = False
        self._kept: tuple[Look, int] | None = None

    def rearrange(self, norms: WatchedNorms) -> None:
        """The same parameters come in another order from now on."""
        places = self.norms.positions(norms.parameters)
        self.norms, self._positions = norms, {}
        if self._kept is not None:
            self._kept = self._kept[0].reordered(places), self._kept[1]

    def keep(self, backwards: int) -> None:
        """Look now, after so many backward passes, for :meth:`take`."""
        self._kept = self.look(hold=True), backwards

    def take(self, optimizer: Optimizer | None, backwards: int) -> Look:
        """What was looked at after this very backward pass, if anything was, and else what there is now."""
        kept, self._kept = self._kept, None
        if kept is None or kept[1] != backwards:
            return self.look(optimizer)
        if optimizer is None or self._covers(optimizer):
            if not self._optimizers:
                kept[0].release()  # Nobody will look again.
            return kept[0]
        part = kept[0].split(self.positions(optimizer))
        self._kept = kept if any(grad is not None for grad in kept[0].grads) else None
        return part

    def positions(self, optimizer: Optimizer) -> list[int]:
        """Where an optimizer's parameters stand among the watched network's."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        own = list(map(id, parameters))
        known = self._positions.get(id(optimizer))
        if known is None or known[0] != own:
            known = self._positions[id(optimizer)] = (own, self.norms.positions(parameters))
        return known[1]

    def _covers(self, optimizer: Optimizer) -> bool:
        """Whether an optimizer moves all of the watched network."""
        return len(self.positions(optimizer)) == len(self.norms.parameters)

    def forget(self, optimizer: Optimizer) -> None:
        """Another optimizer may come to have this one's identity."""
        self._positions.pop(id(optimizer), None)

    def look(self, optimizer: Optimizer | None = None, *, hold: bool = False) -> Look:
        """Look at the gradients of one optimizer's parameters, or of all; norms of all others are 0.

        Whether they change is only seen where somebody steps, or where the look is to ``hold`` on to them.
        """
        places = None if optimizer is None or self._covers(optimizer) else self.positions(optimizer)
        grads = list(map(_GRAD, self.norms.parameters))
        norms = self.norms.take(places, grads)
        if self._scaler is not None:
            optimizers = self._optimizers if optimizer is None else [optimizer]
            unscaled = [id(o) for o in optimizers if gradients.is_unscaled(self._scaler, o)]
            divisor = self._divisor(optimizers, unscaled)
            norms = norms if divisor is None else as_tensor(norms) / divisor
        return Look(norms, grads, _versions(grads)) if self._optimizers or hold else Look(norms, [], [])

    def look_again(self, look: Look, optimizer: Optimizer, *, closely: bool) -> Norms | None:
        """The norms of an optimizer's gradients by now, [P]; None where they are as they were at that look.

        Through ``.data`` a gradient is changed without a trace. ``closely`` asks the norms themselves, and once they
        have told of such a change they are always asked.
        """
        changed = self._changed(look, optimizer)
        if not (changed or closely or self._traceless):
            return None
        norms, places = self.look(optimizer).norms, self.positions(optimizer)
        before, now = as_tensor(look.norms)[places], as_tensor(norms)[places]
        wide = torch.promote_types(before.dtype, now.dtype)
        if not changed and torch.allclose(before.to(wide), now.to(wide), rtol=1e-5, atol=0.0, equal_nan=True):
            return None
        self._traceless |= not changed
        return norms

    def _changed(self, look: Look, optimizer: Optimizer) -> bool:
        """Whether the gradients of an optimizer were changed in place, or replaced, since that look."""
        same = all(map(operator.is_, map(_GRAD, self.norms.parameters), look.grads))
        now = _versions(look.grads)
        if same and now == look.versions:
            return False
        grads = list(map(_GRAD, self.norms.parameters))
        return any(grads[i] is not look.grads[i] or now[i] != look.versions[i] for i in self.positions(optimizer))

    def _divisor(self, optimizers: Sequence[Optimizer], unscaled: Sequence[int]) -> Tensor | None:
        """What norms are to be divided by: one factor or one each, [P]; None where the gradients are as they should."""
        scale = gradients.scale_of(self._scaler)
        if scale is None:
            return None
        scale = scale.to(self.norms.device)
        if not optimizers:
            done, known = gradients.unscaled_optimizers(self._scaler)
            if 0 < done < known:
                raise ConfigError(
                    "optimizer=None: the scaler has unscaled some optimizers' gradients and not others'; "
                    "give watch, or step, the optimizer"
                )
            return None if done else scale
        if not unscaled:
            return scale
        if len(unscaled) == len(optimizers):
            return None
        divisor = torch.ones(len(self.norms.parameters), device=scale.device)
        for optimizer in optimizers:
            if id(optimizer) not in unscaled:
                divisor[self.positions(optimizer)] = scale
        return divisor


def _versions(grads: Sequence[Tensor | None]) -> list[int]:
    """How often each gradient was changed in place; -1 where there is none."""
    try:
        return list(map(_VERSION, grads))
    except AttributeError:
        return [-1 if g is None else g._version for g in grads]


@torch.no_grad()
def weight_norms(layers: Sequence[WatchedLayer]) -> Tensor:
    """The norm of each layer's weights as the forward pass uses them, [L]."""
    return _stacked([_norm(layer.effective_weights()) for layer in layers])


@torch.no_grad()
def copied_weights(layers: Sequence[WatchedLayer]) -> list[list[Tensor]]:
    """Copies of every layer's weights, to hold the next step's against."""
    return [[weight.clone() for weight in layer.effective_weights()] for layer in layers]


@torch.no_grad()
def update_ratios(layers: Sequence[WatchedLayer], before: Sequence[Sequence[Tensor]]) -> Tensor:
    """‖ΔW‖/‖W‖ of each layer since ``before`` was copied, [L]; NaN for weights of another shape by now."""
    ratios = []
    for layer, old in zip(layers, before, strict=True):
        new = layer.effective_weights()
        if [w.shape for w in new] != [w.shape for w in old]:
            ratios.append(torch.full((), torch.nan))
        else:
            changes = [_real(after) - _real(weight) for weight, after in zip(old, new, strict=True)]
            ratios.append(_norm(changes) / _norm(old))
    return _stacked(ratios)


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    norms = [safe_norm(gradients.dense(_real(tensor)).flatten(), 0) for tensor in tensors]
    return norms[0] if len(norms) == 1 else safe_norm(torch.stack(norms), 0)


def _real(x: Tensor) -> Tensor:
    """Real numbers in at least single precision; of a compressed sparse matrix those that it holds."""
    x = x.detach()
    x = x if x.layout in (torch.strided, torch.sparse_coo) else x.values()
    x = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
    return x.float() if x.element_size() < 4 else x


def _stacked(values: Sequence[Tensor]) -> Tensor:
    return torch.stack([value.to(values[0].device, widest(value.device)) for value in values])
