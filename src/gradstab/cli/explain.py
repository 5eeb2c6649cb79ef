"""``gradstab explain``: the words of the command, checked, and handed on."""

from __future__ import annotations

import json
from collections.abc import Sequence

from gradstab.cli.output import FAILED, OK, complain, say
from gradstab.cli.places import path_of
from gradstab.errors import ConfigError

USAGE = """\
gradstab explain: what broke in a run, which layer first, how it came to that,
and what would have caught it

usage: gradstab explain RUN_DIR [options]

RUN_DIR is the directory of a run that diverged, or skipped a step that was not
finite. The step is made once more from the checkpoint of just before it. A
clipping that would have caught it is sought in the norms before, and tried out
on the run from its start where that takes a few seconds.

options:
  --prove     try the clipping out however long that takes, to the last step
  --json      everything as one JSON object
  -h, --help  this text

exit codes: 0 told, or nothing to tell; 1 the step did not break again, or a
file cannot be read; 2 wrong command
"""
FLAGS = ("--prove", "--json", "-h", "--help")


def explain(args: Sequence[str]) -> int:
    """Explain the run in the directory that ``args`` name; returns the exit code."""
    if "-h" in args or "--help" in args:
        return say(USAGE)
    words: list[str] = []
    for position, word in enumerate(args):
        if word == "--":
            words += args[position + 1 :]
            break
        if word.startswith("-") and word not in FLAGS:
            raise ConfigError(f"{word}: there is no such flag; allowed: {', '.join(FLAGS)}")
        if not word.startswith("-"):
            words.append(word)
    if not words:
        raise ConfigError("explain: needs a folder; allowed: gradstab explain RUN_DIR")
    if len(words) != 1:
        raise ConfigError(f"explain {' '.join(map(repr, words))}: names no single folder; allowed: a run's directory")
    folder = path_of(words[0], "folder", "a run's directory", "explain")

    from gradstab import explaining

    found = explaining.explain(folder, prove="--prove" in args)
    if isinstance(found, str):
        return say((json.dumps({"nothing": found}) if "--json" in args else found) + "\n")
    if "--json" in args:
        say(json.dumps(found.to_dict(), allow_nan=False) + "\n")
    else:
        from gradstab.console.explain import show

        show(found)
    return OK if found.confirmed else _unconfirmed(found.replay.problem)


def _unconfirmed(problem: str) -> int:
    complain(f"replay: {problem}" if problem else "replay: the step did not break again as it did")
    return FAILED
