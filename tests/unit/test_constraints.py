"""Constraints against numpy: norms, singular values and clamped entries computed from plain arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gradstab.config import OPTIONS
from gradstab.constraints import apply_constraint, max_norm_scale
from gradstab.errors import ConfigError
from gradstab.models import TableConv2d
from gradstab.models.blocks import Layer

MAKERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(7, 5),
    "conv": lambda: nn.Conv2d(3, 4, 5),
    "table": lambda: TableConv2d(3, [[0], [0, 1], [0, 1, 2]], 5),
}
KNOBS: dict[str, dict[str, Any]] = {
    "none": {},
    "weight_norm": {},
    "spectral_norm": {"n_power_iterations": 1},
    "weight_clip": {"bound": 0.1},
    "max_norm": {"bound": 0.3},
}


def layer_of(kind: str) -> Layer:
    torch.manual_seed(1)
    affine = MAKERS[kind]().double()
    assert isinstance(affine.weight, nn.Parameter)
    nn.init.normal_(affine.weight, std=0.2)
    return Layer(f"00_{kind}", affine, None)


def weight_of(layer: Layer) -> np.ndarray:
    assert isinstance(layer.affine.weight, Tensor)
    return layer.affine.weight.detach().numpy().copy()


def test_every_option_is_tested() -> None:
    assert OPTIONS["constraint"].keys() == KNOBS.keys()


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("name", ["none", "weight_norm", "weight_clip", "max_norm"])
def test_registering_keeps_the_weights(name: str, kind: str) -> None:
    layer = layer_of(kind)
    before = weight_of(layer)
    projection = apply_constraint(name, [layer], generator_seed=0, **KNOBS[name])
    np.testing.assert_allclose(weight_of(layer), before, rtol=1e-14)
    assert (projection is None) == (name in ("none", "weight_norm"))
    assert parametrize.is_parametrized(layer.affine) == (name == "weight_norm")


@pytest.mark.parametrize("kind", MAKERS)
def test_weight_norm_is_gain_times_direction(kind: str) -> None:
    layer = layer_of(kind)
    apply_constraint("weight_norm", [layer])
    gain, direction = layer.weight_parameters()
    gain.data *= torch.arange(1.0, len(gain) + 1).view_as(gain)
    direction.data *= 5.0
    rows = direction.detach().numpy().reshape(len(direction), -1)
    wanted = gain.detach().numpy().ravel()[:, None] * rows / np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(weight_of(layer).reshape(wanted.shape), wanted, rtol=1e-12)


@pytest.mark.parametrize("kind", MAKERS)
def test_spectral_norm_divides_by_the_largest_singular_value(kind: str) -> None:
    layer = layer_of(kind)
    before = weight_of(layer)
    assert apply_constraint("spectral_norm", [layer], generator_seed=3, n_power_iterations=200) is None
    matrix = before.reshape(len(before), -1)
    sigma = np.linalg.svd(matrix, compute_uv=False)[0]
    np.testing.assert_allclose(weight_of(layer), before / sigma, rtol=1e-6)


def test_spectral_norm_follows_its_seed_and_leaves_the_global_generator() -> None:
    def start(seed: int | None, global_seed: int) -> tuple[np.ndarray, float]:
        layers = [layer_of("linear"), layer_of("conv")]
        torch.manual_seed(global_seed)
        apply_constraint("spectral_norm", layers, generator_seed=seed, n_power_iterations=1)
        after = torch.rand(()).item()
        return np.concatenate([weight_of(layer).ravel() for layer in layers]), after

    torch.manual_seed(11)
    undisturbed = torch.rand(()).item()
    first, after = start(5, 11)
    assert after == undisturbed
    np.testing.assert_array_equal(start(5, 12)[0], first)
    assert not np.array_equal(start(6, 11)[0], first)
    assert not np.array_equal(start(None, 11)[0], start(None, 12)[0])


@pytest.mark.parametrize("kind", MAKERS)
def test_weight_clip_clamps_each_weight_and_no_bias(kind: str) -> None:
    layer = layer_of(kind)
    before = weight_of(layer)
    assert isinstance(layer.affine.bias, Tensor)
    layer.affine.bias.data.fill_(9.0)
    projection = apply_constraint("weight_clip", [layer], bound=0.1)
    assert projection is not None
    projection()
    assert np.abs(before).max() > 0.1
    np.testing.assert_array_equal(weight_of(layer), np.clip(before, -0.1, 0.1))
    assert (layer.affine.bias == 9.0).all()


@pytest.mark.parametrize("kind", MAKERS)
def test_max_norm_rescales_long_units_and_keeps_every_bit_of_the_others(kind: str) -> None:
    layer = layer_of(kind)
    before = weight_of(layer)
    rows = before.reshape(len(before), -1)
    norms = np.linalg.norm(rows, axis=1)
    bound = float(np.median(norms))
    projection = apply_constraint("max_norm", [layer], bound=bound)
    assert projection is not None
    projection()
    after = weight_of(layer).reshape(rows.shape)
    long = norms > bound
    assert 0 < long.sum() < len(rows)
    np.testing.assert_array_equal(after[~long], rows[~long])
    np.testing.assert_allclose(after[long], rows[long] * (bound / norms[long])[:, None], rtol=1e-12)


def test_projections_hold_for_weights_after_a_step_and_after_a_move_to_another_dtype() -> None:
    layer = layer_of("linear")
    projection = apply_constraint("max_norm", [layer], bound=0.5)
    assert projection is not None
    layer.affine.float()
    optimizer = torch.optim.SGD(layer.affine.parameters(), lr=10.0)
    layer.affine(torch.ones(2, 7)).square().sum().backward()
    optimizer.step()
    projection()
    np.testing.assert_allclose(np.linalg.norm(weight_of(layer), axis=1), 0.5, rtol=1e-6)


def test_max_norm_scale_at_the_edges() -> None:
    weight = torch.zeros(7, 2)
    weight[0] = torch.tensor([3.0, 4.0])  # at the bound
    weight[1] = torch.tensor([6.0, 8.0])
    weight[2] = 1e30  # whose squares overflow in float32
    weight[3, 0] = torch.inf
    weight[4, 1] = torch.nan
    weight[6] = 3e38  # whose norm is above all of float32
    scale = max_norm_scale(weight, 5.0)
    assert scale.shape == (7, 1)
    assert scale[[0, 3, 4, 5]].flatten().tolist() == [1, 1, 1, 1]
    assert scale[1].item() == 0.5
    assert scale[2].item() == pytest.approx(5 / (np.sqrt(2) * 1e30), rel=1e-6)
    assert scale[6].item() == pytest.approx(5 / (np.sqrt(2) * 3e38), rel=1e-5)
    torch.testing.assert_close(torch.func.vmap(max_norm_scale, (0, None))(weight[None], 5.0)[0], scale)


@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm"])
def test_zero_weights_are_refused_before_anything_is_registered(name: str) -> None:
    fine, broken = layer_of("linear"), layer_of("conv")
    assert isinstance(broken.affine.weight, nn.Parameter)
    nn.init.zeros_(broken.affine.weight)
    with pytest.raises(ConfigError, match=rf"^constraint={name}: .*00_conv.* all 0"):
        apply_constraint(name, [fine, broken], generator_seed=0, **KNOBS[name])


def test_weight_norm_refuses_a_single_zero_unit_and_spectral_norm_does_not() -> None:
    layer = layer_of("linear")
    assert isinstance(layer.affine.weight, nn.Parameter)
    layer.affine.weight.data[2] = 0.0
    with pytest.raises(ConfigError, match="1 units"):
        apply_constraint("weight_norm", [layer])
    apply_constraint("spectral_norm", [layer], generator_seed=0, n_power_iterations=1)
    assert np.isfinite(weight_of(layer)).all()
