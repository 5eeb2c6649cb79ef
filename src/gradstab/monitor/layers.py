"""Which layers of somebody's network are watched: every module that owns a weight matrix, by its qualified name."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from gradstab.activations import ACTIVATIONS
from gradstab.errors import ConfigError
from gradstab.measure.probe import parametrized_tensor
from gradstab.models.blocks import Model

_OWN = {type(make()) for make in ACTIVATIONS.values()} - {nn.Identity}
# Elementwise and without chance: their slope at h is a function of h alone.
ELEMENTWISE: tuple[type[nn.Module], ...] = (
    *sorted(_OWN, key=lambda kind: kind.__name__),
    *(nn.ReLU6, nn.CELU, nn.Hardswish, nn.Hardsigmoid, nn.LogSigmoid, nn.Tanhshrink, nn.Hardshrink, nn.Softshrink),
    nn.Threshold,
)
# What may stand between h and its activation: the units stay who they are.
_CARRIERS: tuple[type[nn.Module], ...] = (
    *(nn.Identity, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.LocalResponseNorm),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
)
_SHARDED = ("FullyShardedDataParallel", "FSDPModule", "DeepSpeedEngine")
_WRAPPERS = ("DistributedDataParallel", "OptimizedModule", "_FabricModule")


@dataclass(eq=False)
class WatchedLayer:
    """One layer of somebody's network. ``module`` is the one whose output is h; ``weights`` are (owner, tensor's name).

    ``parameters`` are what the weights are made of. ``activation`` is known once a watched pass has shown which module
    takes h in; it stays None where that is a function, or nothing that is known to be elementwise. ``normalised`` is
    whether h was seen to go into a norm, which takes its scale away.
    """

    name: str
    module: nn.Module
    weights: list[tuple[nn.Module, str]]
    parameters: list[nn.Parameter]
    activation: nn.Module | None = None
    normalised: bool = False

    def weight_parameters(self) -> Sequence[nn.Parameter]:
        """What the gradient norm of the layer is taken of."""
        return self.parameters

    @property
    def reparametrized(self) -> bool:
        """Whether weight norm, spectral norm or the like computes the weights from other parameters."""
        return any(
            parametrize.is_parametrized(owner, name)
            or any(type(hook).__name__ in ("WeightNorm", "SpectralNorm") for hook in owner._forward_pre_hooks.values())
            for owner, name in self.weights
        )

    def effective_weights(self) -> list[Tensor]:
        """The weights as the forward pass uses them."""
        return [
            parametrized_tensor(owner, name) if parametrize.is_parametrized(owner, name) else getattr(owner, name)
            for owner, name in self.weights
        ]


def is_elementwise(module: nn.Module, extra: tuple[type[nn.Module], ...] = ()) -> bool:
    """Whether a module is known to be an activation that works elementwise: torch's, ours, transformers', ``extra``."""
    if type(module) in ELEMENTWISE or isinstance(module, extra):
        return True
    return type(module).__module__ == "transformers.activations" and not list(module.parameters())


def carries(module: nn.Module) -> bool:
    """Whether what goes into an activation through this module is still the layer's h, normalised or pooled."""
    return isinstance(module, _CARRIERS) or type(module).__name__.endswith("RMSNorm")


def is_norm(module: nn.Module) -> bool:
    """Whether a module that :func:`carries` normalises."""
    return "Norm" in type(module).__name__


def unwrapped(model: nn.Module) -> tuple[nn.Module, bool]:
    """The network inside the wrappers of torch.compile and DistributedDataParallel, and whether any of it is compiled.

    Raises :class:`ConfigError` for networks whose parameters are spread over several devices or processes.
    """
    compiled = False
    while type(model).__name__ in _WRAPPERS:
        inner = getattr(model, "_orig_mod", None)
        compiled = compiled or inner is not None
        model = inner if inner is not None else model.module  # type: ignore[assignment]
    for name, module in model.named_modules():
        if isinstance(module, nn.DataParallel):
            where = f"model: {name} is in nn.DataParallel, which" if name else "model: nn.DataParallel"
            raise ConfigError(f"{where} runs copies that cannot be watched; allowed: the module inside it")
        compiled = compiled or type(module).__name__ == "OptimizedModule" or _compiled_in_place(module)
        compiled = compiled or isinstance(module, torch.jit.ScriptModule)
        if any(kind.__name__ in _SHARDED for kind in type(module).__mro__):
            raise ConfigError(f"model: {type(module).__name__} shards parameters, so no process has a layer's gradient")
    for name, parameter in model.named_parameters():
        if type(parameter).__name__ == "DTensor" or hasattr(parameter, "ds_id"):
            raise ConfigError(f"model: {name} is sharded over processes, so none has its whole gradient")
        if parameter.is_meta:
            raise ConfigError(f"model: {name} is on the meta device and has no values; materialise it before watching")
        if is_lazy(parameter):
            raise ConfigError(f"model: {name} has no shape yet; run one forward pass before watching")
    return model, compiled


def _compiled_in_place(module: nn.Module) -> bool:
    return getattr(module, "_compiled_call_impl", None) is not None


def find_layers(
    model: nn.Module, include: str | Sequence[str] = "*", exclude: str | Sequence[str] = ()
) -> list[WatchedLayer]:
    """The layers in order of definition whose qualified name matches a pattern of ``include`` and none of ``exclude``.

    Patterns are those of :mod:`fnmatch`. A layer is a module that owns a weight of two or more dimensions. Attention's
    projections count as one layer, and so do all the matrices of a recurrent module.
    """
    if not any(True for _ in model.parameters()):
        raise ConfigError(f"model: {type(model).__name__} has no parameters to watch")
    layers = list(_own_layers(model) if isinstance(model, Model) else _layers_of(model))
    if not layers:
        raise ConfigError(f"model: {type(model).__name__} has no weight of two or more dimensions to watch")
    included, excluded = _patterns("include", include), _patterns("exclude", exclude)
    chosen = [layer for layer in layers if _matches(layer.name, included) and not _matches(layer.name, excluded)]
    if not chosen:
        names = ", ".join(layer.name for layer in layers[:6]) + (", …" if len(layers) > 6 else "")
        raise ConfigError(f"include={include!r}, exclude={exclude!r}: no layer is left of {names}")
    for key, pattern in [*(("include", p) for p in included), *(("exclude", p) for p in excluded)]:
        if not any(_matches(layer.name, [pattern]) for layer in layers):
            names = ", ".join(layer.name for layer in layers[:6]) + (", …" if len(layers) > 6 else "")
            raise ConfigError(f"{key}={pattern!r}: matches no layer; there are {names}")
    return chosen


def _patterns(key: str, value: str | Sequence[str]) -> list[str]:
    patterns = [value] if isinstance(value, str) else list(value) if isinstance(value, Iterable) else [value]
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise ConfigError(f"{key}={value!r}: has to be a pattern of layers' names, or a list of them")
    return patterns


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _layers_of(model: nn.Module) -> Iterator[WatchedLayer]:
    inside_attention: set[int] = set()
    for name, module in model.named_modules(remove_duplicate=True):
        if id(module) in inside_attention or _is_parametrization(name):
            continue
        owners = [module]
        if isinstance(module, nn.MultiheadAttention):
            # Its output projection never runs as a module; its weight is used by the attention itself.
            owners.append(module.out_proj)
            inside_attention.add(id(module.out_proj))
        layer = _layer(name or type(model).__name__, module, owners)
        if layer is not None:
            yield layer


def _layer(name: str, module: nn.Module, owners: Sequence[nn.Module]) -> WatchedLayer | None:
    weights: list[tuple[nn.Module, str]] = []
    parameters: list[nn.Parameter] = []
    for owner in owners:
        for key, parameter in owner.named_parameters(recurse=False):
            if _is_weight(owner, key, parameter):
                weights.append((owner, key))
                parameters.append(parameter)
        if parametrize.is_parametrized(owner):
            assert isinstance(owner.parametrizations, nn.ModuleDict)
            for key, parametrization in owner.parametrizations.items():
                if _is_weight(owner, key, parametrized_tensor(owner, key)):
                    weights.append((owner, key))
                    parameters += [p for p in parametrization.parameters() if p.is_floating_point()]
    return WatchedLayer(_safe(name), module, weights, parameters) if parameters else None


def _own_layers(model: Model) -> Iterator[WatchedLayer]:
    """The layers of a network of gradstab's own, which knows where its pre-activations and activations are."""
    names = {id(module): name for name, module in model.named_modules()}
    for layer in model.layers:
        yield WatchedLayer(
            _safe(names[id(layer.affine)]),
            layer.preactivation,
            [(layer.affine, "weight")],
            layer.weight_parameters(),
            layer.activation,
        )


def _is_weight(owner: nn.Module, key: str, tensor: Tensor) -> bool:
    """Whether a parameter is a matrix, or a kernel, rather than a bias, a scale or a token that was given more axes."""
    if tensor.ndim < 2 or not (tensor.is_floating_point() or tensor.is_complex()):
        return False
    flat = tensor.ndim == 2 and ("weight" in key or not any(True for _ in owner.children()))
    return flat or isinstance(owner, _ConvNd) or sum(size > 1 for size in tensor.shape) > 1


def _is_parametrization(name: str) -> bool:
    return ".parametrizations." in f".{name}."


def _safe(name: str) -> str:
    """Fit for a TensorBoard tag."""
    return re.sub(r"[^\w.-]+", "_", name)
