"""What a configuration takes: counted against real networks, measured against real runs, refused where too much."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gradstab import capacity
from gradstab.assembly import build
from gradstab.config import OPTIONS
from gradstab.config.probe_options import ProbeKnobs
from gradstab.config.sizes import footprint, in_words
from gradstab.config.training_options import N_TEST, N_TRAIN, SAMPLES
from gradstab.data import load_data
from gradstab.errors import ConfigError
from gradstab.probing import probe
from gradstab.runner import run
from tests.conftest import Compose, Here

GIB = 2**30
MLP = [
    (f"model.depth={len(widths) if isinstance(widths, list) else 3}", f"model.width={widths}".replace(" ", ""), *rest)
    for widths, *rest in (
        (7, "model.norm=batch"),
        (7, "model.norm=layer", "model.residual=add", "model.bias=false"),
        ([5, 7, 7, 6], "model.residual=rezero"),
        ([5, 7], "model.residual=scaled", "model.norm=batch"),
        ([9], "model.dropout=0.5"),
        ([4, 6], "model.bias=false"),
    )
]
LENET = [
    ("model=lenet5", f"model.norm={norm}", f"model.residual={residual}")
    for norm, residual in itertools.product(("none", "batch", "layer"), ("none", "add", "rezero"))
]
NETWORKS = [*MLP, *LENET, ("model=lenet5_1998",)]


@pytest.mark.parametrize("network", NETWORKS, ids=" ".join)
def test_parameters_are_counted_exactly(configure: Compose, network: tuple[str, ...]) -> None:
    for act, constraint in (("relu", "none"), ("prelu", "weight_norm"), ("prelu", "spectral_norm")):
        config = configure(*network, f"act={act}", f"constraint={constraint}", "device=cpu")
        parameters = sum(p.numel() for p in build(config).model.parameters())
        assert footprint(config).parameters == parameters, (act, constraint)


def test_all_models_are_counted(configure: Compose) -> None:
    assert {network[0].removeprefix("model=") for network in NETWORKS if network[0].startswith("model=")} | {
        "deep_mlp"
    } == set(OPTIONS["model"])
    linear = configure("model.depth=0", "data=gaussian", "data.dim=13", "data.classes=3", "device=cpu")
    assert footprint(linear).parameters == 13 * 3 + 3


@pytest.mark.parametrize("name", ["digits", "line"])
def test_data_sets_have_the_sizes_that_are_counted_on(name: str) -> None:
    data = load_data(name)
    assert (len(data.train), len(data.test)) == (N_TRAIN[name], N_TEST[name])
    assert (data.in_shape, data.out_features) == SAMPLES[name]


MEASURED = r"""
import re, sys, tempfile
from pathlib import Path
import torch
torch.set_num_threads(1)
from hydra import compose, initialize_config_module
from gradstab.config import from_hydra, register_schema
from gradstab.config.sizes import footprint
from gradstab.runner import run
register_schema(); initialize_config_module("gradstab.configs", version_base="1.3")
def peak(*words):
    words = [*words, "quiet=true", "device=cpu", "steps=2", "images_after=null"]
    config = from_hydra(compose("train", words), words)
    with tempfile.TemporaryDirectory() as folder:
        run(config, Path(folder) / "run")
    # Not getrusage: its peak begins at that of the process this one was forked from.
    status = Path("/proc/self/status").read_text()
    return config, int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024
words = sys.argv[1:]
_, before = peak("model.depth=2", "model.width=8", *(w for w in words if not w.startswith(("model.w", "model.d"))))
config, after = peak(*words)
print(footprint(config).total / (after - before))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read as Linux tells them")
@pytest.mark.parametrize(
    "words",
    [
        ("model.depth=4", "model.width=1800", "optimizer=adam"),
        pytest.param(
            ("model.depth=4", "model.width=1800", "optimizer=sgd", "measure=none", "precision=float64"),
            marks=pytest.mark.slow,
        ),
        pytest.param(("model.depth=40", "model.width=512", "batch_size=1024", "act=tanh"), marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_estimates_are_near_what_runs_take(words: tuple[str, ...], tmp_path: Path) -> None:
    alone = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    # A mapping for each tensor: what glibc keeps of freed ones, by default, differs by half from run to run.
    alone["MALLOC_MMAP_THRESHOLD_"] = str(1 << 16)
    command = [sys.executable, "-c", MEASURED, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=alone)
    assert done.returncode == 0, done.stderr
    assert 0.7 < float(done.stdout) < 1.3


# ------------------------------------------------------------------------------------------------- refused

ABSURD = [
    (("model.depth=99999",), "model.depth=99999: would take ", "allowed here: at most "),
    (("model.width=10000000",), "model.width=10000000: would take 28 PiB", "allowed here: at most "),
    (("model.width=[10000000,3,10000000]",), "model.width=[…, 10000000, …]: would take ", "allowed here: at most"),
    (("data=gaussian", "data.n_train=1000000000000"), "data.n_train=1000000000000: would take 415 TiB", "at most"),
    (("data=gaussian", "data.n_test=1000000000000"), "data.n_test=1000000000000: would take ", "at most"),
    (("data=gaussian", f"data.dim={10**30}"), f"data.dim={10**30}: would take ", "at most"),
    (("data=gaussian", "data.classes=100000000000"), "data.classes=100000000000: would take ", "at most"),
    (
        ("data=gaussian", "data.n_train=1000000", "batch_size=full", "data.dim=10"),
        "batch_size=full: would take ",
        "at most",
    ),
]


@pytest.fixture
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 8 GiB free, on which nothing may be read, drawn or predicted."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("allocated before the refusal")

    monkeypatch.setattr(capacity, "free_memory", lambda: 8 * GIB)
    for place in ("gradstab.assembly.load_data", "gradstab.probing.load_data", "gradstab.assembly.build_initialised"):
        monkeypatch.setattr(place, never)
    monkeypatch.setattr("gradstab.examination.theory_record", never)


@pytest.mark.usefixtures("small_machine")
@pytest.mark.parametrize(("words", "first", "last"), ABSURD, ids=[" ".join(words)[:40] for words, *_ in ABSURD])
def test_absurd_sizes_are_refused_before_anything_is_allocated(
    configure: Compose, tmp_path: Path, words: tuple[str, ...], first: str, last: str
) -> None:
    config = configure(*words, "device=cpu")
    with pytest.raises(ConfigError) as to_train:
        run(config, tmp_path / "run")
    with pytest.raises(ConfigError) as to_probe:
        probe(config, ProbeKnobs())
    assert str(to_train.value).startswith(first)
    for said in map(str, (to_train.value, to_probe.value)):
        assert "\n" not in said
        assert "of memory (" in said
        assert "this machine has 8 GiB free" in said
        assert last in said
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("small_machine")
@pytest.mark.parametrize(
    ("words", "here_too"),
    [
        (("model.depth=100001", "model.width=1"), False),
        ((f"model.depth={10**25}", "model.width=1"), False),
        (("model.depth=1000000",), True),
    ],
    ids=["fits", "absurd", "fits nowhere"],
)
def test_what_is_too_deep_anywhere_is_no_matter_of_memory(
    configure: Compose, tmp_path: Path, words: tuple[str, ...], here_too: bool
) -> None:
    config = configure(*words, "device=cpu")
    with pytest.raises(ConfigError) as to_train:
        run(config, tmp_path / "run")
    with pytest.raises(ConfigError) as to_probe:
        probe(config, ProbeKnobs())
    plain = f"{words[0]}: networks of more than 100,000 layers are refused on any machine; allowed: at most 100000"
    for said in map(str, (to_train.value, to_probe.value)):
        assert said == plain or (here_too and said.startswith(f"{plain}, and here "))
    deepest = configure("model.depth=100000", "model.width=1", "device=cpu")
    capacity.check_host(deepest)


@pytest.mark.usefixtures("small_machine")
@pytest.mark.parametrize("command", ["train", "probe"])
def test_absurd_sizes_are_bad_input(here: Here, tmp_path: Path, command: str) -> None:
    done = here(command, "model.depth=1000000", "device=cpu")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("gradstab: model.depth=1000000: networks of more than 100,000 layers are refused ")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("small_machine")
@pytest.mark.parametrize("words", [words for words, *_ in ABSURD if "10000000" not in words[0]], ids=" ".join)
def test_what_is_called_allowed_fits(configure: Compose, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        capacity.check_host(configure(*words))
    said = str(caught.value)
    key = said.partition("=")[0]
    most = int(said.partition("at most ")[2].split()[0])
    fitting = [word for word in words if not word.startswith(f"{key}=")]
    capacity.check_host(configure(*fitting, f"{key}={most}"))
    with pytest.raises(ConfigError):
        capacity.check_host(configure(*fitting, f"{key}={most * 2}"))


def test_a_probe_measures_everything(configure: Compose) -> None:
    config = configure("model.width=1000", "optimizer=adam", "measure=none")
    assert footprint(config, probing=True).total > footprint(config).total


def test_on_another_device_this_machine_holds_data_and_initial_weights(
    configure: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure("model.depth=20", "model.width=4000", "optimizer=adam")
    needed = footprint(config)
    monkeypatch.setattr(capacity, "free_memory", lambda: needed.total // 2)
    capacity.check_host(config, elsewhere=True)
    with pytest.raises(ConfigError, match="this machine has"):
        capacity.check_host(config)
    with pytest.raises(ConfigError, match=r"model\.width=4000: .*cuda:0 has .* free"):
        capacity.check_device(config, needed.total // 2, "cuda:0")
    capacity.check_device(config, needed.total, "cuda:0")


def test_precision_counts(configure: Compose) -> None:
    config = configure("model.width=1000")
    sizes = [footprint(replace(config, precision=name)).total for name in ("bfloat16", "float32", "float64")]
    assert sizes[0] < sizes[1] < sizes[2]


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 B"), (999, "999 B"), (1536, "1.5 KiB"), (8 * GIB, "8 GiB"), (2**62, "4 EiB"), (10**320, "more than 1e300")],
)
def test_sizes_in_words(size: int, words: str) -> None:
    assert in_words(size).startswith(words)


# -------------------------------------------------------------------------------------------- what there is


def test_free_memory_is_what_the_tightest_limit_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = tmp_path / "group"
    group.mkdir()
    (group / "memory.max").write_text("3000\n")
    (group / "memory.current").write_text("1000\n")
    (group / "memory.stat").write_text("anon 500\ninactive_file 300\n")
    names = ("memory.max", "memory.current", "inactive_file")
    assert capacity._left_in(group, *names) == [2300]
    (group / "memory.max").write_text("max\n")
    assert capacity._left_in(group, *names) == []
    assert capacity._left_in(tmp_path / "absent", *names) == []
    monkeypatch.setattr(capacity, "_limits_of_groups", lambda: [5000, 2300])
    assert capacity.free_memory() == 2300
    monkeypatch.setattr(capacity, "_limits_of_groups", lambda: [-10])
    assert capacity.free_memory() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="as Linux tells it")
def test_a_limit_of_the_process_counts() -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32)); "
        "from gradstab.capacity import free_memory; print(free_memory())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 2**28 < int(done.stdout) < 2**32
