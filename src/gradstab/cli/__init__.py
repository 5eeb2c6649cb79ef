"""The command line: which subcommand runs, and with which exit code.

Exit codes: 0 completed, diverged (a result) or asked-for text; 1 a failure; 2 a wrong command or configuration;
130 interrupted by Ctrl-C, 143 by SIGTERM. Nothing here imports torch before a run starts.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import sys
from collections.abc import Sequence

from gradstab import __version__
from gradstab.cli.output import BAD_INPUT, FAILED, INTERRUPTED, OK, complain, replace_closed_streams, say, unforeseen
from gradstab.errors import ConfigError, GradstabError, Interrupted
from gradstab.interrupts import heard, listen, then_leave

USAGE = """\
gradstab: are my gradients vanishing or exploding, where, why; what mends it?

usage: gradstab COMMAND ...

commands (each has a help of its own: gradstab COMMAND --help):
  train [OVERRIDES]  train a network and record its gradients, layer by layer
  probe [OVERRIDES]  look at a network's gradient before any training, beside
                     what theory predicts
  report DIR...      one page for a run, several, or a whole sweep
  explain RUN_DIR    what broke in a run that diverged, how it came to that, and
                     what would have caught it
  status DIR         how a sweep or a run stands: what is done, what runs now,
                     what failed (--json for programs)
  list [GROUP]       every option of every group, with its knobs and the paper
                     it is from

for example:
  gradstab train                             a 20-layer ReLU network on digits
  gradstab train act=sigmoid                 watch the gradient vanish
  gradstab train -m act=sigmoid,tanh,relu    a sweep; the same again goes on
                                             with it
  gradstab train --cfg job                   show the configuration, do not
                                             train
  gradstab train --resume outputs/train/NAME go on with a run that was
                                             interrupted
  gradstab probe act=sigmoid init=xavier_normal
                                             will it vanish, and what mends it?
  gradstab probe probe.jacobian=true --json  singular values too, as JSON
  gradstab report outputs/sigmoid --figures png
                                             report.html, and the pictures by
                                             themselves

options:
  -h, --help         this text
  --version          the version
  -sc install=bash   print the shell function for Tab completion (bash, zsh,
                     fish): eval "$(gradstab -sc install=bash)"

exit codes: 0 completed or diverged, 1 failed, 2 wrong command or configuration,
130 interrupted, 143 terminated
"""


def entry_point() -> None:
    """What the ``gradstab`` script and ``python -m gradstab`` call."""
    codes: list[int] = []
    # Registered before anything else is, it is called after everything else.
    atexit.register(_leave, codes)
    listen()
    replace_closed_streams()
    try:
        codes.append(main(sys.argv[1:]))
    except Interrupted as interrupted:
        codes.append(128 + interrupted.signal)
    then_leave(functools.partial(_leave, codes))
    sys.exit(codes[0])


def _leave(codes: Sequence[int]) -> None:
    """End the process without taking torch's libraries apart, for which Python would need more than half a second."""
    if codes:
        with contextlib.suppress(OSError, RuntimeError):
            sys.stdout.flush()
            os._exit(codes[0])


def main(args: Sequence[str]) -> int:
    """Run one command; returns its exit code."""
    if args and args[0] in ("-m", "--multirun"):
        args = [*args[1:], args[0]]
    if not args:
        sys.stderr.write(USAGE)
        return BAD_INPUT
    try:
        return _command(args[0], list(args[1:]))
    except (Exception, KeyboardInterrupt) as error:
        number = heard()
        return _told(error if number is None or isinstance(error, Interrupted) else Interrupted(number))


def _told(error: BaseException) -> int:
    """Say what ended a command; returns the exit code."""
    match error:
        case ConfigError():
            return complain(*error.problems)
        case GradstabError():
            complain(str(error))
            return FAILED
        case Interrupted():
            complain(error.note or "interrupted")
            return 128 + error.signal
        case KeyboardInterrupt():
            complain("interrupted")
            return INTERRUPTED
        case BrokenPipeError():
            # The reader (head, less) has gone; nothing is left to say, and the interpreter must not try to flush.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return OK
    assert isinstance(error, Exception)
    return unforeseen(error)


def _command(command: str, rest: list[str]) -> int:
    """What each command does with the words behind it; each is imported when it is asked for."""
    match command:
        case "-h" | "--help" | "help":
            return say(USAGE)
        case "--version":
            return say(f"gradstab {__version__}\n")
        case "train":
            from gradstab.cli.train import train

            return train(rest)
        case "probe":
            from gradstab.cli.probe import probe

            return probe(rest)
        case "report":
            from gradstab.cli.report import report

            return report(rest)
        case "explain":
            from gradstab.cli.explain import explain

            return explain(rest)
        case "status":
            from gradstab.cli.status import status

            return status(rest)
        case "list":
            from gradstab.cli.listing import list_options

            return list_options(rest)
        case "-sc" | "--shell-completion" | "--shell_completion":
            from gradstab.cli.composition import complete

            return complete(rest)
    commands = "train, probe, report, explain, status, list"
    return complain(f"{command}: there is no such command; allowed: {commands} (see gradstab --help)")
