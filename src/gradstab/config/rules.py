"""What has to hold between several settings: nonsense, and knobs without effect, are refused with the reason."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

from gradstab.config.fields import comma_separated
from gradstab.config.network_options import DeepMLP
from gradstab.config.optimizer_options import WarmupCosine
from gradstab.config.registry import Option
from gradstab.config.run import Config
from gradstab.config.training_options import N_TRAIN, REPARAMETRIZING
from gradstab.errors import ConfigError

DEFAULT_STEPS = 1000
DEFAULT_DEPTH = 20
DEFAULT_BATCH = 128


def resolve(values: Mapping[str, Any], explicit: Collection[str]) -> Config:
    """Fill in what was left open: depth from a list of widths, batch size, length and warm-up.

    Of ``steps`` and ``epochs``, the one that was set on the command line stands against one from an experiment.
    """
    data: Option = values["data"]
    n_train = N_TRAIN[data.name] or data.knobs["n_train"]
    config = Config(**values, n_train=n_train, written=frozenset(explicit))
    if isinstance(config.model, DeepMLP) and config.model.depth is None:
        width = config.model.width
        depth = len(width) if isinstance(width, tuple) else DEFAULT_DEPTH
        config = replace(config, model=replace(config.model, depth=depth))
    if config.stop_on is not None:
        config = replace(config, stop_on=comma_separated(config.stop_on))
    if config.batch_size is None:
        config = replace(config, batch_size=DEFAULT_BATCH if n_train >= DEFAULT_BATCH else "full")
    if config.steps is not None and config.epochs is not None and ("steps" in explicit) != ("epochs" in explicit):
        config = replace(config, epochs=None) if "steps" in explicit else replace(config, steps=None)
    if config.steps is None and config.epochs is None:
        config = replace(config, steps=DEFAULT_STEPS)
    if isinstance(config.schedule, WarmupCosine) and config.schedule.warmup_steps is None:
        config = replace(config, schedule=replace(config.schedule, warmup_steps=max(1, config.total_steps // 10)))
    return config


Rule = Callable[[Config, Callable[[str], bool]], Iterator[str]]


def check_rules(config: Config, explicit: Collection[str]) -> None:
    """Raise :class:`ConfigError` with one line for each rule broken; ``explicit`` holds the keys the user set."""

    def was_set(key: str) -> bool:
        """Whether a knob was named on the command line or differs from its default."""
        group, _, knob = key.partition(".")
        if key in explicit:
            return True
        if not knob:
            return False
        option: Option = getattr(config, group)
        default = next(f.default for f in fields(option) if f.name == knob)
        return bool(option.knobs[knob] != default)

    problems = [problem for rule in _RULES for problem in rule(config, was_set)]
    if problems:
        raise ConfigError(*problems)


def _length(config: Config, _was_set: Callable[[str], bool]) -> Iterator[str]:
    if config.steps is not None and config.epochs is not None:
        yield f"epochs={config.epochs}: steps={config.steps} is set too; give one of the two, the other null"
    if config.batch_size != "full" and config.batch_size > config.n_train:
        yield (
            f"batch_size={config.batch_size}: data={config.data.name} has {config.n_train:,} training samples; "
            f"allowed: 1 to {config.n_train}, or full"
        )
    if config.model.knobs.get("norm") == "batch" and config.batch == 1:
        yield f"batch_size={config.batch_size}: model.norm=batch needs at least 2 samples to take statistics of"


def _depth(config: Config, was_set: Callable[[str], bool]) -> Iterator[str]:
    model = config.model
    if not isinstance(model, DeepMLP):
        return
    if isinstance(model.width, tuple) and len(model.width) != model.depth:
        yield (
            f"model.width={list(model.width)}: {len(model.width)} widths for model.depth={model.depth}; "
            "allowed: one width, or one for each hidden layer"
        )
    if model.depth == 0:
        for key in ("width", "norm", "norm_position", "dropout", "residual"):
            if was_set(f"model.{key}"):
                yield f"model.{key}={model.knobs[key]}: no effect with model.depth=0, a linear model"
        if was_set("act"):
            yield f"act={config.act.name}: no effect with model.depth=0, a linear model; leave it out"
    if model.depth == 1 and was_set("model.residual"):
        yield f"model.residual={model.residual}: no effect with model.depth=1; blocks start at the second hidden layer"


def _norm_position(config: Config, _was_set: Callable[[str], bool]) -> Iterator[str]:
    knobs = config.model.knobs
    if knobs.get("norm") == "none" and knobs["norm_position"] is not None:
        yield f"model.norm_position={knobs['norm_position']}: no effect with model.norm=none; allowed: null"


def _data(config: Config, _was_set: Callable[[str], bool]) -> Iterator[str]:
    data, model, loss = config.data.name, config.model.name, config.loss.name
    if data == "line" and loss != "mse":
        yield f"loss={loss}: data=line is a regression without classes; allowed: mse"
    if data in ("line", "gaussian") and model != "deep_mlp":
        yield f"model={model}: needs images, data={data} has none; allowed: deep_mlp"


def _init(config: Config, was_set: Callable[[str], bool]) -> Iterator[str]:
    name, knobs = config.init.name, config.init.knobs
    model = config.model
    drawn = {key: knobs[key] for key in ("value", "std", "bound", "sigma_w2") if key in knobs}
    zero = name == "zeros" or 0 in drawn.values()
    if zero and was_set("init.gain"):
        yield f"init.gain={knobs['gain']}: no effect with init={name} where all weights are 0"
    if name in ("orthogonal", "delta_orthogonal", "identity") and model.name == "lenet5_1998":
        yield f"init={name}: needs dense layers, and C3 of model=lenet5_1998 lacks connections; allowed: the others"
    if knobs.get("sigma_b2", 0) > 0 and not model.knobs.get("bias", True):
        yield f"init.sigma_b2={knobs['sigma_b2']}: no effect with model.bias=false"
    if name == "fixup" and (model.knobs.get("residual", "none") != "add" or model.knobs.get("norm") != "none"):
        yield "init=fixup: is for residual networks without norm; set model.residual=add model.norm=none"
    if (zero or name == "fixup") and config.constraint.name in REPARAMETRIZING:
        yield f"constraint={config.constraint.name}: divides by the norm of weights that init={name} sets to 0"


def _stop_on(config: Config, _was_set: Callable[[str], bool]) -> Iterator[str]:
    if config.stop_on is not None and config.measure.name == "none":
        yield f"stop_on={','.join(config.stop_on)}: needs measurements; set measure=norms or measure=full"
    if config.stop_on is not None and "non_finite" in config.stop_on and config.on_divergence == "stop":
        yield "stop_on=non_finite: on_divergence=stop ends a run there anyway; leave it out, or set on_divergence=skip"


def _images(config: Config, was_set: Callable[[str], bool]) -> Iterator[str]:
    if config.measure.name == "none" and config.images_after is not None and was_set("images_after"):
        yield f"images_after={config.images_after}: no effect with measure=none; allowed: null"


def _never(config: Config, was_set: Callable[[str], bool]) -> Iterator[str]:
    """Knobs that would take effect only after the run's end."""
    for key, when in (
        ("schedule.step_size", "the rate would never fall"),
        ("schedule.warmup_steps", "no step would be left for the cosine"),
        ("clip.warmup_steps", "no gradient would ever be clipped"),
        ("measure.every", "it would only measure the first step, as measure=norms does"),
    ):
        group, knob = key.split(".")
        value = getattr(config, group).knobs.get(knob)
        if value is not None and value >= config.total_steps and was_set(key):
            yield f"{key}={value}: {when} in {config.total_steps} steps; allowed: less than that"


def _min_lr(config: Config, _was_set: Callable[[str], bool]) -> Iterator[str]:
    floor, lr = config.schedule.knobs.get("min_lr", 0.0), config.optimizer.knobs["lr"]
    if floor > lr:
        yield f"schedule.min_lr={floor}: is above optimizer.lr={lr}; allowed: 0 to {lr}"


def _checkpoint(config: Config, was_set: Callable[[str], bool]) -> Iterator[str]:
    every = config.checkpoint.steps
    if every is not None and every > config.total_steps and was_set("checkpoint.every"):
        yield f"checkpoint.every={every}: none would be written in {config.total_steps} steps; allowed: up to that"


# The least that is not 0: 2**-149 and 2**-133, rounded up to what people type. Settings themselves are float64.
_SMALLEST = {"float32": 1.5e-45, "bfloat16": 1e-40}


def _eps(config: Config, _was_set: Callable[[str], bool]) -> Iterator[str]:
    eps, smallest = config.optimizer.knobs.get("eps"), _SMALLEST.get(config.precision, 0.0)
    if eps is not None and eps < smallest:
        yield (
            f"optimizer.eps={eps:g}: is less than precision={config.precision} can tell from 0, and weights whose "
            f"gradient is 0 would move by 0/0; allowed: at least {smallest:g}"
        )


_RULES: tuple[Rule, ...] = (
    _length,
    _depth,
    _norm_position,
    _data,
    _init,
    _stop_on,
    _images,
    _never,
    _min_lr,
    _checkpoint,
    _eps,
)
