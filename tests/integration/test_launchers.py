"""Launchers by themselves: what reaches a worker, what becomes of one that dies, and how all of them end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from gradstab.errors import ConfigError, GradstabError
from gradstab.launchers import LAUNCHERS, Done, Task, build_launcher, machine, with_ray, with_slurm
from gradstab.launchers.knobs import Ray
from tests.integration import launched, slurm_stand_in

ROOT = Path(__file__).parents[2]
SLURM_TOOLS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sacct")


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs are started as programs: what they are to do has to be found by them."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture(scope="module")
def ray_here() -> Iterator[Any]:
    """Ray on this machine, started once: it takes its time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        with with_ray.connected(Ray()) as ray:
            yield ray


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What plays Slurm's part."""
    tools, state = tmp_path / "slurm" / "bin", tmp_path / "slurm" / "state"
    tools.mkdir(parents=True)
    state.mkdir()
    for name in SLURM_TOOLS:
        tool = tools / name
        tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{slurm_stand_in.__file__}" {name} "$@"\n')
        tool.chmod(0o755)
    monkeypatch.setenv("GRADSTAB_SLURM", str(state))
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")


@pytest.fixture
def slurm(request: pytest.FixtureRequest) -> None:
    """Slurm itself where it runs on this machine alone, or else its stand-in."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        nodes = subprocess.run(["sinfo", "-h", "-N", "-o", "%n"], capture_output=True, text=True, check=True, timeout=9)
        if nodes.stdout.split() == [os.uname().nodename] and "GRADSTAB_NO_SLURM" not in os.environ:
            return
    request.getfixturevalue("stand_in")


def tasks_in(folder: Path, *payloads: dict[str, Any]) -> list[Task]:
    return [Task(f"cell{i}", payload | {"folder": str(folder)}) for i, payload in enumerate(payloads)]


def by_key(finished: Sequence[Done]) -> dict[str, Done]:
    assert len({done.task.key for done in finished}) == len(finished)
    return {done.task.key: done for done in finished}


def found(folder: Path, task: Task) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / f"{task.key}.json").read_text())
    return result


def wait_until(holds: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def is_running(process: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def all_launchers(folder: Path) -> dict[str, dict[str, Any]]:
    jobs = {"submitit_folder": f"{folder}/.submitit/%j"}
    return {
        "serial": {},
        "joblib": {"n_jobs": 2},
        "submitit_local": jobs | {"max_workers": 2},
        "submitit_slurm": jobs,
        "ray": {"shared_folder": str(folder), "max_retries": 1},
    }


# ------------------------------------------------------------------------------------------------ before anything runs


def test_importing_the_launchers_imports_none_of_their_libraries() -> None:
    code = (
        "import sys, gradstab.launchers as launchers\n"
        "[launchers.build_launcher(name) for name in ('serial', 'joblib', 'submitit_local', 'ray')]\n"
        "sys.exit(bool({'torch', 'joblib', 'ray', 'submitit'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", [name for name in LAUNCHERS if name != "serial"])
def test_a_missing_extra_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = name.split("_")[0]
    # How Python marks a module that cannot be imported.
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError) as raised:
        build_launcher(name)
    assert raised.value.problems == (
        f'hydra/launcher={name}: needs the package {package}; install it with pip install "gradstab[{package}]"',
    )


@pytest.mark.parametrize(
    ("name", "knobs", "words"),
    [
        ("joblib", {"n_jobs": 0}, ["hydra.launcher.n_jobs=0", "at least 1, or -1"]),
        ("joblib", {"n_jobs": "many"}, ["hydra.launcher.n_jobs=many", "whole number"]),
        ("joblib", {"n_jobs": -2}, ["hydra.launcher.n_jobs=-2", "at least 1, or -1"]),
        ("joblib", {"threads": 0}, ["hydra.launcher.threads=0", "at least 1"]),
        ("joblib", {"gpus": -1}, ["hydra.launcher.gpus=-1", "at least 0"]),
        ("joblib", {"n_job": 2}, ["hydra.launcher.n_job=2", "did you mean n_jobs?"]),
        ("serial", {"n_jobs": 2}, ["hydra.launcher.n_jobs=2", "no such knob"]),
        ("submitit_local", {"max_workers": 0}, ["hydra.launcher.max_workers=0", "at least 1"]),
        ("submitit_local", {"timeout_min": 0}, ["hydra.launcher.timeout_min=0", "above 0"]),
        ("submitit_local", {"timeout_min": 0.2}, ["hydra.launcher.signal_delay_s=30", "timeout_min=0.2"]),
        ("submitit_local", {"max_num_timeout": 9}, ["hydra.launcher.max_num_timeout=9", "at most 5"]),
        ("submitit_local", {"submitit_folder": ""}, ["hydra.launcher.submitit_folder=", "must not be empty"]),
        ("ray", {"num_cpus": -1}, ["hydra.launcher.num_cpus=-1", "above 0"]),
        ("ray", {"num_gpus": -0.5}, ["hydra.launcher.num_gpus=-0.5", "at least 0"]),
        ("ray", {"max_retries": -2}, ["hydra.launcher.max_retries=-2", "-1"]),
        ("ray", {"runtime_env": "pip"}, ["hydra.launcher.runtime_env=pip", "keys with values"]),
        ("dask", {}, ["hydra/launcher=dask", "serial, joblib, submitit_local, submitit_slurm, ray"]),
    ],
)
def test_bad_knobs_are_named_in_one_line(name: str, knobs: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        build_launcher(name, **knobs)
    (problem,) = raised.value.problems
    assert "\n" not in problem
    for word in words:
        assert word in problem


@pytest.mark.usefixtures("slurm")
@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"mem_gb": 0}, ["hydra.launcher.mem_gb=0", "above 0"]),
        ({"setup": "module load cuda"}, ["hydra.launcher.setup=module load cuda", "list"]),
        ({"additional_parameters": ["exclusive"]}, ["hydra.launcher.additional_parameters", "keys with values"]),
        ({"timeout_min": 1, "signal_delay_s": 60}, ["hydra.launcher.signal_delay_s=60", "timeout_min=1"]),
    ],
)
def test_bad_knobs_for_slurm_are_named_in_one_line(knobs: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        build_launcher("submitit_slurm", **knobs)
    assert len(raised.value.problems) == 1
    for word in words:
        assert word in raised.value.problems[0]


def test_a_machine_without_slurm_is_told_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"^hydra/launcher=submitit_slurm: there is no sbatch here; allowed: "):
        build_launcher("submitit_slurm")


# ------------------------------------------------------------------------------------------------ cores and GPUs


def test_threads_are_divided_and_never_none() -> None:
    assert machine.threads_each(2, 8, {}) == 4
    assert machine.threads_each(3, 8, {}) == 2
    assert machine.threads_each(16, 8, {}) == 1
    assert machine.threads_each(2, 8, {"OMP_NUM_THREADS": "1"}) == 1
    assert machine.threads_each(2, 8, {"OMP_NUM_THREADS": "64"}) == 4
    assert machine.threads_each(2, 8, {"OMP_NUM_THREADS": "0"}) == 4
    assert 1 <= machine.cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", ()),
        ("-1", ()),
        ("NoDevFiles", ()),
        ("0", ("0",)),
        ("2, 0", ("2", "0")),
        ("1,-1,0", ("1",)),
        ("GPU-8932f937,MIG-1b2c", ("GPU-8932f937", "MIG-1b2c")),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(
    value: str, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert machine.gpus() == expected


def test_gpus_are_counted_by_the_drivers_tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    listing = """\
        GPU 0: NVIDIA H100 (UUID: GPU-aaa)
        GPU 1: NVIDIA H100 (UUID: GPU-bbb)
          MIG 3g.40gb     Device  0: (UUID: MIG-ccc)
          MIG 3g.40gb     Device  1: (UUID: MIG-ddd)
        GPU 2: NVIDIA H100 (UUID: GPU-eee)
        """
    tool.write_text(f"#!/bin/sh\ncat <<'EOF'\n{textwrap.dedent(listing)}EOF\n")
    tool.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert machine.gpus() == ("GPU-aaa", "MIG-ccc", "MIG-ddd", "GPU-eee")


@pytest.mark.parametrize("workers", range(1, 10))
@pytest.mark.parametrize("gpus", [0, 1, 2, 3, 8])
def test_no_two_cells_share_a_gpu_while_another_is_idle(workers: int, gpus: int) -> None:
    """Whatever ends first: each next task goes where fewest run."""
    seats = machine.share_out(workers, [str(i) for i in range(gpus)])
    busy: list[int] = []
    for step in range(60):
        idle = sorted(set(range(workers)) - set(busy))
        chosen = machine.freest(idle, seats, busy)
        assert chosen in idle
        if gpus:
            loads = Counter(seats[worker] for worker in busy)
            free = {seats[worker] for worker in idle}
            assert loads[seats[chosen]] == min(loads[seat] for seat in free)
        busy.append(chosen)
        if len(busy) == workers or step % 3 == 0:
            busy.pop(step * 7 % len(busy))
    if gpus:
        assert set(Counter(seats).values()) <= {workers // gpus, -(-workers // gpus)}


def test_joblib_gives_each_worker_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    tasks = tasks_in(tmp_path, *[{"seconds": 0.5}] * 4)
    # Without n_jobs there are as many workers as GPUs.
    assert {done.status for done in build_launcher("joblib").launch(tasks, launched.told)} == {"completed"}
    given = [found(tmp_path, task) for task in tasks]
    assert {one["CUDA_VISIBLE_DEVICES"] for one in given} == {"GPU-a", "GPU-b"}
    assert len({(one["pid"], one["CUDA_VISIBLE_DEVICES"]) for one in given}) == 2


@pytest.mark.parametrize(
    ("gpus", "uses", "expected"), [(1, True, "GPU-a"), (0, True, ""), (None, False, "GPU-a,GPU-b")]
)
def test_joblib_shares_out_no_more_gpus_than_it_is_to(
    gpus: int | None, uses: bool, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cells that stay on the CPU are given none, and see what there is."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    tasks = [Task(task.key, task.payload, gpu=uses) for task in tasks_in(tmp_path, {}, {})]
    list(build_launcher("joblib", n_jobs=1, gpus=gpus).launch(tasks, launched.told))
    assert {found(tmp_path, task)["CUDA_VISIBLE_DEVICES"] for task in tasks} == {expected}


@pytest.mark.parametrize(("n_jobs", "threads", "expected"), [(2, None, 4), (2, 1, 1)])
def test_joblib_sets_the_threads_of_its_workers(
    n_jobs: int, threads: int | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(machine, "cores", lambda: 8)
    (task,) = tasks_in(tmp_path, {"torch": True})
    list(build_launcher("joblib", n_jobs=n_jobs, threads=threads).launch([task], launched.told))
    given = found(tmp_path, task)
    # Of more than there are cores, torch takes as many as there are.
    assert given["torch"] == min(expected, os.cpu_count() or 1)
    assert given["OMP_NUM_THREADS"] == given["MKL_NUM_THREADS"] == str(expected)


# ------------------------------------------------------------------------------------------------ tasks and results


@pytest.mark.usefixtures("slurm")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "ray" else name for name in LAUNCHERS]
)
def test_every_task_is_done_once_and_what_it_raises_is_told(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    if name == "ray":
        request.getfixturevalue("ray_here")
    monkeypatch.chdir(tmp_path)
    launcher = build_launcher(name, **all_launchers(tmp_path)[name])
    assert list(launcher.launch([], launched.told)) == []
    if name == "serial":
        tasks = tasks_in(tmp_path, {}, {"raises": True})
        with pytest.raises(OSError, match="no such luck"):
            list(launcher.launch(tasks, launched.broken))
        return
    finished = by_key(list(launcher.launch(tasks_in(tmp_path, {}, {"raises": True}, {}), launched.broken)))
    assert [finished[f"cell{i}"].status for i in range(3)] == ["completed", None, "completed"]
    assert finished["cell1"].error == "OSError: no such luck"
    # Nothing of the libraries' own.
    assert capfd.readouterr() == ("", "")


def test_joblib_keeps_its_workers(tmp_path: Path) -> None:
    tasks = tasks_in(tmp_path, *[{}] * 12)
    finished = by_key(list(build_launcher("joblib", n_jobs=2).launch(tasks, launched.told)))
    assert {done.status for done in finished.values()} == {"completed"}
    workers = {found(tmp_path, task)["pid"] for task in tasks}
    assert len(workers) == 2
    assert os.getpid() not in workers
    assert not any(map(is_running, workers))


def test_the_death_of_a_worker_is_nobody_elses(tmp_path: Path) -> None:
    """One that may have been hit by chance runs again; one that dies again fails; the others never notice."""
    long, unlucky, deadly = {"seconds": 3}, {"deaths": 1}, {"deaths": 9}
    tasks = tasks_in(tmp_path, long, unlucky, deadly, *[{}] * 3)
    finished = by_key(list(build_launcher("joblib", n_jobs=2).launch(tasks, launched.deadly)))
    assert {key for key, done in finished.items() if done.status == "completed"} == {
        f"cell{i}" for i in (0, 1, 3, 4, 5)
    }
    assert finished["cell2"].error == "its worker died 2 times; the last was killed by SIGKILL (out of memory?)"
    assert [launched.tries(task) for task in tasks] == [1, 2, 2, 1, 1, 1]


def test_a_worker_that_dies_between_two_tasks_is_replaced(tmp_path: Path) -> None:
    first, second = tasks_in(tmp_path, {}, {})
    finished = build_launcher("joblib", n_jobs=1).launch([first, second, second], launched.told)
    assert next(finished).status == "completed"
    os.kill(found(tmp_path, first)["pid"], signal.SIGKILL)
    assert [done.status for done in finished] == ["completed"] * 2
    assert found(tmp_path, second)["pid"] != found(tmp_path, first)["pid"]


def test_a_local_job_that_dies_runs_once_more(tmp_path: Path) -> None:
    tasks = tasks_in(tmp_path, {"deaths": 1}, {"deaths": 9}, {})
    knobs = all_launchers(tmp_path)["submitit_local"]
    finished = by_key(list(build_launcher("submitit_local", **knobs).launch(tasks, launched.deadly)))
    assert [finished[f"cell{i}"].status for i in range(3)] == ["completed", None, "completed"]
    error = finished["cell1"].error or ""
    assert error.startswith("its job died twice without a result; see ")
    assert Path(error.rpartition(" ")[2]).exists()
    assert [launched.tries(task) for task in tasks] == [2, 2, 1]


@pytest.mark.usefixtures("slurm")
def test_slurm_says_how_a_job_ended_that_left_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(with_slurm.Slurm, "ask_every", 0.5)
    monkeypatch.setattr(with_slurm.Slurm, "late", 1.0)
    tasks = tasks_in(tmp_path, {}, {"deaths": 9})
    finished = by_key(
        list(
            build_launcher("submitit_slurm", **all_launchers(tmp_path)["submitit_slurm"]).launch(tasks, launched.deadly)
        )
    )
    assert finished["cell0"].status == "completed"
    assert finished["cell1"].error is not None
    assert "without a result" in finished["cell1"].error


@pytest.mark.usefixtures("slurm")
def test_slurm_refusing_a_job_is_one_line(tmp_path: Path) -> None:
    launcher = build_launcher("submitit_slurm", partition="nowhere", **all_launchers(tmp_path)["submitit_slurm"])
    with pytest.raises(GradstabError, match="invalid partition") as raised:
        list(launcher.launch(tasks_in(tmp_path, {}, {}), launched.told))
    assert "\n" not in str(raised.value)


# ------------------------------------------------------------------------------------------------ ending


@pytest.mark.usefixtures("slurm")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name == "submitit_slurm" else [])
        for name in LAUNCHERS
        if name != "serial"
    ],
)
def test_closing_ends_workers_in_order_and_starts_no_more(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if name == "ray":
        request.getfixturevalue("ray_here")
    tasks = tasks_in(tmp_path, *[{"rounds": 0}, {}, {}, {}, {}, {}])
    launcher = build_launcher(name, **all_launchers(tmp_path)[name])
    finished = launcher.launch(tasks, launched.endless)
    assert next(finished).status == "completed"
    # A cluster runs them all at once; one that has begun and not said so yet would be counted wrongly.
    at_once = range(1, 6) if name == "submitit_slurm" else (1, 2)
    wait_until(lambda: all((tmp_path / f"cell{i}.started").exists() for i in at_once))
    time.sleep(0.2)
    started = [task for task in tasks[1:] if (tmp_path / f"{task.key}.started").exists()]
    finished.close()  # type: ignore[attr-defined]
    for task in started:
        assert (tmp_path / f"{task.key}.ended").read_text() == "in order\n"
        # The fixture's Ray keeps its workers.
        assert name == "ray" or not is_running(int((tmp_path / f"{task.key}.tries").read_text()))
    if name != "submitit_slurm":
        assert len(started) == 2
    time.sleep(0.3)
    assert [task for task in tasks[1:] if launched.tries(task)] == started


DRIVER = """
import sys
from pathlib import Path
from gradstab.launchers import Task, build_launcher
from tests.integration import launched

if __name__ == "__main__":
    folder = sys.argv[2]
    tasks = [Task(f"cell{i}", {"folder": folder}) for i in range(4)]
    knobs = {"submitit_folder": folder + "/%j"} if sys.argv[1] == "submitit_local" else {}
    knobs |= {"ray": {}, "joblib": {"n_jobs": 2}, "submitit_local": {"max_workers": 2}}[sys.argv[1]]
    for done in build_launcher(sys.argv[1], **knobs).launch(tasks, launched.endless):
        print(done)
"""


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *(("joblib", how) for how in ("ctrl-c", "kill -9")),
        *(("submitit_local", how) for how in ("ctrl-c", "kill -9")),
        pytest.param("ray", "ctrl-c", marks=pytest.mark.slow),
    ],
)
def test_workers_end_in_order_with_whoever_started_them(name: str, how: str, tmp_path: Path) -> None:
    """Ctrl-C reaches all processes of a terminal; a kill only the one that it names."""
    (tmp_path / "driver.py").write_text(DRIVER)
    command = [sys.executable, "-W", "error", str(tmp_path / "driver.py"), name, str(tmp_path)]
    driver = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_until(lambda: len(list(tmp_path.glob("*.started"))) == 2)
    workers = [int(path.read_text()) for path in tmp_path.glob("*.tries")]
    if how == "ctrl-c":
        os.killpg(driver.pid, signal.SIGINT)
    else:
        driver.kill()
    out, err = driver.communicate(timeout=60)
    wait_until(lambda: not any(map(is_running, workers)))
    assert out == ""
    assert len(list(tmp_path.glob("*.started"))) == 2
    if how == "ctrl-c":
        assert err.splitlines()[-1] == "KeyboardInterrupt"
        assert "leaked" not in err
    assert [path.read_text() for path in tmp_path.glob("*.ended")] == ["in order\n"] * 2


# ------------------------------------------------------------------------------------------------ limits of time


@pytest.mark.slow
def test_a_local_job_whose_time_is_up_ends_in_order_and_goes_on(tmp_path: Path) -> None:
    (task,) = tasks_in(tmp_path, {"rounds": 1})
    launcher = build_launcher(
        "submitit_local", submitit_folder=f"{tmp_path}/%j", timeout_min=1.0, signal_delay_s=50, max_num_timeout=1
    )
    (done,) = launcher.launch([task], launched.endless)
    assert done.status == "completed"
    assert (tmp_path / "cell0.ended").read_text() == "in order\n"
    assert launched.tries(task) == 2


@pytest.mark.slow
def test_a_local_job_whose_time_is_up_too_often_is_told(tmp_path: Path) -> None:
    (task,) = tasks_in(tmp_path, {})
    launcher = build_launcher(
        "submitit_local", submitit_folder=f"{tmp_path}/%j", timeout_min=1.0, signal_delay_s=52, max_num_timeout=0
    )
    (done,) = launcher.launch([task], launched.endless)
    assert done.status is None
    assert done.error is not None
    assert "timed-out too many times" in done.error
    assert launched.tries(task) == 1


@pytest.mark.usefixtures("stand_in")
def test_a_preempted_slurm_job_ends_in_order_is_requeued_and_goes_on(tmp_path: Path) -> None:
    """Slurm itself lets a requeued job wait for two minutes."""
    tasks = tasks_in(tmp_path, {"rounds": 1}, {"rounds": 0})
    launcher = build_launcher("submitit_slurm", **all_launchers(tmp_path)["submitit_slurm"])
    finished: list[Done] = []
    thread = threading.Thread(target=lambda: finished.extend(launcher.launch(tasks, launched.endless)))
    thread.start()
    wait_until(lambda: (tmp_path / "cell0.started").exists())
    (pickle,) = (tmp_path / ".submitit").glob("*/*_0/*_0_submitted.pkl")
    subprocess.run(["scancel", "--signal=USR2", pickle.name.removesuffix("_submitted.pkl")], check=True)
    thread.join(timeout=60)
    assert {key: done.status for key, done in by_key(finished).items()} == {"cell0": "completed", "cell1": "completed"}
    assert (tmp_path / "cell0.ended").read_text() == "in order\n"
    assert [launched.tries(task) for task in tasks] == [2, 1]


# ------------------------------------------------------------------------------------------------ Ray


def test_ray_retries_dead_workers_and_refuses_folders_that_nodes_do_not_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], ray_here: Any
) -> None:
    tasks = tasks_in(tmp_path, {"deaths": 1}, {"deaths": 9}, {})
    knobs = all_launchers(tmp_path)["ray"]
    finished = by_key(list(build_launcher("ray", **knobs).launch(tasks, launched.deadly)))
    assert [finished[f"cell{i}"].status for i in range(3)] == ["completed", None, "completed"]
    assert "WorkerCrashedError" in (finished["cell1"].error or "")
    assert [launched.tries(task) for task in tasks] == [2, 2, 1]
    assert list(tmp_path.glob(".ray-*")) == []

    seen = build_launcher("ray", **(knobs | {"num_cpus": 2}))
    (task,) = tasks_in(tmp_path, {"torch": False})
    assert [done.status for done in seen.launch([task], launched.told)] == ["completed"]
    assert found(tmp_path, task)["OMP_NUM_THREADS"] == "2"
    # A cell that was given no GPU sees none.
    assert found(tmp_path, task)["CUDA_VISIBLE_DEVICES"] == ""

    monkeypatch.setattr(with_ray, "token", lambda _folder: contextlib.nullcontext(str(tmp_path / "elsewhere")))
    with pytest.raises(GradstabError, match="does not see the sweep's folder"):
        list(build_launcher("ray", **knobs).launch(tasks, launched.told))
    # One that was there before stays.
    assert ray_here.is_initialized()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("address", ["auto", "127.0.0.1:9"])
def test_an_address_without_a_cluster_is_named(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ray says it of ``auto``, which here would find the clusters of tests beside this one."""
    import ray

    def refused(**_kwargs: Any) -> None:
        assert address == "auto"
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refused)
    launcher = build_launcher("ray", address=address)
    with pytest.raises(
        ConfigError, match=rf"^hydra\.launcher\.address={address}: no Ray cluster answers there; allowed: "
    ):
        list(launcher.launch([Task("one", {})], launched.told))
