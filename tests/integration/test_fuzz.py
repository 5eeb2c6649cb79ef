"""Anything at all as overrides, run.json, config.yaml and event files: an answer in time, and never a traceback.

GRADSTAB_FUZZ=N tries N examples of each in place of the few that are tried otherwise, at random.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

import gradstab.runner
from gradstab.catalogue import CHOICES
from gradstab.cli import main
from gradstab.config import OPTIONS, to_container
from gradstab.report.runs import load
from gradstab.run_directory import CONFIG_FILE, RUN_FILE, write_config
from tests.conftest import Compose
from tests.integration.test_report import make_run

EXAMPLES = int(os.environ.get("GRADSTAB_FUZZ", "0"))
SECONDS = 60
PATIENT = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]


def fuzz(count: int) -> settings:
    # Shrinking would take minutes: words as they were are short enough to see what is wrong.
    return settings(
        max_examples=EXAMPLES or count,
        derandomize=not EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=PATIENT,
    )


class Hung(BaseException):
    """No answer in time."""


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hung(f"no answer within {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def answer(*words: str) -> tuple[int, str, str]:
    """A command's exit code and what it said, held to what any command has to keep to."""
    GlobalHydra.instance().clear()
    sys.argv = ["gradstab"]
    out, err = io.StringIO(), io.StringIO()
    with in_time(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    said = err.getvalue()
    assert code in (0, 1, 2), (code, said)
    assert "Traceback" not in said + out.getvalue(), said
    assert all(line.startswith("gradstab: ") for line in said.split("\n") if line), said
    # What nobody thought of is told in this way.
    assert "GRADSTAB_TRACEBACK" not in said, said
    assert code == 0 or said, "refused without a word"
    return code, out.getvalue(), said


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of its own, in which runs that are refused for nothing end at once."""

    def ran(config: Any, *_: Any, **__: Any) -> dict[str, Any]:
        gradstab.runner.run_directory.identity(to_container(config))
        return {}

    monkeypatch.setattr(gradstab.runner, "run", ran)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ------------------------------------------------------------------------------------------------ overrides

KNOBS = [
    f"{group}.{knob}" for group, names in OPTIONS.items() for cls in names.values() for knob in cls.__dataclass_fields__
]
KEYS = st.one_of(
    st.sampled_from([*CHOICES, *KNOBS, "seed", "steps", "epochs", "out_dir", "experiment", "stop_on", "batch_size"]),
    st.sampled_from(["hydra", "hydra.run.dir", "hydra/launcher", "defaults", "_target_", "a.b.c", "", "probe.seeds"]),
    st.text(max_size=12),
)
VALUES = st.one_of(
    st.sampled_from(["", "null", "true", "1e400", "-0", "nan", "[]", "[1,[2]]", "{}", "{a:1}", "???", "'", '"', "\\"]),
    st.sampled_from(["${seed}", "${oc.env:HOME}", "${nothing}", "${", "${a:${b}}", "${oc.decode:'['}", "$", "${.}"]),
    st.sampled_from(["choice(1,2)", "range(1,3)", "glob(*)", "interval(0,1)", "tag(a,1)", "shuffle(1,2)", "1,2,3"]),
    st.sampled_from(["cast", "int(x)", "sort(3,1)", "a\nb", "a\0b", "\ud800", "\u202e", "../../x", "/etc/passwd"]),
    st.sampled_from(["9" * 30, "9" * 5000, "x" * 20_000, "[" * 500, "(" * 500, "${a" * 200]),
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=30),
)
OVERRIDES = st.builds(
    "{}{}{}{}{}".format,
    st.sampled_from(["", "", "", "", "+", "++", "~", "-", "--"]),
    KEYS,
    st.sampled_from(["", "", "", "@x", "@_global_"]),
    st.sampled_from(["=", "=", "=", "", "==", ":"]),
    VALUES,
)


@given(command=st.sampled_from(["train", "train", "probe"]), words=st.lists(OVERRIDES, min_size=1, max_size=3))
@example(command="train", words=["experiment=../../../x"])
@example(command="train", words=["model.width=" + "9" * 5000])
@example(command="train", words=["act=relu", "act=tanh"])
@example(command="train", words=["seed=\0"])
@example(command="train", words=["~data"])
@example(command="train", words=["seed=${oc.env:HOME}"])
@fuzz(50)
def test_overrides(idle: Path, command: str, words: list[str]) -> None:
    # Probing is no part of this: what is odd is found before.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gradstab.probing.probe", lambda *_: None)
        patch.setattr("gradstab.console.probe.show", lambda *_: None)
        answer(command, *words)
    assert not list(idle.rglob("*.pt"))


# ------------------------------------------------------------------------------------------------- run.json

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.just(10**400), st.just("<script>")
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = [
    "status",
    "reason",
    "started",
    "seconds",
    "steps",
    "planned_steps",
    "layers",
    "hidden_layers",
    "theory",
    "verdict",
    "thresholds",
    "chance_loss",
    "depth_layers",
    "adaptive_optimizer",
    "test_loss",
    "test_accuracy",
    "watched",
    "seed",
    "versions",
    "device",
    "non_finite",
    "identity",
    "forensics_problem",
    "depth_factor",
    "resumed",
    "nondeterministic",
]
RECORDS = st.one_of(
    st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=8).map(json.dumps).map(str.encode),
    JSON.map(json.dumps).map(str.encode),
    st.binary(max_size=60),
    st.integers(1, 100_000).map(lambda depth: b"[" * depth),
    st.integers(1, 100_000).map(lambda depth: b'{"a":' * depth),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("fuzz") / "run", steps=3)


@given(content=RECORDS)
@example(content=b"[]")
@example(content=b"\xff\xfe")
@example(content=b'{"status": {"a": []}, "steps": 1e999, "layers": [[[]], null], "hidden_layers": -1}')
@fuzz(20)
def test_run_json(whole: Path, content: bytes) -> None:
    (whole / RUN_FILE).write_bytes(content)
    answer("status", str(whole))
    answer("status", str(whole), "--json")
    answer("explain", str(whole))
    answer("train", "--resume", str(whole))
    with in_time():
        load(whole, "run")
    if EXAMPLES or len(content) % 4 == 0:
        answer("report", str(whole))


# ---------------------------------------------------------------------------------------------- config.yaml


@st.composite
def configs(draw: st.DrawFn, good: str) -> bytes:
    """A run's own, with something done to it; or anything."""
    kind = draw(st.sampled_from(["line", "value", "bytes", "append", "cut", "junk"]))
    lines = good.splitlines()
    at = draw(st.integers(0, len(lines) - 1))
    match kind:
        case "line":
            lines[at] = draw(st.text(max_size=40))
        case "value":
            lines[at] = lines[at].split(":")[0] + ": " + draw(VALUES)
        case "append":
            lines.append(draw(st.text(max_size=10)) + ": " + draw(VALUES))
        case "cut":
            return good.encode()[: draw(st.integers(0, len(good)))]
        case "junk":
            return draw(st.binary(max_size=200))
        case "bytes":
            content = bytearray(good.encode())
            for _ in range(draw(st.integers(1, 5))):
                content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
            return bytes(content)
    return "\n".join(lines).encode("utf-8", "surrogatepass")


@given(data=st.data())
@fuzz(15)
def test_config_yaml(idle: Path, configure: Compose, data: st.DataObject) -> None:
    run = idle / "stranger"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir()
    write_config(run, to_container(configure("model.depth=1", "model.width=2")))
    (run / RUN_FILE).write_bytes(b'{"status": "interrupted"}')
    (run / CONFIG_FILE).write_bytes(data.draw(configs((run / CONFIG_FILE).read_text())))
    answer("train", "--config-dir", str(run), "quiet=true")
    answer("train", "--config-dir", str(run), "--config-name", "config", "--cfg", "job")
    answer("train", "--resume", str(run))
    with in_time():
        load(run, "run")


# ---------------------------------------------------------------------------------------------- event files


@given(data=st.data())
@fuzz(100)
def test_event_files(whole: Path, tmp_path: Path, data: st.DataObject) -> None:
    from gradstab.framing import _masked_crc

    run = tmp_path / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(whole, run)
    (run / RUN_FILE).write_bytes(b'{"status": "running"}')
    (path,) = run.glob("events*")
    content = bytearray(path.read_bytes())
    kind = data.draw(st.sampled_from(["flip", "cut", "junk", "framed"]))
    if kind == "flip":
        for _ in range(data.draw(st.integers(1, 8))):
            content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        del content[data.draw(st.integers(0, len(content))) :]
    elif kind == "junk":
        content = bytearray(data.draw(st.binary(max_size=300)))
    else:
        # Framed rightly, so that what is inside comes to be read: bytes of an event changed, or any at all.
        body = bytearray(content[12 : 12 + int.from_bytes(content[:8], "little")])
        at, changed = 0, bytearray()
        while at < len(content):
            size = int.from_bytes(content[at : at + 8], "little")
            body = bytearray(content[at + 12 : at + 12 + size])
            for _ in range(data.draw(st.integers(0, 2))):
                body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
            header = len(body).to_bytes(8, "little")
            changed += header + _masked_crc(header) + body + _masked_crc(bytes(body))
            at += size + 16
        content = changed
    path.write_bytes(bytes(content))
    answer("status", str(run))
    with in_time():
        load(run, "run")
    if EXAMPLES or len(content) % 5 == 0:
        answer("report", str(run))
