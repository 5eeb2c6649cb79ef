"""A command that sweeps, from its words to its exit code: where it writes, what it says at the end."""

from __future__ import annotations

import contextlib
import shlex
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rich.text import Text

from gradstab.cli.output import FAILED, OK, complain
from gradstab.config.sweep_options import DEFAULT_OBJECTIVE, SweepKnobs
from gradstab.console.sweep import SweepView, table
from gradstab.errors import GradstabError, Interrupted
from gradstab.interrupts import caught
from gradstab.sweeps import ledger, results
from gradstab.sweeps.engine import FailFastError, Sweep
from gradstab.sweeps.naming import sweep_folder
from gradstab.sweeps.status import log_of
from gradstab.sweeps.table import cells_table, seeds_table
from gradstab.wording import printable

SWEEPS = "outputs/sweeps"
# What decides neither which cells there are nor what becomes of them.
_BESIDE_THE_SWEEP = (
    *("out_dir=", "quiet=", "hydra.sweep.dir=", "hydra/launcher=", "hydra.launcher.", "hydra.mode="),
    *("checkpoint=", "checkpoint.", "objective="),
)
_MOST_DAMAGED = 3


@dataclass
class SweepSession:
    """A command's sweep; ``sweep`` and ``view`` are None until the first cells are known, of ``expected`` ones."""

    knobs: SweepKnobs = field(default_factory=SweepKnobs)
    sweep: Sweep | None = None
    view: SweepView | None = None
    objective: str = DEFAULT_OBJECTIVE
    expected: int = 0


def default_folder(words: Sequence[str]) -> str:
    """The folder that the same command finds again, whatever the order of its words."""
    kept = [word for word in words if word not in ("-m", "--multirun")]
    return f"{SWEEPS}/{sweep_folder([word for word in kept if not word.lstrip('+').startswith(_BESIDE_THE_SWEEP)])}"


def conduct(session: SweepSession, go: Callable[[], None]) -> int:
    """Run the sweep by ``go``, then show what came of it; returns the exit code."""
    ended = None
    try:
        with caught() as stop:
            go()
    except FailFastError as error:
        ended = error
    except KeyboardInterrupt as error:
        if session.sweep is None:
            raise
        with contextlib.suppress(GradstabError):
            _write(session.sweep)
        # What a signal raised may have become another's KeyboardInterrupt on its way.
        number = error.signal if isinstance(error, Interrupted) else stop.signal or signal.SIGINT
        raise Interrupted(number, f"interrupted: {session.sweep.progress()}") from None
    finally:
        if session.view is not None:
            session.view.stop()
    return OK if session.sweep is None else _conclude(session, ended)


def _write(sweep: Sweep) -> list[results.Row]:
    """Write the whole folder's results; returns the rows of this command's cells."""
    rows = results.rows_of(sweep.folder, sweep.entries().values())
    results.write(sweep.folder, rows)
    return [row for row in rows if row.entry.key in sweep.keys]


def _conclude(session: SweepSession, ended: GradstabError | None) -> int:
    """The tables, where they are, and what failed."""
    assert session.sweep is not None
    assert session.view is not None
    folder, view = session.sweep.folder, session.view
    rows = _write(session.sweep)
    if not view.quiet:
        width = view.console.width
        view.console.print(table(cells_table(rows, session.objective), width, results.RESULTS_FILE))
        if groups := results.groups(rows):
            view.console.print(Text("\nover seeds: mean ± standard deviation (n − 1) of the completed"))
            view.console.print(table(seeds_table(groups), width, results.SEEDS_FILE))
        counts = Counter(row.entry.status for row in rows)
        said = ", ".join(f"{counts[status]} {status}" for status in ledger.STATES if counts[status])
        for line in (
            f"{said} in {view.seconds:.1f} s",
            f"results      {folder / results.RESULTS_FILE}",
            f"report       gradstab report {shlex.quote(str(folder))}",
            f"TensorBoard  tensorboard --logdir {shlex.quote(str(folder))}",
        ):
            view.console.print(Text(printable(line)), soft_wrap=True)
    complain(*session.sweep.damaged[:_MOST_DAMAGED])
    bad = [row.entry for row in rows if row.entry.status not in ledger.FINISHED]
    for entry in bad:
        if entry.status != ledger.PENDING:
            complain(f"{entry.directory}: {entry.status}: {entry.reason} (see {log_of(folder / entry.directory)})")
    if ended is not None:
        complain(str(ended))
    return FAILED if bad else OK
