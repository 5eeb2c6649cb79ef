"""From what was measured to a verdict, step by step."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gradstab.config.verdict_options import KINDS, Thresholds
from gradstab.encoding import Vector, as_written
from gradstab.measure.broken import Broken, broken
from gradstab.measure.depth import said_of_depth
from gradstab.measure.losses import ERRANT, FIRST_LOSS, Losses, Recovery, Skips
from gradstab.measure.rules import Holding, Profile, profile_rules
from gradstab.measure.step_rules import Course, course_rules, step_rules
from gradstab.measure.verdict import Finding, Verdict

EARLY_STEPS = 25
FIRST_STEP, SPAN = "first", "profile/exploding/depth_span"
# A rate below this share of the highest is the tail of a schedule.
FALLEN = 0.1
# Outputs whose differences make up less than this share of the loss are constant as far as it goes.
SAME = 0.02
_OF_A_STEP = {"train/loss", "train/learning_rate", "global_grad_norm/pre_clip", "amp/skipped", "output_reach"}
LOOKED_AT = {"test/loss", "test/accuracy", *_OF_A_STEP}


class Judge:
    """Watches a run step by step and says at any time what is wrong with it.

    ``layers`` are all layers' tags, nearest the input first, of which the first ``hidden`` have an activation.
    ``theory`` is what run.json holds under that key. ``chance_loss`` is the loss of the best constant output, which
    learning has to beat; without it, the first steps' loss stands in. ``least_loss`` is the smallest there can be.
    ``adaptive`` is whether the optimizer divides by the size of past gradients. ``depth_layers`` are the tags of those
    whose δ makes up the profile over depth, the hidden ones unless told otherwise. Memory does not grow with the run.
    """

    def __init__(
        self,
        layers: Sequence[str],
        hidden: int,
        thresholds: Thresholds,
        *,
        theory: Mapping[str, Any] | None = None,
        chance_loss: float | None = None,
        least_loss: float = 0.0,
        adaptive: bool = False,
        depth_layers: Sequence[str] | None = None,
    ) -> None:
        self._layers = list(layers)
        self._thresholds = thresholds
        self._theory = theory or {}
        said = (*self._theory, *(self._theory.get("notes") or ()), self._theory.get("reason") or "")
        behind = ("batch_norm", "stream_batch_norm", "norm=batch")
        self._batch_norm = any(str(word).startswith(behind) for word in said)
        self.adaptive = adaptive
        self.arrange(hidden, self._layers[:hidden] if depth_layers is None else depth_layers)
        self._losses, self._skips = Losses(thresholds, chance_loss, least_loss), Skips()
        self._early_norms: list[float] = []
        self._log_norms: deque[float] = deque(maxlen=thresholds.jump_window + 1)
        self._recovery, self._recovering, self._seen, self._first = Recovery(), False, 0, 0
        self._rate, self._highest, self._step = 0.0, 0.0, 0
        # For each rule: the step where it began to hold, at how many looks since, and what it last found.
        self._held: dict[str, tuple[int, int, int, Holding]] = {}
        self._broken: Finding | None = None
        self._accurate = 0  # So many steps had been made when most of the test split was right, by the last evaluation.

    def arrange(self, hidden: int, depth_layers: Sequence[str]) -> None:
        """From now on so many layers come first that are alike, and a line over depth is taken along these."""
        places = {tag: index for index, tag in enumerate(self._layers)}
        self._hidden, self._depth = hidden, np.array([places[tag] for tag in depth_layers], np.int64)

    def observe(self, step: int, scalars: Mapping[str, float], vectors: Mapping[str, Vector]) -> None:
        """Take one step's values, which count as the event file holds them; steps come in order.

        Of an evaluation on the test split counts whether it is finite, and an accuracy that shows learning. Without a
        training loss, only what needs none is judged.
        """
        scalars = as_written({tag: scalars[tag] for tag in LOOKED_AT if tag in scalars})
        if (tested := scalars.get("test/loss")) is not None:
            self._take_evaluation(step, tested, scalars.get("test/accuracy", 0.0))
        loss = scalars.get("train/loss")
        # A step that the loss scaler skipped overflowed by design, and changed nothing.
        skipped = "amp/skipped" in scalars and self._skips.forgive(scalars["amp/skipped"] > 0, loss)
        if skipped or (loss is None and "grad_norm" not in vectors):
            return
        if step != self._step + 1:
            self._log_norms.clear()  # Only steps in a row tell what one of them does.
        self._step, self._first, self._seen = step, step if self._seen == 0 else self._first, self._seen + 1
        norm = scalars.get("global_grad_norm/pre_clip")
        if norm is not None and math.isfinite(norm):
            self._early_norms += [norm] * (len(self._early_norms) < EARLY_STEPS)
            if norm > 0:
                self._log_norms.append(math.log(norm))
        if (first_bad := broken(loss, norm, vectors, self._layers)) is not None:
            self._note_broken(step, first_bad)
        reach = scalars.get("output_reach", math.nan) / loss if loss is not None and loss > 0 else math.nan
        if loss is not None and math.isfinite(loss):
            # Beside skip paths, activations are those of branches, and no measure of what the outputs are like.
            spread = None if "stream_grad_norm" in vectors else vectors.get("activation_std")
            self._take_loss(step, loss, spread, reach < SAME)
        rate = scalars.get("train/learning_rate", 0.0)
        rising, self._rate, self._highest = rate > self._rate > 0, rate, max(rate, self._highest)
        if "signal_grad_norm" in vectors:
            level = self._losses.level
            profile = Profile(
                self._layers,
                self._hidden,
                self._depth,
                dict(vectors),
                first=self._seen == 1,
                stalled=level is not None and level > self._thresholds.plateau,
                rising=rising or (self._seen == 1 and self._theory.get("constant_rate") is not True),
                fallen=rate < FALLEN * self._highest,
                recovering=self._recovering,
                adaptive=self.adaptive,
                signal_share=self._theory.get("signal_share", 1.0),
                step_scale=self._theory.get("step_scale", 0.0),
                batch_norm=self._batch_norm,
                projected=self._theory.get("projected", False),
                decay=self._theory.get("decay", 0.0),
                reach=reach if math.isfinite(reach) else 0.0,
                base=self._losses.base,
            )
            found, steps = profile_rules(profile, self._thresholds), step_rules(profile, loss, self._thresholds)
            if profile.first and found:  # What has no gradient does not move, whatever its rate.
                steps = [holding for holding in steps if holding.rule != "tiny_updates"]
            t = (
                self._thresholds
            )  # What was wrong at first may be gone, and the network no better; `plateau` tells later.
            # Behind batch norm an exploding gradient mends itself: weights grow by it, and steps shrink.
            stuck = level is not None and t.plateau < level < ERRANT and not self._batch_norm
            self._keep(step, found, "profile", spare=stuck and self._seen <= t.patience)
            self._keep(step, steps, FIRST_STEP if profile.first else "step")

    def forget(self, *rules: str) -> None:
        """What these rules found no longer counts."""
        self._held = {name: kept for name, kept in self._held.items() if name.rpartition("/")[2] not in rules}

    @property
    def typical_norm(self) -> float | None:
        """The median global gradient norm of the first steps; None before any was finite."""
        return float(np.median(self._early_norms)) if self._early_norms else None

    def verdict(self) -> Verdict:
        """What holds now, with its evidence; healthy where nothing does."""
        findings = [self._broken] if self._broken is not None else []
        level = self._losses.level
        held = {rule: kept for rule, kept in self._held.items() if self._counts(*kept)}
        if level is not None and level <= self._thresholds.learnt:
            # A first loss that had exploded may be far above guessing's: to have left it behind is no learning.
            same = SPAN in held and held[SPAN][0] == self._first and self._losses.base == FIRST_LOSS
            held = {SPAN: held[SPAN]} if same else {}
        if self._seen > 1:  # Later steps tell by themselves.
            held.pop(f"{FIRST_STEP}/not_learning/tiny_updates", None)
        # How large the first step was may explain what is wrong now; with a loss off the plateau, it did no harm, nor
        # behind batch norm, where it leaves larger weights, of which later steps are smaller shares.
        left = level is None or level <= self._thresholds.plateau or self._batch_norm
        if self._seen > 1 and left and not findings and all(rule.startswith(FIRST_STEP) for rule in held):
            held = {}
        if any(kept[3].rule == "tiny_updates" for kept in held.values()):
            # Where weights hardly move, it is not steps that throw the gradient about, but batches.
            held.pop("loss/not_learning/erratic", None)
        findings += [
            holding.found(first, last, times, self._said_of_depth(holding.kind))
            for first, last, times, holding in held.values()
        ]
        findings.sort(key=lambda finding: KINDS.index(finding.kind))
        return Verdict(self._step, tuple(findings))

    def _counts(self, first: int, _last: int, times: int, holding: Holding) -> bool:
        return times >= holding.needs and first >= self._accurate  # What was before an accurate evaluation does not.

    def to_stop(self, kinds: Sequence[str]) -> Finding | None:
        """The first finding of one of ``kinds`` that has held long enough to end the run."""
        t = self._thresholds
        for finding in self.verdict().findings if kinds else ():
            # What was so before the first update is no sign of what updates do; what was lost may be learnt again, and
            # what is only foretold not come.
            looks = finding.persistence - (finding.first_step == self._first)
            needs = {"relapse": t.patience, "deep_steps": math.inf}.get(finding.rule, t.stop_persistence)
            if finding.kind in kinds and (looks >= needs or finding.kind == "non_finite"):
                return finding
        return None

    def _take_evaluation(self, step: int, loss: float, accuracy: float) -> None:
        self._accurate = step if accuracy >= self._thresholds.learnt_accuracy else 0
        if not math.isfinite(loss):
            self._note_broken(step, Broken("test/loss", (), loss))
        elif self._broken is not None and self._broken.quantity == "test/loss":
            self._broken = None  # Running averages that were still wrong, say, by which nothing is trained.

    def _take_loss(self, step: int, loss: float, spread: Vector | None, constant: bool) -> None:
        if self._seen == 2:
            # The loss before any update is judged by limits of its own.
            self._losses.clear()
        progress = self._losses.add(loss)
        if constant:
            self._losses.take_constant()
        if (level := self._losses.level) is None:
            self._keep(step, [], "loss")
            return
        if progress:
            self._held.pop("loss/not_learning/plateau", None)
        if spread is not None:
            relative = self._losses.relative(loss)
            self._recovering = self._recovery.goes_on(step, relative, level, spread, self._thresholds)
        holdings: list[Holding] = []
        if level > (t := self._thresholds).learnt:
            # What the last measured step found no longer counts once the loss is far above its best, nor for ever, and
            # from too far above no network comes back.
            near = level < min(t.loss_ratio * self._losses.best, t.init_loss_ratio**2)
            recovering = self._recovering and near and self._seen <= t.patience
            identical = self._hidden > 0 and self._theory.get("identical_units") is True
            course = Course(level, self._seen == 1, recovering, identical, self._log_norms, self._losses)
            holdings = course_rules(course, t)
        self._keep(step, holdings, "loss")

    def _keep(self, step: int, holdings: Sequence[Holding], source: str, *, spare: bool = False) -> None:
        """Keep what holds now, and let go of what no longer does, unless it is to be spared and held at first."""
        if not holdings and not self._held:
            return
        now = {f"{source}/{holding.kind}/{holding.rule}": holding for holding in holdings}
        for rule in self._held.keys() - now:
            if rule.startswith(f"{source}/") and not (spare and self._held[rule][0] == self._first):
                del self._held[rule]
        for rule, holding in now.items():
            first, _, times, _ = self._held.get(rule, (step, step, 0, holding))
            self._held[rule] = (first, step, times + 1, holding)

    def _note_broken(self, step: int, found: Broken) -> None:
        """Keep the first non-finite value's evidence, and for how long there have been more."""
        theory = self._said_of_depth("exploding")
        fresh = Finding.non_finite(found.quantity, found.value, step, found.layers, len(self._layers), theory)
        earlier = self._broken
        if earlier is not None and (earlier.quantity, earlier.first_step) != ("test/loss", step):
            # A step counts once, be it in training or in a test.
            times = earlier.persistence + (step > earlier.last_step)
            fresh = replace(earlier, last_step=step, persistence=times)
        self._broken = fresh

    def _said_of_depth(self, kind: str) -> str:
        return said_of_depth(self._theory, kind, self._hidden, self._thresholds.steady_decades)
