"""How often the verdict is right: random networks, the verdict at first, after 20 steps and at the end, then the truth.

    python scripts/verdict_accuracy.py --configs 300 --jobs 2 [--drawing flat|decaying]

Each configuration is drawn at random (activation, init, gain, depth 2 to 100, width, norm, residual, dropout,
optimizer, rate, clipping, loss, batch), in one of three ways, trained on the digits for a fixed budget, and then counts
as *failed* where it diverged or its test accuracy is below 0.5, and as *trained* from 0.8 on; what lies between is left
out and counted. A verdict is right where it is healthy for the trained and anything else for the failed.

At initialisation, recall is taken over gradient failures alone: those where the network is to blame and not the
optimizer. A failure is one where a network of two layers learns with the same activation, optimizer and rate, while
the network itself also fails with a tenth and with ten times the rate. AutoTrainer's and SageMaker's rules look at the
same steps.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import random
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from other_rules import Seen, autotrainer, sagemaker

from gradstab import reproducibility
from gradstab.assembly import build
from gradstab.batching import Batches
from gradstab.config import Config, from_hydra
from gradstab.config.optimizer_options import ADAPTIVE
from gradstab.encoding import Vector
from gradstab.errors import GradstabError
from gradstab.evaluation import evaluate
from gradstab.events import EventWriter
from gradstab.examination import Examination
from gradstab.measure.diagnosis import Judge
from gradstab.measure.recorder import Recorder
from gradstab.measure.verdict import HEALTHY
from gradstab.parts import Parts
from gradstab.step_scale import coupled_decay, step_scale
from gradstab.training import train_step

LOOKS = {0: "init", 19: "20 steps"}
END = "the end"
FAILED, TRAINED = 0.5, 0.8
RATES = {
    "sgd": (5e-3, 0.5),
    "momentum": (1e-3, 0.1),
    "adam": (1e-4, 1e-2),
    "adamw": (1e-4, 1e-2),
    "rmsprop": (1e-4, 3e-3),
}
ACTIVATIONS = (
    *("sigmoid", "tanh", "relu", "relu", "leaky_relu", "prelu", "selu", "elu", "gelu", "silu", "mish"),
    *("softsign", "hardtanh", "scaled_tanh", "erf", "identity", "softplus"),
)
INITS = (
    *("default", "xavier_normal", "xavier_uniform", "kaiming_normal", "kaiming_uniform", "lecun_normal"),
    *("orthogonal", "normal", "uniform", "variance", "variance", "lsuv"),
)
FLAT_RATES = {
    **dict.fromkeys(("sgd", "momentum", "nesterov"), (1e-3, 1.0)),
    **dict.fromkeys(("adam", "adamw", "rmsprop", "adagrad"), (1e-4, 3e-2)),
}
FLAT_INITS = (
    *("default", "xavier_normal", "xavier_uniform", "kaiming_normal", "kaiming_uniform", "lecun_normal"),
    *("orthogonal", "normal", "variance"),
)
DEFAULTS = {
    **{"schedule": "constant", "clip": "none", "constraint": "none", "penalty": "none", "loss": "cross_entropy"},
    **{"measure": "norms", "data": "digits", "model": "deep_mlp", "verdict": "default", "checkpoint": "default"},
}


class Tape:
    """Keeps what the judge is told up to the last early look, so that other thresholds can be tried on it later."""

    def __init__(self) -> None:
        self.told: list[tuple[int, dict[str, float], dict[str, list[float]]]] = []

    def observe(self, step: int, scalars: Mapping[str, float], vectors: Mapping[str, Vector]) -> None:
        """Take one step's values."""
        if step <= max(LOOKS):
            self.told.append((step, dict(scalars), {name: vector.tolist() for name, vector in vectors.items()}))


def judge_of(config: Config, theory: Mapping[str, Any], chance: float | None) -> Judge:
    """A judge that has seen nothing yet of a run with this configuration."""
    layers = [f"{index:02d}" for index in range(config.model.knobs["depth"] + 1)]
    return Judge(
        layers,
        len(layers) - 1,
        config.verdict,
        theory=theory,
        chance_loss=chance,
        adaptive=config.optimizer.name in ADAPTIVE,
    )


def labels(judge: Judge) -> list[str]:
    """What is wrong by now, nothing where all is well."""
    found = list(judge.verdict().labels)
    return [] if found == [HEALTHY] else found


def judged(result: dict[str, Any]) -> dict[str, list[str]]:
    """The verdict at each early look, from what was kept of a run."""
    # What was kept may be older than a group that has no bearing on verdicts, and than what theory says of steps.
    config = from_hydra({group: {"name": name} for group, name in DEFAULTS.items()} | result["settings"])
    known = {"step_scale": step_scale(config) or 0.0, "decay": coupled_decay(config) or 0.0}
    judge = judge_of(config, result["theory"] | known, result["chance_loss"])
    told = iter(result["told"])
    found = {}
    for look, name in LOOKS.items():
        for step, scalars, vectors in told:
            judge.observe(step, scalars, {key: np.array(vector) for key, vector in vectors.items()})
            if step == look:
                break
        found[name] = labels(judge)
    return found


def log_uniform(rng: random.Random, low: float, high: float) -> float:
    """A number whose logarithm is drawn evenly."""
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def blank(steps: int) -> dict[str, Any]:
    """Settings that every drawing starts from."""
    groups = {group: {"name": name} for group, name in DEFAULTS.items()}
    return groups | {"steps": steps, "device": "cpu", "quiet": True}


def drawn(rng: random.Random, steps: int) -> dict[str, Any]:
    """One random configuration, as nested settings: depth and rate even in their logarithms, odd cases included."""
    settings = blank(steps)
    init: dict[str, Any] = {"name": rng.choice(INITS)}
    if rng.random() < 0.03:
        init["name"] = rng.choice(("zeros", "constant", "identity"))
    if init["name"] == "normal":
        init["std"] = log_uniform(rng, 0.01, 0.3)
    if init["name"] == "uniform":
        init["bound"] = log_uniform(rng, 0.02, 0.5)
    if init["name"] == "variance":
        init |= {"sigma_w2": log_uniform(rng, 0.3, 8), "sigma_b2": rng.choice((0.0, 0.0, 0.05, 0.5))}
    if init["name"] != "zeros" and rng.random() < 0.3:
        init["gain"] = log_uniform(rng, 0.3, 3)
    depth = round(log_uniform(rng, 2, 100))
    model = settings["model"]
    model |= {"depth": depth, "width": rng.choice((32, 64, 128, 256) if depth < 50 else (32, 64, 128))}
    model["norm"] = rng.choices(("none", "batch", "layer"), (0.7, 0.15, 0.15))[0]
    if model["norm"] != "none" and rng.random() < 0.4:
        model["norm_position"] = "after"
    model["residual"] = rng.choices(("none", "add", "scaled", "rezero"), (0.68, 0.13, 0.11, 0.08))[0]
    if rng.random() < 0.2:
        model["dropout"] = rng.choice((0.1, 0.2, 0.3, 0.5))
    name = rng.choice(("sgd", "momentum", "momentum", "adam", "adam", "adamw", "rmsprop"))
    settings |= {
        "act": {"name": rng.choice(ACTIVATIONS)},
        "init": init,
        "optimizer": {"name": name, "lr": log_uniform(rng, *RATES[name])},
        "batch_size": rng.choice((32, 64, 128, 128, 128, 256)),
        "seed": rng.randrange(10**6),
    }
    if rng.random() < 0.12:
        settings["clip"] = {"name": "norm", "max_norm": rng.choice((0.1, 1.0, 5.0))}
    if rng.random() < 0.08:
        settings["loss"] = {"name": "mse"}
    return settings


def drawn_flat(rng: random.Random, steps: int) -> dict[str, Any]:
    """One from other ranges: depth even from 2 to 100, so that most are deep, wider rates, more optimizers, any gain.

    No rule or threshold of the verdict was chosen with any of these in sight.
    """
    settings = blank(steps)
    init: dict[str, Any] = {"name": rng.choice(FLAT_INITS)}
    if init["name"] == "normal":
        init["std"] = rng.choice((0.01, 0.02, 0.05, 0.1, 0.5, 1.0))
    if init["name"] == "variance":
        init |= {"sigma_w2": rng.uniform(0.5, 4), "sigma_b2": rng.choice((0.0, 0.1))}
    if rng.random() < 0.4:
        init["gain"] = rng.uniform(0.3, 3)
    model = settings["model"]
    model |= {"depth": rng.randint(2, 100), "width": rng.choice((16, 32, 64, 100, 128))}
    model["norm"] = rng.choice(("none", "none", "none", "batch", "layer"))
    model["residual"] = rng.choice(("none", "none", "none", "none", "add", "scaled"))
    if rng.random() < 0.25:
        model["dropout"] = rng.uniform(0.05, 0.5)
    name = rng.choice(tuple(FLAT_RATES))
    return settings | {
        "act": {"name": rng.choice(ACTIVATIONS)},
        "init": init,
        "optimizer": {"name": name, "lr": log_uniform(rng, *FLAT_RATES[name])},
        "batch_size": rng.choice((32, 64, 128)),
        "seed": rng.randrange(10**6),
    }


def drawn_decaying(rng: random.Random, steps: int) -> dict[str, Any]:
    """A usual one with weight decay that is part of the gradient, from what people use to far too much."""
    settings = drawn(rng, steps)
    optimizer = settings["optimizer"]
    optimizer |= {"name": optimizer["name"].replace("adamw", "adam"), "weight_decay": log_uniform(rng, 1e-4, 0.5)}
    return settings


DRAWINGS = {"usual": drawn, "flat": drawn_flat, "decaying": drawn_decaying}


def shallow(settings: dict[str, Any]) -> dict[str, Any]:
    """The same activation, optimizer and rate on a network whose gradient has no depth to get lost in."""
    init = "lecun_normal" if settings["act"]["name"] in ("tanh", "sigmoid", "identity") else "kaiming_normal"
    model = {"name": "deep_mlp", "depth": 2, "width": settings["model"]["width"]}
    return settings | {"model": model, "init": {"name": init}}


def at_rate(settings: dict[str, Any], factor: float) -> dict[str, Any]:
    """The same network with another learning rate."""
    optimizer = settings["optimizer"]
    return settings | {"optimizer": {**optimizer, "lr": optimizer["lr"] * factor}}


def is_gradient_failure(settings: dict[str, Any]) -> bool:
    """Whether a failure is the network's and not the rate's: a shallow twin learns, and no other rate helps."""
    if trained(shallow(settings), look=False)["accuracy"] < TRAINED:
        return False
    return all(trained(at_rate(settings, factor), look=False)["accuracy"] < FAILED for factor in (0.1, 10.0))


def trained(settings: dict[str, Any], look: bool = True) -> dict[str, Any]:
    """Train; what each rule set says on the way and, measured in full twenty times, in the end; and how it ended."""
    config = from_hydra(settings)
    parts = build(config)
    examination = Examination.of(config, parts)
    chance, theory = examination.chance_loss, examination.theory
    judge, tape = judge_of(config, theory, chance), Tape()
    looks = LOOKS | {config.total_steps - 1: END}
    every = max(config.total_steps // 20, 1)
    order = reproducibility.generator(config.seed, "order")
    torch.manual_seed(reproducibility.stream_seed(config.seed, "dropout"))
    stream = Batches(parts.data.train, config.batch, order)
    said: dict[str, dict[str, list[str]]] = {}
    losses: list[float] = []
    parts.model.train()
    with tempfile.TemporaryDirectory() as folder:
        writer = EventWriter(Path(folder), parts.probe.tags)
        recorder = Recorder(parts.probe, writer, skip_non_finite=False, observers=[tape, judge])
        diverged = False
        for step in range(config.total_steps):
            inputs, targets, _ = next(stream)
            watch = look and step in looks
            seen: list[tuple[Any, Any]] = []
            handles = (
                [
                    layer.activation.register_forward_hook(
                        lambda _m, a, out, keep=seen: keep.append((a[0].detach(), out.detach()))
                    )
                    for layer in parts.probe.hidden
                    if layer.activation is not None
                ]
                if watch
                else []
            )
            record = train_step(parts, step, inputs, targets, measure_all=watch or (look and step % every == 0))
            for handle in handles:
                handle.remove()
            losses.append(float(record.loss))
            recorder.add(record)
            diverged = not record.updated
            if watch or (diverged and look):
                recorder.flush()
                for at, name in looks.items():
                    # A run that broke before a look is judged there by how it broke.
                    if name not in said and (at == step or (diverged and at > step)):
                        said[name] = _said(config, parts, record.quantities, seen, losses) | {"gradstab": labels(judge)}
            if diverged:
                break
        writer.close()
    _, accuracy = evaluate(parts.model, parts.data.test, parts.loss, True)
    return {
        "said": said,
        "accuracy": 0.0 if diverged else accuracy,
        "diverged": diverged,
        "chance_loss": chance,
        "theory": theory,
        "told": tape.told,
        "settings": settings,
    }


def _said(
    config: Config,
    parts: Parts,
    quantities: dict[str, torch.Tensor],
    seen: list[tuple[Any, Any]],
    losses: list[float],
) -> dict[str, list[str]]:
    grads = [
        p.grad if p.grad is not None else torch.zeros_like(p) for p in parts.probe.parameters[: parts.probe.n_weights]
    ]
    accuracy = None
    if len(losses) > 1:
        with torch.random.fork_rng(devices=[]):
            _, accuracy = evaluate(parts.model, parts.data.train, parts.loss, True)
    ratios = quantities["update_ratio"].tolist() if "update_ratio" in quantities else []
    what = Seen(grads, seen, config.act.name, ratios, losses, accuracy)
    return {"AutoTrainer": autotrainer(what), "SageMaker": sagemaker(what)}


def examined(task: tuple[int, int, int, str]) -> dict[str, Any] | None:
    """One configuration from drawing to truth."""
    index, seed, steps, drawing = task
    torch.set_num_threads(1)
    settings = DRAWINGS[drawing](random.Random(f"{seed}/{index}"), steps)
    try:
        result = trained(settings)
        if result["accuracy"] < FAILED:
            result["gradient_failure"] = is_gradient_failure(settings)
    except GradstabError as refusal:
        return {"index": index, "refused": str(refusal)}
    return {"index": index, **result}


def share(part: int, whole: int) -> str:
    """One count over another, a dash where there is nothing to count."""
    return f"{part / whole:.3f}" if whole else "–"


def report(results: list[dict[str, Any]], errors: bool) -> None:
    """Confusion, precision and recall of every rule set, as Markdown."""
    runs = [r for r in results if "refused" not in r]
    failed = [r for r in runs if r["accuracy"] < FAILED]
    good = [r for r in runs if r["accuracy"] >= TRAINED]
    blamed = [r for r in failed if r["gradient_failure"]]
    print(
        f"{len(runs)} configurations: {len(good)} trained, {len(failed)} failed ({len(blamed)} gradient failures), "
        f"{len(runs) - len(good) - len(failed)} between and left out; {len(results) - len(runs)} refused\n"
    )
    print(
        "| verdict at | rules | failed, flagged | failed, missed | trained, flagged | trained, passed "
        "| precision | recall | recall, gradient failures |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    looks = [name for name in (*LOOKS.values(), END) if all(name in r["said"] for r in runs)]
    for look in looks:
        for rules in ("gradstab", "AutoTrainer", "SageMaker"):
            hits = sum(bool(r["said"][look][rules]) for r in failed)
            alarms = sum(bool(r["said"][look][rules]) for r in good)
            caught = sum(bool(r["said"][look][rules]) for r in blamed)
            shares = (share(hits, hits + alarms), share(hits, len(failed)), share(caught, len(blamed)))
            print(
                f"| {look} | {rules} | {hits} | {len(failed) - hits} | {alarms} | {len(good) - alarms} "
                f"| {' | '.join(shares)} |"
            )
    for look in looks:
        kinds: dict[str, list[int]] = {}
        for r in failed + good:
            for kind in r["said"][look]["gradstab"] or ["healthy"]:
                kinds.setdefault(kind, [0, 0])[r["accuracy"] >= TRAINED] += 1
        print(f"\n| gradstab's verdict at {look} | failed | trained |\n|---|---|---|")
        for kind, (bad, fine) in sorted(kinds.items(), key=lambda item: -sum(item[1])):
            print(f"| {kind} | {bad} | {fine} |")
    if errors:
        for r in failed + good:
            for look in looks:
                said = r["said"][look]["gradstab"]
                if bool(said) != (r["accuracy"] < FAILED):
                    print(f"{look}: {said or 'healthy'} accuracy {r['accuracy']:.2f} {json.dumps(r['settings'])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configs", type=int, default=300)
    parser.add_argument("--first", type=int, default=0, help="leave out the configurations before this one")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--drawing", choices=DRAWINGS, default="usual")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="a file of results, one a line, to be continued and reported on")
    parser.add_argument("--rejudge", action="store_true", help="take gradstab's verdicts anew from what was kept")
    parser.add_argument("--errors", action="store_true", help="print each configuration the verdict was wrong on")
    options = parser.parse_args()
    done = (
        [json.loads(line) for line in options.keep.read_text().splitlines()]
        if options.keep and options.keep.exists()
        else []
    )
    known = {result["index"] for result in done}
    tasks = [
        (i, options.seed, options.steps, options.drawing)
        for i in range(options.first, options.configs)
        if i not in known
    ]
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        for result in pool.imap_unordered(examined, tasks):
            if result is not None:
                done.append(result)
                if options.keep:
                    with options.keep.open("a") as file:
                        file.write(json.dumps(result) + "\n")
    if options.rejudge:
        for result in done:
            for name, verdict in judged(result).items() if "said" in result else ():
                result["said"][name]["gradstab"] = verdict
    report([result for result in done if options.first <= result["index"] < options.configs], options.errors)


if __name__ == "__main__":
    main()
