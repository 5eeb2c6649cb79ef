"""What a network is trained on, and what holds it in check: the options of ``clip`` to ``measure``."""

from __future__ import annotations

from dataclasses import dataclass, make_dataclass

from gradstab.config.fields import MAX_SEED, checked, folder_problem, number
from gradstab.config.registry import Option, option, without_knobs

# ------------------------------------------------------------------------------------------------- clipping

without_knobs("clip", none="gradients are left as they are")


@option("clip", "norm")
@dataclass(frozen=True)
class ClipNorm(Option):
    """Rescale all gradients so that their global norm is at most max_norm (Pascanu et al. 2013, arXiv:1211.5063)."""

    name: str = "norm"
    max_norm: float = number(1.0, above=0)


@option("clip", "value")
@dataclass(frozen=True)
class ClipValue(Option):
    """Clamp each entry of each gradient to ±max_value (Mikolov 2012)."""

    name: str = "value"
    max_value: float = number(0.01, above=0)


@option("clip", "layer")
@dataclass(frozen=True)
class ClipLayer(Option):
    """Rescale each layer's gradient so that its norm is at most max_norm (You et al. 2017, arXiv:1708.03888)."""

    name: str = "layer"
    max_norm: float = number(0.1, above=0)


@option("clip", "agc")
@dataclass(frozen=True)
class AGC(Option):
    """Adaptive: each unit's gradient at most clipping times its weights (Brock et al. 2021, arXiv:2102.06171)."""

    name: str = "agc"
    clipping: float = number(0.01, above=0)
    eps: float = number(1e-3, above=0)


@option("clip", "percentile")
@dataclass(frozen=True)
class Percentile(Option):
    """AutoClip: at most a percentile of the last window global norms (Seetharaman et al. 2020, arXiv:2007.14469)."""

    name: str = "percentile"
    percentile: float = number(10.0, above=0, below=100)
    window: int = number(1000, at_least=2, at_most=1_000_000)


@option("clip", "zclip")
@dataclass(frozen=True)
class ZClip(Option):
    """Clip global norms whose z-score against a running mean is above z (Kumar et al. 2025, arXiv:2504.02507)."""

    name: str = "zclip"
    alpha: float = number(0.97, above=0, below=1)
    z: float = number(2.5, above=0)
    warmup_steps: int = number(25, at_least=2)


# ------------------------------------------------------------------------------------ constraint and penalty

without_knobs(
    "constraint",
    none="weights are free",
    weight_norm="each unit's weights as g·v/‖v‖, g and v learnt (Salimans & Kingma 2016, arXiv:1602.07868)",
)


# They move weights after a step to where they may be, which need not be where they started.
PROJECTING = ("weight_clip", "max_norm")
# Weights are computed from other parameters.
REPARAMETRIZING = ("weight_norm", "spectral_norm")


@option("constraint", "weight_clip")
@dataclass(frozen=True)
class WeightClip(Option):
    """Clamp each weight to ±bound after every step (Arjovsky et al. 2017, arXiv:1701.07875)."""

    name: str = "weight_clip"
    bound: float = number(0.1, above=0)


@option("constraint", "max_norm")
@dataclass(frozen=True)
class MaxNorm(Option):
    """Rescale each unit's incoming weights to a norm of at most bound after every step (Srebro & Shraibman 2005)."""

    name: str = "max_norm"
    bound: float = number(2.0, above=0)


@option("constraint", "spectral_norm")
@dataclass(frozen=True)
class SpectralNorm(Option):
    """Weights divided by their largest singular value, by power iteration (Miyato et al. 2018, arXiv:1802.05957)."""

    name: str = "spectral_norm"
    n_power_iterations: int = number(1, at_least=1, at_most=1000)


without_knobs("penalty", none="the loss alone")


@option("penalty", "l1")
@dataclass(frozen=True)
class L1(Option):
    """strength · Σ|w| over the layers' weights, added to the loss (Tibshirani 1996)."""

    name: str = "l1"
    strength: float = number(1e-5, above=0)


@option("penalty", "l2")
@dataclass(frozen=True)
class L2(Option):
    """strength/2 · Σw² over the layers' weights, added to the loss (Krogh & Hertz 1992)."""

    name: str = "l2"
    strength: float = number(1e-4, above=0)


# -------------------------------------------------------------------------------------------- loss and data


@option("loss", "cross_entropy")
@dataclass(frozen=True)
class CrossEntropy(Option):
    """Softmax and negative log-likelihood, the mean over the batch."""

    name: str = "cross_entropy"
    label_smoothing: float = number(0.0, at_least=0, below=1)


without_knobs("loss", mse="mean squared error over batch and outputs; classes become one-hot targets")

without_knobs(
    "data",
    digits="1,797 handwritten digits of 8×8, embedded in scikit-learn: no download (Alpaydin & Kaynak 1998)",
    line="linear regression on x = 1, 2, 3, 4 with y = x",
)


def _downloaded(name: str, description: str) -> None:
    """Register a data set of torchvision's, kept under ``root`` and downloaded there when missing."""
    root = checked("data", folder_problem, "a folder")
    knobs = [("name", str, name), ("root", str, root), ("download", bool, True)]
    namespace = {"__doc__": description}
    option("data", name)(make_dataclass(name, knobs, bases=(Option,), frozen=True, namespace=namespace))


_downloaded("mnist", "70,000 handwritten digits of 28×28, through torchvision (LeCun et al. 1998)")
_downloaded("fashion_mnist", "70,000 articles of clothing of 28×28, through torchvision (Xiao et al. 2017)")
_downloaded("cifar10", "60,000 colour photographs of 32×32, through torchvision (Krizhevsky 2009)")


@option("data", "gaussian")
@dataclass(frozen=True)
class Gaussian(Option):
    """Normal random inputs, labels from a random linear teacher: the inputs that mean-field theory assumes."""

    name: str = "gaussian"
    dim: int = number(100, at_least=1)
    classes: int = number(10, at_least=2)
    n_train: int = number(2048, at_least=1)
    n_test: int = number(512, at_least=1)
    seed: int = number(0, at_least=0, at_most=MAX_SEED)


# Training samples of each data set; gaussian has as many as its knob says.
N_TRAIN: dict[str, int | None] = {
    "digits": 1437,
    "line": 4,
    "mnist": 60_000,
    "fashion_mnist": 60_000,
    "cifar10": 50_000,
    "gaussian": None,
}
# Test samples, the shape of a sample, and the outputs a network for them has; gaussian's are knobs too.
N_TEST = {"digits": 360, "line": 4, "mnist": 10_000, "fashion_mnist": 10_000, "cifar10": 10_000}
SAMPLES: dict[str, tuple[tuple[int, ...], int]] = {
    "digits": ((1, 8, 8), 10),
    "line": ((1,), 1),
    "mnist": ((1, 28, 28), 10),
    "fashion_mnist": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 10),
}

# -------------------------------------------------------------------------------------------------- measure

without_knobs(
    "measure",
    none="nothing but the loss",
    norms="gradient norms of every layer at every step; all quantities at step 0 and at each evaluation",
)


@option("measure", "full")
@dataclass(frozen=True)
class Full(Option):
    """Norms at every step, and all quantities every ``every`` steps as well."""

    name: str = "full"
    every: int = number(10, at_least=1)
