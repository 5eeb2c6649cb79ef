"""Hydra's errors in gradstab's words: one line that names the key, the value and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from gradstab.config.compose import one_of
from gradstab.config.registry import OPTIONS
from gradstab.config.run import GROUPS, Run
from gradstab.errors import ConfigError

_WORDS = "allowed: KEY=VALUE, KEY=VALUE,VALUE with -m"
_SCALARS = tuple(f.name for f in fields(Run))


def translate(error: Exception, overrides: Sequence[str]) -> ConfigError:
    """Turn what Hydra or OmegaConf raised while composing into a :class:`ConfigError`."""
    from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException

    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return ConfigError(f"{group}={name}: {one_of(error.options, name)}")
    if isinstance(error, MissingConfigException) and str(error).startswith("Cannot find primary config"):
        known = "allowed: train, or that of a file in the folder of --config-dir"
        return ConfigError(f"--config-name {error.missing_cfg_file}: there is no such configuration; {known}")
    if isinstance(error, OverrideParseException):
        return ConfigError(f"{error.override}: cannot be read; {_WORDS}")
    cause = error.__cause__ or error.__context__
    key = getattr(cause, "full_key", None)
    if cause is not None and key and type(cause).__name__ in ("ConfigAttributeError", "ConfigKeyError"):
        source = re.match(r"In '(.+?)'", str(error))
        return ConfigError(_unknown_key(str(key), getattr(cause, "parent_node", None), overrides, source))
    for text in overrides:
        if not text.partition("=")[0].lstrip("+~"):
            return ConfigError(f"{text}: cannot be read; {_WORDS}")
        group, _, value = text.partition("=")
        if group in GROUPS and value in ("", "null"):
            return ConfigError(f"{text}: a group cannot be empty; {one_of(OPTIONS[group], '')}")
    if isinstance(error, ConfigCompositionException) and "No match in the defaults list" in str(error):
        text = next((t for t in overrides if t.split("=")[0] in GROUPS), overrides[0] if overrides else "")
        return ConfigError(
            f"{text}: a run's own config.yaml fixes its options; allowed: knobs, and scalars such as seed=1"
        )
    if removed := re.match(r"(?:Error merging override ~|Could not delete from config\. ')([^'=\s]+)", str(error)):
        return ConfigError(f"~{removed[1]}: cannot be taken out; {_WORDS}")
    if "Ambiguous value for argument" in str(error):
        text = str(error).split("'")[1]
        return ConfigError(f"{text}: several values; allowed: one, or a sweep over them: gradstab train -m")
    said = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    # Hydra's first line often only announces the reason.
    return ConfigError(" ".join(said[:2]) if said[0].endswith(":") else said[0])


def _unknown_key(key: str, parent: Any, overrides: Sequence[str], source: re.Match[str] | None) -> str:
    """What is said of a key that does not exist; ``source`` matches the file that sets it, where a file does."""
    setting = key if source is None else f"{source[1]} sets {key}"
    given = _typed(key, overrides) or setting
    *path, last = key.split(".")
    known = [str(k) for k in parent or () if k != "name" and not str(k).startswith("_")]
    if not path:
        return f"{given}: there is no such key; {one_of([*_SCALARS, *GROUPS, 'experiment'], last)}"
    name = parent.get("name") if hasattr(parent, "get") else None
    return f"{given}: {'.'.join(path)}={name} has no such knob; {one_of(known, last)}"


def _typed(key: str, overrides: Sequence[str]) -> str | None:
    """The word that sets a key: that of the key itself, else of one below it, else of one above it that is {...}."""
    words = {text.lstrip("+~").partition("=")[0]: text for text in overrides}
    below = (text for name, text in words.items() if name.startswith(f"{key}."))
    above = (text for name, text in words.items() if key.startswith(f"{name}.") and "={" in text)
    return words.get(key) or next(below, None) or next(above, None)
