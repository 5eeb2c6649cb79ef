"""The run's TensorBoard event file: write it, and read it back.

A record is an Event message in a frame (:mod:`gradstab.framing`).
Every quantity with an entry per layer is one tensor summary, ``layers/<quantity>``, in which inf and NaN survive;
beside it go scalars that a person looks at.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_DOUBLE

from gradstab.decoding import VECTOR_PREFIX, Decoder
from gradstab.framing import framed, frames

PLUGIN = "gradstab"
MAX_SHOWN = 64

Vector = NDArray[np.float64]

# Held here until they are closed: else a collector may close them before what would write to them last.
_OPEN: set[BinaryIO] = set()
_LARGEST = float(np.finfo(np.float32).max)


def as_written(value: float) -> float:
    """A scalar as the event file holds it: in single precision, and finite still where it was."""
    rounded = ctypes.c_float(value).value
    return math.copysign(_LARGEST, value) if math.isinf(rounded) and math.isfinite(value) else rounded


def shown_layers(count: int, at_most: int = MAX_SHOWN) -> list[int]:
    """The layers shown one by one: all, or evenly spaced ones, the first and the last included."""
    if count <= at_most:
        return list(range(count))
    return [round(i * (count - 1) / (at_most - 1)) for i in range(at_most)]


def layer_tags(names: Sequence[str]) -> list[str]:
    """Names that sort by depth: a zero-padded index, then the layer's own name."""
    digits = max(2, len(str(len(names) - 1)))
    return [f"{index:0{digits}d}_{name}" for index, name in enumerate(names)]


class _Template(NamedTuple):
    """A record to be filled in: where its scalars go, and each vector, whole and with the layers shown one by one."""

    event: Event
    scalars: list[Summary.Value]
    vectors: list[tuple[Summary.Value, list[tuple[int, Summary.Value]]]]


class EventWriter:
    """Appends to one event file in ``directory``; ``layers`` are the tags of all layers, nearest the input first.

    With what :meth:`state_dict` gave, it goes on in that file; :meth:`rewind` cuts off what was written afterwards.
    """

    def __init__(self, directory: Path, layers: Sequence[str], state: Mapping[str, Any] | None = None) -> None:
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self.path = directory / (name if state is None else state["name"])
        # So much that the steps between two flushes go to the file in one write.
        self._file = self.path.open("xb" if state is None else "r+b", buffering=2**18)
        _OPEN.add(self._file)
        self._layers = list(layers)
        self._described: set[str] = set()
        self._templates: dict[Any, _Template] = {}
        if state is None:
            self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        else:
            self._file.seek(state["position"])
            self._described.update(state["described"])

    @property
    def in_place(self) -> bool:
        """Whether the file is still where it was made: neither removed nor another one by now."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
        except OSError:
            return False

    def rewind(self) -> None:
        """Cut the file off where it goes on."""
        self._file.truncate()

    def state_dict(self) -> dict[str, Any]:
        """The file's name and where it ends."""
        return {"name": self.path.name, "position": self._file.tell(), "described": sorted(self._described)}

    def write(
        self, step: int, scalars: Mapping[str, float], vectors: Mapping[str, Vector], wall_time: float | None = None
    ) -> None:
        """Record one step: scalars by tag, and vectors by quantity with an entry per layer (or per hidden layer)."""
        key = (*scalars, *((quantity, len(vector)) for quantity, vector in vectors.items()))
        if key not in self._templates:
            self._templates[key] = self._template(scalars, vectors)
        template = self._templates[key]
        event = template.event
        event.wall_time, event.step = wall_time or time.time(), step
        for slot, value in zip(template.scalars, scalars.values(), strict=True):
            slot.simple_value = as_written(value)
        for (whole, shown), vector in zip(template.vectors, vectors.values(), strict=True):
            whole.tensor.tensor_content = vector.astype("<f8", copy=False).tobytes()
            values = vector.tolist()
            for index, slot in shown:
                slot.simple_value = values[index]
        undescribed = [whole for whole, _ in template.vectors if whole.tag not in self._described]
        for whole in undescribed:
            self._describe(whole)
        self._write(event)
        for whole in undescribed:
            whole.ClearField("metadata")

    def write_summary(self, summary: Summary, step: int = 0) -> None:
        """Record a summary made elsewhere (hyperparameters, layouts)."""
        self._write(Event(wall_time=time.time(), step=step, summary=summary))

    def flush(self) -> None:
        """Hand everything written so far to the operating system."""
        self._file.flush()

    def sync(self) -> None:
        """Have everything written so far on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush and close; nothing can be written afterwards."""
        _OPEN.discard(self._file)
        self._file.close()

    def _template(self, scalars: Mapping[str, float], vectors: Mapping[str, Vector]) -> _Template:
        """A record of these tags; putting them together anew at every step would cost as much as taking the norms."""
        event = Event()
        values = event.summary.value
        scalar_slots = [values.add(tag=tag) for tag in scalars]
        vector_slots = []
        for quantity, vector in vectors.items():
            shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=len(vector))])
            whole = values.add(tag=VECTOR_PREFIX + quantity, tensor=TensorProto(dtype=DT_DOUBLE, tensor_shape=shape))
            shown = [(i, values.add(tag=f"{quantity}/{self._layers[i]}")) for i in shown_layers(len(vector))]
            vector_slots.append((whole, shown))
        return _Template(event, scalar_slots, vector_slots)

    def _describe(self, whole: Summary.Value) -> None:
        """Name a vector's layers: TensorBoard remembers what the first value of a tag says of itself."""
        self._described.add(whole.tag)
        count = whole.tensor.tensor_shape.dim[0].size
        content = json.dumps({"layers": self._layers[:count]}).encode()
        plugin_data = SummaryMetadata.PluginData(plugin_name=PLUGIN, content=content)
        whole.metadata.CopyFrom(SummaryMetadata(plugin_data=plugin_data, data_class=DATA_CLASS_TENSOR))

    def _write(self, event: Event) -> None:
        self._file.write(framed(event.SerializeToString()))


@dataclass
class Series:
    """One tag through a run: steps [n], and values [n] for a scalar or [n, layers] for a vector."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass
class Records:
    """What event files hold: scalars by tag, vectors by quantity, and the layers' tags, nearest the input first.

    ``damaged`` names the files that end in a record that is cut off or damaged; what stood before it was read.
    ``left_out`` names files that hold steps of the newest one once more, of which only that one counts.
    """

    scalars: dict[str, Series] = field(default_factory=dict)
    vectors: dict[str, Series] = field(default_factory=dict)
    layers: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def read_events(path: Path) -> Iterator[Event]:
    """The events of one file, in order, up to the first record that is cut off or damaged."""
    return map(Event.FromString, frames(path))


def read_records(directory: str | Path) -> Records:
    """Everything the event files in a run's directory recorded, each file up to where it is whole."""
    paths = sorted(Path(directory).glob("events.out.tfevents.*"))
    records = _read(paths)
    if len(paths) > 1 and any((np.diff(series.steps) <= 0).any() for series in records.vectors.values()):
        # A run writes one file: what another adds to the same steps is another run's, or a copy.
        records = _read(paths[-1:])
        records.left_out = [path.name for path in paths[:-1]]
    return records


def _read(paths: Iterable[Path]) -> Records:
    decoder = Decoder()
    damaged: list[str] = []
    for path in paths:
        try:
            for data in frames(path, damaged):
                decoder.feed(data)
        except DecodeError:
            damaged.append(path.name)
    return Records(
        {tag: Series(*table) for tag, table in decoder.scalars().items()},
        {quantity: Series(*table) for quantity, table in decoder.vectors().items()},
        decoder.layers,
        damaged,
    )


def whole_bytes(path: Path) -> int:
    """How far a file is whole: where the first record that is cut off or damaged begins, or where it ends."""
    return sum(len(data) + 16 for data in frames(path))
