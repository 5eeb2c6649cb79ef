"""An optimizer's rate beside its own, where none is chosen, and beside what the first step says of it."""

from __future__ import annotations

from gradstab.config import Config
from gradstab.measure.verdict import Verdict

# Steps so many times larger than a chain stands are too large for any network; rates so many times an optimizer's own
# are far from usual.
WILD = 10.0
# Where the rate would have to be less than this share of what it is, it is not the rate that is wrong.
LEAST_RATE = 1e-4
# The rules that tell of steps too large for the depth.
TOO_LARGE = ("large_steps", "deep_steps")


def usual_rate(config: Config) -> float:
    """The optimizer's own rate, where none is chosen."""
    rate: float = type(config.optimizer)(config.optimizer.name).knobs["lr"]
    return rate


def usual_if(config: Config, times: float) -> tuple[str, ...]:
    """The optimizer's own rate, for one that is so many times as large."""
    usual = usual_rate(config)
    return (f"optimizer.lr={usual:g}",) if config.optimizer.knobs["lr"] >= times * usual else ()


def fit_of(verdict: Verdict) -> float:
    """The share of the rate that makes half of the steps which the rules on the first one let pass."""
    rules = (*TOO_LARGE, "overshoot")
    return min((f.threshold / f.value / 2 for f in verdict.findings if f.rule in rules), default=1.0)


def fitting_rate(config: Config, verdict: Verdict) -> tuple[str, ...]:
    """The rate that a chain of this depth stands, where the present one is too large for it; () where none is."""
    fit = fit_of(verdict)
    if not any(f.rule in TOO_LARGE for f in verdict.findings) or fit <= LEAST_RATE:
        return ()
    rate, usual = config.optimizer.knobs["lr"], usual_rate(config)
    # The first step tells what cannot work; what does, where it is far off, the optimizer's own rate.
    smaller = min(rate * fit, usual) if rate >= WILD * usual else rate * fit
    return (f"optimizer.lr={float(f'{smaller:.1g}'):g}",)
