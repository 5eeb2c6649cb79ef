"""What a loop tells its monitor in numbers, checked."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
from torch import Tensor

from gradstab.errors import ConfigError
from gradstab.measure.quantities import Scalar, widest


def as_rate(value: Any) -> float:
    """A learning rate; raises :class:`ConfigError` for what cannot be one."""
    rate = as_number("lr", value)
    if not 0 <= rate < math.inf:
        raise ConfigError(f"lr={rate:g}: has to be a finite number of at least 0")
    return rate


def as_share(key: str, value: Any) -> float | None:
    """A number in [0, 1], or None; raises :class:`ConfigError` for anything else but NaN."""
    if value is None:
        return None
    share = as_number(key, value)
    if share < 0 or share > 1:
        raise ConfigError(f"{key}={share:g}: has to be a share between 0 and 1")
    return share


def as_scalar(loss: Tensor | float | None, device: torch.device, *, known: bool = False) -> Scalar:
    """A loss as a number on the CPU, else as a 0-d tensor on the device; NaN for None, where it need not be ``known``.

    It is a copy: the loop may go on adding to a tensor, or put it back to 0, before anybody reads it.
    """
    if isinstance(loss, Tensor):
        if device.type == "cpu":
            try:
                return float(loss.item())
            except (RuntimeError, TypeError):
                _check_one(loss)
                raise
        _check_one(loss)
        value = loss.detach().reshape(())
        return value.clone() if value.device == device else value.to(device)
    number = math.nan if loss is None and not known else as_number("loss", loss)
    if device.type == "cpu":
        return number
    return torch.full((), number, dtype=widest(device), device=device)


def _check_one(loss: Tensor) -> None:
    if loss.numel() != 1:
        raise ConfigError(f"loss: has shape {list(loss.shape)}; has to be one number")
    if loss.is_meta:
        raise ConfigError("loss: is on the meta device; has to hold a number")
    if loss.is_complex():
        raise ConfigError("loss: is complex; has to be one real number")


def as_number(key: str, value: Any) -> float:
    """What somebody gave as a number, in Python or in a tensor; raises :class:`ConfigError` for anything else."""
    if not isinstance(value, str | bytes):
        with contextlib.suppress(TypeError, ValueError, RuntimeError, OverflowError):
            return float(value.detach() if isinstance(value, Tensor) else value)
    given = repr(value) if isinstance(value, str) else type(value).__name__
    raise ConfigError(f"{key}={given}: has to be one number")
