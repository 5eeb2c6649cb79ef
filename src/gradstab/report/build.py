"""``gradstab report``: from folders to the page, the pictures and the tables."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from gradstab.errors import ConfigError, GradstabError
from gradstab.report import exports, finding, page, runs, style, table, telling
from gradstab.report.digest import Digest, digest
from gradstab.report.sheets import sheets
from gradstab.wording import counted, printable

PAGE = "report.html"
# With more runs than this, each one's own pictures would bury what compares them.
DETAILED = 12
NOTED = 10


@dataclass(frozen=True)
class Request:
    """What was asked for; ``steps`` are those to draw depth profiles at, ``figures`` kinds of files.

    ``directories`` are the runs in and below ``folders``, ``planned`` the settings that a sweep gave them, and
    ``missing`` says in a line for each directory that it cannot be read, for each sweep how much of it there is not.
    """

    folders: tuple[Path, ...]
    directories: tuple[Path, ...]
    out: Path | None = None
    figures: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()
    csv: bool = False
    parquet: bool = False
    planned: Mapping[Path, Mapping[str, Any]] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


def build(request: Request, note: Callable[[str], object]) -> str:
    """Write what was asked for and say in one line what that was; ``note`` gets a line for each thing amiss.

    Raises GradstabError where nothing can be written.
    """
    if request.parquet:
        exports.require_pyarrow()
    target = _target(request)
    found, digests, written = _read(request, target)
    _say_what_is_missing(request, found, note)
    keys = table.differing([run.settings for run in found])
    detailed = len(found) <= DETAILED
    pairs = list(zip(found, digests, strict=True))
    sections = [page.section(run, data, i, keys, detailed=detailed) for i, (run, data) in enumerate(pairs)]
    bar = page.add_small_multiples(sections, digests) if len(sections) > 1 else Markup()
    title = found[0].name if len(found) == 1 else _title(request.folders)
    content = page.render(title, sections, keys, bar, request.missing, detailed=detailed).encode("utf-8", "replace")
    exports.write(target, content)
    if request.figures:
        folder, count = _write_pictures(request, target, sections, digests)
        if count:
            written.append(f"{counted(count, 'picture')} in {folder}")
        else:
            note("--figures: no picture is drawn: nothing was recorded that one would show")
        if not detailed:
            alone = "gradstab report RUN --figures draws a run's own"
            note(f"--figures: of more than {DETAILED} runs, only those side by side; {alone}")
    return ", ".join([f"wrote {target} ({counted(len(found), 'run')}, {len(content) / 1000:,.0f} kB)", *written])


def _title(folders: Sequence[Path]) -> str:
    return printable(folders[0].resolve().name) if len(folders) == 1 else f"{len(folders)} folders"


def _figures(target: Path) -> Path:
    """Where a page's pictures go by themselves."""
    return target.with_name(f"{target.stem}_figures")


def _target(request: Request) -> Path:
    """Where the page goes; its folder exists afterwards."""
    try:
        target = _place(request)
        if request.figures:
            _refuse_link(_figures(target))
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        asked = PAGE if request.out is None else f"--out {request.out}"
        raise GradstabError(f"{asked}: cannot be written ({error.strerror})") from error
    return target


def _place(request: Request) -> Path:
    out = request.out
    if out is None:
        folder = request.folders[0] if len(request.folders) == 1 else Path()
        return folder / PAGE
    if out.suffix.lower() in (".html", ".htm") and not out.is_dir():
        return out
    if out.suffix.lower() in (".pdf", ".png", ".svg", ".csv", ".parquet") and not out.is_dir():
        raise ConfigError(f"--out {out}: the page is HTML; allowed: a folder, or a file's name that ends in .html")
    if out.is_file():
        raise ConfigError(f"--out {out}: is a file; allowed: a folder, or a file's name that ends in .html")
    return out / PAGE


def _refuse_link(folder: Path) -> None:
    """Pictures are written through no link: a run from somebody else may have it point anywhere."""
    if folder.is_symlink():
        raise GradstabError(f"{folder}: is a link; allowed: --out with another place")


def _read(request: Request, target: Path) -> tuple[list[runs.Run], list[Digest], list[str]]:
    """Read one run after another, so that the records of no two are in memory at once."""
    directories = request.directories
    found, digests = [], []
    wanted = [kind for kind, asked in (("csv", request.csv), ("parquet", request.parquet)) if asked]
    paths = {kind: target.with_suffix(f".{kind}") for kind in wanted}
    with contextlib.ExitStack() as stack:
        tables: list[exports.CsvTable | exports.ParquetTable] = []
        for kind, path in paths.items():
            temporary = stack.enter_context(exports.replacing(path))
            tables.append((exports.CsvTable if kind == "csv" else exports.ParquetTable)(temporary))
            stack.callback(tables[-1].close)
        for directory, name in zip(directories, finding.names(list(directories)), strict=True):
            run = runs.load(directory, name, request.planned.get(directory.resolve()))
            telling.tell(run)
            data = digest(run, request.steps, coarse=len(directories) > DETAILED)
            _note_steps(run, data, request.steps)
            for one in tables:
                one.add(run)
            run.records = run.records.ends()
            found.append(run)
            digests.append(data)
    return found, digests, [str(path) for path in paths.values()]


def _note_steps(run: runs.Run, data: Digest, steps: Sequence[int]) -> None:
    if data.depth is not None and (absent := [step for step in steps if step not in data.depth.steps]):
        nearest = ", ".join(f"{step:,}" for step in data.depth.steps)
        run.notes.append(f"not measured at step {', '.join(map(str, absent))}: the nearest are drawn ({nearest})")


def _say_what_is_missing(request: Request, found: Sequence[runs.Run], note: Callable[[str], object]) -> None:
    for line in request.missing:
        note(line)
    noted = [run for run in found if run.notes]
    for run in noted[:NOTED]:
        note(f"{run.name}: {'; '.join(run.notes)}")
    if len(noted) > NOTED:
        note(f"and {len(noted) - NOTED} more not complete; the page says what each lacks")


def _write_pictures(
    request: Request, target: Path, sections: Sequence[page.Section], digests: Sequence[Digest]
) -> tuple[Path, int]:
    folder = _figures(target)
    pictures: list[tuple[Path, page.Drawing, str]] = []
    folders = finding.distinct([_folder_name(section.row.name) for section in sections], "{}_{}")
    for section, own in zip(sections, folders, strict=True):
        below = folder if len(sections) == 1 else folder / own
        name = table.shortened(section.row.name, 44)
        pictures += [(below / d.key, d, f"{name}\n{d.title}") for d in section.figures]
    count = 0
    for path, drawing, title in pictures:
        for kind in request.figures:
            _write_picture(path, kind, style.picture(drawing.figure, kind, title))
            count += 1
    if len(sections) > 1:
        captions = [section.caption for section in sections]
        for number, fig in enumerate(sheets(digests, captions), 1):
            for kind in request.figures:
                _write_picture(folder / f"small_multiples_{number:02d}", kind, style.picture(fig, kind))
                count += 1
    return folder, count


def _write_picture(path: Path, kind: str, content: bytes) -> None:
    try:
        _refuse_link(path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GradstabError(f"{path.parent}: cannot be written ({error.strerror})") from error
    exports.write(path.with_name(f"{path.name}.{kind}"), content)


def _folder_name(name: str) -> str:
    """A run's name as a folder's."""
    return re.sub(r"[^\w.=,+-]+", "_", name)[:100].strip("._") or "run"
