"""Usage as it comes in: where counters stand now, told to whoever looks.

Nothing here is stored. A host reports its VMs' newest samples about once a second; what they have
grown by since the last report goes to each subscriber. VMs of hosts that do not report are told by
their windows, once a minute.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from ironworks.aggregatord import metering
from ironworks.aggregatord.store import AcceptedWindow
from ironworks.aggregatord.types import (
    CUMULATIVE,
    MEMORY_HOLD_US,
    Quantities,
    UsageFilter,
    UsageRow,
    VmEpoch,
)
from ironworks.gen.ironworks.aggregatord.v1.usage_pb import Meter
from ironworks.model.errors import InvalidRequest, ResourceExhausted
from ironworks.model.units import NS_PER_SECOND, NS_PER_US
from ironworks.runtime.clock import Clock

MAX_VMS = 100_000
MAX_VMS_A_REPORT = 10_000
MAX_SUBSCRIBERS = 1_000
MAX_ROWS_WAITING = 10_000
"""Beyond it a subscriber that does not read misses the oldest."""
MIN_GAP_NS = 700_000_000
"""A VM is told about hardly more than once a second; a report that is a little early counts."""
SILENT_NS = 10 * NS_PER_SECOND
"""A VM whose host has been silent for so long is told by its windows."""
WATCHED_MS = 800
UNWATCHED_MS = 1_500
"""A report every 1.5 seconds: whoever begins to look sees the first numbers within 2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSample:
    """A VM's newest sample; absent readings are left out of `readings`."""

    tenant_id: str
    deployment_id: str
    key: VmEpoch
    vcpus: int
    memory_limit_bytes: int
    disk_limit_bytes: int
    at_ns: int
    readings: Mapping[str, int]
    host_id: str = ""


@dataclass(slots=True)
class _Vm:
    sample: LiveSample
    heard_ns: int


@dataclass(slots=True)
class _Subscriber:
    chosen: UsageFilter
    meters: frozenset[Meter]
    rows: list[UsageRow] = field(default_factory=list[UsageRow])
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self, deployment_id: str, rows: Sequence[UsageRow]) -> None:
        chosen = self.chosen
        vm_id = rows[0].vm_id if rows else ""
        if chosen.vm_ids and vm_id not in chosen.vm_ids:
            return
        if chosen.deployment_id and deployment_id != chosen.deployment_id:
            return
        self.rows += [row for row in rows if not self.meters or row.meter in self.meters]
        del self.rows[:-MAX_ROWS_WAITING]
        self.news.set()


def grown(before: LiveSample, after: LiveSample) -> Quantities:
    """What a VM used between two samples; preliminary."""
    elapsed_ns = max(0, after.at_ns - before.at_ns)
    used: Quantities = {
        Meter.VCPU_PROVISIONED: after.vcpus * elapsed_ns,
        Meter.MEMORY_PROVISIONED: after.memory_limit_bytes * elapsed_ns,
        Meter.DISK_PROVISIONED: after.disk_limit_bytes * elapsed_ns,
    }
    memory_bytes = before.readings.get("memory_bytes")
    if memory_bytes is not None and "memory_bytes" in after.readings:
        # Between the two are samples that nobody told: a reading of theirs would have held on.
        held_ns = min(elapsed_ns, max(MEMORY_HOLD_US * NS_PER_US, 2 * WATCHED_MS * 1_000_000))
        used[Meter.MEMORY_USED] = memory_bytes * held_ns
    both = [name for name in CUMULATIVE if name in before.readings and name in after.readings]
    used |= metering.by_meter(
        {name: max(0, after.readings[name] - before.readings[name]) for name in both}
    )
    return used


class Live:
    """Where counters stand, and who wants to know."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._vms: OrderedDict[VmEpoch, _Vm] = OrderedDict()
        self._subscribers: dict[str, list[_Subscriber]] = {}

    @property
    def subscriber_count(self) -> int:
        """How many look."""
        return sum(len(some) for some in self._subscribers.values())

    def new(self, samples: Sequence[LiveSample]) -> list[LiveSample]:
        """Those of VMs that this host has not reported, or under another tenant."""
        known = self._vms
        return [
            one
            for one in samples
            if (had := known.get(one.key)) is None
            or (had.sample.host_id, had.sample.tenant_id) != (one.host_id, one.tenant_id)
        ]

    def report(self, samples: Sequence[LiveSample]) -> int:
        """Take a host's newest samples; answers after how many milliseconds to report again.

        Raises:
            InvalidRequest: there are too many.
        """
        if len(samples) > MAX_VMS_A_REPORT:
            raise InvalidRequest(f"A report has at most {MAX_VMS_A_REPORT} VMs.")
        now_ns = self._clock.monotonic_ns()
        for sample in samples:
            known = self._vms.get(sample.key)
            if known is not None and sample.at_ns - known.sample.at_ns < MIN_GAP_NS:
                known.heard_ns = now_ns
                continue
            self._vms[sample.key] = _Vm(sample, now_ns)
            self._vms.move_to_end(sample.key)
            if known is not None and known.sample.tenant_id == sample.tenant_id:
                self._tell(sample, known.sample.at_ns, grown(known.sample, sample))
        while len(self._vms) > MAX_VMS:
            self._vms.popitem(last=False)
        return WATCHED_MS if self._subscribers else UNWATCHED_MS

    def accepted(self, windows: Sequence[AcceptedWindow]) -> None:
        """Tell of windows whose VMs nobody reports."""
        now_ns = self._clock.monotonic_ns()
        for one in windows:
            summary = one.summary
            known = self._vms.get(summary.key)
            if known is not None and now_ns - known.heard_ns < SILENT_NS:
                continue
            sample = LiveSample(
                tenant_id=summary.tenant_id,
                deployment_id=summary.deployment_id,
                key=summary.key,
                vcpus=summary.vcpus,
                memory_limit_bytes=summary.memory_limit_bytes,
                disk_limit_bytes=summary.disk_limit_bytes,
                at_ns=summary.end_at_ns,
                readings={},
            )
            used = metering.quantities(summary, one.growth)
            self._tell(sample, summary.end_at_ns - one.growth.elapsed_us * NS_PER_US, used)

    def _tell(self, sample: LiveSample, from_ns: int, used: Quantities) -> None:
        subscribers = self._subscribers.get(sample.tenant_id)
        if not subscribers:
            return
        rows = [
            UsageRow(
                from_ns=from_ns,
                to_ns=sample.at_ns,
                tenant_id=sample.tenant_id,
                vm_id=sample.key.vm_id,
                meter=meter,
                quantity=quantity,
            )
            for meter, quantity in sorted(used.items())
            if quantity
        ]
        for one in subscribers:
            one.tell(sample.deployment_id, rows)

    async def subscribe(
        self, chosen: UsageFilter, meters: Collection[Meter]
    ) -> AsyncGenerator[list[UsageRow]]:
        """Usage as it comes in, until the caller goes.

        Raises:
            ResourceExhausted: too many look already.
        """
        if self.subscriber_count >= MAX_SUBSCRIBERS:
            raise ResourceExhausted("Too many streams of usage are open.", hint="Close one.")
        one = _Subscriber(chosen, frozenset(meters))
        mine = self._subscribers.setdefault(chosen.tenant_id, [])
        mine.append(one)
        try:
            while True:
                await one.news.wait()
                one.news.clear()
                rows, one.rows = one.rows, []
                if rows:
                    yield rows
        finally:
            with suppress(ValueError):
                mine.remove(one)
            if not mine:
                self._subscribers.pop(chosen.tenant_id, None)
