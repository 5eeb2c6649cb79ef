"""Configurations of the user's own: what the README says of them, and what is said of usual mistakes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Here

GLOBAL = "# @package _global_\n"


def write(folder: Path, name: str, text: str) -> None:
    path = folder / "mine" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def configured(here: Here, *words: str) -> Any:
    done = here("train", "--config-dir", "mine", *words, "--cfg", "job")
    assert (done.returncode, done.stderr) == (0, "")
    return yaml.safe_load(done.stdout)


def test_what_the_readme_says_of_them(here: Here, tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    said = readme[readme.index("Configurations of your own") :]
    text = re.search(r"```yaml\n(.*?)```\n\n`(.*?)`", said, re.S)
    assert text is not None
    write(tmp_path, "experiment/small.yaml", text[1])
    shown = here(*shlex.split(text[2])[1:], "--cfg", "job")
    assert (shown.returncode, shown.stderr) == (0, "")
    small = yaml.safe_load(shown.stdout)
    assert (small["act"]["name"], small["model"]["depth"], small["steps"]) == ("tanh", 5, 200)
    write(tmp_path, "act/leaky.yaml", "name: leaky_relu\nslope: 0.3\n")
    assert configured(here, "act=leaky")["act"] == {"name": "leaky_relu", "slope": 0.3}
    write(tmp_path, "own.yaml", "defaults: [train, _self_]\nseed: 3\n")
    own = configured(here, "--config-name", "own", "act=tanh")
    assert (own["seed"], own["act"]["name"]) == (3, "tanh")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            GLOBAL + "defaults: [override /foo: tanh]",
            "defaults: override /foo: there is no such group; allowed: model,",
        ),
        (GLOBAL + "defaults: [override act: tanh]", "defaults: override act: write override /act, with the slash"),
        (GLOBAL + "defaults: [act: tanh]", "defaults: act: tanh: write override /act: tanh"),
        (GLOBAL + "defaults: {act: tanh}", "defaults: must be a list, such as [override /act: tanh]"),
        (GLOBAL + "defaults: [tanh]", "defaults: tanh: there is no such configuration"),
        (GLOBAL + "act: tanh", "act: tanh: write defaults: [override /act: tanh]"),
        (GLOBAL + "clip: norm", "clip: norm: write defaults: [override /clip: norm]"),
        (GLOBAL + "model: 3", "model: 3: write defaults: [override /model: OPTION]; allowed: deep_mlp"),
        (GLOBAL + "- act", "is a list; allowed: keys with values"),
        (GLOBAL + "steps: 2\nsteps: 3", "found duplicate key steps in line 3; allowed: each key once"),
        ("steps: 2", "write '# @package _global_' as its first line"),
        ("defaults: [override /act: tanh]", "write '# @package _global_' as its first line"),
    ],
)
def test_mistakes_in_an_experiment(here: Here, tmp_path: Path, text: str, told: str) -> None:
    write(tmp_path, "experiment/small.yaml", text)
    done = here("train", "--config-dir", "mine", "experiment=small", "quiet=true")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "experiment/small.yaml: " in done.stderr
    assert told in done.stderr


def test_an_option_is_chosen_twice(here: Here, tmp_path: Path) -> None:
    write(tmp_path, "experiment/small.yaml", GLOBAL + "defaults: [/act: tanh]")
    done = here("train", "--config-dir", "mine", "experiment=small")
    assert done.stderr == "gradstab: act: is chosen twice; in a file's defaults, write override /act: OPTION\n"


def test_an_option_without_a_name(here: Here, tmp_path: Path) -> None:
    write(tmp_path, "act/my.yaml", "slope: 0.3")
    done = here("probe", "--config-dir", "mine", "act=my")
    assert done.returncode == 2
    assert done.stderr.startswith("gradstab: act=my: its file names no option; write in it name: leaky_relu; allowed: ")
    assert done.stderr.count("\n") == 1


def test_a_configuration_without_defaults(here: Here, tmp_path: Path) -> None:
    write(tmp_path, "plain.yaml", "seed: 3")
    words = ("train", "--config-dir", "mine", "--config-name", "plain")
    for done in (here(*words), here(*words, "act=tanh")):
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "defaults: [train, _self_]" in done.stderr
    write(tmp_path, "plain.yaml", "defaults: [train, _self_]\nact: tanh")
    assert "plain.yaml: act: tanh: write defaults: [train, override /act: tanh, _self_]" in here(*words).stderr
    write(tmp_path, "plain.yaml", "defaults: [train, override /act: tanh, _self_]")
    assert configured(here, "--config-name", "plain")["act"]["name"] == "tanh"


def test_a_folder_with_an_equals_sign_is_no_override(here: Here, tmp_path: Path) -> None:
    write(tmp_path, "experiment/small.yaml", GLOBAL + "defaults: [override /foo: tanh]")
    (tmp_path / "mine").rename(tmp_path / "act=null")
    assert "experiment/small.yaml: " in here("train", "--config-dir", "act=null", "experiment=small").stderr
