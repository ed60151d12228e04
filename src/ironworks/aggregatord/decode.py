"""A batch's bytes as windows; everything that is not as it should be is refused here.

Source of the format: `ironworks.aggregatord.v1.Window`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import zstandard

from ironworks.aggregatord.types import (
    READINGS,
    TICK_US,
    Block,
    Finding,
    Ints,
    VmEpoch,
    Window,
)
from ironworks.gen.ironworks.aggregatord.v1 import batch_pb as pb
from ironworks.gen.ironworks.billaged.v1.samples_pb import AbsenceReason
from ironworks.model.errors import InvalidRequest
from ironworks.model.units import GIB, MIB, NS_PER_US

SCHEMA_VERSIONS = (1, 2)
"""In 1 windows lack the last of the readings: it is absent from all their samples."""
_LAST_ABSENT = np.uint8(1 << len(READINGS) - 1)
MAX_PAYLOAD_BYTES = 64 * MIB
MAX_WINDOWS = 256
MAX_SAMPLES = 1_200
MAX_ID_CHARS = 64
MAX_VCPUS = 32
MAX_MEMORY_BYTES = 64 * GIB
MAX_DISK_BYTES = 1 << 50
MAX_EPOCH = 1 << 62
MAX_GAPS = 1_200
_VM = re.compile(r"vm_[A-Za-z0-9_-]+")
_TENANT = re.compile(r"tnt_[A-Za-z0-9_-]+")


def payload_of(request: pb.SubmitBatchRequest) -> pb.BatchPayload:
    """The content of a batch whose envelope is sound.

    Raises:
        InvalidRequest: unknown schema or encoding, too large, not what its checksum says, or not
            a payload at all.
    """
    if not request.batch_id or not request.host_id or len(request.batch_id) > MAX_ID_CHARS:
        raise InvalidRequest("A batch must name itself and its host.")
    if request.schema_version not in SCHEMA_VERSIONS:
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


def _malformed(detail: str) -> Finding:
    return Finding(reason=pb.QuarantineReason.MALFORMED, detail=detail)


def _header_fault(window: pb.Window) -> Finding | None:
    names = {"window_id": window.window_id, "vm_id": window.vm_id, "tenant_id": window.tenant_id}
    for name, value in names.items():
        if not 1 <= len(value) <= MAX_ID_CHARS:
            return _malformed(f"{name} is empty or too long.")
    if len(window.deployment_id) > MAX_ID_CHARS or not 1 <= window.sample_count <= MAX_SAMPLES:
        return _malformed(f"deployment_id is too long, or samples are not 1 to {MAX_SAMPLES}.")
    if not (_VM.fullmatch(window.vm_id) and _TENANT.fullmatch(window.tenant_id)):
        detail = "VM or tenant have names that this platform gives to none."
        return Finding(reason=pb.QuarantineReason.IDENTITY, detail=detail)
    if not 0 < window.vcpus <= MAX_VCPUS or not 0 < window.memory_limit_bytes <= MAX_MEMORY_BYTES:
        return _malformed("A window must say which vCPUs and memory are provisioned.")
    if (
        not 0 <= window.disk_limit_bytes <= MAX_DISK_BYTES
        or not 0 <= window.boot_epoch <= MAX_EPOCH
        or window.tick_ns != TICK_US * NS_PER_US
    ):
        return _malformed("Disk, epoch or tick are out of range.")
    return _length_fault(window)


def _length_fault(window: pb.Window) -> Finding | None:
    count = window.sample_count
    wide = {len(getattr(window, name)) for name in ("seq", "tick_at_ns", *READINGS[:-1])}
    wide.add(len(getattr(window, READINGS[-1])) or count * 8)
    narrow = len(window.offset_us), len(window.absent_mask)
    if wide != {count * 8} or narrow != (count * 4, count):
        return _malformed("The columns are of different length.")
    if len(window.gaps) > MAX_GAPS:
        return _malformed(f"A window declares at most {MAX_GAPS} gaps.")
    return None


def _cumulated(columns: Sequence[bytes], dtype: str, starts: Ints, counts: Ints) -> Any:
    """Columns of differences, one after the other, as the numbers that they stand for."""
    differences = np.frombuffer(b"".join(columns), dtype)
    # Modulo the width, as the differences are; so one sum over all windows can be taken apart.
    sums = np.cumsum(differences, dtype=dtype)
    before = sums[starts] - differences[starts]
    return sums - np.repeat(before, counts)


def block_of(raws: Sequence[pb.Window]) -> tuple[Block, dict[int, Finding]]:
    """The windows that can be read, in order, and why the others (by position) cannot be."""
    faults = {index: _header_fault(raw) for index, raw in enumerate(raws)}
    findings = {index: fault for index, fault in faults.items() if fault is not None}
    sound = [raw for index, raw in enumerate(raws) if index not in findings]
    counts = np.array([raw.sample_count for raw in sound], np.int64)
    starts = np.cumsum(counts) - counts

    def numbers(name: str, dtype: str) -> Any:
        columns = [getattr(raw, name) or bytes(8 * raw.sample_count) for raw in sound]
        return _cumulated(columns, dtype, starts, counts)

    seq, tick_at_ns = numbers("seq", "<u8").view(np.int64), numbers("tick_at_ns", "<u8")
    parts = Block(
        windows=(),
        starts=starts,
        counts=counts,
        seq=seq,
        tick_at_ns=tick_at_ns.view(np.int64),
        offset_us=numbers("offset_us", "<u4").view(np.int32),
        absent_mask=np.frombuffer(b"".join([_absent_mask(raw) for raw in sound]), np.uint8),
        values={name: numbers(name, "<u8") for name in READINGS},
    )
    windows = [
        _view(raw, parts, slice(start, start + raw.sample_count))
        for raw, start in zip(sound, starts.tolist(), strict=True)
    ]
    return replace(parts, windows=tuple(windows)), findings


def window_of(window: pb.Window) -> Window | Finding:
    """One window, or why it cannot be read."""
    block, findings = block_of([window])
    return findings[0] if findings else block.windows[0]


def _absent_mask(raw: pb.Window) -> bytes:
    if getattr(raw, READINGS[-1]):
        return raw.absent_mask
    return (np.frombuffer(raw.absent_mask, np.uint8) | _LAST_ABSENT).tobytes()


def _view(raw: pb.Window, block: Block, rows: slice) -> Window:
    seq = block.seq[rows]
    return Window(
        window_id=raw.window_id,
        tenant_id=raw.tenant_id,
        deployment_id=raw.deployment_id,
        key=VmEpoch(raw.vm_id, raw.boot_epoch),
        vcpus=raw.vcpus,
        memory_limit_bytes=raw.memory_limit_bytes,
        disk_limit_bytes=raw.disk_limit_bytes,
        attached_seq=raw.attached_seq,
        seq=seq,
        tick_at_ns=block.tick_at_ns[rows],
        offset_us=block.offset_us[rows],
        values={name: column[rows] for name, column in block.values.items()},
        absent_mask=block.absent_mask[rows],
        partial_count=_partial(raw, seq) if raw.absences else 0,
        gaps=tuple((gap.first_seq, gap.last_seq, int(gap.reason)) for gap in raw.gaps),
        content_sha256=hashlib.sha256(raw.to_binary()).digest(),
    )


def _partial(window: pb.Window, seq: Ints) -> int:
    """Samples that lack a reading which the VM should have: a VM without a disk lacks nothing."""
    partial = np.zeros(len(seq), np.bool_)
    for run in window.absences:
        if run.reason != AbsenceReason.NO_SOURCE:
            partial |= (seq >= run.first_seq) & (seq <= run.last_seq)
    return int(partial.sum())
