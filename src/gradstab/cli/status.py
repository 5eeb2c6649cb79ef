"""``gradstab status``: how a sweep or a run stands."""

from __future__ import annotations

import json
from collections.abc import Sequence

from gradstab.cli.output import OK, complain, say
from gradstab.cli.places import asks_for_help, one_folder

USAGE = """\
gradstab status: how a sweep or a run stands, also while it runs

usage: gradstab status DIR [options]

DIR is a sweep's folder or a run's directory. Of a sweep it tells how many cells
are done, what runs now and how far it is, what failed and why, and what is to
be done to go on.

options:
  --json                 everything as one JSON object
  -h, --help             this text

exit codes: 0 told, 2 wrong command
"""
FLAGS = ("--json", "-h", "--help")
_MOST_DAMAGED = 3


def status(args: Sequence[str]) -> int:
    """Print the state of the one folder given, as one JSON object with ``--json``."""
    if asks_for_help(args):
        return say(USAGE)
    folder = one_folder("status", args, FLAGS, "DIR [--json]", "a sweep's folder or a run's directory")

    from gradstab.console.status import show
    from gradstab.run_directory import as_json
    from gradstab.sweeps import status as stands

    state = stands.status(folder)
    if "--json" in args:
        return say(json.dumps(as_json(state), indent=2, allow_nan=False) + "\n")
    show(state)
    complain(*state.get("damaged", [])[:_MOST_DAMAGED])
    return OK
