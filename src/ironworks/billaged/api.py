"""Proto ↔ types of MeterService; nothing is decided here."""

from __future__ import annotations

from collections.abc import AsyncIterator

import structlog
from connectrpc.errors import ConnectError
from connectrpc.request import RequestContext

from ironworks.billaged.app import Collector
from ironworks.gen.ironworks.billaged.v1 import meter_pb as pb
from ironworks.gen.ironworks.billaged.v1.meter_connect import MeterService
from ironworks.runtime.resilience import BreakerState

_log = structlog.stdlib.get_logger()
_BREAKER = {
    BreakerState.CLOSED: pb.BreakerState.CLOSED,
    BreakerState.OPEN: pb.BreakerState.OPEN,
    BreakerState.HALF_OPEN: pb.BreakerState.HALF_OPEN,
}


async def _until_gone(
    requests: AsyncIterator[pb.StreamMetricsRequest],
) -> AsyncIterator[pb.StreamMetricsRequest]:
    """The messages of a stream; a sampler that goes away, however it does, ends it."""
    try:
        async for request in requests:
            yield request
    except ConnectError as error:
        _log.info("sampler_gone", error=error.message)


class MeterHandlers(MeterService):
    """Handlers of `ironworks.billaged.v1.MeterService`."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    async def stream_metrics(  # pyright: ignore[reportIncompatibleMethodOverride] - a generator
        self,
        request: AsyncIterator[pb.StreamMetricsRequest],
        ctx: RequestContext[pb.StreamMetricsRequest, pb.StreamMetricsResponse],
        /,
    ) -> AsyncIterator[pb.StreamMetricsResponse]:
        """Take ticks, acknowledge what is durable."""
        del ctx
        async for ordinal in self._collector.stream(_until_gone(request)):
            yield pb.StreamMetricsResponse(durable_ordinal=ordinal)

    async def record_events(
        self,
        request: pb.RecordEventsRequest,
        ctx: RequestContext[pb.RecordEventsRequest, pb.RecordEventsResponse],
        /,
    ) -> pb.RecordEventsResponse:
        """Store lifecycle events."""
        del ctx
        recorded = await self._collector.record_events(list(request.events))
        return pb.RecordEventsResponse(recorded=recorded)

    async def flush_windows(
        self,
        request: pb.FlushWindowsRequest,
        ctx: RequestContext[pb.FlushWindowsRequest, pb.FlushWindowsResponse],
        /,
    ) -> pb.FlushWindowsResponse:
        """Close windows early and ship them."""
        del ctx
        flushed = await self._collector.flush(set(request.vm_ids))
        return pb.FlushWindowsResponse(
            windows=[
                pb.ShippedWindow(
                    window_id=one.window.window_id,
                    vm_id=one.window.vm_id,
                    boot_epoch=one.window.boot_epoch,
                    first_seq=one.window.first_seq,
                    last_seq=one.window.last_seq,
                    sample_count=one.window.sample_count,
                    batch_id=one.batch_id,
                )
                for one in flushed
            ]
        )

    async def get_status(
        self,
        request: pb.GetStatusRequest,
        ctx: RequestContext[pb.GetStatusRequest, pb.GetStatusResponse],
        /,
    ) -> pb.GetStatusResponse:
        """What is in flight."""
        del request, ctx
        collector = self._collector
        state, log, shipper = collector.state, collector.log, collector.shipper
        await log.sync()
        waiting = collector.outbox.waiting
        return pb.GetStatusResponse(
            host_id=state.host_id,
            sampler_connected=collector.sampler_connected,
            vm_count=len(set(state.slots.values())),
            samples_received=state.samples_received,
            samples_duplicate=state.samples_duplicate,
            samples_waiting=state.rings.open_count([one.row for one in state.vms.values()]),
            batches_waiting=len(waiting),
            oldest_batch_at_ns=waiting[0].sealed_at_ns if waiting else 0,
            batches_acknowledged=shipper.counts.acknowledged,
            ship_failures=shipper.counts.failures,
            log_bytes=log.size_bytes,
            log_segments=log.segments,
            outbox_bytes=collector.outbox.size_bytes,
            log_damaged_records=log.scan.damaged,
            breaker_state=_BREAKER[shipper.breaker_state],
            last_ship_error=shipper.counts.last_error,
            durable_seq=state.newest_seq,
        )
