"""Event records encoded in bulk: the other half of :mod:`gradstab.decoding`.

A run writes the same tags step after step, so that most records differ from the one before only in their numbers. A
record of these tags is put together by protobuf once; after that its numbers are set in the bytes where they stand.
"""

from __future__ import annotations

import json
import math
import struct
from array import array
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_DOUBLE

from gradstab.decoding import VECTOR_PREFIX
from gradstab.wording import MAX_SHOWN, shown_layers

PLUGIN = "gradstab"

Vector = NDArray[np.float64]

_LARGEST = float(np.finfo(np.float32).max)


def as_written(scalars: Mapping[str, float]) -> dict[str, float]:
    """Scalars as the event file holds them: in single precision, and finite still where they were."""
    return dict(zip(scalars, _single(scalars.values()), strict=True))


def _single(values: Iterable[float]) -> array[float]:
    given = list(values)
    rounded = array("f", given)
    if not all(map(math.isfinite, rounded)):
        for i, value in enumerate(given):
            if math.isinf(rounded[i]) and math.isfinite(value):
                rounded[i] = math.copysign(_LARGEST, value)
    return rounded


class Encoder:
    """Gives the bytes of one step's Event after another; ``layers`` are the tags of all layers.

    A vector's first record names its layers, as TensorBoard remembers what the first value of a tag says of itself;
    ``described`` are the quantities of which that has been said.
    """

    def __init__(self, layers: Sequence[str], described: Iterable[str] = ()) -> None:
        self.described = set(described)
        self._layers = list(layers)
        self._forms: dict[object, _Form] = {}

    def encode(self, step: int, wall_time: float, scalars: Mapping[str, float], vectors: Mapping[str, Vector]) -> bytes:
        """The Event of one step: scalars by tag, and vectors by quantity with an entry per layer."""
        number = _varint(step)
        sizes = [(quantity, len(vector), quantity in self.described) for quantity, vector in vectors.items()]
        form = self._forms.get(key := (len(number), *scalars, *sizes))
        if form is None:
            form = self._forms[key] = _Form(self._records(len(number), list(scalars), sizes))
            self.described.update(vectors)
        parts = [struct.pack("<d", wall_time), number, _single(scalars.values()).tobytes()]
        for vector in vectors.values():
            values = vector.tolist()
            shown = values if len(values) <= MAX_SHOWN else [values[i] for i in shown_layers(len(values))]
            parts += [vector.astype("<f8", copy=False).tobytes(), array("f", shown).tobytes()]
        return form.filled(b"".join(parts))

    def _records(self, digits: int, scalars: Sequence[str], sizes: Sequence[tuple[str, int, bool]]) -> list[bytes]:
        """The same record twice, once with 1 in every byte of its numbers and once with 2."""
        return [self._record(byte, digits, scalars, sizes).SerializeToString() for byte in (1, 2)]

    def _record(self, byte: int, digits: int, scalars: Sequence[str], sizes: Sequence[tuple[str, int, bool]]) -> Event:
        (number,) = struct.unpack("<f", bytes([byte] * 4))
        (time,) = struct.unpack("<d", bytes([byte] * 8))
        event = Event(wall_time=time, step=sum(byte << 7 * i for i in range(digits)))
        values = event.summary.value
        for tag in scalars:
            values.add(tag=tag, simple_value=number)
        for quantity, count, described in sizes:
            shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=count)])
            content = bytes([byte] * 8 * count)
            tensor = TensorProto(dtype=DT_DOUBLE, tensor_shape=shape, tensor_content=content)
            whole = values.add(tag=VECTOR_PREFIX + quantity, tensor=tensor)
            if not described:
                whole.metadata.CopyFrom(self._description(count))
            for i in shown_layers(count):
                values.add(tag=f"{quantity}/{self._layers[i]}", simple_value=number)
        return event

    def _description(self, count: int) -> SummaryMetadata:
        content = json.dumps({"layers": self._layers[:count]}).encode()
        plugin_data = SummaryMetadata.PluginData(plugin_name=PLUGIN, content=content)
        return SummaryMetadata(plugin_data=plugin_data, data_class=DATA_CLASS_TENSOR)


class _Form:
    """A record to be filled in, from two that differ in each byte of their numbers and in no other."""

    def __init__(self, records: Sequence[bytes]) -> None:
        one, other = (np.frombuffer(record, np.uint8) for record in records)
        self._places = np.flatnonzero(one != other)
        self._bytes = one.copy()

    def filled(self, numbers: bytes) -> bytes:
        """The record with these numbers, in the order in which they stand."""
        self._bytes[self._places] = np.frombuffer(numbers, np.uint8)
        return self._bytes.tobytes()


def _varint(number: int) -> bytes:
    """A number of at least 0 as protobuf writes it: seven bits a byte, the lowest first; nothing for 0."""
    digits = bytearray()
    while number:
        digits.append(number & 127 | 128)
        number >>= 7
    if digits:
        digits[-1] &= 127
    return bytes(digits)
