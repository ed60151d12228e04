"""A batch's bytes as windows; everything that is not as it should be is refused here.

Source of the format: `ironworks.aggregatord.v1.Window`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import zstandard

from ironworks.aggregatord.types import READINGS, Counts, Finding, Ints, VmEpoch, Window
from ironworks.gen.ironworks.aggregatord.v1 import batch_pb as pb
from ironworks.gen.ironworks.billaged.v1.samples_pb import AbsenceReason
from ironworks.model.errors import InvalidRequest
from ironworks.model.units import GIB, MIB

SCHEMA_VERSION = 1
MAX_PAYLOAD_BYTES = 64 * MIB
MAX_WINDOWS = 256
MAX_SAMPLES = 1_200
MAX_ID_CHARS = 64
MAX_VCPUS = 32
MAX_MEMORY_BYTES = 64 * GIB
HASH_BYTES = 32


def payload_of(request: pb.SubmitBatchRequest) -> pb.BatchPayload:
    """The content of a batch whose envelope is sound.

    Raises:
        InvalidRequest: unknown schema or encoding, too large, not what its checksum says, or not
            a payload at all.
    """
    if not request.batch_id or not request.host_id or len(request.batch_id) > MAX_ID_CHARS:
        raise InvalidRequest("A batch must name itself and its host.")
    if request.schema_version != SCHEMA_VERSION:
        raise InvalidRequest(
            f"Batches of schema {request.schema_version} are not known here.",
            hint="Upgrade aggregatord before the hosts.",
        )
    if request.encoding != pb.PayloadEncoding.ZSTD:
        raise InvalidRequest("The payload's encoding is not known here.")
    try:
        size = zstandard.frame_content_size(request.payload)
        if not 0 <= size <= MAX_PAYLOAD_BYTES:
            raise InvalidRequest("The payload is too large or does not say how large it is.")
        content = zstandard.ZstdDecompressor().decompress(request.payload)
    except zstandard.ZstdError as error:
        raise InvalidRequest(f"The payload cannot be decompressed: {error}.") from None
    if hashlib.sha256(content).digest() != request.content_sha256:
        raise InvalidRequest("The payload is not what its checksum says.")
    try:
        payload = pb.BatchPayload.from_binary(content)
    except Exception as error:  # noqa: BLE001 - the parser says not what it may raise
        raise InvalidRequest(f"The payload is not a batch: {error}.") from None
    if len(payload.windows) > MAX_WINDOWS:
        raise InvalidRequest(f"A batch has at most {MAX_WINDOWS} windows.")
    return payload


def _unsigned(column: bytes, count: int) -> Counts | None:
    if len(column) != count * 8:
        return None
    return np.cumsum(np.frombuffer(column, "<u8"), dtype=np.uint64)


def _signed(column: bytes, count: int) -> Ints | None:
    values = _unsigned(column, count)
    return None if values is None else values.view(np.int64)


def _malformed(detail: str) -> Finding:
    return Finding(reason=pb.QuarantineReason.MALFORMED, detail=detail)


def _header_fault(window: pb.Window) -> str:
    for name in ("window_id", "vm_id", "tenant_id"):
        if not 1 <= len(getattr(window, name)) <= MAX_ID_CHARS:
            return f"{name} is empty or too long."
    if not 1 <= window.sample_count <= MAX_SAMPLES:
        return f"A window has 1 to {MAX_SAMPLES} samples."
    if not 0 < window.vcpus <= MAX_VCPUS or not 0 < window.memory_limit_bytes <= MAX_MEMORY_BYTES:
        return "A window must say which vCPUs and memory are provisioned."
    if window.disk_limit_bytes < 0 or window.boot_epoch < 0 or window.tick_ns != 100_000_000:  # noqa: PLR2004
        return "Disk, epoch or tick are out of range."
    return ""


def window_of(window: pb.Window) -> Window | Finding:
    """One window, or why it cannot be read."""
    fault = _header_fault(window)
    if fault:
        return _malformed(fault)
    count = window.sample_count
    seq, tick_at_ns = _signed(window.seq, count), _signed(window.tick_at_ns, count)
    values = {name: _unsigned(getattr(window, name), count) for name in READINGS}
    found = {name: column for name, column in values.items() if column is not None}
    if (
        seq is None
        or tick_at_ns is None
        or len(found) != len(READINGS)
        or len(window.offset_us) != count * 4
        or len(window.absent_mask) != count
    ):
        return _malformed("The columns are of different length.")
    offset = np.cumsum(np.frombuffer(window.offset_us, "<u4"), dtype=np.uint32)
    return Window(
        window_id=window.window_id,
        tenant_id=window.tenant_id,
        deployment_id=window.deployment_id[:MAX_ID_CHARS],
        key=VmEpoch(window.vm_id, window.boot_epoch),
        vcpus=window.vcpus,
        memory_limit_bytes=window.memory_limit_bytes,
        disk_limit_bytes=window.disk_limit_bytes,
        attached_seq=window.attached_seq,
        seq=seq,
        tick_at_ns=tick_at_ns,
        offset_us=offset.view(np.int32),
        values=found,
        absent_mask=np.frombuffer(window.absent_mask, np.uint8),
        partial_count=_partial(window, seq),
        gaps=_gaps(window),
        content_sha256=hashlib.sha256(window.to_binary()).digest(),
    )


def _partial(window: pb.Window, seq: Ints) -> int:
    """Samples that lack a reading which the VM should have: a VM without a disk lacks nothing."""
    partial = np.zeros(len(seq), np.bool_)
    for run in window.absences:
        if run.reason != AbsenceReason.NO_SOURCE:
            partial |= (seq >= run.first_seq) & (seq <= run.last_seq)
    return int(partial.sum())


def _gaps(window: pb.Window) -> tuple[tuple[int, int, int], ...]:
    sound: Sequence[tuple[int, int, int]] = [
        (gap.first_seq, gap.last_seq, int(gap.reason))
        for gap in window.gaps
        if gap.first_seq <= gap.last_seq
    ]
    return tuple(sound)
