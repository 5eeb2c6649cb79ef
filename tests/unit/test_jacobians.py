"""Jacobians against products of weights and slopes, isometries, published values and the definition of the GSC."""

from __future__ import annotations

import math
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gradstab.activations import build_activation
from gradstab.data import load_data
from gradstab.errors import ConfigError
from gradstab.initializers import initialize
from gradstab.jacobians import Jacobians, jacobians, segments
from gradstab.models import Model, build_model
from gradstab.spectra import singular_values


def network(
    act: str = "tanh",
    init: str = "lecun_normal",
    name: str = "deep_mlp",
    in_shape: tuple[int, ...] = (12,),
    **knobs: Any,
) -> Model:
    torch.manual_seed(3)
    model = build_model(name, in_shape=in_shape, out_features=10, activation=partial(build_activation, act), **knobs)
    settings = {"gain": 1.0}
    generator = torch.Generator().manual_seed(0)
    initialize(model, init, act_name=act, act_knobs={}, generator=generator, batch=None, **settings)
    return model


def batch(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def measured(model: Model, x: Tensor, samples: int = 2) -> Jacobians:
    return jacobians(model, [f"{i:02d}" for i in range(len(model.layers))], x, samples)


@pytest.mark.parametrize("width", [12, 20, 280])
def test_an_orthogonal_deep_linear_network_is_an_isometry(width: int) -> None:
    """All singular values are 1 (Saxe et al. 2014); of the product only where no layer widens before one narrows."""
    model = network("identity", "orthogonal", depth=6, width=[width] * 6)
    found = measured(model, batch(3, 12))
    whole = [found.network] if width == 12 else []
    for spectrum in (*whole, *(layer.spectrum for layer in found.layers)):
        # The weights are float32.
        assert (spectrum.mean, spectrum.largest, spectrum.smallest) == pytest.approx((1, 1, 1), abs=1e-6)
        assert spectrum.condition == pytest.approx(1, abs=2e-6)


def drawn_with(values: Tensor, *shape: int) -> Tensor:
    """A matrix [n, m] with these singular values, min(n, m) of them."""
    generator = torch.Generator().manual_seed(2)
    n, m = shape
    left, right = (
        torch.linalg.qr(torch.randn(size, len(values), generator=generator, dtype=torch.float64))[0] for size in (n, m)
    )
    return left @ torch.diag(values) @ right.T


@pytest.mark.parametrize("shape", [(270, 400), (400, 270)])
def test_singular_values_of_large_matrices_by_their_gram_matrix(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]
) -> None:
    def refused(_matrix: Tensor) -> Tensor:
        raise AssertionError("decomposed by itself")

    isometry = drawn_with(torch.ones(270, dtype=torch.float64), *shape)
    values = torch.logspace(2, -2, 270, dtype=torch.float64)
    with monkeypatch.context() as patch:
        patch.setattr(torch.linalg, "svdvals", refused)
        torch.testing.assert_close(singular_values(isometry), torch.ones_like(values), rtol=0, atol=1e-12)
        torch.testing.assert_close(singular_values(drawn_with(values, *shape)), values, rtol=1e-6, atol=0)
    # What the Gram matrix cannot resolve is decomposed where it is quick, and 0 where it is not.
    tiny = torch.where(torch.arange(270) < 265, values, values * 1e-8)
    torch.testing.assert_close(singular_values(drawn_with(tiny, *shape)), tiny, rtol=1e-3, atol=0)
    monkeypatch.setattr("gradstab.spectra.MAX_AGAIN", 0)
    found = singular_values(drawn_with(tiny, *shape))
    torch.testing.assert_close(found[:265], tiny[:265], rtol=1e-6, atol=0)
    assert not found[265:].any()


def test_rows_and_columns_of_zeros_are_singular_values_of_zero() -> None:
    values = torch.linspace(3, 1, 260, dtype=torch.float64)
    matrix = torch.zeros(500, 300, dtype=torch.float64)
    matrix[:450, 20:290] = drawn_with(values, 450, 270)
    matrix[:450:2] = 0
    found = singular_values(matrix)
    torch.testing.assert_close(found, torch.linalg.svdvals(matrix), rtol=1e-9, atol=1e-12)
    assert singular_values(torch.zeros(4, 3, dtype=torch.float64)).tolist() == [0, 0, 0]


def test_layers_are_weights_times_slopes_and_the_whole_is_their_product() -> None:
    model = network(depth=3, width=[9, 14, 8])
    x = batch(1, 12)
    found = measured(model, x, samples=5)
    assert found.samples == 1
    h, product = x.double(), torch.eye(12, dtype=torch.float64)
    slope = torch.ones(12, dtype=torch.float64)
    a = h
    for layer, entry in zip(model.layers, found.layers, strict=True):
        weight, bias = layer.affine.weight.double(), layer.affine.bias.double()
        jacobian = weight * slope
        values = torch.linalg.svdvals(jacobian)
        assert entry.spectrum.mean == pytest.approx(values.mean().item(), rel=1e-9)
        assert entry.spectrum.largest == pytest.approx(values[0].item(), rel=1e-9)
        assert entry.spectrum.condition == pytest.approx((values[0] / values[-1]).item(), rel=1e-6)
        product = jacobian @ product
        h = a @ weight.T + bias
        a, slope = torch.tanh(h), 1 - torch.tanh(h[0]) ** 2
    assert found.network.largest == pytest.approx(torch.linalg.matrix_norm(product, 2).item(), rel=1e-9)
    expected = product.square().sum() / 12 * x.double().square().sum() / h.square().sum()
    assert found.gsc == pytest.approx(expected.item(), rel=1e-9)
    assert found.layers[-1].gsc == pytest.approx(1 * 10 / 10)


def test_samples_share_a_mean_but_for_the_median_of_their_conditions() -> None:
    model, x = network(depth=2, width=14).double(), 4 * batch(3, 12).double()
    own = [torch.linalg.svdvals(torch.func.jacrev(model)(x[i : i + 1]).reshape(10, 12)) for i in range(3)]
    values, found = torch.stack(own), measured(model, x, samples=3).network
    assert found.condition == pytest.approx((values[:, 0] / values[:, -1]).median().item(), rel=1e-6)
    assert found.smallest == pytest.approx(values[:, -1].mean().item(), rel=1e-6)
    assert found.largest == pytest.approx(values[:, 0].mean().item(), rel=1e-9)
    assert found.mean == pytest.approx(values.mean().item(), rel=1e-9)


def test_the_gradient_scale_coefficient_is_the_growth_of_relative_changes() -> None:
    """Philipp et al. 2018: the mean of (‖Δy‖/‖y‖)² over (‖Δx‖/‖x‖)² for small changes Δx in random directions."""
    model = network(depth=4, width=30).double()
    x = batch(1, 12).double()
    changes = batch(20_000, 12).double()
    changes = 1e-6 * changes / changes.norm(dim=1, keepdim=True)
    with torch.no_grad():
        y = model(x)
        relative = ((model(x + changes) - y).square().sum(1) / y.square().sum()) / (1e-12 / x.square().sum())
    assert measured(model, x).gsc == pytest.approx(relative.mean().item(), rel=0.03)


@pytest.mark.parametrize("size", [1e-60, 1e60])
def test_the_gradient_scale_coefficient_of_a_linear_network_is_the_same_at_any_scale(size: float) -> None:
    models = [network(act="identity", depth=3, width=20).double() for _ in range(2)]
    with torch.no_grad():
        for layer in models[1].layers:
            layer.affine.weight.mul_(size)
    usual, scaled = (measured(model, batch(1, 12)) for model in models)
    assert scaled.gsc == pytest.approx(usual.gsc, rel=1e-9)
    assert [layer.gsc for layer in scaled.layers] == pytest.approx([layer.gsc for layer in usual.layers], rel=1e-9)


def test_jacobians_that_are_not_finite_have_no_singular_values() -> None:
    model = network(act="relu", depth=2, width=20)
    with torch.no_grad():
        model.layers[0].affine.weight.fill_(torch.inf)
    found = measured(model, batch(1, 12))
    assert math.isnan(found.network.mean)
    assert math.isnan(found.network.condition)
    assert math.isnan(found.gsc)


def test_rectifiers_that_are_off_make_the_condition_infinite() -> None:
    found = measured(network("relu", depth=3, width=12), batch(1, 12))
    assert found.layers[1].spectrum.condition == math.inf
    assert found.layers[1].spectrum.smallest == 0


@pytest.mark.parametrize("residual", ["none", "add"])
@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_norms_and_skip_paths_against_autograd_through_the_whole_network(norm: str, residual: str) -> None:
    model = network(depth=3, width=10, norm=norm, residual=residual, dropout=0.4)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = batch(6, 12)
    found = measured(model, x, samples=2)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    largest = []
    for i in range(2):
        whole = torch.autograd.functional.jacobian(lambda inputs, i=i: model.train()(inputs)[i], x)
        largest.append(torch.linalg.matrix_norm(whole[:, i], 2).item())
    assert found.network.largest == pytest.approx(sum(largest) / 2, rel=1e-4)


@pytest.mark.parametrize(
    "knobs",
    [
        {"depth": 3, "width": [10, 7, 9], "norm": "batch", "act": "softplus"},
        {"depth": 3, "width": 9, "norm": "batch", "norm_position": "after", "residual": "scaled"},
        {"name": "lenet5", "in_shape": (1, 8, 8), "norm": "batch", "pooling": "avg", "residual": "add"},
    ],
)
def test_layers_under_batch_norm_against_autograd_through_the_whole_batch(knobs: dict[str, Any]) -> None:
    model = network(**knobs)
    x = batch(3, *knobs.get("in_shape", (12,)))
    found = measured(model, x, samples=2)
    parts, states = segments(model.double().train()), [x.double()]
    for part in parts:
        states.append(part(states[-1]).detach())
    # C3's Jacobian has 1,600 rows, each through all of the batch.
    for layer in range(len(parts)) if "depth" in knobs else (2, 3, 4):
        largest, means = [], []
        for i in range(2):
            row = partial(lambda i, part, h: part(h)[i].flatten(), i, parts[layer])
            own = torch.autograd.functional.jacobian(row, states[layer])[:, i].flatten(1)
            largest.append(torch.linalg.matrix_norm(own, 2).item())
            means.append(torch.linalg.svdvals(own).mean().item())
        assert found.layers[layer].spectrum.largest == pytest.approx(sum(largest) / 2, rel=1e-9)
        assert found.layers[layer].spectrum.mean == pytest.approx(sum(means) / 2, rel=1e-9)


PEAK = r"""
import re, sys
from pathlib import Path
import torch
from tests.unit.test_jacobians import batch, measured, network
torch.set_num_threads(1)
def peak():
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
measured(network(depth=3, width=20, norm="batch"), batch(4, 12))
before = peak()
measured(network(depth=2, width=300, norm="batch"), batch(1437, 12), samples=1)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read as Linux tells them")
@pytest.mark.slow
def test_memory_does_not_grow_with_outputs_times_batch() -> None:
    """One Jacobian through the whole batch would be 300 × 1437 × 300 numbers, a gigabyte."""
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 500


def test_too_large_a_batch_or_too_little_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(depth=2, width=20, norm="batch")
    monkeypatch.setattr("gradstab.jacobians.MAX_WORK", 1e6)
    assert measured(model, batch(30, 12)).samples == 2
    with pytest.raises(
        ConfigError, match=r"probe\.samples=2 samples take about .*; allowed: 1e\+06, .* a smaller batch"
    ):
        measured(model, batch(3000, 12))
    monkeypatch.setattr("gradstab.jacobians.free_memory", lambda: 2**20)
    with pytest.raises(
        ConfigError, match="this machine has 1 MiB free; allowed: narrower layers or a smaller"
    ) as caught:
        measured(model, batch(30, 12))
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize("name", ["lenet5", "lenet5_1998"])
def test_convolutional_networks_are_cut_behind_every_h(name: str) -> None:
    model = network(name=name, in_shape=(1, 8, 8))
    parts = segments(model)
    assert len(parts) == 5
    x = h = batch(2, 1, 8, 8)
    for part in parts:
        h = part(h)
    torch.testing.assert_close(h, model(x))


def test_many_layers_are_shown_evenly_spaced() -> None:
    found = measured(network(depth=60, width=6), batch(1, 12))
    assert len(found.layers) == 32
    assert (found.layers[0].tag, found.layers[-1].tag) == ("00", "60")


def test_work_up_to_the_limit_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    # n·m·min(n, m) of 20 × 12, 20 × 20 and 10 × 20, for two samples.
    work = 2 * (12 * 20 * 12 + 20**3 + 20 * 10 * 10)
    monkeypatch.setattr("gradstab.jacobians.MAX_WORK", work)
    assert measured(network(depth=2, width=20), batch(2, 12)).samples == 2
    monkeypatch.setattr("gradstab.jacobians.MAX_WORK", work - 1)
    with pytest.raises(ConfigError, match="allowed"):
        measured(network(depth=2, width=20), batch(2, 12))


@pytest.mark.parametrize(
    ("limit", "words"), [("MAX_WORK", r"probe\.samples=2 samples.*allowed"), ("MAX_ENTRIES", "entries; allowed")]
)
def test_too_much_work_is_refused(monkeypatch: pytest.MonkeyPatch, limit: str, words: str) -> None:
    model = network(depth=2, width=20)
    monkeypatch.setattr(f"gradstab.jacobians.{limit}", 300)
    with pytest.raises(ConfigError, match=words):
        measured(model, batch(2, 12))


def test_mean_singular_values_of_glorot_and_bengio(mnist_root: Path) -> None:
    """5 × 1000 tanh on MNIST: about 0.5 with U(±1/√n), about 0.8 with theirs (Glorot & Bengio 2010, §4.2)."""
    data = load_data("mnist", root=str(mnist_root), download=False)
    # Theirs were pixels in [0, 1]; ours have mean 0 and variance 1, which drives tanh further from its linear range.
    pixels = (data.train.inputs[:1] - data.train.inputs.min()) / (data.train.inputs.max() - data.train.inputs.min())
    for init, value in (("default", 0.5), ("xavier_uniform", 0.8)):
        found = measured(network("tanh", init, in_shape=(1, 28, 28), depth=3, width=1000), pixels, samples=1)
        for layer in found.layers[1:-1]:
            assert layer.spectrum.mean == pytest.approx(value, abs=0.04)
