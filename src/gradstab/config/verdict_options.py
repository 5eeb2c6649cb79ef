"""When something counts as wrong: the thresholds of ``verdict``, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass

from gradstab.config.fields import number
from gradstab.config.registry import Option, option

KINDS = ("vanishing", "exploding", "dead_units", "saturated", "non_finite", "not_learning")


@option("verdict", "default")
@dataclass(frozen=True)
class Thresholds(Option):
    """Ratios, spans over depth and persistence; none depends on the loss's scale, the batch size or the width."""

    name: str = "default"
    depth_decades: float = number(
        2.2, above=0, reason="a network whose gradient spans more over its hidden layers hardly ever goes on to learn"
    )
    stalled_depth_decades: float = number(
        1.7, above=0, reason="the same while the loss has not left the plateau: a lesser span is what holds it there"
    )
    init_vanishing_decades: float = number(
        2.2, above=0, reason="before the first update, downwards: plain gradient steps do not recover from more"
    )
    init_exploding_decades: float = number(
        2.2,
        above=0,
        reason="the same upwards: steps that suit one end of the network overshoot at the other",
    )
    adaptive_slack: float = number(
        1.5, at_least=1, reason="times as many decades downwards where steps do not shrink with the gradient (Adam)"
    )
    similarity: float = number(
        0.993, above=0, below=1, reason="outputs of two samples correlate more only where depth has erased the input"
    )
    init_similarity: float = number(
        0.9999,
        above=0,
        below=1,
        reason="the same before the first update: steps mend less than that",
    )
    adaptive_similarity: float = number(
        0.9999997,
        above=0,
        below=1,
        reason="the same wherever steps keep their size (Adam): they tell apart what differs by next to nothing",
    )
    signal_share: float = number(
        5e-5, above=0, below=1, reason="where dropout's masks explain all but less of what tells outputs apart"
    )
    stalled_signal_share: float = number(
        5e-3,
        above=0,
        below=1,
        reason="the same on a plateau, and for plain steps (SGD, momentum) from the start: learning is so much slower",
    )
    loss_ratio: float = number(
        30.0, above=1, reason="a loss so many times that of guessing comes of a signal that exploded on its way forward"
    )
    init_loss_ratio: float = number(300.0, above=1, reason="the same before the first update; one step can mend a lot")
    recovery: float = number(
        0.33,
        above=0,
        below=1,
        reason="a loss down to this share of the first, both in units of the last layer's spread: fewer errors",
    )
    overshoot: float = number(
        30.0,
        above=1,
        reason="no network survived a plain first step that by its gradient lowers the loss by so many times its size",
    )
    scaled_step: float = number(
        3.0,
        above=0,
        reason="layers' relative steps, times depth^1.5, beyond which hardly any chain of layers without skips learnt",
    )
    deep_step: float = number(
        17.0,
        above=0,
        reason="layers' relative steps, times depth^2.5, by which chains without skips lost what they had learnt",
    )
    init_deep_step: float = number(
        80.0, above=0, reason="the same as the first step foretells it, for steps may shrink as well as grow"
    )
    jump: float = number(
        2.0,
        above=1,
        reason="the gradient's norm changes so many times per step (root mean square); batches of two do less",
    )
    jump_window: int = number(15, at_least=2, at_most=1_000_000, reason="steps over which that factor is taken")
    jump_persistence: int = number(3, at_least=1, reason="steps in a row at which it has to be that large")
    dead_fraction: float = number(
        0.9, above=0, at_most=1, reason="networks learnt with up to 83 % of one layer's units dead; none with more"
    )
    saturated_fraction: float = number(
        0.95, above=0, at_most=1, reason="networks learnt with up to 91 % of one layer's activations saturated"
    )
    learnt: float = number(
        0.5, above=0, below=1, reason="a loss below this share of guessing's is learning, whatever gradients look like"
    )
    learnt_accuracy: float = number(
        0.8, above=0, at_most=1, reason="so large a share of the test split right is learning, however large the loss"
    )
    plateau: float = number(
        0.95, above=0, below=1, reason="a loss above this share of guessing's has learnt next to nothing"
    )
    relapse: float = number(
        2.0, above=1, reason="the loss over some twenty steps, so many times the least it was: what was learnt is lost"
    )
    update_ratio: float = number(
        1e-4, above=0, reason="where every layer moves by less of its size in a step, thousands of steps do little"
    )
    init_update_ratio: float = number(
        1e-6, above=0, reason="the same of the first step at a rate that stays: momentum makes ten of it, learning none"
    )
    decay_ratio: float = number(
        2.0, above=0, reason="weight decay so many times the gradient in every layer empties them: none learnt"
    )
    patience: int = number(200, at_least=1, reason="steps on the plateau without progress that count as not learning")
    progress: float = number(
        0.02,
        above=0,
        below=1,
        reason="the share by which the loss has to fall to count as progress; noise stays below. Above that of "
        "guessing, it has to fall to `recovery` of itself",
    )
    loss_window: int = number(
        5, at_least=1, at_most=1_000_000, reason="losses that are averaged against the noise of single batches"
    )
    steady_decades: float = number(
        1.0, above=0, reason="over the depth, what counts as steady: of theory's predictions, and in ranking remedies"
    )
    remedy_decades: float = number(
        2.0, above=0, reason="what a remedy may leave over the depth by theory's prediction to be offered at all"
    )
    stop_persistence: int = number(
        2, at_least=1, reason="measurements in a row that have to agree before stop_on ends a run"
    )
