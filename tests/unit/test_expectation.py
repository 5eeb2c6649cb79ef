"""From a configuration to theory's prediction: what reaches the theory, what is refused, and what it costs others."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from gradstab.assembly import build, build_initialised
from gradstab.config.verdict_options import Thresholds
from gradstab.data import Dataset, Split, load_data
from gradstab.expectation import (
    caveats,
    expect,
    theory_record,
    window_correlations,
)
from gradstab.inputs import Inputs, inputs_of
from gradstab.measure.diagnosis import Judge
from gradstab.measure.probe import Probe
from gradstab.reproducibility import generator
from gradstab.step_scale import step_growth, step_scale
from gradstab.theory import NoTheory, predict, signal_shares
from tests.conftest import Compose


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_data("digits")


@pytest.fixture(scope="module")
def inputs(digits: Dataset) -> Inputs:
    return inputs_of(digits)


def dataset(samples: torch.Tensor) -> Dataset:
    split = Split(samples, torch.zeros(len(samples), dtype=torch.int64))
    return Dataset(split, split, 10)


def test_inputs_of_a_data_set_by_hand() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 2.0], [1.0, -1.0]])
    found = inputs_of(dataset(x))
    np.testing.assert_allclose(found.q0, [12.5, 2.0, 1.0])
    # Inner products 8, -1 and -2, over two features and over the mean length.
    assert found.c0 == pytest.approx((8 - 1 - 2) / 3 / 2 / (15.5 / 3))
    assert (found.n_in, found.n_out, found.in_shape, found.lenet_q0) == (2, 10, (2,), None)


def test_many_samples_are_thinned_out() -> None:
    x = torch.arange(1.0, 1001).sqrt().unsqueeze(1).expand(1000, 100)
    found = inputs_of(dataset(x))
    assert found.q0.shape == (256,)
    assert (found.q0[0], found.q0[-1]) == pytest.approx((1, 1000))
    assert inputs_of(dataset(torch.ones(1, 3))).c0 == 0


def test_samples_of_few_numbers_are_more_because_they_differ_more() -> None:
    x = torch.randn(20_000, 8, generator=torch.Generator().manual_seed(0))
    # Of a normal vector of n numbers, E[n / ‖x‖²] = n / (n - 2).
    assert (1 / inputs_of(dataset(x)).q0).mean() == pytest.approx(8 / 6, rel=0.03)


@pytest.mark.parametrize(("width", "said"), [(2, True), (3, True), (12, False), (64, False)])
def test_layer_norm_of_inputs_that_differ_much_in_length_is_told_of(configure: Compose, width: int, said: bool) -> None:
    x = torch.randn(2000, width, generator=torch.Generator().manual_seed(0))
    notes = expect(configure("model.norm=layer"), inputs_of(dataset(x))).notes
    assert any("differ so much in length" in note for note in notes) == said


@pytest.mark.parametrize("side", [8, 28, 32])
def test_what_lenets_first_kernels_see(side: int) -> None:
    images = torch.randn(5, 3, side, side, generator=torch.Generator().manual_seed(side))
    padded = {8: lambda x: x.repeat_interleave(4, 2).repeat_interleave(4, 3), 28: nn.ZeroPad2d(2), 32: nn.Identity()}
    patches = nn.functional.unfold(padded[side](images), 5)
    assert inputs_of(dataset(images)).lenet_q0 == pytest.approx(patches.square().mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    "overrides",
    [
        "act=tanh init=variance init.sigma_w2=2 init.sigma_b2=0.1 model.width=[60,90,60] init.gain=1.1",
        "act=elu act.alpha=0.7 model.bias=false model.dropout=0.2 init=default model.depth=4",
        "act=gelu model.norm=layer model.norm_position=after model.residual=scaled model.depth=4",
        "act=relu model.norm=batch batch_size=16 model.depth=4",
        "act=leaky_relu act.slope=0.3 model.depth=4 constraint=weight_norm",
        "act=tanh model.depth=3 constraint=max_norm",
    ],
)
def test_every_knob_reaches_the_theory(configure: Compose, inputs: Inputs, overrides: str) -> None:
    config = configure(*overrides.split())
    model = config.model.knobs
    width = model["width"]
    expected = predict(
        act=config.act.name,
        act_knobs=config.act.knobs,
        widths=[64, *([width] * model["depth"] if isinstance(width, int) else width), 10],
        q0=inputs.q0,
        init=config.init.name,
        init_knobs=config.init.knobs,
        norm=model["norm"],
        norm_position=model["norm_position"],
        dropout=model["dropout"],
        residual=model["residual"],
        bias=model["bias"],
        batch_size=config.batch,
        c0=inputs.c0,
        batches=inputs.batches(config.batch, 0.1) if model["norm"] == "batch" else (),
    )
    found = expect(config, inputs)
    # All 256 lengths against the 32 that stand in for them.
    np.testing.assert_allclose(found.signal_grad_norm, expected.signal_grad_norm, rtol=1e-3)
    assert found.depth_factor == pytest.approx(expected.depth_factor, rel=2e-4)
    np.testing.assert_array_equal(found.sigma_w2, expected.sigma_w2)


def test_the_signal_that_dropout_leaves_is_reckoned_from_the_data(configure: Compose, inputs: Inputs) -> None:
    config = configure("act=tanh", "model.depth=4", "model.width=50", "model.dropout=0.3", "init.gain=1.5")
    widths, knobs = [64, 50, 50, 50, 50, 10], {"gain": 1.5}
    q0 = float(inputs.q0.mean())
    shares = signal_shares(
        act="tanh", widths=widths, q0=q0, c0=inputs.c0, dropout=0.3, init=config.init.name, init_knobs=knobs
    )
    assert theory_record(config, inputs)["signal_share"] == pytest.approx(shares[-1], rel=1e-9)


def test_samples_of_few_numbers_may_still_span_a_small_batchs_directions(configure: Compose) -> None:
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    words = ("model.norm=batch", "act=tanh", "init=kaiming_normal", "model.depth=4")
    assert math.isfinite(expect(configure(*words, "batch_size=5"), inputs_of(dataset(x))).depth_factor)
    with pytest.raises(NoTheory, match="samples of 4 numbers span too few"):
        expect(configure(*words, "batch_size=6"), inputs_of(dataset(x)))


def test_a_few_lengths_stand_for_all_of_them(configure: Compose, inputs: Inputs) -> None:
    config = configure("act=tanh", "init=xavier_normal", "model.depth=500")
    every = predict(act="tanh", init="xavier_normal", widths=[64] + [128] * 500 + [10], q0=inputs.q0[::4])
    assert expect(config, inputs).depth_factor == pytest.approx(every.depth_factor, rel=1e-3)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ("constraint=spectral_norm", "constraint=spectral_norm"),
        ("model=lenet5_1998", "model=lenet5_1998"),
        ("model=lenet5", "window"),
        ("model.depth=0", "no hidden layer"),
        ("init=zeros", "every weight is 0"),
        ("model.norm=batch batch_size=3", "from 4 samples on"),
    ],
)
def test_what_has_no_theory_is_refused_in_one_line(
    configure: Compose, inputs: Inputs, overrides: str, reason: str
) -> None:
    config = configure(*overrides.split())
    with pytest.raises(NoTheory, match=reason):
        expect(config, inputs)
    record = theory_record(config, inputs)
    assert set(record) <= {"reason", "step_scale", "constant_rate", "batch_norm"}
    assert reason in record["reason"]
    assert "\n" not in record["reason"]


@pytest.mark.parametrize(
    ("overrides", "scale"),
    [
        ("model.depth=16 optimizer=sgd", 64.0),
        ("model.depth=16 optimizer=adam model.norm=layer", 64.0),
        ("model.depth=4 optimizer=momentum optimizer.momentum=0.5", 8 * (2 - (1 - 0.5**20) / 10)),
        ("model.depth=16 model.residual=add", None),
        ("model.depth=16 model.norm=batch", None),
        ("model.depth=0", None),
        ("model=lenet5", None),
    ],
)
def test_how_much_a_step_weighs(configure: Compose, overrides: str, scale: float | None) -> None:
    assert step_scale(configure(*overrides.split())) == (None if scale is None else pytest.approx(scale))


@pytest.mark.parametrize(
    "overrides",
    [
        *("optimizer=sgd", "optimizer=momentum", "optimizer=nesterov optimizer.momentum=0.8", "optimizer=adagrad"),
        *("optimizer=rmsprop", "optimizer=rmsprop optimizer.momentum=0.5 optimizer.alpha=0.9", "optimizer=adam"),
        *("optimizer=adamw optimizer.weight_decay=0", "optimizer=muon"),
    ],
)
def test_how_steps_grow_under_a_gradient_that_stays(configure: Compose, overrides: str) -> None:
    config = configure(*overrides.split(), "model.depth=2", "model.width=8", "precision=float64", "device=cpu")
    parts = build(config)
    hidden = parts.probe.layers[1].weight_parameters()[0]
    torch.manual_seed(1)
    gradients = [torch.randn_like(p) for p in parts.model.parameters()]
    sizes = []
    for _ in range(20):
        for parameter, gradient in zip(parts.model.parameters(), gradients, strict=True):
            parameter.grad = gradient.clone()
        before = hidden.detach().clone()
        parts.optimizer.step()
        sizes.append((hidden.detach() - before).norm().item())
    # Muon orthogonalises in half precision.
    tolerance = 0.02 if config.optimizer.name == "muon" else 1e-6
    assert step_growth(config.optimizer.name, config.optimizer.knobs) == pytest.approx(
        np.mean(sizes) / sizes[0], rel=tolerance
    )


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["loss=mse", "model=lenet5"], ["loss=mse"]),
        (["loss=mse", "model.norm=batch"], ["loss=mse", "norm=batch: what gradients"]),
        (["model.norm=batch"], []),
        (["model.norm=layer"], []),
    ],
)
def test_what_is_taken_for_granted_of_the_outputs_is_said(
    configure: Compose, digits: Dataset, overrides: list[str], said: list[str]
) -> None:
    notes = expect(configure(*overrides), inputs_of(digits), (0.5, 0.5)).notes
    found = [note for note in notes if note.startswith(("loss=", "norm=batch: what"))]
    assert [note[: len(start)] for note, start in zip(found, said, strict=True)] == said


def test_lenet_needs_images(configure: Compose) -> None:
    with pytest.raises(NoTheory, match="square images"):
        expect(configure("model=lenet5"), inputs_of(dataset(torch.ones(4, 7))), (0.5, 0.5))


def test_records_are_plain_and_complete(configure: Compose, inputs: Inputs) -> None:
    record = theory_record(configure("act=sigmoid", "init=xavier_normal", "model.depth=5"), inputs)
    predicted = ["depth_factor", "depth_factor_r2", "signal_grad_norm", "q", "chi_1", "notes"]
    assert list(record) == [*predicted, "step_scale", "constant_rate"]
    warming = theory_record(configure("schedule=warmup_cosine"), inputs)
    assert "constant_rate" not in warming
    assert {len(record[key]) for key in ("signal_grad_norm", "q", "chi_1")} == {5}
    assert record["signal_grad_norm"][-1] == 1
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    single = theory_record(configure("model.depth=1"), inputs)
    assert (single["depth_factor"], single["signal_grad_norm"]) == (None, [1.0])


# -------------------------------------------------------------------------------------------------- LeNet-5


def test_window_correlations_of_a_real_network(configure: Compose, digits: Dataset) -> None:
    """Against NumPy's own correlations over all windows, channels and samples, about 0 rather than the mean."""
    config = configure("model=lenet5", "model.pooling=avg", "act=tanh")
    model = build_initialised(config, digits)
    batch = digits.train.inputs[:64]
    found = window_correlations(model, batch)
    maps = []
    for layer in model.layers[:2]:
        layer.affine.register_forward_hook(lambda _m, _a, h: maps.append(h.detach().double().numpy()))
    with torch.no_grad():
        model(batch)
    for h, correlation in zip(maps, found, strict=True):
        corners = [h[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]
        pairs = [(corners[i] * corners[j]).mean() for i in range(4) for j in range(i)]
        assert correlation == pytest.approx(np.mean(pairs) / np.square(h).mean(), rel=1e-5)


def test_measuring_correlations_changes_nothing(configure: Compose, digits: Dataset) -> None:
    model = build_initialised(configure("model=lenet5", "model.norm=batch", "model.dropout=0.3"), digits)
    model.eval()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    first = window_correlations(model, digits.train.inputs[:16])
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert window_correlations(model, digits.train.inputs[:16]) == first


def test_lenet_profiles_over_draws_of_the_weights(configure: Compose, digits: Dataset, inputs: Inputs) -> None:
    """Channels are few, so the mean of squares over draws is what theory predicts, and its error judges it."""
    squares, correlations = [], []
    batch = digits.train.inputs[:32]
    config = configure("model=lenet5", "act=tanh", "model.pooling=avg")
    for seed in range(24):
        model = build_initialised(replace(config, seed=seed), digits)
        probe = Probe(model, model.layers)
        correlations.append(window_correlations(model, batch))
        noise = torch.randn(32, 10, generator=generator(seed, "order"))
        with probe.watching() as read:
            (model(batch) * noise / 32).sum().backward()
            squares.append(read()["signal_grad_norm"][:4].double().numpy() ** 2)
    predicted = expect(config, inputs, tuple(np.mean(correlations, axis=0))).signal_grad_norm ** 2
    found = np.array(squares)
    error = found.std(axis=0) / math.sqrt(len(found)) / found[:, -1].mean()
    relative = found.mean(axis=0) / found[:, -1].mean()
    assert (abs(relative - predicted) < 4 * error).all()


@pytest.mark.parametrize("overrides", ["act=relu", "act=tanh model.pooling=avg"])
def test_lenet_under_lsuv_is_drawn_without_dropout(configure: Compose, digits: Dataset, overrides: str) -> None:
    """Dropout takes correlation away, yet the weights are those of the same network without."""
    found = []
    for rate in (0.0, 0.3):
        config = configure("model=lenet5", "init=lsuv", f"model.dropout={rate}", "batch_size=64", *overrides.split())
        models = [build(replace(config, seed=seed), digits).model for seed in range(6)]
        correlations = np.mean([window_correlations(model, digits.train.inputs[:64]) for model in models], axis=0)
        found.append(expect(config, inputs_of(digits), tuple(correlations)).sigma_w2)
    np.testing.assert_allclose(found[1], found[0], rtol=0.02)


# ------------------------------------------------------------------------------------------------- caveats


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            "act=gelu",
            ["act=gelu", "unstable", "repels every length", "half-stable at sigma_b2=0.172922", "stable above"],
        ),
        (
            "act=silu init.sigma_b2=0.55514317",
            ["act=silu", "is half-stable", "attracts lengths from one side of q only"],
        ),
        ("act=mish", ["act=mish", "half-stable at sigma_b2=0.0945"]),
    ],
)
def test_an_edge_of_chaos_that_is_not_stable_is_named(configure: Compose, overrides: str, words: list[str]) -> None:
    (line,) = caveats(configure("init=critical", *overrides.split()))
    assert line.startswith("init=critical: ")
    assert all(word in line for word in words)
    assert "\n" not in line


@pytest.mark.parametrize(
    "overrides", ["init=critical act=tanh", "init=critical", "act=gelu", "init=critical act=gelu init.sigma_b2=0.3"]
)
def test_without_cause_there_is_no_caveat(configure: Compose, overrides: str) -> None:
    assert caveats(configure(*overrides.split())) == ()


@pytest.mark.parametrize(
    ("overrides", "decay"),
    [
        (("optimizer=adam", "optimizer.weight_decay=0.1"), 0.1),
        (("optimizer=sgd", "optimizer.weight_decay=0.1", "constraint=max_norm"), 0.1),
        (("optimizer=adam",), None),
        (("optimizer=adamw", "optimizer.weight_decay=0.1"), None),
        (("optimizer=muon", "optimizer.weight_decay=0.1"), None),
        (("optimizer=coordinate_descent",), None),
        (("optimizer=sgd", "optimizer.weight_decay=0.1", "constraint=weight_norm"), None),
        (("optimizer=sgd", "optimizer.weight_decay=0.1", "constraint=spectral_norm"), None),
    ],
)
def test_weight_decay_counts_where_it_is_part_of_the_weights_gradient(
    configure: Compose, inputs: Inputs, overrides: tuple[str, ...], decay: float | None
) -> None:
    assert theory_record(configure("model.depth=2", *overrides), inputs).get("decay") == decay


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
def test_the_judge_knows_of_batch_norm_whatever_theory_notes(configure: Compose, inputs: Inputs, norm: str) -> None:
    words = ("act=relu", "init=kaiming_normal", "model.depth=8", "model.width=512", "batch_size=32")
    record = theory_record(configure(*words, f"model.norm={norm}"), inputs)
    assert (record.get("batch_norm") is True) == (norm == "batch")
    assert record["notes"] == []
    judge = Judge([f"{i:02d}_hidden" for i in range(9)], 8, Thresholds(), theory=record)
    assert judge._batch_norm == (norm == "batch")
