"""Configuration files from somewhere else: settings are taken from them, never code, before Hydra sees them.

Hydra itself would run what a file names: callbacks and classes by ``_target_``, handlers of logging by ``class``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from gradstab.catalogue import CHOICES
from gradstab.config.run import GROUPS, Run
from gradstab.errors import ConfigError
from gradstab.files import read_text
from gradstab.run_directory import CONFIG_FILE, holds_run
from gradstab.wording import printable

_FOLDERS = ("--config-dir", "-cd")
_NAMES = ("--config-name", "-cn")
# What gradstab writes above a run's settings.
_DEFAULTS = ["hydra/quiet", "_self_"]
_OF_HYDRA = ("mode", "run", "sweep", "sweeper", "launcher")
_CODE = ("_target_", "_partial_", "()", "class")
_MOST_BYTES, _MOST_FILES, _MOST_DEPTH, _MOST_NODES = 16 * 2**20, 1000, 20, 1_000_000


def check_folders(args: Sequence[str]) -> None:
    """Look at the files that ``--config-dir`` brings in; :class:`ConfigError` says what is amiss.

    A run's own ``config.yaml`` may hold that run's settings and nothing else. Other folders may hold what Hydra
    composes from, but name no code, and of Hydra's own settings only those of where and how a sweep runs.
    """
    name = next(_values(args, _NAMES), "train").removesuffix(".yaml")
    if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
        raise ConfigError(f"--config-name {name}: is no name of a configuration; allowed: that of a file in its folder")
    group, within, option = name.rpartition("/")
    if within and group in CHOICES:
        raise ConfigError(f"--config-name {name}: is an option, no configuration of a run; write {group}={option}")
    for word in _values(args, _FOLDERS):
        if "\0" in word:
            raise ConfigError(f"--config-dir {word!r}: is no folder")
        if word.startswith("pkg://"):
            raise ConfigError(f"--config-dir {word}: is no folder; allowed: a run's own, or one with configurations")
        folder = Path(word.removeprefix("file://"))
        try:
            if not folder.is_dir():
                what = "is no folder" if folder.exists() else "there is no such folder"
                raise ConfigError(f"--config-dir {word}: {what}; allowed: a run's own, or one with configurations")
            primary = folder / f"{name}.yaml"
            if primary.name == CONFIG_FILE or (holds_run(folder) and primary.exists()):
                if os.path.lexists(primary):
                    _check_run(primary)
            else:
                _check_folder(folder)
                if primary.exists():
                    _check_primary(primary)
        except OSError as error:
            raise ConfigError(f"{error.filename or folder}: cannot be read ({error.strerror})") from error


def check_names(overrides: Sequence[str]) -> None:
    """An option is a file's name in its group's folder: none leads out of it."""
    for text in overrides:
        group, _, chosen = text.lstrip("+").partition("=")
        group = group.partition("@")[0]
        if group in CHOICES and ("/" in chosen or "\\" in chosen or ".." in chosen):
            raise ConfigError(f"{text}: names no option; allowed: what gradstab list {group} names")


def _values(args: Sequence[str], flags: Sequence[str]) -> Iterator[str]:
    for i, arg in enumerate(args):
        flag, equals, value = arg.partition("=")
        if flag in flags and (equals or i + 1 < len(args)):
            yield value if equals else args[i + 1]


def _check_run(path: Path) -> None:
    """A run's config.yaml, as gradstab wrote it or as somebody edited its values."""
    nodes, text = _load(path, aliases=False)
    if not isinstance(nodes, dict):
        raise ConfigError(f"{path}: holds no configuration; allowed: a run's settings by key")
    known = ["defaults", *(f.name for f in fields(Run)), *GROUPS]
    for key in nodes:
        if key not in known:
            raise ConfigError(f"{path}: {_shown(key)} is no setting of a run; allowed: {', '.join(known)}")
    if nodes.get("defaults", _DEFAULTS) != _DEFAULTS:
        raise ConfigError(f"{path}: defaults={_shown(nodes['defaults'])}: allowed: {', '.join(_DEFAULTS)}")
    if nodes.get("out_dir") is not None:
        raise ConfigError(f"{path}: out_dir={_shown(nodes['out_dir'])}: allowed: null; name a folder with out_dir=")
    if any(line.startswith("#") and "@package" in line for line in text.splitlines()):
        raise ConfigError(f"{path}: names a package; allowed: a run's settings by key")
    for value in _texts(nodes):
        if "${" in value:
            raise ConfigError(f"{path}: {_shown(value)} refers to something else; allowed: plain values")


def _check_primary(path: Path) -> None:
    """A whole configuration: without gradstab's own beneath it, Hydra would leave logs and folders of its own."""
    nodes, _ = _load(path, aliases=True)
    if not isinstance(nodes, dict) or not nodes.get("defaults"):
        raise ConfigError(f"{path}: has no defaults; a configuration of your own begins with defaults: [train, _self_]")


def _check_folder(folder: Path) -> None:
    count = 0
    for root, _, names in os.walk(folder):
        for name in sorted(names):
            if not name.endswith(".yaml"):
                continue
            count += 1
            if count > _MOST_FILES:
                raise ConfigError(
                    f"{folder}: more than {_MOST_FILES:,} YAML files; allowed: a folder of configurations"
                )
            _check_file(Path(root) / name)


def _check_file(path: Path) -> None:
    nodes, text = _load(path, aliases=True)
    if any(line.startswith("#") and "@package" in line and "hydra" in line for line in text.splitlines()):
        raise ConfigError(f"{path}: sets Hydra's own settings by its package; allowed: a key hydra")
    for key in _keys(nodes):
        if key in _CODE:
            raise ConfigError(f"{path}: {key} names code to run; allowed: settings")
    own = nodes.get("hydra") if isinstance(nodes, dict) else None
    for key in own if isinstance(own, dict) else ():
        if key not in _OF_HYDRA:
            raise ConfigError(
                f"{path}: hydra.{_shown(key)} is not for a configuration; allowed: {', '.join(_OF_HYDRA)}"
            )
    for key in nodes if isinstance(nodes, dict) else ():
        if str(key).startswith("hydra.") or str(key).startswith("hydra/"):
            raise ConfigError(f"{path}: {_shown(key)} is no setting; allowed: a key hydra")


def _load(path: Path, *, aliases: bool) -> tuple[Any, str]:
    """A YAML file's content and its text; no tags, and nothing that unfolds to more than it looks."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        text = read_text(path, _MOST_BYTES)
        problem = _problem(yaml.parse(text, Loader=loader), aliases)
        if problem:
            raise ConfigError(f"{path}: {problem}")
        return yaml.load(text, Loader=loader), text
    except ConfigError:
        raise
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise ConfigError(
            f"{path}: is no YAML{where} ({getattr(error, 'problem', None) or 'it cannot be read'})"
        ) from error
    except (ValueError, RecursionError, OverflowError) as error:
        raise ConfigError(f"{path}: cannot be read ({type(error).__name__})") from error


def _problem(events: Any, aliases: bool) -> str | None:
    """What a file's structure has that a configuration's has not; sizes are those with all aliases unfolded."""
    import yaml

    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = []
    total = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            if not aliases:
                return "refers to parts of itself by an alias; allowed: plain values"
            total += sizes.get(event.anchor, _MOST_NODES)
        elif isinstance(event, yaml.NodeEvent):
            tag = getattr(event, "tag", None)
            if tag is not None and not tag.startswith("tag:yaml.org,2002:") and tag != "!":
                return f"has the tag {tag!r}; allowed: plain values"
            if tag is not None and tag.startswith("tag:yaml.org,2002:python"):
                return f"has the tag {tag!r}, which names code; allowed: plain values"
            total += 1
            if isinstance(event, yaml.ScalarEvent):
                if event.anchor:
                    sizes[event.anchor] = 1
            else:
                open_nodes.append((event.anchor, total))
                if len(open_nodes) > _MOST_DEPTH:
                    return f"is nested more than {_MOST_DEPTH} deep"
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, since = open_nodes.pop()
            if anchor:
                sizes[anchor] = total - since + 1
        if total > _MOST_NODES:
            return f"stands for more than {_MOST_NODES:,} values"
    return None


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _texts(key)
            yield from _texts(value)
    elif isinstance(node, list):
        for value in node:
            yield from _texts(value)
    elif isinstance(node, str):
        yield node


def _keys(node: Any) -> Iterator[Any]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield key
            yield from _keys(value)
    elif isinstance(node, list):
        for value in node:
            yield from _keys(value)


def _shown(value: Any) -> str:
    text = printable(value)
    return text if len(text) <= 80 else text[:79] + "…"
