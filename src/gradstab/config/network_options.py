"""What a network is made of: the options of ``model``, ``act`` and ``init``."""

from __future__ import annotations

from dataclasses import dataclass, make_dataclass
from typing import Any

from gradstab.config.fields import checked, choice, number, positive_int
from gradstab.config.registry import Option, option, without_knobs


def _width_problem(value: Any) -> str | None:
    widths = value if isinstance(value, list | tuple) else [value]
    return None if widths and all(map(positive_int, widths)) else "must be a width of 1 or more, or a list of them"


# ---------------------------------------------------------------------------------------------------- model


@option("model", "deep_mlp")
@dataclass(frozen=True)
class DeepMLP(Option):
    """A multilayer perceptron of any depth; residual blocks x + Wφ(x) (He et al. 2016, arXiv:1603.05027)."""

    name: str = "deep_mlp"
    depth: int | None = number(None, at_least=0)
    width: Any = checked(128, _width_problem, "a width, or a list with one for each hidden layer")
    norm: str = choice("none", "none", "batch", "layer")
    norm_position: str | None = choice(None, "before", "after")
    dropout: float = number(0.0, at_least=0, below=1)
    residual: str = choice("none", "none", "add", "scaled", "rezero")
    bias: bool = True


@option("model", "lenet5")
@dataclass(frozen=True)
class LeNet5(Option):
    """LeNet-5 as it is used today: full C3, pooling without weights, 61,706 parameters (LeCun et al. 1998)."""

    name: str = "lenet5"
    pooling: str = choice("max", "avg", "max")
    norm: str = choice("none", "none", "batch", "layer")
    norm_position: str | None = choice(None, "before", "after")
    dropout: float = number(0.0, at_least=0, below=1)
    residual: str = choice("none", "none", "add", "scaled", "rezero")


without_knobs(
    "model",
    lenet5_1998="LeNet-5 as published: C3 connection table, trainable subsampling, scaled tanh (LeCun et al. 1998)",
)

# ---------------------------------------------------------------------------------------------- activations

without_knobs(
    "act",
    identity="φ(x) = x: a deep linear network (Saxe et al. 2014, arXiv:1312.6120)",
    sigmoid="logistic function, slope at most 1/4: the classic vanishing gradient (Hochreiter 1991)",
    tanh="hyperbolic tangent, slope 1 at 0 (LeCun et al. 1998, Efficient BackProp)",
    scaled_tanh="1.7159 tanh(2x/3), so that ±1 map to ±1 (LeCun et al. 1998, Efficient BackProp)",
    hardtanh="x clipped to [-1, 1] (Collobert 2004)",
    softsign="x / (1 + |x|), saturates slowly (Glorot & Bengio 2010)",
    relu="max(0, x) (Nair & Hinton 2010)",
    prelu="leaky ReLU whose slope is learnt, one for each layer (He et al. 2015, arXiv:1502.01852)",
    selu="scaled ELU with a fixed point at mean 0, variance 1 (Klambauer et al. 2017, arXiv:1706.02515)",
    gelu="x Φ(x), Φ the normal distribution function (Hendrycks & Gimpel 2016, arXiv:1606.08415)",
    silu="x sigmoid(x), also called swish (Ramachandran et al. 2017, arXiv:1710.05941)",
    mish="x tanh(softplus(x)) (Misra 2019, arXiv:1908.08681)",
    softplus="log(1 + e^x), a smooth ReLU (Dugas et al. 2001)",
    erf="Gauss error function, whose mean-field theory is closed-form (Williams 1997)",
)


@option("act", "leaky_relu")
@dataclass(frozen=True)
class LeakyReLU(Option):
    """x for x > 0, slope·x below (Maas et al. 2013)."""

    name: str = "leaky_relu"
    slope: float = number(0.01)


@option("act", "elu")
@dataclass(frozen=True)
class ELU(Option):
    """x for x > 0, alpha (e^x - 1) below (Clevert et al. 2016, arXiv:1511.07289)."""

    name: str = "elu"
    alpha: float = number(1.0, above=0)


# ------------------------------------------------------------------------------------------- initialisation


def _init(name: str, description: str, **knobs: Any) -> None:
    """Register an initialisation scheme; each has ``gain``, the factor on the weights it draws."""
    namespace: dict[str, Any] = {"__doc__": description}
    annotated = [("name", str, name), *((key, float, knob) for key, knob in knobs.items())]
    annotated.append(("gain", float, number(1.0, above=0)))
    option("init", name)(make_dataclass(name, annotated, bases=(Option,), frozen=True, namespace=namespace))


_init("default", "PyTorch's own: weights and biases uniform in ±1/√fan_in")
_init("zeros", "all weights 0: no symmetry is ever broken")
_init("constant", "all weights one value", value=number(0.01))
_init("normal", "normal with a fixed standard deviation, whatever the width", std=number(0.01, at_least=0))
_init("uniform", "uniform in ±bound, whatever the width", bound=number(0.05, at_least=0))
_init("xavier_uniform", "variance 2/(fan_in + fan_out), uniform (Glorot & Bengio 2010)")
_init("xavier_normal", "variance 2/(fan_in + fan_out), normal (Glorot & Bengio 2010)")
_init("kaiming_uniform", "variance 2/fan_in, 2/((1 + slope²) fan_in) for leaky ReLU, uniform (He et al. 2015)")
_init("kaiming_normal", "variance 2/fan_in, 2/((1 + slope²) fan_in) for leaky ReLU, normal (He et al. 2015)")
_init("lecun_normal", "variance 1/fan_in, normal (LeCun et al. 1998, Efficient BackProp)")
_init("orthogonal", "random orthogonal matrices (Saxe et al. 2014, arXiv:1312.6120)")
_init(
    "delta_orthogonal",
    "orthogonal at the kernel's centre, 0 elsewhere; dense layers orthogonal (Xiao et al. 2018, arXiv:1806.05393)",
)
_init("identity", "the identity matrix; for convolutions, a kernel that passes its input on")
_init(
    "variance",
    "variances sigma_w2/fan_in and sigma_b2, the plane of mean-field theory (Poole et al. 2016, arXiv:1606.05340)",
    sigma_w2=number(1.0, at_least=0),
    sigma_b2=number(0.0, at_least=0),
)
_init(
    "critical",
    "normal at the activation's edge of chaos, biases of variance sigma_b2 (Schoenholz et al. 2017, arXiv:1611.01232)",
    sigma_b2=number(0.0, at_least=0),
)
_init(
    "lsuv",
    "orthonormal, then each layer's output scaled to variance 1 (Mishkin & Matas 2016, arXiv:1511.06422)",
)
_init("fixup", "for residual networks without norm: branches start at 0 (Zhang et al. 2019, arXiv:1901.09321)")
