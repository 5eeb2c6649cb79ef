"""Networks against forward passes written out in plain tensor operations, and against counted parameters."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradstab.activations import build_activation
from gradstab.config import network_options
from gradstab.config.registry import OPTIONS
from gradstab.models import MODELS, Model, TableConv2d, build_model, parameter_blocks, to_lenet_input
from gradstab.models.blocks import projections, residual_blocks

assert network_options  # importing it is what fills OPTIONS

TANH = partial(build_activation, "tanh")
RESIDUALS = ["none", "add", "scaled", "rezero"]
NORMS = [("none", None), ("batch", None), ("batch", "before"), ("batch", "after"), ("layer", None), ("layer", "after")]

# Table I of LeCun et al. (1998) as printed: a row for each of S2's six maps, a column for each of C3's sixteen.
TABLE_I = """
X...XXX..XXXX.XX
XX...XXX..XXXX.X
XXX...XXX..X.XXX
.XXX..XXXX..X.XX
..XXX..XXXX.XX.X
...XXX..XXXX.XXX
"""


def mlp(in_shape: tuple[int, ...] = (6,), **knobs: Any) -> Model:
    torch.manual_seed(0)
    return build_model("deep_mlp", in_shape=in_shape, out_features=3, activation=TANH, **knobs).double()


def lenet(name: str = "lenet5", in_shape: tuple[int, ...] = (1, 28, 28), **knobs: Any) -> Model:
    torch.manual_seed(0)
    return build_model(name, in_shape=in_shape, out_features=10, activation=TANH, **knobs).double()


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def set_alphas(model: Model) -> list[Tensor]:
    """Give ReZero's scalars values other than their first, 0, and return them."""
    alphas = [block.scale for block in residual_blocks(model) if isinstance(block.scale, nn.Parameter)]
    for index, alpha in enumerate(alphas):
        nn.init.constant_(alpha, 0.3 + index)
    return [alpha.detach() for alpha in alphas]


def scales(model: Model, residual: str) -> list[Any]:
    blocks = len(model.layers) - 2
    fixed = {"add": 1.0, "scaled": 1 / math.sqrt(max(blocks, 1))}
    return set_alphas(model) if residual == "rezero" else [fixed[residual]] * blocks


def normalise(x: Tensor, norm: str) -> Tensor:
    """Normalisation with γ = 1 and β = 0: over the batch (and positions), or over a sample's own entries."""
    dims = {"none": None, "batch": [0, *range(2, x.dim())], "layer": list(range(1, x.dim()))}[norm]
    if dims is None:
        return x
    variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-5)


def unit(
    h: Tensor, norm: str, position: str | None, p: float, pool: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    h = h if position == "after" else normalise(h, norm)
    a = torch.tanh(h)
    a = normalise(a, norm) if position == "after" else a
    a = a if pool is None else pool(a)
    return F.dropout(a, p) if p else a


def affine(layer: Any, a: Tensor) -> Tensor:
    return a @ layer.affine.weight.T + (0 if layer.affine.bias is None else layer.affine.bias)


# ------------------------------------------------------------------------------------------------- any model


def test_options_and_their_defaults_are_the_configs() -> None:
    compared = 0
    for name, builder in MODELS.items():
        fixed = {"in_shape", "out_features", "activation"}
        parameters = {k: p for k, p in inspect.signature(builder).parameters.items() if k not in fixed}
        knobs = OPTIONS["model"][name](name).knobs
        assert set(parameters) == set(knobs)
        for key, parameter in parameters.items():
            if key != "depth":  # resolved by then
                assert parameter.default == knobs[key]
                compared += 1
    assert compared == 11


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (mlp(depth=2, width=4), ["hidden", "hidden", "output"]),
        (mlp(depth=3, width=4, residual="add", norm="batch"), ["hidden", "hidden", "hidden", "output"]),
        (lenet(residual="rezero", norm="layer"), ["C1", "C3", "C5", "F6", "output"]),
        (lenet("lenet5_1998"), ["C1", "C3", "C5", "F6", "output"]),
    ],
)
def test_layers_are_modules_of_the_network_in_order_and_registered_once(model: Model, names: list[str]) -> None:
    assert [layer.name for layer in model.layers] == names
    modules = list(model.modules())
    assert len(list(model.named_modules(remove_duplicate=False))) == len(modules)
    for layer in model.layers:
        assert any(layer.affine is module for module in modules)
        assert (layer.activation is None) == (layer.name == "output")
        assert layer.activation is None or any(layer.activation is module for module in modules)
    called: list[nn.Module] = []
    watched = [module for layer in model.layers for module in (layer.affine, layer.activation) if module is not None]
    for module in watched:
        module.register_forward_hook(lambda module, *_: called.append(module))
    model(inputs(2, 6) if names[0] == "hidden" else inputs(2, 1, 28, 28))
    assert called == watched


@pytest.mark.parametrize("parametrized", [False, True])
@pytest.mark.parametrize(
    ("build", "others"),
    [
        (lambda: mlp(depth=2, width=4), 0),
        (lambda: mlp(depth=3, width=[4, 5, 5], norm="batch", residual="rezero"), 3 * 2 + 2 + 1),
        (lambda: lenet("lenet5_1998"), 4),
    ],
)
def test_parameter_blocks_hold_every_parameter_once(
    build: Callable[[], Model], others: int, parametrized: bool
) -> None:
    model = build()
    layers = len(model.layers)
    if parametrized:
        for layer in model.layers:
            nn.utils.parametrizations.weight_norm(layer.affine)
    blocks = parameter_blocks(model)
    assert len(blocks) == layers + bool(others)
    assert [len(block) for block in blocks[:layers]] == [3 if parametrized else 2] * layers
    assert not others or len(blocks[-1]) == others
    ids = [id(parameter) for block in blocks for parameter in block]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(parameter) for parameter in model.parameters()}
    for layer, block in zip(model.layers, blocks, strict=False):
        assert {id(p) for p in layer.weight_parameters()} < {id(p) for p in block}


# --------------------------------------------------------------------------------------------------- deep_mlp


@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize(("norm", "position"), NORMS)
@pytest.mark.parametrize("width", [5, [5, 5, 7, 4]])
@pytest.mark.parametrize("p", [0.0, 0.4])
def test_deep_mlp_is_its_formula(
    residual: str, norm: str, position: str | None, width: int | list[int], p: float
) -> None:
    model = mlp(depth=4, width=width, norm=norm, norm_position=position, dropout=p, residual=residual)
    x = inputs(8, 6)
    skips = iter(projections(model))
    factors = iter([] if residual == "none" else scales(model, residual))
    torch.manual_seed(3)
    y = model(x)
    torch.manual_seed(3)
    h = affine(model.layers[0], x)
    for layer in model.layers[1:-1]:
        branch = affine(layer, unit(h, norm, position, p))
        if residual == "none":
            h = branch
        else:
            through = h if h.shape == branch.shape else h @ next(skips).weight.T
            h = through + next(factors) * branch
    torch.testing.assert_close(y, affine(model.layers[-1], unit(h, norm, position, p)))
    assert next(skips, None) is None
    assert next(factors, None) is None


@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("depth", [0, 1])
def test_deep_mlp_too_shallow_for_blocks_is_the_plain_one(depth: int, residual: str) -> None:
    plain, model = mlp(depth=depth, width=4), mlp(depth=depth, width=4, residual=residual)
    assert len(model.layers) == depth + 1
    assert not residual_blocks(model)
    assert torch.equal(plain(inputs(5, 6)), model(inputs(5, 6)))


def test_plain_deep_mlp_is_one_flat_sequence() -> None:
    model = mlp((2, 3), depth=2, width=4, norm="layer", dropout=0.1)
    assert isinstance(model.body, nn.Sequential)
    unit_types = [nn.Linear, nn.LayerNorm, nn.Tanh, nn.Dropout]
    assert [type(module) for module in model.body] == [nn.Flatten, *unit_types, *unit_types, nn.Linear]
    assert torch.equal(model.eval()(inputs(5, 2, 3)), model.body[1:](inputs(5, 2, 3).reshape(5, 6)))


@pytest.mark.parametrize("bias", [True, False])
def test_deep_mlp_parameters_counted(bias: bool) -> None:
    model = mlp((2, 3), depth=2, width=[4, 7], bias=bias, residual="add")
    assert sum(p.numel() for p in model.parameters()) == 6 * 4 + 4 * 7 + 7 * 3 + 4 * 7 + bias * (4 + 7 + 3)


def test_rezero_starts_as_the_skip_path_alone() -> None:
    model = mlp(depth=3, width=5, residual="rezero")
    x = inputs(4, 6)
    stem, output = model.layers[0], model.layers[-1]
    assert torch.equal(model(x), output.affine(torch.tanh(stem.affine(x))))


# --------------------------------------------------------------------------------------------------- lenet5


@pytest.mark.parametrize(("channels", "extra"), [(1, 0), (3, 2 * 6 * 25)])
def test_lenet5_parameters_counted(channels: int, extra: int) -> None:
    model = lenet(in_shape=(channels, 32, 32))
    assert sum(p.numel() for p in model.parameters()) == 61_706 + extra


@pytest.mark.parametrize("pooling", ["avg", "max"])
@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize(("norm", "position"), NORMS)
def test_lenet5_is_its_formula(pooling: str, residual: str, norm: str, position: str | None) -> None:
    model = lenet(in_shape=(3, 28, 28), pooling=pooling, norm=norm, norm_position=position, residual=residual)
    factors = [] if residual == "none" else scales(model, residual)
    x = F.pad(inputs(4, 3, 28, 28), (2, 2, 2, 2))

    def pool(a: Tensor) -> Tensor:
        squares = a.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
        return squares.mean(-1) if pooling == "avg" else squares.amax(-1)

    c1, c3, c5, f6, output = model.layers
    h1 = F.conv2d(x, c1.affine.weight, c1.affine.bias)
    h3 = F.conv2d(unit(h1, norm, position, 0, pool), c3.affine.weight, c3.affine.bias)
    if residual != "none":
        p3, p5, p6 = (module.weight for module in projections(model))
        h3 = torch.einsum("oi,bihw->bohw", p3[:, :, 0, 0], pool(h1))[:, :, 2:-2, 2:-2] + factors[0] * h3
    h5 = affine(c5, unit(h3, norm, position, 0, pool).flatten(1))
    if residual != "none":
        h5 = pool(h3).flatten(1) @ p5.T + factors[1] * h5
    h6 = affine(f6, unit(h5, norm, position, 0))
    if residual != "none":
        h6 = h5 @ p6.T + factors[2] * h6
    torch.testing.assert_close(model(inputs(4, 3, 28, 28)), affine(output, unit(h6, norm, position, 0)))


def test_lenet5_drops_out_after_pooling_and_in_each_hidden_unit() -> None:
    model = lenet(dropout=0.3, norm="batch")
    kinds = [type(module).__name__ for module in model.body.children()]
    convolution = ["Conv2d", "BatchNorm2d", "Tanh", "MaxPool2d", "Dropout"]
    dense = ["Linear", "BatchNorm1d", "Tanh", "Dropout"]
    assert kinds == ["LeNetInput", *convolution, *convolution, "Flatten", *dense, *dense, "Linear"]
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.3}


def test_images_are_brought_to_32_by_32() -> None:
    small, mnist, full = inputs(2, 1, 8, 8), inputs(2, 1, 28, 28), inputs(2, 3, 32, 32)
    assert torch.equal(to_lenet_input(small), small.repeat_interleave(4, 2).repeat_interleave(4, 3))
    padded = to_lenet_input(mnist)
    assert padded.shape == (2, 1, 32, 32)
    assert torch.equal(padded[:, :, 2:30, 2:30], mnist)
    assert padded.abs().sum() == mnist.abs().sum()
    assert to_lenet_input(full) is full


@pytest.mark.parametrize("name", ["lenet5", "lenet5_1998"])
def test_lenet_sees_digits_as_their_enlargement(name: str) -> None:
    digits = lenet(name, (1, 8, 8))
    assert torch.equal(digits(inputs(2, 1, 8, 8)), lenet(name, (1, 32, 32))(to_lenet_input(inputs(2, 1, 8, 8))))


# ----------------------------------------------------------------------------------------------- lenet5_1998


def test_lenet5_1998_parameters_counted() -> None:
    model = lenet("lenet5_1998")
    *layers, subsampling = [sum(p.numel() for p in block) for block in parameter_blocks(model)]
    assert layers == [156, 1_516, 48_120, 10_164, 850]
    assert subsampling == 12 + 32
    assert sum(layers[:-1]) + subsampling == 60_000
    colour = lenet("lenet5_1998", (3, 32, 32))
    assert sum(p.numel() for p in colour.parameters()) == 60_850 + 2 * 6 * 25


def test_lenet5_1998_is_its_formula_map_by_map() -> None:
    model = lenet("lenet5_1998", (3, 32, 32))
    c1, c3, c5, f6, output = model.layers
    *_, (k2, b2, k4, b4) = parameter_blocks(model)
    for parameter in (k2, b2, k4, b4):
        nn.init.normal_(parameter)

    def subsample(a: Tensor, coefficient: Tensor, bias: Tensor) -> Tensor:
        total = a[:, :, ::2, ::2] + a[:, :, 1::2, ::2] + a[:, :, ::2, 1::2] + a[:, :, 1::2, 1::2]
        return torch.tanh(total * coefficient.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1))

    x = inputs(4, 3, 32, 32)
    a1 = torch.tanh(F.conv2d(x, c1.affine.weight, c1.affine.bias))
    s2 = subsample(a1, k2, b2)
    rows = TABLE_I.split()
    kernels = iter(c3.affine.weight)
    maps = []
    for column in range(16):
        total = c3.affine.bias[column]
        for row in range(6):
            if rows[row][column] == "X":
                total = total + F.conv2d(s2[:, row : row + 1], next(kernels)[None, None])
        maps.append(total)
    assert next(kernels, None) is None
    s4 = subsample(torch.tanh(torch.cat(maps, 1)), k4, b4)
    a5 = torch.tanh(affine(c5, s4.flatten(1)))
    torch.testing.assert_close(model(x), affine(output, torch.tanh(affine(f6, a5))))


def test_subsampling_starts_as_the_average() -> None:
    model = lenet("lenet5_1998")
    k2, b2, k4, b4 = parameter_blocks(model)[-1]
    assert set(k2.tolist()) == set(k4.tolist()) == {0.25}
    assert set(b2.tolist()) == set(b4.tolist()) == {0.0}


def test_table_convolution_stores_and_trains_existing_kernels_only() -> None:
    table = [(0, 2), (1,), (0, 1, 2)]
    convolution = TableConv2d(3, table, 2).double()
    assert convolution.weight.shape == (6, 2, 2)
    dense = convolution.dense_weight()
    assert dense.shape == (3, 3, 2, 2)
    existing = dense.abs().sum((2, 3)) > 0
    assert existing.tolist() == [[i in inputs for i in range(3)] for inputs in table]
    x = inputs(2, 3, 5, 5)
    torch.testing.assert_close(convolution(x), F.conv2d(x, dense, convolution.bias))
    weight = convolution.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda w: torch.func.functional_call(convolution, {"weight": w}, x), weight)
    assert set(convolution.state_dict()) == {"weight", "bias"}


def test_table_convolution_starts_uniform_within_its_own_fan() -> None:
    torch.manual_seed(0)
    convolution = TableConv2d(6, [(0,), tuple(range(6))], 5)
    for (weight, bias), fan_in in zip(convolution.units(), (25, 150), strict=True):
        bound = 1 / math.sqrt(fan_in)
        assert 0.8 * bound < weight.abs().max().item() <= bound
        assert abs(bias.item()) <= bound
