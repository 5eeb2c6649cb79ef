"""watch() where something ends or goes wrong: no loss, no room on the disk, another process, another optimizer."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from gradstab import watch
from gradstab.claims import CLAIM_FILE, claim, is_claimed
from gradstab.config.verdict_options import Thresholds
from gradstab.errors import ConfigError, GradstabError
from gradstab.events import EventWriter, read_records
from gradstab.measure.afterwards import judge_records
from gradstab.monitor.monitor import Monitor
from gradstab.run_directory import read_run, status_of


def mlp(depth: int = 2) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(part for _ in range(depth) for part in (nn.Linear(4, 4), nn.Sigmoid())), nn.Linear(4, 3))


class OwnDecay(torch.optim.SGD):
    """What somebody's own optimizer makes of its weight decay, nobody knows."""


def advance(monitor: Monitor, model: nn.Module, optimizer: Any, *, known: bool = True, scale: float = 1.0) -> None:
    optimizer.zero_grad()
    loss = model(torch.ones(5, 4)).square().mean()
    loss.backward()
    for parameter in model.parameters():
        parameter.grad *= scale
    monitor.step(loss if known else None)
    if scale == 1:
        optimizer.step()


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("broken", "status"), [(1, "completed"), (3, "diverged")])
def test_without_a_loss_the_last_gradient_tells_how_it_ended(
    tmp_path: Path, known: bool, broken: int, status: str
) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, tmp_path / "run", optimizer=optimizer) as monitor:
        for step in range(4):
            advance(monitor, model, optimizer, known=known, scale=torch.inf if step == broken else 1.0)
    record = read_run(tmp_path / "run")
    assert record["status"] == ("completed" if known else status)
    assert (record["train_loss"] is None) == (not known)


def test_the_broken_layer_nearest_the_output_is_where_it_began(tmp_path: Path) -> None:
    model = mlp()
    with watch(model, tmp_path / "run") as monitor:
        model(torch.ones(5, 4)).square().mean().backward()
        for broken in (model[0], model[2]):
            broken.weight.grad[1, 2] = torch.inf  # type: ignore[union-attr, index]
        monitor.step(1.0)
    assert read_run(tmp_path / "run")["non_finite"] == {"step": 0, "quantity": "gradient", "layer": "01_2"}


def test_a_run_whose_last_step_the_scaler_skips_has_not_diverged(tmp_path: Path) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    with watch(model, tmp_path / "run", optimizer=optimizer, scaler=scaler) as monitor:
        for loss, scale in ((torch.nan, 1.0), (None, torch.inf)):
            optimizer.zero_grad()
            (scaler.scale(model(torch.ones(5, 4)).square().mean()) * scale).backward()
            monitor.step(loss)
            scaler.step(optimizer)
            scaler.update()
    record = read_run(tmp_path / "run")
    assert (record["status"], record["skipped_steps"], record["non_finite"]["step"]) == ("completed", 1, 0)


def test_a_loss_that_is_known_later_is_the_last_steps(tmp_path: Path) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, tmp_path / "run", optimizer=optimizer) as monitor:
        for step in range(4):
            advance(monitor, model, optimizer, known=step == 2)
            if step > 0:
                monitor.supply(float(step))
    losses = read_records(tmp_path / "run").scalars["train/loss"]
    assert losses.steps.tolist() == [1, 2, 3]
    assert losses.values[0] == 1.0
    assert losses.values[1] < 1.0
    assert losses.values[2] == 3.0


def test_a_full_disk_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = watch(model, tmp_path / "run", optimizer=optimizer)
    advance(monitor, model, optimizer)
    with monkeypatch.context() as patched:
        patched.setattr(EventWriter, "flush", full)
        with pytest.raises(GradstabError, match=r"run: cannot be written to \(No space left on device\)"):
            monitor.verdict()
    monitor.close()
    record = read_run(tmp_path / "run")
    assert (record["status"], "No space left" in record["reason"]) == ("failed", True)


def test_where_the_record_is_gone_the_loops_own_error_is_raised(tmp_path: Path) -> None:
    model = mlp()

    def loop() -> None:
        with watch(model, tmp_path / "gone") as monitor:
            advance(monitor, model, torch.optim.SGD(model.parameters(), lr=0.1))
            shutil.rmtree(tmp_path / "gone")
            raise ValueError("mine")

    with pytest.warns(UserWarning, match="gone: cannot be written to"), pytest.raises(ValueError, match="mine"):
        loop()


def test_a_full_disk_at_the_interpreters_end_is_told(tmp_path: Path) -> None:
    code = (
        "import sys, torch\nfrom gradstab import run_directory, watch\nmodel = torch.nn.Linear(3, 1)\n"
        "monitor = watch(model, sys.argv[1])\nmodel(torch.ones(2, 3)).mean().backward()\nmonitor.step()\n"
        "def full(*_):\n    raise OSError(28, 'No space left on device')\nrun_directory.write_run = full\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "run"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "watch: run: cannot be written to (No space left on device)" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_without_steps_has_no_verdict(tmp_path: Path) -> None:
    monitor = watch(mlp(), tmp_path / "run")
    with pytest.warns(UserWarning, match="no step was recorded"):
        monitor.close()
    with pytest.raises(GradstabError, match="no step was recorded yet"):
        monitor.verdict()


HOLDS = """
import sys
from pathlib import Path
from gradstab.claims import claim
release = claim(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_what_a_live_process_holds_stays_its_own(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        # As after everything else in the folder was removed.
        with pytest.raises(ConfigError, match="another process is at work there"):
            watch(mlp(), tmp_path)
        with pytest.raises(ConfigError, match="another process is at work there"):
            claim(tmp_path)
        assert is_claimed(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [".claim"]
        holder.communicate(b"")
    assert not is_claimed(tmp_path)


def test_another_users_claim_is_taken_away_only_where_nobody_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def readable(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        """As another user's file is, in a folder that anybody may write to."""
        if Path(path).name == CLAIM_FILE and flags & (os.O_WRONLY | os.O_RDWR):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, flags, *args, **kwargs)

    release = claim(tmp_path)
    monkeypatch.setattr(os, "open", readable)
    with pytest.raises(ConfigError, match="another process is at work there"):
        claim(tmp_path)
    assert is_claimed(tmp_path)
    release()
    assert (tmp_path / CLAIM_FILE).exists()
    claim(tmp_path)
    assert not (tmp_path / CLAIM_FILE).exists()


def _step_in_child(monitor: Monitor, model: nn.Module, optimizer: Any, said: Any) -> None:
    try:
        advance(monitor, model, optimizer)
    except GradstabError as error:
        said.put(str(error))


def test_a_forked_process_writes_nothing_into_its_parents_record(tmp_path: Path) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    context = multiprocessing.get_context("fork")
    said = context.SimpleQueue()
    with watch(model, tmp_path / "run", optimizer=optimizer) as monitor:
        advance(monitor, model, optimizer)
        child = context.Process(target=_step_in_child, args=(monitor, model, optimizer, said))
        child.start()
        assert "watch again in this one" in said.get()
        child.join()
    assert read_records(tmp_path / "run").scalars["train/loss"].steps.tolist() == [0]


KILLED = """
import os, signal, sys, torch
from gradstab import watch
from gradstab.run_directory import status_of
model = torch.nn.Linear(3, 1)
monitor = watch(model, sys.argv[1])
loss = model(torch.ones(2, 3)).mean()
loss.backward()
monitor.step(loss)
child = os.fork()
if child == 0:
    del monitor
    sys.exit()
os.waitpid(child, 0)
print(status_of(monitor.directory), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_watched_run_whose_process_was_killed_is_no_longer_running(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "running\n", done.stderr
    assert read_run(tmp_path / "run")["status"] == "running"
    assert status_of(tmp_path / "run") == "interrupted"


def test_a_watched_run_is_running_until_it_is_closed(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    with watch(model, tmp_path / "run") as monitor:
        assert status_of(tmp_path / "run") == "running"
        loss = model(torch.ones(1, 2)).sum()
        loss.backward()
        monitor.step(loss)
    assert not is_claimed(tmp_path / "run")
    assert status_of(tmp_path / "run") == "completed"


def test_from_the_step_on_that_another_optimizer_takes_over_its_limits_hold(tmp_path: Path) -> None:
    model = mlp(depth=9)
    first, second = torch.optim.SGD(model.parameters(), lr=1e-6), torch.optim.Adam(model.parameters(), lr=1e-6)
    with watch(model, tmp_path / "run", optimizer=first, every=1) as monitor:
        limits = []
        for step in range(8):
            if step == 4:
                monitor.follow(second)
            advance(monitor, model, first if step < 4 else second)
            live = monitor.verdict()
            limits.append(next(f.threshold for f in live.findings if f.rule == "depth_span"))
        # What is on disk if the process is killed now.
        assert judge_records(read_records(tmp_path / "run"), read_run(tmp_path / "run")) == live
    record = read_run(tmp_path / "run")
    assert record["adaptive_since"] == 4
    assert limits[-1] == pytest.approx(limits[2] * Thresholds().adaptive_slack)
    assert judge_records(read_records(tmp_path / "run"), record) == live


@pytest.mark.parametrize(
    ("make", "decays"),
    [
        (lambda p: torch.optim.Adam(p, 1e-3, weight_decay=3.0), 3.0),
        (lambda p: torch.optim.SGD([{"params": p[:4]}, {"params": p[4:], "weight_decay": 4.0}], 1e-3), 0.0),
        (lambda p: torch.optim.SGD([{"params": p[:4]}, {"params": p[4:], "weight_decay": 2}], weight_decay=3), 2.0),
        # Biases are hardly ever decayed.
        (lambda p: torch.optim.SGD([{"params": p[::2], "weight_decay": 3.0}, {"params": p[1::2]}], 1e-3), 3.0),
        (lambda p: torch.optim.AdamW(p, 1e-3, weight_decay=3.0), 0.0),
        (lambda p: OwnDecay(p, 1e-3, weight_decay=3.0), 0.0),
        (lambda p: torch.optim.NAdam(p, 1e-3, weight_decay=3.0, decoupled_weight_decay=True), 0.0),
        (lambda p: torch.optim.NAdam(p, 1e-3, weight_decay=3.0), 3.0),
        (lambda p: (torch.optim.Adam(p[:4], 1e-3, weight_decay=3.0), torch.optim.SGD(p[4:], weight_decay=2.0)), 2.0),
        (lambda p: (torch.optim.SGD(p[4:], weight_decay=2.0), torch.optim.Adam(p[:4], 1e-3, weight_decay=3.0)), 2.0),
        (lambda p: (torch.optim.Adam(p[:4], 1e-3, weight_decay=3.0), torch.optim.SGD(p[4:])), 0.0),
    ],
)
def test_weight_decay_that_every_optimizer_adds_to_the_gradient_is_judged(
    tmp_path: Path, make: Callable[[list[nn.Parameter]], Any], decays: float
) -> None:
    model = mlp(depth=5)
    found = make(list(model.parameters()))
    optimizers = found if isinstance(found, tuple) else (found,)
    with watch(model, tmp_path / "run", optimizer=optimizers, every=1) as monitor:
        for _ in range(3):
            advance(monitor, model, optimizers[0])
            for other in optimizers[1:]:
                other.step()
        live = monitor.verdict()
    record = read_run(tmp_path / "run")
    assert record["theory"].get("decay") == decays
    assert [f.rule for f in live.findings if f.rule == "decay"] == (["decay"] if decays else [])
    assert judge_records(read_records(tmp_path / "run"), record) == live


@pytest.mark.parametrize("how", ["set to 0", "a group without", "a group with the same"])
def test_weight_decay_that_changes_on_the_way_no_longer_counts(tmp_path: Path, how: str) -> None:
    model = mlp(depth=5)
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters[-4:], lr=1e-2, weight_decay=3.0)
    if how == "set to 0":
        optimizer.add_param_group({"params": parameters[:-4]})
    with watch(model, tmp_path / "run", optimizer=optimizer, every=2) as monitor:
        for step in range(6):
            if step == 3 and how == "set to 0":
                for group in optimizer.param_groups:
                    group["weight_decay"] = 0.0
            elif step == 3:
                more = {} if how == "a group with the same" else {"weight_decay": 0.0}
                optimizer.add_param_group({"params": parameters[:-4], **more})
            for parameter in parameters:
                parameter.grad = None
            advance(monitor, model, optimizer)
        live = monitor.verdict()
        assert judge_records(read_records(tmp_path / "run"), read_run(tmp_path / "run")) == live
    assert ("decay" in [f.rule for f in live.findings]) == (how == "a group with the same")
    assert judge_records(read_records(tmp_path / "run"), read_run(tmp_path / "run")) == live


@pytest.mark.filterwarnings("ignore:.*is deprecated in favor of:FutureWarning")
@pytest.mark.parametrize(
    "reparametrize",
    [
        *(nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm),
        *(nn.utils.weight_norm, nn.utils.spectral_norm),
    ],
)
def test_weight_decay_of_what_weights_are_computed_from_is_not_judged(
    tmp_path: Path, reparametrize: Callable[[nn.Module], nn.Module]
) -> None:
    """As in a run of gradstab's own."""
    model = mlp(depth=5)
    reparametrize(model[2])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=9.0)
    with watch(model, tmp_path / "run", optimizer=optimizer, every=1) as monitor:
        for _ in range(3):
            advance(monitor, model, optimizer)
    record = read_run(tmp_path / "run")
    assert record["theory"]["decay"] == 0.0
    assert "decay" not in [finding["rule"] for finding in record["verdict"]["findings"]]


@pytest.mark.parametrize("decay", [3.0, 2.0, 0.0])
def test_a_later_optimizers_weight_decay_counts_only_if_it_is_the_same(tmp_path: Path, decay: float) -> None:
    model = mlp(depth=5)
    first = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=3.0)
    second = torch.optim.SGD(model.parameters(), lr=1e-3, weight_decay=decay)
    with watch(model, tmp_path / "run", optimizer=first, every=3) as monitor:
        rules = []
        for step in range(6):
            if step == 4:
                monitor.follow(second)
            advance(monitor, model, first if step < 4 else second)
            rules.append("decay" in [f.rule for f in monitor.verdict().findings])
        live = monitor.verdict()
        # What is on disk if the process is killed now.
        assert judge_records(read_records(tmp_path / "run"), read_run(tmp_path / "run")) == live
    assert rules == [False] * 3 + [True] + [decay == 3.0] * 2
    assert judge_records(read_records(tmp_path / "run"), read_run(tmp_path / "run")) == live


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        (lambda m: watch(m, thresholds=Thresholds(plateau="a")), "thresholds.plateau=a: must be a number"),
        (lambda m: watch(m, thresholds=Thresholds(loss_window=-1)), "thresholds.loss_window=-1: must be"),
        (lambda _: watch(mlp().to("meta")), "model: 0.weight is on the meta device"),
        (lambda m: watch(m).step(0.5, lr=-1), "lr=-1: has to be a finite number of at least 0"),
        (lambda m: watch(m).evaluated(0.5, 97.5), "accuracy=97.5: has to be a share between 0 and 1"),
        (lambda m: watch(m).close("done"), "status='done': has to be one of completed, interrupted"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: Any, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as raised:
        wrong(mlp())
    assert str(raised.value).startswith(line)


@pytest.mark.parametrize("steps", [499, 500])
def test_tensorboard_gets_pictures_of_runs_that_are_not_over_at_once(tmp_path: Path, steps: int) -> None:
    model = mlp()
    with watch(model, tmp_path / "run", every=100) as monitor:
        for _ in range(steps):
            loss = model(torch.ones(2, 4)).square().mean()
            loss.backward()
            monitor.step(loss)
            model.zero_grad()
    found = EventAccumulator(str(tmp_path / "run")).Reload()
    assert "custom_scalars__config__" in found.Tags()["tensors"]
    assert found.Tags()["images"] == (["depth/heatmap", "depth/profile"] if steps >= 500 else [])
    profile = [tag for tag in found.Tags()["scalars"] if tag.startswith("depth_profile_log10/")]
    assert bool(profile) == (steps >= 500)
    last = read_records(tmp_path / "run").vectors["signal_grad_norm"].values[-1]
    if profile:
        drawn = [event.value for event in found.Scalars("depth_profile_log10/last")]
        assert drawn == pytest.approx(np.log10(last).tolist(), rel=1e-5)


def test_pictures_that_cannot_be_drawn_are_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args: object) -> None:
        raise ValueError("no ink")

    monkeypatch.setattr("gradstab.report.history.tensorboard_images", broken)
    monkeypatch.setattr("gradstab.monitor.book.PICTURED", 1)
    model = mlp()
    with watch(model, tmp_path / "run") as monitor:
        loss = model(torch.ones(2, 4)).square().mean()
        loss.backward()
        monitor.step(loss)
    record = read_run(tmp_path / "run")
    assert record["status"] == "completed"
    assert "there are no pictures for TensorBoard (ValueError: no ink)" in record["notes"]
