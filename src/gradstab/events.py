"""The run's TensorBoard event file: write it, and read it back.

A record is an Event message in a frame (:mod:`gradstab.framing`).
Every quantity with an entry per layer is one tensor summary, ``layers/<quantity>``, in which inf and NaN survive;
beside it go scalars that a person looks at.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary

from gradstab.decoding import Decoder
from gradstab.encoding import Encoder, Vector
from gradstab.framing import framed, frames
from gradstab.run_directory import EVENT_FILES

# Held here until they are closed: else a collector may close them before what would write to them last.
_OPEN: set[BinaryIO] = set()


def layer_tags(names: Sequence[str]) -> list[str]:
    """Names that sort by depth: a zero-padded index, then the layer's own name."""
    digits = max(2, len(str(len(names) - 1)))
    return [f"{index:0{digits}d}_{name}" for index, name in enumerate(names)]


class EventWriter:
    """Appends to one event file in ``directory``; ``layers`` are the tags of all layers, nearest the input first.

    With what :meth:`state_dict` gave, it goes on in that file; :meth:`rewind` cuts off what was written afterwards.
    """

    def __init__(self, directory: Path, layers: Sequence[str], state: Mapping[str, Any] | None = None) -> None:
        name = f"{EVENT_FILES}{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self.path = directory / (name if state is None else state["name"])
        # So much that the steps between two flushes go to the file in one write.
        self._file = self.path.open("xb" if state is None else "r+b", buffering=2**18)
        _OPEN.add(self._file)
        self._layers = list(layers)
        self._encoder = Encoder(layers, () if state is None else state["described"])
        if state is None:
            self._write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        else:
            self._file.seek(state["position"])

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
        return {"name": self.path.name, "position": self._file.tell(), "described": sorted(self._encoder.described)}

    def write(
        self, step: int, scalars: Mapping[str, float], vectors: Mapping[str, Vector], wall_time: float | None = None
    ) -> None:
        """Record one step: scalars by tag, and vectors by quantity with an entry per layer (or per hidden layer)."""
        self._write(self._encoder.encode(step, wall_time or time.time(), scalars, vectors))

    def write_summary(self, summary: Summary, step: int = 0) -> None:
        """Record a summary made elsewhere (hyperparameters, layouts)."""
        self._write(Event(wall_time=time.time(), step=step, summary=summary).SerializeToString())

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

    def _write(self, record: bytes) -> None:
        self._file.write(framed(record))


@dataclass
class Series:
    """One tag through a run: steps [n], and values [n] for a scalar or [n, layers] for a vector."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass
class Records:
    """What event files hold: scalars by tag, vectors by quantity, and the layers' tags, nearest the input first.

    ``damaged`` names the files that end in a record that is cut off or damaged; what stood before it was read.
    ``left_out`` names files that hold steps of another one once more: those with layers come before others, and newer
    ones before older.
    """

    scalars: dict[str, Series] = field(default_factory=dict)
    vectors: dict[str, Series] = field(default_factory=dict)
    layers: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def ends(self) -> Records:
        """The last value of every scalar, and nothing else."""
        last = {tag: Series(s.steps[-1:].copy(), s.values[-1:].copy()) for tag, s in self.scalars.items()}
        return Records(last)


def read_events(path: Path) -> Iterator[Event]:
    """The events of one file, in order, up to the first record that is cut off or damaged."""
    return map(Event.FromString, frames(path))


def read_records(directory: str | Path) -> Records:
    """Everything the event files in a run's directory recorded, each file up to where it is whole."""
    paths = sorted(Path(directory).glob(f"{EVENT_FILES}*"))
    if len(paths) < 2:
        return _read(paths)
    # A run writes one file: what another adds to the same steps is another run's, a copy, or not gradstab's at all.
    each = {path: _read([path]) for path in paths}
    kept: list[Path] = []
    for path in sorted(paths, key=lambda path: (bool(each[path].vectors), path), reverse=True):
        if not any(_overlap(each[path], each[other]) for other in kept):
            kept.append(path)
    records = _read(sorted(kept))
    records.left_out = [path.name for path in paths if path not in kept]
    return records


def _overlap(one: Records, other: Records) -> bool:
    """Whether both have values of one tag at one step."""
    series, others = {**one.scalars, **one.vectors}, {**other.scalars, **other.vectors}
    return any(np.isin(series[tag].steps, others[tag].steps).any() for tag in series.keys() & others.keys())


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
