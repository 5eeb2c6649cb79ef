"""Initialisation against torch.nn.init, measured variances, singular values and forward passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradstab.activations import build_activation
from gradstab.config import network_options
from gradstab.config.registry import OPTIONS
from gradstab.errors import ConfigError
from gradstab.initializers import SCHEMES, initialize, shares
from gradstab.models import Model, TableConv2d, build_model, parameter_blocks
from gradstab.models.blocks import projections

assert network_options  # importing it is what fills OPTIONS

NAMES = sorted(OPTIONS["init"])
WITHOUT_CHANCE = {"zeros", "constant", "identity"}
NEEDS_DENSE = ["orthogonal", "delta_orthogonal", "identity"]


def build(name: str = "deep_mlp", act: str = "tanh", in_shape: tuple[int, ...] = (30,), **knobs: Any) -> Model:
    torch.manual_seed(99)
    return build_model(name, in_shape=in_shape, out_features=10, activation=partial(build_activation, act), **knobs)


def images(name: str = "lenet5", act: str = "tanh", **knobs: Any) -> Model:
    return build(name, act, (1, 28, 28), **knobs)


def residual_mlp() -> Model:
    return build(depth=4, width=[20, 20, 16, 16], residual="add")


def batch(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7)) + 0.5


def start(model: Model, name: str, *, act: str = "tanh", seed: int = 0, x: Tensor | None = None, **knobs: Any) -> Model:
    """Initialise with the option's own defaults where ``knobs`` say nothing else; returns the model."""
    settings = OPTIONS["init"][name](name).knobs | {k: v for k, v in knobs.items() if k != "act_knobs"}
    act_knobs = OPTIONS["act"][act](act).knobs | knobs.get("act_knobs", {})
    generator = torch.Generator().manual_seed(seed)
    initialize(model, name, act_name=act, act_knobs=act_knobs, generator=generator, batch=x, **settings)
    return model


def weights(model: Model) -> list[Tensor]:
    return [layer.affine.weight.detach().clone() for layer in model.layers]


def biases(model: Model) -> list[Tensor]:
    return [layer.affine.bias.detach().clone() for layer in model.layers]


def equal(left: Iterable[Tensor], right: Iterable[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


# ---------------------------------------------------------------------------------------------- every scheme


def test_every_option_has_a_scheme() -> None:
    assert set(NAMES) == set(SCHEMES)
    assert len(NAMES) == 17


@pytest.mark.parametrize("name", NAMES)
def test_random_numbers_come_from_the_generator_alone(name: str) -> None:
    x = batch(16, 30)
    one, same, other = residual_mlp(), residual_mlp(), residual_mlp()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    start(one, name, x=x)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    start(same, name, x=x)
    start(other, name, seed=1, x=x)
    assert equal(one.parameters(), same.parameters())
    assert equal(weights(one), weights(other)) == (name in WITHOUT_CHANCE)


@pytest.mark.parametrize("name", NAMES)
def test_gain_is_a_factor_on_weights_and_on_nothing_else(name: str) -> None:
    x = batch(16, 30)
    one, three = start(residual_mlp(), name, x=x), start(residual_mlp(), name, x=x, gain=3.0)
    # Behind lsuv's first layer every gain changes the network that the next one is measured on.
    upto = 1 if name == "lsuv" else None
    for a, b in zip(weights(one)[:upto], weights(three)[:upto], strict=True):
        torch.testing.assert_close(3 * a, b)
    assert equal(biases(one), biases(three))
    assert equal([p.weight for p in projections(one)], [p.weight for p in projections(three)])


@pytest.mark.parametrize("name", NAMES)
def test_only_default_variance_and_critical_draw_biases(name: str) -> None:
    settings = {"sigma_b2": 0.5} if name in {"variance", "critical"} else {}
    model = start(residual_mlp(), name, x=batch(16, 30), **settings)
    assert any(bias.any() for bias in biases(model)) == (name in {"default", "variance", "critical"})


@pytest.mark.parametrize("name", NAMES)
def test_projections_are_lecun_normal_and_other_parameters_stay(name: str) -> None:
    model = build(act="prelu", depth=3, width=[300, 200, 300], residual="add")
    (prelus,) = {tuple(layer.activation.weight.tolist()) for layer in model.layers[:-1]}
    start(model, name, act="prelu", x=batch(16, 30))
    assert {tuple(layer.activation.weight.tolist()) for layer in model.layers[:-1]} == {prelus} == {(0.25,)}
    for projection, fan_in in zip(projections(model), (300, 200), strict=True):
        assert projection.weight.std().item() == pytest.approx(1 / math.sqrt(fan_in), rel=0.02)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "fixup"])
def test_norms_alphas_and_subsampling_keep_their_constructors_values(name: str) -> None:
    models = [
        (build(depth=3, width=8, residual="rezero", norm="batch"), batch(16, 30)),
        (images("lenet5", norm="layer", residual="scaled"), batch(8, 1, 28, 28)),
    ]
    if name not in NEEDS_DENSE:
        models.append((images("lenet5_1998"), batch(8, 1, 28, 28)))
    for model, x in models:
        skips = {id(projection.weight) for projection in projections(model)}
        others = [p for p in parameter_blocks(model)[-1] if id(p) not in skips]
        before = [p.detach().clone() for p in others]
        assert before
        start(model, name, x=x)
        assert equal(before, others)


@pytest.mark.parametrize("name", NAMES)
def test_networks_without_biases_are_initialised_too(name: str) -> None:
    model = build(depth=3, width=8, bias=False, residual="add")
    nan = [layer.affine.weight.data.fill_(float("nan")) for layer in model.layers]
    start(model, name, x=batch(16, 30))
    assert len(nan) == 4
    assert all(weight.isfinite().all() for weight in weights(model))


# ----------------------------------------------------------------------------------- independent weights


@pytest.mark.parametrize(
    "make", [lambda: build(depth=3, width=20), images, partial(images, "lenet5_1998")], ids=["mlp", "lenet5", "1998"]
)
def test_default_is_what_pytorch_constructs_from_the_same_seed(make: Callable[[], Model]) -> None:
    drawn, constructed = make(), make()
    for parameter in drawn.parameters():
        nn.init.zeros_(parameter)
    start(drawn, "default", seed=99)
    for a, b in zip(drawn.layers, constructed.layers, strict=True):
        torch.testing.assert_close(a.affine.weight, b.affine.weight)
        torch.testing.assert_close(a.affine.bias, b.affine.bias)


REFERENCES: dict[str, Callable[..., Tensor]] = {
    "xavier_uniform": nn.init.xavier_uniform_,
    "xavier_normal": nn.init.xavier_normal_,
    "kaiming_uniform": partial(nn.init.kaiming_uniform_, nonlinearity="relu"),
    "kaiming_normal": partial(nn.init.kaiming_normal_, nonlinearity="relu"),
    "lecun_normal": partial(nn.init.kaiming_normal_, nonlinearity="linear"),
    "normal": partial(nn.init.normal_, std=0.01),
    "uniform": partial(nn.init.uniform_, a=-0.05, b=0.05),
    "constant": lambda w, generator: nn.init.constant_(w, 0.01),  # noqa: ARG005
    "zeros": lambda w, generator: nn.init.zeros_(w),  # noqa: ARG005
    "orthogonal": nn.init.orthogonal_,
}


@pytest.mark.parametrize("name", sorted(REFERENCES))
@pytest.mark.parametrize("make", [lambda: build(depth=3, width=[20, 7, 30]), images], ids=["mlp", "lenet5"])
def test_schemes_that_torch_has_are_torchs(name: str, make: Callable[[], Model]) -> None:
    generator = torch.Generator().manual_seed(0)
    for weight in weights(start(make(), name)):
        expected = REFERENCES[name](torch.empty_like(weight), generator=generator)
        torch.testing.assert_close(weight, expected)


@pytest.mark.parametrize(
    ("act", "act_knobs", "slope"),
    [("relu", {}, 0.0), ("leaky_relu", {}, 0.01), ("leaky_relu", {"slope": 0.8}, 0.8), ("prelu", {}, 0.25)],
)
@pytest.mark.parametrize("name", ["kaiming_uniform", "kaiming_normal"])
def test_kaiming_counts_the_slope_of_leaky_relus(
    name: str, act: str, act_knobs: dict[str, float], slope: float
) -> None:
    model = start(build(depth=1, width=400), name, act=act, act_knobs=act_knobs)
    reference = getattr(nn.init, f"{name}_")
    generator = torch.Generator().manual_seed(0)
    for weight in weights(model):
        torch.testing.assert_close(weight, reference(torch.empty_like(weight), a=slope, generator=generator))


def test_variance_has_the_variances_asked_for() -> None:
    model = start(build(depth=2, width=[700, 900]), "variance", sigma_w2=1.7, sigma_b2=0.3)
    for weight, bias, rel in zip(weights(model)[:2], biases(model)[:2], (0.03, 0.01), strict=True):
        assert weight.var().item() * weight.shape[1] == pytest.approx(1.7, rel=rel)
        assert bias.var().item() == pytest.approx(0.3, rel=0.15)
        assert weight.mean().abs().item() < 4 * weight.std().item() / math.sqrt(weight.numel())


@pytest.mark.parametrize(
    ("name", "knobs", "variance"),
    [
        ("default", {}, lambda fan_in: 1 / (3 * fan_in)),
        ("lecun_normal", {}, lambda fan_in: 1 / fan_in),
        ("kaiming_normal", {}, lambda fan_in: 2 / fan_in),
        ("kaiming_uniform", {}, lambda fan_in: 2 / fan_in),
        ("xavier_normal", {}, lambda fan_in: 2 / (fan_in + 250)),
        ("xavier_uniform", {}, lambda fan_in: 2 / (fan_in + 250)),
        ("variance", {"sigma_w2": 3.0}, lambda fan_in: 3 / fan_in),
        ("normal", {"std": 0.2}, lambda fan_in: 0.04),  # noqa: ARG005
        ("uniform", {"bound": 0.3}, lambda fan_in: 0.03),  # noqa: ARG005
    ],
)
def test_table_convolution_is_drawn_by_the_fan_of_each_map(
    name: str, knobs: dict[str, float], variance: Callable[[int], float]
) -> None:
    model = images("lenet5_1998")
    c3 = model.layers[1].affine
    assert isinstance(c3, TableConv2d)
    squares = torch.stack(
        [start(model, name, seed=s, **knobs).layers[1].affine.weight.detach() ** 2 for s in range(30)]
    )
    for maps, kernels, inputs in ((6, slice(0, 18), 3), (9, slice(18, 54), 4), (1, slice(54, 60), 6)):
        assert maps * inputs == kernels.stop - kernels.start
        assert squares[:, kernels].mean().item() == pytest.approx(variance(inputs * 25), rel=0.1)


# -------------------------------------------------------------------------------------------- whole matrices


def singular_values(matrix: Tensor) -> Tensor:
    return torch.linalg.svdvals(matrix.double()).float()


@pytest.mark.parametrize("name", ["orthogonal", "delta_orthogonal"])
@pytest.mark.parametrize("gain", [1.0, 1.5])
def test_orthogonal_weights_have_equal_singular_values(name: str, gain: float) -> None:
    for weight in weights(start(build(depth=3, width=[40, 20, 20]), name, gain=gain)):
        torch.testing.assert_close(singular_values(weight), torch.full((min(weight.shape),), gain))


def test_orthogonal_convolutions_are_orthogonal_as_matrices() -> None:
    for weight in weights(start(images(), "orthogonal")):
        torch.testing.assert_close(singular_values(weight.flatten(1)), torch.ones(weight.shape[0]))


def test_orthogonal_deep_linear_network_has_singular_values_of_one() -> None:
    model = build(act="identity", in_shape=(24,), depth=30, width=24)
    start(model, "orthogonal", act="identity")
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x[None])[0], torch.randn(24))
    assert jacobian.shape == (10, 24)
    torch.testing.assert_close(singular_values(jacobian), torch.ones(10), rtol=0, atol=1e-5)


def test_delta_orthogonal_is_orthogonal_at_the_centre_alone() -> None:
    for weight in weights(start(images(), "delta_orthogonal"))[:2]:
        centre = weight[:, :, 2, 2]
        torch.testing.assert_close(centre.T @ centre, torch.eye(centre.shape[1]))
        assert weight.count_nonzero() == centre.count_nonzero()


def test_delta_orthogonal_refuses_a_convolution_that_narrows() -> None:
    with pytest.raises(ConfigError, match=r"init=delta_orthogonal .*C1 has 8 input and 6 output channels"):
        start(build("lenet5", in_shape=(8, 28, 28)), "delta_orthogonal")


def test_identity_passes_its_input_on() -> None:
    model = start(build(act="identity", in_shape=(20,), depth=5, width=20), "identity", gain=0.5)
    x = batch(4, 20)
    torch.testing.assert_close(model(x), x[:, :10] * 0.5**6)
    c1 = start(build("lenet5", in_shape=(3, 32, 32)), "identity").layers[0].affine
    picture = batch(2, 3, 32, 32)
    maps = c1(picture)
    assert torch.equal(maps[:, :3], picture[:, :, 2:-2, 2:-2])
    assert not maps[:, 3:].any()


# ------------------------------------------------------------------------------- schemes that see the network

LSUV_MODELS: list[tuple[Callable[[], Model], tuple[int, ...]]] = [
    (lambda: build(act="relu", depth=6, width=[40, 20, 30, 30, 8, 8]), (64, 30)),
    (lambda: build(depth=4, width=[20, 20, 16, 16], residual="add", norm="batch", dropout=0.5), (64, 30)),
    (lambda: build(depth=4, width=20, norm="batch", norm_position="after"), (64, 30)),
    (lambda: build(depth=4, width=20, residual="rezero", norm="layer"), (64, 30)),
    (lambda: images(residual="scaled", norm="batch"), (16, 1, 28, 28)),
    (lambda: images("lenet5_1998", "scaled_tanh"), (16, 1, 28, 28)),
]


@pytest.mark.parametrize(("make", "shape"), LSUV_MODELS)
@pytest.mark.parametrize("gain", [1.0, 0.3])
def test_lsuv_gives_every_layer_the_variance_aimed_at(
    make: Callable[[], Model], shape: tuple[int, ...], gain: float
) -> None:
    model, x = make(), batch(*shape)
    before = {name: value.clone() for name, value in model.named_buffers()}
    start(model, "lsuv", x=x, gain=gain)
    assert equal(before.values(), dict(model.named_buffers()).values())
    assert all(module.training for module in model.modules())
    assert not any(layer.affine._forward_hooks for layer in model.layers)

    variances: list[float] = []
    for layer in model.layers:
        layer.affine.register_forward_hook(lambda _module, _args, h: variances.append(h.var(correction=0).item()))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    model(x)
    assert variances == pytest.approx([gain**2] * len(model.layers), rel=1e-4)


def test_lsuv_starts_from_orthonormal_weights() -> None:
    for weight in weights(start(build(depth=2, width=20), "lsuv", x=batch(64, 30))):
        values = singular_values(weight)
        torch.testing.assert_close(values, values.mean().expand_as(values))


def test_lsuv_refuses_a_layer_that_puts_out_nothing() -> None:
    with pytest.raises(ConfigError, match=r"init=lsuv cannot scale layer 0 \(hidden\).*deviation 0$"):
        start(build(depth=2, width=20), "lsuv", x=torch.zeros(8, 30))


def test_fixup_starts_with_the_stem_alone() -> None:
    model = start(build(act="relu", depth=5, width=400, residual="add"), "fixup", act="relu", gain=2.0)
    stem, *others = weights(model)
    assert stem.var().item() == pytest.approx(4 * 2 / 30, rel=0.05)
    assert not any(weight.any() for weight in others)
    x = batch(8, 30)
    streams: list[Tensor] = []
    for layer in model.layers[:-1]:
        layer.activation.register_forward_hook(lambda _module, args, _h: streams.append(args[0]))
    assert not model(x).any()
    assert len(streams) == 5
    assert all(torch.equal(stream, x @ stem.T) for stream in streams)


# ------------------------------------------------------------------------------------------ edge of chaos


@pytest.mark.parametrize(
    ("act", "sigma_b2", "act_knobs", "dropout", "sigma_w2"),
    [
        ("relu", 0.0, {}, 0.0, 2.0),
        ("leaky_relu", 0.0, {"slope": 0.5}, 0.0, 1.6),
        ("tanh", 0.05, {}, 0.0, 1.76095),
        ("tanh", 0.05, {}, 0.5, 1.76095 / 2),
        ("sigmoid", 0.0, {}, 0.0, 103.008),
        ("silu", 0.55514317, {}, 0.0, 1.98800468),
    ],
)
def test_critical_draws_at_the_published_edge_of_chaos(
    act: str, sigma_b2: float, act_knobs: dict[str, float], dropout: float, sigma_w2: float
) -> None:
    model = build(act=act, depth=3, width=[400, 300, 500], dropout=dropout)
    start(model, "critical", act=act, act_knobs=act_knobs, sigma_b2=sigma_b2)
    for weight in weights(model)[1:3]:
        assert weight.var().item() * weight.shape[1] == pytest.approx(sigma_w2, rel=0.02)
    assert torch.cat(biases(model)).var().item() == pytest.approx(sigma_b2, rel=0.2, abs=1e-12)


def test_critical_counts_a_convolutions_fan_in() -> None:
    for name in ("lenet5", "lenet5_1998"):
        model = start(images(name, act="relu"), "critical", act="relu")
        c3 = model.layers[1].affine
        for weight, fan_in in [(share.weight, share.fan_in) for share in shares(c3)][-1:]:
            assert fan_in == 150
            assert weight.square().mean().item() == pytest.approx(2 / 150, rel=0.35 if name == "lenet5_1998" else 0.1)


@pytest.mark.parametrize(
    ("act", "sigma_b2", "allowed"),
    [
        ("softplus", 0.0, "allowed: another act"),
        ("softplus", 0.3, "allowed: another act"),
        ("relu", 0.1, r"allowed: init\.sigma_b2=0, or"),
    ],
)
def test_where_there_is_no_edge_of_chaos_critical_says_so(act: str, sigma_b2: float, allowed: str) -> None:
    with pytest.raises(ConfigError, match=allowed) as caught:
        start(build(act=act, depth=2, width=8), "critical", act=act, sigma_b2=sigma_b2)
    assert f"act={act}" in str(caught.value)
    assert "\n" not in str(caught.value)
