"""Plan batches: which samples become which windows, with which gaps. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ironworks.billaged import decide, payload
from ironworks.billaged.payload import FULLY_ABSENT as FULL
from ironworks.billaged.rings import Ints, Samples
from ironworks.billaged.state import UNREADABLE, MeterState, VmRecord
from ironworks.billaged.types import WINDOW_NS, Provision, SealedWindow, SeqGap, VmKey
from ironworks.gen.ironworks.aggregatord.v1 import batch_pb
from ironworks.gen.ironworks.billaged.v1 import samples_pb

MAX_WINDOWS = 256
MAX_SAMPLES = 256 * 600
"""In a batch: some 10 MiB before compression, of which the 2.5 MiB of times always compress well,
so the body stays below its limit whatever the readings are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A batch that is ready to be written, and the record that seals it.

    `request` is None if there is nothing to send.
    """

    request: batch_pb.SubmitBatchRequest | None
    windows: tuple[SealedWindow, ...]
    record: dict[str, Any]


def runs_of(seq: Ints) -> list[list[int]]:
    """Ascending numbers as inclusive intervals."""
    if not len(seq):
        return []
    breaks = np.flatnonzero(np.diff(seq) != 1) + 1
    return [[int(part[0]), int(part[-1])] for part in np.split(seq, breaks)]


def _uniform(record: VmRecord, samples: Samples) -> Iterator[Samples]:
    """Samples in pieces during which the VM had the same and the host's clock was not set back."""
    starts = np.array([seq for seq, _ in record.provisions[1:]], np.int64)
    breaks = (np.diff(samples.at_ns) < 0) | (
        np.diff(np.searchsorted(starts, samples.seq, side="right")) > 0
    )
    edges = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(samples)]
    for first, end in pairwise(edges):
        yield samples.where(slice(first, end))


def _present(state: MeterState, record: VmRecord, unreadable: Ints) -> Ints:
    """The samples that came and could be read, as far as the ring remembers."""
    present = state.rings.held(record.row)
    if len(unreadable):
        present = np.setdiff1d(present, unreadable, assume_unique=True)
    for gap in record.losses:
        if gap.reason == UNREADABLE:
            present = present[(present < gap.first_seq) | (present > gap.last_seq)]
    return present


def _parts(
    state: MeterState, key: VmKey, record: VmRecord, samples: Samples, covered_seq: int
) -> payload.WindowParts | None:
    """One window from samples under one provision; None if none of them has any reading."""
    unreadable = payload.absent_masks(samples.absent) == FULL
    read = samples.where(~unreadable) if unreadable.any() else samples
    if not len(read):
        return None
    lost = [
        SeqGap(first_seq=first, last_seq=last, reason=UNREADABLE)
        for first, last in runs_of(samples.seq[unreadable])
    ]
    present = _present(state, record, samples.seq[unreadable])
    gaps = decide.explain(
        decide.missing(covered_seq + 1, int(read.seq[-1]), present),
        [*lost, *record.losses, *state.losses],
        state.damaged_until_seq,
    )
    return payload.WindowParts(
        key=key,
        provision=record.provision_at(int(read.seq[0])),
        samples=read,
        gaps=gaps,
        attached_seq=record.attached_seq,
        tick_ns=state.tick_ns,
    )


@dataclass(slots=True, kw_only=True)
class _Piece:
    """Samples of one VM and minute under one provision.

    A window, or where none of them could be read, the news that the VM ran.
    """

    window: batch_pb.Window | None
    heartbeat: samples_pb.LifecycleEvent | None
    sealed: dict[str, Any]


def _heartbeat(key: VmKey, provision: Provision, samples: Samples) -> samples_pb.LifecycleEvent:
    return samples_pb.LifecycleEvent(
        vm_id=key.vm_id,
        tenant_id=provision.tenant_id,
        boot_epoch=key.boot_epoch,
        type=samples_pb.LifecycleEventType.HEARTBEAT,
        at_ns=int(samples.at_ns[-1]),
        vcpus=provision.vcpus,
        memory_bytes=provision.memory_bytes,
        disk_bytes=provision.disk_bytes,
    )


def _pieces(
    state: MeterState, key: VmKey, record: VmRecord, minutes: Iterable[int]
) -> Iterator[_Piece]:
    covered_seq = record.covered_seq
    for minute in minutes:
        samples = state.rings.open_samples(record.row, minute * WINDOW_NS, (minute + 1) * WINDOW_NS)
        for piece in _uniform(record, samples) if len(samples) else ():
            provision = record.provision_at(int(piece.seq[0]))
            parts = _parts(state, key, record, piece, covered_seq)
            if parts is not None:
                covered_seq = max(covered_seq, int(parts.samples.seq[-1]))
            yield _Piece(
                window=None if parts is None else payload.window(state.host_id, parts),
                heartbeat=None if parts is not None else _heartbeat(key, provision, piece),
                sealed={
                    "vm_id": key.vm_id,
                    "boot_epoch": key.boot_epoch,
                    "runs": runs_of(piece.seq),
                    "unreadable": runs_of(piece.seq[payload.absent_masks(piece.absent) == FULL]),
                    "covered_seq": covered_seq,
                },
            )


def _chunks(pieces: Iterable[_Piece]) -> list[list[_Piece]]:
    """The pieces of each batch."""
    chunks: list[list[_Piece]] = []
    samples = 0
    for piece in pieces:
        count = piece.window.sample_count if piece.window else 0
        if not chunks or samples + count > MAX_SAMPLES or len(chunks[-1]) == MAX_WINDOWS:
            chunks.append([])
            samples = 0
        chunks[-1].append(piece)
        samples += count
    return chunks


def _sealed_window(window: batch_pb.Window) -> SealedWindow:
    seq = np.cumsum(np.frombuffer(window.seq, "<u8"))
    return SealedWindow(
        window_id=window.window_id,
        vm_id=window.vm_id,
        boot_epoch=window.boot_epoch,
        first_seq=int(seq[0]),
        last_seq=int(seq[-1]),
        sample_count=window.sample_count,
    )


def sealed_windows(request: batch_pb.SubmitBatchRequest) -> tuple[SealedWindow, ...]:
    """The windows in a stored batch."""
    content = payload.zstandard.ZstdDecompressor().decompress(request.payload)
    found = batch_pb.BatchPayload.from_binary(content)
    return tuple(_sealed_window(window) for window in found.windows)


def plan(
    state: MeterState, minutes: Sequence[int], keys: Iterable[VmKey] | None = None
) -> list[Plan]:
    """Batches of all open samples of these minutes, and of the events that wait.

    Args:
        state: Not changed: `MeterState.apply_sealed` of each plan's record does that.
        minutes: UTC minutes.
        keys: Only of these VMs; None: of all.
    """
    chosen = sorted(state.vms if keys is None else {key for key in keys if key in state.vms})
    pieces = [
        piece for key in chosen for piece in _pieces(state, key, state.vms[key], sorted(minutes))
    ]
    events = list(state.events.items())
    plans: list[Plan] = []
    for chunk in _chunks(pieces) or [[]]:
        windows = [piece.window for piece in chunk if piece.window is not None]
        told = [] if plans else events
        if not chunk and not told:
            continue
        request = None
        news = [event for _, event in told]
        news += [piece.heartbeat for piece in chunk if piece.heartbeat is not None]
        if windows or news:
            request = payload.batch(state.host_id, windows, news)
        record = {
            "batch_id": request.batch_id if request else "",
            "windows": [piece.sealed for piece in chunk],
            "events": [name for name, _ in told],
        }
        sealed = tuple(_sealed_window(window) for window in windows)
        plans.append(Plan(request=request, windows=sealed, record=record))
    return plans
