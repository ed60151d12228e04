from __future__ import annotations

import csv
import io
from typing import Any, cast

import pytest
from pyarrow import parquet

from ironworks.aggregatord import export
from ironworks.aggregatord.types import HOUR_NS, UsageRow
from ironworks.gen.ironworks.aggregatord.v1.usage_pb import ExportFormat, Meter

HUGE = 10**37 + 1


def rows(count: int) -> list[UsageRow]:
    return [
        UsageRow(
            from_ns=one * HOUR_NS,
            to_ns=(one + 1) * HOUR_NS,
            tenant_id="tnt_a",
            vm_id='vm_"1",x',
            meter=Meter.MEMORY_USED if one % 2 else Meter.NETWORK_OUT_P95,
            quantity=HUGE + one,
        )
        for one in range(count)
    ]


def read(kind: ExportFormat, count: int) -> list[dict[str, Any]]:
    file = b"".join(export.chunks(rows(count), kind))
    if kind == ExportFormat.CSV:
        return list(csv.DictReader(io.StringIO(file.decode(), newline="")))
    table: Any = cast("Any", parquet).read_table(io.BytesIO(file))
    return table.to_pylist()


@pytest.mark.parametrize("kind", [ExportFormat.CSV, ExportFormat.PARQUET])
def test_a_file_has_every_row_exactly(kind: ExportFormat) -> None:
    found = read(kind, 12_000)
    assert [int(one["quantity"]) for one in found] == [HUGE + one for one in range(12_000)]
    assert {one["vm_id"] for one in found} == {'vm_"1",x'}
    assert [one["unit"] for one in found[:2]] == ["BIT_PER_SECOND", "BYTE_NANOSECOND"]
    assert int(found[3]["from_ns"]) == 3 * HOUR_NS


@pytest.mark.parametrize("kind", [ExportFormat.CSV, ExportFormat.PARQUET])
def test_no_chunk_is_larger_than_a_message(kind: ExportFormat) -> None:
    sizes = [len(chunk) for chunk in export.chunks(rows(30_000), kind)]
    assert max(sizes) <= export.CHUNK_BYTES
    assert all(sizes)


@pytest.mark.parametrize("kind", [ExportFormat.CSV, ExportFormat.PARQUET])
def test_a_file_without_rows_is_a_file(kind: ExportFormat) -> None:
    assert b"".join(export.chunks([], kind))
    assert read(kind, 0) == []


def test_lines_are_as_rfc_4180_has_them() -> None:
    head, line, _ = b"".join(export.csv_chunks(rows(1))).decode().split("\r\n")
    assert head.startswith("from,to,from_ns,to_ns,tenant_id,vm_id,meter,quantity,unit")
    assert line.startswith("1970-01-01T00:00:00Z,1970-01-01T01:00:00Z,0,")
    assert '"vm_""1"",x"' in line
