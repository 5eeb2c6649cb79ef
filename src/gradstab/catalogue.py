"""``gradstab list``: what can be chosen, from the registry and from the experiments' files."""

from __future__ import annotations

import shutil
import textwrap
from dataclasses import fields
from importlib.resources import files

from gradstab.config import GROUPS, OPTIONS, Option, one_of
from gradstab.config.probe_options import ProbeKnobs
from gradstab.errors import ConfigError

CHOICES = (*GROUPS, "experiment")
SECTIONS = (*CHOICES, "probe")


def experiments() -> dict[str, str]:
    """Every experiment's name and its description, the comments at the top of its file."""
    found = {}
    for path in files("gradstab.configs").joinpath("experiment").iterdir():
        if path.name.endswith(".yaml"):
            lines = path.read_text(encoding="utf-8").splitlines()
            comments = [line[1:].strip() for line in lines if line.startswith("#") and "@package" not in line]
            found[path.name.removesuffix(".yaml")] = " ".join(comments)
    return dict(sorted(found.items()))


def listing(group: str | None = None) -> str:
    """All options of one group or of every group, and a probe's knobs, as text for the terminal."""
    if group is not None and group not in SECTIONS:
        raise ConfigError(f"list {group}: there is no such group; {one_of(SECTIONS, group)}")
    return "\n\n".join(_section(name) for name in ([group] if group else SECTIONS))


def _section(group: str) -> str:
    if group == "experiment":
        return "\n".join([group, *(_entry(name, text) for name, text in experiments().items())])
    if group == "probe":
        return "\n".join(
            [group, _entry("gradstab probe", " ".join((ProbeKnobs.__doc__ or "").split())), *_knobs(group, ProbeKnobs)]
        )
    lines = [group]
    for name, cls in OPTIONS[group].items():
        lines.append(_entry(name, " ".join((cls.__doc__ or "").split())))
        lines += _knobs(group, cls)
    return "\n".join(lines)


def _knobs(group: str, cls: type[Option] | type[ProbeKnobs]) -> list[str]:
    lines = []
    for f in fields(cls):
        if f.name != "name":
            default = (
                "null" if f.default is None else str(f.default).lower() if f.default in (True, False) else f.default
            )
            allowed, reason = f.metadata.get("allowed"), f.metadata.get("reason")
            lines.append(" " * 24 + f"{group}.{f.name}={default}" + (f"   ({allowed})" if allowed else ""))
            if reason:
                lines.append(" " * 28 + reason)
    return lines


def _entry(name: str, text: str) -> str:
    width = max(60, shutil.get_terminal_size((120, 24)).columns)
    return textwrap.fill(text, width, initial_indent=f"  {name:<20}  ", subsequent_indent=" " * 24)
