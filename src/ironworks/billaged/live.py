"""Where counters stand now, for who looks at usage while it happens.

Told to aggregatord about once a second, and less often while nobody looks. Nothing depends on it:
what is not told is in the next window.
"""

from __future__ import annotations

from typing import Protocol

from ironworks.billaged.payload import absent_masks
from ironworks.billaged.rings import Samples
from ironworks.billaged.state import MeterState, VmRecord
from ironworks.billaged.types import COLUMNS, VmKey
from ironworks.gen.ironworks.aggregatord.v1 import batch_pb
from ironworks.model.errors import IronError
from ironworks.model.units import NS_PER_MS, NS_PER_SECOND
from ironworks.runtime.clock import Clock

MAX_VMS = 10_000
AFTER_FAILURE_NS = 5 * NS_PER_SECOND


class LiveReports(Protocol):
    """The part of the generated client that is used here."""

    async def report_live(
        self, request: batch_pb.ReportLiveRequest, /
    ) -> batch_pb.ReportLiveResponse:
        """Report."""
        ...


def live_vm(key: VmKey, record: VmRecord, newest: Samples) -> batch_pb.LiveVm:
    """One VM's newest sample; a reading that is absent stays absent."""
    absent = int(absent_masks(newest.absent)[0])
    provision = record.provisions[-1][1]
    read = {
        name: int(newest.values[name][0])
        for bit, name in enumerate(COLUMNS)
        if not absent >> bit & 1
    }
    return batch_pb.LiveVm(
        vm_id=key.vm_id,
        tenant_id=provision.tenant_id,
        deployment_id=provision.deployment_id,
        boot_epoch=key.boot_epoch,
        vcpus=provision.vcpus,
        memory_limit_bytes=provision.memory_bytes,
        disk_limit_bytes=provision.disk_bytes,
        seq=int(newest.seq[0]),
        at_ns=int(newest.at_ns[0]),
        **read,
    )


class LiveReporter:
    """Tells aggregatord; as often as it asks for it."""

    def __init__(self, *, state: MeterState, reports: LiveReports, clock: Clock) -> None:
        self._state = state
        self._reports = reports
        self._clock = clock
        self._next_ns = 0

    def _vms(self) -> list[batch_pb.LiveVm]:
        state = self._state
        attached = [(key, state.vms[key]) for key in state.slots.values() if key in state.vms]
        found: list[batch_pb.LiveVm] = []
        for key, record in attached[:MAX_VMS]:
            newest = state.rings.sample(record.row, record.last_seq)
            if len(newest):
                found.append(live_vm(key, record, newest))
        return found

    async def report(self) -> int:
        """Tell where the VMs stand, if it is time to; answers of how many it was."""
        began_ns = self._clock.monotonic_ns()
        if began_ns < self._next_ns or not self._state.host_id:
            return 0
        vms = self._vms()
        if not vms:
            return 0
        request = batch_pb.ReportLiveRequest(host_id=self._state.host_id, vms=vms)
        try:
            answer = await self._reports.report_live(request)
        except IronError:
            # Batches say that aggregatord is away, and are what matters.
            self._next_ns = self._clock.monotonic_ns() + AFTER_FAILURE_NS
            return 0
        # From its beginning: what a report takes is no pause.
        self._next_ns = began_ns + answer.next_after_ms * NS_PER_MS
        return len(vms)
