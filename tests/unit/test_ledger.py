"""A sweep's ledger: what survives kills, full disks and many writers, and what is made of damaged lines."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from gradstab.claims import claimed
from gradstab.console.sweep import Column, fitted
from gradstab.errors import GradstabError
from gradstab.run_directory import write_run
from gradstab.sweeps import ledger as ledgers
from gradstab.sweeps.ledger import Entry, Ledger
from gradstab.sweeps.naming import cell_directory, group_of, key_of, sweep_folder
from gradstab.sweeps.state import print_of, true_state

KEY = "0123456789abcdef"


def _mark(ledger: Ledger, status: str, key: str = KEY, directory: str = "000_a=1_01234567") -> None:
    ledger.mark(key, directory, status)


def test_the_last_word_counts(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.append(
        {"key": KEY, "directory": "000_x", "status": "pending", "swept": {"a": "1"}, "settings": {"a": 1}, "again": "p"}
    )
    for status in ("running", "interrupted", "running"):
        _mark(ledger, status)
    (entry,) = ledger.read()[0].values()
    assert (entry.status, entry.directory, entry.swept, entry.settings) == ("running", "000_x", {"a": "1"}, {"a": 1})
    assert (entry.again, entry.pid) == ("p", os.getpid())
    _mark(ledger, "completed")
    assert ledger.read()[0][KEY].again == ""


def test_no_ledger_is_an_empty_one(tmp_path: Path) -> None:
    assert Ledger(tmp_path).read() == ({}, [])


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_torn_last_line_is_ignored_and_gone_with_the_next(tmp_path: Path, cut: int) -> None:
    ledger = Ledger(tmp_path)
    _mark(ledger, "pending")
    _mark(ledger, "running")
    whole = ledger.path.read_bytes()
    ledger.path.write_bytes(whole[:-cut])
    entries, damaged = ledger.read()
    assert (entries[KEY].status, damaged) == ("pending", [])
    _mark(ledger, "completed")
    entries, damaged = ledger.read()
    assert (entries[KEY].status, damaged) == ("completed", [])
    assert len(ledger.path.read_bytes().splitlines()) == 2


def test_a_torn_line_longer_than_what_is_read_at_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    _mark(ledger, "pending")
    with ledger.path.open("ab") as file:
        file.write(b"x" * 200_000)
    _mark(ledger, "running")
    assert ledger.read()[0][KEY].status == "running"
    assert len(ledger.path.read_bytes().splitlines()) == 2


@pytest.mark.parametrize(
    "line",
    [
        b"garbage",
        b"\xff\xfe\x00",
        b"[]",
        b"[" * 100_000,
        b'{"key": "0123456789abcdef", "directory": "../../etc", "status": "pending"}',
        b'{"key": "0123456789abcdef", "directory": "..", "status": "pending"}',
        b'{"key": "short", "directory": "000", "status": "pending"}',
        b'{"key": "0123456789abcdef", "directory": "000", "status": "done"}',
        b'{"key": "0123456789abcdef", "directory": "000", "status": ["pending"]}',
        b'{"key": "0123456789abcdef", "directory": "000", "status": "pending", "settings": 3}',
        b'{"key": "0123456789abcdef", "directory": "000", "status": "pending", "swept": {"act": 3}}',
        b'{"key": "0123456789abcdef", "directory": "000", "status": "pending", "reason": null}',
    ],
)
def test_a_damaged_line_is_named_and_skipped(tmp_path: Path, line: bytes) -> None:
    ledger = Ledger(tmp_path)
    _mark(ledger, "pending")
    _mark(ledger, "running")
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    ledger.path.write_bytes(lines[0] + line + b"\n" + lines[1])
    entries, (damaged,) = ledger.read()
    assert entries[KEY].status == "running"
    assert damaged.startswith(f"{ledger.path}, line 2:")


def test_a_ledger_that_is_no_file_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / ledgers.LEDGER_FILE).mkdir()
    with pytest.raises(GradstabError, match=r"ledger\.jsonl: cannot be read"):
        Ledger(tmp_path).read()
    with pytest.raises(GradstabError, match=r"ledger\.jsonl: cannot be written"):
        _mark(Ledger(tmp_path), "running")


def _append_many(folder: Path, number: int) -> None:
    ledger = Ledger(folder)
    for i in range(50):
        ledger.mark(f"{number:08d}{i:08d}", f"{number}_{i}", "completed", "x" * (i * 40))


def test_many_processes_write_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append_many, args=(tmp_path, n)) for n in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    entries, damaged = Ledger(tmp_path).read()
    assert (len(entries), damaged) == (200, [])
    assert {entry.status for entry in entries.values()} == {"completed"}


def test_what_could_not_be_written_whole_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path)
    _mark(ledger, "pending")
    before = ledger.path.read_bytes()
    real = os.pwrite

    def full(descriptor: int, content: bytes, position: int) -> int:
        if len(content) > 10:
            return real(descriptor, content[:10], position)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(GradstabError, match="No space left on device"):
        _mark(ledger, "running")
    assert ledger.path.read_bytes() == before


def _entry(status: str, again: str = "") -> Entry:
    return Entry(KEY, "000", status=status, again=again)


@pytest.mark.parametrize(
    ("told", "recorded", "true"),
    [
        ("pending", None, "pending"),
        ("running", None, "interrupted"),
        ("running", "running", "interrupted"),
        ("interrupted", "interrupted", "interrupted"),
        # The line that told of the end was lost.
        ("running", "completed", "completed"),
        ("running", "diverged", "diverged"),
        ("interrupted", "failed", "failed"),
        ("pending", "completed", "completed"),
        ("pending", "running", "interrupted"),
        ("completed", "completed", "completed"),
        # Somebody removed the run.
        ("completed", None, "pending"),
        ("failed", None, "pending"),
    ],
)
def test_what_is_true_of_a_cell(tmp_path: Path, told: str, recorded: str | None, true: str) -> None:
    directory = tmp_path / "000"
    directory.mkdir()
    if recorded is not None:
        write_run(directory, {"status": recorded, "reason": "", "identity": f"{KEY}01"})
    assert true_state(tmp_path, _entry(told)).status == true


def test_why_a_cell_was_interrupted_is_what_its_run_left(tmp_path: Path) -> None:
    directory = tmp_path / "000"
    directory.mkdir()
    write_run(directory, {"status": "running", "identity": KEY})
    assert true_state(tmp_path, _entry("running")).reason == "the process that ran it is gone"
    (directory / "failure.txt").write_text("Traceback:\n  ...\nOSError: [Errno 28] No space left on device\n")
    assert true_state(tmp_path, _entry("running")).reason == "OSError: [Errno 28] No space left on device"
    write_run(directory, {"status": "interrupted", "reason": "interrupted by SIGTERM after 3 steps", "identity": KEY})
    assert true_state(tmp_path, _entry("running")).reason == "interrupted by SIGTERM after 3 steps"


def test_a_cell_that_is_claimed_is_running(tmp_path: Path) -> None:
    directory = tmp_path / "000"
    directory.mkdir()
    write_run(directory, {"status": "running"})
    with claimed(directory):
        assert true_state(tmp_path, _entry("running")).status == "running"
        assert true_state(tmp_path, _entry("pending")).status == "running"
    assert true_state(tmp_path, _entry("running")).status == "interrupted"


def test_a_run_that_no_longer_counts(tmp_path: Path) -> None:
    directory = tmp_path / "000"
    directory.mkdir()
    write_run(directory, {"status": "completed", "seconds": 1, "identity": f"{KEY}01"})
    superseded = print_of(directory)
    assert true_state(tmp_path, _entry("pending", superseded)).status == "pending"
    write_run(directory, {"status": "completed", "seconds": 2, "identity": f"{KEY}01"})
    assert true_state(tmp_path, _entry("pending", superseded)).status == "completed"


def test_a_cells_key_follows_from_what_is_run() -> None:
    settings = {"seed": 0, "act": {"name": "relu"}, "out_dir": "here", "quiet": False, "checkpoint": {"keep": 2}}
    key = key_of(settings)
    assert len(key) == 16
    assert key == key_of({**settings, "out_dir": None, "quiet": True, "checkpoint": {"keep": 3}})
    assert key == key_of(json.loads(json.dumps(settings)))
    assert key != key_of({**settings, "act": {"name": "tanh"}})
    assert key != key_of({**settings, "seed": 1})
    assert group_of(settings) == group_of({**settings, "seed": 1})
    assert group_of(settings) != group_of({**settings, "act": {"name": "tanh"}})


@pytest.mark.parametrize("value", ["../../etc/passwd", "a/b", "..", "x" * 500, "é" * 200, "a b;rm", "[1,2]", "\n", ""])
def test_a_cells_directory_is_a_plain_name(value: str) -> None:
    name = cell_directory(7, {"data.root": value}, KEY)
    assert name.startswith("007_data.root")
    assert name.endswith("_01234567")
    assert len(name.encode()) < 130
    assert "/" not in name
    assert ".." not in name
    assert name.isascii()
    assert name.isprintable()


def test_a_sweeps_folder_follows_from_its_words() -> None:
    words = ["act=relu,tanh", "seed=0,1", "steps=20"]
    name = sweep_folder(words)
    assert name.startswith("act=relu,tanh_seed=0,1_")
    assert name == sweep_folder(words[::-1])
    assert name != sweep_folder([*words[:2], "steps=21"])
    assert sweep_folder(["experiment=x", "lr=0.1"]).startswith("experiment=x_")
    assert "/" not in sweep_folder(["data.root=/a/../b,/c"])
    assert sweep_folder([]).startswith("sweep_")


def _columns() -> list[Column]:
    return [
        Column("#", ["0", "10"], rank=4, right=True),
        Column("act", ["scaled_tanh", "relu"], cut="middle"),
        Column("init", ["kaiming_normal", "xavier_uniform"], rank=11, cut="middle"),
        Column("accuracy", ["97.22 %", "8.33 %"], right=True),
        Column("verdict", ["vanishing, not_learning", "healthy"], rank=3, cut="end"),
    ]


@pytest.mark.parametrize("width", [20, 35, 50, 64, 66, 200])
def test_a_table_cuts_words_before_it_leaves_out_columns(width: int) -> None:
    shown, dropped = fitted(_columns(), width)
    assert sum(column.width + 2 for column in shown) - 2 <= width
    assert {column.title for column in shown} | set(dropped) == {column.title for column in _columns()}
    assert {"act", "accuracy"} <= {column.title for column in shown}
    # Numbers are whole or not there.
    assert list(next(column for column in shown if column.title == "accuracy").values) == ["97.22 %", "8.33 %"]
    if width == 64:
        assert dropped == []
        assert [column.values[0] for column in shown][1:3] == ["scaled_tanh", "kaiming_normal"]
        assert shown[-1].values[0] == "vanishing, not_learn…"
    if width == 66:
        assert shown == _columns()
