"""The optimizers that move a watched network: their hooks, and whether they step at all."""

from __future__ import annotations

import itertools
import operator
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, optim
from torch.optim import Optimizer

from gradstab.errors import ConfigError
from gradstab.monitor.layers import WatchedLayer
from gradstab.monitor.looking import Looker

# So many steps without an update by any of them, and another optimizer is likely to be at work.
IDLE_STEPS = 3
# Those of torch whose weight decay is part of the gradient, unless a group says otherwise.
COUPLED = (
    *(optim.SGD, optim.ASGD, optim.Adam, optim.Adamax, optim.NAdam, optim.RAdam),
    *(optim.RMSprop, optim.Adagrad, optim.Adadelta),
)


class Followed:
    """Tells when one of its optimizers is about to step (False), or has stepped (True).

    ``optimizers`` are those followed now; the list stays the same object. ``backwards`` grows with every backward pass.
    """

    def __init__(self, on_step: Callable[[Optimizer, bool], None]) -> None:
        self.optimizers: list[Optimizer] = []
        self.backwards = 0
        self._on_step = on_step
        self._hooks: dict[int, list[Any]] = {}
        self._counters: list[Any] = []
        self._inside = False
        self._idle = 0

    def follow(self, optimizers: Iterable[Any], looker: Looker) -> list[Optimizer]:
        """Follow these too, in the place of those before that update the same parameters; the ones not known yet.

        Raises :class:`ConfigError` for what is no optimizer of the watched network.
        """
        earlier, added = list(self.optimizers), []
        for given in optimizers:
            optimizer = checked(given)
            if holds(self.optimizers, optimizer):
                continue
            places = set(looker.positions(optimizer))
            if not places:
                raise ConfigError(f"optimizer={type(given).__name__}: updates no parameter of the watched network")
            for other in earlier:
                if holds(self.optimizers, other) and not places.isdisjoint(looker.positions(other)):
                    self._remove(other)
                    looker.forget(other)
            self._add(optimizer)
            added.append(optimizer)
        if added:
            self.count_backwards(looker)
        return added

    def count_backwards(self, looker: Looker) -> None:
        """Count the backward passes that reach what they move by now: blocks may take turns, layers be unfrozen."""
        for hook in self._counters:
            hook.remove()
        self._counters = []
        for optimizer in self.optimizers:
            moved = [looker.norms.parameters[i] for i in sorted(set(looker.positions(optimizer)))]
            trainable = [p for p in moved if p.requires_grad]
            for parameter in {id(p): p for p in (*trainable[:1], *trainable[-1:])}.values():
                self._counters.append(parameter.register_post_accumulate_grad_hook(_counting(self)))  # type: ignore[no-untyped-call]

    def _add(self, optimizer: Optimizer) -> None:
        self.optimizers.append(optimizer)
        self._hooks[id(optimizer)] = [
            optimizer.register_step_pre_hook(self._before),
            # A closure that runs forward and backward runs inside the step: what it left is seen afterwards.
            optimizer.register_step_post_hook(self._after),
        ]

    def _remove(self, optimizer: Optimizer) -> None:
        self.optimizers[:] = [other for other in self.optimizers if other is not optimizer]
        for hook in self._hooks.pop(id(optimizer)):
            hook.remove()

    def close(self) -> None:
        """Take all hooks away."""
        for hook in [*self._counters, *(hook for hooks in self._hooks.values() for hook in hooks)]:
            hook.remove()
        self._hooks, self._counters = {}, []

    def count_step(self) -> bool:
        """Note that a step of the loop is over; whether none of them has stepped for long."""
        if self._inside or not self.optimizers:
            return False
        self._idle += 1
        return self._idle >= IDLE_STEPS

    def _before(self, optimizer: Optimizer, _args: object, _kwargs: object) -> None:
        self._inside, self._idle = True, -1
        self._on_step(optimizer, False)

    def _after(self, optimizer: Optimizer, _args: object, _kwargs: object) -> None:
        self._inside = False
        self._on_step(optimizer, True)


def _counting(followed: Followed) -> Callable[[Tensor], None]:
    """A hook that counts a backward pass; no garbage collector sees what a parameter's hooks hold on to."""
    whose = weakref.ref(followed)

    def hook(_parameter: Tensor) -> None:
        if (counter := whose()) is not None:
            counter.backwards += 1

    return hook


def coupled_decay(optimizers: Sequence[Optimizer], layers: Sequence[WatchedLayer]) -> float:
    """The weight decay that these add by now to the gradient of every matrix.

    0 where they are not known to add any, and where it pulls at other than the weights.
    """
    if any(layer.reparametrized for layer in layers):
        return 0.0
    return min(map(_added, optimizers), default=0.0)


def _added(optimizer: Optimizer) -> float:
    groups = [g for g in optimizer.param_groups if any(p.ndim > 1 for p in g["params"])]
    if type(optimizer) not in COUPLED or any(g.get("decoupled_weight_decay") for g in groups):
        return 0.0
    return min((float(g.get("weight_decay") or 0.0) for g in groups), default=0.0)


def inside(optimizer: Any) -> Any:
    """The optimizer of torch inside those that wrap one, or borrow its hooks: accelerate's, Fabric's."""
    hooks = "_optimizer_step_pre_hooks"
    while (wrapped := getattr(optimizer, "optimizer", None)) is not None:
        if hasattr(optimizer, hooks) and getattr(optimizer, hooks) is not getattr(wrapped, hooks, None):
            break
        optimizer = wrapped
    return optimizer


def checked(optimizer: Any) -> Optimizer:
    """An optimizer that can be followed; raises :class:`ConfigError` for anything else."""
    found = inside(optimizer)
    if not isinstance(found, Optimizer):
        raise ConfigError(f"optimizer={type(optimizer).__name__}: has to be a torch.optim.Optimizer")
    if not hasattr(found, "_optimizer_step_pre_hooks"):
        raise ConfigError(
            f"optimizer={type(optimizer).__name__}: never called Optimizer.__init__, and takes no hooks; "
            "allowed: the optimizer inside it, or none"
        )
    return found


def holds(optimizers: Sequence[Optimizer], one: Optimizer) -> bool:
    """Whether this very optimizer is among them."""
    return any(map(operator.is_, optimizers, itertools.repeat(one)))


def learning_rate(optimizers: Sequence[Optimizer]) -> float | None:
    """The first one's learning rate; None where there is none."""
    return float(optimizers[0].param_groups[0]["lr"]) if optimizers and "lr" in optimizers[0].param_groups[0] else None
