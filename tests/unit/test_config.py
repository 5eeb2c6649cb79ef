"""Configurations: what composes, what is refused, and that every refusal names key, value and what is allowed."""

from __future__ import annotations

from dataclasses import fields
from importlib.resources import files
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from gradstab.catalogue import experiments, listing
from gradstab.config import GROUPS, OPTIONS, Config, from_hydra, to_container
from gradstab.config.run import Run
from gradstab.errors import ConfigError
from gradstab.run_directory import write_config
from tests.conftest import Compose

ALL_OPTIONS = [(group, name) for group, options in OPTIONS.items() for name in options]
# What an option cannot do without to make sense.
COMPANIONS = {
    ("init", "fixup"): ["model.residual=add"],
    ("model", "lenet5_1998"): [],
}


def test_every_option_has_its_yaml_and_every_yaml_its_option() -> None:
    root = Path(str(files("gradstab.configs")))
    found = {(path.parent.name, path.stem) for path in root.rglob("*.yaml") if path.parent.name in GROUPS}
    assert found == set(ALL_OPTIONS)
    assert len(found) == 79
    # Beside them: train.yaml, and what is Hydra's: its settings, five launchers and the sweepers.
    hydra = list((root / "hydra").rglob("*.yaml"))
    assert len(list((root / "hydra" / "launcher").iterdir())) == 5
    assert len(list(root.rglob("*.yaml"))) == 79 + len(experiments()) + len(hydra) + 1


@pytest.mark.parametrize(("group", "name"), ALL_OPTIONS)
def test_every_option_composes(configure: Compose, group: str, name: str) -> None:
    config = configure(f"{group}={name}", *COMPANIONS.get((group, name), []))
    assert getattr(config, group).name == name


@pytest.mark.parametrize("name", experiments())
def test_every_experiment_composes(configure: Compose, name: str) -> None:
    config = configure(f"experiment={name}")
    assert config.total_steps > 0


def test_experiments_hold_one_for_each_remedy() -> None:
    remedies = {f"remedy_{r}" for r in ("batchnorm", "dropout", "residual", "clipping", "init", "activation")}
    assert remedies | {"vanishing_sigmoid", "exploding_init", "lenet5_mnist", "linear_regression"} <= set(experiments())
    assert all(experiments().values())


def test_defaults(configure: Compose) -> None:
    config = configure()
    names = {group: getattr(config, group).name for group in GROUPS}
    assert names["data"] == "digits"
    assert (names["act"], names["init"]) == ("relu", "kaiming_normal")
    assert (config.model.knobs["depth"], config.model.knobs["width"]) == (20, 128)
    assert (config.batch, config.total_steps) == (128, 1000)


REFUSED = [
    ("model.depth=-1", "model.depth=-1", "at least 0"),
    ("model.depth=2.5", "model.depth=2.5", "whole number"),
    ("model.depth=true", "model.depth=true", "whole number"),
    ("model.width=0", "model.width=0", "width of 1 or more"),
    ("model.width=[8,-1]", "model.width=[8, -1]", "width of 1 or more"),
    ("model.norm=batc", "model.norm=batc", "none, batch, layer"),
    ("model.dropout=1", "model.dropout=1", "below 1"),
    ("loss.label_smoothing=1", "loss.label_smoothing=1", "below 1"),
    ("model.bias=3", "model.bias=3", "true or false"),
    ("optimizer.lr=0", "optimizer.lr=0", "above 0"),
    ("optimizer.lr=nan", "optimizer.lr=nan", "finite"),
    ("optimizer.lr=inf", "optimizer.lr=inf", "finite"),
    ("optimizer.lr=fast", "optimizer.lr=fast", "a number"),
    ("optimizer.lr=null", "optimizer.lr=null", "a number"),
    ("optimizer.lr=1e300", "optimizer.lr=1e300", "at most 1e+30"),
    ("optimizer=adam optimizer.eps=1e-60", "optimizer.eps=1e-60", "allowed: at least 1.5e-45"),
    ("optimizer=rmsprop optimizer.eps=1e-41 precision=bfloat16", "optimizer.eps=1e-41", "allowed: at least 1e-40"),
    ("init=constant init.value=-1e38", "init.value=-1e38", "must be a finite number, at least -1e+30"),
    ("init=constant init.value=inf", "init.value=inf", "must be a finite number, at most 1e+30"),
    ("model.dropout=1e300", "model.dropout=1e300", "must be a finite number, at least 0 and below 1"),
    ("init.gain=" + "9" * 400, "init.gain=999", "finite number"),
    ("data=gaussian data.seed=99999999999", "data.seed=99999999999", "at most 4294967295"),
    ("device=cuda:99999999999", "device=cuda:99999999999", "cuda:N"),
    ("clip=percentile clip.percentile=100", "clip.percentile=100", "below 100"),
    ("clip=percentile clip.window=1", "clip.window=1", "must be a whole number, at least 2 and at most 1000000"),
    ("clip=zclip clip.warmup_steps=50 steps=50", "clip.warmup_steps=50", "less than that"),
    ("schedule=step schedule.step_size=90 steps=50", "schedule.step_size=90", "less than that"),
    ("schedule=warmup_cosine schedule.warmup_steps=90 steps=50", "schedule.warmup_steps=90", "less than that"),
    ("schedule=warmup_cosine schedule.warmup_steps=50 steps=50", "schedule.warmup_steps=50", "less than that"),
    ("schedule=warmup_cosine steps=1", "schedule.warmup_steps=1", "less than that"),
    *(
        (f"schedule={name} schedule.min_lr=0.3 optimizer.lr=0.2", "schedule.min_lr=0.3", "optimizer.lr=0.2; allowed: 0")
        for name in ("cosine", "warmup_cosine", "plateau")
    ),
    ("measure=full measure.every=90 steps=50", "measure.every=90", "less than that"),
    ("init=normal init.std=0 init.gain=2", "init.gain=2.0", "no effect"),
    ("++model.name=lenet5", "model.name", "choose with model="),
    ("act.name=tanh", "act.name", "choose with act="),
    ("seed=-1", "seed=-1", "at least 0"),
    ("seed=1.5", "seed=1.5", "whole number"),
    ("steps=0", "steps=0", "at least 1"),
    ("batch_size=some", "batch_size=some", "full"),
    ("batch_size=0", "batch_size=0", "full"),
    ("batch_size=2000", "batch_size=2000", "1437"),
    ("device=tpu", "device=tpu", "cuda:N"),
    ("precision=float16", "precision=float16", "float32, float64, bfloat16"),
    ("on_divergence=ignore", "on_divergence=ignore", "stop, skip"),
    ("quiet=maybe", "quiet=maybe", "true or false"),
    ("+model.dpeth=3", "model.dpeth=3", "did you mean depth"),
    ("+foo=3", "foo=3", "no such knob"),
    ("+clip.max_norm=3", "clip.max_norm=3", "clip=none"),
    ("model=lenet5 +model.depth=3", "model.depth=3", "model=lenet5"),
    ("steps=5 epochs=2", "epochs=2", "steps=5"),
    ("model.width=[8,8] model.depth=3", "model.width=[8, 8]", "model.depth=3"),
    ("optimizer.lr=-1e300", "optimizer.lr=-1e300", "above 0"),
    ("model.depth=0 model.width=64", "model.width=64", "no effect"),
    ("model.depth=0 model.norm=batch", "model.norm=batch", "no effect"),
    ("model.depth=0 model.dropout=0.5", "model.dropout=0.5", "no effect"),
    ("model.depth=0 model.residual=add", "model.residual=add", "no effect"),
    ("model.depth=0 act=tanh", "act=tanh", "no effect"),
    ("model.depth=1 model.residual=add", "model.residual=add", "no effect"),
    ("model.norm_position=after", "model.norm_position=after", "model.norm=none"),
    ("model=lenet5 model.norm_position=before", "model.norm_position=before", "model.norm=none"),
    ("model.norm=batch batch_size=1", "batch_size=1", "2 samples"),
    ("data=line loss=cross_entropy", "loss=cross_entropy", "mse"),
    ("data=line model=lenet5", "model=lenet5", "deep_mlp"),
    ("data=gaussian model=lenet5_1998", "model=lenet5_1998", "deep_mlp"),
    ("init=zeros init.gain=2", "init.gain=2.0", "no effect"),
    ("init=orthogonal model=lenet5_1998", "init=orthogonal", "C3"),
    ("init=delta_orthogonal model=lenet5_1998", "init=delta_orthogonal", "C3"),
    ("init=identity model=lenet5_1998", "init=identity", "C3"),
    ("init=fixup", "init=fixup", "model.residual=add"),
    ("init=fixup model.residual=scaled", "init=fixup", "model.residual=add"),
    ("init=fixup model=lenet5 model.residual=add model.norm=layer", "init=fixup", "model.norm=none"),
    ("init=fixup model=lenet5_1998", "init=fixup", "model.residual=add"),
    ("init=variance init.sigma_b2=1 model.bias=false", "init.sigma_b2=1.0", "no effect"),
    ("init=critical init.sigma_b2=1 model.bias=false", "init.sigma_b2=1.0", "no effect"),
    ("init=critical init.sigma_b2=-1", "init.sigma_b2=-1", "at least 0"),
    ("constraint=weight_norm init=zeros", "constraint=weight_norm", "init=zeros"),
]


@pytest.mark.parametrize(("overrides", "named", "allowed"), REFUSED)
def test_refused_in_one_line_that_names_key_value_and_what_is_allowed(
    configure: Compose, overrides: str, named: str, allowed: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        configure(*overrides.split(" "))
    (problem,) = [p for p in caught.value.problems if p.startswith(named)]
    assert allowed in problem
    assert "\n" not in problem


def test_all_problems_are_reported_at_once(configure: Compose) -> None:
    with pytest.raises(ConfigError) as caught:
        configure("optimizer.lr=-1", "seed=x", "model.norm=b", "eval_every=0")
    assert [p.split("=")[0] for p in caught.value.problems] == ["seed", "eval_every", "model.norm", "optimizer.lr"]


def test_a_knob_without_effect_is_refused_even_at_its_default(configure: Compose) -> None:
    with pytest.raises(ConfigError, match=r"model\.width=128: no effect"):
        configure("model.depth=0", "model.width=128")


def test_the_length_given_on_the_command_line_stands_against_an_experiments(configure: Compose) -> None:
    config = configure("experiment=lenet5_mnist", "steps=7")
    assert (config.steps, config.epochs, config.total_steps) == (7, None, 7)
    config = configure("experiment=linear_regression", "epochs=9")
    assert (config.steps, config.epochs, config.total_steps) == (None, 9, 9)


def test_a_rate_may_stay_as_it_is(configure: Compose) -> None:
    assert configure("schedule=cosine", "schedule.min_lr=0.2", "optimizer.lr=0.2").schedule.knobs["min_lr"] == 0.2


def test_warmup_is_a_tenth_of_the_steps(configure: Compose) -> None:
    assert configure("schedule=warmup_cosine", "steps=500").schedule.knobs["warmup_steps"] == 50
    assert configure("schedule=warmup_cosine", "steps=3").schedule.knobs["warmup_steps"] == 1


def test_a_list_of_widths_gives_the_depth(configure: Compose) -> None:
    assert configure("model.width=[64,32,16]").model.knobs["depth"] == 3


@pytest.mark.parametrize(
    "value", ['"vanishing,exploding"', "'vanishing, exploding'", "[vanishing,exploding]", '["vanishing,exploding"]']
)
def test_kinds_to_stop_on_in_every_spelling(configure: Compose, value: str) -> None:
    assert configure(f"stop_on={value}").stop_on == ("vanishing", "exploding")
    assert configure("stop_on=saturated").stop_on == ("saturated",)


def test_small_data_sets_become_full_batches(configure: Compose) -> None:
    config = configure("data=line")
    assert (config.batch_size, config.batch, config.loss.name) == ("full", 4, "mse")


def test_epochs_count_whole_batches(configure: Compose) -> None:
    assert configure("epochs=3").total_steps == 3 * (1437 // 128)
    assert configure("epochs=3", "batch_size=full").total_steps == 3


def test_configuration_survives_being_written_and_read(configure: Compose) -> None:
    config = configure("model.width=[9,8]", "act=elu", "act.alpha=0.5", "clip=agc", "measure=full", "seed=7")
    text = OmegaConf.to_yaml(OmegaConf.create(to_container(config)))
    assert from_hydra(OmegaConf.create(text)) == config


def test_a_configuration_is_frozen(configure: Compose) -> None:
    with pytest.raises(AttributeError):
        configure().seed = 3  # type: ignore[misc]


@pytest.mark.parametrize("broken", [None, [], "text", {"model": 3}, {"act": {"name": "nonsense"}}, {"act": {}}])
def test_broken_containers_are_config_errors(broken: object) -> None:
    with pytest.raises(ConfigError):
        from_hydra(broken)


def test_the_listing_names_every_option_and_knob() -> None:
    text = listing()
    for group, options in OPTIONS.items():
        for name, cls in options.items():
            assert f"  {name}" in text
            assert all(f"{group}.{f.name}=" in text for f in fields(cls) if f.name != "name")
            assert cls.__doc__
            assert len(cls.__doc__.splitlines()) == 1
    assert all(name in text for name in experiments())


def test_listing_one_group_or_an_unknown_one() -> None:
    assert listing("clip").startswith("clip\n")
    with pytest.raises(ConfigError, match="did you mean clip"):
        listing("clp")


def test_every_run_scalar_is_in_the_configuration() -> None:
    assert {f.name for f in fields(Run)} <= {f.name for f in fields(Config)}


@pytest.mark.parametrize(
    "text", ["1e3", "-1", ".5", "inf", "nan", "yes", "null", "10min", "full", "a: b", "ü #x", "1_0", "0x1f"]
)
def test_text_in_config_yaml_comes_back_as_text(tmp_path: Path, text: str) -> None:
    settings = {"a": text, "b": [1, 2.5, True, None, 1e-7, text], "c": {"d": (1, 2)}}
    write_config(tmp_path, settings)
    read = OmegaConf.to_container(OmegaConf.load(tmp_path / "config.yaml"))
    assert {key: read[key] for key in settings} == {"a": text, "b": settings["b"], "c": {"d": [1, 2]}}
