"""What steps mean in a watched network that is a plain chain of linear layers, as gradstab's own deep_mlp is."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn, optim
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from gradstab.monitor.gradients import WatchedNorms
from gradstab.step_scale import chain_scale, step_growth

_EVEN = (optim.Adam, optim.AdamW, optim.Adamax, optim.NAdam, optim.RAdam)


def watched_step_scale(norms: WatchedNorms, model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, float]:
    """``step_scale`` as :func:`gradstab.step_scale.step_scale` has it, once the order of the layers is known.

    Nothing for all but chains of linear layers without skip paths or batch norm, that one of torch's optimizers moves;
    ``stream_batch_norm`` where there are both.
    """
    if norms.stations and any(isinstance(module, _BatchNorm) for module in model.modules()):
        return {"stream_batch_norm": 1.0}
    chain = list(range(len(norms.layers) - 1))
    plain = norms.series is not None and chain != [] and norms.depth == chain == norms.trunk and not norms.stations
    if not plain or not all(isinstance(layer.module, nn.Linear) for layer in norms.layers):
        return {}
    if len(optimizers) != 1 or any(isinstance(module, _BatchNorm) for module in model.modules()):
        return {}
    growth = _growth(optimizers[0])
    return {} if growth is None else {"step_scale": chain_scale(len(chain), growth)}


def _growth(optimizer: Optimizer) -> float | None:
    knobs = optimizer.param_groups[0]
    if isinstance(optimizer, optim.SGD):
        name = "sgd" if not knobs["momentum"] else "nesterov" if knobs["nesterov"] else "momentum"
        return step_growth(name, knobs)
    if isinstance(optimizer, optim.RMSprop):
        return step_growth("rmsprop", knobs)
    if isinstance(optimizer, optim.Adagrad):
        return step_growth("adagrad", knobs)
    return 1.0 if isinstance(optimizer, _EVEN) else None
