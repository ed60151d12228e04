from __future__ import annotations

from ironworks.billaged.live import AFTER_FAILURE_NS, LiveReporter
from ironworks.billaged.state import MeterState
from ironworks.gen.ironworks.aggregatord.v1 import batch_pb
from ironworks.gen.ironworks.billaged.v1 import samples_pb
from ironworks.model.errors import Unavailable
from ironworks.model.units import NS_PER_SECOND
from ironworks.testkit.clock import FakeClock
from ironworks.testkit.metering import HOST, TENANT, attachment, hello, reading, tick


class Reports:
    def __init__(self) -> None:
        self.received: list[batch_pb.ReportLiveRequest] = []
        self.next_after_ms = 1_000
        self.down = False

    async def report_live(
        self, request: batch_pb.ReportLiveRequest, /
    ) -> batch_pb.ReportLiveResponse:
        if self.down:
            raise Unavailable("no")
        self.received.append(request)
        return batch_pb.ReportLiveResponse(next_after_ms=self.next_after_ms)


def running() -> MeterState:
    state = MeterState()
    state.apply_hello(hello())
    attached = [attachment(1, "vm_1", 0), attachment(2, "vm_2", 0)]
    state.apply_tick(1, tick(0, [1, 2], attached=attached), segment=1)
    return state


async def test_the_newest_sample_of_each_vm_is_told() -> None:
    state, reports = running(), Reports()
    state.apply_tick(2, tick(3, [1]), segment=1)
    assert await LiveReporter(state=state, reports=reports, clock=FakeClock()).report() == 2
    [request] = reports.received
    first, second = request.vms
    assert request.host_id == HOST
    assert (first.vm_id, first.tenant_id, first.seq) == ("vm_1", TENANT, 3)
    assert (first.cpu_ns, first.network_transmit_bytes) == (
        reading("cpu_ns", 3),
        reading("network_transmit_bytes", 3),
    )
    assert (second.vm_id, second.seq) == ("vm_2", 0)


async def test_a_reading_that_is_absent_is_not_told_as_zero() -> None:
    state, reports = running(), Reports()
    cpu = samples_pb.Absence(
        row=0, counter=samples_pb.Counter.CPU, reason=samples_pb.AbsenceReason.TIMEOUT
    )
    state.apply_tick(2, tick(1, [1], absences=[cpu]), segment=1)
    await LiveReporter(state=state, reports=reports, clock=FakeClock()).report()
    first = reports.received[0].vms[0]
    assert not first.has_field("cpu_ns")
    assert first.memory_bytes == reading("memory_bytes", 1)


async def test_it_is_told_as_often_as_aggregatord_asks_for() -> None:
    reports, clock = Reports(), FakeClock()
    reporter = LiveReporter(state=running(), reports=reports, clock=clock)
    reports.next_after_ms = 10_000
    assert await reporter.report() == 2
    assert await reporter.report() == 0
    await clock.advance(10)
    assert await reporter.report() == 2


async def test_without_aggregatord_it_waits_and_tries_again() -> None:
    reports, clock = Reports(), FakeClock()
    reporter = LiveReporter(state=running(), reports=reports, clock=clock)
    reports.down = True
    assert await reporter.report() == 0
    reports.down = False
    assert await reporter.report() == 0
    await clock.advance(AFTER_FAILURE_NS / NS_PER_SECOND)
    assert await reporter.report() == 2


async def test_a_host_without_vms_says_nothing() -> None:
    reports = Reports()
    assert await LiveReporter(state=MeterState(), reports=reports, clock=FakeClock()).report() == 0
    assert reports.received == []
