from __future__ import annotations

from ironworks.aggregatord import columns, decode, metering
from ironworks.aggregatord.types import Baseline, StoredWindow, UsageRecord, VmEpoch, Window
from ironworks.gen.ironworks.aggregatord.v1 import batch_pb
from ironworks.gen.ironworks.aggregatord.v1.usage_pb import Meter
from ironworks.gen.ironworks.billaged.v1.samples_pb import GapReason
from ironworks.storage.native import Column
from ironworks.testkit.aggregator import Aggregator
from ironworks.testkit.metering import EPOCH_AT_NS, window


def decoded(raw: batch_pb.Window) -> Window:
    made = decode.window_of(raw)
    assert isinstance(made, Window)
    return made


def by_name(made: list[Column]) -> dict[str, list[object]]:
    return {one.name: list(one.values) for one in made}


async def test_a_summary_comes_back_as_it_was(made: Aggregator) -> None:
    raws = (window([1, 2, 5]), window([7], vm_id="vm_2", absent_mask=[0b011111]))
    summaries = [metering.summarise(decoded(raw)) for raw in raws]
    stored = [
        StoredWindow(summary=one, growth=metering.growth(one, Baseline()), version=7)
        for one in summaries
    ]
    assert await made.engine.insert("windows", columns.window_columns(stored)) == 2
    rows = await made.engine.rows(
        f"SELECT {', '.join(columns.WINDOW_NAMES)} FROM windows ORDER BY vm_id"  # noqa: S608
    )
    assert [columns.window_of(row) for row in rows] == stored


def test_a_sample_is_a_row() -> None:
    rows = by_name(columns.sample_columns([decoded(window([1, 2])), decoded(window([5]))]))
    assert {len(values) for values in rows.values()} == {3}
    assert rows["seq"] == [1, 2, 5]
    assert rows["vm_id"] == ["vm_1"] * 3
    assert rows["tick_at_ns"][2] == EPOCH_AT_NS + 500_000_000


def test_a_gap_is_told_with_about_its_time() -> None:
    late = GapReason.SAMPLER_LATE
    rows = by_name(columns.gap_columns([decoded(window([10, 13], gaps=[(11, 12, late)]))]))
    assert (rows["first_seq"], rows["last_seq"], rows["reason"]) == ([11], [12], [int(late)])
    assert rows["start_at_ns"] == [EPOCH_AT_NS + 1_100_000_000]
    assert rows["end_at_ns"] == [EPOCH_AT_NS + 1_200_000_000]


def test_a_quantity_is_a_row() -> None:
    record = UsageRecord(
        tenant_id="tnt_a", deployment_id="", key=VmEpoch("vm_1", 2), start_ns=5, quantities={}
    )
    rows = by_name(columns.usage_columns([(record, Meter.DISK_READ, 1 << 100)], version=3))
    assert (rows["quantity"], rows["meter"], rows["version"]) == ([1 << 100], [5], [3])
