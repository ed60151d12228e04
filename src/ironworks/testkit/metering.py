"""Ticks, windows and an aggregatord in memory, for tests of metering.

Counters follow from the sequence number alone, so a test can say what any sample must hold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import zstandard
from protobuf import Oneof

from ironworks.gen.ironworks.aggregatord.v1 import batch_pb
from ironworks.gen.ironworks.billaged.v1 import meter_pb, samples_pb
from ironworks.model.errors import IronError
from ironworks.model.units import GIB, MIB, NS_PER_SECOND

TICK_NS = 100_000_000
HOST = "hst_test"
TENANT = "tnt_a"
EPOCH_AT_NS = 1_750_000_020 * NS_PER_SECOND
"""UTC of sequence number 0; a full minute."""
ALL_COUNTERS = (
    "cpu_ns",
    "memory_bytes",
    "disk_read_bytes",
    "disk_write_bytes",
    "network_receive_bytes",
    "network_transmit_bytes",
    "network_internal_bytes",
)

REASON_BITS = 4
_COUNTERS = [samples_pb.Counter(number) for number in range(1, len(ALL_COUNTERS) + 1)]


def reading(name: str, seq: int) -> int:
    """What every VM reads at a tick: one vCPU half used, and so on."""
    return {
        "cpu_ns": seq * 50_000_000,
        "memory_bytes": 100 * MIB + (seq % 7) * 4096,
        "disk_read_bytes": seq * 4096,
        "disk_write_bytes": seq * 8192,
        "network_receive_bytes": seq * 1500,
        "network_transmit_bytes": seq * 700,
        "network_internal_bytes": seq * 300,
    }[name]


def attachment(
    slot: int,
    vm_id: str,
    first_seq: int,
    *,
    boot_epoch: int = 1,
    vcpus: int = 2,
    memory_bytes: int = 256 * MIB,
    tenant_id: str = TENANT,
) -> samples_pb.VmAttachment:
    """A VM begins."""
    return samples_pb.VmAttachment(
        slot=slot,
        vm_id=vm_id,
        tenant_id=tenant_id,
        boot_epoch=boot_epoch,
        vcpus=vcpus,
        memory_bytes=memory_bytes,
        disk_bytes=GIB,
        first_seq=first_seq,
    )


def hello(
    attached: Sequence[samples_pb.VmAttachment] = (),
    *,
    run_id: str = "run1",
    host_boot_id: str = "boot1",
) -> meter_pb.StreamHello:
    """A sampler connects."""
    return meter_pb.StreamHello(
        host_id=HOST,
        host_boot_id=host_boot_id,
        run_id=run_id,
        attached=list(attached),
        tick_ns=TICK_NS,
    )


def tick(
    seq: int,
    slots: Sequence[int],
    *,
    attached: Sequence[samples_pb.VmAttachment] = (),
    detached: Sequence[int] = (),
    losses: Sequence[samples_pb.TickLoss] = (),
    absences: Sequence[samples_pb.Absence] = (),
    at_ns: int | None = None,
) -> samples_pb.Tick:
    """One tick with the samples of `reading`."""
    readings = [[reading(name, seq)] * len(slots) for name in ALL_COUNTERS]
    absent = np.zeros(len(slots), "<u4")
    for one in absences:
        absent[one.row] |= int(one.reason) << REASON_BITS * (int(one.counter) - 1)
    return samples_pb.Tick(
        seq=seq,
        at_ns=EPOCH_AT_NS + seq * TICK_NS if at_ns is None else at_ns,
        attached=list(attached),
        detached=list(detached),
        losses=list(losses),
        slots=list(slots),
        offsets=np.array([100 + slot for slot in slots], "<i4").tobytes(),
        readings=np.array(readings, "<u8").tobytes(),
        absent=absent.tobytes() if absences else b"",
    )


def column_of(one: samples_pb.Tick, counter: int) -> list[int]:
    """One reading of every row of a tick."""
    readings = np.frombuffer(one.readings, "<u8").reshape(len(ALL_COUNTERS), -1)
    return readings[int(counter) - 1].tolist()


def offsets_of(one: samples_pb.Tick) -> list[int]:
    """When each row of a tick was read, microseconds after the grid instant."""
    return np.frombuffer(one.offsets, "<i4").tolist()


def absences_of(one: samples_pb.Tick, row: int = 0) -> dict[str, str]:
    """What a row of a tick lacks, and why."""
    word = int(np.frombuffer(one.absent, "<u4")[row]) if one.absent else 0
    reasons = {counter: word >> REASON_BITS * (int(counter) - 1) & 15 for counter in _COUNTERS}
    return {
        counter.name: samples_pb.AbsenceReason(reason).name
        for counter, reason in reasons.items()
        if reason
    }


def said(
    ordinal: int, what: meter_pb.StreamHello | samples_pb.Tick
) -> meter_pb.StreamMetricsRequest:
    """A message of the stream."""
    if isinstance(what, meter_pb.StreamHello):
        return meter_pb.StreamMetricsRequest(ordinal=ordinal, message=Oneof("hello", what))
    return meter_pb.StreamMetricsRequest(ordinal=ordinal, message=Oneof("tick", what))


def content_of(request: batch_pb.SubmitBatchRequest) -> batch_pb.BatchPayload:
    """What a batch carries."""
    return batch_pb.BatchPayload.from_binary(
        zstandard.ZstdDecompressor().decompress(request.payload)
    )


def numbers_of(column: bytes) -> list[int]:
    """A column of differences as numbers."""
    return [int(value) for value in np.cumsum(np.frombuffer(column, "<u8"), dtype=np.uint64)]


@dataclass(slots=True)
class FakeBatches:
    """An aggregatord that remembers what it was sent; fails with `failures` first, in order."""

    failures: list[IronError] = field(default_factory=list[IronError])
    received: list[batch_pb.SubmitBatchRequest] = field(
        default_factory=list[batch_pb.SubmitBatchRequest]
    )

    async def submit_batch(
        self, request: batch_pb.SubmitBatchRequest, /
    ) -> batch_pb.SubmitBatchResponse:
        """Take one batch."""
        if self.failures:
            raise self.failures.pop(0)
        self.received.append(request)
        return batch_pb.SubmitBatchResponse(outcome=batch_pb.BatchOutcome.ACCEPTED)

    def samples(self) -> dict[tuple[str, int], list[int]]:
        """Sequence numbers by VM and epoch, as they came, repeats and all."""
        found: dict[tuple[str, int], list[int]] = {}
        for request in self.received:
            for window in content_of(request).windows:
                numbers = found.setdefault((window.vm_id, window.boot_epoch), [])
                numbers += numbers_of(window.seq)
        return found


def _column(values: Sequence[int], dtype: str) -> bytes:
    column = np.array(values).astype(dtype)
    column[1:] = column[1:] - column[:-1].copy()
    return column.tobytes()


def window(  # noqa: PLR0913 - one argument a property that a test changes
    seq: Sequence[int],
    *,
    vm_id: str = "vm_1",
    tenant_id: str = TENANT,
    boot_epoch: int = 1,
    vcpus: int = 2,
    memory_limit_bytes: int = 256 * MIB,
    start_at_ns: int = EPOCH_AT_NS,
    values: Mapping[str, Sequence[int]] | None = None,
    absent_mask: Sequence[int] | None = None,
    offset_us: Sequence[int] | None = None,
    gaps: Sequence[tuple[int, int, samples_pb.GapReason]] = (),
    attached_seq: int = 0,
) -> batch_pb.Window:
    """A window as billaged makes it; sample `seq` is taken at `start_at_ns` + seq ticks."""
    columns = {
        name: list((values or {}).get(name) or [reading(name, one) for one in seq])
        for name in ALL_COUNTERS
    }
    mask = list(absent_mask or [0] * len(seq))
    return batch_pb.Window(
        window_id=f"win_{vm_id}_{boot_epoch}_{seq[0]}",
        vm_id=vm_id,
        tenant_id=tenant_id,
        boot_epoch=boot_epoch,
        vcpus=vcpus,
        memory_limit_bytes=memory_limit_bytes,
        disk_limit_bytes=GIB,
        tick_ns=TICK_NS,
        sample_count=len(seq),
        seq=_column(seq, "<u8"),
        tick_at_ns=_column([start_at_ns + one * TICK_NS for one in seq], "<u8"),
        offset_us=_column(list(offset_us or [100] * len(seq)), "<u4"),
        absent_mask=bytes(mask),
        gaps=[
            samples_pb.Gap(
                vm_id=vm_id, boot_epoch=boot_epoch, first_seq=first, last_seq=last, reason=reason
            )
            for first, last, reason in gaps
        ],
        attached_seq=attached_seq,
        cpu_ns=_column(columns["cpu_ns"], "<u8"),
        memory_bytes=_column(columns["memory_bytes"], "<u8"),
        disk_read_bytes=_column(columns["disk_read_bytes"], "<u8"),
        disk_write_bytes=_column(columns["disk_write_bytes"], "<u8"),
        network_receive_bytes=_column(columns["network_receive_bytes"], "<u8"),
        network_transmit_bytes=_column(columns["network_transmit_bytes"], "<u8"),
        network_internal_bytes=_column(columns["network_internal_bytes"], "<u8"),
    )


def batch(
    windows: Sequence[batch_pb.Window],
    *,
    batch_id: str = "",
    events: Sequence[samples_pb.LifecycleEvent] = (),
) -> batch_pb.SubmitBatchRequest:
    """A batch of windows; its id follows from theirs unless given."""
    content = batch_pb.BatchPayload(windows=list(windows), events=list(events)).to_binary()
    names = "/".join(sorted(one.window_id for one in windows))
    return batch_pb.SubmitBatchRequest(
        batch_id=batch_id or "bat_" + hashlib.sha256(names.encode()).hexdigest()[:26],
        host_id=HOST,
        schema_version=2,
        content_sha256=hashlib.sha256(content).digest(),
        encoding=batch_pb.PayloadEncoding.ZSTD,
        payload=zstandard.ZstdCompressor().compress(content),
    )
