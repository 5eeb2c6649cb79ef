"""How weights move: the options of ``optimizer`` and ``schedule``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gradstab.config.fields import choice, number
from gradstab.config.registry import Option, option, without_knobs

# ------------------------------------------------------------------------------------------------ optimizer

# Their steps keep their size however small all gradients are.
ADAPTIVE = ("adam", "adamw", "rmsprop", "adagrad", "muon")
# Their weight decay is no part of the gradient.
DECOUPLED = ("adamw", "muon")


def _lr(default: float) -> Any:
    return number(default, above=0)


def _decay(default: float = 0.0) -> Any:
    return number(default, at_least=0)


@option("optimizer", "sgd")
@dataclass(frozen=True)
class SGD(Option):
    """Stochastic gradient descent (Robbins & Monro 1951)."""

    name: str = "sgd"
    lr: float = _lr(0.05)
    weight_decay: float = _decay()


@option("optimizer", "momentum")
@dataclass(frozen=True)
class Momentum(Option):
    """Gradient descent with heavy-ball momentum (Polyak 1964)."""

    name: str = "momentum"
    lr: float = _lr(0.01)
    momentum: float = number(0.9, above=0, below=1)
    weight_decay: float = _decay()


@option("optimizer", "nesterov")
@dataclass(frozen=True)
class Nesterov(Option):
    """Gradient descent with Nesterov's momentum (Nesterov 1983; Sutskever et al. 2013)."""

    name: str = "nesterov"
    lr: float = _lr(0.01)
    momentum: float = number(0.9, above=0, below=1)
    weight_decay: float = _decay()


@option("optimizer", "adam")
@dataclass(frozen=True)
class Adam(Option):
    """Adaptive moments; weight_decay is added to the gradient (Kingma & Ba 2015, arXiv:1412.6980)."""

    name: str = "adam"
    lr: float = _lr(0.001)
    beta1: float = number(0.9, at_least=0, below=1)
    beta2: float = number(0.999, at_least=0, below=1)
    eps: float = number(1e-8, above=0)
    weight_decay: float = _decay()


@option("optimizer", "adamw")
@dataclass(frozen=True)
class AdamW(Option):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101)."""

    name: str = "adamw"
    lr: float = _lr(0.001)
    beta1: float = number(0.9, at_least=0, below=1)
    beta2: float = number(0.999, at_least=0, below=1)
    eps: float = number(1e-8, above=0)
    weight_decay: float = _decay(0.01)


@option("optimizer", "rmsprop")
@dataclass(frozen=True)
class RMSprop(Option):
    """Steps divided by a running root mean square of the gradient (Tieleman & Hinton 2012)."""

    name: str = "rmsprop"
    lr: float = _lr(0.001)
    alpha: float = number(0.99, at_least=0, below=1)
    eps: float = number(1e-8, above=0)
    momentum: float = number(0.0, at_least=0, below=1)
    weight_decay: float = _decay()


@option("optimizer", "adagrad")
@dataclass(frozen=True)
class Adagrad(Option):
    """Steps divided by the root of all squared gradients so far (Duchi et al. 2011)."""

    name: str = "adagrad"
    lr: float = _lr(0.01)
    eps: float = number(1e-10, above=0)
    weight_decay: float = _decay()


@option("optimizer", "muon")
@dataclass(frozen=True)
class Muon(Option):
    """Orthogonalised momentum for hidden matrices, AdamW for all else; torch 2.9 or later (Jordan et al. 2024)."""

    name: str = "muon"
    lr: float = _lr(0.02)
    momentum: float = number(0.95, at_least=0, below=1)
    weight_decay: float = _decay()
    adamw_lr: float = _lr(0.001)


@option("optimizer", "coordinate_descent")
@dataclass(frozen=True)
class CoordinateDescent(Option):
    """A gradient step on one block at a time, the rest held still (Wright 2015, arXiv:1502.04759)."""

    name: str = "coordinate_descent"
    lr: float = _lr(0.1)
    block: str = choice("layer", "layer", "coordinate")
    order: str = choice("cyclic", "cyclic", "random", "gauss_southwell")


# ------------------------------------------------------------------------------------------------- schedule

without_knobs("schedule", constant="the optimizer's learning rate throughout")


@option("schedule", "step")
@dataclass(frozen=True)
class StepDecay(Option):
    """Multiply the rate by gamma every step_size steps."""

    name: str = "step"
    step_size: int = number(200, at_least=1)
    gamma: float = number(0.5, above=0, at_most=1)


@option("schedule", "exponential")
@dataclass(frozen=True)
class Exponential(Option):
    """Multiply the rate by gamma at every step."""

    name: str = "exponential"
    gamma: float = number(0.999, above=0, at_most=1)


@option("schedule", "cosine")
@dataclass(frozen=True)
class Cosine(Option):
    """Half a cosine from the rate, at min_lr one step after the last (Loshchilov & Hutter 2017, arXiv:1608.03983)."""

    name: str = "cosine"
    min_lr: float = number(0.0, at_least=0)


@option("schedule", "warmup_cosine")
@dataclass(frozen=True)
class WarmupCosine(Option):
    """A linear rise over warmup_steps (null: a tenth of all), then cosine (Goyal et al. 2017, arXiv:1706.02677)."""

    name: str = "warmup_cosine"
    warmup_steps: int | None = number(None, at_least=1)
    min_lr: float = number(0.0, at_least=0)


@option("schedule", "plateau")
@dataclass(frozen=True)
class Plateau(Option):
    """Multiply the rate by factor after more than patience evaluations in a row without a better test loss."""

    name: str = "plateau"
    factor: float = number(0.5, above=0, below=1)
    patience: int = number(5, at_least=0)
    min_lr: float = number(0.0, at_least=0)
