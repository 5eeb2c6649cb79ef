"""``gradstab explain``: the words of the command, checked, and handed on."""

from __future__ import annotations

import json
from collections.abc import Sequence

from gradstab.cli.output import FAILED, OK, complain, say
from gradstab.cli.places import asks_for_help, one_folder

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
    if asks_for_help(args):
        return say(USAGE)
    folder = one_folder("explain", args, FLAGS, "RUN_DIR", "a run's directory")

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
