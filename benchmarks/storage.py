"""storage: bytes on disk of a raw sample after merges, against the same table with default codecs.

Both tables get the same rows of the same fleet in the same blocks (a minute of 128 VMs, as batches
bring them), are merged to one part a day and asked how large they are. Sizes do not depend on the
machine: one pair is enough.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from benchmarks.frame import Benchmark, Outcome
from benchmarks.metering_rows import Fleet, columns
from ironworks.aggregatord.schema import tables
from ironworks.aggregatord.types import AggregatordSettings
from ironworks.runtime.clock import SystemClock
from ironworks.storage.clickhouse import ChdbEngine

GOAL_BYTES = 6.5
GOAL_RATIO = 0.5
VMS = 128
WINDOW_TICKS = 600
REFERENCE = "raw_samples_default"


async def _bytes_a_row(engine: ChdbEngine, table: str) -> tuple[float, int]:
    await engine.execute(f"OPTIMIZE TABLE {table} FINAL")
    rows = await engine.rows(
        "SELECT sum(bytes_on_disk), sum(rows) FROM system.parts WHERE active"
        " AND table = {table:String}",
        {"table": table},
    )
    return rows[0][0] / rows[0][1], rows[0][1]


async def _columns(engine: ChdbEngine, table: str) -> dict[str, float]:
    rows = await engine.rows(
        "SELECT column, sum(column_data_compressed_bytes) / sum(rows) FROM system.parts_columns"
        " WHERE active AND table = {table:String} GROUP BY column ORDER BY column",
        {"table": table},
    )
    return {name: round(size, 2) for name, size in rows}


async def measure(quick: bool) -> Outcome:  # noqa: FBT001 - the frame's signature
    """Fill both tables, merge, weigh."""
    minutes = 10 if quick else 60
    with tempfile.TemporaryDirectory(prefix="bench-storage-") as directory:
        settings = AggregatordSettings(data_dir=Path(directory))
        engine = ChdbEngine(Path(directory) / "usage")
        await engine.open()
        try:
            raw = next(one for one in tables(settings) if one.name == "raw_samples")
            for ours in raw.on_one_server():
                plain = re.sub(r" CODEC\((?:[^()]|\([^()]*\))*\)", "", ours)
                await engine.prepare([ours, plain.replace("raw_samples", REFERENCE)])
            day_ns = 86_400 * 10**9
            fleet = Fleet(VMS, SystemClock().now_ns() // day_ns * day_ns)
            for _ in range(minutes):
                block = columns(fleet.vm_ids, fleet.grow(WINDOW_TICKS))
                for table in ("raw_samples", REFERENCE):
                    await engine.insert(table, block)
            size, rows = await _bytes_a_row(engine, "raw_samples")
            default, _ = await _bytes_a_row(engine, REFERENCE)
            each = await _columns(engine, "raw_samples")
        finally:
            await engine.close()
    return Outcome(
        ours=size,
        reference=default,
        passed=size <= GOAL_BYTES and size <= GOAL_RATIO * default,
        details={"rows": rows, "bytes_by_column": each},
    )


BENCHMARK = Benchmark(
    name="storage",
    unit="bytes a raw sample",
    goal=f"<= {GOAL_BYTES} B after merges; <= {GOAL_RATIO} x default codecs",
    measure=measure,
)
