"""``gradstab list``: what can be chosen, from the registry and from the experiments' files."""

from __future__ import annotations

import math
import shutil
import textwrap
from dataclasses import fields
from importlib.resources import files
from importlib.resources.abc import Traversable

from gradstab.config import GROUPS, OPTIONS, Option, one_of
from gradstab.config.fields import LARGEST
from gradstab.config.probe_options import ProbeKnobs
from gradstab.errors import ConfigError
from gradstab.wording import shown

CHOICES = (*GROUPS, "experiment")
SECTIONS = (*CHOICES, "probe")


def experiments() -> dict[str, str]:
    """Every experiment's name and its description, the comments at the top of its file."""
    found = {}
    for path in _experiment_files():
        lines = path.read_text(encoding="utf-8").splitlines()
        comments = [line[1:].strip() for line in lines if line.startswith("#") and "@package" not in line]
        found[path.name.removesuffix(".yaml")] = " ".join(comments)
    return dict(sorted(found.items()))


def studies() -> dict[str, int]:
    """How many runs there are in each experiment that carries a sweep of its own."""
    import yaml

    found = {}
    for path in _experiment_files():
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        params = settings.get("hydra", {}).get("sweeper", {}).get("params", {})
        if params:
            found[path.name.removesuffix(".yaml")] = math.prod(len(str(words).split(",")) for words in params.values())
    return dict(sorted(found.items()))


def _experiment_files() -> list[Traversable]:
    folder = files("gradstab.configs").joinpath("experiment")
    return [path for path in folder.iterdir() if path.name.endswith(".yaml")]


def listing(group: str | None = None) -> str:
    """All options of one group or of every group, and a probe's knobs, as text for the terminal."""
    if group is not None and group not in SECTIONS:
        raise ConfigError(f"list {group}: there is no such group; {one_of(SECTIONS, group)}")
    names = [group] if group else SECTIONS
    sections = [_section(name) for name in names]
    knobs = (f for name in names for cls in OPTIONS.get(name, {}).values() for f in fields(cls))
    if any(f.metadata.get("unbounded") for f in knobs):
        sections.append(f"A number whose range has no upper end is at most {LARGEST:g}.")
    return "\n\n".join(sections)


def _section(group: str) -> str:
    if group == "experiment":
        sizes = {name: f" With -m: a sweep of {size} runs." for name, size in studies().items()}
        return "\n".join([group, *(_entry(name, text + sizes.get(name, "")) for name, text in experiments().items())])
    if group == "probe":
        return "\n".join([group, _entry("gradstab probe", _told(ProbeKnobs)), *_knobs(group, ProbeKnobs)])
    lines = [group]
    for name, cls in OPTIONS[group].items():
        lines.append(_entry(name, _told(cls)))
        lines += _knobs(group, cls)
    return "\n".join(lines)


def _told(cls: type) -> str:
    """A class's docstring as people read it: one paragraph, without marks of markup."""
    return " ".join((cls.__doc__ or "").replace("``", "").split())


def _knobs(group: str, cls: type[Option] | type[ProbeKnobs]) -> list[str]:
    lines = []
    for f in fields(cls):
        if f.name != "name":
            allowed, reason = f.metadata.get("allowed"), f.metadata.get("reason")
            lines.append(" " * 24 + f"{group}.{f.name}={shown(f.default)}" + (f"   ({allowed})" if allowed else ""))
            if reason:
                lines.append(" " * 28 + reason)
    return lines


def _entry(name: str, text: str) -> str:
    width = max(60, shutil.get_terminal_size((120, 24)).columns)
    return textwrap.fill(text, width, initial_indent=f"  {name:<20}  ", subsequent_indent=" " * 24)
