"""Is a window true? Pure: what it says, what was allowed, what its neighbours say.

What fails is quarantined, so each bound is one that no honest sample can cross.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ironworks.aggregatord.types import (
    CUMULATIVE,
    READINGS,
    TICK_US,
    Baseline,
    Block,
    Finding,
    Summary,
    Window,
)
from ironworks.gen.ironworks.aggregatord.v1.batch_pb import QuarantineReason as Reason
from ironworks.gen.ironworks.billaged.v1.samples_pb import GapReason
from ironworks.model.units import GIB, NS_PER_DAY, NS_PER_SECOND, NS_PER_US

VMM_OVERHEAD_VCPUS = 1
"""The VMM's own threads (emulated devices, I/O) may use as much CPU beside the guest's vCPUs."""
CPU_SLACK_NS = 200_000_000
"""Counters and clocks are not read in the same instant; the kernel accounts in ticks of its own."""
MEMORY_OVERHEAD_BYTES = GIB
"""The VMM's own memory: device models, page tables, the translation cache when emulating."""
MEMORY_OVERHEAD_SHARE = 4
"""And a quarter of the limit."""
MAX_DISK_BYTES_PER_SECOND = 32 * GIB
MAX_NETWORK_BYTES_PER_SECOND = 50 * GIB
"""400 Gbit/s: faster than any link of a host."""
RATE_SLACK_BYTES = GIB
MAX_AHEAD_NS = 300 * NS_PER_SECOND
MAX_WINDOW_NS = 61 * NS_PER_SECOND
MAX_OFFSET_US = 60_000_000
MIN_OFFSET_US = -200_000
MAX_STEP_NS = 300 * NS_PER_SECOND
"""What a host's clock may be set by between two windows, beside what its ticks say."""
MAX_SEQ = 1 << 43
"""Ticks of 27,000 years."""
MAX_COUNTER = 1 << 62
"""146 years of one vCPU, 4 EiB: beyond it, and that is where NaN lies, are no honest numbers."""
_ALL_READINGS = (1 << len(READINGS)) - 1

_MAX_BYTES_PER_SECOND = {
    "disk_read_bytes": MAX_DISK_BYTES_PER_SECOND,
    "disk_write_bytes": MAX_DISK_BYTES_PER_SECOND,
    "network_receive_bytes": MAX_NETWORK_BYTES_PER_SECOND,
    "network_transmit_bytes": MAX_NETWORK_BYTES_PER_SECOND,
    "network_internal_bytes": MAX_NETWORK_BYTES_PER_SECOND,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """What is known around a window, from windows that were accepted.

    Attributes:
        tenant_id: Tenant under which the VM is known; empty if it is not.
        before: The epoch's counters at the end of all windows before this one.
        after: First values of the nearest window after it; empty if there is none.
        interval_free: How many numbers of this window's interval no other window has.
        host_id: Host that its windows come from; empty if it is not known.
        from_host_id: Host that this window comes from.
        ahead: First number and beginning of the nearest window after it; None if there is none.
        now_ns: The time here, UTC nanoseconds.
    """

    tenant_id: str
    before: Baseline
    after: Mapping[str, int | None]
    interval_free: int | None = None
    host_id: str = ""
    from_host_id: str = ""
    ahead: tuple[int, int] | None = None
    now_ns: int | None = None


def check_window(window: Window, now_ns: int, kept_days: int) -> Finding | None:
    """What is wrong with a window by itself; None if nothing is."""
    return (
        _check_sequence(window) or _check_clock(window, now_ns, kept_days) or _check_values(window)
    )


def suspicious(block: Block, now_ns: int, kept_days: int) -> npt.NDArray[np.bool_]:
    """Which windows of a block `check_window` has to look at: of the others it finds nothing.

    All windows are judged at once, so that honest ones cost next to nothing.
    """
    if not block.windows:
        return np.zeros(0, np.bool_)
    starts, ends, at_ns = block.starts, block.ends, block.tick_at_ns
    first_ns, last_ns = at_ns[starts], at_ns[ends]
    time_us = block.time_us()
    some = np.bitwise_or.reduceat(block.absent_mask, starts)
    found = some != np.bitwise_and.reduceat(block.absent_mask, starts)
    found |= some >= _ALL_READINGS
    found |= block.pairs((np.diff(block.seq) <= 0) | (np.diff(at_ns) < 0) | (np.diff(time_us) < 0))
    found |= (block.seq[starts] < 0) | (block.seq[ends] > MAX_SEQ)
    found |= (last_ns - first_ns > MAX_WINDOW_NS) | (last_ns > now_ns + MAX_AHEAD_NS)
    found |= first_ns < now_ns - kept_days * NS_PER_DAY
    found |= block.rows((block.offset_us > MAX_OFFSET_US) | (block.offset_us < MIN_OFFSET_US))
    for bit, name in enumerate(READINGS):
        column, seen = block.values[name], (some >> np.uint8(bit)) & 1 == 0
        if name == "memory_bytes":
            allowed = [_allowed_memory(window) for window in block.windows]
            highest = np.maximum.reduceat(column, starts)
            found |= seen & (highest > np.array(allowed, np.uint64))
        else:
            backwards = block.pairs(column[1:] < column[:-1])
            found |= seen & (backwards | (column[ends] > MAX_COUNTER))
    found |= np.array(
        [bool(one.gaps) or not 0 <= one.attached_seq <= MAX_SEQ for one in block.windows]
    )
    return found | (np.array([one.attached_seq for one in block.windows]) > block.seq[starts])


def _check_sequence(window: Window) -> Finding | None:
    if (
        window.first_seq < 0
        or window.last_seq > MAX_SEQ
        or not (np.diff(window.seq) > 0).all()
        or not 0 <= window.attached_seq <= window.first_seq
    ):
        return Finding(reason=Reason.SEQUENCE, detail="Sequence numbers do not increase.")
    if _gap_fault(window):
        detail = "Gaps overlap, come after the samples, or have samples."
        return Finding(reason=Reason.MALFORMED, detail=detail)
    if (window.absent_mask & ~np.uint8(_ALL_READINGS)).any():
        return Finding(reason=Reason.MALFORMED, detail="The mask names readings that do not exist.")
    if (window.absent_mask == _ALL_READINGS).any():
        return Finding(reason=Reason.MALFORMED, detail="A sample has no reading at all.")
    return None


def _gap_fault(window: Window) -> bool:
    before = -1
    for first, last, reason in sorted(window.gaps):
        inside = np.searchsorted(window.seq, [first, last + 1])
        if not before < first <= last < window.last_seq or inside[0] != inside[1]:
            return True
        if not GapReason.UNSPECIFIED < reason <= GapReason.UNEXPLAINED:
            return True
        before = last
    return False


def _allowed_memory(window: Window) -> int:
    limit_bytes = window.memory_limit_bytes
    return limit_bytes + limit_bytes // MEMORY_OVERHEAD_SHARE + MEMORY_OVERHEAD_BYTES


def _check_clock(window: Window, now_ns: int, kept_days: int) -> Finding | None:
    at_ns = window.tick_at_ns
    first_ns, last_ns = int(at_ns[0]), int(at_ns[-1])
    detail = ""
    if (np.diff(at_ns) < 0).any() or last_ns - first_ns > MAX_WINDOW_NS:
        detail = "Times go back, or the window is longer than a minute."
    elif last_ns > now_ns + MAX_AHEAD_NS:
        detail = "The window lies in the future: is the host's clock right?"
    elif first_ns < now_ns - kept_days * NS_PER_DAY:
        detail = "The window is older than hours are kept."
    elif (window.offset_us > MAX_OFFSET_US).any() or (window.offset_us < MIN_OFFSET_US).any():
        detail = "Samples were read far from their tick."
    elif (np.diff(window.time_us()) < 0).any():
        detail = "Samples were read in another order than they are numbered."
    return Finding(reason=Reason.CLOCK, detail=detail) if detail else None


def _check_values(window: Window) -> Finding | None:
    for name in CUMULATIVE:
        values = window.values[name][window.present(name)]
        if (values[1:] < values[:-1]).any():
            return Finding(reason=Reason.COUNTER_WENT_BACK, detail=f"{name} goes back.")
        if len(values) and values[-1] > MAX_COUNTER:
            return Finding(reason=Reason.MALFORMED, detail=f"{name} is absurdly large.")
    memory = window.values["memory_bytes"][window.present("memory_bytes")]
    allowed_bytes = _allowed_memory(window)
    if len(memory) and int(memory.max()) > allowed_bytes:
        return Finding(
            reason=Reason.MEMORY_EXCEEDED,
            detail=f"{int(memory.max())} bytes are in use, {allowed_bytes} are possible.",
        )
    return None


def check_place(window: Window, around: Neighbours) -> Finding | None:
    """Why a window cannot stand where it would, however true it is; None if it can."""
    if around.tenant_id and around.tenant_id != window.tenant_id:
        return Finding(reason=Reason.IDENTITY, detail="The VM belongs to another tenant.")
    if around.host_id and around.host_id != around.from_host_id:
        return Finding(reason=Reason.IDENTITY, detail="The VM runs on another host.")
    if around.interval_free is not None and around.interval_free < len(window):
        return Finding(reason=Reason.SEQUENCE, detail="Other windows have these samples already.")
    return None


def check_neighbours(window: Window, summary: Summary, around: Neighbours) -> Finding | None:
    """What is wrong with a window beside what is known already; None if nothing is."""
    misplaced = check_place(window, around)
    if misplaced is not None:
        return misplaced
    step_ns = _clock_step_ns(window, around.before)
    if abs(step_ns) > MAX_STEP_NS and not _clock_is_right(window, around):
        seconds = step_ns // NS_PER_SECOND
        detail = f"The host's clock was set by {seconds} s since the window before."
        return Finding(reason=Reason.CLOCK, detail=detail)
    for name in CUMULATIVE:
        before, after = around.before.last.get(name), around.after.get(name)
        first, last = summary.first[name], summary.last[name]
        if before is not None and first is not None and first < before:
            detail = f"{name} is {first}, it was {before} before."
            return Finding(reason=Reason.COUNTER_WENT_BACK, detail=detail)
        if after is not None and last is not None and after < last:
            detail = f"{name} is {last}, it is {after} later."
            return Finding(reason=Reason.COUNTER_WENT_BACK, detail=detail)
    return _check_growth(summary, around.before)


def _clock_step_ns(window: Window, before: Baseline) -> int:
    """By how much UTC has moved beside the host's ticks since the window before."""
    if before.last_seq is None or before.end_at_ns is None:
        return 0
    ticks_ns = (window.first_seq - before.last_seq) * TICK_US * NS_PER_US
    return window.start_at_ns - before.end_at_ns - ticks_ns


def _clock_is_right(window: Window, around: Neighbours) -> bool:
    """Whether it was the clock of before that was wrong.

    That is so if the window has just ended by the clock here, or if one after it was found to be
    right and agrees with it. Otherwise a clock that was put right would be refused for as long as
    the VM runs.
    """
    if around.now_ns is not None and abs(around.now_ns - window.end_at_ns) <= MAX_STEP_NS:
        return True
    if around.ahead is None:
        return False
    first_seq, start_at_ns = around.ahead
    ticks_ns = (first_seq - window.last_seq) * TICK_US * NS_PER_US
    return abs(start_at_ns - window.end_at_ns - ticks_ns) <= MAX_STEP_NS


def _check_growth(summary: Summary, before: Baseline) -> Finding | None:
    """Against what VM and devices could have done since the window before."""
    since_us = summary.first_us if before.last_us is None else before.last_us
    elapsed_ns = max(0, summary.last_us - since_us) * NS_PER_US
    for name in CUMULATIVE:
        last, base = summary.last[name], before.last.get(name)
        base = summary.first[name] if base is None else base
        if last is None or base is None:
            continue
        grown = last - base
        if name == "cpu_ns":
            allowed = (summary.vcpus + VMM_OVERHEAD_VCPUS) * elapsed_ns + CPU_SLACK_NS
            reason = Reason.CPU_EXCEEDED
        else:
            per_second = _MAX_BYTES_PER_SECOND[name]
            allowed = per_second * elapsed_ns // NS_PER_SECOND + RATE_SLACK_BYTES
            reason = Reason.RATE_EXCEEDED
        if grown > allowed:
            detail = f"{name} grew by {grown}, {allowed} are possible."
            return Finding(reason=reason, detail=detail)
    return None
