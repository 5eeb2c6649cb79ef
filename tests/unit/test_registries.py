"""Every option of every group has its builder, and every builder its option."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from gradstab.activations import ACTIVATIONS
from gradstab.clipping import CLIPS
from gradstab.config import OPTIONS
from gradstab.constraints import CONSTRAINTS
from gradstab.data import _LOADERS
from gradstab.initializers import SCHEMES
from gradstab.losses import LOSSES, PENALTIES
from gradstab.models import MODELS
from gradstab.optimizers import OPTIMIZERS
from gradstab.schedules import SCHEDULES

BUILDERS: dict[str, Collection[str]] = {
    "model": MODELS,
    "act": ACTIVATIONS,
    "init": SCHEMES,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "clip": CLIPS,
    "constraint": CONSTRAINTS,
    "penalty": PENALTIES,
    "loss": LOSSES,
    "data": _LOADERS,
}


def test_what_else_there_is_to_choose_is_built_without_a_registry() -> None:
    assert OPTIONS.keys() - BUILDERS.keys() == {"measure", "verdict", "checkpoint"}


@pytest.mark.parametrize("group", BUILDERS)
def test_every_option_has_a_builder(group: str) -> None:
    assert set(BUILDERS[group]) == set(OPTIONS[group])
