"""Coordinate descent: a gradient step on one block of parameters at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradstab.eager import eager


class CoordinateDescent(eager(Optimizer)):  # type: ignore[misc]
    """A gradient step on one block of parameters at a time, the rest held still (Wright 2015, arXiv:1502.04759).

    ``block`` is ``layer``, for the given blocks, which must split the parameters, or ``coordinate``, for single
    entries. ``order`` is ``cyclic``, ``random`` (uniform, with replacement) or ``gauss_southwell``: the block whose
    gradient has the largest norm, the first of equals, and one with NaN before all others. No gradient is read back
    to the host. A gradient of None counts as 0.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        blocks: Sequence[Sequence[nn.Parameter]],
        generator: torch.Generator,
        *,
        lr: float,
        block: str,
        order: str,
    ) -> None:
        super().__init__(parameters, {"lr": lr})
        self.parameters = list(parameters)
        self.generator = generator
        self.choose = _ORDERS[order]
        self.steps = 0
        self.offsets: list[int] | None = None
        if block == "coordinate":
            *self.offsets, self.n_blocks = accumulate((p.numel() for p in parameters), initial=0)
        else:
            assert {*chain(*blocks)} == {*parameters}
            block_of = {p: number for number, members in enumerate(blocks) for p in members}
            self.block_of = torch.tensor([block_of[p] for p in parameters], device=self.parameters[0].device)
            self.n_blocks = len(blocks)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        chosen = self.choose(self, grads).to(self.parameters[0].device)
        lr = self.param_groups[0]["lr"]
        for p, grad, block in zip(self.parameters, grads, self._blocks(), strict=True):
            # Not a product with a mask: 0 times the inf of a block that rests is NaN.
            p.sub_(lr * torch.where(chosen == block, grad, 0))
        self.steps += 1
        return loss

    def _blocks(self) -> Sequence[Tensor]:
        """The number of the block that each parameter, or each entry of it, is in."""
        if self.offsets is None:
            return self.block_of.unbind()
        return [
            torch.arange(start, start + p.numel(), device=p.device).view_as(p)
            for start, p in zip(self.offsets, self.parameters, strict=True)
        ]

    def block_sizes(self, grads: list[Tensor]) -> Tensor:
        """What is largest for the block to choose: |gradient| or a multiple of the squared norm, shape [n_blocks]."""
        flat = torch.cat([grad.reshape(-1) for grad in grads]).abs()
        if self.offsets is not None:
            return flat
        # The squares of an exploding gradient overflow, and all its blocks would be equal.
        peak = torch.where(flat.isfinite(), flat, 0).max().clamp_min(torch.finfo(flat.dtype).tiny)
        squares = torch.stack(torch._foreach_norm(torch._foreach_div(grads, peak))).square()
        return squares.new_zeros(self.n_blocks).index_add_(0, self.block_of, squares)

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = super().state_dict()
        return state | {"steps": self.steps, "generator": self.generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({key: state_dict[key] for key in ("state", "param_groups")})
        self.steps = state_dict["steps"]
        self.generator.set_state(state_dict["generator"].cpu())


_ORDERS: dict[str, Callable[[CoordinateDescent, list[Tensor]], Tensor]] = {
    "cyclic": lambda optimizer, _: torch.tensor(optimizer.steps % optimizer.n_blocks),
    "random": lambda optimizer, _: torch.randint(optimizer.n_blocks, (), generator=optimizer.generator),
    "gauss_southwell": lambda optimizer, grads: optimizer.block_sizes(grads).argmax(),
}
