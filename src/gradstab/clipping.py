"""Gradient clipping: pure rules on tensors, and the policies that apply them in place.

No rule reads a value back to the host or branches on one, so that ``torch.func.vmap`` can lift it and a CUDA graph
can capture it. What is within its limit is multiplied by exactly 1 and keeps every bit. What is not finite is left as
it is: clipping neither hides an explosion nor turns it into NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gradstab.measure.quantities import widest

State = dict[str, Tensor]


def joint_norm(values: Tensor) -> Tensor:
    """The Euclidean norm over the last dimension of ``values`` [..., n], shape [...], at least in float32.

    Entries are divided by the largest before they are squared: float32 squares overflow from 1.8e19 on, where an
    exploding gradient still has a norm. NaN where an entry is inf or NaN.
    """
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    peak = torch.linalg.vector_norm(values, math.inf, dim=-1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny)
    norm: Tensor = peak * torch.linalg.vector_norm(values / peak, dim=-1, keepdim=True)
    return norm.squeeze(-1)


def norm_scale(norm: Tensor, max_norm: Tensor | float) -> Tensor:
    """min(1, max_norm/norm), elementwise; 1 for a norm that is 0, inf or NaN, and for a max_norm that is NaN.

    Pascanu et al. 2013, arXiv:1211.5063.
    """
    return torch.where((norm > max_norm) & (norm < math.inf), max_norm / norm, 1)


def value_clip(grad: Tensor, _weight: Tensor, norm: Tensor, max_value: float) -> tuple[Tensor, Tensor]:
    """``grad`` with each finite entry clamped to ±max_value, and its norm, [], which was ``norm`` (Mikolov 2012)."""
    clipped = torch.where(grad.abs() == math.inf, grad, grad.clamp(-max_value, max_value))
    after = max_value * (clipped / max_value).square().sum().sqrt()
    return clipped, torch.where((clipped != grad).any(), after, norm)


def unit_clip(grad: Tensor, weight: Tensor, norm: Tensor, clipping: float, eps: float) -> tuple[Tensor, Tensor]:
    """``grad`` with each unit's norm at most clipping · max(‖unit's weights‖, eps), and its norm, which was ``norm``.

    A unit is an entry of the first dimension; a tensor with at most one dimension longer than 1 is one unit, as in
    the authors' code. Brock et al. 2021, arXiv:2102.06171.
    """
    units = 1 if grad.squeeze().ndim <= 1 else grad.shape[0]
    rows = grad.reshape(units, -1)
    norms = joint_norm(rows)
    scale = norm_scale(norms, clipping * joint_norm(weight.reshape(units, -1)).clamp_min(eps))
    clipped = (rows * scale.unsqueeze(-1)).to(grad.dtype).view_as(grad)
    return clipped, torch.where((scale < 1).any() & (norm < math.inf), joint_norm(norms * scale), norm)


def percentile_threshold(history: Tensor, percentile: float) -> Tensor:
    """The percentile (0 to 100) of the norms in ``history`` [W], interpolated linearly as by numpy; shape [].

    NaN marks an empty slot; with all slots empty the threshold is NaN. Seetharaman et al. 2020, arXiv:2007.14469.
    """
    ordered = history.sort(dim=-1).values
    held = (~history.isnan()).sum(dim=-1, keepdim=True)
    rank = percentile / 100 * (held - 1).clamp_min(0).to(history.dtype)
    lower, upper = (ordered.gather(-1, index.long()) for index in (rank.floor(), rank.ceil()))
    return torch.lerp(lower, upper, rank.frac()).squeeze(-1)


def percentile_update(state: State, norm: Tensor, *, percentile: float) -> tuple[State, Tensor]:
    """Put ``norm`` [] into the ring of norms unless it is not finite; the new state and the threshold [].

    ``state`` holds history [W] and count [], the norms seen so far.
    """
    history, count = state["history"], state["count"]
    slots = torch.arange(history.shape[-1], device=history.device)
    history = torch.where((slots == count % history.shape[-1]) & norm.isfinite(), norm, history)
    return {"history": history, "count": count + norm.isfinite()}, percentile_threshold(history, percentile)


def zclip_update(state: State, norm: Tensor, *, alpha: float, z: float, warmup_steps: int) -> tuple[State, Tensor]:
    """One step of ZClip: the new state, and the limit for ``norm``, inf where there is none; all of shape [].

    ``state`` holds mean, deviation and count. The first ``warmup_steps`` norms are not clipped and give mean and
    (population) deviation. From then on a norm whose z-score s = (norm - mean)/deviation is above z has the limit
    mean + z²·deviation/s, and running averages take in the clipped norm. A norm that is not finite leaves the state
    as it is. Kumar et al. 2025, arXiv:2504.02507. The deviation is kept instead of the variance, whose squares would
    overflow, and without the authors' 1e-6 beside it, so that vanishing gradients are treated as others are.
    """
    mean, deviation, count = state["mean"], state["deviation"], state["count"]
    warm = count >= warmup_steps
    gap = norm - mean
    score = gap / deviation
    limit = torch.where(warm & (score > z), mean + z * z * deviation / score, math.inf)
    taken = torch.minimum(norm, limit)

    seen = count.to(norm.dtype)
    first_mean = mean + gap / (seen + 1)
    first_deviation = torch.hypot(deviation * (seen / (seen + 1)).sqrt(), gap * seen.sqrt() / (seen + 1))
    next_mean = alpha * mean + (1 - alpha) * taken
    next_deviation = torch.hypot(math.sqrt(alpha) * deviation, math.sqrt(1 - alpha) * (taken - next_mean))

    finite = norm.isfinite()
    new = {
        "mean": torch.where(finite, torch.where(warm, next_mean, first_mean), mean),
        "deviation": torch.where(finite, torch.where(warm, next_deviation, first_deviation), deviation),
        "count": count + finite,
    }
    return new, limit


class Clip(Protocol):
    """A clipping policy, called once a step between the backward pass and the optimizer.

    ``state_dict`` gives copies of the tensors that carry over from step to step, and is empty where nothing does.
    """

    def __call__(self, grads: list[Tensor], norms: Tensor) -> Tensor:
        """Clip ``grads``, one for each parameter, in place; from their norms [P] before to those after, [P].

        A gradient that was not clipped has exactly the norm given.
        """

    def state_dict(self) -> State:
        """What :meth:`load_state_dict` needs to go on from here."""

    def load_state_dict(self, state_dict: State) -> None:
        """Go on where ``state_dict`` was taken."""


class _Policy:
    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.device = parameters[0].device
        self.state: State = {}

    def state_dict(self) -> State:
        return {key: value.clone() for key, value in self.state.items()}

    def load_state_dict(self, state_dict: State) -> None:
        self.state = {key: value.to(self.device, copy=True) for key, value in state_dict.items()}


class BlockClip(_Policy):
    """Each block's joint norm at most max_norm (You et al. 2017, arXiv:1708.03888)."""

    def __init__(self, parameters: Sequence[nn.Parameter], block_of: Sequence[int], *, max_norm: float) -> None:
        super().__init__(parameters)
        self.max_norm = max_norm
        self.block_of = torch.tensor(block_of, device=self.device)
        blocks = torch.arange(max(block_of) + 1, device=self.device)
        self.members = blocks.unsqueeze(-1) == self.block_of

    def __call__(self, grads: list[Tensor], norms: Tensor) -> Tensor:
        of_block = norm_scale(joint_norm(torch.where(self.members, norms, 0)), self.max_norm)
        scale = of_block[self.block_of]
        torch._foreach_mul_(grads, list(scale.unbind()))
        return norms * scale


class TensorClip(_Policy):
    """A rule that takes each gradient by itself: gradient, weight and norm to clipped gradient and its norm."""

    def __init__(
        self, parameters: Sequence[nn.Parameter], rule: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    ) -> None:
        super().__init__(parameters)
        self.parameters = parameters
        self.rule = rule

    def __call__(self, grads: list[Tensor], norms: Tensor) -> Tensor:
        clipped, after = zip(*map(self.rule, grads, [p.detach() for p in self.parameters], norms.unbind()), strict=True)
        torch._foreach_copy_(grads, list(clipped))
        return torch.stack(after).to(norms.dtype)


class GlobalClip(_Policy):
    """The norm of all gradients together at most a limit, which ``update`` may learn from the norms so far.

    ``start`` makes the first state, for the device of the first norm; ``update`` is given the state and a norm and
    returns the next state and the limit.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        start: Callable[[Tensor], State],
        update: Callable[[State, Tensor], tuple[State, Tensor | float]],
    ) -> None:
        super().__init__(parameters)
        self.start = start
        self.update = update

    def __call__(self, grads: list[Tensor], norms: Tensor) -> Tensor:
        total = joint_norm(norms)
        self.state = self.state or self.start(total)
        state, max_norm = self.update(self.state, total)
        # In place, because a captured CUDA graph reads and writes the same memory at every replay.
        for key, value in state.items():
            self.state[key].copy_(value)
        scale = norm_scale(total, max_norm)
        torch._foreach_mul_(grads, scale)
        return norms * scale


def _percentile(
    parameters: Sequence[nn.Parameter], _block_of: Sequence[int], *, percentile: float, window: int
) -> Clip:
    def start(norm: Tensor) -> State:
        # Norms may come in float32 at one step and in float64 at the next.
        history = torch.full((window,), math.nan, dtype=widest(norm.device), device=norm.device)
        return {"history": history, "count": torch.zeros_like(norm, dtype=torch.int64)}

    return GlobalClip(parameters, start, partial(percentile_update, percentile=percentile))


def _zclip(parameters: Sequence[nn.Parameter], _block_of: Sequence[int], **knobs: Any) -> Clip:
    def start(norm: Tensor) -> State:
        zero = torch.zeros_like(norm, dtype=widest(norm.device))
        return {"mean": zero, "deviation": zero.clone(), "count": zero.to(torch.int64)}

    return GlobalClip(parameters, start, partial(zclip_update, **knobs))


CLIPS: dict[str, Callable[..., Clip | None]] = {
    "none": lambda _parameters, _block_of: None,
    "norm": lambda parameters, _block_of, max_norm: GlobalClip(parameters, lambda _: {}, lambda s, _: (s, max_norm)),
    "value": lambda parameters, _block_of, **knobs: TensorClip(parameters, partial(value_clip, **knobs)),
    "layer": BlockClip,
    "agc": lambda parameters, _block_of, **knobs: TensorClip(parameters, partial(unit_clip, **knobs)),
    "percentile": _percentile,
    "zclip": _zclip,
}


def build_clip(name: str, parameters: Sequence[nn.Parameter], block_of: Sequence[int], **knobs: Any) -> Clip | None:
    """The policy ``name`` for the gradients of ``parameters``, or None for ``none``.

    ``block_of[i]`` is the index of the layer that parameter i belongs to. Norms given to the policy are best taken in
    float64, in which those of any float32 gradient are finite.
    """
    return CLIPS[name](parameters, block_of, **knobs)
