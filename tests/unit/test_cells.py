"""Cells composed quickly are those that Hydra composes."""

from __future__ import annotations

import cProfile
import itertools
import pstats
import random
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import initialize_config_module
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_search_path import SearchPathElement
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from gradstab.cli.cells import CellLoader
from gradstab.config import GROUPS, register_schema
from gradstab.config.registry import OPTIONS

CONFIGS = Path(str(files("gradstab.configs")))


@pytest.fixture
def loader() -> Iterator[ConfigLoaderImpl]:
    """Hydra's own loader over gradstab's configurations."""
    OmegaConf.register_new_resolver("gradstab_sweep_dir", lambda out_dir: out_dir or "s", replace=True)
    GlobalHydra.instance().clear()
    register_schema()
    initialize_config_module("gradstab.configs", version_base="1.3")
    found = GlobalHydra.instance().config_loader()
    assert isinstance(found, ConfigLoaderImpl)
    yield found
    GlobalHydra.instance().clear()


def _master(loader: ConfigLoaderImpl, *words: str, name: str = "train") -> DictConfig:
    return loader.load_configuration(name, list(words), RunMode.MULTIRUN)


def _look(config: DictConfig) -> list[Any]:
    """Everything about a configuration that could differ: values, order, flags, types, parents."""

    def nodes(node: Any, path: str) -> Iterator[tuple[Any, ...]]:
        meta = node._metadata
        yield path, type(node), meta.ref_type, meta.object_type, meta.optional, meta.key, meta.flags
        if OmegaConf.is_dict(node) and not (node._is_none() or node._is_missing() or node._is_interpolation()):
            for key, _ in node.items_ex(resolve=False):
                assert node._get_node(key)._get_parent() is node
                yield from nodes(node._get_node(key), f"{path}.{key}")

    plain = OmegaConf.to_container(config, resolve=False)
    # Which order Hydra met the groups in is no part of what was chosen.
    return [plain, sorted(nodes(config, ""), key=lambda found: str(found[0])), list(config)]


def _same(loader: ConfigLoaderImpl, quick: CellLoader, master: DictConfig, words: list[str]) -> None:
    assert _look(quick.load_sweep_config(master, list(words))) == _look(loader.load_sweep_config(master, words)), words


KINDS = [
    ["act=tanh", "init=critical"],
    ["act=tanh", "init=critical", "seed=3"],
    ["model=lenet5_1998", "data=digits"],
    ["model=deep_mlp", "data=line"],
    ["model=lenet5_1998", "data=line"],
    ["act=tanh", "init=orthogonal", "init.gain=1.5", "seed=3"],
    ["act=elu", "init=variance", "act.alpha=2", "init.sigma_w2=1.7"],
    ["act=elu", "init=variance", "+steps=4", "++steps=5"],
    ["act=elu", "init=variance", "+act.unknown=1", "++act.other={a: 1}"],
    ["act=elu", "init=variance", "~init"],
    ["act=elu", "init=variance", "out_dir='a b, c=d'", 'device="cpu"'],
    ["act=elu", "init=variance", "model.width=[3,4,5]", "stop_on=[exploding]"],
    ["act=elu", "init=variance", "seed=${steps}", "steps=7", "out_dir=x/${act.name}"],
    ["act=elu", "init=variance", "experiment=linear_regression", "steps=3"],
    ["experiment=lenet5_mnist", "init=critical", "epochs=1"],
    ["experiment=exploding_init", "act=tanh", "init=critical", "init.gain=3"],
    ["experiment=remedy_clipping", "act=tanh"],
    ["act=relu", "optimizer=adam", "optimizer.lr=1e-3"],
    ["model=lenet5", "act=relu", "optimizer=adam", "measure.every=7", "measure=full"],
    ["seed=1"],
    [],
    ["hydra.job.num=3", "seed=1"],
    ["act={name: tanh}", "init=critical"],
]


@pytest.mark.parametrize("kinds", [KINDS[::3], pytest.param(KINDS, marks=pytest.mark.slow)], ids=["third", "all"])
def test_every_kind_of_override(loader: ConfigLoaderImpl, kinds: list[list[str]]) -> None:
    quick = CellLoader(loader.get_search_path())
    master = _master(loader, "+hydra.job.env_set.A=b", "hydra.job.config.override_dirname.item_sep=__")
    for words in kinds:
        _same(loader, quick, master, words)


@pytest.mark.slow
def test_choices_at_random(loader: ConfigLoaderImpl) -> None:
    quick = CellLoader(loader.get_search_path())
    draw = random.Random(0)
    for _ in range(2):
        master = _master(loader)
        groups = draw.sample(GROUPS, 3)
        options = {group: draw.sample(list(OPTIONS[group]), min(2, len(OPTIONS[group]))) for group in groups}
        for choice in itertools.product(*options.values()):
            words = [f"{group}={name}" for group, name in zip(options, choice, strict=True)]
            _same(loader, quick, master, [*words, f"seed={draw.randrange(9)}"])


@pytest.mark.parametrize(
    "words",
    [["act=nothing", "init=critical"], ["seed=1", "sed=2"], ["~nothing"], ["act=a,b"], ["act=elu", "~act.alpha"]],
)
def test_what_is_wrong_is_told_as_hydra_tells_it(loader: ConfigLoaderImpl, words: list[str]) -> None:
    quick, master = CellLoader(loader.get_search_path()), _master(loader)
    with pytest.raises(Exception, match=r".") as expected:
        loader.load_sweep_config(master, words)
    with pytest.raises(type(expected.value)) as found:
        quick.load_sweep_config(master, words)
    assert str(found.value) == str(expected.value)


def test_a_cell_is_nobodys_but_its_callers(loader: ConfigLoaderImpl) -> None:
    quick, master = CellLoader(loader.get_search_path()), _master(loader)
    for _ in range(2):
        cell = quick.load_sweep_config(master, ["act=elu", "init=variance", "seed=1"])
        assert cell.act.alpha == 1.0
        assert cell.hydra.overrides.task == ["act=elu", "init=variance", "seed=1"]
        cell.act.alpha = 99.0
        cell.hydra.overrides.task.append("seed=2")


def test_other_peoples_files_are_composed_whole(loader: ConfigLoaderImpl, tmp_path: Path) -> None:
    """An option that depends on two groups' choices cannot be seen from cells that differ in one of them."""
    (tmp_path / "both").mkdir()
    (tmp_path / "both/tanh_critical.yaml").write_text("# @package _global_\nseed: 77\n")
    (tmp_path / "mine.yaml").write_text("defaults:\n  - train\n  - optional both: ${act}_${init}\n  - _self_\n")
    search = loader.get_search_path()
    search.get_path().insert(-1, SearchPathElement("mine", f"file://{tmp_path}"))
    loader, quick = ConfigLoaderImpl(search), CellLoader(search)
    master = _master(loader, name="mine")
    for words in (["act=relu", "init=xavier_normal"], ["act=tanh", "init=critical"], ["act=tanh", "init=lsuv"]):
        _same(loader, quick, master, words)
    assert quick.load_sweep_config(master, ["act=tanh", "init=critical"]).seed == 77


def test_what_an_option_chooses_depends_on_no_other_choice() -> None:
    """Which is why cells can be put together from parts; what reaches beyond its own key is seen to."""
    paths = [path for path in CONFIGS.rglob("*.yaml") if path.parent.name in GROUPS]
    assert len(paths) > 70
    for path in paths:
        text = path.read_text(encoding="utf-8")
        assert "@package" not in text
        assert "${" not in str((yaml.safe_load(text) or {}).get("defaults", []))


def test_a_cell_takes_a_fraction_of_the_calls(loader: ConfigLoaderImpl) -> None:
    quick, master = CellLoader(loader.get_search_path()), _master(loader)
    cells = [[f"act={a}", f"init={i}", "seed=1"] for a in ("tanh", "relu") for i in ("critical", "lsuv")]

    def calls(one: ConfigLoaderImpl) -> int:
        profile = cProfile.Profile()
        for words in cells:
            profile.runcall(one.load_sweep_config, master, words)
        return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]

    calls(quick)
    assert calls(quick) < calls(loader) / 5
