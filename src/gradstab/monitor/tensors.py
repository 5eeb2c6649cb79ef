"""The tensors in what goes into a module and in what comes out of it."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence


def outputs_of(module: nn.Module, output: object) -> list[Tensor]:
    """What counts as a layer's output, its h first: the first tensor in nested tuples, lists and mappings.

    Of a recurrent module the last state too, which is where many networks take up its result. Tensors that are empty,
    nested, sparse, or no floating-point numbers show nothing.
    """
    found = (leaf.data if isinstance(leaf, PackedSequence) else leaf for leaf in leaves(output))
    chosen = list(found) if isinstance(module, nn.RNNBase) else list(itertools.islice(found, 1))
    return [h for h in chosen if is_dense(h) and (h.is_floating_point() or h.is_complex())]


def result_of(output: object, samples: int | None, dim: int) -> Tensor | None:
    """What a network made of so many samples: the only tensor with a gradient, beside a loss of its own; else None."""
    found = [leaf.data if isinstance(leaf, PackedSequence) else leaf for leaf in leaves(output)]
    found = [h for h in found if h.requires_grad and h.ndim > 0]
    if len(found) != 1 or not is_dense(found[0]) or not found[0].is_floating_point():
        return None
    return found[0] if found[0].shape[batch_axis(found[0], dim)] == samples else None


def computed_in(inputs: object) -> Tensor | None:
    """The first of these tensors, if it was computed from something that has a gradient."""
    x = next(leaves(inputs), None)
    computed = isinstance(x, Tensor) and is_dense(x) and x.is_floating_point() and x.grad_fn is not None
    return x if computed else None  # type: ignore[return-value]


def is_dense(h: Tensor) -> bool:
    """Whether a tensor holds its numbers one beside the other, and any at all."""
    return h.layout is torch.strided and not h.is_nested and h.numel() > 0


def leaves(value: object, above: tuple[object, ...] = ()) -> Iterator[Tensor | PackedSequence]:
    """The tensors in nested tuples, lists and mappings, of which one may hold another that it lies in."""
    if isinstance(value, PackedSequence | Tensor):
        yield value
    elif not any(value is other for other in above):
        for part in _parts(value):
            yield from leaves(part, (*above, value))


def _parts(value: object) -> Collection[object]:
    return value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()


def batch_size(inputs: object, dim: int) -> int | None:
    """The length of axis ``dim`` of the first tensor that has it; None where there is none."""
    for leaf in leaves(inputs):
        if isinstance(leaf, PackedSequence):
            return int(leaf.batch_sizes[0])
        if leaf.ndim > dim and not (leaf.is_nested and dim):
            return leaf.size(dim)
    return None


def batch_axis(h: Tensor, dim: int) -> int:
    """Where a layer's output has its samples: at ``dim``, or first where no axis for features would be left behind."""
    return dim if h.ndim > dim + 1 else 0
