"""Usage rows as files: CSV (RFC 4180) and Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from decimal import Context
from importlib import import_module
from typing import Any

from ironworks.aggregatord.types import UNITS, UsageRow
from ironworks.gen.ironworks.aggregatord.v1.usage_pb import ExportFormat, Meter, Unit
from ironworks.model.units import MIB, NS_PER_SECOND

CHUNK_BYTES = MIB
ROWS_AT_ONCE = 10_000
_DIGITS = 38
_COLUMNS = (
    "from", "to", "from_ns", "to_ns", "tenant_id", "vm_id", "meter", "quantity", "unit",
)  # fmt: skip
_EXACT = Context(prec=_DIGITS)


def unit_of(meter: Meter) -> Unit:
    """The canonical unit of a meter."""
    return UNITS.get(meter, Unit.BIT_PER_SECOND)


def _time(at_ns: int) -> str:
    return datetime.fromtimestamp(at_ns // NS_PER_SECOND, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def csv_chunks(rows: Sequence[UsageRow]) -> Iterator[bytes]:
    """A CSV file with a header line, UTF-8, in chunks."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(_COLUMNS)
    for row in rows:
        writer.writerow(
            (
                _time(row.from_ns),
                _time(row.to_ns),
                row.from_ns,
                row.to_ns,
                row.tenant_id,
                row.vm_id,
                row.meter.name,
                row.quantity,
                unit_of(row.meter).name,
            )
        )
        if text.tell() >= CHUNK_BYTES - 4096:
            yield text.getvalue().encode()
            text.seek(0)
            text.truncate()
    if text.tell():
        yield text.getvalue().encode()


def _table(pyarrow: Any, rows: Sequence[UsageRow]) -> Any:
    stamp = pyarrow.timestamp("ns", tz="UTC")
    words = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    values = {
        "from": (stamp, [row.from_ns for row in rows]),
        "to": (stamp, [row.to_ns for row in rows]),
        "from_ns": (pyarrow.int64(), [row.from_ns for row in rows]),
        "to_ns": (pyarrow.int64(), [row.to_ns for row in rows]),
        "tenant_id": (words, [row.tenant_id for row in rows]),
        "vm_id": (words, [row.vm_id for row in rows]),
        "meter": (words, [row.meter.name for row in rows]),
        "quantity": (
            pyarrow.decimal128(_DIGITS, 0),
            [_EXACT.create_decimal(row.quantity) for row in rows],
        ),
        "unit": (words, [unit_of(row.meter).name for row in rows]),
    }
    return pyarrow.table(
        {name: pyarrow.array(column, kind) for name, (kind, column) in values.items()}
    )


class _Chunks(io.RawIOBase):
    """What a writer has written and nobody has taken yet."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._position = 0

    def writable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Bytes written so far."""
        return self._position

    def write(self, data: Any) -> int:
        """Keep some bytes."""
        content = bytes(data)
        self._parts.append(content)
        self._position += len(content)
        return len(content)

    def take(self) -> Iterator[bytes]:
        """Everything that was written since the last time, in chunks."""
        content, self._parts = b"".join(self._parts), []
        for start in range(0, len(content), CHUNK_BYTES):
            yield content[start : start + CHUNK_BYTES]


def parquet_chunks(rows: Sequence[UsageRow]) -> Iterator[bytes]:
    """A Parquet file, compressed with Zstandard, in chunks."""
    # Forty megabytes of library that only whoever exports pays for.
    arrow: Any = import_module("pyarrow")
    parquet: Any = import_module("pyarrow.parquet")
    out = _Chunks()
    with parquet.ParquetWriter(out, _table(arrow, []).schema, compression="zstd") as writer:
        for start in range(0, len(rows), ROWS_AT_ONCE):
            writer.write_table(_table(arrow, rows[start : start + ROWS_AT_ONCE]))
            yield from out.take()
    yield from out.take()


def chunks(rows: Sequence[UsageRow], kind: ExportFormat) -> Iterator[bytes]:
    """The file, in chunks of at most 1 MiB."""
    return csv_chunks(rows) if kind == ExportFormat.CSV else parquet_chunks(rows)
