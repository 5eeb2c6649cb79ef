"""Clipping against torch.nn.utils, numpy and plain loops over lists of floats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradstab.clipping import (
    Clip,
    build_clip,
    joint_norm,
    norm_scale,
    percentile_threshold,
    percentile_update,
    unit_clip,
    value_clip,
    zclip_update,
)
from gradstab.config import OPTIONS

SHAPES = [(4, 3), (4,), (5, 2, 3, 3), (5,), (6, 5, 5), (1, 7), (7, 1), ()]
BLOCK_OF = [0, 0, 1, 1, 2, 3, 3, 4]
TIGHT: dict[str, dict[str, Any]] = {
    "norm": {"max_norm": 0.5},
    "value": {"max_value": 0.1},
    "layer": {"max_norm": 0.5},
    "agc": {"clipping": 0.01, "eps": 1e-3},
    "percentile": {"percentile": 40.0, "window": 5},
    "zclip": {"alpha": 0.9, "z": 1.5, "warmup_steps": 4},
}
LOOSE = {
    "norm": {"max_norm": 1e6},
    "value": {"max_value": 1e6},
    "layer": {"max_norm": 1e6},
    "agc": {"clipping": 1e6, "eps": 1e-3},
    "percentile": {"percentile": 100.0, "window": 5},
    "zclip": {"alpha": 0.9, "z": 1.5, "warmup_steps": 4},
}


def parameters() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape)) for shape in SHAPES]


def gradients(seed: int = 1, factor: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [factor * torch.randn(shape, generator=generator) for shape in SHAPES]


def norms_of(grads: Sequence[Tensor], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.stack([grad.double().norm() for grad in grads]).to(dtype)


def policy(name: str, knobs: dict[str, Any], params: list[nn.Parameter] | None = None) -> Clip:
    clip = build_clip(name, params or parameters(), BLOCK_OF, **knobs)
    assert clip is not None
    return clip


def warmed(name: str, knobs: dict[str, Any]) -> Clip:
    """A policy with some history behind it: a few small gradients, of different norms."""
    clip = policy(name, knobs)
    for seed in range(6):
        grads = gradients(seed, 0.05 + 0.01 * seed)
        clip(grads, norms_of(grads))
    return clip


def assert_same(left: Sequence[Tensor], right: Sequence[Tensor]) -> None:
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_every_option_is_tested() -> None:
    assert OPTIONS["clip"].keys() == {"none", *TIGHT} == {"none", *LOOSE}
    assert build_clip("none", parameters(), BLOCK_OF) is None


# ------------------------------------------------------------------------------------------ every policy


@pytest.mark.parametrize("name", TIGHT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norms_returned_are_those_of_the_clipped_gradients(name: str, dtype: torch.dtype) -> None:
    clip = warmed(name, TIGHT[name])
    grads = gradients(9, 30.0)
    before = norms_of(grads, dtype)
    after = clip(grads, before)
    assert after.shape == before.shape
    assert after.dtype == dtype
    assert (after < before).any()
    np.testing.assert_allclose(after.numpy(), norms_of(grads).numpy(), rtol=2e-6)


@pytest.mark.parametrize("name", TIGHT)
def test_gradients_within_the_limit_keep_every_bit_and_their_norm(name: str) -> None:
    clip = policy(name, LOOSE[name])
    grads = gradients(1)
    before = norms_of(grads)
    assert_same([clip(grads, before)], [before])
    assert_same(grads, gradients(1))


@pytest.mark.parametrize("name", TIGHT)
def test_zero_gradients_stay_zero(name: str) -> None:
    clip = warmed(name, TIGHT[name])
    grads = gradients(1, 0.0)
    after = clip(grads, norms_of(grads))
    assert after.tolist() == [0.0] * len(SHAPES)
    assert all((grad == 0).all() for grad in grads)


@pytest.mark.parametrize("name", TIGHT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_1e30_are_clipped_like_smaller_ones(name: str, dtype: torch.dtype) -> None:
    clips = policy(name, TIGHT[name]), policy(name, TIGHT[name])
    for seed in range(6):
        for clip in clips:
            grads = gradients(seed, 0.05 + 0.01 * seed)
            clip(grads, norms_of(grads, dtype))
    large, huge = gradients(9, 1e3), gradients(9, 1e30)
    norms = [clip(grads, norms_of(grads, dtype)) for clip, grads in zip(clips, (large, huge), strict=True)]
    assert all(grad.isfinite().all() for grad in huge)
    # zclip's limit nears the mean as the norm grows; the others' limits are the same for both.
    np.testing.assert_allclose(norms[1].numpy(), norms[0].numpy(), rtol=1e-3 if name == "zclip" else 2e-6)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("name", TIGHT)
def test_what_is_not_finite_is_left_as_it_is_and_enters_no_state(name: str, bad: float) -> None:
    clip = warmed(name, TIGHT[name])
    state = clip.state_dict()
    grads, original = gradients(9, 30.0), gradients(9, 30.0)
    grads[2][3, 1] = original[2][3, 1] = bad
    before = norms_of(grads)
    after = clip(grads, before)
    np.testing.assert_array_equal(after[2].numpy(), before[2].numpy())
    for grad, was in zip(grads, original, strict=True):
        np.testing.assert_array_equal(grad.isfinite().numpy(), was.isfinite().numpy())
    np.testing.assert_array_equal(grads[2][3, 1].numpy(), original[2][3, 1].numpy())
    for key, value in clip.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), state[key].numpy())
    if name in ("norm", "percentile", "zclip"):
        assert_same(grads, original)
        assert_same([after], [before])
    else:
        assert (after < before).any()


@pytest.mark.parametrize("name", TIGHT)
def test_a_resumed_policy_goes_on_identically(name: str) -> None:
    def go(clip: Clip, seeds: range) -> list[Tensor]:
        seen = []
        for seed in seeds:
            grads = gradients(seed, 1.0 + seed % 4)
            seen += [clip(grads, norms_of(grads)), *grads]
        return seen

    clip = policy(name, TIGHT[name])
    go(clip, range(7))
    saved = clip.state_dict()
    wanted = go(clip, range(7, 14))
    resumed = policy(name, TIGHT[name])
    resumed.load_state_dict(saved)
    assert_same(go(resumed, range(7, 14)), wanted)
    assert bool(saved) == (name in ("percentile", "zclip"))
    if saved:
        fresh = go(policy(name, TIGHT[name]), range(7, 14))
        assert any(not torch.equal(a, b) for a, b in zip(fresh, wanted, strict=True))


@pytest.mark.parametrize("name", TIGHT)
def test_bfloat16_gradients_keep_their_dtype(name: str) -> None:
    clip = warmed(name, TIGHT[name])
    grads = [grad.bfloat16() for grad in gradients(9, 30.0)]
    after = clip(grads, norms_of(grads))
    assert all(grad.dtype == torch.bfloat16 for grad in grads)
    np.testing.assert_allclose(after.numpy(), norms_of(grads).numpy(), rtol=1e-2)


# ------------------------------------------------------------------------------ each against a reference


@pytest.mark.parametrize("factor", [0.01, 1.0, 100.0])
def test_norm_is_torchs_clip_grad_norm(factor: float) -> None:
    params, grads = parameters(), gradients(1, factor)
    for p, grad in zip(params, gradients(1, factor), strict=True):
        p.grad = grad
    torch.nn.utils.clip_grad_norm_(params, 2.0)
    policy("norm", {"max_norm": 2.0})(grads, norms_of(grads))
    for p, grad in zip(params, grads, strict=True):
        torch.testing.assert_close(grad, p.grad)


def test_value_is_torchs_clip_grad_value() -> None:
    params, grads = parameters(), gradients(1)
    for p, grad in zip(params, gradients(1), strict=True):
        p.grad = grad
    torch.nn.utils.clip_grad_value_(params, 0.3)
    policy("value", {"max_value": 0.3})(grads, norms_of(grads))
    assert_same(grads, [p.grad for p in params if p.grad is not None])


def test_layer_is_torchs_clip_grad_norm_for_each_block() -> None:
    params, grads = parameters(), gradients(1)
    for p, grad in zip(params, gradients(1), strict=True):
        p.grad = grad
    for block in set(BLOCK_OF):
        torch.nn.utils.clip_grad_norm_([p for p, of in zip(params, BLOCK_OF, strict=True) if of == block], 3.0)
    policy("layer", {"max_norm": 3.0})(grads, norms_of(grads))
    for p, grad in zip(params, grads, strict=True):
        torch.testing.assert_close(grad, p.grad)
    assert not torch.equal(grads[2], gradients(1)[2])
    assert torch.equal(grads[7], gradients(1)[7])


def test_agc_is_a_loop_over_units() -> None:
    params, grads = parameters(), gradients(1)
    with torch.no_grad():
        params[0][2] = 0.0  # eps takes the place of this unit's norm
        params[2][1] *= 1e4  # this one is not clipped
    policy("agc", {"clipping": 0.01, "eps": 1e-3}, params)(grads, norms_of(grads))
    for p, grad, original in zip(params, grads, gradients(1), strict=True):
        weight, wanted = p.detach().double().numpy(), original.double().numpy()
        # The authors' code takes a tensor that squeezes to a vector or scalar for one unit.
        matrix = sum(size > 1 for size in wanted.shape) > 1
        for w, g in zip(weight, wanted, strict=True) if matrix else [(weight, wanted)]:
            limit = 0.01 * max(np.linalg.norm(w), 1e-3)
            if np.linalg.norm(g) > limit:
                g *= limit / np.linalg.norm(g)
        np.testing.assert_allclose(grad.numpy(), wanted, rtol=1e-6)
    assert torch.equal(grads[2][1], gradients(1)[2][1])


def test_percentile_is_autoclip_over_a_window() -> None:
    clip = policy("percentile", {"percentile": 30.0, "window": 4})
    history: list[float] = []
    for seed in range(11):
        grads = gradients(seed, 1.0 + (seed * 7) % 5)
        before = norms_of(grads)
        history.append(float(np.linalg.norm(before.numpy())))
        threshold = np.percentile(history[-4:], 30.0)
        after = clip(grads, before)
        assert np.linalg.norm(after.numpy()) == pytest.approx(min(history[-1], threshold), rel=1e-12)


@pytest.mark.parametrize("name", ["percentile", "zclip"])
def test_norms_may_change_their_dtype_between_steps(name: str) -> None:
    """A probe takes norms in float64 when float32 cannot hold them; no bit may change where nothing is clipped."""
    knobs = {"percentile": {"percentile": 100.0, "window": 3}, "zclip": {"alpha": 0.9, "z": 2.5, "warmup_steps": 9}}
    clip = policy(name, knobs[name])
    for seed, factor, dtype in [(1, 1.0, torch.float32), (2, 7e37, torch.float64), (3, 1.0, torch.float32)]:
        grads = gradients(seed, factor)
        assert all(grad.isfinite().all() for grad in grads)
        before = norms_of(grads, dtype)
        assert_same([clip(grads, before)], [before])
        assert_same(grads, gradients(seed, factor))
    total = np.linalg.norm(norms_of(gradients(2, 7e37)).numpy())
    assert total > torch.finfo(torch.float32).max
    state = clip.state_dict()
    assert all(value.isfinite().all() for value in state.values())
    if name == "percentile":
        assert state["history"].max().item() == pytest.approx(total, rel=1e-12)


def official_zclip(norms: Sequence[float], alpha: float, z: float, warmup: int) -> list[float]:
    """The clipped norms after github.com/bluorion-com/ZClip, mode zscore, adaptive scaling, in plain floats."""
    buffer: list[float] = []
    clipped, mean, var = [], 0.0, 0.0
    for norm in norms:
        if len(buffer) < warmup:
            buffer.append(norm)
            mean, var = float(np.mean(buffer)), float(np.var(buffer))
            clipped.append(norm)
            continue
        score = (norm - mean) / math.sqrt(var)
        taken = mean + z * math.sqrt(var) / (score / z) if score > z else norm
        mean = alpha * mean + (1 - alpha) * taken
        var = alpha * var + (1 - alpha) * (taken - mean) ** 2
        clipped.append(taken)
    return clipped


def test_zclip_is_the_authors_algorithm_with_their_defaults() -> None:
    assert {k: OPTIONS["clip"]["zclip"](name="zclip").knobs[k] for k in ("alpha", "z", "warmup_steps")} == {
        "alpha": 0.97,
        "z": 2.5,
        "warmup_steps": 25,
    }
    clip = policy("zclip", {"alpha": 0.97, "z": 2.5, "warmup_steps": 25})
    before, after = [], []
    for seed in range(60):
        grads = gradients(seed, 50.0 if seed in (7, 30, 31, 45) else 1.0)
        norms = norms_of(grads)
        before.append(float(np.linalg.norm(norms.numpy())))
        after.append(float(np.linalg.norm(clip(grads, norms).numpy())))
    wanted = official_zclip(before, 0.97, 2.5, 25)
    np.testing.assert_allclose(after, wanted, rtol=1e-9)
    clipped = [i for i, (a, b) in enumerate(zip(after, before, strict=True)) if a < b * 0.999]
    assert 30 in clipped
    assert min(clipped) >= 25


def test_zclip_brings_a_spike_after_constant_norms_down_to_their_mean() -> None:
    clip = policy("zclip", {"alpha": 0.97, "z": 2.5, "warmup_steps": 3})
    for factor, wanted in [(1.0, 1.0), (1.0, 1.0), (1.0, 1.0), (1.0, 1.0), (100.0, 1.0)]:
        norms = torch.zeros(len(SHAPES), dtype=torch.float64)
        norms[0] = factor
        assert clip(gradients(), norms)[0].item() == pytest.approx(wanted, rel=1e-12)


# ----------------------------------------------------------------------------------------- the pure rules


def test_joint_norm_of_huge_tiny_zero_and_broken_values() -> None:
    assert joint_norm(torch.tensor([3.0, 4.0])).item() == 5.0
    assert joint_norm(torch.tensor([3e30, 4e30])).item() == pytest.approx(5e30, rel=1e-6)
    assert joint_norm(torch.tensor([3e-30, 4e-30])).item() == pytest.approx(5e-30, rel=1e-6)
    assert joint_norm(torch.zeros(3)).item() == 0.0
    assert joint_norm(torch.tensor([1.0, math.inf])).isnan()
    assert joint_norm(torch.tensor([math.inf, math.nan])).isnan()
    assert joint_norm(torch.ones(4, dtype=torch.bfloat16)).dtype == torch.float32


def test_norm_scale_at_the_edges() -> None:
    norms = torch.tensor([0.0, 0.5, 1.0, 2.0, 4e30, math.inf, math.nan])
    scale = norm_scale(norms, 1.0)
    assert scale[[0, 1, 2, 3, 5, 6]].tolist() == [1, 1, 1, 0.5, 1, 1]
    assert scale[4].item() == pytest.approx(2.5e-31, rel=1e-6)
    assert norm_scale(torch.tensor(3.0), torch.tensor(math.nan)).item() == 1.0
    assert norm_scale(torch.tensor(3.0), math.inf).item() == 1.0


@pytest.mark.parametrize("percentile", [1.0, 10.0, 50.0, 77.7, 100.0])
def test_percentile_threshold_is_numpys(percentile: float) -> None:
    values = np.random.default_rng(0).lognormal(size=23)
    history = torch.full((40,), math.nan, dtype=torch.float64)
    assert percentile_threshold(history, percentile).isnan()
    for n in range(1, 24):
        history[n - 1] = values[n - 1]
        wanted = np.percentile(values[:n], percentile)
        assert percentile_threshold(history, percentile).item() == pytest.approx(wanted, rel=1e-12)


def test_the_rules_lift_to_many_models() -> None:
    generator = torch.Generator().manual_seed(0)
    grads, weights = (torch.randn(3, 4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    vmap = torch.func.vmap
    history = torch.rand(3, 6, generator=generator, dtype=torch.float64)
    history[1, 3:] = math.nan
    count = torch.tensor([6, 3, 8])
    norms = torch.tensor([0.3, 5.0, math.nan], dtype=torch.float64)
    state = {"mean": history[:, 0], "deviation": history[:, 1], "count": count}
    for function, arguments in [
        (joint_norm, (grads,)),
        (lambda norm: norm_scale(norm, 0.7), (norms,)),
        (lambda g, w, n: value_clip(g, w, n, 0.5), (grads, weights, norms)),
        (lambda g, w, n: unit_clip(g, w, n, 0.1, 1e-3), (grads, weights, norms)),
        (lambda h: percentile_threshold(h, 30.0), (history,)),
        (lambda s, n: percentile_update(s, n, percentile=30.0), ({"history": history, "count": count}, norms)),
        (lambda s, n: zclip_update(s, n, alpha=0.9, z=1.5, warmup_steps=5), (state, norms)),
    ]:
        lifted = vmap(function)(*arguments)
        for i in range(3):
            each = function(*torch.utils._pytree.tree_map(lambda leaf, i=i: leaf[i], arguments))
            picked = torch.utils._pytree.tree_map(lambda leaf, i=i: leaf[i], lifted)
            torch.testing.assert_close(picked, each, equal_nan=True, rtol=1e-12, atol=0)
