"""``gradstab train --resume RUN_DIR``: a run that did not come to its end goes on from its last checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradstab.cli.output import OK, one_line, say
from gradstab.cli.places import path_of
from gradstab.errors import ConfigError
from gradstab.wording import counted

FLAG = "--resume"
# What may change without making it another run.
ALLOWED = ("quiet", "checkpoint.every", "checkpoint.keep", "checkpoint.best")


def asks_to_resume(args: Sequence[str]) -> bool:
    """Whether these words of ``gradstab train`` are about a run that is there already."""
    return any(arg == FLAG or arg.startswith(f"{FLAG}=") for arg in args)


def resume(args: Sequence[str]) -> int:
    """Go on with the run that ``args`` name; returns the exit code."""
    directory, overrides = _words(args)

    from gradstab import run_directory

    if not run_directory.holds_run(directory):
        raise ConfigError(
            f"{FLAG} {directory}: holds no run; allowed: a run's own folder (for a sweep, repeat its command)"
        )
    record = run_directory.read_run(directory)
    if "watched" in record:
        raise ConfigError(f"{FLAG} {directory}: is a loop that was watched; gradstab only goes on with runs of its own")

    from gradstab.config import from_hydra

    finished = record.get("status") in run_directory.FINISHED
    if overrides or not finished:
        config = from_hydra(_with(run_directory.read_config(directory), overrides), overrides)
    if finished:
        steps = record.get("steps")
        after = f" after {counted(steps)}" if isinstance(steps, int) else ""
        return say(one_line(f"{directory}: {record['status']}{after}; there is nothing to resume") + "\n")

    from gradstab.runner import run

    run(config, directory, resume=True)
    return OK


def completions(words: Sequence[str], typed: str) -> list[str] | None:
    """What may stand next in ``gradstab train``, where it is about a run that is there; None where it is not."""
    if not asks_to_resume(words):
        return [FLAG] if len(typed) > 2 and FLAG.startswith(typed) else None
    if words[-1] != FLAG:
        return [f"{key}=" for key in ALLOWED if f"{key}=".startswith(typed)]

    from gradstab.run_directory import FINISHED, holds_run, status_of

    found = [folder for folder in sorted(Path("outputs/train").glob("*")) if holds_run(folder)]
    return [str(folder) for folder in found if str(folder).startswith(typed) and status_of(folder) not in FINISHED]


def _words(args: Sequence[str]) -> tuple[Path, list[str]]:
    """The folder, and the overrides beside it."""
    folders: list[str] = []
    overrides: list[str] = []
    rest = list(args)
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        if flag == FLAG:
            if not equals and (not rest or rest[0].startswith("-")):
                raise ConfigError(f"{FLAG}: needs a run's folder")
            folders.append(value if equals else rest.pop(0))
        elif flag in ALLOWED and equals:
            overrides.append(word)
        else:
            raise ConfigError(
                f"{word}: a run goes on as it was configured; beside {FLAG}, allowed: "
                f"{', '.join(f'{key}=…' for key in ALLOWED)}"
            )
    if len(folders) > 1:
        raise ConfigError(f"{FLAG} {folders[1]}: was given already as {folders[0]}; allowed: one run")
    return path_of(folders[0], "folder", "a run's own", FLAG), overrides


def _with(container: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A configuration with some of its settings replaced."""
    import yaml

    for word in overrides:
        key, _, text = word.partition("=")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"{word}: cannot be read; allowed: KEY=VALUE") from error
        if value is None and text != "null":
            # YAML has other words for it, among them none at all.
            value = text
        *path, last = key.split(".")
        node = container
        for part in path:
            node = node.get(part)  # type: ignore[assignment]
            if not isinstance(node, dict):
                raise ConfigError(f"{word}: config.yaml has no {part}")
        node[last] = value
    return container
