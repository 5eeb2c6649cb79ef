"""What clipping would have caught a step that broke: sought in the norms before it, and tried out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial

import torch
from torch import Tensor

from gradstab.clipping import State, percentile_update, zclip_update
from gradstab.config import Config
from gradstab.config.training_options import Percentile, ZClip
from gradstab.errors import GradstabError
from gradstab.forensics import story
from gradstab.forensics.growth import Growth, History, first_above, limits
from gradstab.forensics.snapshot import Snapshot
from gradstab.replay import Trial, rerun

# Seconds that a rerun may take without being asked for, and how many steps beyond the broken one it makes: at least,
# and at most.
BUDGET = 5.0
BEYOND = 20
FURTHER = 1000
_SIMULATED = 2000


@dataclass(frozen=True)
class Catch:
    """What clipping would have caught it.

    ``max_norm`` is the limit on the global gradient norm that is offered, which would first have acted at step
    ``first_step``; None where there is none to offer, and ``reason`` says why. ``proof`` is the run once more with it,
    ``control`` once more as it was; ``failed`` are the other limits that were tried. ``others`` are
    other policies at their defaults, and the first step at which each would have acted.
    """

    max_norm: float | None = None
    first_step: int | None = None
    reason: str = ""
    proof: Trial | None = None
    control: Trial | None = None
    failed: list[Trial] = field(default_factory=list)
    others: dict[str, int] = field(default_factory=dict)


def catch(
    config: Config,
    snapshot: Snapshot,
    past: History,
    found: Growth | None,
    *,
    prove: bool,
    try_out: bool,
) -> Catch:
    """The gentlest limit on the global norm under which the run stays finite, its loss about as low as at the start.

    With ``try_out``, it is tried where that takes no longer than ``BUDGET`` seconds a try, or else on ``prove``.
    """
    if (why := story.hopeless(snapshot)) is not None:
        return Catch(reason=why)
    tries = limits(past, found)
    if not tries:
        return Catch(reason="unknown: no gradient norms were taken (measure=none)")
    others = _other_policies(past, config.clip.name)
    needed = min(snapshot.step + BEYOND, config.total_steps)
    # Limits are rounded up, so that the gentlest may be above all norms that are known.
    acting = next((limit for limit in tries if first_above(past, limit) is not None), tries[0])
    untried = Catch(acting, first_above(past, acting), others=others)
    if not try_out:
        return untried
    trials: list[Trial] = []
    try:
        began = time.perf_counter()
        control = rerun(config, None, min(snapshot.step + 1, config.total_steps), math.inf if prove else BUDGET)
        taken = time.perf_counter() - began
        if not prove and taken / (control.steps + 1) * needed > BUDGET:
            return untried
        if control.finite or (control.steps != snapshot.step and snapshot.quantity != "test loss"):
            why = "cannot be put to the test: run again from its start, it does not break there"
            return Catch(reason=why, control=control, others=others)
        at_most = config.total_steps if prove else min(config.total_steps, needed + FURTHER)
        seconds = math.inf if prove else BUDGET
        for limit in tries:
            trials.append(rerun(config, limit, at_most, seconds, needed))
            if trials[-1].calm:
                break
    except GradstabError as error:
        return Catch(reason=f"not put to the test: {str(error).splitlines()[0]}", others=others)
    best = next((t for t in [trials[-1], *trials] if t.finite), None)
    if best is None or best.max_norm is None:
        why = (
            f"none: with the global norm held to as little as {story.number(tries[-1])} it breaks all the same; a "
            "smaller optimizer.lr may do what no clipping can"
        )
        return Catch(reason=why, control=control, failed=trials, others=others)
    failed = [trial for trial in trials if trial is not best]
    return Catch(best.max_norm, first_above(past, best.max_norm), "", best, control, failed, others)


def _other_policies(past: History, own: str) -> dict[str, int]:
    """The first step at which policies that learn their limit would have acted, at their defaults."""
    norms = torch.from_numpy(past.global_norm[-_SIMULATED:].copy())
    zero = torch.zeros((), dtype=torch.float64)
    count = torch.zeros((), dtype=torch.int64)
    zclip = {key: value for key, value in asdict(ZClip()).items() if key != "name"}
    percentile = asdict(Percentile())
    window = torch.full((percentile["window"],), math.nan, dtype=torch.float64)
    policies: dict[str, tuple[State, Callable[[State, Tensor], tuple[State, Tensor]]]] = {
        "zclip": ({"mean": zero, "deviation": zero, "count": count}, partial(zclip_update, **zclip)),
        "percentile": (
            {"history": window, "count": count},
            partial(percentile_update, percentile=percentile["percentile"]),
        ),
    }
    found = {}
    for name, (state, update) in policies.items():
        if name == own:
            continue
        for step, norm in zip(past.step[-_SIMULATED:].tolist(), norms, strict=True):
            state, limit = update(state, norm)
            if bool(norm > limit):
                found[name] = step
                break
    return found
