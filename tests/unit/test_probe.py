"""The probe against gradients taken sample by sample with torch.func, for every kind of network."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from gradstab.activations import derivative
from gradstab.assembly import build
from gradstab.measure.probe import effective_weight
from gradstab.measure.quantities import as_tensor
from gradstab.parts import Parts
from gradstab.training import train_step
from tests.conftest import Compose

NETWORKS = [
    ("model.depth=4", "model.width=12", "act=tanh"),
    ("model.depth=4", "model.width=[9,7,7,5]", "act=sigmoid", "model.residual=add"),
    ("model.depth=4", "model.width=9", "act=tanh", "model.residual=scaled"),
    ("model.depth=3", "model.width=12", "act=gelu", "model.norm=layer", "loss=mse"),
    ("model.depth=3", "model.width=12", "act=relu", "model.norm=batch", "model.norm_position=after"),
    ("model=lenet5", "act=tanh"),
    ("model=lenet5", "act=relu", "model.residual=scaled", "model.norm=layer"),
    ("model=lenet5_1998",),
]


@pytest.fixture
def built(configure: Compose) -> Callable[..., tuple[Parts, Tensor, Tensor]]:
    def make(*overrides: str) -> tuple[Parts, Tensor, Tensor]:
        parts = build(configure("precision=float64", "batch_size=8", "device=cpu", *overrides))
        parts.model.train()
        return parts, parts.data.train.inputs[:8], parts.data.train.targets[:8]

    return make


def _by_hand(parts: Parts, inputs: Tensor, targets: Tensor) -> dict[str, list[float]]:
    """Quantities from h + 0 shifts at every layer: autograd with respect to the shift, one sample at a time."""
    found: dict[str, list[float]] = {"signal_grad_norm": [], "activation_mean": [], "activation_std": []}
    for layer in parts.probe.layers:
        seen: dict[str, Tensor] = {}

        def shift(_m: object, _a: object, h: Tensor, seen: dict[str, Tensor] = seen) -> Tensor:
            seen["shift"] = torch.zeros_like(h, requires_grad=True)
            return h + seen["shift"]

        handle = layer.preactivation.register_forward_hook(shift)
        outputs = parts.model(inputs)
        # The gradient of sample i's own loss, for one sample after another.
        squares = []
        for i in range(len(inputs)):
            own = parts.loss(outputs[i : i + 1], targets[i : i + 1])
            (grad,) = torch.autograd.grad(own, seen["shift"], retain_graph=True)
            squares.append(grad[i].pow(2).sum().item())
        handle.remove()
        found["signal_grad_norm"].append(math.sqrt(sum(squares) / len(squares)))
        if layer.activation is not None:
            outs: list[Tensor] = []
            handle = layer.activation.register_forward_hook(lambda _m, _a, out, outs=outs: outs.append(out.detach()))
            parts.model(inputs)
            handle.remove()
            found["activation_mean"].append(outs[0].mean().item())
            found["activation_std"].append((outs[0] - outs[0].mean()).pow(2).mean().sqrt().item())
    return found


@pytest.mark.parametrize("overrides", [n for n in NETWORKS if "model.norm=batch" not in n], ids="-".join)
def test_readings_equal_autograd_sample_by_sample(
    built: Callable[..., tuple[Parts, Tensor, Tensor]], overrides: tuple[str, ...]
) -> None:
    parts, inputs, targets = built(*overrides)
    expected = _by_hand(parts, inputs, targets)
    record = train_step(parts, 0, inputs, targets, measure_all=True)
    for name, values in expected.items():
        assert record.quantities[name].tolist() == pytest.approx(values, rel=1e-9), name


@pytest.mark.parametrize("overrides", NETWORKS, ids="-".join)
def test_layer_grad_norms_equal_functional_gradients(
    built: Callable[..., tuple[Parts, Tensor, Tensor]], overrides: tuple[str, ...]
) -> None:
    parts, inputs, targets = built(*overrides)
    reference = copy.deepcopy(parts.model)
    names = {id(p): name for name, p in parts.model.named_parameters()}
    params = dict(reference.named_parameters())
    for module in reference.modules():
        # In-place updates of running statistics cannot pass through functional transforms; they touch no gradient.
        if isinstance(module, torch.nn.BatchNorm1d):
            module.track_running_stats, module.num_batches_tracked = False, None
    grads = torch.func.grad(lambda p: parts.loss(functional_call(reference, p, (inputs,)), targets))(params)
    record = train_step(parts, 0, inputs, targets, measure_all=False)
    assert record.norms is not None
    expected = [grads[names[id(layer.weight_parameters()[0])]].norm().item() for layer in parts.probe.layers]
    assert parts.probe.by_layer(as_tensor(record.norms)).tolist() == pytest.approx(expected, rel=1e-9)
    whole = math.sqrt(sum(g.pow(2).sum().item() for g in grads.values()))
    assert as_tensor(record.norms).norm().item() == pytest.approx(whole, rel=1e-9)


def test_slopes_saturation_and_death(built: Callable[..., tuple[Parts, Tensor, Tensor]]) -> None:
    parts, inputs, targets = built("model.depth=3", "model.width=16", "act=sigmoid", "init.gain=8")
    seen: list[Tensor] = []
    handles = [
        layer.activation.register_forward_hook(lambda _m, a, _o: seen.append(a[0].detach()))
        for layer in parts.probe.hidden
        if layer.activation is not None
    ]
    record = train_step(parts, 0, inputs, targets, measure_all=True)
    for handle in handles:
        handle.remove()
    expected = [((h.sigmoid() * (1 - h.sigmoid())) < 0.0125).double().mean().item() for h in seen[:3]]
    assert record.quantities["saturated_fraction"].tolist() == pytest.approx(expected, abs=1e-6)
    assert max(expected) > 0.05
    assert record.quantities["dead_fraction"].tolist() == [0.0, 0.0, 0.0]


def test_relu_units_that_never_fire_are_dead_and_not_saturated(
    built: Callable[..., tuple[Parts, Tensor, Tensor]],
) -> None:
    parts, inputs, targets = built("model.depth=2", "model.width=10")
    bias = parts.model.layers[0].affine.bias
    assert isinstance(bias, torch.nn.Parameter)
    with torch.no_grad():
        bias[:4] = -1000
    record = train_step(parts, 0, inputs, targets, measure_all=True)
    assert record.quantities["dead_fraction"][0].item() >= 0.4
    assert "saturated_fraction" not in record.quantities


def test_update_ratio_is_that_of_the_step_taken(built: Callable[..., tuple[Parts, Tensor, Tensor]]) -> None:
    parts, inputs, targets = built("model.depth=2", "model.width=10", "optimizer=adam", "constraint=weight_clip")
    before = [layer.affine.weight.detach().clone() for layer in parts.model.layers]  # type: ignore[operator]
    record = train_step(parts, 0, inputs, targets, measure_all=True)
    after = [layer.affine.weight.detach() for layer in parts.model.layers]
    expected = [((b - a).pow(2).sum() / a.pow(2).sum()).sqrt().item() for a, b in zip(before, after, strict=True)]  # type: ignore[operator]
    assert record.quantities["update_ratio"].tolist() == pytest.approx(expected, rel=1e-12)
    assert record.quantities["weight_norm"].tolist() == pytest.approx([a.norm().item() for a in before], rel=1e-12)


@pytest.mark.parametrize("constraint", ["weight_norm", "spectral_norm"])
def test_a_parametrised_weight_is_read_without_touching_it(
    built: Callable[..., tuple[Parts, Tensor, Tensor]], constraint: str
) -> None:
    parts, _, _ = built("model.depth=2", "model.width=10", f"constraint={constraint}")
    state = copy.deepcopy(parts.model.state_dict())
    weights = [effective_weight(layer) for layer in parts.probe.layers]
    assert all(torch.equal(value, state[key]) for key, value in parts.model.state_dict().items())
    assert all(module.training for module in parts.model.modules())
    assert [w.shape for w in weights] == [(10, 64), (10, 10), (10, 10)]


def test_a_parameter_that_the_loss_does_not_depend_on_has_a_gradient_of_0(
    built: Callable[..., tuple[Parts, Tensor, Tensor]],
) -> None:
    parts, inputs, targets = built("model.depth=2", "model.width=10")
    frozen = parts.model.layers[0].affine.weight
    assert isinstance(frozen, Tensor)
    frozen.requires_grad_(False)
    parts.loss(parts.model(inputs), targets).backward()  # type: ignore[no-untyped-call]
    norms = parts.probe.by_layer(as_tensor(parts.probe.norms_of(parts.probe.gradients())))
    assert norms[0].item() == 0
    assert (norms[1:] > 0).all()


def test_tiny_gradients_are_not_lost_to_float32_squares(configure: Compose) -> None:
    parts = build(configure("device=cpu", "model.depth=3", "model.width=8", "act=identity", "loss=mse"))
    inputs, targets = parts.data.train.inputs[:4] * 1e-20, parts.data.train.targets[:4]
    expected = [inputs, targets]
    record = train_step(parts, 0, *expected, measure_all=False)
    assert record.norms is not None
    grad = parts.model.layers[0].affine.weight.grad
    assert isinstance(grad, Tensor)
    exact = grad.double().pow(2).sum().sqrt().item()
    assert 0 < exact < 1e-18
    assert parts.probe.by_layer(as_tensor(record.norms))[0].item() == pytest.approx(exact, rel=1e-6)


def test_derivative_is_what_the_probe_uses_for_relu_at_zero() -> None:
    assert derivative(torch.nn.ReLU(), torch.tensor([-1.0, 0.0, 2.0])).tolist() == [0.0, 0.0, 1.0]
