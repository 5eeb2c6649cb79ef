"""What the documentation shows of cells is what this version would print."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gradstab.config import to_container
from gradstab.run_directory import identity
from tests.conftest import Compose

ROOT = Path(__file__).parents[2]
CELL = re.compile(r"\b\d{3}_((?:[\w.]+=[\w.]+,?)+)_([0-9a-f]{8})\b")


@pytest.mark.parametrize(("page", "at_least"), [("README.md", 2), ("docs/sweeps.md", 4)])
def test_the_cells_shown_have_the_names_that_they_get(configure: Compose, page: str, at_least: int) -> None:
    shown = set(CELL.findall((ROOT / page).read_text(encoding="utf-8")))
    assert len(shown) >= at_least
    for words, key in shown:
        steps = ("steps=50", "model.depth=3") if words.startswith("data=") else ("steps=300",)
        assert identity(to_container(configure(*words.split(","), *steps))).startswith(key), words
