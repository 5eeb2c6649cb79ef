"""A probe holds what training sees at its first step, and what theory says of it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch

from gradstab.assembly import build_initialised
from gradstab.config.probe_options import ProbeKnobs, probe_knobs
from gradstab.data import load_data
from gradstab.draws import draw
from gradstab.errors import ConfigError
from gradstab.events import read_records
from gradstab.measure.verdict import Verdict
from gradstab.probing import probe, typical_draw
from gradstab.theory import activation, length_map
from tests.conftest import Compose, Train

TINY = ("model.depth=3", "model.width=16", "batch_size=32", "device=cpu")


@pytest.mark.parametrize(
    "overrides",
    [
        "act=tanh",
        "model.dropout=0.3 model.norm=batch penalty=l2",
        "model.residual=add precision=float64 constraint=weight_norm",
        "data=line batch_size=full",
        "init=critical act=sigmoid model.depth=5 clip=norm seed=3",
        "optimizer=adam clip=agc schedule=cosine",
    ],
)
def test_one_seed_is_exactly_the_first_step_of_training(configure: Compose, train: Train, overrides: str) -> None:
    words = [*TINY, "seed=7", *overrides.split()]
    found = probe(configure(*words), ProbeKnobs(seeds=1))
    record = train(*words, "steps=1", "eval_every=1")
    steps = read_records(record["directory"])
    assert "update_ratio" in found.measured
    for name, values in found.measured.items():
        recorded = steps.vectors[name].values[0]
        # exp(log(x)) of the mean over seeds costs a last digit.
        np.testing.assert_allclose(values, recorded, rtol=1e-14)
    assert found.factor == pytest.approx(steps.scalars["depth_factor"].values[0], rel=1e-6)
    assert record["theory"] == found.theory
    assert found.spread is None
    assert found.tags == record["layers"]


def test_seeds_are_averaged_by_their_logarithms_and_shares_as_they_are(configure: Compose) -> None:
    words = [*TINY, "act=tanh", "seed=4"]
    alone = [probe(configure(*words, f"seed={seed}"), ProbeKnobs(seeds=1)) for seed in (4, 5, 6)]
    found = probe(configure(*words), ProbeKnobs(seeds=3))
    assert found.seeds == [4, 5, 6]
    for name in ("signal_grad_norm", "grad_norm", "activation_std"):
        logs = np.mean([np.log(one.measured[name]) for one in alone], axis=0)
        np.testing.assert_allclose(found.measured[name], np.exp(logs), rtol=1e-12)
    for name in ("saturated_fraction", "activation_mean"):
        np.testing.assert_allclose(found.measured[name], np.mean([o.measured[name] for o in alone], axis=0), atol=1e-12)
    factors = [one.factor for one in alone]
    assert found.factor == pytest.approx(np.mean(factors))
    assert found.spread == pytest.approx(np.std(factors, ddof=1))
    assert found.r2 == pytest.approx(np.mean([one.r2 for one in alone]))


def test_one_dead_draw_does_not_speak_for_the_others(configure: Compose) -> None:
    """Of these seeds, ReLUs in six units are all off somewhere in seed 33."""
    words = ["model.width=6", "model.depth=10", "device=cpu"]
    alone = [probe(configure(*words, f"seed={seed}"), ProbeKnobs(seeds=1)) for seed in (32, 33, 34)]
    assert not alone[1].measured["signal_grad_norm"][:10].any()
    assert alone[1].agreement == "1 of 1 draw"
    found = probe(configure(*words, "seed=32"), ProbeKnobs(seeds=3))
    assert found.labels == [one.verdict.labels for one in alone]
    assert "vanishing" in found.labels[1]
    assert found.verdict == alone[0].verdict
    assert found.verdict.labels == ("healthy",)
    assert found.to_dict()["agreement"] == "2 of 3 draws"
    for name in ("signal_grad_norm", "grad_norm"):
        living = np.sqrt(alone[0].measured[name] * alone[2].measured[name])
        np.testing.assert_allclose(found.measured[name][:9], living[:9], rtol=1e-12)


@pytest.mark.parametrize(
    ("labels", "typical"),
    [
        (["healthy", "vanishing", "vanishing"], 1),
        (["exploding", "healthy", "healthy", "vanishing"], 1),
        # A finding of half of the draws counts.
        (["healthy", "vanishing"], 1),
        # Both are in two draws of three, and one draw has both.
        (["vanishing", "vanishing dead_units", "dead_units"], 1),
        # None is that of half of them: what all others are not.
        (["vanishing", "exploding", "saturated"], 0),
        # Both are common, but never in one draw: the commonest.
        (["vanishing", "dead_units", "dead_units", "vanishing saturated"], 1),
    ],
)
def test_the_typical_draw(labels: list[str], typical: int) -> None:
    assert typical_draw([tuple(own.split()) for own in labels]) == typical


def test_wide_networks_are_what_theory_predicts(configure: Compose) -> None:
    config = configure("act=tanh", "init=xavier_normal", "model.depth=4", "model.width=700", "device=cpu")
    found = probe(config, ProbeKnobs(seeds=3))
    assert set(found.predicted) == {
        "signal_grad_norm",
        "activation_mean",
        "activation_std",
        "saturated_fraction",
        "dead_fraction",
    }
    for name, tolerance in (("signal_grad_norm", 0.05), ("activation_std", 0.02), ("saturated_fraction", 0.06)):
        np.testing.assert_allclose(found.measured[name][:4], found.predicted[name], rtol=tolerance, atol=2e-4)
    assert found.factor == pytest.approx(found.theory["depth_factor"], rel=0.01)


def test_few_samples_that_are_normalised_have_no_tails(configure: Compose) -> None:
    """Of six normalised numbers none is beyond √5, shortly after which tanh has less than 5 % of its slope."""
    words = ("act=tanh", "init=xavier_normal", "model.norm=batch", "batch_size=6", "model.depth=3", "model.width=700")
    found = probe(configure(*words, "device=cpu"), ProbeKnobs(seeds=2))
    for name, tolerance in (("saturated_fraction", 2e-3), ("activation_std", 5e-3)):
        np.testing.assert_allclose(found.measured[name][:3], found.predicted[name], atol=tolerance)


def test_lenets_correlations_are_the_mean_over_draws(configure: Compose) -> None:
    words, data = ("model=lenet5", "batch_size=16", "device=cpu"), load_data("digits")
    alone = [draw(configure(*words, f"seed={seed}"), ProbeKnobs(seeds=1), data)[2].correlations for seed in (4, 5, 6)]
    found = draw(configure(*words, "seed=4"), ProbeKnobs(seeds=3), data)[2].correlations
    assert found == pytest.approx(np.mean(np.array(alone), axis=0))


def test_the_loss_of_guessing_is_that_of_the_training_split(configure: Compose) -> None:
    config = configure(*TINY, "data=gaussian", "data.n_train=70", "data.n_test=30")
    data = load_data("gaussian", **config.data.knobs)
    shares = np.bincount(data.train.targets.numpy()) / 70
    expected = -(shares[shares > 0] * np.log(shares[shares > 0])).sum()
    _, _, examination = draw(config, ProbeKnobs(seeds=1), data)
    assert examination.chance_loss == pytest.approx(expected, rel=1e-6)


def test_fixed_points_and_scales_of_plain_networks(configure: Compose) -> None:
    plain = probe(
        configure(*TINY, "act=tanh", "init=variance", "init.sigma_w2=2.5", "init.sigma_b2=0.1"), ProbeKnobs(seeds=1)
    )
    assert plain.scales is not None
    assert plain.scales["sigma_w2"] == 2.5
    (point,) = plain.scales["fixed_points"]
    assert point["q"] == plain.scales["q"]
    assert plain.scales["xi_grad"] == pytest.approx(-1 / math.log(point["chi_1"]))
    dropped = probe(
        configure(*TINY, "act=tanh", "init=variance", "init.sigma_w2=2", "init.sigma_b2=0.1", "model.dropout=0.3"),
        ProbeKnobs(seeds=1),
    ).scales
    assert dropped is not None
    for point in dropped["fixed_points"]:
        # Inverted dropout divides a mean square by 1 - p.
        assert length_map(activation("tanh"), point["q"], 2 / 0.7, 0.1) == pytest.approx(point["q"], rel=1e-9)
    assert dropped["q"] in [point["q"] for point in dropped["fixed_points"]]
    assert probe(configure(*TINY, "model.norm=layer"), ProbeKnobs(seeds=1)).scales is None
    growing = probe(configure(*TINY, "init=normal", "init.std=1"), ProbeKnobs(seeds=1)).scales
    assert growing is not None
    assert "without bound" in growing["reason"]


@pytest.mark.parametrize(
    ("overrides", "layers"),
    [
        ("model.depth=0", 1),
        ("model.depth=1", 2),
        ("model=lenet5", 5),
        ("model=lenet5_1998 act=tanh", 5),
        ("init=zeros model.depth=4", 5),
        ("init=normal init.std=1 model.depth=60", 61),
        ("init=normal init.std=0.001 model.depth=30 act=sigmoid", 31),
    ],
)
def test_every_outcome_is_valid_json(configure: Compose, overrides: str, layers: int) -> None:
    config = configure("device=cpu", "batch_size=32", *overrides.split())
    found = probe(config, ProbeKnobs(seeds=2, jacobian="depth=1" in overrides)).to_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(found["depth_factor"]) == {"measured", "spread", "r2", "predicted"}
    assert len(found["layers"]) == layers
    assert Verdict.from_dict(found["verdict"]).labels == tuple(found["verdict"]["labels"])
    assert ("jacobian" in found) == ("depth=1" in overrides)
    for layer in found["layers"]:
        assert layer["name"]
        for name in set(layer) - {"name"}:
            assert set(layer[name]) == {"measured", "predicted"}


def test_values_that_json_has_no_word_for(configure: Compose) -> None:
    config = configure("device=cpu", "batch_size=32", "init=normal", "init.std=1", "model.depth=60")
    found = probe(config, ProbeKnobs(seeds=1)).to_dict()
    assert found["verdict"]["labels"][0] in ("exploding", "non_finite")
    assert found["layers"][0]["grad_norm"] == {"measured": "nan", "predicted": None}
    assert found["depth_factor"]["measured"] is None
    assert found["depth_factor"]["predicted"] == pytest.approx(8, rel=1e-9)


def test_knobs_are_read_and_checked() -> None:
    assert asdict(probe_knobs([])) == {"seeds": 5, "jacobian": False, "samples": 4}
    assert probe_knobs(["probe.seeds=2", "probe.jacobian=true", "probe.samples=1"]) == ProbeKnobs(2, True, 1)
    for words, expected in (
        (["probe.seeds=0"], r"probe\.seeds=0: .*at least 1"),
        (["probe.seeds=many"], r"probe\.seeds=many: must be a whole number"),
        (["probe.seeds=1,2"], r"probe\.seeds=1,2: several values"),
        (["probe.seeds"], r"probe\.seeds: cannot be read"),
        (["probe.sedes=2"], r"probe\.sedes=2: .*did you mean seeds"),
        (["probe.jacobian=2"], r"probe\.jacobian=2: must be true or false"),
        (["probe.seeds=2", "probe.seeds=3"], r"probe\.seeds=3: probe\.seeds was given already; allowed: once"),
        (["probe.samples=2"], r"no effect without probe\.jacobian=true"),
    ):
        with pytest.raises(ConfigError, match=expected) as caught:
            probe_knobs(words)
        assert len(caught.value.problems) == 1


def test_gaussian_inputs_have_nothing_to_do_with_the_first_weights(configure: Compose) -> None:
    """Drawn from one seed, they would be the same numbers."""
    config = configure("data=gaussian", "data.dim=64", "model.depth=2", "model.width=400", "device=cpu")
    data = load_data("gaussian", **config.data.knobs)
    weight = build_initialised(config, data).layers[0].affine.weight
    rows = torch.nn.functional.normalize(data.train.inputs, dim=1) @ torch.nn.functional.normalize(weight.detach()).T
    # Of 800,000 cosines in 64 dimensions, none is near 1.
    assert rows.abs().max().item() < 0.75
