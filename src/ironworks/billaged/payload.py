"""What a batch is made of: samples as columns of differences, compressed, with hash and id.

The same windows and events always make the same bytes, so a batch can be sent any number of times.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from ironworks.billaged import decide
from ironworks.billaged.rings import Samples
from ironworks.billaged.types import ABSENCE_BITS, COUNTERS, Provision, SeqGap, VmKey
from ironworks.gen.ironworks.aggregatord.v1 import batch_pb
from ironworks.gen.ironworks.billaged.v1 import samples_pb

SCHEMA_VERSION = 2
ZSTD_LEVEL = 3
_REASON_MASK = (1 << ABSENCE_BITS) - 1
FULLY_ABSENT = (1 << COUNTERS) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowParts:
    """What a window is made of."""

    key: VmKey
    provision: Provision
    samples: Samples
    gaps: Sequence[SeqGap]
    attached_seq: int
    tick_ns: int


def differences(column: npt.NDArray[Any], dtype: str) -> bytes:
    """A column as its first value and the differences after it, modulo the width.

    Args:
        column: Integers.
        dtype: Unsigned little-endian type of the width, for example `<u8`.
    """
    values = column.astype(dtype, copy=False)
    made = np.empty_like(values)
    made[:1] = values[:1]
    np.subtract(values[1:], values[:-1], out=made[1:])
    return made.tobytes()


def absent_masks(absent: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint8]:
    """Bit n of a sample's mask is set where reading n + 1 is missing."""
    masks = np.zeros(len(absent), np.uint8)
    if not absent.any():
        return masks
    for bit in range(COUNTERS):
        missing = (absent >> np.uint32(ABSENCE_BITS * bit)) & np.uint32(_REASON_MASK) != 0
        masks |= missing.astype(np.uint8) << np.uint8(bit)
    return masks


def absence_runs(samples: Samples) -> list[batch_pb.AbsenceRun]:
    """Why readings are missing, as intervals of samples."""
    runs: list[batch_pb.AbsenceRun] = []
    if not samples.absent.any():
        return runs
    for bit in range(COUNTERS):
        codes = (samples.absent >> np.uint32(ABSENCE_BITS * bit)) & np.uint32(_REASON_MASK)
        edges = np.flatnonzero(np.diff(codes)) + 1
        starts = np.concatenate(([0], edges))
        ends = np.concatenate((edges, [len(codes)])) - 1
        runs += [
            batch_pb.AbsenceRun(
                counter=samples_pb.Counter(bit + 1),
                reason=samples_pb.AbsenceReason(int(codes[start])),
                first_seq=int(samples.seq[start]),
                last_seq=int(samples.seq[end]),
            )
            for start, end in zip(starts, ends, strict=True)
            if codes[start]
        ]
    return runs


def window(host_id: str, parts: WindowParts) -> batch_pb.Window:
    """One window; it has at least one sample."""
    samples, provision, key = parts.samples, parts.provision, parts.key
    values = samples.values
    return batch_pb.Window(
        window_id=decide.window_id(host_id, key, int(samples.seq[0])),
        vm_id=key.vm_id,
        tenant_id=provision.tenant_id,
        deployment_id=provision.deployment_id,
        boot_epoch=key.boot_epoch,
        vcpus=provision.vcpus,
        memory_limit_bytes=provision.memory_bytes,
        disk_limit_bytes=provision.disk_bytes,
        tick_ns=parts.tick_ns,
        sample_count=len(samples),
        seq=differences(samples.seq, "<u8"),
        tick_at_ns=differences(samples.at_ns, "<u8"),
        offset_us=differences(samples.offset_us, "<u4"),
        cpu_ns=differences(values["cpu_ns"], "<u8"),
        memory_bytes=differences(values["memory_bytes"], "<u8"),
        disk_read_bytes=differences(values["disk_read_bytes"], "<u8"),
        disk_write_bytes=differences(values["disk_write_bytes"], "<u8"),
        network_receive_bytes=differences(values["network_receive_bytes"], "<u8"),
        network_transmit_bytes=differences(values["network_transmit_bytes"], "<u8"),
        network_internal_bytes=differences(values["network_internal_bytes"], "<u8"),
        absent_mask=absent_masks(samples.absent).tobytes(),
        absences=absence_runs(samples),
        gaps=[
            samples_pb.Gap(
                vm_id=key.vm_id,
                boot_epoch=key.boot_epoch,
                first_seq=gap.first_seq,
                last_seq=gap.last_seq,
                reason=samples_pb.GapReason(gap.reason),
            )
            for gap in parts.gaps
        ],
        attached_seq=parts.attached_seq,
    )


def event_name(event: samples_pb.LifecycleEvent) -> str:
    """What identifies an event."""
    return f"{event.vm_id}/{event.boot_epoch}/{int(event.type)}/{event.at_ns}"


def batch(
    host_id: str,
    windows: Sequence[batch_pb.Window],
    events: Sequence[samples_pb.LifecycleEvent],
) -> batch_pb.SubmitBatchRequest:
    """The batch of these windows and events, ready to be sent."""
    ordered = sorted(windows, key=lambda one: one.window_id)
    told = sorted(events, key=event_name)
    content = batch_pb.BatchPayload(windows=ordered, events=told).to_binary()
    names = [one.window_id for one in ordered] + [event_name(one) for one in told]
    return batch_pb.SubmitBatchRequest(
        batch_id=decide.batch_id(host_id, names),
        host_id=host_id,
        schema_version=SCHEMA_VERSION,
        content_sha256=hashlib.sha256(content).digest(),
        encoding=batch_pb.PayloadEncoding.ZSTD,
        payload=zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(content),
    )
