"""Which forward passes a step is made of, and where in them a tensor comes from."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn

from gradstab.monitor.gradients import dense
from gradstab.monitor.layers import WatchedLayer
from gradstab.monitor.readings import Call


@dataclass(eq=False)
class Pass:
    """One forward pass: how many samples went in, None where that is not known, every layer's calls, what went into
    modules, by their ids, and the outputs.

    ``implied`` is a pass that nothing but a layer's call has told of; each call then counts as many samples as its
    output seems to hold, until all have come. ``recomputed`` is one that was first seen while gradients went back.
    ``went_back`` is whether any gradient has come: a pass made for something else says nothing of the step. It came
    last with the backward pass ``task``, as autograd counts them.
    """

    samples: int | None
    calls: dict[int, list[Call]] = field(default_factory=dict)
    entries: dict[int, list[Call]] = field(default_factory=dict)
    outputs: list[Call] = field(default_factory=list)
    implied: bool = False
    recomputed: bool = False
    went_back: bool = False
    turn: int = 0
    task: int = -1

    def agree(self) -> None:
        """One number of samples for all calls of an implied pass, or layers' δ could not be compared.

        Layers that look at positions one by one have several rows for each sample: it is the least number above 1 that
        all rows are multiples of. Where none is (experts, say, have some of the samples), it is the most frequent one.
        """
        calls = [call for calls in self.calls.values() for call in calls]
        rows = [call.samples for call in calls if call.samples > 1] or [1]
        samples = min(rows) if all(row % min(rows) == 0 for row in rows) else statistics.mode(rows)
        for call in calls:
            call.correlation = call.correlation if call.samples == samples else None
            call.samples = samples


class Passes:
    """The passes that gradients came back through since this was made; ``current`` has begun last.

    ``recomputes`` is whether a checkpoint was seen to run forward again.

    Before its first gradient a pass is held by its graph alone: one that is for something else goes with it.
    """

    def __init__(self) -> None:
        self.current: Pass | None = None
        self._counted: list[Pass] = []
        self._fresh: list[Call] = []
        self._parameters: Sequence[nn.Parameter] = ()
        self._turn = 0
        # The backward pass under way, and the one that began last with all parameters' gradients cleared.
        self._task, self._since = -1, -1
        self.recomputes = False

    def __len__(self) -> int:
        return len(self._counted)

    def divide(self) -> None:
        """Passes up to now belong to a step that has begun; those that follow, to it or to the next one."""
        self._drop_cleared()
        self._turn += 1
        self._since = -1
        self.current = None

    def drop_earlier(self) -> None:
        """Forget those up to the last :meth:`divide`: they belong to an earlier step."""
        self._counted[:] = [one for one in self._counted if one.turn == self._turn]

    def begin(self, begun: Pass, parameters: Sequence[nn.Parameter]) -> None:
        """Another pass begins, over these parameters."""
        self._drop_cleared()
        self._compact()
        self._parameters = parameters
        begun.turn = self._turn
        self.current = begun

    def complete(self) -> list[Pass]:
        """All that count, ready to be read."""
        self._drop_cleared()
        self._compact()
        # The backward pass never comes to some calls: to an output that is only asked for its slope, say.
        for one in (one for one in self._counted if one.turn == self._turn):
            for call in chain(*one.calls.values(), *one.entries.values(), one.outputs):
                if call.task < self._since:
                    call.norms = []
        for one in self._counted:
            if one.implied:
                one.agree()
        return self._counted

    def keep_gradient(self, one: Pass, call: Call, output: int) -> Callable[[Tensor], None]:
        """A hook that keeps the gradient of one of a call's outputs."""

        def hook(grad: Tensor) -> None:
            self._arrive(one, call)
            if not call.grads:
                self._fresh.append(call)
            # One loss after another may be sent back through the same graph; their gradients add up.
            earlier = call.grads.get(output)
            # A copy, as whatever takes the gradient on may change it in place.
            call.grads[output] = grad.detach().clone() if earlier is None else earlier + grad.detach()

        return hook

    def keep_norm(self, one: Pass, call: Call) -> Callable[[Tensor], None]:
        """A hook that keeps a gradient's norm alone; those of several losses add in quadrature."""

        def hook(grad: Tensor) -> None:
            self._arrive(one, call)
            call.grads[0] = grad.detach()
            call.compact()

        return hook

    def _arrive(self, one: Pass, call: Call) -> None:
        """A gradient comes back through a call, with the backward pass that is under way."""
        task = torch._C._current_graph_task_id()
        # Within the backward pass that a checkpoint starts from another one, both are under way.
        begins = not one.went_back if self.recomputes else task != self._task
        if begins and one.turn == self._turn and self._since_cleared(task):
            self._since = task
        if not one.went_back:
            self._counted.append(one)
        if call.task < self._since and one.turn == self._turn:
            call.grads, call.norms = {}, []
        one.went_back, one.task, call.task, self._task = True, task, task, task

    def _since_cleared(self, task: int) -> bool:
        """Whether zero_grad() came since, so that what went back before is no part of what the next update is made of.

        Nor is what was asked for in between, as of a gradient that a loss is made of: that fills no parameter's.
        """
        earlier = any(other.turn == self._turn and other.task != task for other in self._counted)
        return earlier and all(map(_is_cleared, self._parameters))

    def _drop_cleared(self) -> None:
        self._counted[:] = [one for one in self._counted if one.turn != self._turn or one.task >= self._since]

    def _compact(self) -> None:
        for call in self._fresh:
            call.compact()
        self._fresh.clear()


def _is_cleared(parameter: nn.Parameter) -> bool:
    grad = parameter.grad
    return grad is None or not dense(grad).any()


@dataclass
class Flow:
    """Which call a tensor on its way to an activation comes from; no tensor is kept for it."""

    sources: dict[int, tuple[ReferenceType[Tensor], int, WatchedLayer, Call]] = field(default_factory=dict)
    nodes: dict[tuple[Any, int], tuple[WatchedLayer, Call]] = field(default_factory=dict)

    def put(self, h: Tensor, layer: WatchedLayer, call: Call) -> None:
        """This tensor is a layer's output, or as good as it."""
        self.sources[id(h)] = (ref(h), h._version, layer, call)
        if h.grad_fn is not None:
            self.nodes[h.grad_fn, h.output_nr] = (layer, call)

    def source(self, h: Tensor) -> tuple[WatchedLayer | None, Call | None]:
        """Where a tensor comes from; nobody knows of one that was changed in place since."""
        kept, version, layer, call = self.sources.get(id(h), (None, 0, None, None))
        # Another tensor may have come to have the id of one that is gone.
        if kept is not None and kept() is h:
            return (None, None) if h._version != version else (layer, call)
        node, output = h.grad_fn, h.output_nr
        wrapped = False
        while type(node).__name__ == "BackwardHookFunctionBackward":
            # Somebody's full backward hooks: torch hands on the same numbers in another tensor.
            node, output = node.next_functions[output]  # type: ignore[union-attr]
            wrapped = True
        return self.nodes.get((node, output), (None, None)) if wrapped else (None, None)


def goes_back() -> bool:
    """Whether a backward pass is under way, in which checkpoints run forward once more."""
    return torch._C._current_graph_task_id() != -1


def looking() -> bool:
    """Whether a forward pass is one to look at: made for a gradient, and not while a compiler traces it."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    return torch.is_grad_enabled() and torch._C._functorch.peek_interpreter_stack() is None
