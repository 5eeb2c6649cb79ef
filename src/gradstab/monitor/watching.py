"""``watch``: checks what it is given, and puts a monitor on a network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from gradstab.config.compose import read_knobs
from gradstab.config.verdict_options import Thresholds
from gradstab.errors import ConfigError
from gradstab.monitor.arguments import as_number
from gradstab.monitor.closing import ending
from gradstab.monitor.following import checked
from gradstab.monitor.gradients import enabled
from gradstab.monitor.layers import find_layers, unwrapped
from gradstab.monitor.monitor import Monitor
from gradstab.monitor.place import make_directory
from gradstab.monitor.settings import Conventions, Settings


def watch(
    model: nn.Module,
    directory: str | Path | None = None,
    *,
    optimizer: Optimizer | Iterable[Optimizer] | None = None,
    every: int | None = 50,
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
    scaler: Any = None,
    reduction: str = "mean",
    batch_dim: int = 0,
    activations: Sequence[type[nn.Module]] = (),
    thresholds: Thresholds | None = None,
    chance_loss: float | None = None,
) -> Monitor:
    """Watch a network while your own loop trains it; a context manager, whose ``step(loss)`` is called every update.

    Every step the norm of each layer's gradient is recorded; at step 0 and ``every`` so many steps all quantities are
    (None: never). Training is not changed by it. ``directory`` (None: a new one under outputs/watch) gets the event
    file and run.json that ``gradstab report`` reads.

    ``include`` and ``exclude`` are patterns (:mod:`fnmatch`) of layers' qualified names. With ``optimizer``, one or
    several, learning rates and norms after clipping are recorded too. With a ``scaler``, a GradScaler, norms are
    unscaled.
    ``reduction`` is how the loss is taken over samples, ``mean`` or ``sum``; ``batch_dim`` is the inputs' axis of
    samples. ``activations`` are classes of your own that work elementwise. ``chance_loss``, the loss of the best
    constant answer, makes the verdict's judgement of the loss independent of the first step.

    Raises :class:`ConfigError` for arguments that cannot be, and for networks that are sharded over processes.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model={type(model).__name__}: has to be an nn.Module")
    conventions = _conventions(reduction, batch_dim, activations)
    settings = _settings(every, scaler, conventions, thresholds, chance_loss)
    optimizers = _optimizers(optimizer)
    inner, compiled = unwrapped(model)
    layers = find_layers(inner, include, exclude)
    monitor = Monitor(inner, layers, make_directory(directory), settings, compiled=compiled)
    try:
        monitor.follow(*optimizers)
    except Exception as error:
        monitor.close(*ending(error))
        raise
    return monitor


def _conventions(reduction: str, batch_dim: int, activations: Sequence[type[nn.Module]]) -> Conventions:
    if reduction not in ("mean", "sum"):
        raise ConfigError(f"reduction={reduction!r}: has to be one of mean, sum")
    if isinstance(batch_dim, bool) or not isinstance(batch_dim, int) or batch_dim < 0:
        raise ConfigError(f"batch_dim={batch_dim!r}: has to be an integer of at least 0")
    kinds = tuple(activations) if isinstance(activations, Iterable) else (activations,)
    if isinstance(activations, type) or not all(isinstance(k, type) and issubclass(k, nn.Module) for k in kinds):
        raise ConfigError(f"activations={activations!r}: have to be classes of nn.Module, in a sequence")
    return Conventions(reduction, batch_dim, kinds)


def _settings(
    every: int | None, scaler: Any, conventions: Conventions, thresholds: Thresholds | None, chance_loss: float | None
) -> Settings:
    if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
        raise ConfigError(f"every={every!r}: has to be an integer of at least 1, or None for norms alone")
    scaler = enabled(scaler)
    if thresholds is not None and not isinstance(thresholds, Thresholds):
        raise ConfigError(f"thresholds={type(thresholds).__name__}: has to be verdict_options.Thresholds, or None")
    known = read_knobs(Thresholds, asdict(thresholds or Thresholds()), "thresholds")
    if chance_loss is not None:
        chance_loss = as_number("chance_loss", chance_loss)
        if not 0 < chance_loss < math.inf:
            raise ConfigError(f"chance_loss={chance_loss}: has to be a finite number above 0, or None")
    return Settings(every, scaler, conventions, known, chance_loss)


def _optimizers(given: Any) -> list[Optimizer]:
    several = () if given is None else given
    return [checked(one) for one in (several if isinstance(several, Iterable) else [several])]
