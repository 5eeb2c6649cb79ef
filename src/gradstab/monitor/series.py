"""Which watched layers stand in series, as a line over depth supposes; branches, heads and other networks do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer

from gradstab.monitor.layers import WatchedLayer

PRIME = 2**61 - 1


def in_series(
    layers: Sequence[WatchedLayer],
    chosen: Collection[int],
    roots: Mapping[int, Any],
    optimizers: Sequence[Optimizer],
) -> list[int]:
    """The longest chain of the ``chosen`` positions of ``layers`` in which each layer's output feeds the next.

    ``layers`` are in the order of their calls; ``roots`` has the autograd node of the output of each, by id, where it
    has one. A chain stays with the layers of one optimizer: a discriminator stands above its generator, but what it
    learns is not the same loss.
    """
    above = _ancestors(layers, roots)
    owner = {id(p): i for i, o in enumerate(optimizers) for group in o.param_groups for p in group["params"]}
    # A frozen layer, None, is no optimizer's and goes with any.
    owners = [
        owner.get(id(layer.parameters[0]), -1) if any(p.requires_grad for p in layer.parameters) else None
        for layer in layers
    ]
    chains: dict[int, list[int]] = {}
    for i in sorted(chosen):
        if id(layers[i]) in roots:
            fitting = [j for j in chains if None in (owners[i], owners[j]) or owners[i] == owners[j]]
            below = (chains[j] for j in fitting if above[i] >> j & 1)
            chains[i] = [*max(below, key=len, default=[]), i]
            if owners[i] is None and len(chains[i]) > 1:
                owners[i] = owners[chains[i][-2]]
    return max(chains.values(), key=len, default=[])


@dataclass(frozen=True)
class Ways:
    """The ways on which gradients go down a chain: where each node stands, from below, and those that all ways pass.

    They go from the last layer that is computed from the chain down to the lowest ones that the chain's first is
    computed from, an embedding, say; to itself, where there is none. Empty where the graph does not show its output.
    """

    places: Mapping[Any, int]
    shared: Collection[Any]

    @classmethod
    def along(cls, layers: Sequence[WatchedLayer], chain: Sequence[int], roots: Mapping[int, Any]) -> Ways:
        """Those of a ``chain`` of at least one."""
        above = _ancestors(layers, roots)
        top = max(i for i, layer in enumerate(layers) if id(layer) in roots and above[i] >> chain[-1] & 1)
        order = _from_below(roots[id(layers[top])])
        below = [i for i in range(len(layers)) if i != chain[0] and above[chain[0]] >> i & 1 and id(layers[i]) in roots]
        lowest = [i for i in below if not any(j != i and above[i] >> j & 1 for j in below)] or [chain[0]]
        ends = {roots[id(layers[i])] for i in lowest}
        # How many paths lead from each node to the lowest layers, and from the top to each node; one that all pass has
        # as many as there are. Modulo a large prime, as they may double with every block.
        down = dict.fromkeys(order, 0)
        up = dict.fromkeys(order, 0)
        if roots[id(layers[chain[0]])] not in down:
            return cls({}, ())
        down |= dict.fromkeys(ends, 1)
        up[order[-1]] = 1
        for node in order:
            if node not in ends:
                down[node] = sum(down[parent] for parent in _parents(node)) % PRIME
        for node in reversed(order):
            for parent in _parents(node):
                up[parent] = (up[parent] + up[node]) % PRIME
        whole = down[order[-1]]
        shared = {node for node in order if up[node] * down[node] % PRIME == whole}
        return cls({node: place for place, node in enumerate(order)}, shared)


def on_every_path(
    layers: Sequence[WatchedLayer], chain: Sequence[int], roots: Mapping[int, Any], entries: Mapping[int, Any]
) -> tuple[list[int], dict[int, int]]:
    """Those of a ``chain`` whose gradient tells of all below, and at which module's input, by id, it does for some.

    Past a layer in a branch leads a skip path: its δ may be as small as the branch is, and others get their gradient
    all the same. What all gradients pass is what goes into the branch, as far as it goes into a module as well:
    ``entries`` have the nodes of that. The first layer that follows stands for it.
    """
    if len(chain) < 2:
        return list(chain), {}
    ways = Ways.along(layers, chain, roots)
    nodes = {i: roots[id(layers[i])] for i in chain}
    # An activation in place can hide an output's node: nothing is known of such a layer.
    own = [i for i in chain if nodes[i] not in ways.places or nodes[i] in ways.shared]
    shared = {ways.places[node]: module for module, node in entries.items() if node in ways.shared}
    taken = {ways.places[nodes[i]] for i in own if nodes[i] in ways.places}
    stations: dict[int, int] = {}
    for i in chain:
        if i not in own:
            place = max((p for p in (*shared, *taken) if p < ways.places[nodes[i]]), default=-1)
            if place not in taken and place in shared:
                stations[i] = shared[place]
                taken.add(place)
    return sorted([*own, *stations]), stations


def _parents(node: Any) -> list[Any]:
    return [parent for parent, _ in node.next_functions if parent is not None]


def _from_below(*roots: Any) -> list[Any]:
    """All nodes below these, each behind those that it was computed from; a single root is the last."""
    found: dict[Any, None] = {}
    stack = list(roots)
    while stack:
        unknown = [parent for parent in _parents(stack[-1]) if parent not in found] if stack[-1] not in found else []
        if unknown:
            stack += unknown
        else:
            found.setdefault(stack.pop())
    return list(found)


def in_order(layers: Sequence[WatchedLayer], met: Sequence[WatchedLayer]) -> list[WatchedLayer]:
    """The layers as they were ``met``; one that was not called as a module stays behind the one it is defined after."""
    place = {id(layer): position for position, layer in enumerate(met)}
    places: list[tuple[int, int]] = []
    for index, layer in enumerate(layers):
        before = places[-1][0] if places else -1
        places.append((place.get(id(layer), before), index))
    return [layers[index] for _, index in sorted(places)]


def _ancestors(layers: Sequence[WatchedLayer], roots: Mapping[int, Any]) -> list[int]:
    """For each layer the set, as bits, of the layers that its output was computed from, its own included."""
    users = Counter(id(p) for layer in layers for p in layer.parameters)
    # An activation in place can hide an output's node, but not that of a weight which no other layer has.
    weights = {id(p): i for i, layer in enumerate(layers) for p in layer.parameters if users[id(p)] == 1}
    outputs = {roots[id(layer)]: i for i, layer in enumerate(layers) if id(layer) in roots}
    found: dict[Any, int] = {}
    for node in _from_below(*outputs):
        bits = 1 << outputs[node] if node in outputs else 0
        variable = getattr(node, "variable", None)
        bits |= 1 << weights[id(variable)] if id(variable) in weights else 0
        for parent in _parents(node):
            bits |= found[parent]
        found[node] = bits
    return [found[roots[id(layer)]] if id(layer) in roots else 0 for layer in layers]
