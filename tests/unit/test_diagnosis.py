"""The verdict: each rule on profiles whose answer is plain, and what must not change it."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from gradstab.config.verdict_options import KINDS, Thresholds
from gradstab.console.verdict import verdict_text
from gradstab.events import EventWriter, read_records
from gradstab.measure.afterwards import judge_records
from gradstab.measure.diagnosis import Judge
from gradstab.measure.verdict import Finding, Remedy, Verdict

TAGS = [*(f"{i:02d}_hidden" for i in range(10)), "10_output"]
CHANCE = math.log(10)
T = Thresholds()


def profile(factor: float, top: float = 1.0) -> np.ndarray:
    """δ of ten hidden layers that changes by ``factor`` per layer towards the input, and the output's."""
    return np.array([top * factor ** (9 - layer) for layer in range(10)] + [top])


def judge(
    theory: dict[str, Any] | None = None, thresholds: Thresholds = T, chance: float = CHANCE, adaptive: bool = False
) -> Judge:
    return Judge(TAGS, 10, thresholds, theory=theory, chance_loss=chance, adaptive=adaptive)


def looked(at: Judge, step: int, loss: float, **vectors: np.ndarray) -> None:
    at.observe(step, {"train/loss": loss, "global_grad_norm/pre_clip": 1.0, "train/learning_rate": 0.1}, vectors)


@pytest.mark.parametrize(
    ("factor", "labels"),
    [(1.0, ("healthy",)), (0.7, ("healthy",)), (1.4, ("healthy",)), (0.5, ("vanishing",)), (2.0, ("exploding",))],
)
def test_the_span_of_delta_over_depth_decides(factor: float, labels: tuple[str, ...]) -> None:
    one = judge()
    looked(one, 0, CHANCE, signal_grad_norm=profile(factor))
    assert one.verdict().labels == labels


@pytest.mark.parametrize(
    ("factor", "labels"), [(0.5, ("healthy",)), (0.4, ("vanishing",)), (1.7, ("healthy",)), (2.0, ("exploding",))]
)
def test_steps_of_one_size_forgive_more_downwards_alone(factor: float, labels: tuple[str, ...]) -> None:
    one = judge(adaptive=True)
    looked(one, 0, CHANCE, signal_grad_norm=profile(factor))
    assert one.verdict().labels == labels
    for finding in one.verdict().findings:
        knobs = finding.key.replace("verdict.", "").split(" × ")
        assert finding.threshold == pytest.approx(math.prod(getattr(T, knob) for knob in knobs))


@pytest.mark.parametrize("limit", [2.0, 300.0, 400.0, 1e30])
@pytest.mark.parametrize("kind", ["vanishing", "exploding"])
def test_a_layer_without_any_gradient_is_beyond_every_limit(limit: float, kind: str) -> None:
    one = judge(thresholds=replace(T, init_vanishing_decades=limit, init_exploding_decades=limit))
    delta = np.geomspace(0.1, 1.0, 11)
    delta[0 if kind == "vanishing" else 9] = 0.0
    looked(one, 0, CHANCE, signal_grad_norm=delta)
    (finding,) = one.verdict().findings
    assert (finding.kind, finding.value) == (kind, math.inf)
    assert finding.layers == tuple(TAGS[:1] if kind == "vanishing" else TAGS[:9])


@pytest.mark.parametrize(("chance", "base"), [(CHANCE, "guessing"), (None, "the first step")])
def test_evidence_says_what_its_numbers_count(chance: float | None, base: str) -> None:
    one = Judge(TAGS, 10, T, chance_loss=chance, adaptive=True)
    for step in range(T.patience + 2):
        looked(one, step, CHANCE * (1.5 if step else 1.0), signal_grad_norm=profile(0.2))
    console = Console(width=1000, record=True, file=io.StringIO())
    console.print(verdict_text(one.verdict()))
    said = console.export_text()
    assert "(signal_grad_norm: 6.29 decades against verdict.stalled_depth_decades × verdict.adaptive_slack=" in said
    assert f"the loss is at 1.5 times that of {base}, without progress" in said
    assert f"(train/loss: 1.5 × {base}'s against verdict.plateau=0.95)" in said


@pytest.mark.parametrize("width", [40, 80, 110, 200])
def test_a_remedy_can_be_pasted_from_a_terminal_of_any_width(width: int) -> None:
    words = "model.residual=scaled init=critical init.sigma_b2=0.2 init.gain=1 optimizer.lr=0.01"
    remedies = (
        Remedy(tuple(words.split()), "skip paths and critical weights", 1.03),
        Remedy(("act=tanh",), "a bounded activation"),
    )
    console = Console(width=width, record=True, file=io.StringIO())
    finding = Finding("exploding", "", "", (), 0, 0, 1, 1.0, 1.0, "", "")
    console.print(verdict_text(Verdict(0, (finding,), remedies)), crop=False)
    lines = console.export_text().splitlines()
    assert sum(line.startswith(f"  {words}") for line in lines) == 1
    assert not any("optimizer.lr" in line and words not in line for line in lines)
    # Beside the overrides or below them, a reason is always told.
    assert any("1.030  skip paths" in line for line in lines)


@pytest.mark.parametrize(
    ("losses", "when"),
    [
        ((CHANCE,), "before the first update"),
        ((math.nan,), "before the first update"),
        ((CHANCE, CHANCE), "after 2 steps"),
        ((CHANCE, CHANCE, math.inf), "at step 2"),
        ((CHANCE, math.inf, CHANCE), "after 3 steps"),
    ],
)
def test_a_step_that_broke_counts_as_looked_at_and_not_as_made(losses: Sequence[float], when: str) -> None:
    one = judge()
    for step, loss in enumerate(losses):
        looked(one, step, loss)
    console = Console(record=True, file=io.StringIO())
    console.print(verdict_text(one.verdict()))
    assert console.export_text().splitlines()[0].endswith(f"  {when}")


def test_evidence_of_an_explosion_names_the_layers_near_the_input() -> None:
    one = judge()
    looked(one, 0, CHANCE, signal_grad_norm=profile(2.0))
    # Above 10^2.2 of the top's: eight doublings or more away from it.
    assert one.verdict().findings[0].layers == tuple(TAGS[:2])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [-1.0, -math.inf, math.nan])
def test_what_is_no_norm_spans_nothing(value: float) -> None:
    one = judge()
    delta = np.full(11, value)
    looked(one, 0, CHANCE, signal_grad_norm=delta)
    delta[3:5] = 1.0
    looked(one, 1, CHANCE, signal_grad_norm=delta)
    assert "depth_span" not in [finding.rule for finding in one.verdict().findings]


def test_evidence_names_value_threshold_layers_and_steps() -> None:
    one = judge({"depth_factor": 0.5})
    for step, vectors in ((0, {"signal_grad_norm": profile(0.5)}), (1, {}), (2, {"signal_grad_norm": profile(0.5)})):
        looked(one, step, CHANCE, **vectors)
    (finding,) = one.verdict().findings
    assert finding.value == pytest.approx(9 * math.log10(2))
    assert (finding.key, finding.threshold) == ("verdict.stalled_depth_decades", T.stalled_depth_decades)
    assert (finding.first_step, finding.last_step, finding.persistence) == (0, 2, 2)
    # Below 10^-1.7 of the top's: six halvings or more away from it.
    assert finding.layers == tuple(TAGS[:4])
    assert "0.5 per layer at initialisation, 0.002 over the depth" in finding.theory
    assert "expects this" in finding.theory


@pytest.mark.parametrize("factor", [0.3, 2.0])
def test_theory_that_disagrees_is_said_to(factor: float) -> None:
    one = judge({"depth_factor": 1.0})
    looked(one, 0, CHANCE, signal_grad_norm=profile(factor))
    assert "no such thing" in one.verdict().findings[0].theory


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e6])
def test_the_loss_scale_does_not_matter(scale: float) -> None:
    verdicts = []
    for unit in (1.0, scale):
        one = judge(chance=CHANCE * unit)
        for step in range(3):
            looked(one, step, 1.3 * CHANCE * unit, signal_grad_norm=profile(0.5, unit))
        verdicts.append([(f.rule, round(f.value, 6), f.layers) for f in one.verdict().findings])
    assert verdicts[0] == verdicts[1]


def test_thresholds_are_the_configurations() -> None:
    strict = judge(thresholds=Thresholds(init_vanishing_decades=0.1))
    looked(strict, 0, CHANCE, signal_grad_norm=profile(0.9))
    assert strict.verdict().labels == ("vanishing",)


def test_no_gradient_at_all_is_vanishing() -> None:
    one = judge()
    looked(one, 0, CHANCE, signal_grad_norm=np.array([0.0] * 10 + [1.0]))
    (finding,) = one.verdict().findings
    assert finding.kind == "vanishing"
    assert finding.layers == tuple(TAGS[:10])


def test_a_single_hidden_layer_without_a_gradient_spans_no_depth() -> None:
    one = Judge(["0_hidden", "1_output"], 1, T, chance_loss=CHANCE)
    looked(one, 0, CHANCE, signal_grad_norm=np.array([0.0, 1.0]))
    assert one.verdict().labels == ("healthy",)


def test_an_output_layer_that_starts_at_0_lets_gradients_pass_after_its_first_update() -> None:
    one = judge()
    blocked = np.array([0.0] * 10 + [1.0])
    vectors = {"signal_grad_norm": blocked, "grad_norm": blocked, "weight_norm": 1 - blocked}
    looked(one, 0, CHANCE, **vectors)
    assert one.verdict().labels == ("healthy",)
    looked(one, 1, CHANCE, **vectors)
    assert one.verdict().labels == ("vanishing",)


def test_underflow_towards_the_input_is_vanishing() -> None:
    one = judge()
    looked(one, 0, CHANCE, signal_grad_norm=np.array([0.0, 0.0, *profile(0.9)[2:]]))
    (finding,) = one.verdict().findings
    assert finding.kind == "vanishing"
    # A line through the layers that have a gradient would say nothing of those that have none.
    said = f"δ falls to 0 from {TAGS[9]} to {TAGS[0]}: layers near the input hardly get a gradient"
    assert finding.explanation == said


def test_a_span_that_no_float_holds() -> None:
    one = judge()
    looked(one, 0, CHANCE, signal_grad_norm=np.array([1e-320, *[1.0] * 8, 1e300, 1.0]))
    (finding,) = one.verdict().findings
    assert finding.value == pytest.approx(620, abs=1)
    assert "a factor of 10^620" in finding.explanation


def test_layers_without_a_signal_are_left_out() -> None:
    one = judge()
    looked(one, 0, CHANCE, signal_grad_norm=np.array([math.nan, math.nan, *profile(0.4)[2:]]))
    (finding,) = one.verdict().findings
    assert finding.kind == "vanishing"
    assert finding.value == pytest.approx(7 * math.log10(2.5))


def test_the_profile_may_be_of_chosen_layers() -> None:
    one = Judge(TAGS, 0, T, chance_loss=CHANCE, depth_layers=[TAGS[2], TAGS[7], TAGS[9]])
    looked(one, 0, CHANCE, signal_grad_norm=profile(0.4))
    (finding,) = one.verdict().findings
    assert finding.value == pytest.approx(7 * math.log10(2.5))
    assert finding.layers == (TAGS[2],)


def test_a_step_that_the_scaler_skipped_breaks_nothing() -> None:
    one = judge()
    one.observe(0, {"train/loss": CHANCE, "global_grad_norm/pre_clip": math.inf, "amp/skipped": 1.0}, {})
    assert one.verdict().labels == ("healthy",)


def test_a_network_that_learns_is_healthy_whatever_its_profile() -> None:
    one = judge()
    for step in range(6):
        looked(one, step, 0.1 * CHANCE, signal_grad_norm=profile(0.3), dead_fraction=np.full(10, 0.95))
    assert one.verdict().labels == ("healthy",)


@pytest.mark.parametrize(("level", "labels"), [(0.49, ("healthy",)), (0.51, ("vanishing",))])
def test_half_of_the_loss_of_guessing_is_learnt(level: float, labels: tuple[str, ...]) -> None:
    one = judge()
    for step in range(6):
        looked(one, step, level * CHANCE, signal_grad_norm=profile(0.3))
    assert one.verdict().labels == labels


@pytest.mark.parametrize(("level", "labels"), [(0.94, ("healthy",)), (0.96, ("vanishing",))])
def test_on_the_plateau_a_lesser_span_counts(level: float, labels: tuple[str, ...]) -> None:
    one = judge()
    for step in range(6):
        looked(one, step, level * CHANCE, signal_grad_norm=profile(10 ** (-2 / 9)))
    assert one.verdict().labels == labels


def test_the_loss_before_any_update_is_not_among_those_after_it() -> None:
    one = judge()
    for step, level in enumerate((200.0, 0.9, 0.9, 0.9, 0.9)):
        looked(one, step, level * CHANCE)
    assert one.verdict().labels == ("healthy",)


@pytest.mark.parametrize(("norms", "typical"), [([1, 1, 1, 1e6], 1), ([1] * 10 + [3] * 15 + [9] * 50, 3)])
def test_the_typical_norm_is_the_median_of_the_first_steps(norms: list[float], typical: float) -> None:
    one = judge()
    assert one.typical_norm is None
    for step, norm in enumerate(norms):
        one.observe(step, {"train/loss": CHANCE, "global_grad_norm/pre_clip": norm}, {})
    assert one.typical_norm == typical


def test_what_no_longer_holds_is_forgotten() -> None:
    one = judge()
    looked(one, 0, CHANCE, signal_grad_norm=profile(0.5))
    looked(one, 1, 0.9 * CHANCE, signal_grad_norm=profile(0.95))
    assert one.verdict().labels == ("healthy",)


def test_what_was_wrong_at_first_counts_until_the_loss_moves() -> None:
    """A profile that is fine by now has not made the network learn; what came up later counts while it holds."""
    one = judge()
    looked(one, 0, CHANCE, signal_grad_norm=profile(0.5))
    for step in range(1, 20):
        looked(one, step, CHANCE, signal_grad_norm=profile(2.0 if step == 5 else 0.95))
        assert one.verdict().labels == (("vanishing", "exploding") if step == 5 else ("vanishing",))
    (finding,) = one.verdict().findings
    assert (finding.first_step, finding.last_step, finding.persistence) == (0, 0, 1)
    assert one.to_stop(["vanishing"]) is None
    looked(one, 20, 1.5 * CHANCE)
    for step in range(21, 30):
        looked(one, step, 1.5 * CHANCE, signal_grad_norm=profile(0.95))
    assert one.verdict().labels == ("healthy",)


def test_a_plateau_tells_by_itself_in_the_end() -> None:
    one = judge()
    looked(one, 0, CHANCE, signal_grad_norm=profile(0.5))
    for step in range(1, T.patience + 2):
        looked(one, step, CHANCE, signal_grad_norm=profile(0.95))
    assert one.verdict().labels == ("not_learning",)


def test_a_forward_explosion_shows_in_the_loss() -> None:
    one = judge()
    looked(one, 0, 500 * CHANCE)
    (finding,) = one.verdict().findings
    assert (finding.kind, finding.rule) == ("exploding", "forward_explosion")
    assert finding.value == pytest.approx(500)


def test_outputs_that_look_alike_are_a_vanished_signal() -> None:
    one = judge()
    looked(one, 0, CHANCE, signal_grad_norm=profile(1.0), correlation=np.array([0.5] * 6 + [0.99999] * 5))
    (finding,) = one.verdict().findings
    assert (finding.kind, finding.rule, finding.layers) == ("vanishing", "collapse", tuple(TAGS[6:]))


@pytest.mark.parametrize(("quantity", "kind"), [("dead_fraction", "dead_units"), ("saturated_fraction", "saturated")])
def test_shares_of_units(quantity: str, kind: str) -> None:
    shares = np.array([0.1] * 7 + [0.96, 0.97, math.nan])
    one = judge()
    looked(one, 0, CHANCE, signal_grad_norm=profile(1.0), **{quantity: shares})
    (finding,) = one.verdict().findings
    assert (finding.kind, finding.value, finding.layers) == (kind, 0.97, tuple(TAGS[7:9]))


def test_the_plateau_needs_patience_and_progress_resets_it() -> None:
    patient = judge(thresholds=Thresholds(patience=20))
    for step in range(30):
        looked(patient, step, CHANCE * (1.0 - 0.003 * min(step, 15)))
        assert patient.verdict().labels == ("healthy",)
    for step in range(30, 50):
        looked(patient, step, 0.96 * CHANCE)
    (finding,) = patient.verdict().findings
    assert (finding.kind, finding.rule) == ("not_learning", "plateau")
    assert finding.persistence >= 20


@pytest.mark.parametrize(("fall", "labels"), [(0.995, ("not_learning",)), (0.93, ("healthy",))])
def test_a_loss_that_creeps_down_to_guessings_is_no_progress(fall: float, labels: tuple[str, ...]) -> None:
    """From 12 times that of guessing: to a third of itself within 220 steps, or within 16."""
    one = judge(thresholds=Thresholds(patience=40))
    for step in range(120):
        looked(one, step, CHANCE * max(12 * fall**step, 0.9))
    assert one.verdict().labels == labels


def test_outputs_that_are_all_but_alike_are_moved_apart_by_adaptive_steps() -> None:
    found = []
    for adaptive in (False, True):
        one = judge(adaptive=adaptive)
        for step in range(2):
            alike = np.full(11, 0.9995)
            looked(one, step, CHANCE, signal_grad_norm=profile(1.0), correlation=alike)
        found.append(one.verdict().labels)
    assert found == [("vanishing",), ("healthy",)]


def test_a_schedules_last_step_is_no_stalled_network() -> None:
    found = []
    for looks in (1, 2):
        one = judge()
        for step in range(4):
            rate = 0.1 if step < 4 - looks else 1e-5
            update = np.full(11, 1e-2 if step < 4 - looks else 1e-6)
            scalars = {"train/loss": CHANCE, "train/learning_rate": rate}
            one.observe(step, scalars, {"signal_grad_norm": profile(1.0), "update_ratio": update})
        found.append([finding.rule for finding in one.verdict().findings])
    assert found == [[], ["tiny_updates"]]


def test_a_step_that_breaks_in_training_and_in_a_test_is_told_alike_live_and_afterwards() -> None:
    live = judge()
    for step in range(3):
        looked(live, step, CHANCE)
    live.observe(3, {"train/loss": math.inf}, {})
    live.observe(3, {"test/loss": math.inf}, {})
    afterwards = judge()
    for step in range(3):
        looked(afterwards, step, CHANCE)
    afterwards.observe(3, {"train/loss": math.inf, "test/loss": math.inf}, {})
    assert live.verdict() == afterwards.verdict()
    (finding,) = live.verdict().findings
    assert (finding.quantity, finding.persistence) == ("train/loss", 1)


def test_updates_too_small_to_matter() -> None:
    tiny = np.full(11, 1e-5)
    one = judge()
    for step in range(2):
        looked(one, step, CHANCE, signal_grad_norm=profile(1.0), update_ratio=tiny)
    assert [f.rule for f in one.verdict().findings] == ["tiny_updates"]
    apart = judge()
    for step in range(2):
        looked(apart, step, CHANCE, signal_grad_norm=profile(1.0), update_ratio=np.array([0.0] + [0.01] * 10))
    assert apart.verdict().labels == ("healthy",), "a layer that stays is not all of them"
    warming = judge()
    for step in range(5):
        values = {"train/loss": CHANCE, "train/learning_rate": 1e-4 * (step + 1)}
        warming.observe(step, values, {"signal_grad_norm": profile(1.0), "update_ratio": tiny})
    assert warming.verdict().labels == ("healthy",), "a rate that is still being warmed up proves nothing"


def jumping(factor: float, steps: int, level: float = 1.02, gap: int = 1) -> Judge:
    """A run whose gradient norm is ``factor`` times larger at every other step, with a loss that stays."""
    one = judge()
    for step in range(steps):
        norm = factor if step % 2 else 1.0
        one.observe(step * gap, {"train/loss": level * CHANCE, "global_grad_norm/pre_clip": norm}, {})
    return one


def test_a_gradient_that_changes_with_each_step_of_a_network_that_learns_nothing() -> None:
    (finding,) = jumping(2.2, 40).verdict().findings
    assert (finding.kind, finding.rule, finding.key) == ("not_learning", "erratic", "verdict.jump")
    assert (finding.value, finding.threshold) == (pytest.approx(2.2), T.jump)


@pytest.mark.parametrize(
    "quiet",
    [
        {"factor": 1.9, "steps": 40},
        {"factor": 5.0, "steps": 40, "level": 0.97},
        {"factor": 5.0, "steps": T.jump_window + T.jump_persistence - 1},
        {"factor": 5.0, "steps": 40, "gap": 2},
    ],
    ids=["changes of batches", "a loss that makes progress", "too few steps", "steps that are not in a row"],
)
def test_what_is_not_erratic(quiet: dict[str, Any]) -> None:
    assert jumping(**quiet).verdict().labels == ("healthy",)


@pytest.mark.parametrize(("moved", "erratic"), [(0.0, False), (1e-6, False), (1e-3, True)])
def test_where_weights_hardly_move_it_is_not_steps_that_change_the_gradient(moved: float, erratic: bool) -> None:
    one = jumping(2.2, 40)
    vectors = {"signal_grad_norm": profile(1.0), "update_ratio": np.full(11, moved)}
    for step in (40, 41):
        one.observe(step, {"train/loss": CHANCE, "global_grad_norm/pre_clip": 2.2 ** (step % 2)}, vectors)
    rules = [finding.rule for finding in one.verdict().findings]
    assert ("tiny_updates" in rules) != erratic
    assert ("erratic" in rules) == erratic


def test_a_gradient_that_is_least_in_the_middle_is_not_said_to_be_so_near_the_input() -> None:
    one = judge()
    delta = np.array([0.3, 0.3, 0.3, 1e-4, 1e-6, 1e-6, 1e-4, 1e-1, 1.0, 1.0])
    for step in range(3):
        looked(one, step, CHANCE, signal_grad_norm=np.append(delta, 1.0))
    (finding,) = [f for f in one.verdict().findings if f.rule == "depth_span"]
    assert set(finding.layers) == {TAGS[i] for i in (3, 4, 5, 6)}
    assert finding.explanation.endswith("layers on the way to the input hardly get a gradient")
    assert "R²" not in finding.explanation


@pytest.mark.parametrize(
    ("theory", "moved", "delta", "labels"),
    [
        ({"constant_rate": True}, 5e-7, 1.0, ("not_learning",)),
        ({"constant_rate": True}, 5e-6, 1.0, ("healthy",)),
        # A rate that may grow says nothing yet, and without a gradient no rate moves anything.
        ({}, 5e-7, 1.0, ("healthy",)),
        ({"constant_rate": True}, 5e-7, 0.3, ("vanishing",)),
    ],
)
def test_a_first_step_that_moves_nothing(
    theory: dict[str, Any], moved: float, delta: float, labels: tuple[str, ...]
) -> None:
    one = judge(theory=theory)
    looked(one, 0, CHANCE, signal_grad_norm=profile(delta), update_ratio=np.full(11, moved))
    assert one.verdict().labels == labels
    if labels == ("not_learning",):
        (finding,) = one.verdict().findings
        assert (finding.rule, finding.key) == ("tiny_updates", "verdict.init_update_ratio")
        # Later steps tell by themselves: here, that it moves after all.
        looked(one, 1, CHANCE, signal_grad_norm=profile(delta), update_ratio=np.full(11, 1e-3))
        assert one.verdict().labels == ("healthy",)


def first_step(removed: float, adaptive: bool = False, unit: float = 1.0) -> Judge:
    """A first look at a step that by its gradient lowers the loss by ``removed`` times its size."""
    one = judge(adaptive=adaptive, chance=CHANCE * unit)
    share = removed * CHANCE / len(TAGS) / 4
    vectors = {
        "grad_norm": np.full(11, 2.0 * unit),
        "weight_norm": np.full(11, 2.0),
        "update_ratio": np.full(11, share),
    }
    looked(one, 0, CHANCE * unit, signal_grad_norm=profile(1.0, unit), **vectors)
    return one


@pytest.mark.parametrize("unit", [1.0, 1e-6])
def test_a_first_step_far_beyond_the_reach_of_its_gradient(unit: float) -> None:
    (finding,) = first_step(40.0, unit=unit).verdict().findings
    assert (finding.kind, finding.rule, finding.key) == ("exploding", "overshoot", "verdict.overshoot")
    assert finding.value == pytest.approx(40)


@pytest.mark.parametrize(
    ("theory", "labels"),
    [
        ({"notes": ["norm=batch: inputs are taken as equally long"]}, ("healthy",)),
        ({"reason": "norm=batch with norm_position=after: no formula"}, ("healthy",)),
        ({"notes": ["norm=layer: of a depth"]}, ("exploding",)),
        ({}, ("exploding",)),
    ],
)
def test_behind_batch_norm_a_first_step_is_over_once_it_is_made(
    theory: dict[str, Any], labels: tuple[str, ...]
) -> None:
    """However large, it leaves weights whose size no output shows; van Laarhoven 2017 (arXiv:1706.05350)."""
    one = judge(theory)
    sizes = {"grad_norm": np.full(11, 2.0), "weight_norm": np.full(11, 2.0), "update_ratio": np.full(11, 5.0)}
    looked(one, 0, CHANCE, signal_grad_norm=profile(2.0), **sizes)
    assert [finding.rule for finding in one.verdict().findings] == ["depth_span", "overshoot"]
    for step in range(1, 20):
        looked(one, step, CHANCE, signal_grad_norm=profile(1.0))
    assert one.verdict().labels == labels


def test_what_does_not_overshoot() -> None:
    assert first_step(20.0).verdict().labels == ("healthy",)
    assert first_step(40.0, adaptive=True).verdict().labels == ("healthy",), "Adam's first step is of one size"
    one = judge()
    beyond = {name: np.full(11, 1e110) for name in ("grad_norm", "weight_norm", "update_ratio")}
    looked(one, 0, CHANCE, signal_grad_norm=profile(1.0), **beyond)
    assert one.verdict().labels == ("healthy",), "inf is no measure"
    one = judge()
    huge = {name: np.full(11, 1e50) for name in ("grad_norm", "weight_norm", "update_ratio")}
    looked(one, 0, 1e90, signal_grad_norm=profile(1.0), **huge)
    assert [f.rule for f in one.verdict().findings] == ["forward_explosion"], "1e90 is beyond what the file holds"


def exploded(losses: Sequence[float], spreads: Sequence[float]) -> Judge:
    """A network whose δ grows twofold per layer towards the input: losses over that of guessing, and last spreads."""
    one = judge()
    for step, (loss, spread) in enumerate(zip(losses, spreads, strict=True)):
        vectors = {"signal_grad_norm": profile(2.0), "activation_std": np.array([1.0] * 9 + [spread])}
        looked(one, step, loss * CHANCE, **vectors)
    return one


def test_an_exploded_network_whose_errors_become_fewer_recovers() -> None:
    mending = [1e4, 5e3, 2e3, 1e3, 1e3, 1e3, 1e3, 1e3]
    assert exploded(mending[:1], [1e3]).verdict().labels == ("exploding",)
    assert exploded(mending, [1e3] * 8).verdict().labels == ("healthy",)
    shrinking = exploded(mending, [0.1 * loss for loss in mending])
    assert {f.rule for f in shrinking.verdict().findings} == {"forward_explosion", "depth_span"}
    assert "healthy" not in exploded([1e4, *[5e3] * 7], [1e3] * 8).verdict().labels


def test_a_recovery_is_over_when_the_loss_rises_again() -> None:
    one = exploded([1e4] + [1e2] * 10, [1e3] * 11)
    assert one.verdict().labels == ("healthy",)
    for step in range(11, 17):
        one.observe(step, {"train/loss": 1e4 * CHANCE, "global_grad_norm/pre_clip": 1.0}, {})
    assert one.verdict().labels == ("exploding",)


def test_a_loss_larger_than_at_first_is_no_recovery_however_the_activations_grow() -> None:
    assert exploded([3.0, 6.0, 6.0, 6.0, 6.0, 6.0], [1.0, *[1e3] * 5]).verdict().labels == ("exploding",)


def test_a_recovery_that_gets_stuck_is_none() -> None:
    one = exploded([1e4, *[1e2] * 10], [1e3] * 11)
    assert one.verdict().labels == ("healthy",)
    for step in range(11, 300):
        looked(one, step, 1e2 * CHANCE, signal_grad_norm=profile(2.0), activation_std=np.full(10, 1e3))
    assert "exploding" in one.verdict().labels


def test_layers_without_a_gradient_near_the_input_are_no_growth_towards_it() -> None:
    one = judge()
    delta = np.where(np.arange(11) < 7, 0.0, profile(2.0))
    for step in (0, 1):
        looked(one, step, CHANCE, signal_grad_norm=delta)
    assert one.verdict().labels == ("vanishing",)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize(
    ("share", "level", "notes", "labels"),
    [
        (1e-3, 1.0, [], ("vanishing",)),
        (1e-3, 0.9, [], ("healthy",)),
        (1e-2, 1.0, [], ("healthy",)),
        (1e-3, 1.0, ["norm=batch: reckoned with"], ("healthy",)),
        (1e-5, 1.0, ["norm=batch: reckoned with"], ("vanishing",)),
    ],
)
def test_a_signal_that_dropout_hides(
    share: float, level: float, notes: list[str], labels: tuple[str, ...], adaptive: bool
) -> None:
    one = judge({"signal_share": share, "notes": notes}, adaptive=adaptive)
    looked(one, 0, CHANCE, signal_grad_norm=profile(1.0))
    # Steps that shrink with the signal make a narrow way narrower from the start.
    limit = T.signal_share if adaptive or notes else T.stalled_signal_share
    assert one.verdict().labels == (("vanishing",) if share < limit else ("healthy",))
    for step in range(1, 7):
        looked(one, step, level * CHANCE, signal_grad_norm=profile(1.0))
    assert one.verdict().labels == labels


@pytest.mark.parametrize(
    ("ratio", "scale", "rules"),
    [
        (0.2, 31.6, ["large_steps"]),
        (0.08, 31.6, []),
        (0.1, 316.0, ["large_steps"]),
        (5.0, None, []),
        (math.nan, 31.6, []),
        (math.inf, 31.6, ["large_steps"]),
    ],
)
def test_steps_too_large_for_the_depth(ratio: float, scale: float | None, rules: list[str]) -> None:
    one = judge({} if scale is None else {"step_scale": scale})
    # The output layer's step is not one of the chain's.
    looked(one, 0, CHANCE, signal_grad_norm=profile(1.0), update_ratio=np.array([ratio] * 10 + [100.0]))
    findings = one.verdict().findings
    assert [finding.rule for finding in findings] == rules
    for finding in findings:
        assert (finding.kind, finding.key) == ("not_learning", "verdict.scaled_step")
        assert finding.value == pytest.approx(ratio * (scale or 0))
    later = {"signal_grad_norm": profile(1.0), "update_ratio": np.full(11, 0.01)}
    looked(one, 1, CHANCE, **later)
    assert [finding.rule for finding in one.verdict().findings] == rules, "nothing is learnt yet"
    for step in range(2, 8):
        looked(one, step, 0.9 * CHANCE, **later)
    assert one.verdict().labels == ("healthy",), "it did no harm"
    looked(one, 8, 0.9 * CHANCE, **later, dead_fraction=np.ones(10))
    assert [finding.rule for finding in one.verdict().findings] == ["dead_fraction", *rules], "it may be why"
    for step in range(9, 15):
        looked(one, step, 0.1 * CHANCE, **later, dead_fraction=np.ones(10))
    assert one.verdict().labels == ("healthy",)


@pytest.mark.parametrize(
    ("ratio", "theory", "rules"),
    [
        (0.06, {"step_scale": 31.6}, ["deep_steps"]),
        (0.05, {"step_scale": 31.6}, []),
        (math.nan, {"step_scale": 31.6}, []),
        # Skip paths and batch norm stand such steps; of projections they tell nothing.
        (0.06, {}, []),
        (0.06, {"step_scale": 31.6, "projected": True}, []),
    ],
)
def test_steps_by_which_a_deep_chain_loses_what_it_learns(
    ratio: float, theory: dict[str, Any], rules: list[str]
) -> None:
    one = judge(theory)
    small, large = (np.array([share] * 10 + [1.0]) for share in (0.001, ratio))
    looked(one, 0, CHANCE, signal_grad_norm=profile(1.0), update_ratio=small)
    for step in range(1, 10):
        looked(one, step, 0.7 * CHANCE)
    assert one.verdict().labels == ("healthy",)
    looked(one, 10, 0.7 * CHANCE, signal_grad_norm=profile(1.0), update_ratio=large)
    findings = one.verdict().findings
    assert [finding.rule for finding in findings] == rules
    for finding in findings:
        assert (finding.kind, finding.key, finding.threshold) == ("not_learning", "verdict.deep_step", T.deep_step)
        assert finding.value == pytest.approx(0.06 * 316.2, rel=1e-3)
    for step in range(11, 17):
        looked(one, step, 0.4 * CHANCE)
    assert one.verdict().labels == ("healthy",), "it has learnt all the same"


def test_what_is_only_foretold_ends_no_run() -> None:
    """Chains with steps beyond the limit may train all the same: 49 softsign layers under SGD reach 95 %."""
    one, large = judge({"step_scale": 31.6}), np.array([0.07] * 10 + [1.0])
    looked(one, 0, CHANCE, signal_grad_norm=profile(1.0), update_ratio=large / 70)
    for step in range(1, 30):
        measured = {"signal_grad_norm": profile(1.0), "update_ratio": large} if step % 5 == 0 else {}
        looked(one, step, 0.7 * CHANCE, **measured)
    (finding,) = one.verdict().findings
    assert (finding.rule, finding.persistence >= T.stop_persistence) == ("deep_steps", True)
    assert one.to_stop(("not_learning",)) is None
    # That the loss stands still is so, and not foretold.
    for step in range(30, 30 + 3 * T.patience):
        looked(one, step, CHANCE)
    found = one.to_stop(("not_learning",))
    assert found is not None
    assert found.rule in ("plateau", "relapse")


@pytest.mark.parametrize(
    ("ratio", "growth", "rules"),
    [
        (0.0080, 1.0, ["deep_steps"]),
        (0.0078, 1.0, []),
        (0.00135, 6.0, ["deep_steps"]),
        # One finding of one cause is enough.
        (0.02, 1.0, ["large_steps"]),
    ],
)
def test_the_first_step_foretells_what_a_deep_chain_will_lose(ratio: float, growth: float, rules: list[str]) -> None:
    tags = [f"{i:02d}_hidden" for i in range(40)] + ["40_output"]
    one = Judge(tags, 40, T, theory={"step_scale": growth * 40**1.5}, chance_loss=CHANCE)
    looked(one, 0, CHANCE, signal_grad_norm=np.ones(41), update_ratio=np.array([ratio] * 40 + [1.0]))
    findings = one.verdict().findings
    assert [finding.rule for finding in findings] == rules
    if rules == ["deep_steps"]:
        assert findings[0].value == pytest.approx(ratio * growth * 40**2.5)
        assert (findings[0].key, findings[0].threshold) == ("verdict.init_deep_step", T.init_deep_step)
    for step in range(1, 8):
        looked(one, step, 0.9 * CHANCE)
    assert one.verdict().labels == ("healthy",), "it has left the plateau"


def test_from_too_far_above_guessing_no_network_comes_back() -> None:
    """The loss falls, but is so large still that it tells of no network that mends itself."""
    for largest, labels in ((T.init_loss_ratio**2 / 2, ("healthy",)), (T.init_loss_ratio**2 * 2, ("exploding",))):
        one = judge()
        for step in range(12):
            measured = {"signal_grad_norm": profile(1.0), "activation_std": np.ones(10)} if step % 2 == 0 else {}
            looked(one, step, CHANCE * largest * max(100 * 0.5**step, 1.0), **measured)
        for step in range(12, 18):
            looked(one, step, CHANCE * largest * 0.99, signal_grad_norm=profile(1.0), activation_std=np.ones(10))
        assert one.verdict().labels == labels


def test_weights_that_were_0_are_left_out_of_relative_steps() -> None:
    for ratio, rules in ((0.01, []), (0.2, ["large_steps"])):
        one = judge({"step_scale": 31.6})
        vectors = {"update_ratio": np.full(11, ratio), "weight_norm": np.ones(11), "signal_grad_norm": profile(1.0)}
        vectors["update_ratio"][3], vectors["weight_norm"][3] = math.inf, 0.0
        looked(one, 0, CHANCE, **vectors)
        assert [finding.rule for finding in one.verdict().findings] == rules


def test_a_projection_is_no_step_of_the_optimizers() -> None:
    one = judge({"step_scale": 31.6, "projected": True})
    vectors = {"grad_norm": np.full(11, 2.0), "weight_norm": np.full(11, 2.0), "update_ratio": np.full(11, 9.0)}
    looked(one, 0, CHANCE, signal_grad_norm=profile(1.0), **vectors)
    assert one.verdict().labels == ("healthy",)


def test_the_first_non_finite_value_stays_on_record() -> None:
    one = judge()
    looked(one, 0, CHANCE)
    one.observe(
        1,
        {"train/loss": 2.0, "global_grad_norm/pre_clip": math.inf},
        {"grad_norm": np.array([1.0] * 9 + [math.inf, 1.0])},
    )
    one.observe(2, {"train/loss": math.nan, "global_grad_norm/pre_clip": math.nan}, {})
    (finding,) = one.verdict().findings
    assert (finding.kind, finding.quantity, finding.layers) == ("non_finite", "grad_norm", (TAGS[9],))
    assert (finding.first_step, finding.last_step, finding.persistence) == (1, 2, 2)


def test_a_signal_that_is_not_finite_is_found_by_itself() -> None:
    one = judge()
    looked(one, 0, CHANCE, grad_norm=np.ones(11), signal_grad_norm=np.where(np.arange(11) == 4, math.inf, 1.0))
    assert {f.kind: f.layers for f in one.verdict().findings}["non_finite"] == (TAGS[4],)


def test_stopping_waits_for_measurements_that_agree() -> None:
    one = judge()
    looked(one, 0, CHANCE, signal_grad_norm=profile(0.3))
    assert one.to_stop(("vanishing",)) is None
    looked(one, 1, CHANCE, signal_grad_norm=profile(0.3))
    assert one.to_stop(("vanishing",)) is None, "what was so before the first update is no sign of what updates do"
    looked(one, 2, CHANCE, signal_grad_norm=profile(0.3))
    found = one.to_stop(("exploding", "vanishing"))
    assert found is not None
    assert found.kind == "vanishing"
    assert one.to_stop(("exploding",)) is None
    assert one.to_stop(()) is None


def test_without_a_chance_loss_the_first_one_stands_in() -> None:
    one = Judge(TAGS, 10, T)
    looked(one, 0, 4.0)
    for step in range(1, 7):
        looked(one, step, 200.0)
    assert one.verdict().labels == ("exploding",)


@pytest.mark.parametrize(("left", "labels"), [(0.97, ("not_learning",)), (0.9, ("healthy",))])
def test_smoothed_labels_leave_less_to_learn(left: float, labels: tuple[str, ...]) -> None:
    # With smoothing of 0.9, ten classes leave 2.266 of 2.303 nats whatever a network learns.
    least = -0.19 * math.log(0.19) - 9 * 0.09 * math.log(0.09)
    one = Judge(TAGS, 10, T, chance_loss=CHANCE, least_loss=least)
    for step in range(T.patience + T.loss_window + 2):
        looked(one, step, least + left * (CHANCE - least), signal_grad_norm=profile(1.0))
    verdict = one.verdict()
    assert verdict.labels == labels
    assert all("counting from the least possible, 2.27" in finding.explanation for finding in verdict.findings)


def test_an_evaluation_counts_where_it_is_not_finite_and_none_after_it_is() -> None:
    one = judge()
    looked(one, 0, CHANCE, signal_grad_norm=profile(1.0))
    one.observe(1, {"test/loss": math.nan}, {})
    (finding,) = one.verdict().findings
    assert (finding.kind, finding.quantity, finding.first_step, finding.layers) == ("non_finite", "test/loss", 1, ())
    one.observe(2, {"test/loss": 1e30}, {})
    assert one.verdict().labels == ("healthy",)
    one.observe(3, {"train/loss": math.inf}, {})
    one.observe(4, {"test/loss": 1.0}, {})
    assert one.verdict().labels == ("non_finite",)


@pytest.mark.parametrize(("unit", "labels"), [(1.0, ("vanishing",)), (1e60, ("vanishing", "exploding"))])
def test_live_and_afterwards_the_verdict_is_the_same(tmp_path: Path, unit: float, labels: tuple[str, ...]) -> None:
    live = judge({"depth_factor": 0.5})
    writer = EventWriter(tmp_path, TAGS)
    rng = np.random.default_rng(0)
    for step in range(40):
        # The event file holds scalars in single precision, which a loss in double precision may leave.
        scalars = {"train/loss": unit * CHANCE * float(rng.uniform(0.99, 1.05)), "global_grad_norm/pre_clip": unit}
        vectors = {"grad_norm": np.full(11, unit)}
        if step % 10 == 0:
            vectors |= {"signal_grad_norm": profile(0.55), "dead_fraction": rng.uniform(0.85, 0.95, 10)}
        writer.write(step, scalars, vectors)
        live.observe(step, scalars, vectors)
    writer.close()
    run = {"theory": {"depth_factor": 0.5}, "chance_loss": CHANCE, "hidden_layers": 10}
    assert judge_records(read_records(tmp_path), run) == live.verdict()
    assert live.verdict().labels[: len(labels)] == labels
    assert "non_finite" not in live.verdict().labels


@pytest.mark.parametrize(
    ("changed", "times"),
    [
        ({}, 2.5),
        ({"weight_norm": [8.0] * 10 + [20.0]}, 2.0),  # The layer where it weighs least.
        ({"grad_norm": [0.4] * 11}, 6.25),
        ({"grad_norm": [0.0] + [1.0] * 10}, 2.5),  # A frozen layer is not decayed.
        ({"weight_norm": [0.0] + [10.0] * 10}, 2.5),
        ({"grad_norm_post_clip": [0.5] * 11}, 5.0),
        ({"update_ratio": [4.9e-4] * 6 + [1e-2] * 5}, None),  # It would take too long to matter.
        ({"update_ratio": [5.1e-4] * 11}, 2.5),
        ({"update_ratio": [4.9e-4] * 5 + [1e-2] * 6}, 2.5),
        ({"update_ratio": [0.0] * 6 + [1e-2] * 5, "grad_norm": [0.0] * 6 + [1.0] * 5}, 2.5),
        ({"grad_norm": [0.0] * 11}, None),
        ({"grad_norm": [1e-320] * 11}, None),
    ],
)
def test_weight_decay_that_outweighs_the_gradient_in_every_layer(
    changed: dict[str, list[float]], times: float | None
) -> None:
    one = Judge(TAGS, 10, Thresholds(), theory={"decay": 0.25}, chance_loss=CHANCE)
    usual = {"grad_norm": [1.0] * 11, "weight_norm": [10.0] * 11, "update_ratio": [1e-2] * 11}
    vectors = {name: np.array(values) for name, values in (usual | changed).items()}
    vectors["signal_grad_norm"] = profile(1.0)
    for step in range(2):
        one.observe(step, {"train/loss": CHANCE, "global_grad_norm/pre_clip": 1.0}, vectors)
        values = {f.rule: f.value for f in one.verdict().findings}
        # Before the first update nothing says that steps follow it. At the threshold is not beyond.
        assert values.get("decay") == (pytest.approx(times) if step and times and times > 2 else None)
    one.forget("decay")
    assert one.verdict().labels == ("healthy",)


@pytest.mark.parametrize(("since", "labels"), [(6, ("healthy",)), (7, ("vanishing",))])
def test_steps_are_of_one_size_from_the_step_on_that_the_record_names(
    tmp_path: Path, since: int, labels: tuple[str, ...]
) -> None:
    writer = EventWriter(tmp_path, TAGS)
    for step in range(7):
        vectors = {"grad_norm": np.ones(11), "signal_grad_norm": profile(0.6 if step == 6 else 1.0)}
        writer.write(step, {"train/loss": CHANCE}, vectors)
    writer.close()
    run = {"chance_loss": CHANCE, "hidden_layers": 10, "adaptive_optimizer": True, "adaptive_since": since}
    assert judge_records(read_records(tmp_path), run).labels == labels


def test_a_verdict_survives_json() -> None:
    finding = Finding("non_finite", "r", "q", ("a",), 1, 2, 2, math.inf, math.inf, "k", "why", "theory")
    verdict = Verdict(2, (finding,), (Remedy(("clip=norm", "clip.max_norm=1"), "bounds", 0.9),))
    written = json.dumps(verdict.to_dict()).replace("Infinity", '"inf"')
    assert Verdict.from_dict(json.loads(written)) == verdict
    assert verdict.labels == ("non_finite",)


def test_labels_come_in_one_order() -> None:
    found = tuple(Finding(kind, "", "", (), 0, 0, 1, 1.0, 1.0, "", "") for kind in reversed(KINDS))
    assert Verdict(0, found).labels == KINDS


def test_without_a_loss_gradients_are_judged_all_the_same() -> None:
    one = judge()
    for step, norm in enumerate((1.0, 1.0, math.nan)):
        vectors = {"grad_norm": np.full(11, norm), "signal_grad_norm": profile(0.4)}
        one.observe(step, {"global_grad_norm/pre_clip": norm}, vectors)
    assert one.verdict().labels == ("vanishing", "non_finite")


@pytest.mark.parametrize("loss", [-10.0, -1e-3])
def test_a_negative_loss_proves_no_learning(loss: float) -> None:
    for chance in (CHANCE, None):
        one = Judge(TAGS, 10, T, chance_loss=chance)
        for step in range(6):
            looked(one, step, loss, signal_grad_norm=profile(0.3))
        assert one.verdict().labels == ("vanishing",)


@pytest.mark.parametrize("chance", [0.1, None])
def test_a_loss_that_has_been_negative_has_no_unit(chance: float | None) -> None:
    """A likelihood of continuous values: it began near 0 and is well below by now, but for single batches."""
    one = Judge(TAGS, 10, T, chance_loss=chance)
    for step in range(20):
        looked(one, step, 0.1 if step < 5 else 20.0, signal_grad_norm=profile(1.0))
    assert one.verdict().labels == ("exploding",)
    for step in range(20, 300):
        looked(one, step, 20.0 if step % 50 == 49 else -3.0, signal_grad_norm=profile(1.0))
        assert one.verdict().labels == ("healthy",)


def test_what_is_right_on_the_test_split_was_learnt_however_large_the_loss() -> None:
    """Outputs of a deep linear network that exploded: right, and far too sure of what they get wrong."""
    one = judge()
    for step in range(100):
        looked(one, step, 1e6 * CHANCE, signal_grad_norm=profile(3.0))
    assert one.verdict().labels == ("exploding",)
    one.observe(100, {"test/loss": 1e6, "test/accuracy": 0.79}, {})
    assert one.verdict().labels == ("exploding",)
    one.observe(100, {"test/loss": 1e6, "test/accuracy": 0.8}, {})
    assert one.verdict().labels == ("healthy",)
    # What comes up afterwards counts, and all of it again once the accuracy is gone.
    for step in range(100, 110):
        looked(one, step, 1e6 * CHANCE, signal_grad_norm=profile(0.1))
    assert one.verdict().labels == ("vanishing",)
    one.observe(110, {"test/loss": 1e6, "test/accuracy": 0.1}, {})
    assert one.verdict().labels == ("vanishing", "exploding")
    one.observe(110, {"test/loss": math.inf, "test/accuracy": 0.9}, {})
    assert one.verdict().labels == ("non_finite",)


def test_a_loss_of_exactly_nothing_is_learnt() -> None:
    one = judge()
    for step in range(6):
        looked(one, step, 0.0, signal_grad_norm=profile(0.3))
    assert one.verdict().labels == ("healthy",)


def test_alike_outputs_of_a_network_that_learns_are_its_classes() -> None:
    alike = np.array([0.5] * 10 + [0.999])
    for level, labels in ((0.7, ("healthy",)), (1.0, ("vanishing",))):
        one = judge()
        for step in range(6):
            looked(one, step, level * CHANCE, signal_grad_norm=profile(1.0), correlation=alike)
        assert one.verdict().labels == labels


def test_norms_that_only_double_precision_holds_are_not_broken(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path, TAGS)
    writer.write(0, {"train/loss": CHANCE, "global_grad_norm/pre_clip": 1e60}, {"grad_norm": np.full(11, 1e59)})
    writer.write(1, {"train/loss": CHANCE, "global_grad_norm/pre_clip": math.inf}, {"grad_norm": np.full(11, 1e3)})
    writer.close()
    (finding,) = judge_records(read_records(tmp_path), {"chance_loss": CHANCE}).findings
    assert (finding.kind, finding.first_step) == ("non_finite", 1)


def test_a_directory_is_judged_by_its_own_thresholds(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path, TAGS)
    writer.write(0, {"train/loss": CHANCE}, {"grad_norm": np.ones(11), "signal_grad_norm": profile(0.9)})
    writer.close()
    run = {"chance_loss": CHANCE, "hidden_layers": 10}
    assert judge_records(read_records(tmp_path), run).labels == ("healthy",)
    run["thresholds"] = {"init_vanishing_decades": 0.1}
    assert judge_records(read_records(tmp_path), run).labels == ("vanishing",)


@pytest.mark.parametrize(("chance", "base"), [(CHANCE, "guessing"), (None, "the first step")])
def test_what_losses_are_held_against_has_its_name(chance: float | None, base: str) -> None:
    far, still = (Judge(TAGS, 10, T, chance_loss=chance) for _ in range(2))
    for step in range(3):
        looked(far, step, CHANCE * (1000.0 if step else 1.0))
        looked(still, step, CHANCE, signal_grad_norm=profile(1.0), update_ratio=np.full(11, 1e-9))
    (exploded,), (tiny,) = far.verdict().findings, still.verdict().findings
    assert exploded.explanation.startswith(f"the loss is 1e+03 times that of {base}: ")
    assert (exploded.rule, exploded.unit) == ("forward_explosion", f"× {base}'s")
    assert tiny.explanation.endswith(f"and the loss is no better than {base}'s")


@pytest.mark.parametrize(("batch", "steps"), [(64, 1500), (16, 2500)])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("explained", [0.0, 0.4])
def test_noise_of_batches_does_not_lead_off_the_plateau(batch: int, steps: int, seed: int, explained: float) -> None:
    # A constant guess at normal numbers has a mean squared error of 1, give or take √(2 / batch).
    losses = np.random.default_rng(seed).standard_normal((steps, batch)) ** 2
    one = judge(chance=1.0)
    for step, loss in enumerate(losses.mean(1) * (1 - explained)):
        looked(one, step, float(loss))
    assert one.verdict().labels == (("healthy",) if explained else ("not_learning",))


def test_coming_down_to_guessing_is_no_progress() -> None:
    one = judge()
    for step in range(T.patience + 10):
        # From just above to guessing's own, half-way.
        looked(one, step, CHANCE * (1.03 if step < T.patience / 2 else 1.0))
    (finding,) = one.verdict().findings
    assert finding.rule == "plateau"
    assert finding.persistence > T.patience


@pytest.mark.parametrize(
    ("down_to", "back_at", "steps", "lost"),
    [
        (0.3, 0.8, 300, True),
        (0.3, 0.8, 40, True),
        (0.3, 0.8, 15, False),
        (0.3, 0.45, 300, False),
        (0.5, 0.8, 300, False),
    ],
)
def test_what_was_learnt_and_lost_again_is_a_relapse(down_to: float, back_at: float, steps: int, lost: bool) -> None:
    one = judge()
    levels = [*np.linspace(1.0, down_to, 100), *[down_to] * 100, *[back_at] * steps]
    for step, level in enumerate(levels):
        looked(one, step, CHANCE * float(level))
    found = [(finding.kind, finding.rule) for finding in one.verdict().findings]
    assert found == ([("not_learning", "relapse")] if lost else [])
    # What was learnt once may be learnt again: a run goes on for longer.
    assert (one.to_stop(["not_learning"]) is not None) == (lost and steps > T.patience + 50)


def test_single_lucky_batches_are_no_learning_to_be_lost() -> None:
    one = judge()
    for step in range(600):
        looked(one, step, CHANCE * (0.05 if step % 97 < 5 and step < 300 else 0.8))
    assert one.verdict().labels == ("healthy",)


def test_an_explosion_may_not_mend_itself_for_ever() -> None:
    one = judge()
    for step in range(T.patience + 50):
        # In units of the last layer's spread, the error falls all the time.
        vectors = {"activation_std": np.full(10, 1e6 * 1.1**step)} if step % 20 == 0 else {}
        looked(one, step, CHANCE * 5e4 * 0.99**step, signal_grad_norm=profile(1.0), **vectors)
        labels = one.verdict().labels
        if 25 < step < T.patience - 1:
            assert "exploding" not in labels
    assert "exploding" in labels


@pytest.mark.parametrize(
    ("similarity", "adaptive", "labels"),
    [
        (1 - 1e-6, False, ("vanishing",)),
        (1 - 1e-6, True, ("healthy",)),
        (1 - 1e-7, True, ("vanishing",)),
    ],
)
def test_steps_of_one_size_tell_apart_what_hardly_differs(
    similarity: float, adaptive: bool, labels: tuple[str, ...]
) -> None:
    one = judge(adaptive=adaptive)
    looked(one, 0, CHANCE, signal_grad_norm=profile(1.0), correlation=np.full(11, similarity))
    assert one.verdict().labels == labels


@pytest.mark.parametrize(("falls", "erratic"), [(0.85, False), (1.0, True)])
def test_a_loss_that_falls_steeply_is_not_erratic(falls: float, erratic: bool) -> None:
    one = judge()
    for step in range(T.jump_window + 10):
        scalars = {"train/loss": CHANCE * 100 * falls**step, "global_grad_norm/pre_clip": 3.0 ** (step % 2)}
        one.observe(step, scalars, {})
    assert ("erratic" in [finding.rule for finding in one.verdict().findings]) == erratic


def test_a_single_spike_is_no_relapse() -> None:
    one = judge()
    for step in range(700):
        looked(one, step, CHANCE * (1e6 if step == 300 else 0.6))
    assert one.verdict().labels == ("healthy",)
    early = judge()
    for step in range(520):
        looked(early, step, CHANCE * (1e6 if step == 300 else 0.6))
    assert early.verdict().labels == ("healthy",)
