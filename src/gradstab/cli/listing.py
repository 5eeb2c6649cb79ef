"""``gradstab list``: every option of every group."""

from __future__ import annotations

from collections.abc import Sequence

from gradstab.catalogue import SECTIONS, listing
from gradstab.cli.output import say
from gradstab.cli.places import asks_for_help
from gradstab.errors import ConfigError

USAGE = """\
gradstab list: every option of every group, with its knobs, their defaults and
ranges, and the paper it is from

usage: gradstab list [GROUP]

GROUP is one of model, act, init, optimizer, schedule, clip, constraint,
penalty, loss, data, measure, verdict, checkpoint, experiment, probe; without
one, all are printed. To choose an option: gradstab train GROUP=OPTION
GROUP.KNOB=VALUE.

options:
  -h, --help             this text
"""


def list_options(args: Sequence[str]) -> int:
    """Print one group's options, or all."""
    if asks_for_help(args):
        return say(USAGE)
    if len(args) > 1:
        raise ConfigError(f"list {' '.join(args)}: takes one group at most; allowed: {', '.join(SECTIONS)}")
    return say(listing(args[0] if args else None) + "\n")
