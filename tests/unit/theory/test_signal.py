"""What dropout leaves of a signal: against wide random networks run twice, and against closed forms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from gradstab.theory import NoTheory, activation, signal_shares
from gradstab.theory.quadrature import pair_expectation
from gradstab.theory.signal import _Covariances

WIDTH, DEPTH, SAMPLES = 1500, 5, 128


def measured(act: torch.nn.Module, norm: str, position: str, rate: float, skip: float | None) -> list[float]:
    """Shares in one wide network, its samples passed through twice with different masks; every step by hand."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SAMPLES, 64, generator=generator) + 0.8
    shares, streams, units = [], [torch.zeros(()), torch.zeros(())], [x, x]
    for layer in range(DEPTH + 1):
        weight = torch.randn(units[0].shape[1], WIDTH, generator=generator) * (1.5 / units[0].shape[1]) ** 0.5
        for i, unit in enumerate(units):
            affine = unit @ weight
            streams[i] = streams[i] + skip * affine if skip is not None and layer else affine
        first, second = (h.double() for h in streams)
        square, masked = first.square().mean(), (first * second).mean()
        common = (first.sum(0).square().sum() - first.square().sum()) / (SAMPLES * (SAMPLES - 1) * WIDTH)
        shares.append(float((masked - common) / (square - common)))
        for i, h in enumerate(streams):
            axis = {"batch": 0, "layer": 1}.get(norm)

            def normalised(t: torch.Tensor, axis: int | None = axis) -> torch.Tensor:
                if axis is None:
                    return t
                return (t - t.mean(axis, keepdim=True)) / (t.std(axis, keepdim=True, correction=0) + 1e-9)

            a = act(normalised(h)) if position == "before" else normalised(act(h))
            units[i] = a * (torch.rand(a.shape, generator=generator) > rate) / (1 - rate)
    return shares


UNITS = [
    ("none", "before", "none"),
    ("batch", "before", "none"),
    ("batch", "after", "none"),
    ("layer", "before", "none"),
    ("layer", "after", "none"),
    ("none", "before", "add"),
    ("layer", "before", "scaled"),
]
# A ReLU that is dead for a whole batch has no variance for a BatchNorm after it to divide by.
CASES = [("tanh", torch.nn.Tanh(), *unit) for unit in UNITS]
CASES += [("relu", torch.nn.ReLU(), *unit) for unit in UNITS if unit[:2] != ("batch", "after")]


@pytest.mark.parametrize(("name", "module", "norm", "position", "residual"), CASES)
def test_wide_networks_lose_as_much(
    name: str, module: torch.nn.Module, norm: str, position: str, residual: str
) -> None:
    rate = 0.2
    skip = {"none": None, "add": 1.0, "scaled": (DEPTH - 1) ** -0.5}[residual]
    found = measured(module, norm, position, rate, skip)
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(SAMPLES, 64, generator=generator) + 0.8).double()
    q0 = float(x.square().mean())
    c0 = float((x.sum(0).square().sum() - x.square().sum()) / (SAMPLES * (SAMPLES - 1) * 64)) / q0
    expected = signal_shares(
        act=name,
        widths=[64, *[WIDTH] * DEPTH, 10],
        q0=q0,
        c0=c0,
        dropout=rate,
        init="variance",
        init_knobs={"sigma_w2": 1.5, "sigma_b2": 0.0},
        norm=norm,
        norm_position=position,
        residual=residual,
    )
    # The network that was run has a last hidden layer as wide as the others in place of the output.
    np.testing.assert_allclose(found[:DEPTH], expected[:DEPTH], atol=0.03)


def test_without_dropout_nothing_is_lost() -> None:
    shares = signal_shares(act="gelu", widths=[10, *[100] * 20, 3], q0=1.0, c0=0.3, dropout=0.0, init="kaiming_normal")
    np.testing.assert_allclose(shares, 1.0, atol=1e-9)


def test_a_linear_network_has_a_closed_form() -> None:
    """Q grows by 1/(1-p) a layer and covariances stay: S = (1 - c) / ((1-p)^-l - c)."""
    rate, c0 = 0.1, 0.4
    shares = signal_shares(act="identity", widths=[10, *[50] * 6, 3], q0=2.0, c0=c0, dropout=rate, init="lecun_normal")
    expected = [(1 - c0) / ((1 - rate) ** -layer - c0) for layer in range(7)]
    np.testing.assert_allclose(shares, expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("knobs", "depth", "q"),
    [
        # Branches start at 0, and the stream is the first layer's output.
        ({"init": "lecun_normal", "residual": "rezero"}, 5, 1.5),
        ({"init": "lsuv", "init_knobs": {"gain": 2.0}}, 1, 4.0),
    ],
)
def test_one_mask_alone_has_a_closed_form(knobs: dict[str, Any], depth: int, q: float) -> None:
    """Williams 1997: E φ(u)φ(v) = (2/π) asin(2qc/(1+2q)) for erf."""
    c, rate = 0.3, 0.2
    shares = signal_shares(act="erf", widths=[10, *[50] * depth, 3], q0=1.5, c0=c, dropout=rate, **knobs)
    own, common = (np.arcsin(2 * q * at / (1 + 2 * q)) for at in (1, c))
    expected = (own - common) / (own / (1 - rate) - common)
    np.testing.assert_allclose(shares, [*[1] * depth, expected], rtol=1e-3)


def test_lsuv_scales_by_what_it_measures_without_masks() -> None:
    """All layers have the variance 4 as they are drawn; with masks, moments by Williams 1997 (erf), by hand."""
    rate, c, target = 0.3, 0.3, 4.0

    def moment(covariance: float, q: float) -> float:
        return 2 / math.pi * math.asin(2 * covariance / (1 + 2 * q))

    sigma_w2 = target / moment(target, target)
    q, same, other = target, target, c * target
    expected = [1.0]
    for _ in range(4):
        unit = moment(q, q) / (1 - rate), moment(same, q), moment(other, q)
        q, same, other = (sigma_w2 * one for one in unit)
        expected.append((same - other) / (q - other))
    knobs: dict[str, Any] = {"init": "lsuv", "init_knobs": {"gain": 2.0}}
    shares = signal_shares(act="erf", widths=[10, *[50] * 4, 3], q0=1.5, c0=c, dropout=rate, **knobs)
    np.testing.assert_allclose(shares, expected, rtol=1e-3)


@pytest.mark.parametrize("name", ["relu", "hardtanh", "sigmoid", "selu", "softplus"])
@pytest.mark.parametrize("c", [-0.5, 0.0, 0.6, 0.99])
def test_the_series_is_the_integral(name: str, c: float) -> None:
    act = activation(name)
    direct = float(pair_expectation(lambda x, y: act.phi(x) * act.phi(y), c, 1.7, act.kinks))
    assert _Covariances(act)((1.7, 1.7 * c, 1.7))[0][1] == pytest.approx(direct, rel=1e-3, abs=1e-4)


def test_no_word_on_weights_that_are_not_random() -> None:
    with pytest.raises(NoTheory, match="init=identity"):
        signal_shares(act="relu", widths=[4, 4, 2], q0=1.0, c0=0.0, dropout=0.1, init="identity")


def test_inputs_of_zero_leave_nothing_to_lose() -> None:
    network: dict[str, Any] = {"widths": [4, 5, 5, 2], "q0": 0.0, "c0": 0.0, "dropout": 0.1}
    with pytest.raises(NoTheory, match="init=lsuv: what a layer is given is all 0"):
        signal_shares(act="relu", init="lsuv", **network)
    assert np.isnan(signal_shares(act="tanh", init="lecun_normal", **network)).all()
