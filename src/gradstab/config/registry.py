"""The registry of every option of every group.

``OPTIONS[group][name]`` is one frozen dataclass: its knobs with their defaults and ranges, and as docstring one
line on what it is and the paper it is from. It is the one source of the Hydra schema, of what ``gradstab list``
prints and of what error messages call allowed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, make_dataclass
from typing import Any, ClassVar, TypeVar


@dataclass(frozen=True)
class Option:
    """What all options share: the group and the name they are chosen by."""

    group: ClassVar[str]
    name: str

    @property
    def knobs(self) -> dict[str, Any]:
        """The option's own settings as flat keyword arguments for its builder."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "name"}


T = TypeVar("T", bound=type[Option])
OPTIONS: dict[str, dict[str, type[Option]]] = {}


def option(group: str, name: str) -> Callable[[T], T]:
    """Register a dataclass as the option ``name`` of ``group``; its docstring is its description."""

    def register(cls: T) -> T:
        cls.group = group
        OPTIONS.setdefault(group, {})[name] = cls
        return cls

    return register


def without_knobs(group: str, **descriptions: str) -> None:
    """Register options that have no knobs."""
    for name, description in descriptions.items():
        cls = make_dataclass(
            name, [("name", str, name)], bases=(Option,), frozen=True, namespace={"__doc__": description}
        )
        option(group, name)(cls)
