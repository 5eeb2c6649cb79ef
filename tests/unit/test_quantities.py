"""Every quantity against a closed form or autograd done another way."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gradstab.measure import quantities as q
from gradstab.measure.depth import depth_factor


def test_norms_are_frobenius_norms() -> None:
    tensors = [torch.tensor([[3.0, 4.0]]), torch.ones(2, 2, 4), torch.zeros(3)]
    assert q.norms(tensors).tolist() == [5.0, 4.0, 0.0]


@pytest.mark.parametrize("size", [1e-30, 1e25])
def test_norms_in_float64_hold_what_float32_squares_cannot(size: float) -> None:
    tensor = torch.full((100,), size)
    assert q.norms([tensor])[0].item() in (0.0, math.inf)
    assert q.norms([tensor], torch.float64)[0].item() == pytest.approx(10 * size, rel=1e-6)


@pytest.mark.parametrize("size", [1e-38, 1e-25, 1.0, 1e25, 1e37])
def test_safe_norm_neither_overflows_nor_vanishes(size: float) -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]]) * size
    assert q.safe_norm(x, 1).tolist() == pytest.approx([5 * size, 0.0], rel=1e-6)


def test_safe_norm_keeps_its_digits_over_many_numbers() -> None:
    x = torch.full((2**22,), 3.0)
    assert q.safe_norm(x, 0).item() == pytest.approx(3 * 2**11, rel=1e-6)
    assert q.safe_norm(x[:0], 0).item() == 0


def test_safe_norm_keeps_inf_and_nan() -> None:
    x = torch.tensor([[1.0, math.inf], [1.0, math.nan], [3.0, 4.0]])
    first, second, third = q.safe_norm(x, 1).tolist()
    assert first == math.inf
    assert math.isnan(second)
    assert third == 5.0


@pytest.mark.parametrize("shape", [(6, 5), (6, 3, 2, 2)])
def test_signal_grad_norm_is_the_root_mean_square_of_single_samples_gradients(shape: tuple[int, ...]) -> None:
    draw = torch.Generator().manual_seed(1)
    h = torch.randn(*shape, generator=draw, dtype=torch.float64)
    target = torch.randn(*shape, generator=draw, dtype=torch.float64)

    def sample_loss(h_i: Tensor, target_i: Tensor) -> Tensor:
        return ((h_i.sin() - target_i) ** 2).sum()

    single = [torch.func.grad(sample_loss)(h[i], target[i]).norm().item() ** 2 for i in range(len(h))]
    whole = torch.func.grad(lambda x: ((x.sin() - target) ** 2).sum() / len(x))(h)
    assert q.signal_grad_norm(whole).item() == pytest.approx(math.sqrt(sum(single) / len(single)), rel=1e-12)


def test_signal_grad_norm_does_not_depend_on_how_often_samples_are_repeated() -> None:
    grad = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    twice = torch.cat([grad, grad]) / 2
    assert q.signal_grad_norm(twice).item() == pytest.approx(q.signal_grad_norm(grad).item(), rel=1e-12)


def test_activation_moments_run_over_batch_and_units() -> None:
    a = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    assert q.activation_mean(a).item() == 3.0
    assert q.activation_std(a).item() == pytest.approx(math.sqrt(3.5), rel=1e-6)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "quantity",
    [q.activation_mean, q.activation_std, q.signal_grad_norm, q.correlation, lambda x: q.update_ratio(x, x.flip(0))],
)
def test_half_precisions_are_summed_in_float32(half: torch.dtype, quantity: Callable[[Tensor], Tensor]) -> None:
    a = (torch.randn(64, 50, generator=torch.Generator().manual_seed(0)) + 0.5).to(half)
    found = quantity(a)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(quantity(a.double()).item(), rel=1e-5)


def test_saturated_fraction_counts_slopes_below_five_percent() -> None:
    h = torch.linspace(-8, 8, 1601, dtype=torch.float64)
    slope = torch.sigmoid(h) * torch.sigmoid(-h)
    # sigmoid'(h) = 1/4 sech²(h/2) is below 5 % of 1/4 where |h| > 2 arcosh(√20).
    bound = 2 * math.acosh(math.sqrt(20))
    expected = sum(abs(value) > bound for value in h.tolist()) / len(h)
    assert q.saturated_fraction(slope, 0.25).item() == pytest.approx(expected, rel=1e-6)
    assert 0 < expected < 1


def test_dead_units_are_zero_for_every_sample() -> None:
    slope = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    assert q.dead_fraction(slope).item() == 0.5


def test_a_channel_is_dead_only_if_it_is_zero_everywhere() -> None:
    slope = torch.zeros(2, 4, 3, 3)
    slope[1, 2, 0, 1] = 1.0
    assert q.dead_fraction(slope).item() == 0.75


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 2, 2)])
def test_of_a_layer_with_a_slope_that_is_nan_nobody_knows_what_is_dead(shape: tuple[int, ...]) -> None:
    for others in (0.0, 1.0):
        slope = torch.full(shape, others)
        slope[1, 2] = math.nan
        assert math.isnan(q.dead_fraction(slope).item())
        lifted = torch.func.vmap(q.dead_fraction)(torch.stack([torch.zeros(shape), slope]))
        assert lifted[0].item() == 1.0
        assert math.isnan(lifted[1].item())


def test_update_ratio() -> None:
    before, after = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])
    assert q.update_ratio(before, after).item() == pytest.approx(0.1)
    assert q.update_ratio(torch.zeros(2), torch.ones(2)).item() == math.inf
    # Squares of such steps overflow in single precision.
    assert q.update_ratio(torch.ones(2), torch.full((2,), 1e30)).item() == pytest.approx(1e30, rel=1e-6)


@pytest.mark.parametrize("factor", [0.25, 0.9, 1.0, 1.7])
def test_depth_factor_of_a_geometric_profile_is_its_ratio(factor: float) -> None:
    profile = [3.0 * factor ** (20 - layer) for layer in range(20)]
    found = depth_factor(profile)
    assert found is not None
    assert found.factor == pytest.approx(factor, rel=1e-12)
    assert found.r2 == pytest.approx(1.0)


def test_depth_factor_is_the_least_squares_line() -> None:
    profile = [1.0, 5.0, 2.0, 9.0, 30.0]
    logs = torch.tensor(profile, dtype=torch.float64).log()
    design = torch.stack([torch.ones(5), torch.arange(5.0)], 1).double()
    line = torch.linalg.lstsq(design, logs.unsqueeze(1)).solution.flatten()
    residual = logs - design @ line
    found = depth_factor(profile)
    assert found is not None
    assert found.factor == pytest.approx(math.exp(-line[1].item()), rel=1e-12)
    assert found.r2 == pytest.approx(1 - (residual.var() / logs.var()).item(), rel=1e-10)


def test_depth_factor_leaves_out_what_has_no_logarithm() -> None:
    found = depth_factor([0.0, math.nan, 4.0, 2.0, math.inf, 0.5])
    assert found is not None
    assert found.layers == 3
    assert found.factor == pytest.approx(2.0)


@pytest.mark.parametrize("profile", [[], [1.0], [0.0, 0.0, 1.0], [math.nan, math.nan]])
def test_no_depth_factor_without_two_layers(profile: list[float]) -> None:
    assert depth_factor(profile) is None


def test_quantities_can_be_lifted_to_many_models_at_once() -> None:
    grads = torch.randn(5, 8, 3, generator=torch.Generator().manual_seed(0))
    lifted = torch.func.vmap(q.signal_grad_norm)(grads)
    assert torch.allclose(lifted, torch.stack([q.signal_grad_norm(g) for g in grads]))
    slopes = (grads > 0).float()
    assert torch.equal(torch.func.vmap(q.dead_fraction)(slopes), torch.stack([q.dead_fraction(s) for s in slopes]))


@pytest.mark.parametrize("shape", [(6, 20), (4, 3, 5, 5)])
@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
def test_correlation_is_the_mean_over_pairs(shape: tuple[int, ...], scale: float) -> None:
    h = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 0.5) * scale
    flat = h.double().flatten(1)
    pairs = [flat[i] @ flat[j] for i in range(len(flat)) for j in range(len(flat)) if i != j]
    expected = torch.stack(pairs).mean() / flat.square().sum(1).mean()
    assert q.correlation(h).item() == pytest.approx(expected.item(), rel=1e-5)


def test_correlation_at_its_ends() -> None:
    assert q.correlation(torch.ones(5, 3)).item() == pytest.approx(1.0)
    assert q.correlation(torch.eye(4)).item() == pytest.approx(0.0)
    assert math.isnan(q.correlation(torch.zeros(3, 3)).item())
    assert math.isnan(q.correlation(torch.full((3, 3), math.inf)).item())


def test_nobody_knows_how_saturated_a_broken_layer_is() -> None:
    slope = torch.tensor([[0.01, 1.0], [math.nan, 0.02]])
    assert math.isnan(q.saturated_fraction(slope, 1.0).item())
    assert q.saturated_fraction(slope[:1], 1.0).item() == 0.5
