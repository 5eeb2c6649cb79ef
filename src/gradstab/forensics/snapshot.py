"""What is kept of a step that broke: ``forensics/snapshot.json`` in a run's directory. Nothing here imports torch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from gradstab.errors import GradstabError
from gradstab.files import read_text, replacing

FOLDER = "forensics"
SNAPSHOT_FILE = "snapshot.json"
CHECKPOINT_FILE = "before.pt"
VERSION = 1
LAST_STEPS = 20

# Where the first value that was not finite stood, in the order in which a step comes upon them.
ORIGINS = ("weights", "buffer", "activation", "loss", "penalty", "signal", "gradient", "norm", "test_loss", "unseen")

T = TypeVar("T")


@dataclass(frozen=True)
class Origin:
    """The first value that was not finite.

    ``kind`` is one of ``ORIGINS``: a layer's weights, which the update before had broken; a buffer (running averages);
    a layer's h on the way forward; the loss or the penalty; δ of a layer on the way back, or only a parameter's
    gradient, or only its norm; the loss on the test split. ``layer`` is a tag, None where it is in no layer; ``name``
    is a parameter's (in its layer: ``bias``), a buffer's, or that of a module which is not the layer's own: one between
    layers, in a block, or one that computes a weight. ``unseen`` stands for a step that was finite when it was looked
    at once more.
    """

    kind: str
    layer: str | None = None
    name: str | None = None

    @property
    def direction(self) -> str:
        """``before`` the step, on its way ``forward``, ``backward``, or nothing."""
        if self.kind in ("weights", "buffer"):
            return "before"
        if self.kind == "unseen":
            return ""
        return "backward" if self.kind in ("signal", "gradient", "norm") else "forward"


@dataclass(frozen=True)
class Look:
    """One step's passes, looked at layer by layer, nearest the input first.

    ``weight`` (under a reparametrization, what weights are computed from), ``activation`` (h) and ``signal`` (δ) are
    the largest magnitudes, NaN or inf where there is one; ``grad_norm`` is the norm of the weights' gradient. The last
    two are empty where there was no way back.
    """

    loss: float
    penalty: float | None
    weight: list[float]
    activation: list[float]
    signal: list[float]
    grad_norm: list[float]


@dataclass(frozen=True)
class Past:
    """The last steps, the broken one at the end, as the ring held them; norms are before clipping.

    Without gradient norms (``measure=none`` and no clipping) the last three are empty. ``clip_scale`` is the global
    norm after clipping over that before.
    """

    step: list[int]
    loss: list[float]
    learning_rate: list[float]
    global_grad_norm: list[float] = field(default_factory=list)
    clip_scale: list[float] = field(default_factory=list)
    layer_grad_norm: list[list[float]] = field(default_factory=list)


@dataclass(frozen=True)
class Snapshot:
    """Everything that is kept of the first broken step.

    ``quantity`` and ``layer`` are what the step's own values told, ``origin`` what looking at it once more did.
    ``largest`` is where the numbers of the run's precision end. ``checkpoint`` is a file beside the snapshot with the
    state from just before the step, None where there is none. ``exact`` is False where that state was come by through
    running steps once more, which repeats them bit for bit only where the device does.
    """

    step: int
    quantity: str
    layer: str | None
    origin: Origin
    learning_rate: float
    batch: list[int]
    precision: str
    largest: float
    device: str
    skipped: bool
    layers: list[str]
    look: Look
    past: Past
    checkpoint: str | None
    exact: bool = True

    def write(self, folder: Path) -> None:
        """Write it whole or not at all."""
        with replacing(folder / SNAPSHOT_FILE) as file:
            file.write(f"{_json({'version': VERSION} | asdict(self))}\n".encode())

    @classmethod
    def read(cls, folder: Path) -> Snapshot:
        """What :meth:`write` wrote into ``folder``; raises :class:`GradstabError` for anything else."""
        path = folder / SNAPSHOT_FILE
        try:
            content = json.loads(read_text(path))
            return cls._from(content)
        except OSError as error:
            raise GradstabError(f"{path}: cannot be read ({error.strerror})") from error
        except KeyError as error:
            raise GradstabError(f"{path}: is no snapshot ({error.args[0]} is missing)") from error
        except (ValueError, TypeError, RecursionError) as error:
            reason = "no JSON" if isinstance(error, json.JSONDecodeError | UnicodeDecodeError) else str(error)
            raise GradstabError(f"{path}: is no snapshot ({reason.splitlines()[0]})") from error

    @classmethod
    def _from(cls, content: Any) -> Snapshot:
        if _mapping(content, "it").get("version") != VERSION:
            raise ValueError(f"version {content.get('version')!r}, this gradstab reads {VERSION}")
        look, past, origin = (_mapping(content[key], key) for key in ("look", "past", "origin"))
        layers = _list(content["layers"], _text)
        snapshot = cls(
            step=_count(content["step"]),
            quantity=_text(content["quantity"]),
            layer=_optional(content["layer"], _text),
            origin=Origin(_text(origin["kind"]), _optional(origin["layer"], _text), _optional(origin["name"], _text)),
            learning_rate=_number(content["learning_rate"]),
            batch=_list(content["batch"], _count),
            precision=_text(content["precision"]),
            largest=_number(content["largest"]),
            device=_text(content["device"]),
            skipped=bool(content["skipped"]),
            layers=layers,
            look=Look(
                loss=_number(look["loss"]),
                penalty=_optional(look["penalty"], _number),
                **{key: _list(look[key], _number) for key in ("weight", "activation", "signal", "grad_norm")},
            ),
            past=Past(
                step=_list(past["step"], _count),
                layer_grad_norm=_list(past["layer_grad_norm"], lambda row: _list(row, _number)),
                **{
                    key: _list(past[key], _number)
                    for key in ("loss", "learning_rate", "global_grad_norm", "clip_scale")
                },
            ),
            checkpoint=_optional(content["checkpoint"], _text),
            exact=bool(content["exact"]),
        )
        snapshot._check()
        return snapshot

    def _check(self) -> None:
        """Raises ValueError where the parts do not fit together."""
        past, count = self.past, len(self.layers)
        n = len(past.step)
        named = [tag for tag in (self.layer, self.origin.layer) if tag is not None]
        fits = (
            self.origin.kind in ORIGINS
            and all(tag in self.layers for tag in named)
            and all(len(values) == n for values in (past.loss, past.learning_rate))
            and all(len(values) in (0, n) for values in (past.global_grad_norm, past.clip_scale, past.layer_grad_norm))
            and all(len(row) == count for row in past.layer_grad_norm)
            and len(past.layer_grad_norm) == len(past.global_grad_norm)
            and all(len(values) in (0, count) for values in (self.look.weight, self.look.activation))
            and all(len(values) in (0, count) for values in (self.look.signal, self.look.grad_norm))
            and past.step == sorted(set(past.step))
            and re.fullmatch(r"cpu|mps|cuda(:\d{1,3})?", self.device) is not None
        )
        if not fits:
            raise ValueError("its parts do not fit together")
        if self.checkpoint is not None and Path(self.checkpoint).name != self.checkpoint:
            raise ValueError(f"checkpoint {self.checkpoint!r} is no name of a file beside it")


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} holds no record")
    return value


def _list(value: Any, of: Callable[[Any], T]) -> list[T]:
    if not isinstance(value, list):
        raise ValueError(f"{str(value)[:40]!r} is no list")
    return [of(item) for item in value]


def _optional(value: Any, of: Callable[[Any], T]) -> T | None:
    return None if value is None else of(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str) or len(str(value)) > 40:
        raise ValueError(f"{str(value)[:40]!r} is no number")
    return float(value)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"{str(value)[:40]!r} is no count")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable() or len(value) > 1000:
        raise ValueError(f"{str(value)[:40]!r} is no name")
    return value


def _json(value: Any, indent: str = "") -> str:
    """JSON that people can read, lists on one line; "inf", "-inf", "nan" for what it has no word for."""
    if isinstance(value, dict):
        inner = indent + "  "
        items = ",\n".join(f"{inner}{json.dumps(key)}: {_json(item, inner)}" for key, item in value.items())
        return f"{{\n{items}\n{indent}}}"
    if isinstance(value, list):
        # A row of norms for each step: each on a line of its own.
        nested = bool(value) and isinstance(value[0], list)
        return f"[{(f',{chr(10)}{indent}  ' if nested else ', ').join(map(_json, value))}]"
    return json.dumps(str(value) if isinstance(value, float) and not math.isfinite(value) else value)
