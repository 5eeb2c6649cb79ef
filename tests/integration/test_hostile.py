"""What others may have made of the files around a run: damaged, lying, hostile, or out of reach. One line, no harm."""

from __future__ import annotations

import ctypes
import gzip
import io
import json
import os
import pickle
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gradstab import checkpoint
from gradstab.cli import main
from gradstab.data import load_data
from gradstab.errors import DataError, GradstabError
from gradstab.events import read_records
from gradstab.run_directory import CONFIG_FILE, RUN_FILE, identity, read_run
from gradstab.runner import run
from tests.conftest import Compose, Here
from tests.integration.test_report import make_run

TINY = ("model.depth=2", "model.width=4", "batch_size=16", "device=cpu", "quiet=true", "images_after=null")
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


def gradstab(*args: str, cwd: Path, **how: Any) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"OMP_NUM_THREADS": "1", "SECRET": "hush"}
    command = [sys.executable, "-m", "gradstab", *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, check=False, timeout=120, **how)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def one_line(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("gradstab: ")
    assert "GRADSTAB_TRACEBACK" not in lines[0]
    for word in words:
        assert word in lines[0], done.stderr


# ------------------------------------------------------------------------------------------------ data files

PREFIXES = {True: "train", False: "t10k"}


def idx(values: np.ndarray, magic: int | None = None, shape: tuple[int, ...] | None = None) -> bytes:
    """A file as MNIST's are: type and number of dimensions, their sizes, the bytes."""
    shape = values.shape if shape is None else shape
    header = struct.pack(">I", 0x0800 + len(shape) if magic is None else magic)
    return header + struct.pack(f">{len(shape)}I", *shape) + values.astype(np.uint8).tobytes()


@pytest.fixture(scope="module")
def mnist_like(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A torchvision root with files of MNIST's sizes, all zeros but for the labels."""
    root = tmp_path_factory.mktemp("data")
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for train, count in ((True, 60_000), (False, 10_000)):
        (raw / f"{PREFIXES[train]}-images-idx3-ubyte").write_bytes(idx(np.eye(28)[None].repeat(count, 0)))
        (raw / f"{PREFIXES[train]}-labels-idx1-ubyte").write_bytes(idx(np.arange(count) % 10))
    return root


IMAGES, LABELS = "train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
BROKEN_DATA: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "empty": (IMAGES, lambda _: b""),
    "cut in its header": (IMAGES, lambda content: content[:9]),
    "cut in its images": (IMAGES, lambda content: content[:100_000]),
    "longer than it says": (IMAGES, lambda content: content + b"more"),
    "junk": (IMAGES, lambda _: os.urandom(0) + bytes(range(256)) * 4),
    "still compressed": (IMAGES, lambda content: gzip.compress(content[:10_000])),
    "of another type": (IMAGES, lambda content: struct.pack(">I", 0x0D03) + content[4:]),
    "of more dimensions": (IMAGES, lambda content: struct.pack(">I", 0x0804) + content[4:]),
    "of absurd sizes": (IMAGES, lambda content: content[:4] + struct.pack(">III", 2**31, 2**31, 2**31) + content[16:]),
    "fewer images": (IMAGES, lambda content: content[:4] + struct.pack(">I", 5) + content[8 : 16 + 5 * 784]),
    "no images": (IMAGES, lambda content: content[:4] + struct.pack(">I", 0) + content[8:16]),
    "other images": (IMAGES, lambda content: content[:8] + struct.pack(">II", 14, 56) + content[16:]),
    "fewer labels": (LABELS, lambda content: content[:4] + struct.pack(">I", 7) + content[8:15]),
    "labels out of range": (LABELS, lambda content: content[:-1] + b"\x4d"),
    "images for labels": (LABELS, lambda _: idx(np.zeros((3, 28, 28)))),
}


@pytest.mark.parametrize(
    ("case", "download"), [*((case, False) for case in BROKEN_DATA), ("empty", True), ("fewer labels", True)]
)
def test_damaged_mnist_is_called_damaged(
    tmp_path: Path, mnist_like: Path, monkeypatch: pytest.MonkeyPatch, case: str, download: bool
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise AssertionError("what is there must not be fetched")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    name, change = BROKEN_DATA[case]
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in (mnist_like / "MNIST" / "raw").iterdir():
        (raw / path.name).symlink_to(path)
    content = (raw / name).read_bytes()
    (raw / name).unlink()
    (raw / name).write_bytes(change(content))
    with pytest.raises(DataError, match=r"^data\.root=.*: MNIST is damaged.*remove its folder") as caught:
        load_data("mnist", root=str(tmp_path), download=download)
    assert "\n" not in str(caught.value)


def test_undamaged_files_of_mnists_sizes_are_taken(mnist_like: Path) -> None:
    assert len(load_data("mnist", root=str(mnist_like), download=False).train) == 60_000


@linux
@pytest.mark.parametrize("kind", ["folder", "pipe", "loop"])
def test_data_files_that_are_no_files_are_missing(tmp_path: Path, kind: str) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for train in (True, False):
        for rest in ("images-idx3-ubyte", "labels-idx1-ubyte"):
            _make(kind, raw / f"{PREFIXES[train]}-{rest}")
    with pytest.raises(DataError, match="is not there"):
        load_data("mnist", root=str(tmp_path), download=False)


@pytest.mark.parametrize(
    "content",
    [b"", b"junk", gzip.compress(b"1,2,3\n"), gzip.compress(b"x,y\n")[:-4], b"\x1f\x8b"],
    ids=["empty", "junk", "other columns", "no numbers and cut off", "cut off at once"],
)
def test_a_damaged_file_of_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    path = tmp_path / "datasets" / "data" / "digits.csv.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)

    class Spec:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr("importlib.util.find_spec", lambda _: Spec)
    with pytest.raises(DataError, match=r"data=digits: .*reinstall scikit-learn") as caught:
        load_data("digits")
    assert "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------------- config.yaml


@pytest.fixture
def stranger(configure: Compose, tmp_path: Path) -> Path:
    """A run's directory as it may come from somebody else."""
    run(configure(*TINY, "steps=2"), tmp_path / "stranger")
    return tmp_path / "stranger"


CALLBACK = "callbacks:\n    own:\n      _target_: os.system\n      command: touch run_by_config\n"
EVIL_CONFIGS = {
    "a callback": (lambda good: f"{good}hydra:\n  {CALLBACK}", "hydra is no setting of a run"),
    "a logger": (lambda good: f"{good}hydra:\n  job_logging:\n    root: 1\n", "hydra is no setting of a run"),
    "another default": (lambda good: good.replace("  - _self_", "  - evil\n  - _self_"), "defaults="),
    "an overriding default": (
        lambda good: good.replace("  - _self_", "  - override hydra/launcher: evil\n  - _self_"),
        "defaults=",
    ),
    "a package": (lambda good: f"# @package hydra.callbacks.own\n{good}", "names a package"),
    "a secret": (lambda good: good.replace("seed: 0", "seed: ${oc.env:SECRET}"), "${oc.env:SECRET} refers"),
    "a hidden secret": (lambda good: good.replace("seed: 0", 'seed: "\\x24{oc.env:SECRET}"'), "refers"),
    "another's folder": (
        lambda good: good.replace("out_dir: null", "out_dir: /tmp/elsewhere"),
        "out_dir=/tmp/elsewhere",
    ),
    "a python object": (lambda good: f"{good}x: !!python/object/apply:os.system [touch run_by_config]\n", "tag"),
    "an own tag": (lambda good: good.replace("seed: 0", "seed: !foo 0"), "tag"),
    "a bomb": (lambda good: "a: &a [x, x]\nb: [*a, *a]\n" + good, "alias"),
    "depth": (lambda good: good + "x: " + "[" * 2000, "nested"),
    "a list": (lambda _: "[1, 2]", "holds no configuration"),
    "nothing": (lambda _: "", "holds no configuration"),
    "no YAML": (lambda _: "seed: [1, }", "is no YAML in line 1"),
    "a null byte": (lambda good: good + "\0", "is no YAML"),
    "an unknown key": (lambda good: good + "sneed: 1\n", "sneed is no setting"),
}


@pytest.mark.parametrize("named", [(), ("--config-name", "config")], ids=["alone", "named"])
@pytest.mark.parametrize("case", EVIL_CONFIGS)
def test_a_strangers_configuration_runs_no_code_and_reads_no_secret(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stranger: Path, case: str, named: tuple[str, ...]
) -> None:
    monkeypatch.setenv("SECRET", "hush")
    change, said = EVIL_CONFIGS[case]
    path = stranger / CONFIG_FILE
    path.write_text(change(path.read_text()))
    (stranger / "evil.yaml").write_text(f"# @package hydra\n{CALLBACK}")
    before = contents(tmp_path)
    done = here("train", "--config-dir", "stranger", *named, "quiet=true", "out_dir=new")
    one_line(done, 2, "config.yaml: ", said)
    assert "hush" not in done.stderr + done.stdout
    assert contents(tmp_path) == before


def test_bytes_that_are_no_text(here: Here, stranger: Path) -> None:
    (stranger / CONFIG_FILE).write_bytes(bytes(range(128, 256)))
    one_line(here("train", "--config-dir", "stranger"), 2, "config.yaml", "UnicodeDecodeError")


def test_a_strangers_other_files_do_not_come_in(here: Here, tmp_path: Path, stranger: Path) -> None:
    for group in ("hydra", "hydra/callbacks", "schema/act", "act"):
        for name in ("quiet", "default", "run", "relu"):
            path = stranger / group / f"{name}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"# @package hydra\n{CALLBACK}")
    assert here("train", "--config-dir", "stranger", "quiet=true", "out_dir=new").returncode == 0
    assert not (tmp_path / "run_by_config").exists()


EVIL_FILES = {
    "a target": ("# @package _global_\nx:\n  _target_: os.system\n", "_target_ names code"),
    "an escaped target": ('# @package _global_\nx:\n  "_tar\\u0067et_": os.system\n', "_target_ names code"),
    "a handler": ("# @package _global_\nhandlers:\n  own:\n    class: subprocess.Popen\n", "class names code"),
    "a factory": ('# @package _global_\nhandlers:\n  own:\n    "()": os.system\n', "() names code"),
    "Hydra's job": ("# @package _global_\nhydra:\n  job:\n    name: x\n", "hydra.job is not"),
    "Hydra's package": ("# @package hydra.job_logging\nroot: 1\n", "Hydra's own settings"),
    "a bomb": (
        "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{b}: &{b} [{','.join(['*' + a] * 10)}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True)),
        "stands for more",
    ),
}


@pytest.mark.parametrize("case", EVIL_FILES)
def test_a_folder_of_configurations_names_no_code(here: Here, tmp_path: Path, case: str) -> None:
    text, said = EVIL_FILES[case]
    path = tmp_path / "mine" / "experiment" / "own.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    one_line(here("train", "--config-dir", "mine", "experiment=own", "out_dir=new"), 2, "own.yaml: ", said)
    assert not (tmp_path / "new").exists()


def test_a_folder_of_plain_configurations_is_composed_from(here: Here, tmp_path: Path) -> None:
    path = tmp_path / "mine" / "experiment" / "own.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("# @package _global_\ndefaults:\n  - override /act: tanh\nseed: 7\nmodel:\n  depth: 2\n")
    assert (
        here("train", "--config-dir", "mine", "experiment=own", "steps=2", "quiet=true", "out_dir=new").returncode == 0
    )
    config = (tmp_path / "new" / CONFIG_FILE).read_text()
    assert "name: tanh" in config
    assert "seed: 7" in config


@pytest.mark.parametrize("name", ["../stranger/config", "/etc/passwd", "..", "a/../../b"])
def test_names_do_not_lead_out_of_their_folder(here: Here, stranger: Path, name: str) -> None:
    one_line(here("train", "--config-dir", str(stranger), "--config-name", name), 2, f"--config-name {name}")


@pytest.mark.parametrize(
    "word", ["experiment=../../../x", "experiment=../act/tanh", "act=../init/zeros", "act=/etc/passwd"]
)
def test_options_do_not_lead_out_of_their_group(here: Here, tmp_path: Path, word: str) -> None:
    one_line(here("train", word), 2, f"{word}: names no option")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------ what is no file, or out of reach


def _make(kind: str, path: Path) -> None:
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.symlink_to(path.parent / "absent")


@pytest.fixture
def in_time() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@linux
@pytest.mark.usefixtures("in_time")
@pytest.mark.parametrize("kind", ["folder", "pipe", "loop", "device", "dangling"])
@pytest.mark.parametrize("name", [RUN_FILE, CONFIG_FILE, "events.out.tfevents.0"])
def test_nothing_waits_for_what_is_no_file(here: Here, tmp_path: Path, kind: str, name: str) -> None:
    run = make_run(tmp_path / "run", steps=3)
    if name.startswith("events"):
        for path in run.glob("events*"):
            path.unlink()
    else:
        (run / name).unlink()
    _make(kind, run / name)
    for words in (("report", "run"), ("status", "run"), ("explain", "run"), ("train", "--resume", "run")):
        done = here(*words)
        assert done.returncode in (0, 1, 2)
        assert all(line.startswith("gradstab: ") for line in done.stderr.splitlines())
        assert "GRADSTAB_TRACEBACK" not in done.stderr
    if name == CONFIG_FILE:
        assert here("train", "--config-dir", "run").returncode in (1, 2)


def _obeying() -> None:
    """In a new process of root's: permissions hold for it as for anybody else (CAP_DAC_OVERRIDE, _READ_SEARCH go)."""
    libc = ctypes.CDLL(None)
    for capability in (1, 2):
        libc.prctl(24, capability, 0, 0, 0)


@linux
def test_folders_that_may_not_be_read_or_written(tmp_path: Path) -> None:
    """Permissions are meant, which do not bind root: hence the processes that give that up."""
    run, shut = (make_run(tmp_path / name, steps=3) for name in ("run", "shut"))
    (tmp_path / "nothing").mkdir()
    before = contents(tmp_path)
    run.chmod(0o555)
    (tmp_path / "nothing").chmod(0)
    shut.chmod(0)

    def obeying(*args: str) -> subprocess.CompletedProcess[str]:
        return gradstab(*args, cwd=tmp_path, preexec_fn=_obeying)

    for folder in ("run", "nothing"):
        done = obeying("train", *TINY, "steps=2", f"out_dir={folder}/x")
        one_line(done, 2, f"out_dir={folder}/x", "Permission denied")
    one_line(obeying("train", "--resume", "shut"), 2, "shut")
    one_line(obeying("report", "shut"), 2, "shut", "Permission denied")
    done = obeying("report", ".", "--out", "page")
    assert "gradstab: shut: cannot be read (Permission denied)\n" in done.stderr
    assert (done.returncode, "(1 run, " in done.stdout) == (0, True)
    shutil.rmtree(tmp_path / "page")
    one_line(obeying("report", "run"), 1, "report.html", "Permission denied")
    assert obeying("status", "run").returncode == 0
    one_line(obeying("status", "shut"), 2, "shut")
    for folder in (run, shut, tmp_path / "nothing"):
        folder.chmod(0o755)
    assert contents(tmp_path) == before


@linux
def test_a_cell_that_may_not_be_read_is_named_and_the_rest_shown(tmp_path: Path) -> None:
    words = ("train", "-m", *TINY, "steps=2", "seed=0,1,2", "out_dir=s")
    assert gradstab(*words, cwd=tmp_path).returncode == 0
    (cell,) = tmp_path.glob("s/001_*")
    cell.chmod(0)

    def obeying(*args: str) -> subprocess.CompletedProcess[str]:
        return gradstab(*args, cwd=tmp_path, preexec_fn=_obeying)

    done = obeying("status", "s")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"pending  {cell.name}: cannot be read (Permission denied)\n" in done.stdout
    assert "1 pending, 2 completed" in done.stdout
    done = obeying(*words)
    reason = f"s/{cell.name}: cannot be written to (Permission denied)"
    assert (done.returncode, done.stderr) == (1, f"gradstab: {cell.name}: failed: {reason} (see s/{cell.name})\n")
    # Nothing has happened to it.
    cell.chmod(0o755)
    assert "3 completed" in gradstab("status", "s", cwd=tmp_path).stdout


@pytest.mark.parametrize(
    "args",
    [
        *(
            ("report", "~nouser/x"),
            ("status", "~nouser/x"),
            ("explain", "~nouser/x"),
            ("train", "--resume", "~nouser/x"),
        ),
        ("report", ".", "--out", "~nouser/x"),
        *(("train", *more, "out_dir='~nouser/x'") for more in ((), ("-m", "seed=0,1"))),
    ],
)
def test_the_home_of_a_user_that_there_is_not(here: Here, args: tuple[str, ...]) -> None:
    one_line(here(*args), 2, "~nouser/x", "no such user has a home")


def test_a_folder_in_place_of_a_file_and_a_file_in_place_of_a_folder(here: Here, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    one_line(here("train", *TINY, "steps=2", "out_dir=file"), 2, "out_dir=file", "cannot be written")
    one_line(here("train", *TINY, "steps=2", "out_dir=file/below"), 2, "out_dir=file/below", "cannot be written")
    one_line(here("report", "file"), 2, "file: is a file")
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("character", ["\x1b[31m", "\n", "\x9b", "\0"])
def test_a_folders_name_holds_no_control_characters(here: Here, tmp_path: Path, character: str) -> None:
    for more in ((), ("-m", "seed=0,1")):
        done = here("train", *more, *TINY, "steps=2", f'out_dir="e{character}x"')
        assert done.returncode == 2
        assert "without control characters" in done.stderr or "cannot be read" in done.stderr
        assert done.stderr.rstrip("\n").isprintable()
    assert not any(tmp_path.iterdir())


@linux
def test_folders_with_control_characters_in_their_names_are_told_without(here: Here, tmp_path: Path) -> None:
    folder = "e\x1b[31mx"
    words = ("train", "-m", *TINY, "steps=2", "seed=0,1", "quiet=false")
    said = [here(*words, f'hydra.sweep.dir="{folder}"')]
    said += [here("status", path) for path in (folder, next(tmp_path.glob("e*/0*")).relative_to(tmp_path).as_posix())]
    said += [here("train", "--resume", f"{folder}/{next(tmp_path.glob('e*/0*')).name}")]
    for done in said:
        assert "e\N{REPLACEMENT CHARACTER}[31mx" in done.stdout
        assert done.stdout.replace("\n", "").isprintable()
        assert (done.returncode, done.stderr) == (0, "")


# ------------------------------------------------------------------------------------------- links in a run


@linux
@pytest.mark.parametrize("link", ["report_figures", "report_figures/two"])
def test_a_report_writes_through_no_link(here: Here, tmp_path: Path, link: str) -> None:
    for name in ("one", "two"):
        make_run(tmp_path / "runs" / name, steps=3)
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "folder").mkdir()
    (tmp_path / "runs/report.html").symlink_to(tmp_path / "precious")
    (tmp_path / "runs" / link).parent.mkdir(exist_ok=True)
    (tmp_path / "runs" / link).symlink_to(tmp_path / "folder")
    done = here("report", "runs", "--figures", "png")
    assert (tmp_path / "precious").read_text() == "kept"
    assert not list((tmp_path / "folder").iterdir())
    one_line(done, 1, f"{link}: is a link")


@linux
def test_a_claim_that_is_a_link_harms_nothing(here: Here, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    run = tmp_path / "run"
    run.mkdir()
    (run / ".claim").symlink_to(tmp_path / "precious")
    here("train", *TINY, "steps=2", "out_dir=run")
    assert (tmp_path / "precious").read_text() == "kept"


# ------------------------------------------------------------------------------------------------- full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = sys.platform == "linux" and os.geteuid() == 0 and shutil.which("mount")
    if (
        not mounted
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("no small disk can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


def test_a_disk_that_fills_during_a_run(small_disk: Path) -> None:
    (small_disk / "kept.txt").write_text("kept")
    words = ("train", *TINY, "steps=20000", "measure=full", "measure.every=2", "checkpoint.every=50", "out_dir=run")
    done = gradstab(*words, cwd=small_disk)
    one_line(done, 1, "No space left on device")
    run = small_disk / "run"
    assert (small_disk / "kept.txt").read_text() == "kept"
    assert read_run(run)["status"] in ("running", "failed")
    steps = read_records(run).scalars["train/loss"].steps.tolist()
    assert steps == list(range(len(steps)))
    assert len(steps) > 50
    assert not [path.name for path in run.rglob(".*") if path.name != ".claim"]
    # What stands there is of use once there is room again.
    assert gradstab("status", "run", cwd=small_disk).returncode == 0
    assert "run.json" in {path.name for path in run.iterdir()}


def test_a_disk_that_is_full_before_a_run(small_disk: Path) -> None:
    (small_disk / "kept.bin").write_bytes(bytes(150_000))
    with pytest.raises(OSError, match="No space"):
        (small_disk / "rest").write_bytes(bytes(500_000))
    done = gradstab("train", *TINY, "steps=5", "out_dir=run", cwd=small_disk)
    assert done.returncode in (1, 2)
    one_line(done, done.returncode, "No space left on device", "run")
    assert (small_disk / "kept.bin").read_bytes() == bytes(150_000)


# ------------------------------------------------------------------------------------------------ in use


def test_a_directory_in_use_is_refused_and_left_alone(here: Here, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gradstab", "train", *TINY, "steps=1000000", "out_dir=run"]
    with subprocess.Popen(command, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
        try:
            for _ in range(600):
                if (tmp_path / "run" / RUN_FILE).exists() and process.poll() is None:
                    break
                time.sleep(0.1)
            for words in (("train", *TINY, "steps=3", "out_dir=run"), ("train", "--resume", "run")):
                done = here(*words)
                assert done.returncode == 2, done.stderr
                assert done.stderr.count("\n") == 1
            assert process.poll() is None
        finally:
            process.kill()
    assert json.loads((tmp_path / "run" / RUN_FILE).read_text())["status"] == "running"
    assert "interrupted" in here("status", "run").stdout


# --------------------------------------------------------------------------------------------- checkpoints


class Evil:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch run_by_checkpoint",)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    done = gradstab("train", *TINY, "steps=20", "out_dir=run", "checkpoint.every=10", "eval_every=5", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture
def interrupted(finished: Path, tmp_path: Path) -> Path:
    """A run with one checkpoint that has not come to its end."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    record = json.loads((run / RUN_FILE).read_text())
    (run / RUN_FILE).write_text(json.dumps(record | {"status": "interrupted"}))
    for path in list(checkpoint.kept(run))[:-1]:
        path.unlink()
    assert len(checkpoint.kept(run)) == 1
    return run


def _saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def _changed(good: bytes, **changes: object) -> bytes:
    content = torch.load(io.BytesIO(good), weights_only=True)
    return _saved(content | changes)


def _other_shapes(good: bytes) -> bytes:
    content = torch.load(io.BytesIO(good), weights_only=True)
    parts = content["parts"]
    model = {key: torch.zeros(3, 3) for key in parts["model"]}
    return _saved(content | {"parts": parts | {"model": model}})


def _flipped(good: bytes) -> bytes:
    content = bytearray(good)
    content[len(content) // 2] ^= 0x40
    return bytes(content)


CHECKPOINTS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "junk": lambda _: bytes(range(256)) * 20,
    "flipped": _flipped,
    "a pickle with code": lambda _: pickle.dumps(Evil()),
    "code in torch's own format": lambda _: _saved(Evil()),
    "code beside what belongs there": lambda good: _saved(
        torch.load(io.BytesIO(good), weights_only=True) | {"x": Evil()}
    ),
    "a list": lambda _: _saved([1, 2]),
    "another format": lambda good: _changed(good, format=99),
    "another run's": lambda good: _changed(good, identity="0" * 64),
    "no parts": lambda good: _changed(good, parts=None),
    "other shapes": _other_shapes,
    "no events": lambda good: _changed(good, events={"name": "../../etc/passwd", "position": 3}),
    "a negative position": lambda good: _changed(good, events={"name": "x", "position": -1}),
    "a step that is none": lambda good: _changed(good, step="ten"),
    "an unknown object": lambda good: _changed(good, judge={"is": "os:system", "attributes": {}}),
    **{f"cut at {part} %": (lambda good, part=part: good[: len(good) * part // 100]) for part in (1, 10, 40, 80, 99)},
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_a_checkpoint_that_cannot_be_used_is_refused_and_runs_nothing(
    here: Here, tmp_path: Path, interrupted: Path, case: str
) -> None:
    (path,) = checkpoint.kept(interrupted)
    path.write_bytes(CHECKPOINTS[case](path.read_bytes()))
    before = contents(interrupted)
    done = here("train", "--resume", "run")
    assert done.returncode in (1, 2), done.stderr
    assert all(line.startswith("gradstab: ") for line in done.stderr.splitlines())
    assert "GRADSTAB_TRACEBACK" not in done.stderr
    assert not (tmp_path / "run_by_checkpoint").exists()
    after = contents(interrupted)
    after.pop(str(interrupted / RUN_FILE))
    before.pop(str(interrupted / RUN_FILE))
    assert {name: content for name, content in after.items() if "failure" not in name} == before


def test_a_checkpoint_that_unfolds_to_more_memory_than_it_looks(tmp_path: Path) -> None:
    """A tensor of strides 0 is a few bytes for any size; storages are checked against the file."""
    path = tmp_path / "step_00000001.pt"
    torch.save({"format": checkpoint.FORMAT, "identity": identity({}), "x": torch.zeros(1).expand(10**12)}, path)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    try:
        state = checkpoint.read(path, identity({}))
    except GradstabError:
        return
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert state["x"].untyped_storage().nbytes() < 100


def test_main_says_no_more_than_one_line_of_what_was_typed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["\x1b[31mred\nnext line" + "x" * 100_000]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "\x1b" not in said
    assert len(said) < 5000
