"""``gradstab report`` as a person meets it: whole, running and broken runs, tables, pictures, and what is refused."""

from __future__ import annotations

import csv
import errno
import functools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from gradstab.cli import main
from gradstab.cli.report import MOST_STEPS
from gradstab.events import EventWriter, layer_tags, read_records
from gradstab.report import figures, style

Done = subprocess.CompletedProcess[str]
Report = Callable[..., Done]
CONFIG = (
    "seed: {seed}\nmodel:\n  name: deep_mlp\n  depth: 3\nact:\n  name: {act}\nout_dir: null\nmeasure:\n  name: full\n"
)


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Report:
    """``gradstab report`` in this process, with ``tmp_path`` as its folder."""
    monkeypatch.chdir(tmp_path)

    def call(*args: str) -> Done:
        code = main(["report", *args])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        assert all(line.startswith("gradstab: ") for line in err.splitlines())
        return subprocess.CompletedProcess(args, code, out, err)

    return call


def make_run(
    folder: Path, *, layers: int = 4, steps: int = 12, act: str = "relu", seed: int = 0, **extra: object
) -> Path:
    """A run as the runner leaves it, with a verdict and a theory of its own."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    tags = layer_tags(["hidden"] * (layers - 1) + ["output"])
    writer = EventWriter(folder, tags)
    for step in range(steps):
        vectors = {"grad_norm": np.exp(rng.normal(size=layers))}
        if step % 4 == 0:
            vectors["signal_grad_norm"] = np.exp(rng.normal(size=layers))
            vectors["activation_std"] = rng.random(layers - 1)
        norms = {f"global_grad_norm/{side}_clip": 1.0 for side in ("pre", "post")}
        writer.write(step, {"train/loss": float(rng.random()), **norms}, vectors)
    writer.write(steps, {"test/loss": 0.7, "test/accuracy": 0.625}, {})
    writer.close()
    verdict = {"labels": ["healthy"], "step": steps - 1, "findings": [], "remedies": []}
    record = {"status": "completed", "reason": "", "layers": tags, "steps": steps, "test_accuracy": 0.625}
    record |= {"theory": {"reason": "none of it"}, "verdict": verdict, "seed": seed, **extra}
    (folder / "run.json").write_text(json.dumps({key: value for key, value in record.items() if value is not None}))
    (folder / "config.yaml").write_text(CONFIG.format(seed=seed, act=act))
    return folder


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_one_run_gets_a_page_and_nothing_else_changes(report: Report, tmp_path: Path) -> None:
    before = _contents(make_run(tmp_path / "run"))
    done = report("run")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("wrote run/report.html (1 run, ")
    assert done.stdout.count("\n") == 1
    after = _contents(tmp_path)
    page = after.pop(str(tmp_path / "run/report.html")).decode()
    assert after == before
    assert all(word in page for word in ("completed", "healthy", "62.50 %", "none of it", "model.depth"))
    assert report("run").returncode == 0


def test_a_sweep_shows_the_differing_keys_only(report: Report, tmp_path: Path) -> None:
    for i, act in enumerate(("relu", "tanh")):
        run = make_run(tmp_path / "sweep" / f"{i:03d}", act=act, seed=i, steps=0)
        with (run / "config.yaml").open("a") as file:
            file.write(f"steps: {i + 1}\nquiet: {'true' if i else 'false'}\n")
    done = report("sweep")
    assert done.returncode == 0
    page = (tmp_path / "sweep/report.html").read_text()
    heads = page.split("<thead>")[1].split("</thead>")[0]
    assert "act" in heads
    assert "seed" in heads
    assert "model.depth" not in heads
    assert "seed=0, act=relu, steps=1, quiet=false" in page
    # As YAML has it in the table too, and no two columns have one name.
    assert '<td data-sort="true">true</td>' in page
    assert "True" not in page
    assert [heads.count(f">{name}<") for name in ("steps", "steps done")] == [1, 1]


@pytest.mark.parametrize("content", [None, "", "a: [1, {"])
def test_a_run_without_a_configuration_leaves_the_differing_keys_alone(
    report: Report, tmp_path: Path, content: str | None
) -> None:
    for i, act in enumerate(("relu", "tanh", "relu")):
        make_run(tmp_path / "sweep" / f"{i:03d}", act=act, steps=0)
    (tmp_path / "sweep/002/config.yaml").unlink()
    if content is not None:
        (tmp_path / "sweep/002/config.yaml").write_text(content)
    assert report("sweep").returncode == 0
    page = (tmp_path / "sweep/report.html").read_text()
    heads = page.split("<thead>")[1].split("</thead>")[0]
    assert "act" in heads
    assert not any(key in heads for key in ("seed", "model", "measure"))


def test_several_folders_are_reported_on_here(report: Report, tmp_path: Path) -> None:
    make_run(tmp_path / "a", steps=0)
    make_run(tmp_path / "sweep/b", steps=0)
    assert report("a", "sweep", "a/../a").stdout.startswith("wrote report.html (2 runs, ")
    assert report("a", "--out", "new/page.html").returncode == 0
    assert report("a", "--out=other/deep").returncode == 0
    assert (tmp_path / "new/page.html").is_file()
    assert (tmp_path / "other/deep/report.html").is_file()


def test_tables_hold_exactly_what_was_recorded(report: Report, tmp_path: Path) -> None:
    names = {
        "plain": make_run(tmp_path / "s/plain"),
        'odd, "name" %s': make_run(tmp_path / 's/odd, "name" %s', layers=2),
    }
    (first,) = names["plain"].glob("events*")
    first.rename(names["plain"] / "events.out.tfevents.0")
    writer = EventWriter(names["plain"], layer_tags(["hidden"] * 3 + ["output"]))
    writer.write(12, {}, {"grad_norm": np.array([math.inf, math.nan, 1e-300, 0.1])})
    writer.close()
    done = report("s", "--csv", "--parquet")
    assert done.returncode == 0
    assert "s/report.csv" in done.stdout
    expected = {}
    for name, folder in names.items():
        records = read_records(folder)
        for quantity, series in records.vectors.items():
            for step, row in zip(series.steps.tolist(), series.values.tolist(), strict=True):
                expected |= {
                    (name, step, tag, quantity): value for tag, value in zip(records.layers, row, strict=False)
                }
    with (tmp_path / "s/report.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["run", "step", "layer", "quantity", "value"]
    from_csv = {(run, int(step), layer, quantity): float(value) for run, step, layer, quantity, value in rows[1:]}
    table = pq.read_table(tmp_path / "s/report.parquet")
    assert table.column_names == rows[0]
    from_parquet = {tuple(row[:4]): row[4] for row in zip(*table.to_pydict().values(), strict=True)}
    for found, length in ((from_csv, len(rows) - 1), (from_parquet, table.num_rows)):
        assert length == len(expected)
        assert set(found) == set(expected)
        np.testing.assert_array_equal([found[key] for key in expected], list(expected.values()))


def test_pictures_by_themselves(report: Report, tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    done = report("run", "--figures", "svg,pdf", "--figures=svg", "--steps", "0,8")
    assert done.returncode == 0
    assert "10 pictures in run/report_figures" in done.stdout
    starts = {".svg": b"<?xml", ".pdf": b"%PDF"}
    pictures = sorted((tmp_path / "run/report_figures").iterdir())
    names = {path.stem for path in pictures}
    assert names == {"heatmap", "depth_profile", "loss_accuracy", "clipping", "activations"}
    assert len(pictures) == 10
    for path in pictures:
        assert path.read_bytes().startswith(starts[path.suffix])
    svg = (tmp_path / "run/report_figures/depth_profile.svg").read_text()
    assert "step 8" in svg
    assert "step 4" not in svg


def test_that_there_is_no_picture_is_said(report: Report, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for path in run.glob("events*"):
        path.unlink()
    done = report("run", "--figures", "png")
    assert "gradstab: --figures: no picture is drawn" in done.stderr
    assert "picture" not in done.stdout
    assert not (run / "report_figures").exists()


def test_pictures_of_several_runs_stand_in_folders_and_side_by_side(report: Report, tmp_path: Path) -> None:
    for name in ("x y", "x_y"):
        make_run(tmp_path / "s" / name, steps=3)
    assert report("s", "--figures", "png").returncode == 0
    folder = tmp_path / "s/report_figures"
    assert {path.name for path in folder.iterdir()} == {"x_y", "x_y_2", "small_multiples_01.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.rglob("*.png"))


def test_steps_that_were_not_measured_are_said_to_be_not(report: Report, tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    done = report("run", "--steps", "1,8")
    assert done.stderr == "gradstab: run: not measured at step 1: the nearest are drawn (0, 8)\n"


def _truncate(folder: Path) -> None:
    (path,) = folder.glob("events*")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _no_records(folder: Path) -> None:
    for path in folder.glob("events*"):
        path.write_bytes(b"")


def _no_event_file(folder: Path) -> None:
    for path in folder.glob("events*"):
        path.unlink()


def _all_broken(folder: Path) -> None:
    _no_event_file(folder)
    writer = EventWriter(folder, layer_tags(["hidden"] * 3 + ["output"]))
    for step, value in enumerate((math.nan, math.inf, -math.inf, 0.0)):
        vectors = {q: np.full(4, value) for q in ("grad_norm", "signal_grad_norm", "weight_norm")}
        vectors |= {q: np.full(3, value) for q in ("activation_std", "activation_mean", "dead_fraction")}
        tags = ("train/loss", "global_grad_norm/pre_clip", "global_grad_norm/post_clip", "clip/triggered")
        writer.write(step, dict.fromkeys((*tags, "test/loss", "test/accuracy"), value), vectors)
    writer.close()


def _only_losses(folder: Path) -> None:
    _no_event_file(folder)
    (folder / "config.yaml").write_text("measure:\n  name: none\n")
    writer = EventWriter(folder, [])
    writer.write(0, {"train/loss": 1.0}, {})
    writer.close()


def _set(**entries: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        record = json.loads((folder / "run.json").read_text()) | entries
        (folder / "run.json").write_text(json.dumps({k: v for k, v in record.items() if v is not None}))

    return change


def _write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


NONSENSE = {
    "status": 5,
    "layers": "abc",
    "steps": [],
    "theory": {"signal_grad_norm": ["x"]},
    "verdict": {"findings": 3},
}
NONSENSE |= {"test_accuracy": "high", "seconds": {}, "depth_factor": "nan", "reason": None, "train_loss": "-inf"}
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "running": (_set(status="running", verdict=None, theory=None, test_accuracy=None), "killed: no final figures"),
    "killed": (_truncate, "event file cut off or damaged after step"),
    "corrupt run.json": (_write("run.json", '{"status": "comp'), "run.json cannot be read"),
    "run.json is a list": (_write("run.json", "[1]"), "run.json holds no record"),
    "run.json is empty": (_write("run.json", "{}"), "run.json has no status"),
    "no run.json": (lambda folder: (folder / "run.json").unlink(), "no run.json"),
    "nonsense in run.json": (_set(**NONSENSE), "the verdict in run.json cannot be read"),
    "no config.yaml": (lambda folder: (folder / "config.yaml").unlink(), "no config.yaml"),
    "corrupt config.yaml": (_write("config.yaml", "a: [1, {"), "config.yaml cannot be read"),
    "config.yaml is a list": (_write("config.yaml", "- 1"), "config.yaml holds no configuration"),
    "no event file": (_no_event_file, "no event file"),
    "empty event file": (_no_records, "the event file holds no records"),
    "measure=none": (_only_losses, "no per-layer gradient norms (measure=none)"),
    "nothing finite": (_all_broken, ""),
    "diverged": (_set(status="diverged", reason="loss inf", verdict=None, train_loss="inf"), ""),
}


@pytest.mark.parametrize("what", ["running", "killed", "run.json is empty", "no event file", "nothing finite"])
def test_a_broken_run_reports_what_there_is_and_says_what_is_missing(report: Report, tmp_path: Path, what: str) -> None:
    breaking, said = BROKEN[what]
    folder = make_run(tmp_path / "run", steps=8)
    breaking(folder)
    before = _contents(folder)
    done = report("run", "--csv")
    assert done.returncode == 0
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == (1 if said else 0)
    assert said in (folder / "report.html").read_text()
    assert {path: data for path, data in _contents(folder).items() if path in before} == before


def test_broken_and_whole_runs_stand_side_by_side(report: Report, tmp_path: Path) -> None:
    for i, (breaking, _) in enumerate(BROKEN.values()):
        breaking(make_run(tmp_path / "sweep" / f"{i:02d}", steps=4, layers=2 if i < 5 else 4))
    done = report("sweep")
    assert done.returncode == 0
    assert f"({len(BROKEN)} runs, " in done.stdout
    assert done.stderr.splitlines()[-1].startswith("gradstab: and ")
    sections = (tmp_path / "sweep/report.html").read_text().split('<details id="run-')[1:]
    assert len(sections) == len(BROKEN)
    for section, (_, said) in zip(sections, BROKEN.values(), strict=True):
        assert said in section


@pytest.mark.parametrize(("layers", "steps"), [(1, 5), (2, 1), (1001, 3)])
def test_nets_of_any_depth_and_runs_of_one_step(report: Report, tmp_path: Path, layers: int, steps: int) -> None:
    make_run(tmp_path / "run", layers=layers, steps=steps, verdict=None)
    assert report("run").returncode == 0
    assert (tmp_path / "run/report.html").stat().st_size < 1_500_000


def test_a_real_run_reports_without_importing_torch(tmp_path: Path) -> None:
    """One run of the runner's own, so that what it writes and what is read do not drift apart."""
    train = "import sys; from gradstab.cli import main; sys.exit(main(sys.argv[1:]))"
    tiny = ("model.depth=3", "model.width=8", "steps=6", "batch_size=32", "device=cpu", "measure=full", "quiet=true")
    command = [sys.executable, "-c", train, "train", *tiny, "clip=norm", "out_dir=run"]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    code = train.replace("sys.exit(main(sys.argv[1:]))", "sys.exit(main(sys.argv[1:]) or 'torch' in sys.modules)")
    done = subprocess.run(
        [sys.executable, "-c", code, "report", "run"], check=False, cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "") or "no prediction" in done.stderr
    page = (tmp_path / "run/report.html").read_text()
    titles = ("Gradient norm over layer and step", "Depth profile", "Loss and accuracy", "Activation statistics")
    assert all(title in page for title in titles)
    assert "of the recorded steps were clipped" in page


def test_what_is_printed_of_an_odd_name_is_one_line(report: Report, tmp_path: Path) -> None:
    make_run(tmp_path / "a\x1b[31m\nb", steps=2)
    done = report("a\x1b[31m\nb", "--figures", "png, svg")
    assert done.returncode == 0
    assert done.stdout.startswith("wrote a\ufffd[31m\ufffdb/report.html (1 run, ")
    assert done.stdout.count("\n") == 1
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "names no folder"),
        (["nowhere"], "nowhere: there is no such folder"),
        (["file"], "file: is a file"),
        (["empty"], "empty: holds no run"),
        (["run", "--colour"], "--colour: there is no such flag; allowed: --out, --figures"),
        (["run", "-x"], "-x: there is no such flag"),
        (["run", "--figures", "gif"], "--figures gif: is no kind of picture; allowed: png, svg, pdf"),
        (["run", "--figures"], "--figures: needs a value"),
        (["run", "--steps", "1,-2"], "--steps -2: is no step; allowed: whole numbers"),
        (["run", "--steps", "x"], "--steps x: is no step"),
        (["run", "--csv=yes"], "--csv=yes: takes no value"),
        (["run", "--out", "a", "--out", "b"], "--out b: was given already"),
        (["run", "--out", "run/config.yaml"], "--out run/config.yaml: is a file"),
        (["run", "--out="], "is no place"),
        (["run", "nowhere"], "nowhere: there is no such folder"),
        ([""], "is no folder"),
        (["a\0b"], "is no folder"),
        (["x" * 300], "cannot be read (File name too long)"),
    ],
)
def test_a_wrong_command_is_one_line_and_exit_code_2(
    report: Report, tmp_path: Path, args: list[str], said: str
) -> None:
    make_run(tmp_path / "run", steps=2)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    before = _contents(tmp_path)
    done = report(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert _contents(tmp_path) == before


@pytest.mark.parametrize(
    "args",
    [
        *(["--out", place] for place in ("file/below", "report.html", "/dev/null/x.html", "x" * 300)),
        *(["--figures", "png"], ["--csv"]),
    ],
)
def test_what_cannot_be_written_is_one_line_and_exit_code_1(report: Report, tmp_path: Path, args: list[str]) -> None:
    make_run(tmp_path / "run", steps=2)
    (tmp_path / "file").write_text("")
    (tmp_path / "report.html/report.html").mkdir(parents=True)
    (tmp_path / "run/report_figures").write_text("")
    (tmp_path / "run/report.csv").mkdir()
    done = report("run", *args)
    assert done.returncode == 1
    assert "cannot be written" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.rglob(".report*"))


def test_parquet_without_pyarrow_is_one_clear_line(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "run", steps=2)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    done = report("run", "--parquet")
    assert done.returncode == 2
    assert done.stderr == "gradstab: --parquet: needs pyarrow; pip install 'gradstab[parquet]', or use --csv\n"


def test_help(report: Report) -> None:
    done = report("nowhere", "--help")
    assert done.returncode == 0
    assert all(flag in done.stdout for flag in ("--out", "--figures", "--steps", "--csv", "--parquet", "DIR"))


@pytest.mark.parametrize(("folder", "whole"), [("up/sweep", True), ("up", True), ("up/sweep/000_a", False)])
def test_cells_that_are_not_there_are_told_of(report: Report, tmp_path: Path, folder: str, whole: bool) -> None:
    sweep = tmp_path / "up/sweep"
    make_run(tmp_path / "up/other")
    make_run(sweep / "000_a")
    (sweep / "000_a/config.yaml").unlink()
    settings = {"model": {"name": "deep_mlp", "width": 7}, "seed": 3}
    lines = [
        {"key": f"{number:016x}", "directory": f"{number:03d}_{name}", "status": "pending", "settings": settings}
        for number, name in enumerate(("a", "b", "c"))
    ]
    (sweep / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = report(folder)
    said = "2 of 3 cells have not run yet"
    assert (f"gradstab: sweep: {said}" in done.stderr) == whole
    page = (tmp_path / folder / "report.html").read_text()
    assert (said in page) == whole
    # What a run itself does not say, the ledger does.
    assert "model.width" in page


def test_a_cell_that_may_not_be_read_is_not_said_to_be_missing(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "sweep/000_a")
    shut = make_run(tmp_path / "sweep/001_b")
    lines = [
        {"key": f"{number:016x}", "directory": name, "status": "pending"}
        for number, name in enumerate(("000_a", "001_b", "002_c"))
    ]
    (tmp_path / "sweep/ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def refusing(ask: Callable[[str], object], path: str) -> object:
        if Path(path).resolve() == shut:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return ask(path)

    for name in ("scandir", "listdir"):
        monkeypatch.setattr(os, name, functools.partial(refusing, getattr(os, name)))
    done = report("sweep")
    assert "gradstab: sweep/001_b: cannot be read (Permission denied)\n" in done.stderr
    assert "sweep: 1 of 3 cells have not run yet" in done.stderr
    assert "001_b: cannot be read" in (tmp_path / "sweep/report.html").read_text()


def test_runs_are_found_through_links(report: Report, tmp_path: Path) -> None:
    make_run(tmp_path / "real/one")
    make_run(tmp_path / "real/two")
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    (chosen / "a").symlink_to(tmp_path / "real/one")
    (chosen / "b").symlink_to(tmp_path / "real/two")
    (chosen / "loop").symlink_to(chosen)
    assert "(2 runs," in report("chosen").stdout


def test_a_page_is_html(report: Report, tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    done = report("run", "--out", "page.pdf")
    assert done.returncode == 2
    assert "--out page.pdf: the page is HTML" in done.stderr


@pytest.mark.parametrize("second", [{"last": 2}, {"last": 1, "more": 1}])
def test_captions_are_never_two_runs_own(tmp_path: Path, second: dict[str, int]) -> None:
    """Twenty settings differ, and what is left of a caption on one line is the same for both, but for its "… more"."""
    from gradstab.report import page, table
    from gradstab.report.digest import digest
    from gradstab.report.runs import load

    common = {f"key_number_{i:02d}": "the same" for i in range(20)}
    sections, digests = [], []
    for name, last in (("one", {"last": 1}), ("two", second)):
        run = load(make_run(tmp_path / name), name)
        run.settings = common | last
        digests.append(digest(run, (), coarse=True))
        sections.append(page.section(run, digests[-1], 0, list(run.settings), detailed=False))
    page.add_small_multiples(sections, digests)
    assert [table.shortened(made.caption) for made in sections] == ["one", "two"]


def test_a_run_without_its_end_shows_what_was_recorded_last(report: Report, tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_run(tmp_path / "runs" / name, seed=ord(name))
    (tmp_path / "runs/a/run.json").unlink()
    last = read_records(tmp_path / "runs/a").scalars["train/loss"].values[-1]
    assert report("runs/a").returncode == 0
    page = (tmp_path / "runs/a/report.html").read_text()
    assert page.count(f"{last:.4g}, as recorded last") == 1
    assert "62.50 %, as recorded last" in page
    assert report("runs").returncode == 0
    assert f'data-sort="{float(last)!r}"' in (tmp_path / "runs/report.html").read_text()


def test_many_steps_get_room_and_too_many_are_refused(report: Report, tmp_path: Path) -> None:
    make_run(tmp_path / "run", steps=100)
    heights = []
    for count in (3, MOST_STEPS):
        steps = ",".join(str(4 * i) for i in range(count))
        assert report("run", "--steps", steps, "--figures", "png").returncode == 0
        png = (tmp_path / "run/report_figures/depth_profile.png").read_bytes()
        heights.append(int.from_bytes(png[20:24], "big"))
    assert heights[1] > 1.25 * heights[0]
    done = report("run", "--steps", ",".join(map(str, range(MOST_STEPS + 1))))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "gradstab: --steps: names 25 steps; allowed: at most 24, to tell lines apart\n"
    assert len(style.SEQUENCE) * len(figures.DASHES) == MOST_STEPS


def test_a_configuration_too_deep_to_read_is_that_runs_alone(report: Report, tmp_path: Path) -> None:
    for name in ("bad", "good"):
        make_run(tmp_path / "runs" / name)
    (tmp_path / "runs/bad/config.yaml").write_text(f"a: {'[' * 600}{']' * 600}\n")
    done = report("runs")
    assert done.returncode == 0
    assert done.stderr == "gradstab: bad: config.yaml cannot be read (RecursionError)\n"


def test_runs_whose_names_look_alike_are_told_apart(report: Report, tmp_path: Path) -> None:
    for name in ("a\u00a0b", "a\u2003b"):
        make_run(tmp_path / "runs" / name)
    assert report("runs", "--csv").returncode == 0
    with (tmp_path / "runs/report.csv").open(encoding="utf-8") as file:
        rows = [row["run"] for row in csv.DictReader(file)]
    assert {name: rows.count(name) for name in rows} == {"a\ufffdb": len(rows) // 2, "a\ufffdb (2)": len(rows) // 2}


def test_values_at_the_end_of_what_numbers_hold_and_vectors_of_nothing(report: Report, tmp_path: Path) -> None:
    for name, vectors in {
        "huge": {
            "grad_norm": np.ones(2),
            "signal_grad_norm": np.ones(2),
            "activation_mean": np.array([1.7e308, -1e308]),
        },
        "empty": {"grad_norm": np.zeros(0), "signal_grad_norm": np.zeros(0)},
    }.items():
        make_run(tmp_path / "runs" / name, steps=0)
        next((tmp_path / "runs" / name).glob("events*")).unlink()
        writer = EventWriter(tmp_path / "runs" / name, ["00_a", "01_b"])
        for step in range(3):
            writer.write(step, {"train/loss": 1.0}, {key: value / (step + 1) for key, value in vectors.items()})
        writer.close()
        assert report(f"runs/{name}", "--figures", "png").returncode == 0
    assert report("runs").returncode == 0
