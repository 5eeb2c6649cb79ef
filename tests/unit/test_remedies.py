"""Remedies: overrides that compose, in an order that theory backs, and that do what they say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from gradstab.data import load_data
from gradstab.expectation import expect, signal_share
from gradstab.inputs import Inputs, inputs_of
from gradstab.measure.verdict import Finding, Remedy, Verdict
from gradstab.remedies import remedies_for
from gradstab.theory import predict
from tests.conftest import Compose


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    # Without the samples, which batch norm is followed over in some tenths of a second.
    return replace(inputs_of(load_data("digits")), samples=None)


def found(*kinds: str) -> Verdict:
    return Verdict(30, tuple(Finding(kind, "", "", (), 10, 30, 2, 9.0, 1.0, "", "") for kind in kinds))


def test_the_healthy_need_none(configure: Compose, inputs: Inputs) -> None:
    assert remedies_for(configure(), inputs, found()) == ()


CASES = [
    ("vanishing", ["act=sigmoid", "init=xavier_normal"]),
    ("vanishing", ["act=tanh", "init=variance", "init.sigma_w2=0.3", "init.sigma_b2=0.05"]),
    ("vanishing", ["act=relu", "init=normal", "init.std=0.01"]),
    ("vanishing", ["act=leaky_relu", "act.slope=0.2", "init=uniform", "init.bound=0.01", "init.gain=1.5"]),
    ("exploding", ["act=relu", "init.gain=3"]),
    ("exploding", ["model.norm=batch", "model.depth=60"]),
    ("exploding", ["model.norm=batch", "batch_size=full"]),
    ("exploding", ["model.norm=batch", "data=line"]),
    ("non_finite", ["optimizer=adam", "optimizer.lr=1"]),
    ("dead_units", ["act=relu", "optimizer.lr=5"]),
    ("saturated", ["act=tanh", "init=normal", "init.std=2"]),
    ("not_learning", ["optimizer=sgd", "optimizer.lr=1e-7"]),
    # Knobs that are spelt out at their defaults meet a remedy's other option too.
    ("vanishing", ["act=sigmoid", "init=normal", "init.std=0.01", "optimizer=momentum", "optimizer.momentum=0.9"]),
    ("vanishing", ["act=sigmoid", "optimizer={momentum: 0.9}"]),
    ("exploding", ["clip=agc", "clip.clipping=0.01", "optimizer=sgd", "model.depth=5"]),
]


@pytest.mark.parametrize(("kind", "overrides"), CASES, ids=[" ".join(case[1]) for case in CASES])
def test_each_can_be_pasted_behind_the_command(
    configure: Compose, inputs: Inputs, kind: str, overrides: list[str]
) -> None:
    remedies = remedies_for(configure(*overrides), inputs, found(kind), typical_norm=3.0)
    assert 1 <= len(remedies) <= 6
    assert len({remedy.overrides for remedy in remedies}) == len(remedies)
    for remedy in remedies:
        # Hydra composes it with what was there before; nothing is refused.
        configure(*overrides, *remedy.overrides)
    factors = [remedy.predicted_factor for remedy in remedies]
    if remedies[0].overrides[0].startswith("optimizer.lr") and config_rate_is_wild(overrides):
        factors = factors[1:]
    assert [factor is None for factor in factors] == sorted(factor is None for factor in factors)


def config_rate_is_wild(overrides: list[str]) -> bool:
    """Whether these set the rate far beyond any optimizer's own."""
    return any(word.startswith("optimizer.lr=") and float(word.partition("=")[2]) >= 1 for word in overrides)


def test_units_that_a_wild_rate_killed_get_another_rate_first(configure: Compose, inputs: Inputs) -> None:
    config = configure("act=relu", "optimizer=sgd", "optimizer.lr=3", "model.depth=2")
    first, second = remedies_for(config, inputs, found("dead_units"))[:2]
    assert (first.overrides[0].partition("=")[0], second.overrides) == ("optimizer.lr", ("act=leaky_relu",))


def test_where_theory_is_silent_another_reason_speaks_for_skip_paths(configure: Compose, inputs: Inputs) -> None:
    config = configure("model.depth=20", "constraint=spectral_norm", "optimizer=adam")
    assert [r.overrides for r in remedies_for(config, inputs, found("vanishing", "not_learning"))] == [
        ("model.residual=scaled",)
    ]


def test_a_single_hidden_layer_is_offered_other_weights(configure: Compose, inputs: Inputs) -> None:
    config = configure("act=sigmoid", "model.depth=1", "init=normal", "init.std=30")
    remedies = remedies_for(config, inputs, found("exploding", "saturated"))
    assert remedies[0].overrides[0].startswith("init.std=")
    assert remedies[0].predicted_factor is None


def test_skip_paths_are_offered_past_masks_only_where_a_signal_is_left(configure: Compose, inputs: Inputs) -> None:
    words = ["act=sigmoid", "init=normal", "init.std=0.02", "model.width=96", "model.depth=15", "model.dropout=0.5"]
    verdict = Verdict(0, (Finding("vanishing", "lost_in_dropout", "", (), 0, 0, 1, 0.0, 5e-3, "", ""),))
    limit = configure().verdict.stalled_signal_share
    offered = remedies_for(configure(*words), inputs, verdict)
    assert offered
    for remedy in offered:
        share = signal_share(configure(*words, *remedy.overrides), inputs)
        assert remedy.overrides[0].startswith("optimizer") or share is None or share >= limit


def test_what_theory_predicts_is_what_the_pasted_configuration_gets(configure: Compose, inputs: Inputs) -> None:
    overrides = ["act=sigmoid", "init=xavier_normal", "model.depth=30", "model.width=64"]
    first = remedies_for(configure(*overrides), inputs, found("vanishing"))[0]
    assert first.predicted_factor is not None
    config = configure(*overrides, *first.overrides)
    knobs = {key: config.model.knobs[key] for key in ("norm", "norm_position", "dropout", "residual", "bias")}
    predicted = predict(
        act=config.act.name,
        init=config.init.name,
        init_knobs=config.init.knobs,
        widths=[64, *[64] * 30, 10],
        q0=np.array([inputs.q0.mean()]),
        **knobs,
    )
    assert first.predicted_factor == pytest.approx(predicted.depth_factor, rel=0.01)
    assert abs(29 * math.log10(first.predicted_factor)) < 2


def test_the_smallest_change_that_theory_trusts_comes_first(configure: Compose, inputs: Inputs) -> None:
    remedies = remedies_for(configure("act=tanh", "init=xavier_normal", "init.gain=0.5"), inputs, found("vanishing"))
    assert [r.overrides for r in remedies[:2]] == [("init.gain=1",), ("init=critical", "init.gain=1")]
    # What the init draws by itself vanishes, too.
    remedies = remedies_for(configure("model.depth=40", "init=default", "init.gain=0.5"), inputs, found("vanishing"))
    assert remedies[0].overrides == ("init=critical", "init.gain=1")
    # Isometric by itself, which a critical variance is only on average.
    words = ("act=identity", "init=orthogonal", "init.gain=0.7", "model.depth=40", "optimizer=nesterov")
    assert remedies_for(configure(*words), inputs, found("vanishing"))[0].overrides == ("init.gain=1",)


def test_units_that_died_in_an_explosion_are_offered_smaller_weights_first(configure: Compose, inputs: Inputs) -> None:
    # With slopes below 0 instead, this network diverges at its fifth step.
    remedies = remedies_for(configure("model=lenet5", "init.gain=3"), inputs, found("exploding", "dead_units"))
    assert remedies[0].overrides == ("init.gain=1",)
    alone = remedies_for(configure("model=lenet5"), inputs, found("dead_units"))
    assert alone[0].overrides == ("act=leaky_relu",)


@pytest.mark.parametrize(
    ("optimizer", "decay", "offered"), [("adam", 0.1, True), ("adam", 1e-4, False), ("adamw", 0.1, False)]
)
def test_a_decay_that_outweighs_the_gradient_is_offered_to_go(
    configure: Compose, inputs: Inputs, optimizer: str, decay: float, offered: bool
) -> None:
    config = configure(f"optimizer={optimizer}", f"optimizer.weight_decay={decay}")
    remedies = [remedy.overrides for remedy in remedies_for(config, inputs, found("not_learning"))]
    assert (("optimizer.weight_decay=0",) in remedies) == offered


def test_a_decay_that_was_seen_to_outweigh_the_gradient_is_the_first_thing_to_go(
    configure: Compose, inputs: Inputs
) -> None:
    config = configure("act=tanh", "init=xavier_normal", "init.gain=0.5", "optimizer.weight_decay=0.001")
    seen = Finding("not_learning", "decay", "weight_norm", (), 10, 30, 3, 5.0, 2.0, "", "")
    remedies = remedies_for(config, inputs, Verdict(30, (*found("vanishing").findings, seen)))
    assert remedies[0].overrides == ("optimizer.weight_decay=0",)


def test_a_steady_network_that_does_not_learn_is_offered_skip_paths(configure: Compose, inputs: Inputs) -> None:
    config = configure("model.depth=25", "model.norm=layer", "optimizer=adamw", "optimizer.lr=0.03")
    remedies = [remedy.overrides for remedy in remedies_for(config, inputs, found("not_learning"))]
    assert remedies[-1] == ("model.residual=scaled", "optimizer.lr=0.001")


def test_an_explosion_is_offered_a_bound_and_a_smaller_step(configure: Compose, inputs: Inputs) -> None:
    remedies = remedies_for(configure("init.gain=3", "optimizer.lr=0.2"), inputs, found("exploding"), typical_norm=0.25)
    offered = [remedy.overrides for remedy in remedies]
    assert ("clip=norm", "clip.max_norm=0.25", "optimizer.lr=0.01") in offered
    assert ("optimizer.lr=0.02",) in offered


def test_nothing_is_offered_that_is_there_already(configure: Compose, inputs: Inputs) -> None:
    config = configure("act=tanh", "init=critical", "model.norm=layer", "optimizer=adam")
    remedies = remedies_for(config, inputs, found("vanishing", "not_learning"))
    assert remedies
    for remedy in remedies:
        assert configure("act=tanh", "init=critical", "model.norm=layer", "optimizer=adam", *remedy.overrides) != config


def test_no_rate_is_offered_below_the_schedules_least(configure: Compose, inputs: Inputs) -> None:
    words = ["init.gain=3", "optimizer.lr=0.05", "schedule=cosine", "schedule.min_lr=0.02"]
    explosion = found("exploding", "not_learning")
    free = rates(remedies_for(configure(*words[:-1]), inputs, explosion, typical_norm=3.0))
    assert {"optimizer.lr=0.005", "optimizer.lr=0.001"} <= set(free)
    held = remedies_for(configure(*words), inputs, explosion, typical_norm=3.0)
    assert held
    assert rates(held) == []
    for remedy in held:
        configure(*words, *remedy.overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["init=constant", "init.value=0.5", "model.depth=10"],
        ["act=sigmoid", "optimizer=momentum", "optimizer.momentum=0.5"],
        ["init.gain=3", "clip=value", "clip.max_value=0.1"],
        ["act=softplus", "init=lecun_normal", "init.gain=10"],
        ["act=gelu", "init=critical"],
        ["init=fixup", "model.residual=add"],
    ],
)
def test_knobs_of_the_command_are_in_no_remedys_way(configure: Compose, inputs: Inputs, overrides: list[str]) -> None:
    remedies = remedies_for(configure(*overrides), inputs, found("vanishing", "exploding"), typical_norm=3.0)
    assert remedies
    for remedy in remedies:
        configure(*overrides, *remedy.overrides)


def test_where_an_edge_needs_biases_they_are_offered(configure: Compose, inputs: Inputs) -> None:
    remedies = remedies_for(configure("act=gelu", "init=critical"), inputs, found("exploding"))
    assert remedies[0].overrides == ("init.sigma_b2=0.2",)


def test_a_network_without_biases_is_offered_the_edge_without_them(configure: Compose, inputs: Inputs) -> None:
    remedies = remedies_for(configure("act=silu", "model.bias=false"), inputs, found("vanishing"))
    assert ("model.residual=scaled", "init=critical") in [remedy.overrides for remedy in remedies]


@pytest.mark.parametrize(
    ("overrides", "offered"),
    [
        # tanh is critical at a σ_w² of 1, and dropout at rate p divides σ_w² by 1 - p.
        ("init=variance init.sigma_w2=0.3 model.dropout=0.1", "init.sigma_w2=0.9"),
        ("init=normal init.std=0.01 model.width=100", "init.std=0.1"),
        # U(-b, b) has a variance of b²/3.
        ("init=uniform init.bound=0.01 model.width=75", "init.bound=0.2"),
    ],
)
def test_critical_weights_are_offered_in_the_schemes_own_knobs(
    configure: Compose, inputs: Inputs, overrides: str, offered: str
) -> None:
    remedies = remedies_for(configure("act=tanh", *overrides.split()), inputs, found("vanishing"))
    assert (offered,) in [remedy.overrides for remedy in remedies]


def test_no_remedy_leaves_lengths_that_saturate_what_follows(configure: Compose, inputs: Inputs) -> None:
    words = ["act=relu", "init=kaiming_normal", "init.gain=30", "model.depth=3"]
    remedies = remedies_for(configure(*words), inputs, found("exploding"))
    assert remedies
    for remedy in remedies:
        if remedy.predicted_factor is not None:
            assert expect(configure(*words, *remedy.overrides), inputs).q.max() < 25**2


def test_a_tighter_clip_is_not_loosened(configure: Compose, inputs: Inputs) -> None:
    config = configure("init.gain=3", "clip=norm", "clip.max_norm=0.01")
    offered = [remedy.overrides for remedy in remedies_for(config, inputs, found("exploding"), typical_norm=3.0)]
    assert not any("clip=norm" in overrides for overrides in offered)


@pytest.mark.parametrize(
    ("now", "value", "rate"),
    # Far below the optimizer's own rate that one is worth a try, above it ten times as much and no more.
    [("1e-9", 1e-9, "0.01"), ("1e-9", 3e-8, "0.01"), ("0.0002", 1e-6, "0.02"), ("0.02", 1e-7, "0.1")],
)
def test_updates_that_are_too_small_call_for_larger_ones_alone(
    configure: Compose, inputs: Inputs, now: str, value: float, rate: str
) -> None:
    tiny = Finding("not_learning", "tiny_updates", "", (), 10, 30, 2, value, 1e-4, "", "")
    remedies = remedies_for(configure("model.depth=3", f"optimizer.lr={now}"), inputs, Verdict(30, (tiny,)))
    assert rates(remedies) == [f"optimizer.lr={rate}", "optimizer.lr=0.001"]


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (("clip=norm", "clip.max_norm=0.0001"), "clip.max_norm=1"),
        (("clip=value", "clip.max_value=1e-6"), "clip.max_value=0.01"),
        (("clip=layer", "clip.max_norm=1e-5"), "clip.max_norm=0.1"),
        (("clip=agc", "clip.clipping=1e-5"), "clip.clipping=0.01"),
        (("penalty=l2", "penalty.strength=1"), "penalty.strength=0.0001"),
        (("constraint=weight_clip", "constraint.bound=0.01"), "constraint.bound=0.38"),
        (("constraint=max_norm", "constraint.bound=0.1"), "constraint.bound=2"),
    ],
)
def test_what_is_set_to_hold_weights_where_they_are_comes_first(
    configure: Compose, inputs: Inputs, words: tuple[str, ...], remedy: str
) -> None:
    tiny = Finding("not_learning", "tiny_updates", "", (), 10, 30, 2, 1e-6, 1e-4, "", "")
    plateau = Finding("not_learning", "plateau", "", (), 10, 399, 200, 1.0, 0.95, "", "")
    for finding in (tiny, plateau):
        remedies = remedies_for(
            configure(*words, "act=relu", "model.depth=5"), inputs, Verdict(30, (finding,)), typical_norm=3.0
        )
        assert remedies[0].overrides == (remedy,)
        usual = remedies_for(configure(words[0], "model.depth=5"), inputs, Verdict(30, (finding,)), typical_norm=3.0)
        assert not any(word.startswith(words[1].partition("=")[0]) for one in usual for word in one.overrides)


def test_a_clip_that_never_acts_is_left_alone(configure: Compose, inputs: Inputs) -> None:
    config = configure("clip=norm", "clip.max_norm=0.01", "model.depth=5")
    tiny = Finding("not_learning", "tiny_updates", "", (), 10, 30, 2, 1e-6, 1e-4, "", "")
    for typical, offered in ((1e-3, False), (1.0, True)):
        remedies = remedies_for(config, inputs, Verdict(30, (tiny,)), typical_norm=typical)
        assert (("clip.max_norm=1",) in [remedy.overrides for remedy in remedies]) == offered


@pytest.mark.parametrize(("size", "offered"), [(2, True), (7, True), (8, False), (64, False)])
def test_batch_norm_over_a_handful_of_samples_is_offered_more(
    configure: Compose, inputs: Inputs, size: int, offered: bool
) -> None:
    config = configure("model.norm=batch", f"batch_size={size}", "model.depth=5")
    remedies = remedies_for(config, inputs, found("not_learning"))
    assert (bool(remedies) and remedies[0].overrides == ("batch_size=32",)) == offered


def test_networks_are_offered_with_the_usual_rate_where_theirs_is_far_off(configure: Compose, inputs: Inputs) -> None:
    words = ("act=sigmoid", "init=xavier_normal", "model.depth=6", "optimizer=sgd")
    for rate, own in (("10", ("optimizer.lr=0.05",)), ("0.1", ())):
        remedies = remedies_for(configure(*words, f"optimizer.lr={rate}"), inputs, found("vanishing"))
        (initial,) = [remedy for remedy in remedies if remedy.overrides[0] == "init=critical"]
        assert initial.overrides[1:] == own


def test_adam_comes_without_a_decay_that_it_would_follow(configure: Compose, inputs: Inputs) -> None:
    plateau = Finding("not_learning", "plateau", "", (), 10, 399, 200, 1.0, 0.95, "", "")
    for decay, more in (("1", ("optimizer.weight_decay=0",)), ("0.0001", ())):
        config = configure("optimizer=sgd", f"optimizer.weight_decay={decay}", "model.depth=5")
        offered = [remedy.overrides for remedy in remedies_for(config, inputs, Verdict(399, (plateau,)))]
        assert ("optimizer=adam", *more) in offered


def test_steps_that_throw_the_gradient_about_call_for_smaller_ones(configure: Compose, inputs: Inputs) -> None:
    erratic = Finding("not_learning", "erratic", "grad_norm", (), 16, 30, 9, 2.9, 2.0, "", "")
    config = configure("model.depth=3", "optimizer=adam", "optimizer.lr=0.01")
    remedies = remedies_for(config, inputs, Verdict(30, (erratic,)))
    assert [remedy.overrides for remedy in remedies] == [("optimizer.lr=0.001",)]


def test_steps_too_large_for_the_depth_call_for_smaller_ones_or_skip_paths(configure: Compose, inputs: Inputs) -> None:
    large = Finding("not_learning", "large_steps", "update_ratio", (), 0, 0, 1, 20.0, 5.0, "", "")
    config = configure("model.depth=40", "act=relu", "init=kaiming_normal", "optimizer=momentum", "optimizer.lr=0.08")
    remedies = remedies_for(config, inputs, Verdict(0, (large,)))
    assert [remedy.overrides for remedy in remedies] == [("model.residual=scaled",), ("optimizer.lr=0.01",)]
    # What the step left behind moves no more, which calls for no larger one.
    tiny = Finding("not_learning", "tiny_updates", "", (), 10, 30, 2, 1e-9, 1e-4, "", "")
    assert remedies_for(config, inputs, Verdict(30, (large, tiny))) == remedies


RULES = {
    "overshoot": ("exploding", 30.0),
    "large_steps": ("not_learning", 3.0),
    "tiny_updates": ("not_learning", 1e-4),
    "dead_fraction": ("dead_units", 0.9),
}


@pytest.mark.parametrize(
    ("overrides", "values", "first"),
    [
        # What the first steps killed hardly moves, and not for want of larger ones.
        ("model=lenet5 optimizer.lr=5", {"overshoot": 343, "dead_fraction": 1, "tiny_updates": 1e-20}, "0.01"),
        ("model.residual=scaled optimizer=adam optimizer.lr=1", {"dead_fraction": 1, "tiny_updates": 1e-9}, "0.001"),
        # As small as the overshoot says, and at most a tenth; clipping or other paths would not do.
        ("model.residual=add optimizer.lr=2", {"overshoot": 128006}, "0.00023"),
        ("model.norm=batch optimizer.lr=0.2", {"overshoot": 31}, "0.01"),
        ("act=gelu init=critical model.depth=10 optimizer.lr=1", {"overshoot": 1873, "large_steps": 1023}, "0.001"),
        # At most the optimizer's own, where the rate is far from that: of what the first step lets pass, most diverges.
        ("act=relu optimizer.lr=5", {"overshoot": 3000, "large_steps": 300}, "0.01"),
        ("act=gelu optimizer.lr=3", {"large_steps": 4}, "0.01"),
        ("act=gelu optimizer.lr=0.5", {"large_steps": 4}, None),
        # A rate as usual is not what is wrong.
        ("init.gain=3 model.depth=5", {"overshoot": 3000, "large_steps": 30}, None),
        # A gradient that needs more than ten times a usual rate is not the rate's fault either.
        ("model.depth=3 optimizer.lr=0.01", {"tiny_updates": 1e-20}, "0.1"),
    ],
)
def test_the_rate_comes_first_where_it_is_what_is_wrong(
    configure: Compose, inputs: Inputs, overrides: str, values: dict[str, float], first: str | None
) -> None:
    findings = [
        Finding(kind, rule, "", (), 10, 199, 2, values[rule], limit, "", "")
        for rule, (kind, limit) in RULES.items()
        if rule in values
    ]
    remedy = remedies_for(configure(*overrides.split()), inputs, Verdict(199, tuple(findings)))[0]
    other = ("init.gain=1",) if "gain" in overrides else ("model.residual=scaled",)
    assert remedy.overrides == ((f"optimizer.lr={first}",) if first else other)


def rates(remedies: Sequence[Remedy]) -> list[str]:
    return [word for remedy in remedies for word in remedy.overrides if word.startswith("optimizer.lr")]


def test_steps_by_which_a_deep_chain_loses_what_it_learns_call_for_skip_paths_or_smaller_ones(
    configure: Compose, inputs: Inputs
) -> None:
    """With either, the network that ends at 8 % by itself reaches 94 % and more."""
    deep = Finding("not_learning", "deep_steps", "update_ratio", (), 19, 19, 1, 34.0, 17.0, "", "")
    config = configure("model.depth=66", "act=silu", "model.norm=layer", "optimizer=adam", "optimizer.lr=0.0004")
    offered = [remedy.overrides for remedy in remedies_for(config, inputs, Verdict(19, (deep,)))]
    assert ("model.residual=scaled",) in offered
    assert ("optimizer.lr=0.0001",) in offered


@pytest.mark.parametrize(
    ("rule", "value", "offered"), [("overshoot", 1e9, []), ("overshoot", 1e4, ["3e-05"]), ("large_steps", 1e6, [])]
)
def test_no_rate_becomes_less_than_a_ten_thousandth(
    configure: Compose, inputs: Inputs, rule: str, value: float, offered: list[str]
) -> None:
    kind, limit = RULES[rule]
    verdict = Verdict(30, (Finding(kind, rule, "", (), 0, 30, 2, value, limit, "", ""),))
    remedies = remedies_for(configure("model.depth=5", "optimizer=sgd", "optimizer.lr=0.02"), inputs, verdict)
    assert rates(remedies) == [f"optimizer.lr={rate}" for rate in offered]


@pytest.mark.parametrize(("level", "rate"), [(1.0, "0.02"), (1.1, "0.0002")])
def test_a_sound_network_that_stays_where_it_was_is_offered_larger_steps(
    configure: Compose, inputs: Inputs, level: float, rate: str
) -> None:
    plateau = Finding("not_learning", "plateau", "train/loss", (), 0, 300, 300, level, 0.95, "", "")
    config = configure("model.depth=3", "act=tanh", "init=critical", "optimizer=adagrad", "optimizer.lr=0.002")
    assert rates(remedies_for(config, inputs, Verdict(300, (plateau,)))) == [f"optimizer.lr={rate}"]


@pytest.mark.parametrize(("optimizer", "clipped"), [("adam", False), ("sgd", True)])
def test_steps_that_are_too_large_whatever_the_gradient_are_not_clipped(
    configure: Compose, inputs: Inputs, optimizer: str, clipped: bool
) -> None:
    large = Finding("not_learning", "large_steps", "update_ratio", (), 0, 0, 1, 20.0, 3.0, "", "")
    verdict = Verdict(30, (large, *found("exploding").findings))
    words = [
        r.overrides[0] for r in remedies_for(configure("model.depth=5", f"optimizer={optimizer}"), inputs, verdict)
    ]
    assert ("clip=norm" in words) == clipped


@pytest.mark.parametrize(("since", "offered"), [(0, []), (10, ["optimizer.lr=0.002"])])
def test_units_that_were_dead_from_the_start_died_of_no_rate(
    configure: Compose, inputs: Inputs, since: int, offered: list[str]
) -> None:
    dead = Finding("dead_units", "dead_fraction", "dead_fraction", (), since, 30, 3, 1.0, 0.9, "", "")
    config = configure("model.depth=5", "optimizer=sgd", "optimizer.lr=0.02")
    assert rates(remedies_for(config, inputs, Verdict(30, (dead,)))) == offered


def test_no_remedy_loses_the_signal_in_dropout_again(configure: Compose, inputs: Inputs) -> None:
    lost = Finding("vanishing", "lost_in_dropout", "", (), 0, 0, 1, 1e-9, 5e-5, "", "")
    config = configure("model.dropout=0.5", "model.depth=60")
    remedies = remedies_for(config, inputs, Verdict(0, (lost,)))
    assert remedies[0].overrides == ("model.dropout=0",)
    assert ("init=critical",) not in [remedy.overrides for remedy in remedies]


def test_a_rate_that_is_spelt_out_is_given_to_the_other_optimizer(configure: Compose, inputs: Inputs) -> None:
    offered = {}
    for words in ((), ("optimizer.lr=0.01",)):
        config = configure("act=sigmoid", "model.depth=8", "optimizer=momentum", *words)
        remedies = remedies_for(config, inputs, found("vanishing"))
        (offered[words],) = [r.overrides for r in remedies if r.overrides[0] == "optimizer=adam"]
    assert list(offered.values()) == [("optimizer=adam",), ("optimizer=adam", "optimizer.lr=0.001")]


def test_the_rate_fits_both_rules_on_the_first_step(configure: Compose, inputs: Inputs) -> None:
    findings = [
        Finding("not_learning", "large_steps", "update_ratio", (), 0, 0, 1, 30.0, 3.0, "", ""),
        Finding("exploding", "overshoot", "update_ratio", (), 0, 0, 1, 3000.0, 30.0, "", ""),
    ]
    config = configure("model.depth=5", "optimizer=sgd", "optimizer.lr=5")
    offered = [remedy.overrides for remedy in remedies_for(config, inputs, Verdict(30, tuple(findings)))]
    assert ("optimizer.lr=0.03",) in offered


def test_where_no_gradient_comes_no_rate_is_offered(configure: Compose, inputs: Inputs) -> None:
    nothing = Finding("vanishing", "depth_span", "signal_grad_norm", (), 0, 30, 3, math.inf, 1.7, "", "")
    config = configure("init=zeros", "model.depth=5", "optimizer=momentum")
    words = [word for remedy in remedies_for(config, inputs, Verdict(30, (nothing,))) for word in remedy.overrides]
    assert "init=critical" in words
    assert not any(word.startswith("optimizer") for word in words)
    # Nor where units never lived, rather than died of steps.
    findings = [Finding(kind, kind, "", (), 10, 30, 3, 0.0, 1.0, "", "") for kind in ("dead_units", "tiny_updates")]
    remedies = remedies_for(configure("init=normal", "init.std=0.01"), inputs, Verdict(30, tuple(findings)))
    assert not any(word.startswith("optimizer.lr") for remedy in remedies for word in remedy.overrides)


def test_a_rate_that_the_schedule_took_away_is_given_back(configure: Compose, inputs: Inputs) -> None:
    tiny = Finding("not_learning", "tiny_updates", "update_ratio", (), 0, 100, 2, 1e-9, 1e-4, "", "")
    offered = remedies_for(configure("model.depth=3", "schedule=cosine"), inputs, Verdict(100, (tiny,)))
    assert ("schedule=constant",) in [remedy.overrides for remedy in offered]


def test_copies_are_offered_weights_drawn_at_random_and_nothing_else(configure: Compose, inputs: Inputs) -> None:
    copies = Finding("not_learning", "identical_units", "weights", (), 0, 30, 31, 1.0, math.inf, "", "")
    offered = remedies_for(configure("init=constant", "act=tanh", "model.depth=5"), inputs, Verdict(30, (copies,)))
    assert offered[0].overrides == ("init=critical",)
    assert len(offered) == 4
    assert all(remedy.overrides[0].startswith("init=") for remedy in offered)
    # A knob that only constants have is in the way of every other scheme.
    assert remedies_for(configure("init=constant", "init.value=0.1"), inputs, Verdict(30, (copies,))) == ()


def at_first(kind: str, rule: str, value: float, limit: float = 1.0) -> Finding:
    return Finding(kind, rule, "", (), 0, 199, 2, value, limit, "", "")


@pytest.mark.parametrize(
    ("overrides", "findings", "first"),
    [
        # The network explodes at any rate; a tenth of this one mends nothing.
        (
            "model.depth=6 act=relu init.gain=30 optimizer=adam optimizer.lr=0.02",
            [Finding("exploding", "forward_explosion", "", (), 131, 149, 19, 1e6, 30.0, "", "")],
            ("init.gain=1", "optimizer.lr=0.001"),
        ),
        # 0.6 per layer stays so at any rate, and no network stands this one.
        (
            "model.depth=35 act=relu init.gain=0.6 optimizer=nesterov optimizer.lr=2",
            [at_first("vanishing", "depth_span", 7.0), at_first("not_learning", "large_steps", 400.0, 3.0)],
            ("init.gain=1", "optimizer.lr=0.01"),
        ),
        # Large biases bring inputs together at the edge of chaos too.
        (
            "model.depth=30 act=tanh init=variance init.sigma_w2=1.3 init.sigma_b2=2",
            [at_first("vanishing", "collapse", 1.0)],
            ("init.sigma_w2=1", "init.sigma_b2=0"),
        ),
        (
            "model.depth=30 act=tanh init=critical init.sigma_b2=3 init.gain=0.6",
            [at_first("vanishing", "depth_span", 4.0)],
            ("init.sigma_b2=0", "init.gain=1"),
        ),
        (
            "model.depth=3 act=relu optimizer=sgd optimizer.lr=1e-6 schedule=cosine",
            [at_first("not_learning", "tiny_updates", 1e-8, 1e-4)],
            ("optimizer.lr=0.05",),
        ),
        (
            "model.depth=3 act=relu optimizer=sgd optimizer.lr=0.05 schedule=cosine",
            [at_first("not_learning", "tiny_updates", 1e-8, 1e-4)],
            ("schedule=constant",),
        ),
    ],
)
def test_what_is_wrong_is_what_the_first_remedy_changes(
    configure: Compose, inputs: Inputs, overrides: str, findings: list[Finding], first: tuple[str, ...]
) -> None:
    remedies = remedies_for(configure(*overrides.split()), inputs, Verdict(199, tuple(findings)))
    assert remedies[0].overrides == first


@pytest.mark.parametrize(
    ("overrides", "findings", "first"),
    [
        # Each ends at 8 to 10 % after 500 steps, and with its first remedy at 79, 98 and 97 %.
        (
            "model.depth=23 model.width=100 model.norm=layer model.dropout=0.12 act=gelu init=xavier_normal "
            "init.gain=0.85 optimizer=adam optimizer.lr=0.00325 batch_size=64",
            {"depth_span": 4.1, "lost_in_dropout": 0.0, "large_steps": 4.2},
            ("model.dropout=0", "optimizer.lr=0.001"),
        ),
        (
            "model.depth=34 model.width=240 act=erf init=xavier_uniform init.gain=0.703 optimizer=adagrad "
            "optimizer.lr=0.017",
            {"depth_span": 12.0, "large_steps": 28.0},
            ("init.gain=1", "optimizer.lr=0.0009"),
        ),
        (
            "model.depth=59 model.width=114 act=scaled_tanh init=kaiming_normal optimizer=adamw optimizer.lr=0.00826",
            {"depth_span": 9.9, "large_steps": 28.1},
            ("init=critical", "optimizer.lr=0.0004"),
        ),
        # One coordinate a step: 19 % at ten times the rate, 92 % with Adam.
        (
            "model.depth=15 model.width=27 act=softplus init=kaiming_normal optimizer=coordinate_descent "
            "optimizer.lr=0.0406 batch_size=64",
            {"collapse": 1.0, "plateau": 1.0},
            ("optimizer=adam", "optimizer.lr=0.001"),
        ),
        # Weights are drawn three times as large as the bound leaves them: 8 %, and 91 % with more room.
        (
            "model.depth=12 model.width=21 act=scaled_tanh init=lsuv init.gain=1.68 optimizer=sgd optimizer.lr=0.0251 "
            "constraint=weight_clip",
            {"depth_span": 4.0, "collapse": 1.0, "plateau": 1.0},
            ("constraint.bound=0.97",),
        ),
        # Theory has no word on the network, but on what masks leave of the signal: 18 %, and 98 % without.
        (
            "model.depth=33 model.width=74 model.norm=batch model.norm_position=after model.dropout=0.27 act=sigmoid "
            "init=xavier_uniform optimizer=adamw optimizer.lr=0.000408",
            {"lost_in_dropout": 0.0},
            ("model.dropout=0",),
        ),
    ],
)
def test_what_failed_in_a_drawing_is_mended_by_the_first_remedy(
    configure: Compose, inputs: Inputs, overrides: str, findings: dict[str, float], first: tuple[str, ...]
) -> None:
    kinds = {"large_steps": "not_learning", "plateau": "not_learning"}
    found = [
        Finding(kinds.get(rule, "vanishing"), rule, "", (), 0, 499, 6, value, 3.0, "", "")
        for rule, value in findings.items()
    ]
    assert remedies_for(configure(*overrides.split()), inputs, Verdict(499, tuple(found)))[0].overrides == first


def test_no_network_is_offered_at_a_rate_that_none_stands(configure: Compose, inputs: Inputs) -> None:
    config = configure("model.depth=35", "act=relu", "init.gain=0.6", "optimizer=nesterov", "optimizer.lr=2")
    findings = (at_first("vanishing", "depth_span", 7.0), at_first("not_learning", "plateau", 1.0, 0.95))
    offered = [remedy.overrides for remedy in remedies_for(config, inputs, Verdict(199, findings))]
    assert ("model.residual=scaled", "optimizer.lr=0.01") in offered
    assert not any("residual" in " ".join(words) and "optimizer" not in " ".join(words) for words in offered)


def test_what_leaves_the_gradient_where_it_is_mends_nothing(configure: Compose, inputs: Inputs) -> None:
    """A sigmoid's slope is at most 1/4, whatever normalises its input."""
    words = ["model.width=[100,100,100,100]", "act=sigmoid", "init=normal", "init.std=0.16"]
    config, normed = configure(*words), configure(*words, "model.norm=layer")
    offered = [remedy.overrides for remedy in remedies_for(config, inputs, found("vanishing"))]
    now, then = (-3 * np.log10(expect(each, inputs).depth_factor) for each in (config, normed))
    assert 0.9 * now < then < min(now, config.verdict.remedy_decades)
    assert ("model.norm=batch",) in offered
    assert ("model.norm=layer",) not in offered


def test_branches_that_start_at_nothing_come_with_weights_of_moderate_size(configure: Compose, inputs: Inputs) -> None:
    config = configure("model.depth=16", "act=relu", "init=xavier_normal", "init.gain=4")
    offered = [remedy.overrides for remedy in remedies_for(config, inputs, found("exploding"))]
    assert ("model.residual=rezero", "init=critical", "init.gain=1") in offered
    offered = [remedy.overrides for remedy in remedies_for(configure("init=xavier_normal"), inputs, found("vanishing"))]
    assert ("model.residual=rezero",) in offered


@pytest.mark.parametrize(
    ("bound", "usual"),
    [
        (["clip=norm", "clip.max_norm=1e-5"], "clip.max_norm=1"),
        (["penalty=l2", "penalty.strength=0.1"], "penalty.strength=0.0001"),
        (["constraint=weight_clip", "constraint.bound=0.001"], "constraint.bound=0.1"),
    ],
)
def test_other_networks_come_with_usual_bounds(
    configure: Compose, inputs: Inputs, bound: list[str], usual: str
) -> None:
    config = configure("act=sigmoid", "init=xavier_normal", *bound)
    networks = [r for r in remedies_for(config, inputs, found("vanishing"), typical_norm=1.0) if r.predicted_factor]
    assert networks
    assert all(remedy.overrides[-1] == usual for remedy in networks)
