"""Hydra's errors in gradstab's words: one line that names the key, the value and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from gradstab.config.compose import WITHOUT_DEFAULTS, one_of
from gradstab.config.registry import OPTIONS
from gradstab.config.run import GROUPS, Run
from gradstab.errors import ConfigError

_WORDS = "allowed: KEY=VALUE, KEY=VALUE,VALUE with -m, 'KEY=\"VALUE\"' for text with other characters"
_CHOICES = (*GROUPS, "experiment")
_KEYS = (*(f.name for f in fields(Run)), *_CHOICES)
_PARAMS = "hydra.sweeper.params."
_HEADER = "its settings reach no run; write '# @package _global_' as its first line"


def translate(error: Exception, overrides: Sequence[str]) -> ConfigError:
    """Turn what Hydra or OmegaConf raised while composing into a :class:`ConfigError`."""
    from hydra.errors import MissingConfigException, OverrideParseException

    if isinstance(error, MissingConfigException):
        return ConfigError(_missing(error))
    if isinstance(error, OverrideParseException):
        return ConfigError(f"{error.override}: cannot be read; {_WORDS}")
    if mark := getattr(error, "problem_mark", None):
        problem = getattr(error, "problem", "cannot be read")
        return ConfigError(f"{mark.name}: {problem} in line {mark.line + 1}; allowed: each key once")
    cause = error.__cause__ or error.__context__
    key, parent = getattr(cause, "full_key", None), getattr(cause, "parent_node", None)
    file = re.match(r"In '(.+?)': ", str(error))
    if key and type(cause).__name__ in ("ConfigAttributeError", "ConfigKeyError"):
        return ConfigError(_unknown_key(str(key), parent, overrides, file and file[1]))
    for text in overrides:
        group, _, value = text.partition("=")
        if not group.lstrip("+~"):
            return ConfigError(f"{text}: cannot be read; {_WORDS}")
        if group in GROUPS and value in ("", "null"):
            return ConfigError(f"{text}: a group cannot be empty; {one_of(OPTIONS[group], '')}")
    if file and (told := _of_file(file[1], str(error)[file.end() :], parent)):
        return ConfigError(told)
    for pattern, tell in _TOLD.items():
        if found := re.match(pattern, str(error)):
            return ConfigError(tell(found, overrides))
    said = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    # Hydra's first line often only announces the reason.
    return ConfigError(" ".join(said[:2]) if said[0].endswith(":") else said[0])


def _missing(error: Any) -> str:
    """What is said of a file that is not there."""
    group, _, name = str(error.missing_cfg_file).rpartition("/")
    known = "allowed: train, or that of a file in the folder of --config-dir"
    if str(error).startswith("Cannot find primary config"):
        return f"--config-name {error.missing_cfg_file}: there is no such configuration; {known}"
    file = re.match(r"In '(.+?)': ", str(error))
    own = group.rpartition("/")[2]
    if file and own != group and own in GROUPS:
        # Under an experiment, a group's name without a slash is that of a folder of its own.
        return f"{file[1]}.yaml: defaults: {own}: {name}: write override /{own}: {name}"
    if error.options is None:
        return f"{file[1] if file else ''}.yaml: defaults: {name}: there is no such configuration; {known}"
    return f"{group}={name}: {one_of(error.options, name)}"


def _unknown_key(key: str, parent: Any, overrides: Sequence[str], file: str | None) -> str:
    """What is said of a key that does not exist; ``file`` is the configuration that sets it, where one does."""
    if key == "experiment" and file:
        return f"{file}.yaml: {_HEADER}"
    given = _typed(key, overrides) or (f"{file} sets {key}" if file else key)
    *path, last = key.split(".")
    known = [str(k) for k in parent or () if k != "name" and not str(k).startswith("_")]
    if not path:
        return f"{given}: there is no such key; {one_of(_KEYS, last)}"
    if key.startswith(_PARAMS):
        return f"{given}: stands in a study's file only; allowed here: {key.removeprefix(_PARAMS)}=VALUE,VALUE"
    name = parent.get("name") if hasattr(parent, "get") else None
    return f"{given}: {'.'.join(path)}{f'={name}' if name else ''} has no such knob; {one_of(known, last)}"


def _typed(key: str, overrides: Sequence[str]) -> str | None:
    """The word that sets a key: that of the key itself, else of one below it, else of one above it that is {...}."""
    words = {text.lstrip("+~").partition("=")[0].rpartition("@")[2]: text for text in overrides}
    below = (text for name, text in words.items() if name.startswith(f"{key}."))
    above = (text for name, text in words.items() if key.startswith(f"{name}.") and "={" in text)
    return words.get(key) or next(below, None) or next(above, None)


def _of_file(file: str, said: str, parent: Any) -> str | None:
    """What is wrong in a configuration of the user's own, and what to write there."""
    if override := re.match(r"Could not override '(.*?)'", said):
        key, _, package = override[1].partition("@")
        group = key.rpartition("/")[2]
        if package.startswith("experiment"):
            return f"{file}.yaml: {_HEADER}"
        if group != key and group in GROUPS:
            return f"{file}.yaml: defaults: override {group}: write override /{group}, with the slash"
        wrong = WITHOUT_DEFAULTS if group in GROUPS else f"there is no such group; {one_of(GROUPS, group)}"
        return f"{file}.yaml: defaults: override /{key}: {wrong}"
    if merged := re.search(r"Merge error: \w+ is not a subclass of (\w+)\. value: (.*)", said):
        return _not_chosen(file, merged[1], merged[2], parent)
    return f"{file}.yaml: is a list; allowed: keys with values" if "with ListConfig" in said else None


def _not_chosen(file: str, option: str, value: str, parent: Any) -> str:
    """``act: tanh`` where an option belongs under ``defaults``; ``option`` is the class that stands in its place."""
    from omegaconf import OmegaConf

    kinds = {group: OmegaConf.get_type(parent, group) for group in GROUPS}
    groups = [group for group, kind in kinds.items() if kind is not None and kind.__name__ == option] or list(GROUPS)
    group = next((group for group in groups if value in OPTIONS[group]), groups[0])
    entry, known = f"override /{group}: {value}", ""
    if value not in OPTIONS[group]:
        entry, known = f"override /{group}: OPTION", f"; {one_of(OPTIONS[group], value)}"
    wanted = entry if "/" in file else f"train, {entry}, _self_"
    return f"{file}.yaml: {group}: {value}: write defaults: [{wanted}]{known}"


def _word_of(key: str, overrides: Sequence[str]) -> str:
    """The word about a key or group, the last of them; the key itself where no word is."""
    return next((text for text in reversed(overrides) if text.lstrip("+~").partition("=")[0] == key), key)


def _set_already(found: re.Match[str], overrides: Sequence[str]) -> str:
    added = [text for text in overrides if text.startswith("+") and text.lstrip("+").partition("=")[0] == found[1]]
    if added:
        return f"{added[-1]}: is set already; allowed: {added[-1].lstrip('+')}"
    return f"{found[1]}: is chosen twice; in a file's defaults, write override /{found[1]}: OPTION"


def _no_match(found: re.Match[str], overrides: Sequence[str]) -> str:
    word = _word_of(found[1], overrides)
    group, elsewhere, _ = found[1].partition("@")
    if group not in _CHOICES and not group.startswith("hydra/"):
        return f"{word}: there is no such key; {one_of(_KEYS, group)}"
    if elsewhere:
        return f"{word}: an option has one place; allowed: {group}={word.partition('=')[2]}"
    return f"{word}: {WITHOUT_DEFAULTS}"


# Hydra's sentences by their beginning, and what is said in their place.
_TOLD: dict[str, Callable[[re.Match[str], Sequence[str]], str]] = {
    r"Multiple values for (\S+)\.": _set_already,
    r"(\S+) appears more than once in the final": _set_already,
    r"Could not append to config\. An item is already at '(.+?)'": _set_already,
    r"force-add of config groups is not supported: '\++(.+?)=": _set_already,
    r"Could not override '(.*?)'": _no_match,
    r"Override ([^=\s]+)=\S* looks like a config group override": _no_match,
    r"(?:Error merging override ~|Could not delete (?:from config\. )?')([^'=\s]+)": lambda found, _: (
        f"~{found[1]}: cannot be taken out; {_WORDS}"
    ),
    r"Ambiguous value for argument '(.*)'": lambda found, _: (
        f"{found[1]}: several values; allowed: one, or a sweep over them: gradstab train -m"
    ),
    r"Invalid defaults list in '(.+?)'": lambda found, _: (
        f"{found[1]}.yaml: defaults: must be a list, such as [override /act: tanh]"
    ),
}
