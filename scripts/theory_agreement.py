"""How well mean-field theory agrees with networks as gradstab builds them, as a markdown table.

    python scripts/theory_agreement.py [--seeds 8] [--width 1000] [--batch-norm-width 2000]

Each network is drawn with several seeds; its δ at the first step, averaged over seeds by its logarithm, is held against
the prediction of the same configuration. Exits with 1 where one is further off than its limit.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from hydra import compose, initialize_config_module

from gradstab import reproducibility
from gradstab.assembly import build
from gradstab.batching import Batches
from gradstab.config import Config, from_hydra, register_schema
from gradstab.data import Dataset, load_data
from gradstab.expectation import expect, window_correlations
from gradstab.inputs import Inputs, inputs_of
from gradstab.theory.prediction import fit_depth_factor


@dataclass(frozen=True)
class Case:
    """A family of networks, the overrides of one of them, and how far off its depth factor may be.

    ``ratios`` is whether every layer's own factor is held to the limit too. A limit of None is none: the prediction
    is known to leave something out.
    """

    family: str
    overrides: str
    limit: float | None
    ratios: bool = False


PLAIN = [
    "act=relu init=kaiming_normal",
    "act=leaky_relu act.slope=0.2 init=kaiming_uniform",
    "act=identity init=default",
    "act=tanh init=lecun_normal",
    "act=tanh init=variance init.sigma_w2=2 init.sigma_b2=0.1",
    "act=tanh init=xavier_normal model.width={unequal}",
    "act=tanh init=orthogonal",
    "act=tanh init=critical init.sigma_b2=0.05",
    "act=sigmoid init=xavier_normal",
    "act=sigmoid init=critical",
    "act=selu init=lecun_normal",
    "act=elu init=critical",
    "act=gelu init=lecun_normal",
    "act=gelu init=critical init.sigma_b2=0.2",
    "act=silu init=critical init.sigma_b2=0.6",
    "act=softsign init=xavier_uniform",
    "act=softplus init=lecun_normal",
    "act=erf init=lsuv",
    "act=hardtanh init=normal init.std=0.03",
    "act=mish init=default",
]
LAYER_NORM = [
    "act=relu init=kaiming_normal model.norm=layer",
    "act=tanh init=variance init.sigma_w2=2 init.sigma_b2=0.3 model.norm=layer",
    "act=gelu init=lecun_normal model.norm=layer model.norm_position=after",
]
DROPOUT = [
    "act=relu init=kaiming_normal model.dropout=0.2",
    "act=tanh init=lecun_normal model.dropout=0.3",
    "act=relu init=critical model.dropout=0.3",
]
BATCH_NORM = [
    "act=relu init=kaiming_normal model.norm=batch",
    "act=tanh init=lecun_normal model.norm=batch",
    "act=gelu init=xavier_normal model.norm=batch",
    "act=relu init=kaiming_normal model.norm=batch model.dropout=0.2",
]
RESIDUAL = [
    "act=relu init=lecun_normal model.residual=add",
    "act=tanh init=kaiming_normal model.residual=scaled",
    "act=gelu init=kaiming_normal model.residual=add model.norm=layer",
    "act=tanh init=lecun_normal model.residual=add model.dropout=0.1 model.width={unequal}",
]


def cases(width: int, batch_norm_width: int) -> Iterator[Case]:
    """Every network of the table."""
    gaussian = "data=gaussian data.n_train=256 data.n_test=1 batch_size=32"
    wide = f"{gaussian} data.dim={width} model.width={width} model.depth=10"
    unequal = [int(width * share) for share in (0.8, 1.5, 1, 1.4, 1.2, 1, 1.5, 1, 1.2, 0.8)]
    families: list[tuple[str, list[str], float]] = [
        ("plain", PLAIN, 0.01),
        ("layer norm", LAYER_NORM, 0.015),
        ("dropout", DROPOUT, 0.015),
        ("residual", RESIDUAL, 0.01),
    ]
    for family, group, limit in families:
        for text in group:
            base = wide.replace(f" model.width={width}", "") if "{unequal}" in text else wide
            named = text.replace("{unequal}", str(unequal).replace(" ", ""))
            yield Case(family, f"{named} {base}", limit, ratios=family == "residual")
    # Lengths that drift away from an unstable fixed point carry along what a finite width adds to them.
    for factor, most in ((1, None), (3, 0.01)):
        large = wide.replace(str(width), str(factor * width))
        yield Case("plain, unstable q", f"act=gelu init=kaiming_normal {large}", most)
    normed = f"{gaussian} data.dim={batch_norm_width} model.width={batch_norm_width} model.depth=8"
    for text in BATCH_NORM:
        yield Case("batch norm", f"{text} {normed}", 0.01)
    digits = f"data=digits batch_size=32 model.width={width} model.depth=10"
    yield Case("digits", f"act=tanh init=xavier_normal {digits}", 0.01)
    yield Case("digits", f"act=relu init=kaiming_normal {digits}", 0.01)
    yield Case("digits, batch norm", f"act=relu init=kaiming_normal model.norm=batch {digits}", 0.01)
    for pooling, act in (("max", "relu"), ("avg", "tanh")):
        yield Case("LeNet-5, digits", f"model=lenet5 act={act} model.pooling={pooling} batch_size=64", None)


def measured(config: Config, data: Dataset) -> tuple[np.ndarray, tuple[float, float] | None]:
    """log ‖δ‖ of the hidden layers at the first step of one seed, and LeNet-5's window correlations."""
    parts = build(config, data)
    found = None
    if config.model.name == "lenet5":
        found = window_correlations(parts.model, data.train.inputs[: config.batch])
    order = reproducibility.generator(config.seed, "order")
    inputs, targets, _ = next(Batches(parts.data.train, config.batch, order))
    torch.manual_seed(reproducibility.stream_seed(config.seed, "dropout"))
    parts.model.train()
    with parts.probe.watching() as read:
        parts.loss(parts.model(inputs), targets).backward()  # type: ignore[no-untyped-call]
        signals = read()["signal_grad_norm"][: len(parts.probe.hidden)]
    return np.log(signals.double().numpy()), found


def judged(case: Case, seeds: int) -> tuple[str, bool]:
    """A row of the table, and whether the prediction is within its limit."""
    words = [*case.overrides.split(), "device=cpu"]
    config = from_hydra(compose("train", words), words)
    data = load_data(config.data.name, **config.data.knobs)
    inputs: Inputs = inputs_of(data)
    count = seeds * 6 if config.model.name == "lenet5" else seeds
    draws = [measured(replace(config, seed=seed), data) for seed in range(count)]
    correlations = [found for _, found in draws if found is not None]
    mean = (sum(c[0] for c in correlations) / count, sum(c[1] for c in correlations) / count) if correlations else None
    prediction = expect(config, inputs, mean)
    factors = [fit_depth_factor(logs)[0] for logs, _ in draws]
    profile = np.mean([logs for logs, _ in draws], axis=0)
    factor = fit_depth_factor(profile)[0]
    off = prediction.depth_factor / factor - 1
    steps = np.exp(np.diff(np.log(prediction.signal_grad_norm)) - np.diff(profile))
    worst = float(np.abs(steps - 1).max())
    within = case.limit is None or (abs(off) <= case.limit and (not case.ratios or worst <= case.limit))
    shown = " ".join(w for w in case.overrides.split() if not w.startswith(("data", "batch_size", "model.depth")))
    limit = "none" if case.limit is None else f"{case.limit:.1%}" + (" each layer" if case.ratios else "")
    row = (
        f"| {case.family} | `{shown}` | {prediction.depth_factor:.4f} | {factor:.4f} ± {np.std(factors, ddof=1):.4f} | "
        f"{off:+.2%} | {worst:.2%} | {limit} |"
    )
    return row if within else f"{row} **beyond its limit**", within


def timings() -> Iterator[str]:
    """What predicting a thousand layers costs: the first call, which may import scipy, and the median of five more."""
    inputs = inputs_of(load_data("digits"))
    for act in ("relu", "tanh", "sigmoid", "elu", "gelu", "mish", "hardtanh"):
        words = [f"act={act}", "init=lecun_normal", "model.depth=1000"]
        config = from_hydra(compose("train", words), words)
        took = []
        for _ in range(6):
            started = time.perf_counter()
            expect(config, inputs)
            took.append(time.perf_counter() - started)
        yield f"{act} {1000 * np.median(took[1:]):.0f} ms (first {1000 * took[0]:.0f} ms)"


def main() -> int:
    """Print the table; 1 where a prediction is beyond its limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--width", type=int, default=1000)
    parser.add_argument("--batch-norm-width", type=int, default=2000)
    args = parser.parse_args()
    register_schema()
    started = time.perf_counter()
    print("| family | network | theory | measured | off by | worst layer | limit |")
    print("|---|---|---|---|---|---|---|")
    good = True
    with initialize_config_module("gradstab.configs", version_base="1.3"):
        for case in cases(args.width, args.batch_norm_width):
            row, within = judged(case, args.seeds)
            good = good and within
            print(row, flush=True)
        costs = "; ".join(timings())
    versions = f"torch {torch.__version__}, {args.seeds} seeds"
    minutes = math.ceil((time.perf_counter() - started) / 60)
    print(f"\n{versions}; {'all within their limits' if good else 'not all within their limits'}; under {minutes} min")
    print(f"\npredicting 1,000 layers: {costs}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
