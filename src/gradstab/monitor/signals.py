"""What one watched step shows of every layer: the gradient at h, and the activation, over all its forward passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from gradstab.measure import quantities as q
from gradstab.monitor import readings, tensors
from gradstab.monitor.gradients import WatchedNorms
from gradstab.monitor.judged_writer import REACH
from gradstab.monitor.layers import WatchedLayer, carries, is_elementwise, is_norm
from gradstab.monitor.passes import Flow, Pass, Passes, goes_back, looking
from gradstab.monitor.readings import Call
from gradstab.monitor.settings import Conventions
from gradstab.monitor.streams import Latest, Streams


class Signals:
    """Hooks on a network, in place during watched steps only; they read, and change nothing.

    ``order`` are the layers in the order of their first calls since :meth:`start`, without those that only a
    checkpoint's recomputation has shown; ``seen`` is whether any layer was called. A forward pass of the network is one
    micro-batch; where the network itself is never called, :meth:`begin_pass` says when one begins. ``roots`` are the
    autograd nodes of the outputs of layers' first calls, kept where ``start`` was told to, {} where they tell nothing.
    ``compiled`` is whether a compiler was met, which runs no hooks; ``refusals`` are the classes of activations that
    could not be asked for a slope, with the reason.
    A copy of a watched network, or a pickled one, has hooks that belong to an inert twin of this and do nothing.
    """

    def __init__(self, model: nn.Module, layers: Sequence[WatchedLayer], conventions: Conventions) -> None:
        self.order: list[WatchedLayer] = []
        self.roots: dict[int, Any] = {}
        self._keeps_roots = True
        self.seen, self.compiled, self.finds_passes = False, False, True
        self.refusals: dict[str, str] = {}
        self._model = model
        self._layers = {id(layer.module): layer for layer in layers}
        self._conventions = conventions
        self._given = {id(layer.activation): layer for layer in layers if layer.activation is not None}
        others = [module for module in model.modules() if id(module) not in self._layers]
        self._phis = [m for m in others if id(m) in self._given or is_elementwise(m, conventions.activations)]
        self._carriers = [m for m in others if carries(m) and id(m) not in self._given]
        self.streams = Streams(model, layers, conventions.batch_dim)
        self._handles: list[RemovableHandle] = []
        self._parameters: list[nn.Parameter] = []
        self._forget()

    def __deepcopy__(self, _memo: object) -> Signals:
        return _inert()

    def __reduce__(self) -> tuple[Callable[[], Signals], tuple[()]]:
        return _inert, ()

    @property
    def active(self) -> bool:
        """Whether hooks are in place."""
        return bool(self._handles)

    def start(self) -> None:
        """Put hooks in place for the step to come."""
        self.order, self.seen, self._keeps_roots = [], False, True
        self._forget()
        # A functional call puts other tensors in their place while it runs.
        self._parameters = list(self._model.parameters())
        if self.finds_passes:
            self._handles.append(self._model.register_forward_pre_hook(self._on_input, with_kwargs=True))
            self._handles.append(self._model.register_forward_hook(self._on_output, always_call=True))
        for layer in self._layers.values():
            self._handles.append(layer.module.register_forward_hook(self._on_layer))
        for module in self.streams.modules():
            self._handles.append(module.register_forward_pre_hook(self._on_entry, with_kwargs=True))
        for carrier in self._carriers:
            self._handles.append(carrier.register_forward_hook(self._on_carrier))
        for phi in self._phis:
            self._handles.append(phi.register_forward_pre_hook(self._on_phi_input))
            self._handles.append(phi.register_forward_hook(self._on_phi))

    def stop(self) -> None:
        """Take all hooks away, and let go of what they kept."""
        if not self._handles:
            return
        for handle in self._handles:
            handle.remove()
        self._handles, self.roots = [], {}
        self._forget()

    def _forget(self) -> None:
        self.passes, self._flow, self._entered, self._depth = Passes(), Flow(), dict[int, Call](), 0
        self._latest: Latest | None = None
        self.streams.forget()

    def pass_by_hand(self) -> None:
        """From now on passes are told by :meth:`begin_pass`: the network itself may not be what is called."""
        self.finds_passes = False
        if self.active:
            self.stop()
            self.start()

    def begin_pass(self, inputs: object) -> None:
        """A forward pass on ``inputs`` begins: one of the micro-batches of a step, or its only batch."""
        if not self.active:
            return
        self._next(Pass(tensors.batch_size(inputs, self._conventions.batch_dim)))

    def _next(self, begun: Pass) -> Pass:
        self.passes.begin(begun, self._parameters)
        self._flow = Flow()
        return begun

    def read(
        self, layers: Sequence[WatchedLayer], hidden: int, stations: Mapping[int, int], scale: Tensor | None
    ) -> dict[str, Tensor]:
        """All quantities that hooks give, [layers] or [hidden]; NaN for a layer that showed none.

        What no layer showed is left out. ``stations`` are the modules, by id, at whose input the branches of the layers
        at these positions begin, and ``scale`` is the factor that a GradScaler put on the loss.
        """
        passes, reduction = self.passes.complete(), self._conventions.reduction
        found = readings.combine([one.calls for one in passes], layers, hidden, reduction, scale)
        if stations:
            found |= readings.on_streams([one.entries for one in passes], stations, found, reduction, scale)
        reach = readings.reach([one.outputs for one in passes], reduction, scale)
        return found if reach is None else found | {REACH: reach}

    def tell_ways(self, norms: WatchedNorms, optimizers: Sequence[Optimizer]) -> bool:
        """Tell ``norms`` by which ways gradients came, and look at no inputs but those that matter; is it news?"""
        whole = self.streams.stations is None
        if not self.roots or not norms.take_roots(self.roots, self.streams.entries, optimizers, anew=whole):
            return False
        # What is new may have inputs that were not looked at: once more at all.
        self.streams.stations = set(norms.stations.values()) if whole else None
        return True

    def _on_input(self, module: nn.Module, args: object, kwargs: object) -> None:
        if torch.compiler.is_compiling():
            self.compiled = True  # All that a compiler takes along.
            return
        if module is not self._model:
            return
        self._depth += 1
        current, going_back = self.passes.current, goes_back()
        # Within a call of its own (trees), and as a checkpoint runs again what was seen, no other pass begins.
        if self._depth > 1 or not looking() or (going_back and current is not None and not current.recomputed):
            return
        samples = tensors.batch_size((args, kwargs), self._conventions.batch_dim)
        if current is None or current.samples != samples or current.went_back:
            self._next(Pass(samples, recomputed=going_back))
        # Else as many samples as before, and no backward pass since: one batch, seen twice (siamese networks).

    def _on_output(self, module: nn.Module, _args: object, output: object) -> None:
        if torch.compiler.is_compiling() or module is not self._model:
            return
        self._depth = max(self._depth - 1, 0)
        if not self._depth:
            self.streams.take_output(self.passes, output, self._latest, self._keep_gradient)

    def _on_entry(self, module: nn.Module, args: object, kwargs: object) -> None:
        self.streams.take_input(self.passes, module, (args, kwargs))

    def _keep_gradient(self, tensor: Tensor, current: Pass, call: Call, output: int) -> None:
        # A tensor's hook and not retain_grad: an activation in place may follow; what is wanted is h's own.
        handle = tensor.register_hook(self.passes.keep_gradient(current, call, output))  # type: ignore[no-untyped-call]
        if tensor.is_leaf:
            self._handles.append(handle)  # A parameter that is given out as it is outlives the pass.

    def _on_layer(self, module: nn.Module, _args: object, output: object) -> None:
        if not looking():
            self.compiled |= torch.compiler.is_compiling()
            return
        if (layer := self._layers.get(id(module))) is None:
            return
        self.seen = True
        if not (outputs := tensors.outputs_of(module, output)):
            return
        h = outputs[0]
        self.passes.recomputes |= (going_back := goes_back())
        current = self.passes.current or self._next(Pass(None, implied=True))
        if current.implied and id(layer) in current.calls and not going_back and current.went_back:
            # A container that is never called itself: calls after a backward pass are the next micro-batch.
            current = self._next(Pass(None, implied=True))
        axis = tensors.batch_axis(h, self._conventions.batch_dim)
        samples = 1 if h.ndim < 2 else h.shape[axis] if current.samples is None else current.samples
        call = Call(samples)
        self._latest = Latest(ref(h), h._version, call)
        current.calls.setdefault(id(layer), []).append(call)
        if going_back and layer not in self.order:
            # Recomputed: topmost first, and in a graph of its own, which does not show what it hangs on.
            self._keeps_roots, self.roots = False, {}
        elif layer not in self.order:
            self.order.append(layer)
            if self._keeps_roots and h.grad_fn is not None:
                self.roots[id(layer)] = h.grad_fn
        if samples > 1 and h.ndim > 1 and h.shape[axis] == samples and not h.is_complex():
            call.correlation = q.correlation(h.detach().movedim(axis, 0))
        for i, tensor in enumerate(outputs):
            if tensor.requires_grad:
                self._keep_gradient(tensor, current, call, i)
        self._flow.put(h, layer, call)

    def _on_carrier(self, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        if not looking() or not args or not isinstance(output, Tensor):
            return
        layer, call = self._flow.source(args[0])
        if layer is not None and call is not None:
            self._flow.put(output, layer, call)
            layer.normalised |= is_norm(module)

    def _on_phi_input(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Slopes are taken before the activation runs: in place, it would overwrite its input."""
        h = args[0] if looking() and args and isinstance(args[0], Tensor) else None
        if h is None or not tensors.is_dense(h) or not h.is_floating_point():
            return
        layer, call = self._source(module, h)
        if layer is None or call is None or call.statistics is not None or layer.activation not in (None, module):
            return
        try:
            call.statistics = readings.slopes(module, h, layer.weights[0][0])
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:
            if not isinstance(module, self._conventions.activations):
                raise
            self.refusals[type(module).__name__] = f"{type(error).__name__}: {error}".splitlines()[0]
            return
        layer.activation = module
        self._entered[id(module)] = call

    def _on_phi(self, module: nn.Module, _args: object, output: object) -> None:
        call = self._entered.pop(id(module), None)
        if call is not None and call.statistics is not None and isinstance(output, Tensor):
            a = output.detach()
            call.statistics.mean, call.statistics.std = q.activation_mean(a), q.activation_std(a)

    def _source(self, module: nn.Module, h: Tensor) -> tuple[WatchedLayer | None, Call | None]:
        """The layer and the call that an activation's input comes from."""
        given = self._given.get(id(module))
        if given is not None:
            calls = self.passes.current.calls.get(id(given)) if self.passes.current else None
            return given, calls[-1] if calls else None
        return self._flow.source(h)


def _inert() -> Signals:
    """What the hooks of a copied network are bound to: it knows no layer."""
    return Signals(nn.Module(), (), Conventions())
