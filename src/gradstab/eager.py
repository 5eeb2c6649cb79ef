"""torch's optimizers without torch's compiler."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
from torch.optim import Optimizer

_WRAPPED = ("zero_grad", "add_param_group", "state_dict", "load_state_dict")


@cache
def eager(cls: Any) -> Any:
    """A subclass of a torch optimizer that trains alike but leaves ``torch._dynamo`` unimported.

    torch wraps these methods so that the compiler stays out of them, and the wrappers import the compiler to say
    so: a second and a half before the first step of a run that compiles nothing.
    """
    methods: dict[str, Any] = {name: inspect.unwrap(getattr(cls, name)) for name in _WRAPPED}
    if cls is not Optimizer:
        # The wrapper of step also turns autograd off, as differentiable=False, which all of ours have, asks for.
        methods["step"] = torch.no_grad()(inspect.unwrap(cls.step))
    return type(cls.__name__, (cls,), methods)
