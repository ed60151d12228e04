from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

from connectrpc.code import Code
from connectrpc.errors import ConnectError

from ironworks.billaged.api import MeterHandlers
from ironworks.billaged.app import Collector
from ironworks.billaged.types import BillagedSettings
from ironworks.gen.ironworks.billaged.v1 import meter_pb, samples_pb
from ironworks.testkit.clock import FakeClock
from ironworks.testkit.metering import EPOCH_AT_NS, FakeBatches, attachment, hello, said, tick

CTX = cast("Any", None)


def handlers(directory: Path) -> MeterHandlers:
    collector = Collector(
        directory=directory,
        settings=BillagedSettings(data_dir=directory),
        batches=FakeBatches(),
        clock=FakeClock(EPOCH_AT_NS),
    )
    collector.open()
    return MeterHandlers(collector)


async def two_ticks_then_gone() -> AsyncIterator[meter_pb.StreamMetricsRequest]:
    yield said(0, hello())
    yield said(1, tick(0, [1], attached=[attachment(1, "vm_1", 0)]))
    yield said(2, tick(1, [1]))
    raise ConnectError(Code.CANCELED, "the sampler was killed")


async def test_a_sampler_that_goes_away_has_what_came_kept(tmp_path: Path) -> None:
    served = handlers(tmp_path)
    answers = [one async for one in served.stream_metrics(two_ticks_then_gone(), CTX)]
    assert answers[-1].durable_ordinal == 2
    status = await served.get_status(meter_pb.GetStatusRequest(), CTX)
    assert (status.host_id, status.samples_received, status.samples_waiting) == ("hst_test", 2, 2)
    assert (status.vm_count, status.durable_seq) == (1, 1)
    assert not status.sampler_connected
    assert status.breaker_state is meter_pb.BreakerState.CLOSED
    flushed = await served.flush_windows(meter_pb.FlushWindowsRequest(vm_ids=["vm_1"]), CTX)
    [window] = flushed.windows
    assert (window.vm_id, window.first_seq, window.last_seq, window.sample_count) == (
        "vm_1",
        0,
        1,
        2,
    )
    assert window.batch_id.startswith("bat_")
    after = await served.get_status(meter_pb.GetStatusRequest(), CTX)
    assert (after.samples_waiting, after.batches_acknowledged) == (0, 1)


async def test_events_are_counted(tmp_path: Path) -> None:
    served = handlers(tmp_path)
    told = samples_pb.LifecycleEvent(
        vm_id="vm_1", tenant_id="tnt_a", at_ns=5, type=samples_pb.LifecycleEventType.PAUSED
    )
    answer = await served.record_events(meter_pb.RecordEventsRequest(events=[told, told]), CTX)
    assert answer.recorded == 1
