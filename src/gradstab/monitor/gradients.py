"""The norms of whatever gradients a loop leaves behind: missing, sparse, complex, scaled, on several devices."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradstab.errors import ConfigError
from gradstab.measure.probe import GradientNorms
from gradstab.measure.quantities import Norms, as_tensor, widest
from gradstab.monitor.layers import WatchedLayer
from gradstab.monitor.series import in_series, on_every_path

_GRAD = operator.attrgetter("grad")


class WatchedNorms(GradientNorms[WatchedLayer]):
    """The norms of all gradients of a network, and of each watched layer's.

    ``depth`` are the positions of the layers that a depth factor is taken over, because they are alike: those that are
    known to feed an activation; with fewer than two known, all but embeddings and the last, which is taken for the
    output. Where ``series`` is known, positions, those outside it are left out; ``reached`` are the ids of the layers
    that a gradient was seen to reach. ``width`` is the length of vectors over activations: without the last layer, if
    that feeds none.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], layers: Sequence[WatchedLayer]) -> None:
        super().__init__((p for p in parameters if p.is_floating_point() or p.is_complex()), layers)
        self.series: Collection[int] | None = None
        self._trunk: list[int] | None = None
        self.stations: dict[int, int] = {}
        self.reached: set[int] = set()
        self.device = self.parameters[0].device
        self._index = {id(parameter): i for i, parameter in enumerate(self.parameters)}
        first = self.parameters[0]
        self._missing: list[int] = []
        self._uniform = not first.is_complex() and all(
            p.device == first.device and p.dtype == first.dtype for p in self.parameters
        )

    @property
    def hidden(self) -> tuple[WatchedLayer, ...]:
        """The layers of the depth factor where they are the first ones, and none where others stand between them."""
        return self.layers[: len(self.depth)] if self.depth == list(range(len(self.depth))) else ()

    @property
    def width(self) -> int:
        return len(self.layers) - (self.layers[-1].activation is None)

    @property
    def depth(self) -> list[int]:
        return self.alike if self.series is None else [i for i in self.alike if i in self.series]

    @property
    def trunk(self) -> list[int]:
        """Those of ``depth`` whose gradient tells of all layers below, as far as is known.

        No skip path leads past them, or what goes into their branch stands for them: ``stations`` has the modules, by
        id, at whose inputs that is.
        """
        return self.depth if self._trunk is None else self._trunk

    @property
    def alike(self) -> list[int]:
        """The layers that a depth factor would be taken over if all stood in series."""
        known = [i for i, layer in enumerate(self.layers) if layer.activation is not None]
        if len(known) > 1:
            return known
        kinds = (nn.Embedding, nn.EmbeddingBag)
        return [i for i in range(self.width) if not isinstance(self.layers[i].module, kinds)]

    def take_roots(
        self, roots: Mapping[int, Any], entries: Mapping[int, Any], optimizers: Sequence[Optimizer], *, anew: bool
    ) -> bool:
        """See which layers stand in series where gradients reach some for the first time; whether more do than before.

        ``roots`` are the autograd nodes of the layers' outputs, by the layers' ids, and ``entries`` of modules' inputs,
        all of them where this is to be seen ``anew``.
        """
        if roots.keys() <= self.reached and not anew:
            return False  # None is known of yet, or none that was not.
        self.reached |= roots.keys()
        series = in_series(self.layers, self.alike, roots, optimizers)
        if self.series is not None and len(series) < len(self.series) + (not anew):
            return False
        self.series = series
        self._trunk, self.stations = on_every_path(self.layers, series, roots, entries)
        if self.stations:
            # δ before a norm is as large as h is small, and no match for that on a stream.
            self._trunk = [i for i in self._trunk if i in self.stations or not self.layers[i].normalised]
        return True

    def positions(self, parameters: Iterable[nn.Parameter]) -> list[int]:
        """Where these parameters stand in ``parameters``; those of other networks are left out."""
        return [self._index[id(p)] for p in parameters if id(p) in self._index]

    def exchanged(self, parameters: Iterable[nn.Parameter]) -> tuple[int, int]:
        """How many of the network's present parameters are new, and how many of those watched are gone."""
        present = {id(p) for p in parameters if p.is_floating_point() or p.is_complex()}
        return len(present - self._index.keys()), len(self._index.keys() - present)

    def take(self, positions: Sequence[int] | None = None, grads: list[Any] | None = None) -> Norms:
        """The norm of each gradient as it is, [P]; 0 where there is none, or where ``positions`` leave it out.

        ``grads`` are those of all parameters, if somebody has gathered them already.
        """
        grads = list(map(_GRAD, self.parameters)) if grads is None else grads
        if positions is None and self._uniform:
            # Missing and sparse ones are exceptions: asking every gradient each time costs more than most norms.
            try:
                return self._but_missing(grads)
            except (TypeError, RuntimeError):
                self._missing = [i for i, grad in enumerate(grads) if grad is None]
        chosen = range(len(self.parameters)) if positions is None else positions
        return self._some(chosen, [grads[i] for i in chosen])

    def _but_missing(self, grads: list[Any]) -> Norms:
        """All norms, where those that were missing last are missing still, as of frozen layers; else TypeError."""
        if not self._missing or not self._on_cpu:
            return self.norms_of(grads)
        present = [grad for grad in grads if grad is not None]
        if len(present) + len(self._missing) != len(grads) or any(grads[i] is not None for i in self._missing):
            raise TypeError
        values = self.norms_of(present)
        assert isinstance(values, list)
        for i in self._missing:
            values.insert(i, 0.0)
        return values

    @torch.no_grad()
    def _some(self, chosen: Sequence[int], grads: Sequence[Any]) -> Tensor:
        """Norms [P] of these gradients, some of which may be missing, sparse, complex or on other devices."""
        present = [g for g in grads if g is not None]
        plain = self._uniform and all(g.layout is torch.strided for g in present)
        norms = torch.zeros(len(self.parameters), device=self.device, dtype=self._dtype or torch.float32)
        if not present:
            return norms
        found = as_tensor(self.norms_of(present)) if plain else self._one_by_one(present)
        norms = norms.to(torch.promote_types(norms.dtype, found.dtype))
        norms[[i for i, g in zip(chosen, grads, strict=True) if g is not None]] = found.to(norms.dtype)
        return norms

    def _one_by_one(self, grads: Sequence[Tensor]) -> Tensor:
        found = [torch.linalg.vector_norm(dense(g), dtype=widest(self.device)) for g in grads]
        return torch.stack([norm.to(self.device) for norm in found])


def dense(grad: Tensor) -> Tensor:
    """The values of a gradient as real numbers: a sparse one lists a row once for every time it was looked up."""
    if grad.is_sparse:
        grad = grad.coalesce().values()
    elif grad.layout is not torch.strided:
        grad = grad.values()
    return torch.view_as_real(grad.resolve_conj()) if grad.is_complex() else grad


def scale_of(scaler: Any) -> Tensor | None:
    """The factor by which a GradScaler multiplies the loss now, on its device; None where it multiplies nothing."""
    if scaler is None or not scaler.is_enabled():
        return None
    scale: Tensor | None = scaler._scale
    # The scaler changes it in place.
    return None if scale is None else scale.detach().clone()


def is_unscaled(scaler: Any, optimizer: torch.optim.Optimizer) -> bool:
    """Whether ``scaler.unscale_`` (or ``scaler.step``) has divided this optimizer's gradients by the scale already."""
    state = scaler._per_optimizer_states.get(id(optimizer))
    return state is not None and state["stage"].name != "READY"


def unscaled_optimizers(scaler: Any) -> tuple[int, int]:
    """Of how many optimizers this scaler has divided the gradients since its last update, and how many it has met."""
    stages = [state["stage"].name for state in scaler._per_optimizer_states.values()]
    return sum(stage != "READY" for stage in stages), len(stages)


def enabled(scaler: Any) -> Any:
    """The scaler, None for one that is disabled; raises :class:`ConfigError` for what is no GradScaler."""
    if scaler is None or (hasattr(scaler, "unscale_") and hasattr(scaler, "is_enabled") and not scaler.is_enabled()):
        return None
    if not hasattr(scaler, "unscale_") or not hasattr(scaler, "_per_optimizer_states"):
        raise ConfigError(f"scaler={type(scaler).__name__}: has to be a torch.amp.GradScaler, or None")
    return scaler
