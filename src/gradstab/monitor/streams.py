"""The gradient where paths meet: at the inputs of modules, past which a branch may lead, and at a network's output."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import ReferenceType

from torch import Tensor, nn

from gradstab.measure import quantities as q
from gradstab.monitor import tensors
from gradstab.monitor.layers import WatchedLayer, carries
from gradstab.monitor.passes import Pass, Passes, goes_back, looking
from gradstab.monitor.readings import Call


@dataclass(frozen=True, slots=True)
class Latest:
    """The layer's output that was made last, as it was, and the call that made it."""

    h: ReferenceType[Tensor]
    version: int
    call: Call


class Streams:
    """What goes into the modules of a network, and what comes out of it, as hooks on both show it.

    ``entries`` are the autograd nodes of what first went into modules, by the modules' ids, of each tensor once.
    ``stations`` are the modules that are looked at; as long as nobody has said which matter, all are.
    """

    def __init__(self, model: nn.Module, layers: Sequence[WatchedLayer], batch_dim: int) -> None:
        watched = {id(layer.module) for layer in layers}
        self._modules = [
            module
            for module in model.modules()
            if module is not model and (id(module) in watched or carries(module) or list(module.children()))
        ]
        self._batch_dim = batch_dim
        self.stations: Collection[int] | None = None
        self.forget()

    def forget(self) -> None:
        """Let go of what the last look has shown."""
        self.entries: dict[int, Any] = {}
        self._first: Pass | None = None

    def modules(self) -> Iterator[nn.Module]:
        """Those whose inputs are to be looked at."""
        return (m for m in self._modules if self.stations is None or id(m) in self.stations)

    def take_input(self, passes: Passes, module: nn.Module, inputs: object) -> None:
        """See what goes into a module, and keep the norm of its gradient."""
        if (current := seen_now(passes)) is None:
            return
        x = tensors.computed_in(inputs)
        # Of a node with several outputs no single one need be where all paths meet.
        node = None if x is None else x.grad_fn
        if x is None or node is None or x.output_nr or "Split" in node.name() or "Unbind" in node.name():
            return
        if current.samples is None:
            return
        if id(module) not in self.entries:
            self._first = self._first or current
            if current is not self._first or x.grad_fn in self.entries.values():
                return
            self.entries[id(module)] = x.grad_fn
        call = Call(current.samples)
        current.entries.setdefault(id(module), []).append(call)
        x.register_hook(passes.keep_norm(current, call))  # type: ignore[no-untyped-call]

    def take_output(
        self, passes: Passes, output: object, latest: Latest | None, keep: Callable[[Tensor, Pass, Call, int], None]
    ) -> None:
        """See how far apart the samples' outputs are, and ``keep`` their gradient unless ``latest`` has it already."""
        current = seen_now(passes)
        if current is None or current.samples is None or current.samples == 1:
            return
        if (result := tensors.result_of(output, current.samples, self._batch_dim)) is None:
            return
        if latest is not None and latest.h() is result and latest.version == result._version:
            call = latest.call
        else:
            call = Call(current.samples)
            keep(result, current, call, 0)
        call.spread = q.spread(result.detach().movedim(tensors.batch_axis(result, self._batch_dim), 0))
        current.outputs.append(call)


def seen_now(passes: Passes) -> Pass | None:
    """The pass under way, if it is one to look at, and not one that a checkpoint runs again."""
    return passes.current if looking() and not goes_back() else None
