"""Files that come whole or not at all, and the per-layer records as tables: run, step, layer, quantity, value."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gradstab.errors import ConfigError, GradstabError
from gradstab.report.runs import Run

COLUMNS = ("run", "step", "layer", "quantity", "value")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file to write into, which takes ``path``'s place at the end; raises GradstabError naming ``path``."""
    temporary = path.with_name(f".{path.name[:100]}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise GradstabError(f"{path}: cannot be written ({error.strerror or type(error).__name__})") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


class CsvTable:
    """Rows as text; every float with the digits that give it back exactly, inf and NaN as inf, -inf and nan."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8", newline="")
        self._file.write(",".join(COLUMNS) + "\n")

    def add(self, run: Run) -> None:
        """All per-layer records of one run."""
        for quantity, series in run.records.vectors.items():
            width = series.values.shape[1]
            # All rows of a step at once, three times as quick as one by one; no name has a NUL in it.
            fields = [(_quoted(run.name), "\0", _quoted(tag), _quoted(quantity)) for tag in run.layers[:width]]
            form = "".join(",".join(names).replace("%", "%%") + ",%r\n" for names in fields)
            for step, row in zip(series.steps.tolist(), series.values.tolist(), strict=True):
                self._file.write((form % tuple(row)).replace("\0", str(step)))

    def close(self) -> None:
        """Nothing can be added afterwards."""
        self._file.close()


def _quoted(text: str) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow([text])
    return out.getvalue()


def require_pyarrow() -> None:
    """Raises :class:`ConfigError` where Parquet files cannot be written."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ConfigError("--parquet: needs pyarrow; pip install 'gradstab[parquet]', or use --csv") from error


class ParquetTable:
    """The same rows with types: strings, int64 and float64."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._schema = pa.schema(
            list(zip(COLUMNS, (pa.string(), pa.int64(), pa.string(), pa.string(), pa.float64()), strict=True))
        )
        self._writer = pq.ParquetWriter(str(path), self._schema)

    def add(self, run: Run) -> None:
        """All per-layer records of one run."""
        import pyarrow as pa

        for quantity, series in run.records.vectors.items():
            rows, width = series.values.shape
            if rows * width == 0:
                continue
            same = np.zeros(rows * width, np.int32)
            layer = np.tile(np.arange(width, dtype=np.int32), rows)
            columns: list[Any] = [
                pa.DictionaryArray.from_arrays(same, [run.name]).cast(pa.string()),
                np.repeat(series.steps, width),
                pa.DictionaryArray.from_arrays(layer, run.layers[:width]).cast(pa.string()),
                pa.DictionaryArray.from_arrays(same, [quantity]).cast(pa.string()),
                series.values.ravel(),
            ]
            self._writer.write_table(pa.table(columns, schema=self._schema))

    def close(self) -> None:
        """Write the footer; nothing can be added afterwards."""
        self._writer.close()
