"""Learning rates step by step against the formulas of the papers, written out."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from gradstab.config import OPTIONS
from gradstab.schedules import Schedule, build_schedule

LR, STEPS = 0.2, 20


def half_cosine(t: float, low: float) -> float:
    return low + (LR - low) * 0.5 * (1 + math.cos(math.pi * t))


def warm_then_cosine(i: int) -> float:
    return LR * (i + 1) / 5 if i < 5 else half_cosine((i - 5) / 15, 0.02)


CASES: dict[str, tuple[dict[str, Any], Callable[[int], float]]] = {
    "step": ({"step_size": 3, "gamma": 0.5}, lambda i: LR * 0.5 ** (i // 3)),
    "exponential": ({"gamma": 0.9}, lambda i: LR * 0.9**i),
    "cosine": ({"min_lr": 0.02}, lambda i: half_cosine(i / STEPS, 0.02)),
    "warmup_cosine": ({"warmup_steps": 5, "min_lr": 0.02}, warm_then_cosine),
}
PLATEAU = {"factor": 0.5, "patience": 1, "min_lr": 0.03}


def sgd(*rates: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [nn.Parameter(torch.ones(1))], "lr": lr} for lr in rates])


def rates_of(optimizer: torch.optim.Optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


def built(name: str, optimizer: torch.optim.Optimizer, **knobs: Any) -> Schedule:
    schedule = build_schedule(name, optimizer, STEPS, **knobs)
    assert schedule is not None
    return schedule


def test_every_option_is_tested() -> None:
    assert OPTIONS["schedule"].keys() == {"constant", *CASES, "plateau"}


def test_constant_is_none() -> None:
    optimizer = sgd(LR)
    assert build_schedule("constant", optimizer, STEPS) is None
    assert rates_of(optimizer) == [LR]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("skipped", [(), (0,), (0, 1, 7)])
def test_each_step_uses_the_formulas_rate_also_when_updates_are_skipped(name: str, skipped: tuple[int, ...]) -> None:
    knobs, formula = CASES[name]
    optimizer = sgd(LR, LR / 4)
    schedule = built(name, optimizer, **knobs)
    for i in range(STEPS + 1):
        assert rates_of(optimizer) == pytest.approx([formula(i), formula(i) / 4], rel=1e-12)
        if i not in skipped:
            optimizer.step()
        schedule.after_step()
        schedule.after_evaluation(1.0)


@pytest.mark.parametrize("name", ["cosine", "warmup_cosine"])
def test_cosine_ends_at_min_lr_and_stays_there(name: str) -> None:
    optimizer = sgd(LR)
    schedule = built(name, optimizer, **CASES[name][0])
    for _ in range(STEPS):
        optimizer.step()
        schedule.after_step()
    assert rates_of(optimizer) == pytest.approx([0.02])
    schedule.after_step()
    assert rates_of(optimizer) == pytest.approx([0.02])


def test_plateau_waits_out_its_patience_and_stops_at_min_lr() -> None:
    optimizer = sgd(LR, LR / 4)
    schedule = built("plateau", optimizer, **PLATEAU)
    # Two evaluations in a row that are no better than the best so far halve the rate; NaN and inf are no better.
    losses = [5.0, 5.0, 4.9, 4.9, 5.0, math.nan, math.inf, 4.8, 9.0, 9.0, 9.0, 9.0]
    wanted = [0.2, 0.2, 0.2, 0.2, 0.1, 0.1, 0.05, 0.05, 0.05, 0.03, 0.03, 0.03]
    for loss, rate in zip(losses, wanted, strict=True):
        optimizer.step()
        schedule.after_step()
        schedule.after_evaluation(loss)
        assert rates_of(optimizer) == pytest.approx([rate, rate / 4])


def test_cosine_and_plateau_act_when_their_descriptions_say() -> None:
    optimizer = sgd(LR)
    schedule = built("cosine", optimizer, min_lr=0.02)
    rates = []
    for _ in range(STEPS + 1):
        rates.append(rates_of(optimizer)[0])
        schedule.after_step()
    assert rates.index(min(rates)) == STEPS  # the last step is STEPS - 1
    assert "at min_lr one step after the last" in str(OPTIONS["schedule"]["cosine"].__doc__)
    optimizer = sgd(LR)
    schedule = built("plateau", optimizer, factor=0.5, patience=3, min_lr=0.0)
    schedule.after_evaluation(1.0)
    worse = 0
    while rates_of(optimizer) == [LR]:
        schedule.after_evaluation(1.0)
        worse += 1
    assert worse == 4
    assert "after more than patience evaluations in a row" in str(OPTIONS["schedule"]["plateau"].__doc__)


def test_plateau_acts_on_very_small_rates_and_improvements() -> None:
    optimizer = sgd(1e-8)
    schedule = built("plateau", optimizer, factor=0.5, patience=0, min_lr=0.0)
    schedule.after_evaluation(1.0)
    schedule.after_evaluation(1.0 - 1e-9)
    assert rates_of(optimizer) == [1e-8]
    schedule.after_evaluation(1.0)
    assert rates_of(optimizer) == [5e-9]


@pytest.mark.parametrize("name", [*CASES, "plateau"])
@pytest.mark.parametrize("optimizer_first", [True, False])
def test_a_resumed_run_has_the_same_rates(name: str, optimizer_first: bool) -> None:
    knobs = PLATEAU | {"min_lr": 0.001} if name == "plateau" else CASES[name][0]

    def go(optimizer: torch.optim.Optimizer, schedule: Schedule, start: int, stop: int) -> list[list[float]]:
        seen = []
        for i in range(start, stop):
            seen.append(rates_of(optimizer))
            optimizer.step()
            schedule.after_step()
            schedule.after_evaluation(float(i % 5))
        return seen

    optimizer = sgd(LR, LR / 4)
    schedule = built(name, optimizer, **knobs)
    go(optimizer, schedule, 0, 7)
    saved = copy.deepcopy((optimizer.state_dict(), schedule.state_dict()))
    wanted = go(optimizer, schedule, 7, STEPS)
    assert wanted[0] != wanted[-1]

    resumed = sgd(LR, LR / 4)
    if optimizer_first:
        resumed.load_state_dict(saved[0])
        again = built(name, resumed, **knobs)
    else:
        again = built(name, resumed, **knobs)
        resumed.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    assert go(resumed, again, 7, STEPS) == wanted


@pytest.mark.parametrize("name", ["cosine", "warmup_cosine", "plateau"])
def test_a_min_lr_equal_to_the_rate_keeps_it_there(name: str) -> None:
    optimizer = sgd(LR)
    schedule = built(name, optimizer, **{**CASES, "plateau": (PLATEAU,)}[name][0] | {"min_lr": LR})
    for i in range(STEPS):
        assert rates_of(optimizer) == pytest.approx([min(LR, LR * (i + 1) / 5) if name == "warmup_cosine" else LR])
        optimizer.step()
        schedule.after_step()
        schedule.after_evaluation(1.0)
