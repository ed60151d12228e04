from __future__ import annotations

import re
from pathlib import Path

import pytest

from ironworks.aggregatord.schema import schema
from ironworks.aggregatord.types import AggregatordSettings
from ironworks.testkit.aggregator import Aggregator

TABLES = {
    "raw_samples": 7,
    "window_usage": 90,
    "hourly_usage": 90,
    "daily_usage": 730,
    "billing_records": 0,
    "gaps": 0,
    "lifecycle_events": 0,
    "quarantine": 0,
}


def test_each_table_is_kept_as_long_as_the_architecture_says() -> None:
    days: dict[str, int] = {}
    for statement in schema(AggregatordSettings(data_dir=Path("/nowhere"))):
        name = re.search(r"EXISTS (\w+)", statement)
        expiry = re.search(r"INTERVAL (\d+) DAY", statement)
        assert name
        days[name[1]] = int(expiry[1]) if expiry else 0
    assert days == TABLES


async def test_the_engine_takes_it_any_number_of_times(made: Aggregator) -> None:
    await made.warehouse.prepare()
    rows = await made.engine.rows(
        "SELECT name, engine, partition_key != '' FROM system.tables"
        " WHERE database = currentDatabase() ORDER BY name"
    )
    assert rows == [[name, "ReplacingMergeTree", 1] for name in sorted(TABLES)]


@pytest.mark.parametrize("setting", ["fsync_after_insert", "ttl_only_drop_parts"])
def test_what_is_inserted_is_on_disk_and_expires_by_whole_parts(setting: str) -> None:
    for statement in schema(AggregatordSettings(data_dir=Path("/nowhere"))):
        assert f"{setting} = 1" in statement
