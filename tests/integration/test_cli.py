"""The command line as a person meets it: real processes, their output and their exit codes."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gradstab import __version__
from gradstab.catalogue import CHOICES, SECTIONS
from gradstab.config.probe_options import PROBE_KEYS
from gradstab.config.sweep_options import SWEEP_KEYS
from gradstab.config.verdict_options import KINDS
from gradstab.events import read_records
from gradstab.launchers import LAUNCHERS
from tests.conftest import Here

TINY = ("model.depth=2", "model.width=8", "steps=3", "batch_size=32", "device=cpu")
# Counts a torch import as exit code 99, whatever the command does.
NO_TORCH = (
    "import sys, gradstab.cli as c; code = c.main(sys.argv[1:]); sys.exit(99 if 'torch' in sys.modules else code)"
)


def gradstab(*args: str, cwd: Path, code: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-c", code] if code else [sys.executable, "-m", "gradstab"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120"} | environment
    return subprocess.run([*start, *args], capture_output=True, text=True, cwd=cwd, env=env, check=False, timeout=120)


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(tmp_path: Path, flag: str) -> None:
    done = gradstab(flag, cwd=tmp_path, code=NO_TORCH)
    assert done.returncode == 0
    assert all(word in done.stdout for word in ("train", "list", "exit codes", "act=sigmoid"))
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize("command", ["train", "probe", "status", "list", "report", "explain"])
def test_each_command_has_a_help_of_its_own(tmp_path: Path, command: str) -> None:
    done = gradstab(command, "nonsense=1", "--help", cwd=tmp_path, code=NO_TORCH)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"gradstab {command}: ")
    assert f"usage: gradstab {command}" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    own = {
        "train": ("--resume", "--multirun", *SWEEP_KEYS, *LAUNCHERS, *KINDS),
        "probe": ("--json", *PROBE_KEYS),
        "status": ("--json",),
        "list": SECTIONS,
        "report": ("--out", "--figures", "--steps", "--csv", "--parquet"),
        "explain": ("--prove", "--json"),
    }
    assert [word for word in own[command] if word not in done.stdout] == []


def test_version(tmp_path: Path) -> None:
    done = gradstab("--version", cwd=tmp_path, code=NO_TORCH)
    assert (done.returncode, done.stdout) == (0, f"gradstab {__version__}\n")


def test_an_unknown_command_lists_the_commands(tmp_path: Path) -> None:
    done = gradstab("trian", cwd=tmp_path, code=NO_TORCH)
    assert done.returncode == 2
    assert done.stderr.startswith("gradstab: trian:")
    assert all(command in done.stderr for command in ("train, probe", "list"))
    assert done.stderr.count("\n") == 1


LEFTOVERS = """
import atexit, threading, time
import gradstab.cli as cli
def main(args, real=cli.main):
    atexit.register(lambda: print("handler"))
    threading.Thread(target=lambda: (time.sleep(0.3), print("thread"))).start()
    return real(args)
cli.main = main
cli.entry_point()
"""


@pytest.mark.parametrize(("words", "code"), [(("--version",), 0), (("list", "nonsense"), 2)])
def test_at_the_end_handlers_are_called_and_threads_waited_for(
    tmp_path: Path, words: tuple[str, ...], code: int
) -> None:
    done = gradstab(*words, cwd=tmp_path, code=LEFTOVERS)
    assert done.returncode == code, done.stderr
    assert done.stdout.splitlines()[-2:] == ["thread", "handler"]
    assert "Traceback" not in done.stderr


def test_flags_may_stand_between_words(here: Here) -> None:
    done = here("train", "seed=1", "--cfg", "job", "act=tanh")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("seed: 1\n")
    assert "name: tanh" in done.stdout


class FullDisk(io.StringIO):
    """What standard output is where it leads to a file on a full disk."""

    def write(self, _text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


UNWRITABLE = "gradstab: standard output: cannot be written to (No space left on device)\n"


@pytest.mark.parametrize(
    "words", [("--help",), ("list",), ("train", "--cfg", "job"), ("probe", *TINY), ("train", "-m", *TINY, "seed=1,2")]
)
def test_output_that_cannot_be_written_is_told_in_one_line(here: Here, words: tuple[str, ...]) -> None:
    with contextlib.redirect_stdout(FullDisk()):
        done = here(*words)
    assert (done.returncode, done.stderr) == (1, UNWRITABLE)


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
@pytest.mark.parametrize(
    "closed", [*(pytest.param(one, marks=pytest.mark.slow) for one in ("<&-", ">&-", "2>&-")), "<&- >&- 2>&-"]
)
def test_streams_may_be_closed(tmp_path: Path, closed: str) -> None:
    command = f"{shlex.quote(sys.executable)} -m gradstab train {' '.join(TINY)} out_dir=run"
    done = subprocess.run(
        ["sh", "-c", f"{command} {closed}"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert ("completed" in done.stdout) == (">&-" not in closed.split())
    # Nothing that was meant for a stream has come into a file.
    assert read_records(tmp_path / "run").damaged == []
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "completed"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_output_to_a_full_disk(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gradstab", "--version"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (1, UNWRITABLE)


def test_the_multirun_flag_may_stand_before_the_command(here: Here, tmp_path: Path) -> None:
    done = here("-m", "train", *TINY, "seed=1,2", "out_dir=sweep", "quiet=true")
    assert (done.returncode, done.stderr) == (0, "")
    assert {run.parent.name.split("_")[0] for run in (tmp_path / "sweep").glob("*/run.json")} == {"000", "001"}


def test_the_command_in_config_yaml_works_as_it_stands(here: Here, tmp_path: Path) -> None:
    assert here("train", *TINY, "out_dir=a b/c", "quiet=true").returncode == 0
    header = (tmp_path / "a b" / "c" / "config.yaml").read_text().splitlines()[0]
    command = shlex.split(header.split(":", 1)[1])
    assert command[0] == "gradstab"
    again = here(*command[1:], "quiet=true")
    assert (again.returncode, again.stderr) == (0, "")
    (repeated,) = (tmp_path / "outputs" / "train").iterdir()
    records = [json.loads((d / "run.json").read_text()) for d in (tmp_path / "a b" / "c", repeated)]
    assert records[0]["test_loss"] == records[1]["test_loss"]
    assert "fixes its options" in here(*command[1:], "act=tanh").stderr


def test_paths_need_no_quotes_of_hydras(here: Here, tmp_path: Path) -> None:
    for name in ("José", "run#1", "a&b", "a(b)", "a=b", "~x"):
        assert (done := here("train", *TINY, f"out_dir={tmp_path}/{name}", "quiet=true")).returncode == 0, done.stderr
        header = (tmp_path / name / "config.yaml").read_text().splitlines()[0]
        again = here(*shlex.split(header.split(":", 1)[1])[1:], "--cfg", "job")
        assert (again.returncode, again.stderr) == (0, "")
    missing = here("probe", "data=mnist", "data.download=false", "data.root=José")
    assert missing.stderr.startswith("gradstab: data.root=José: MNIST is not there")
    words = ("-m", *TINY, "data=digits,gaussian", "data.dim=é", "seed=0")
    assert "data=digits has no such knob" in here("train", *words).stderr
    for _ in range(2):
        assert here("train", "-m", *TINY, "seed=0,1", "out_dir=sweep#1", "quiet=true").returncode == 0
    assert len(list(tmp_path.glob("sweep#1/*/run.json"))) == 2


def test_what_is_no_folder_is_told(here: Here) -> None:
    needed = "gradstab: explain: needs a folder; allowed: gradstab explain RUN_DIR\n"
    assert (here("explain").stderr, here("explain").returncode) == (needed, 2)
    assert here("status", "/dev/null").stderr.startswith("gradstab: /dev/null: is no folder; allowed: ")
    assert here("status", "nowhere").stderr.startswith("gradstab: nowhere: there is no such folder; allowed: ")


@pytest.mark.parametrize("columns", ["40", "60", "80", "140"])
def test_numbers_stay_whole_in_a_narrow_terminal(here: Here, monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    done = here("train", *TINY)
    rows = [line for line in done.stdout.splitlines() if line.startswith(("00_hidden", "02_output"))]
    assert len(rows) == 2
    assert all(len(re.findall(r"\d\.\d\de[+-]\d\d", row)) == 2 for row in rows), rows


def test_list(tmp_path: Path) -> None:
    done = gradstab("list", "act", cwd=tmp_path, code=NO_TORCH)
    assert done.returncode == 0
    assert "Hochreiter 1991" in done.stdout
    assert gradstab("list", "atc", cwd=tmp_path).returncode == 2
    # clip.max_norm=1e38 is refused, which "(above 0)" does not tell.
    assert gradstab("list", "clip", cwd=tmp_path).stdout.endswith("no upper end is at most 1e+30.\n")
    assert "1e+30" not in gradstab("list", "loss", cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("args", "named", "allowed"),
    [
        (["act=sigmod"], "act=sigmod", "did you mean sigmoid"),
        (["model.dpeth=3"], "model.dpeth=3", "did you mean depth"),
        (["atc=relu"], "atc=relu", "did you mean act"),
        (["probe.seeds=3"], "gradstab: probe.seeds=3: there is no such key", "allowed: seed"),
        (["act={a:1}"], "gradstab: act={a:1}: act=relu has no such knob", "it has none"),
        (["steps=1e3"], "gradstab: steps=1e3: must be a whole number", "at least 1"),
        (["model.depth=1e1"], "gradstab: model.depth=1e1: must be a whole number", "at least 0"),
        (["model=lenet5", "model.depth=3"], "model.depth=3", "model=lenet5"),
        (["clip.max_norm=1"], "clip.max_norm=1", "clip=none"),
        (["model.depth=[1"], "model.depth=[1", "KEY=VALUE"),
        (["sigmoid"], "sigmoid", "KEY=VALUE"),
        (["experiment=nothing"], "experiment=nothing", "vanishing_sigmoid"),
        (["optimizer.lr=-1"], "optimizer.lr=-1", "above 0"),
        (["device=cuda:99"], "device=cuda:99", "allowed"),
        (["act=null"], "act=null", "relu"),
        (["stop_on=exploding,"], "gradstab: stop_on=exploding,: ", "vanishing, exploding"),
        (["stop_on=exploding,,vanishing"], "gradstab: stop_on=exploding,,vanishing: ", "vanishing, exploding"),
        (["~verdict.patience"], "~verdict.patience: cannot be taken out", "KEY=VALUE"),
        (["~steps"], "~steps: cannot be taken out", "KEY=VALUE"),
        (["~seed"], "~seed: cannot be taken out", "seed=VALUE"),
        (["~act"], "act: a group cannot be empty", "relu"),
        (["schedule=warmup_cosine", "schedule.warmup_steps=9999"], "schedule.warmup_steps=9999", "9999"),
        (["--foo"], "--foo", "allowed: --resume, -h, --help, -m, --multirun"),
        (["--config-path", "x"], "--config-path: there is no such flag", "--config-dir"),
        (["--experimental-rerun", "x"], "--experimental-rerun: there is no such flag", "--resume"),
        (["--multirun=3"], "--multirun=3: takes no value", "allowed: --multirun"),
        (["--config-name", "nope"], "--config-name nope: there is no such configuration", "allowed: train"),
        (["--config-name"], "--config-name: has no value", "--config-name VALUE"),
        (["--cfg", "-m"], "--cfg: has no value", "job|hydra|all"),
        (["--cfg", "foo"], "--cfg foo", "job, hydra, all"),
        (["--info=plugin"], "--info plugin", "did you mean plugins"),
        (["=3"], "=3: cannot be read", "KEY=VALUE"),
        (["experiment=remedy_clipping", "clip=value"], "experiment/remedy_clipping sets clip.max_norm", "max_value"),
        (["steps=${nope}"], "steps=${nope}: cannot be resolved", "'nope' not found"),
        (["-m", "seed=1,2", "steps=${nope}"], "steps=${nope}: cannot be resolved", "'nope' not found"),
        (["steps=${oc.env:NOPE_NOT_SET}"], "steps=${oc.env:NOPE_NOT_SET}: cannot be resolved", "NOPE_NOT_SET"),
        (["+experiment=vanishing_sigmoid"], "+experiment=vanishing_sigmoid: is set", "allowed: experiment=vanishing"),
        (["+act=tanh"], "+act=tanh: is set already", "allowed: act=tanh"),
        (["++act=tanh"], "++act=tanh: is set already", "allowed: act=tanh"),
        (["+optimizer.lr=0.1"], "+optimizer.lr=0.1: is set already", "allowed: optimizer.lr=0.1"),
        (["act@foo=relu"], "act@foo=relu: an option has one place", "allowed: act=relu"),
        (["act@=relu"], "act@=relu: an option has one place", "allowed: act=relu"),
        (["experiment@_global_=x"], "experiment@_global_=x: an option has one place", "allowed: experiment=x"),
        (["~act@foo"], "~act@foo: cannot be taken out", "KEY=VALUE"),
        (["foo@bar=x"], "foo@bar=x: there is no such key", "allowed: seed"),
        (["hydra=quiet"], "hydra=quiet: there is no such key", "allowed: seed"),
        (["-m", "seed=0,1", "--cfg", "job"], "--cfg: not together with -m", "allowed: one of -m, --cfg, --info"),
        (["--cfg", "job", "--info"], "--info: not together with --cfg", "allowed: one of -m, --cfg, --info"),
        (["--resolve"], "--resolve: no effect without --cfg", "add --cfg job"),
        (["--package", "x"], "--package: no effect without --cfg", "add --cfg job"),
        (["--hydra-help", "model.depth=2"], "model.depth=2: no effect with --hydra-help", "leave it out"),
        (
            ["-m", "seed=0,1", "hydra/launcher=foo"],
            "hydra/launcher=foo: is no launcher of gradstab's",
            "serial, joblib",
        ),
        (["-m", "seed=0", "hydra.sweeper.foo=1"], "hydra.sweeper.foo=1: hydra.sweeper has no", "max_batch_size"),
        (["hydra.foo=1"], "hydra.foo=1: hydra has no such knob", "allowed: run, sweep"),
        (["-m", "seed=0", "hydra.sweep.dir=a", "out_dir=b"], "hydra.sweep.dir=a: beside out_dir=b", "one of the two"),
        (["data=mnist", "data.root="], "data.root=: must be a folder's name", ""),
        (["--config-name", "experiment/small"], "experiment/small: is an option", "write experiment=small"),
        (["steps=1,2"], "steps=1,2", "-m"),
        (["optimizer=[sgd,adam]"], "optimizer=[sgd,adam]", "-m"),
        (["act=RELU"], "act=RELU", "did you mean"),
        (["act=José"], "gradstab: act=José: ", "allowed: elu"),
        (["out_dir=José,x"], "out_dir=José,x: cannot be read", """'KEY="VALUE"' for text with other characters"""),
        (["steps='2'"], "gradstab: steps='2': must be a whole number", "at least 1"),
        (["deterministic='true'"], "gradstab: deterministic='true': ", "must be true or false"),
        (["-m", "seed=0,1", "model.width=" + "9" * 5000], "Exceeds the limit", "integer string conversion"),
        (["seed==1"], "gradstab: seed==1: must be a whole number", "at least 0"),
        (["out_dir=" + "x" * 300], "out_dir=xxx", "cannot be written"),
        (["-m", "out_dir=p,", "seed=1"], "out_dir=p,", "KEY=VALUE"),
        (["--config-dir", "nowhere"], "--config-dir nowhere: there is no such folder", "allowed: a run's own"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    here: Here, tmp_path: Path, args: list[str], named: str, allowed: str
) -> None:
    done = here("train", *args)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("gradstab: ")
    assert named in done.stderr
    assert allowed in done.stderr
    assert done.stderr.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_a_run_in_a_pipe_prints_plain_lines(tmp_path: Path) -> None:
    done = gradstab("train", *TINY, "out_dir=here", cwd=tmp_path)
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert "step      3/3" in done.stdout
    assert "02_output" in done.stdout
    assert "per layer" in done.stdout
    assert "tensorboard --logdir here" in done.stdout
    assert sorted(p.name.split(".")[0] for p in (tmp_path / "here").glob("[!.]*")) == ["config", "events", "run"]


def test_quiet_prints_nothing(here: Here, tmp_path: Path) -> None:
    done = here("train", *TINY, "quiet=true")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (run,) = (tmp_path / "outputs" / "train").iterdir()
    assert json.loads((run / "run.json").read_text())["status"] == "completed"


def test_divergence_is_a_result(here: Here, tmp_path: Path) -> None:
    done = here("train", "experiment=exploding_init", "init.gain=99", "device=cpu", "out_dir=d")
    assert done.returncode == 0
    assert "diverged" in done.stdout
    assert json.loads((tmp_path / "d" / "run.json").read_text())["status"] == "diverged"


def test_a_directory_that_holds_a_run_is_refused(here: Here, tmp_path: Path) -> None:
    assert here("train", *TINY, "out_dir=here", "quiet=true").returncode == 0
    before = {p: p.read_bytes() for p in (tmp_path / "here").iterdir()}
    again = here("train", *TINY, "out_dir=here")
    assert again.returncode == 2
    assert "out_dir=here: holds a run already" in again.stderr
    assert {p: p.read_bytes() for p in (tmp_path / "here").iterdir()} == before


def test_out_dir_that_is_a_file_is_refused(here: Here, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    done = here("train", *TINY, "out_dir=file")
    assert done.returncode == 2
    assert "out_dir=file" in done.stderr


@pytest.mark.slow
def test_runs_started_together_get_directories_of_their_own(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gradstab", "train", *TINY, "quiet=true"]
    processes = [subprocess.Popen(command, cwd=tmp_path) for _ in range(2)]
    assert [p.wait(timeout=120) for p in processes] == [0, 0]
    assert len(list((tmp_path / "outputs" / "train").glob("*/run.json"))) == 2


@pytest.mark.parametrize("position", [0, 1, 3])
def test_multirun_flag_anywhere(here: Here, tmp_path: Path, position: int) -> None:
    args = [*TINY, "act=tanh,relu", "out_dir=sweep"]
    args.insert(position, "-m")
    done = here("train", *args, "quiet=true")
    assert (done.returncode, done.stderr) == (0, "")
    runs = sorted((tmp_path / "sweep").glob("*/run.json"))
    assert len(runs) == 2
    assert all(json.loads(run.read_text())["status"] == "completed" for run in runs)
    assert "act=tanh" in runs[0].parent.name


def test_a_swept_out_dir_is_refused(here: Here) -> None:
    done = here("train", "-m", *TINY, "out_dir=p,q")
    assert done.returncode == 2
    assert "out_dir=p: is the folder of the whole sweep" in done.stderr


def test_one_wrong_cell_stops_a_sweep_before_it_begins(here: Here, tmp_path: Path) -> None:
    done = here("train", "-m", *TINY, "optimizer.lr=-1,0.01", "out_dir=sweep", "quiet=true")
    assert done.returncode == 2
    assert "optimizer.lr=-1" in done.stderr
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize("named", [True, False])
def test_config_yaml_reproduces_the_run_bit_for_bit(here: Here, tmp_path: Path, named: bool) -> None:
    first = here(
        *("train", *TINY, "steps=8", "act=elu", "act.alpha=0.7", "model.dropout=0.1", "clip=norm", "seed=5"),
        *("init=orthogonal", "model.width=[9,7]", "quiet=true"),
    )
    assert first.returncode == 0, first.stderr
    (run,) = (tmp_path / "outputs" / "train").iterdir()
    name = ("--config-name", "config") if named else ()
    again = here("train", "--config-dir", str(run), *name, "out_dir=again")
    assert again.returncode == 0, again.stderr
    original, repeated = (read_records(directory) for directory in (run, tmp_path / "again"))
    assert (original.vectors["grad_norm"].values == repeated.vectors["grad_norm"].values).all()
    assert (original.scalars["train/loss"].values == repeated.scalars["train/loss"].values).all()
    records = [json.loads((d / "run.json").read_text()) for d in (run, tmp_path / "again")]
    assert records[0]["test_loss"] == records[1]["test_loss"]
    other = here("train", "--config-dir", str(run), *name, "out_dir=other", "seed=6", "quiet=true")
    assert other.returncode == 0, other.stderr
    assert json.loads((tmp_path / "other" / "run.json").read_text())["test_loss"] != records[0]["test_loss"]


def test_ctrl_c_is_recorded_and_exits_with_130(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gradstab", "train", "steps=1000000", "device=cpu", "out_dir=here"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while "train/loss" not in read_records(tmp_path / "here").scalars and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.startswith("gradstab: interrupted after ")
    assert errors.endswith(" steps; gradstab train --resume here continues it\n")
    record = json.loads((tmp_path / "here" / "run.json").read_text())
    assert record["status"] == "interrupted"
    losses = read_records(tmp_path / "here").scalars["train/loss"]
    assert record["steps"] >= 1
    assert len(losses.steps) >= record["steps"]


def test_a_failure_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    code = (
        "import sys, gradstab.training as t, gradstab.cli as c\n"
        "def broken(*args): raise RuntimeError('the disk caught fire')\n"
        "t.train_step = broken\n"
        "sys.exit(c.main(sys.argv[1:]))\n"
    )
    done = gradstab("train", *TINY, "out_dir=here", "quiet=true", cwd=tmp_path, code=code)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "the disk caught fire" in done.stderr
    record = json.loads((tmp_path / "here" / "run.json").read_text())
    assert (record["status"], record["reason"]) == ("failed", "RuntimeError: the disk caught fire")
    assert "Traceback" in (tmp_path / "here" / "failure.txt").read_text()


def test_data_that_cannot_be_had_is_a_clear_failure(here: Here, tmp_path: Path) -> None:
    done = here("train", "model=lenet5", "data=mnist", "data.download=false", f"data.root={tmp_path}")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "data.download=true" in done.stderr


def test_show_configuration(tmp_path: Path) -> None:
    done = gradstab("train", "--cfg", "job", "act=tanh", cwd=tmp_path, code=NO_TORCH)
    assert done.returncode == 0
    assert "name: tanh" in done.stdout


def _completions(line: str, cwd: Path) -> set[str]:
    done = gradstab(
        "-sc", "query=bash", cwd=cwd, code=NO_TORCH, COMP_LINE=line, COMP_POINT=str(len(line)), COMP_CWORD="0"
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_completion_of_commands_groups_options_and_dotted_keys(tmp_path: Path) -> None:
    assert {"train", "list"} <= _completions("gradstab ", tmp_path)
    assert {"train", "list"} <= _completions("gradstab tr", tmp_path)
    assert set(CHOICES) == _completions("gradstab list ", tmp_path)
    groups = _completions("gradstab train ", tmp_path)
    assert {"act=", "model=", "experiment=", "seed="} <= groups
    assert not {"hydra", "hydra.", "schema"} & groups
    assert {"act=sigmoid", "act=silu", "act=selu"} <= _completions("gradstab train act=s", tmp_path)
    assert {"model.depth=", "model.dropout="} <= _completions("gradstab train model.d", tmp_path)
    assert {"clip.max_norm="} <= _completions("gradstab train clip=norm clip.", tmp_path)


@pytest.mark.parametrize("value", ["vanishing,exploding", '"vanishing,exploding"', "[vanishing,exploding]"])
def test_several_kinds_to_stop_on_are_no_sweep(here: Here, value: str) -> None:
    done = here("train", "steps=1", "model.depth=1", "device=cpu", "quiet=true", f"stop_on={value}", "out_dir=run")
    assert (done.returncode, done.stderr) == (0, "")
    assert "stop_on:\n- vanishing\n- exploding\n" in Path("run/config.yaml").read_text(encoding="utf-8")


def test_completion_of_kinds_and_of_what_probe_has_to_itself(tmp_path: Path) -> None:
    assert _completions("gradstab probe --", tmp_path) == {"--json"}
    assert _completions("gradstab probe probe.", tmp_path) == {"probe.seeds=", "probe.jacobian=", "probe.samples="}
    assert _completions("gradstab probe probe.seeds=2 --json act=ta", tmp_path) == {"act=tanh"}
    assert "stop_on=dead_units" in _completions("gradstab train stop_on=", tmp_path)
    assert _completions("gradstab train stop_on=dead_units,v", tmp_path) == {"stop_on=dead_units,vanishing"}


@pytest.mark.parametrize("words", [(), ("install=foo",), ("install=bash", "install=zsh"), ("query=sh",)])
def test_completion_of_an_unknown_shell_is_refused(here: Here, words: tuple[str, ...]) -> None:
    done = here("-sc", *words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"gradstab: {' '.join(['-sc', *words])}: ")
    assert "allowed: install=bash, install=fish, install=zsh, uninstall=bash" in done.stderr


def test_bash_itself_completes(tmp_path: Path) -> None:
    """The installed shell function, driven as readline drives it."""
    script = f"""
        export PATH="{Path(sys.executable).parent}:$PATH"
        eval "$(gradstab -sc install=bash)"
        COMP_LINE="gradstab train act=sig"; COMP_POINT=${{#COMP_LINE}}; COMP_CWORD=2
        hydra_bash_completion; echo "${{COMPREPLY[@]}}"
        COMP_LINE="gradstab tra"; COMP_POINT=${{#COMP_LINE}}; COMP_CWORD=1
        hydra_bash_completion; echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout.split("\n")[:2] == ["act=sigmoid", "train"], done.stderr
