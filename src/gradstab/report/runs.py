"""Reading runs, whole or broken: what cannot be read is named, the rest is there."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gradstab.config import flat
from gradstab.errors import GradstabError
from gradstab.events import Records, read_records
from gradstab.files import as_number, load_yaml, read_text
from gradstab.measure.verdict import Verdict
from gradstab.report.standing import mend_status
from gradstab.run_directory import CONFIG_FILE, EVENT_FILES, RUN_FILE
from gradstab.wording import as_word, printable, shown

_UNKNOWING = ": the verdict knows neither guessing's loss nor what theory says"
_BESIDE = ("defaults", "out_dir", "hydra", "checkpoint")


@dataclass
class Run:
    """One run as far as it can be read.

    ``record`` is run.json, ``settings`` the configuration by dotted key; either is empty where it cannot be read.
    ``theory`` has ``signal_grad_norm``, relative to the topmost hidden layer, or else ``reason``. ``story`` is what
    :func:`gradstab.report.telling.tell` adds. ``notes`` say in a few words each what is missing.
    """

    directory: Path
    name: str
    record: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    records: Records = field(default_factory=Records)
    layers: list[str] = field(default_factory=list)
    verdict: Verdict | None = None
    theory: dict[str, Any] = field(default_factory=dict)
    story: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def status(self) -> str:
        """As run.json has it; "unknown" where nothing tells."""
        return printable(self.record.get("status") or "unknown")

    @property
    def hidden(self) -> int:
        """How many layers, nearest the input, have an activation."""
        for quantity in ("activation_std", "activation_mean", "dead_fraction"):
            if quantity in self.records.vectors:
                return int(self.records.vectors[quantity].values.shape[1])
        return max(len(self.layers) - 1, 0)

    def number(self, key: str) -> float | None:
        """An entry of run.json as a number, which may be inf or NaN; None where there is none."""
        return as_number(self.record.get(key))


def load(directory: Path, name: str, planned: Mapping[str, Any] | None = None) -> Run:
    """Read one run; nothing in it can make this fail. ``planned`` is what a sweep's ledger has for its settings."""
    run = Run(directory, name)
    run.record = _read_record(directory, run.notes)
    run.settings = _read_settings(directory, run.notes, expected="watched" not in run.record) or _flat(planned or {})
    run.records = _read_events(directory, run.notes)
    run.layers = _layers(run)
    _note_what_is_missing(run)
    run.theory = _theory(run)
    run.verdict = _verdict(run)
    return run


def _read_record(directory: Path, notes: list[str]) -> dict[str, Any]:
    try:
        record = json.loads(read_text(directory / RUN_FILE))
    except FileNotFoundError:
        notes.append(f"no {RUN_FILE}{_UNKNOWING}")
    except (OSError, ValueError, RecursionError) as error:
        notes.append(f"{RUN_FILE} cannot be read ({type(error).__name__}){_UNKNOWING}")
    else:
        if isinstance(record, dict):
            return record
        notes.append(f"{RUN_FILE} holds no record")
    return {}


def _read_settings(directory: Path, notes: list[str], *, expected: bool) -> dict[str, Any]:
    try:
        container = load_yaml(directory / CONFIG_FILE)
        if isinstance(container, dict):
            return _flat(container)
        notes.append(f"{CONFIG_FILE} holds no configuration")
    except FileNotFoundError:
        # Somebody's own loop that was watched has no configuration.
        if expected:
            notes.append(f"no {CONFIG_FILE}")
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        notes.append(f"{CONFIG_FILE} cannot be read ({type(error).__name__})")
    return {}


def _flat(container: Mapping[str, Any]) -> dict[str, Any]:
    """By dotted key what was chosen for a run; Hydra's own, where it lies and what it keeps was not."""
    settings = {key: value for key, value in container.items() if key not in _BESIDE}
    return {printable(key): _plain(value) for key, value in flat(settings).items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return printable(as_word(value)) or "none"
    return value if isinstance(value, int | float) and not isinstance(value, bool) else printable(shown(value))


def _read_events(directory: Path, notes: list[str]) -> Records:
    try:
        records = read_records(directory)
        if not any(directory.glob(EVENT_FILES + "*")):
            notes.append("no event file")
    except OSError as error:
        notes.append(f"event file cannot be read ({error.strerror})")
        return Records()
    records.vectors = {quantity: s for quantity, s in records.vectors.items() if s.values.shape[1]}
    notes += [f"{name} is left out: another event file has the same steps" for name in records.left_out]
    for _ in records.damaged:
        last = max((int(s.steps[-1]) for s in records.vectors.values() if len(s.steps)), default=None)
        notes.append("event file cut off or damaged" + ("" if last is None else f" after step {last}"))
    return records


def _layers(run: Run) -> list[str]:
    recorded = run.records.layers
    listed = run.record.get("layers")
    if isinstance(listed, list) and len(listed) > len(recorded):
        recorded = listed
    width = max((series.values.shape[1] for series in run.records.vectors.values()), default=0)
    return [*map(printable, recorded), *(f"{index:02d}" for index in range(len(recorded), width))]


def _note_what_is_missing(run: Run) -> None:
    has_file = "no event file" not in run.notes
    if has_file and not run.records.scalars and not run.records.vectors:
        run.notes.append("the event file holds no records")
    elif has_file and "grad_norm" not in run.records.vectors:
        why = " (measure=none)" if run.settings.get("measure") == "none" else ""
        run.notes.append(f"no per-layer gradient norms{why}")
    if "signal_grad_norm" not in run.records.vectors and "grad_norm" in run.records.vectors:
        run.notes.append("no measured step: neither signal_grad_norm nor activation statistics")
    run.notes += mend_status(run.directory, run.record)
    if "status" not in run.record and not any(RUN_FILE in note for note in run.notes):
        run.notes.append(f"{RUN_FILE} has no status")


def _theory(run: Run) -> dict[str, Any]:
    theory = run.record.get("theory")
    if not isinstance(theory, Mapping):
        return {"reason": f"no prediction in {RUN_FILE}"}
    profile = theory.get("signal_grad_norm")
    values = [as_number(value) for value in profile] if isinstance(profile, list) else []
    if values and all(value is not None for value in values):
        notes = theory.get("notes")
        return {
            "signal_grad_norm": [math.nan if value is None else value for value in values],
            "depth_factor": as_number(theory.get("depth_factor")),
            "notes": [printable(note) for note in notes] if isinstance(notes, list) else [],
        }
    return {"reason": printable(theory.get("reason") or f"no profile in {RUN_FILE}")}


def _verdict(run: Run) -> Verdict | None:
    """run.json's own; from the records where it has none."""
    try:
        verdict = Verdict.from_dict(run.record["verdict"])
        return verdict if verdict.labels else None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        if "verdict" in run.record:
            run.notes.append(f"the verdict in {RUN_FILE} cannot be read")
    if not run.records.vectors:
        run.notes.append("no verdict")
        return None
    try:
        return _judged(run)
    except (GradstabError, ValueError, LookupError, TypeError, ArithmeticError) as error:
        run.notes.append(f"no verdict ({type(error).__name__} in the records)")
        return None


def _judged(run: Run) -> Verdict:
    """The verdict that the run would have given itself, on as many records as there are."""
    from gradstab.measure.afterwards import judge_records

    layers = max(run.records.layers, run.layers, key=len)
    records = Records(run.records.scalars, run.records.vectors, layers)
    return judge_records(records, run.record | _mended(run, layers))


def _mended(run: Run, layers: Sequence[str]) -> dict[str, Any]:
    """What stands in for entries of run.json that the judge reads: the same where they make sense, else none."""
    from gradstab.config.verdict_options import Thresholds

    theory = run.record.get("theory")
    theory = dict(theory) if isinstance(theory, Mapping) else {}
    for key in ("depth_factor", "signal_share", "step_scale", "decay"):
        value = as_number(theory.pop(key, None))
        if value is not None and (key == "depth_factor" or math.isfinite(value)):
            theory[key] = value
    listed = {key: run.record.get(key) for key in ("depth_layers", "trunk_layers")}
    whole = isinstance(hidden := run.record.get("hidden_layers"), int) and 0 <= hidden <= len(layers)
    own = run.record.get("thresholds")
    if not isinstance(own, Mapping):
        own = {name: run.settings.get(f"verdict.{name}") for name in Thresholds.__dataclass_fields__}
    thresholds: dict[str, Any] = {
        name: value if isinstance(value, int | float) else as_number(value)
        for name, value in own.items()
        if name in Thresholds.__dataclass_fields__ and as_number(value) is not None
    }
    return {
        "hidden_layers": hidden if whole else run.hidden,
        **{k: v if isinstance(v, list) and all(tag in layers for tag in v) else None for k, v in listed.items()},
        "chance_loss": run.number("chance_loss"),
        "least_loss": run.number("least_loss") or 0.0,
        "adaptive_optimizer": run.record.get("adaptive_optimizer") is True,
        "adaptive_since": run.number("adaptive_since") or 0,
        "thresholds": thresholds,
        "theory": theory,
    }
