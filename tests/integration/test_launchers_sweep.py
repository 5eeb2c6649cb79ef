"""Real sweeps on each launcher: the ledger and the results, also where a worker or a node dies on the way."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gradstab.sweeps.ledger import Ledger
from tests.conftest import Here
from tests.integration.test_launchers import is_running, slurm, stand_in, wait_until

__all__ = ["slurm", "stand_in"]

TINY = ("model.depth=2", "model.width=8", "device=cpu", "images_after=null", "quiet=true")
LAUNCHED = {
    "joblib": ["hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra.launcher.max_workers=2"],
    "submitit_slurm": ["hydra.launcher.array_parallelism=2"],
}


@pytest.fixture(autouse=True)
def _one_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums come out the same only with the same number of threads."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def statuses(folder: Path) -> list[str]:
    entries, damaged = Ledger(folder).read()
    assert damaged == []
    return sorted(entry.status for entry in entries.values())


def marks(folder: Path, status: str) -> Counter[str]:
    """How often each cell's directory was given a status."""
    path = folder / "ledger.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("}")]
    return Counter(record["directory"] for record in records if record["status"] == status)


def on_their_way(folder: Path) -> list[str]:
    """Cells that have begun and not ended."""
    return sorted(set(marks(folder, "running")) - set(marks(folder, "completed")))


def with_checkpoint(folder: Path, cells: list[str]) -> list[str]:
    return [cell for cell in cells if any((folder / cell / "checkpoints").glob("step_*.pt"))]


def results(folder: Path) -> list[dict[str, str]]:
    """What results.csv holds, but for what is different every time."""
    with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if "seconds" not in key} for row in rows]


def losses(folder: Path) -> dict[str, tuple[float, float]]:
    """Each cell's losses, to the last bit."""
    records = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/run.json")}
    return {name: (record["train_loss"], record["test_loss"]) for name, record in records.items()}


@pytest.mark.usefixtures("slurm")
@pytest.mark.parametrize(
    "launcher",
    ["joblib", *(pytest.param(name, marks=pytest.mark.slow) for name in ("submitit_local", "submitit_slurm"))],
)
def test_a_sweep_is_the_same_on_every_launcher(launcher: str, here: Here, tmp_path: Path) -> None:
    cells = ("train", "-m", "act=tanh,relu", "steps=12", *TINY)
    assert here(*cells, "out_dir=serial").returncode == 0
    ended = here(*cells, "out_dir=other", f"hydra/launcher={launcher}", *LAUNCHED[launcher])
    assert (ended.returncode, ended.stderr) == (0, "")
    assert statuses(tmp_path / "other") == ["completed"] * 2
    assert losses(tmp_path / "other") == losses(tmp_path / "serial")
    assert len(losses(tmp_path / "other")) == 2
    assert results(tmp_path / "other") == results(tmp_path / "serial")
    # In other processes, once each.
    assert set(marks(tmp_path / "other", "completed").values()) == {1}
    ledger = (tmp_path / "other" / "ledger.jsonl").read_text(encoding="utf-8").splitlines()
    assert os.getpid() not in {json.loads(line)["pid"] for line in ledger if '"running"' in line}
    # The same command finds nothing to do, and starts no worker.
    assert here(*cells, "out_dir=other", f"hydra/launcher={launcher}", *LAUNCHED[launcher]).returncode == 0
    assert set(marks(tmp_path / "other", "running").values()) == {1}


def _killed_on_the_way(here: Here, folder: Path, words: list[str], kill: Callable[[], None]) -> str:
    """Sweep over four seeds, kill once two cells are on their way; returns the cell that was hit."""
    cells = ["train", "-m", "seed=0,1,2,3", "steps=1500", "checkpoint.every=100", *TINY, f"out_dir={folder.name}"]

    def watch() -> None:
        # One of them with something to go on from.
        wait_until(lambda: len(going := on_their_way(folder)) == 2 and with_checkpoint(folder, going) != [])
        kill()

    killer = threading.Thread(target=watch)
    killer.start()
    ended = here(*cells, *words)
    killer.join()
    assert (ended.returncode, ended.stderr) == (0, "")
    assert statuses(folder) == ["completed"] * 4
    assert set(marks(folder, "completed").values()) == {1}
    started = marks(folder, "running")
    assert sorted(started.values()) == [1, 1, 1, 2]
    return started.most_common(1)[0][0]


def _same_as_alone(here: Here, tmp_path: Path, folder: Path, cell: str) -> None:
    seed = json.loads((folder / cell / "run.json").read_text())["seed"]
    assert here("train", "-m", f"seed={seed}", "steps=1500", *TINY, "out_dir=alone").returncode == 0
    assert losses(folder)[cell] in losses(tmp_path / "alone").values()


@pytest.mark.slow
def test_a_cell_whose_worker_is_killed_goes_on_in_another(here: Here, tmp_path: Path) -> None:
    folder = tmp_path / "killed"

    def kill() -> None:
        records = map(json.loads, (folder / "ledger.jsonl").read_text(encoding="utf-8").splitlines())
        workers = {record["directory"]: record["pid"] for record in records if record["status"] == "running"}
        os.kill(workers[with_checkpoint(folder, on_their_way(folder))[0]], signal.SIGKILL)

    cell = _killed_on_the_way(here, folder, ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], kill)
    _same_as_alone(here, tmp_path, folder, cell)


@pytest.fixture
def two_nodes() -> Iterator[Any]:
    """A Ray cluster of two nodes with a core each, which notices within seconds that one has died."""
    from ray.cluster_utils import Cluster

    quick = {"health_check_period_ms": 500, "health_check_failure_threshold": 2, "health_check_initial_delay_ms": 500}
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "_system_config": quick}
    )
    try:
        yield cluster
    finally:
        cluster.shutdown()


@pytest.mark.slow
def test_a_cell_whose_ray_node_dies_goes_on_on_another(here: Here, tmp_path: Path, two_nodes: Any) -> None:
    second = two_nodes.add_node(num_cpus=1)
    words = ["hydra/launcher=ray", f"hydra.launcher.address={two_nodes.address}"]
    cell = _killed_on_the_way(
        here, tmp_path / "killed", words, lambda: two_nodes.remove_node(second, allow_graceful=False)
    )
    _same_as_alone(here, tmp_path, tmp_path / "killed", cell)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "number"),
    [
        (("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"), signal.SIGINT),
        (("hydra/launcher=ray", "hydra.launcher.num_cpus=1"), signal.SIGTERM),
    ],
)
def test_a_signal_ends_a_sweep_in_order_and_the_same_command_goes_on(
    tmp_path: Path, words: tuple[str, ...], number: signal.Signals
) -> None:
    command = [sys.executable, "-m", "gradstab", "train", "-m", "seed=0,1,2", "steps=4000"]
    command += [*TINY, "out_dir=sweep", *words]
    folder = tmp_path / "sweep"
    sweep = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_until(lambda: len(list(folder.glob("*/events.*"))) == 2)
    if number == signal.SIGINT:
        os.killpg(sweep.pid, number)
    else:
        sweep.send_signal(number)
    _, err = sweep.communicate(timeout=60)
    assert sweep.returncode == 128 + number
    assert err == "gradstab: interrupted: 0 of 3 cells are done; the same command goes on with the rest\n"
    assert (folder / "results.csv").exists()
    records = list(map(json.loads, (folder / "ledger.jsonl").read_text().splitlines()))
    assert not any(is_running(record["pid"]) for record in records if "pid" in record)
    assert statuses(folder) == ["interrupted", "interrupted", "pending"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert statuses(folder) == ["completed"] * 3
    for path in folder.glob("*/run.json"):
        with contextlib.suppress(KeyError):
            assert json.loads(path.read_text())["steps"] == 4000
