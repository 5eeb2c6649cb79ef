"""Optimizers against update rules written out in numpy, and against the closed form of linear regression."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradstab.config import OPTIONS
from gradstab.errors import ConfigError
from gradstab.optimizers import OPTIMIZERS, Combined, CoordinateDescent, build_optimizer
from tests.conftest import Compose

Rule = Callable[[float, float, dict[str, float], int], float]
DECAY = 0.1


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3), (4,), (4, 4), (4,), (2, 4), (2,)]
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in shapes]


def blocks_of(params: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    return [list(params[i : i + 2]) for i in range(0, len(params), 2)]


def build(name: str, params: Sequence[nn.Parameter], seed: int = 0, **knobs: Any) -> torch.optim.Optimizer:
    return build_optimizer(
        name,
        params,
        blocks=blocks_of(params),
        hidden_matrices=[params[0], params[2]],
        generator=torch.Generator().manual_seed(seed),
        **OPTIONS["optimizer"][name](name=name).knobs | knobs,
    )


def set_grads(params: Sequence[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(1000 + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)


def values(params: Sequence[nn.Parameter]) -> list[Tensor]:
    return [p.detach().clone() for p in params]


# ------------------------------------------------------------------------------------- torch's optimizers


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop", "adagrad"])
def test_the_least_eps_that_is_allowed_is_enough_where_gradients_are_0(
    configure: Compose, name: str, precision: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        configure(f"optimizer={name}", f"precision={precision}", "optimizer.eps=1e-60")
    least = float(str(caught.value).partition("allowed: at least ")[2])

    def moved(eps: float) -> Tensor:
        weight = nn.Parameter(torch.ones(4, dtype=getattr(torch, precision)))
        weight.grad = torch.zeros_like(weight)
        build_optimizer(
            name,
            [weight],
            blocks=[[weight]],
            hidden_matrices=[],
            generator=torch.Generator(),
            **OPTIONS["optimizer"][name](name=name).knobs | {"eps": eps, "weight_decay": 0.0},
        ).step()
        return weight.detach()

    assert torch.equal(moved(least), torch.ones(4, dtype=getattr(torch, precision)))
    # Kernels that compute in float32 whatever the weights are would take less in bfloat16.
    assert precision == "bfloat16" or moved(least / 3).isnan().all()


def sgd(w: float, g: float, _s: dict[str, float], _t: int) -> float:
    return w - 0.1 * (g + DECAY * w)


def momentum(w: float, g: float, s: dict[str, float], _t: int) -> float:
    s["v"] = 0.8 * s.get("v", 0) + g + DECAY * w
    return w - 0.1 * s["v"]


def nesterov(w: float, g: float, s: dict[str, float], _t: int) -> float:
    g += DECAY * w
    s["v"] = 0.8 * s.get("v", 0) + g
    return w - 0.1 * (g + 0.8 * s["v"])


def adam_step(g: float, s: dict[str, float], t: int) -> float:
    s["m"] = 0.7 * s.get("m", 0) + 0.3 * g
    s["v"] = 0.8 * s.get("v", 0) + 0.2 * g * g
    return 0.1 * (s["m"] / (1 - 0.7**t)) / (math.sqrt(s["v"] / (1 - 0.8**t)) + 0.01)


def adam(w: float, g: float, s: dict[str, float], t: int) -> float:
    return w - adam_step(g + DECAY * w, s, t)


def adamw(w: float, g: float, s: dict[str, float], t: int) -> float:
    return w * (1 - 0.1 * DECAY) - adam_step(g, s, t)


def rmsprop(w: float, g: float, s: dict[str, float], _t: int) -> float:
    g += DECAY * w
    s["v"] = 0.9 * s.get("v", 0) + 0.1 * g * g
    s["b"] = 0.5 * s.get("b", 0) + g / (math.sqrt(s["v"]) + 0.01)
    return w - 0.1 * s["b"]


def adagrad(w: float, g: float, s: dict[str, float], _t: int) -> float:
    g += DECAY * w
    s["v"] = s.get("v", 0) + g * g
    return w - 0.1 * g / (math.sqrt(s["v"]) + 0.01)


COMMON = {"lr": 0.1, "weight_decay": DECAY}
MOMENTS = {"beta1": 0.7, "beta2": 0.8, "eps": 0.01}
RULES: dict[str, tuple[Rule, dict[str, float]]] = {
    "sgd": (sgd, {}),
    "momentum": (momentum, {"momentum": 0.8}),
    "nesterov": (nesterov, {"momentum": 0.8}),
    "adam": (adam, MOMENTS),
    "adamw": (adamw, MOMENTS),
    "rmsprop": (rmsprop, {"alpha": 0.9, "eps": 0.01, "momentum": 0.5}),
    "adagrad": (adagrad, {"eps": 0.01}),
}


@pytest.mark.parametrize("name", RULES)
def test_four_steps_follow_the_update_rule_entry_by_entry(name: str) -> None:
    rule, knobs = RULES[name]
    assert OPTIONS["optimizer"][name](name=name).knobs.keys() == {*COMMON, *knobs}
    params = parameters()
    optimizer = build(name, params, **COMMON, **knobs)
    wanted = [p.detach().numpy().ravel().tolist() for p in params]
    states: list[list[dict[str, float]]] = [[{} for _ in entries] for entries in wanted]
    for t in range(1, 5):
        set_grads(params, t)
        for entries, state, p in zip(wanted, states, params, strict=True):
            assert p.grad is not None
            for i, g in enumerate(p.grad.numpy().ravel().tolist()):
                entries[i] = rule(entries[i], g, state[i], t)
        optimizer.step()
        for entries, p in zip(wanted, params, strict=True):
            np.testing.assert_allclose(p.detach().numpy().ravel(), entries, rtol=1e-10)


@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov", "adam", "adamw", "adagrad"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_fused_kernels_are_used_where_torch_has_them(name: str, dtype: torch.dtype) -> None:
    params = [nn.Parameter(p.detach().to(dtype)) for p in parameters()]
    group = build(name, params).param_groups[0]
    assert group["fused"] is True


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "adagrad"])
def test_without_a_fused_kernel_the_default_is_used(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from gradstab import optimizers

    cls = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "adagrad": "Adagrad"}[name]
    real = getattr(torch.optim, cls)

    class without_fused(real):  # type: ignore[misc]
        def __init__(self, params: Any, **knobs: Any) -> None:
            if knobs.get("fused"):
                raise RuntimeError("`fused=True` requires all the params to be Tensors of supported devices")
            super().__init__(params, **knobs)

    monkeypatch.setattr(torch.optim, cls, without_fused)
    params = parameters()
    optimizer = build(name, params)
    assert not optimizer.param_groups[0]["fused"]
    set_grads(params, 0)
    before = values(params)
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, params, strict=True))
    assert optimizers._has_fused(real, (torch.device("cpu"), torch.float64))


@pytest.mark.parametrize("name", [name for name in OPTIONS["optimizer"] if name != "coordinate_descent"])
def test_linear_regression_converges(name: str) -> None:
    """y = x with one 2×2 matrix, which has to become one whose columns sum to 1."""
    x = torch.tensor([[-1.5], [-0.5], [0.5], [1.5]], dtype=torch.float64)
    params = [nn.Parameter(torch.full((2, 2), 0.4, dtype=torch.float64))]
    if name != "muon":
        params.append(nn.Parameter(torch.zeros((), dtype=torch.float64)))
    optimizer = build_optimizer(
        name,
        params,
        blocks=[params],
        hidden_matrices=params[:1],
        generator=torch.Generator(),
        **OPTIONS["optimizer"][name](name=name).knobs | {"lr": 0.02, "weight_decay": 0.0},
    )
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = ((x.expand(4, 2) @ params[0] - x.expand(4, 2)) ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", ["sgd", "coordinate_descent"])
@pytest.mark.parametrize("lr", [0.05, 0.3])
def test_gradient_descent_on_a_line_contracts_by_the_closed_form(name: str, lr: float) -> None:
    """x = 1, 2, 3, 4, y = x, one weight: each step multiplies the error by 1 - lr·λ, with λ = 2·mean x² = 15."""
    x = torch.arange(1.0, 5.0, dtype=torch.float64)
    weight = nn.Parameter(torch.tensor([0.0], dtype=torch.float64))
    optimizer = build_optimizer(
        name,
        [weight],
        blocks=[[weight]],
        hidden_matrices=[],
        generator=torch.Generator(),
        **OPTIONS["optimizer"][name](name=name).knobs | {"lr": lr},
    )
    for step in range(1, 8):
        optimizer.zero_grad()
        ((weight * x - x) ** 2).mean().backward()
        optimizer.step()
        assert weight.item() - 1 == pytest.approx(-((1 - 15 * lr) ** step), rel=1e-10)


# ------------------------------------------------------------------------------------- state, for every one

STATEFUL: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in OPTIMIZERS if name != "coordinate_descent"),
    *(
        ("coordinate_descent", {"block": block, "order": order})
        for block in ("layer", "coordinate")
        for order in ("cyclic", "random", "gauss_southwell")
    ),
]


@pytest.mark.parametrize(("name", "knobs"), STATEFUL)
def test_a_resumed_run_is_identical_and_so_is_a_second_one(name: str, knobs: dict[str, Any]) -> None:
    def go(params: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer, steps: range) -> list[Tensor]:
        for step in steps:
            set_grads(params, step)
            optimizer.step()
        return values(params)

    params = parameters()
    optimizer = build(name, params, **knobs)
    go(params, optimizer, range(5))
    saved, weights = copy.deepcopy(optimizer.state_dict()), values(params)
    wanted = go(params, optimizer, range(5, 12))

    second = parameters()
    assert all(map(torch.equal, go(second, build(name, second, **knobs), range(12)), wanted))

    resumed = [nn.Parameter(weight) for weight in weights]
    again = build(name, resumed, seed=99, **knobs)
    again.param_groups[0]["lr"] = 123.0
    again.load_state_dict(saved)
    assert again.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    assert all(map(torch.equal, go(resumed, again, range(5, 12)), wanted))


@pytest.mark.parametrize(("name", "knobs"), STATEFUL)
def test_gradients_of_none_are_taken_as_nothing_to_do(name: str, knobs: dict[str, Any]) -> None:
    params = parameters()
    optimizer = build(name, params, **knobs)
    before = values(params)
    optimizer.step()
    assert all(map(torch.equal, before, params))


@pytest.mark.parametrize(("name", "knobs"), [("muon", {}), ("coordinate_descent", {})])
def test_a_closure_is_called_once_with_gradients_on(name: str, knobs: dict[str, Any]) -> None:
    params = parameters()
    optimizer = build(name, params, **knobs)
    calls = []

    def closure() -> float:
        optimizer.zero_grad()
        loss = sum((p.square().sum() for p in params), torch.zeros(()))
        loss.backward()
        calls.append(loss.item())
        return loss.item()

    assert optimizer.step(closure) == calls[0]
    assert len(calls) == 1


# --------------------------------------------------------------------------------------------------- muon


def test_muon_is_torchs_muon_on_hidden_matrices_and_adamw_on_the_rest() -> None:
    knobs = {"lr": 0.03, "momentum": 0.9, "weight_decay": 0.1, "adamw_lr": 0.002}
    params, twins = parameters(), parameters()
    optimizer = build("muon", params, **knobs)
    muon = torch.optim.Muon([twins[0], twins[2]], lr=0.03, momentum=0.9, weight_decay=0.1)
    adamw = torch.optim.AdamW([twins[i] for i in (1, 3, 4, 5)], lr=0.002, weight_decay=0.1)
    for step in range(4):
        set_grads(params, step)
        set_grads(twins, step)
        optimizer.step()
        muon.step()
        adamw.step()
    for p, twin in zip(params, twins, strict=True):
        torch.testing.assert_close(p, twin, rtol=1e-12, atol=0)


def test_muons_update_is_near_orthogonal_whatever_the_gradients_scale() -> None:
    params = parameters()
    optimizer = build("muon", params, lr=1.0, momentum=0.0)
    before = values(params)[2]
    set_grads(params, 0)
    assert params[2].grad is not None
    params[2].grad *= 1e8
    optimizer.step()
    singular = np.linalg.svd((before - params[2].detach()).numpy(), compute_uv=False)
    assert singular.min() > 0.4
    assert singular.max() < 1.3


def test_muons_groups_are_those_of_its_parts_also_after_loading() -> None:
    params = parameters()
    optimizer = build("muon", params)
    assert isinstance(optimizer, Combined)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 0.5**i)
    set_grads(params, 0)
    optimizer.step()
    scheduler.step()
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    scheduler.step()
    assert [part.param_groups[0]["lr"] for part in optimizer.parts] == [0.02 / 4, 0.001 / 4]
    assert all(a is b.param_groups[0] for a, b in zip(optimizer.param_groups, optimizer.parts, strict=True))
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)


def test_muon_takes_neither_convolutions_nor_columns() -> None:
    kernel, column, matrix = (nn.Parameter(torch.ones(shape)) for shape in [(4, 3, 5, 5), (4, 1), (4, 3)])
    params = [kernel, column, matrix]
    knobs = OPTIONS["optimizer"]["muon"](name="muon").knobs
    for hidden in (params, [matrix]):
        optimizer = build_optimizer(
            "muon", params, blocks=[params], hidden_matrices=hidden, generator=torch.Generator(), **knobs
        )
        first, second = (group["params"] for group in optimizer.param_groups)
        assert [id(p) for p in first] == [id(matrix)]
        assert [id(p) for p in second] == [id(kernel), id(column)]


def test_muon_without_hidden_matrices_or_in_an_old_torch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    params = parameters()
    knobs = OPTIONS["optimizer"]["muon"](name="muon").knobs
    with pytest.raises(ConfigError, match=r"^optimizer=muon: .*has none"):
        build_optimizer("muon", params, blocks=[params], hidden_matrices=[], generator=torch.Generator(), **knobs)
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ConfigError, match=r"^optimizer=muon: .*torch 2\.9"):
        build("muon", params)


# ------------------------------------------------------------------------------------- coordinate descent


def moved(params: Sequence[nn.Parameter], before: Sequence[Tensor]) -> list[list[int]]:
    return [torch.nonzero((p != b).ravel()).ravel().tolist() for p, b in zip(params, before, strict=True)]


def test_cyclic_layers_take_turns() -> None:
    params = parameters()
    optimizer = build("coordinate_descent", params, block="layer", order="cyclic", lr=0.5)
    for step in range(7):
        before = values(params)
        set_grads(params, step)
        optimizer.step()
        for i, (p, b) in enumerate(zip(params, before, strict=True)):
            assert p.grad is not None
            assert torch.equal(p, b - 0.5 * p.grad if i // 2 == step % 3 else b)


def test_cyclic_coordinates_take_turns_through_all_parameters() -> None:
    params = [nn.Parameter(torch.zeros(shape)) for shape in [(2, 2), (), (3,)]]
    optimizer = build_optimizer(
        "coordinate_descent",
        params,
        blocks=[params],
        hidden_matrices=[],
        generator=torch.Generator(),
        lr=0.5,
        block="coordinate",
        order="cyclic",
    )
    places = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (2, 0), (2, 1), (2, 2)]
    for which, entry in places * 2:
        before = values(params)
        for p in params:
            p.grad = torch.full_like(p, 2.0)
        optimizer.step()
        assert moved(params, before) == [[entry] if i == which else [] for i in range(3)]
        assert params[which].detach().ravel()[entry] == before[which].ravel()[entry] - 1.0


@pytest.mark.parametrize("block", ["layer", "coordinate"])
def test_random_blocks_follow_the_generator_and_are_uniform(block: str) -> None:
    params = parameters()
    n = 3 if block == "layer" else sum(p.numel() for p in params)
    optimizer = build("coordinate_descent", params, seed=7, block=block, order="random", lr=1e-3)
    generator = torch.Generator().manual_seed(7)
    owner = [0] * 16 + [1] * 20 + [2] * 10 if block == "layer" else list(range(n))
    counts = [0] * n
    for step in range(20 * n if block == "layer" else 60):
        before = torch.cat([value.ravel() for value in values(params)])
        set_grads(params, step)
        optimizer.step()
        after = torch.cat([value.ravel() for value in values(params)])
        (chosen,) = {owner[i] for i in torch.nonzero(before != after).ravel().tolist()}
        assert chosen == torch.randint(n, (), generator=generator).item()
        counts[chosen] += 1
    if block == "layer":
        assert min(counts) > 10
    else:
        assert max(counts) < 10


@pytest.mark.parametrize("factor", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gauss_southwell_takes_the_layer_of_the_largest_gradient(factor: float, dtype: torch.dtype) -> None:
    params = [nn.Parameter(p.detach().to(dtype)) for p in parameters()]
    for step in range(8):
        optimizer = build("coordinate_descent", params, block="layer", order="gauss_southwell", lr=1.0 / factor)
        before = values(params)
        generator = torch.Generator().manual_seed(step)
        for p in params:
            p.grad = (torch.randn(p.shape, generator=generator, dtype=torch.float64) * factor).to(dtype)
        optimizer.step()
        grads = [p.grad.double().numpy() for p in params if p.grad is not None]
        norms = [np.hypot(np.linalg.norm(grads[i]), np.linalg.norm(grads[i + 1])) for i in (0, 2, 4)]
        best = int(np.argmax(norms))
        for i, (p, b) in enumerate(zip(params, before, strict=True)):
            assert torch.equal(p, b) == (i // 2 != best)


def test_gauss_southwell_takes_the_coordinate_of_the_largest_gradient() -> None:
    params = parameters()
    optimizer = build("coordinate_descent", params, block="coordinate", order="gauss_southwell", lr=0.5)
    for step in range(8):
        before = values(params)
        set_grads(params, step)
        optimizer.step()
        flat = np.concatenate([p.grad.numpy().ravel() for p in params if p.grad is not None])
        best = int(np.abs(flat).argmax())
        wanted = np.concatenate([value.numpy().ravel() for value in before])
        wanted[best] -= 0.5 * flat[best]
        np.testing.assert_array_equal(np.concatenate([p.detach().numpy().ravel() for p in params]), wanted)


@pytest.mark.parametrize("block", ["layer", "coordinate"])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_blocks_that_rest_are_untouched_by_gradients_that_are_not_finite(block: str, bad: float) -> None:
    for order, choice in [("cyclic", 0), ("gauss_southwell", 1)]:
        params = parameters()
        optimizer = build("coordinate_descent", params, block=block, order=order)
        before = values(params)
        set_grads(params, 0)
        assert params[2].grad is not None
        params[2].grad[1, 1] = bad
        optimizer.step()
        touched = [i for i, entries in enumerate(moved(params, before)) if entries]
        assert touched == ([2 * choice, 2 * choice + 1] if block == "layer" else [2 * choice])


def test_coordinate_descent_refuses_blocks_that_leave_parameters_out() -> None:
    params = parameters()
    with pytest.raises(AssertionError):
        CoordinateDescent(params, [params[:3]], torch.Generator(), lr=0.1, block="layer", order="cyclic")


@pytest.mark.parametrize("order", ["cyclic", "gauss_southwell"])
def test_coordinate_descent_solves_a_quadratic_as_gauss_seidel_does(order: str) -> None:
    """On ½wᵀAw - bᵀw with unit diagonal, exact steps of lr 1 on one coordinate are Gauss-Seidel's."""
    a = np.array([[1.0, 0.4, 0.2], [0.4, 1.0, -0.3], [0.2, -0.3, 1.0]])
    b = np.array([1.0, -2.0, 0.5])
    weight = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = build_optimizer(
        "coordinate_descent",
        [weight],
        blocks=[[weight]],
        hidden_matrices=[],
        generator=torch.Generator(),
        lr=1.0,
        block="coordinate",
        order=order,
    )
    wanted = np.zeros(3)
    for step in range(60):
        slope = a @ wanted - b
        i = step % 3 if order == "cyclic" else int(np.abs(slope).argmax())
        wanted[i] -= slope[i]
        weight.grad = torch.from_numpy(a) @ weight.detach() - torch.from_numpy(b)
        optimizer.step()
        if step < 12:
            np.testing.assert_allclose(weight.detach().numpy(), wanted, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(weight.detach().numpy(), np.linalg.solve(a, b), rtol=1e-8)
