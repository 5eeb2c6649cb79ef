"""Objects as plain containers of numbers, text and tensors: what ``torch.load`` reads without running any code."""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

# Whose classes may stand in a file; nothing else is ever looked up by a name from one.
_MODULES = (
    "gradstab.config.verdict_options",
    "gradstab.measure.depth",
    "gradstab.measure.diagnosis",
    "gradstab.measure.losses",
    "gradstab.measure.recorder",
    "gradstab.measure.rules",
    "gradstab.measure.step_rules",
    "gradstab.measure.verdict",
    "gradstab.progress",
    "gradstab.report.history",
)


def state_of(thing: object, *but: str) -> dict[str, Any]:
    """All attributes of an object, packed, except those named in ``but``; arrays are copied."""
    return {name: pack(value) for name, value in vars(thing).items() if name not in but}


def restore(thing: object, state: Mapping[str, Any]) -> None:
    """Give an object the attributes that :func:`state_of` took; raises ValueError where they are not its own."""
    strangers = state.keys() - vars(thing).keys()
    if strangers:
        raise ValueError(f"{type(thing).__name__} has no {', '.join(map(str, sorted(strangers)))}")
    for name, value in state.items():
        vars(thing)[name] = unpack(value)


def pack(value: Any) -> Any:
    """A value as plain containers: whatever is no number, text or list becomes a dict that says what it is."""
    if isinstance(value, np.generic):
        # Before all else: numpy's float64 is a float too, and one that torch.load refuses.
        return pack(value.item())
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [pack(item) for item in value]
    if isinstance(value, np.ndarray):
        return {"is": "array", "values": torch.from_numpy(np.array(value))}
    if type(value) is tuple:
        return {"is": "tuple", "items": [pack(item) for item in value]}
    if isinstance(value, deque):
        return {"is": "deque", "items": [pack(item) for item in value], "at_most": value.maxlen}
    if isinstance(value, dict):
        return {"is": "dict", "items": [[pack(key), pack(item)] for key, item in value.items()]}
    kind = type(value)
    if kind.__module__ not in _MODULES:
        raise TypeError(f"{kind.__module__}.{kind.__qualname__} cannot be kept")
    return {"is": f"{kind.__module__}:{kind.__qualname__}", "attributes": state_of(value)}


def unpack(value: Any) -> Any:
    """What :func:`pack` was given; raises ValueError, TypeError or KeyError for what it never makes."""
    if isinstance(value, list):
        return [unpack(item) for item in value]
    if not isinstance(value, dict):
        return value
    match value["is"]:
        case "array":
            return value["values"].numpy().copy()
        case "tuple":
            return tuple(map(unpack, value["items"]))
        case "deque":
            return deque(map(unpack, value["items"]), value["at_most"])
        case "dict":
            return {unpack(key): unpack(item) for key, item in value["items"]}
        case str(kind):
            return _made(kind, value["attributes"])
    raise ValueError(f"{value['is']!r} is nothing that could be kept")


def _made(kind: str, attributes: Mapping[str, Any]) -> Any:
    """An object of one of our own classes; none of its code runs."""
    module, _, name = kind.partition(":")
    if module not in _MODULES or not name.isidentifier():
        raise ValueError(f"{kind!r} is nothing that could be kept")
    cls = vars(importlib.import_module(module)).get(name)
    if not isinstance(cls, type) or cls.__module__ != module:
        raise ValueError(f"{kind!r} is nothing that could be kept")
    made: object = object.__new__(cls)
    for attribute, value in attributes.items():
        # Around what makes a dataclass frozen.
        object.__setattr__(made, str(attribute), unpack(value))
    return made
