"""From a checked configuration to a finished run on disk."""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradstab import checkpoint, console, dashboard, run_directory
from gradstab.assembly import build, check_memory
from gradstab.claims import claimed
from gradstab.config import Config, to_container
from gradstab.data import kept_data
from gradstab.draws import trial
from gradstab.errors import ConfigError, GradstabError, Interrupted
from gradstab.examination import Examination
from gradstab.interrupts import Stop, caught
from gradstab.parts import Parts
from gradstab.record import closing_record, opening_record, resumption
from gradstab.session import Checkpoints, Session, obstacle
from gradstab.wording import counted, printable

# How Slurm, LSF and Grid Engine tell a job that it runs again after it was preempted or its node failed.
REQUEUED = {"SLURM_RESTART_COUNT": ("", "0"), "LSB_RESTART": ("", "N"), "RESTARTED": ("", "0")}
NO_CHECKPOINT = "no checkpoint could be written ({})"


def run(
    config: Config,
    directory: Path | None = None,
    *,
    restart: bool = False,
    resume: bool = False,
    cell: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Train as configured and record it in ``directory`` (or ``out_dir``, or a new one under outputs/train).

    Returns what was written to run.json. Raises :class:`ConfigError` before anything is written; :class:`Interrupted`
    after a signal, and failures, are recorded, then raised.

    With ``restart``, and in a requeued cluster job, a directory that holds an unfinished run of the same configuration
    is no error: that run goes on from its last good checkpoint; without one, what it wrote is removed and it starts
    anew. ``resume`` does the same, but does not start anew where there are checkpoints that cannot be used.

    A ``cell`` is one run of many, which differ in the settings it names: its data stay in memory for the next, and
    where it is too short for pictures on its way, it draws none at its end, which would take a good part of its time.
    """
    directory = directory or Path(config.out_dir or f"outputs/train/{run_directory.new_name()}").expanduser()
    identity = run_directory.identity(to_container(config))
    state, earlier = None, None
    with caught() as stop, contextlib.ExitStack() as stack:
        if run_directory.holds_run(directory):
            # As it is before the claim: with it, any unfinished run is one at work.
            status = run_directory.status_of(directory)
            stack.enter_context(claimed(directory))
            if not (restart or resume or requeued()) or status in run_directory.FINISHED:
                raise run_directory.refusal(directory, status)
            earlier = _earlier(directory, identity)
            state = checkpoint.latest(directory, identity, functools.partial(obstacle, directory), _say)
            checkpoints = directory / run_directory.CHECKPOINTS
            if state is None and os.path.lexists(checkpoints) and not checkpoints.is_dir():
                raise GradstabError(f"{checkpoints}: is no folder, or a link to none; allowed: a folder, or nothing")
            unusable = checkpoint.kept(directory) if state is None else None
            if unusable and resume:
                raise GradstabError(
                    f"{directory}: none of its {len(unusable)} checkpoints can be used; "
                    "allowed: remove the folder, and start anew"
                )
        check_memory(config)
        parts = build(config, kept_data(config.data.name, **config.data.knobs) if cell is not None else None)
        if state is None:
            if earlier is not None:
                run_directory.clear(directory)
                if not restart:
                    _say(f"{directory}: there is no checkpoint to go on from; the run starts anew")
            run_directory.create(directory)
        stack.enter_context(claimed(directory))
        return _run(config, parts, directory, stop, state, earlier, cell)


def requeued() -> bool:
    """Whether this is a cluster's job that runs again; see ``REQUEUED``."""
    return any(os.environ.get(name, "") not in never for name, never in REQUEUED.items())


def _earlier(directory: Path, identity: str) -> dict[str, Any]:
    """run.json of a run there, which is to have the same configuration; the caller holds the directory."""
    record = run_directory.read_run(directory)
    if record.get("identity") != identity:
        raise ConfigError(f"out_dir={directory}: holds a run of another configuration; choose another, or remove it")
    return record


def _say(line: str) -> None:
    sys.stderr.write(f"gradstab: {printable(line)}\n")


def _run(
    config: Config,
    parts: Parts,
    directory: Path,
    stop: Stop,
    state: dict[str, Any] | None,
    earlier: dict[str, Any] | None,
    cell: Sequence[str] | None,
) -> dict[str, Any]:
    examination = Examination.of(config, parts)
    record = opening_record(config, parts) | examination.record
    if state is None or earlier is None:
        run_directory.write_config(directory, to_container(config))
    else:
        _note_resumption(directory, record, earlier, state, quiet=config.quiet)
        # Continued by hand, a cell is to leave what it would have left in its sweep.
        cell = earlier.get("cell") if cell is None else cell
    if cell is not None:
        record["cell"] = list(cell)
    _write(directory, record)
    session: Session | None = None
    ended: dict[str, Any] | None = None
    try:
        session = Session(config, parts, examination, directory, state)
        checkpoints = Checkpoints(directory, record["identity"], session, stop, state)
        if state is None:
            session.write_header(to_container(config), cell or ())
        with console.display(config, parts) as display, stop.waiting():
            outcome = session.fit(display, checkpoints)
            ended = session.state_dict()
        checkpoints.finish(ended, completed=outcome.status == "completed")
        if parts.measure_norms:
            record["verdict"] = examination.verdict(session.judge, trial(parts.data)).to_dict()
        if session.pictures is not None:
            session.pictures.finish(short=cell is None)
        session.writer.write_summary(dashboard.hparams_end(outcome.status == "completed"))
        session.writer.close()
        record |= closing_record(outcome, session.recorder, session.seconds) | session.keeper.record
    except KeyboardInterrupt as error:
        # Whatever comes now, the checkpoint and run.json are written first; only another Ctrl-C is quicker.
        stop.hold()
        said = "" if ended is None else _written(checkpoints, ended)
        raise _interruption(directory, record, session, examination, error, said) from error
    except Exception as error:
        stop.hold()
        if stop.signal is not None and isinstance(error, OSError):
            said = NO_CHECKPOINT.format(error.strerror)
            raise _interruption(directory, record, session, examination, Interrupted(stop.signal), said) from error
        raise _failure(directory, record, session, error) from error
    finally:
        stop.hold()
        if session is not None:
            with contextlib.suppress(OSError):
                session.writer.close()
        _write(directory, record)
    console.summary(config, parts, outcome, record, directory)
    stop.poll()
    return record


def _note_resumption(
    directory: Path, record: dict[str, Any], earlier: dict[str, Any], state: dict[str, Any], *, quiet: bool
) -> None:
    """Put into ``record`` that the run goes on from ``state``, and say what has changed around it."""
    record |= resumption(earlier, record, state)
    if not quiet:
        _say(f"{directory} goes on after step {state['step']:,}")
    changed = record["resumed"][-1].get("changed")
    if changed:
        listed = ", ".join(f"{name} {versions}" for name, versions in changed.items())
        _say(f"what the run was begun with has changed ({listed}): its numbers may differ in the last digits")
    (directory / run_directory.FAILURE_FILE).unlink(missing_ok=True)


def _write(directory: Path, record: dict[str, Any]) -> None:
    try:
        run_directory.write_run(directory, record)
    except OSError as error:
        raise GradstabError(f"{directory / run_directory.RUN_FILE}: cannot be written ({error.strerror})") from error


def _written(checkpoints: Checkpoints, ended: dict[str, Any]) -> str:
    """Write the state of a run whose training is done; returns what kept it from being written, if anything did."""
    try:
        checkpoints.write(ended)
    except OSError as error:
        return NO_CHECKPOINT.format(error.strerror)
    return ""


def _interruption(
    directory: Path,
    record: dict[str, Any],
    session: Session | None,
    examination: Examination,
    error: KeyboardInterrupt,
    said: str = "",
) -> Interrupted:
    """Record that the run was interrupted, and what to raise."""
    number = error.signal if isinstance(error, Interrupted) else signal.SIGINT
    reason = f"interrupted by {signal.Signals(number).name}"
    done = 0
    if session is not None:
        done = session.progress.done
        record |= closing_record(session.progress.outcome, session.recorder, session.seconds) | session.keeper.record
        if session.recorder.recorded_steps and session.recorder.latest.layer_grad_norms:
            record["verdict"] = examination.verdict(session.judge).to_dict()
    record |= {"status": "interrupted", "reason": f"{reason} after {counted(done)}"}
    ways = said or f"gradstab train --resume {shlex.quote(str(directory))} continues it"
    return Interrupted(number, f"interrupted after {counted(done)}; {ways}")


def _failure(directory: Path, record: dict[str, Any], session: Session | None, error: Exception) -> GradstabError:
    """Record that the run failed, and what to raise."""
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    seconds = 0.0 if session is None else session.seconds
    record |= {"status": "failed", "reason": reason, "seconds": seconds}
    path = directory / run_directory.FAILURE_FILE
    try:
        path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        return GradstabError(f"failed: {reason}")
    return GradstabError(f"failed: {reason} (see {path})")
