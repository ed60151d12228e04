from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path

import pytest

from ironworks.billaged.app import Collector
from ironworks.billaged.types import BillagedSettings
from ironworks.gen.ironworks.billaged.v1 import meter_pb, samples_pb
from ironworks.gen.ironworks.billaged.v1.samples_pb import LifecycleEventType
from ironworks.model.errors import (
    Aborted,
    DeadlineExceeded,
    InvalidRequest,
    ResourceExhausted,
    Unavailable,
)
from ironworks.model.units import NS_PER_SECOND
from ironworks.testkit.clock import FakeClock
from ironworks.testkit.metering import (
    EPOCH_AT_NS,
    TICK_NS,
    FakeBatches,
    attachment,
    content_of,
    hello,
    numbers_of,
    said,
    tick,
)


class SkippingClock(FakeClock):
    """Sleeps take no time of ours."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)
        self._move_to(self.monotonic_ns() + int(seconds * 1e9))


def collector(
    directory: Path, batches: FakeBatches, clock: FakeClock | None = None, **settings: float
) -> Collector:
    made = Collector(
        directory=directory,
        settings=BillagedSettings.model_validate({"data_dir": directory, **settings}),
        batches=batches,
        clock=clock or SkippingClock(EPOCH_AT_NS),
    )
    made.open()
    return made


def messages(first: int, last: int) -> list[meter_pb.StreamMetricsRequest]:
    """Ticks `first` to `last` of one VM; ordinal n + 1 is tick n."""
    made: list[meter_pb.StreamMetricsRequest] = []
    for seq in range(first, last + 1):
        attached = [attachment(1, "vm_1", 0)] if seq == 0 else []
        made.append(said(seq + 1, tick(seq, [1], attached=attached)))
    return made


async def sent(
    to: Collector,
    requests: Sequence[meter_pb.StreamMetricsRequest],
    greeting: meter_pb.StreamHello | None = None,
) -> int:
    """Stream messages after a hello; answers the last ordinal that was acknowledged."""

    async def stream() -> AsyncIterator[meter_pb.StreamMetricsRequest]:
        yield said(0, greeting or hello([attachment(1, "vm_1", 0)]))
        for request in requests:
            yield request

    acknowledged = 0
    async for ordinal in to.stream(stream()):
        acknowledged = ordinal
    return acknowledged


async def test_what_is_acknowledged_survives_the_death_of_the_process(tmp_path: Path) -> None:
    batches = FakeBatches()
    first = collector(tmp_path, batches)
    assert await sent(first, messages(0, 9)) == 10
    # No close: the process is killed. A second one opens the same directory.
    second = collector(tmp_path, batches)
    assert second.state.ordinal == 10
    assert await sent(second, messages(5, 14)) == 15
    await second.flush(["vm_1"])
    assert batches.samples() == {("vm_1", 1): list(range(15))}
    await second.close()


async def test_windows_are_cut_by_the_ticks_of_the_next_minute(tmp_path: Path) -> None:
    batches = FakeBatches()
    made = collector(tmp_path, batches)
    due: list[str] = []
    made.on_due = lambda: due.append("due")
    await sent(made, messages(0, 619))
    assert not due
    assert await made.cut() == 0
    await sent(made, messages(620, 630))
    assert due
    assert await made.cut() == 1
    await made.shipper.ship()
    assert batches.samples() == {("vm_1", 1): list(range(600))}
    await made.close()


async def test_a_minute_that_no_tick_closes_is_closed_by_silence(tmp_path: Path) -> None:
    batches, clock = FakeBatches(), SkippingClock(EPOCH_AT_NS)
    made = collector(tmp_path, batches, clock)
    await sent(made, messages(0, 9))
    await clock.sleep(58)
    assert await made.cut() == 0, "the minute still runs"
    await clock.sleep(3)
    assert await made.cut() == 1
    await made.close()


@pytest.mark.parametrize("seconds", [-86_400, 86_400, -30, 30])
async def test_a_clock_that_jumps_costs_no_sample_and_makes_no_gap(
    tmp_path: Path, seconds: int
) -> None:
    batches, clock = FakeBatches(), SkippingClock(EPOCH_AT_NS)
    made = collector(tmp_path, batches, clock)
    await sent(made, messages(0, 299))
    clock.jump(seconds)
    jumped = [
        said(seq + 1, tick(seq, [1], at_ns=EPOCH_AT_NS + seconds * NS_PER_SECOND + seq * TICK_NS))
        for seq in range(300, 901)
    ]
    await sent(made, jumped[:301])
    await made.cut()
    # A restart replays both sides of the jump.
    made = collector(tmp_path, batches, clock)
    await sent(made, jumped)
    await made.cut()
    await made.flush([])
    windows = [one for request in batches.received for one in content_of(request).windows]
    assert sorted(seq for one in windows for seq in numbers_of(one.seq)) == list(range(901))
    for one in windows:
        times = numbers_of(one.tick_at_ns)
        assert times == sorted(times)
        assert times[-1] - times[0] < 60 * NS_PER_SECOND
        assert not one.gaps
    assert made.state.open_minutes == {}
    await made.close()


async def test_the_end_of_a_vm_is_shipped_at_once_with_its_events(tmp_path: Path) -> None:
    batches = FakeBatches()
    made = collector(tmp_path, batches)
    await sent(made, [*messages(0, 4), said(6, tick(5, [1], detached=[1]))])
    assert await made.cut() == 1
    await made.shipper.ship()
    [request] = batches.received
    assert {event.type for event in content_of(request).events} == {
        LifecycleEventType.STARTED,
        LifecycleEventType.STOPPED,
    }
    assert batches.samples() == {("vm_1", 1): list(range(6))}
    assert made.state.vms == {}
    await made.close()


async def test_a_flush_answers_when_aggregatord_has_it_all(tmp_path: Path) -> None:
    batches = FakeBatches(failures=[Unavailable("down")] * 2)
    made = collector(tmp_path, batches)
    await sent(made, messages(0, 4))
    flushed = await made.flush([])
    assert [(one.window.first_seq, one.window.last_seq) for one in flushed] == [(0, 4)]
    assert flushed[0].batch_id == batches.received[0].batch_id
    assert await made.flush(["vm_1"]) == []
    assert await made.flush(["vm_unknown"]) == []
    with pytest.raises(InvalidRequest):
        await made.flush([str(number) for number in range(1001)])
    await made.close()


async def test_a_flush_that_aggregatord_does_not_take_says_so_and_loses_nothing(
    tmp_path: Path,
) -> None:
    batches = FakeBatches(failures=[Unavailable("down")] * 100_000)
    made = collector(tmp_path, batches, meter_flush_seconds=0.05)
    await sent(made, messages(0, 4))
    with pytest.raises(DeadlineExceeded):
        await made.flush([])
    batches.failures.clear()
    again = collector(tmp_path, batches)
    await again.shipper.ship()
    assert batches.samples() == {("vm_1", 1): list(range(5))}


async def test_a_batch_that_was_written_and_never_sealed_is_not_sent_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = FakeBatches()
    made = collector(tmp_path, batches)
    await sent(made, messages(0, 4))
    real = made.log.append

    def dies(*_: object) -> None:
        raise RuntimeError("killed between the batch and its seal")

    monkeypatch.setattr(made.log, "append", dies)
    with pytest.raises(RuntimeError):
        await made.flush([])
    monkeypatch.setattr(made.log, "append", real)
    again = collector(tmp_path, batches)
    assert again.outbox.waiting == ()
    await sent(again, messages(5, 6))
    await again.flush([])
    assert batches.samples() == {("vm_1", 1): list(range(7))}


async def test_the_log_keeps_only_what_open_windows_need(tmp_path: Path) -> None:
    made = collector(tmp_path, FakeBatches(), meter_segment_bytes=4096)
    for start in range(0, 600, 20):
        await sent(made, messages(start, start + 19))
    many = made.log.segments
    assert many > 5
    await made.flush([])
    assert made.log.segments == 1
    await made.close()


async def test_a_newer_stream_takes_the_place_of_the_older(tmp_path: Path) -> None:
    made = collector(tmp_path, FakeBatches())
    more = asyncio.Event()

    async def older() -> AsyncIterator[meter_pb.StreamMetricsRequest]:
        yield said(0, hello())
        await more.wait()
        yield messages(0, 0)[0]

    async with aclosing(made.stream(older())) as answers:
        assert await anext(answers) == 0
        await sent(made, messages(0, 2))
        more.set()
        with pytest.raises(Aborted):
            await anext(answers)
    assert made.state.samples_received == 3
    assert not made.sampler_connected
    await made.close()


async def test_a_stream_without_hello_is_refused(tmp_path: Path) -> None:
    made = collector(tmp_path, FakeBatches())

    async def rude(
        first: meter_pb.StreamMetricsRequest,
    ) -> AsyncIterator[meter_pb.StreamMetricsRequest]:
        yield first

    for first in (messages(0, 0)[0], meter_pb.StreamMetricsRequest()):
        with pytest.raises((Aborted, InvalidRequest)):
            await anext(made.stream(rude(first)))
    await made.close()


async def test_an_outbox_at_its_bound_refuses_ticks_before_they_are_acknowledged(
    tmp_path: Path,
) -> None:
    made = collector(tmp_path, FakeBatches(), meter_outbox_max_bytes=1024 * 1024)
    await sent(made, messages(0, 2))
    object.__setattr__(made, "outbox", _Full())
    with pytest.raises(ResourceExhausted):
        await sent(made, messages(3, 4))
    assert made.state.ordinal == 3
    await made.close()


class _Full:
    size_bytes = 1 << 40


async def test_events_are_stored_once_and_shipped(tmp_path: Path) -> None:
    batches = FakeBatches()
    made = collector(tmp_path, batches)
    await sent(made, [])
    paused = samples_pb.LifecycleEvent(
        vm_id="vm_1",
        tenant_id="tnt_a",
        boot_epoch=1,
        type=LifecycleEventType.PAUSED,
        at_ns=EPOCH_AT_NS,
    )
    assert await made.record_events([paused]) == 1
    assert await made.record_events([paused]) == 0
    again = collector(tmp_path, batches)
    assert await again.record_events([paused]) == 0
    assert await again.cut() == 1
    await again.shipper.ship()
    assert [list(content_of(one).events) for one in batches.received] == [[paused]]
    for bad in ([], [samples_pb.LifecycleEvent(vm_id="vm_1")], [paused] * 1001):
        with pytest.raises(InvalidRequest):
            await again.record_events(bad)
    await again.close()


async def test_a_damaged_log_is_told_as_a_gap_with_its_reason(tmp_path: Path) -> None:
    batches = FakeBatches()
    made = collector(tmp_path, batches)
    await sent(made, messages(0, 9))
    [segment] = (tmp_path / "log").glob("*.log")
    content = bytearray(segment.read_bytes())
    record = messages(4, 4)[0].to_binary()
    content[content.index(record) + 3] ^= 1
    segment.write_bytes(content)
    again = collector(tmp_path, batches)
    await again.flush([])
    [window] = content_of(batches.received[0]).windows
    assert [(gap.first_seq, gap.last_seq, gap.reason.name) for gap in window.gaps] == [
        (4, 4, "LOG_DAMAGED")
    ]
    await again.close()
