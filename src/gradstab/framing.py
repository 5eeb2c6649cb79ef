"""Records in a file as TensorFlow frames them (TFRecord): length, its checksum, content, its checksum."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import google_crc32c

from gradstab.files import open_regular


def framed(data: bytes) -> bytes:
    """A record with this content."""
    header = struct.pack("<Q", len(data))
    return header + _masked_crc(header) + data + _masked_crc(data)


def frames(path: Path, damaged: list[str] | None = None) -> Iterator[bytes]:
    """The contents of a file's records; where one is cut off or damaged, the name goes to ``damaged`` and it ends."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        while header := file.read(12):
            length = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else size + 1
            if length > size or _masked_crc(header[:8]) != header[8:]:
                break
            body = file.read(length + 4)
            if len(body) < length + 4 or _masked_crc(body[:length]) != body[length:]:
                break
            yield body[:length]
        else:
            return
    if damaged is not None:
        damaged.append(path.name)


def _masked_crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)
