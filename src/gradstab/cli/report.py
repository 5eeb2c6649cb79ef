"""``gradstab report``: the words of the command, checked, and handed on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradstab.cli.output import complain, one_line, say
from gradstab.cli.places import no_such_flag, path_of
from gradstab.errors import ConfigError, GradstabError

# Six colours by four kinds of dashes.
MOST_STEPS = 24
USAGE = """\
gradstab report: one page for a run, for several, or for a whole sweep

usage: gradstab report DIR... [options]

DIR is a run's directory or any folder with runs in or below it; finished,
running and broken runs are all read.

options:
  --out FILE|DIR   where the page goes: a name that ends in .html, or a folder
                   for report.html (default: in DIR itself; with several, in
                   the current folder)
  --figures KINDS  the pictures by themselves as well: png, svg, pdf, or several
                   with commas between them
  --steps N,N,...  the steps to draw profiles over depth at (default: a few of
                   the measured ones)
  --csv            the per-layer records as a table: run, step, layer, quantity,
                   value
  --parquet        the same as a Parquet file (needs pyarrow:
                   pip install 'gradstab[parquet]')
  -h, --help       this text

Pictures and tables stand beside the page and take its name: report_figures/,
report.csv, report.parquet.
"""
KINDS = ("png", "svg", "pdf")
FLAGS = ("--out", "--figures", "--steps", "--csv", "--parquet", "-h", "--help")


def report(args: Sequence[str]) -> int:
    """Report on the runs in the folders that ``args`` name; returns the exit code."""
    folders: list[Path] = []
    values: dict[str, list[str]] = {}
    rest = list(args)
    only_folders = False
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        if only_folders or not word.startswith("-") or word == "-":
            folders.append(path_of(word, "folder", "run directories, or folders with runs in them"))
        elif word == "--":
            only_folders = True
        elif flag in ("-h", "--help"):
            return say(USAGE)
        elif flag in ("--csv", "--parquet"):
            if equals:
                raise ConfigError(f"{word}: takes no value")
            values[flag] = []
        elif flag in ("--out", "--figures", "--steps"):
            values.setdefault(flag, []).extend([value] if equals else _following(flag, rest))
        else:
            raise no_such_flag(word, FLAGS)
    if not folders:
        raise ConfigError("report: names no folder; allowed: run directories, or folders with runs in them")
    # What is asked for may be wrong in several ways; all are told before anything is read or drawn.
    out, kinds, steps = (
        _out(values.get("--out", [])),
        _kinds(values.get("--figures")),
        _steps(values.get("--steps", [])),
    )
    from gradstab.report.build import Request, build
    from gradstab.report.finding import find
    from gradstab.run_directory import LEDGER_FILE

    found = find(folders, LEDGER_FILE)
    planned, missing = _ledgers(found.runs, found.marked)
    missing = (*found.shut, *missing)
    tables = "--csv" in values, "--parquet" in values
    request = Request(tuple(folders), tuple(found.runs), out, kinds, steps, *tables, planned=planned, missing=missing)
    return say(one_line(build(request, complain)) + "\n")


def _ledgers(runs: Sequence[Path], sweeps: Sequence[Path]) -> tuple[dict[Path, dict[str, Any]], tuple[str, ...]]:
    """What ledgers say: the settings of ``runs`` and other cells by their places, and how many of ``sweeps`` are not.

    A run that was named alone has its settings from the ledger too, but of its sweep's other cells nothing is missed.
    """
    from gradstab.report.finding import may_hold_run
    from gradstab.sweeps.ledger import Ledger

    planned: dict[Path, dict[str, Any]] = {}
    missing = []
    whole = {folder.resolve(): folder for folder in sweeps}
    for place in dict.fromkeys([*whole, *(run.resolve().parent for run in runs)]):
        try:
            entries = Ledger(whole.get(place, place)).read()[0]
        except GradstabError as error:
            missing.append(str(error))
            continue
        cells = {(place / entry.directory).resolve(): entry.settings for entry in entries.values()}
        planned |= cells
        absent = sum(not may_hold_run(cell) for cell in cells)
        if absent and place in whole:
            missing.append(f"{place.name}: {absent} of {len(cells)} cells have not run yet")
    return planned, tuple(missing)


def _following(flag: str, rest: list[str]) -> list[str]:
    """The value of a flag in the words behind it; several only where none can be a folder meant as one."""
    if not rest or rest[0].startswith("--"):
        raise ConfigError(f"{flag}: needs a value (see gradstab report --help)")
    taken = [rest.pop(0)]
    while flag == "--figures" and rest and rest[0] in KINDS:
        taken.append(rest.pop(0))
    return taken


def _out(values: Sequence[str]) -> Path | None:
    if len(values) > 1:
        raise ConfigError(f"--out {values[-1]}: was given already as {values[0]}; allowed: one place")
    return path_of(values[0], "place", "a folder, or a file's name that ends in .html", "--out") if values else None


def _kinds(values: Sequence[str] | None) -> tuple[str, ...]:
    words = [word.strip() for value in values or () for word in value.split(",")]
    for word in words:
        if word not in KINDS:
            raise ConfigError(f"--figures {word}: is no kind of picture; allowed: {', '.join(KINDS)}")
    return tuple(dict.fromkeys(words))


def _steps(values: Sequence[str]) -> tuple[int, ...]:
    steps = []
    for word in (word.strip() for value in values for word in value.split(",")):
        if not (word.isascii() and word.isdecimal()) or len(word) > 18:
            raise ConfigError(f"--steps {word}: is no step; allowed: whole numbers from 0, with commas between them")
        steps.append(int(word))
    distinct = tuple(dict.fromkeys(steps))
    if len(distinct) > MOST_STEPS:
        raise ConfigError(f"--steps: names {len(distinct)} steps; allowed: at most {MOST_STEPS}, to tell lines apart")
    return distinct
