"""Pure decisions: when windows close, what a gap's reason is, what things are called."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ironworks.billaged.types import WINDOW_NS, SeqGap, VmKey
from ironworks.gen.ironworks.billaged.v1.samples_pb import GapReason
from ironworks.model.ids import derived_id

NEWEST_EVERY = 4
BACKLOG = 16
"""So many are sent within seconds; and in their order, which is far less work for aggregatord."""


def minute_of(at_ns: int) -> int:
    """Number of the UTC minute."""
    return at_ns // WINDOW_NS


def closed_by_ticks(open_minutes: Mapping[int, int], newest_seq: int, grace: int) -> list[int]:
    """The open minutes that later ticks have closed, oldest first.

    A minute is closed when a tick came that is more than `grace` ticks after its last one: the
    ticks between belong to another minute, and one that is still missing is not worth waiting for.

    Args:
        open_minutes: Minute → its last sequence number.
        newest_seq: Highest sequence number that has come.
        grace: Ticks that a late one may come later.
    """
    return sorted(
        minute for minute, last_seq in open_minutes.items() if newest_seq - last_seq > grace
    )


def window_id(host_id: str, key: VmKey, first_seq: int) -> str:
    """A sample is in exactly one window, so its first sample names a window for ever."""
    return derived_id("win", host_id, key.vm_id, str(key.boot_epoch), str(first_seq))


def batch_id(host_id: str, contents: Iterable[str]) -> str:
    """The id of a batch from what it contains: window ids, and names of events."""
    return derived_id("bat", host_id, *sorted(contents))


def next_to_ship(waiting: Sequence[str], turn: int) -> str:
    """Which batch is sent at this turn: oldest first, but what is new does not starve.

    After an outage, while many wait, every fourth is the newest one: who looks at usage now sees
    now.

    Args:
        waiting: Ids of batches, oldest first; not empty.
        turn: Counts what was sent in one go, from 0.
    """
    newest = len(waiting) > BACKLOG and turn % NEWEST_EVERY == NEWEST_EVERY - 1
    return waiting[-1] if newest else waiting[0]


def missing(first_seq: int, last_seq: int, present: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """The intervals of `first_seq` to `last_seq` that are not in the ascending `present`."""
    if first_seq > last_seq:
        return []
    inside = present[np.searchsorted(present, first_seq) : np.searchsorted(present, last_seq + 1)]
    edges = np.concatenate(([first_seq - 1], inside, [last_seq + 1]))
    before = np.flatnonzero(np.diff(edges) > 1)
    return [(int(edges[at]) + 1, int(edges[at + 1]) - 1) for at in before]


def explain(
    gaps: Iterable[tuple[int, int]], declared: Sequence[SeqGap], damaged_until_seq: int
) -> list[SeqGap]:
    """Give every missing sample exactly one reason.

    Args:
        gaps: Missing intervals, ascending, apart from each other.
        declared: What was said to be lost; where two overlap, the earlier in the list holds.
        damaged_until_seq: Up to here an unexplained loss is due to a damaged log.
    """
    explained: list[SeqGap] = []
    for first, last in gaps:
        seq = first
        while seq <= last:
            piece = _reason_at(seq, last, declared, damaged_until_seq)
            previous = explained[-1] if explained else None
            if previous and previous.reason == piece.reason and previous.last_seq == seq - 1:
                explained[-1] = SeqGap(
                    first_seq=previous.first_seq, last_seq=piece.last_seq, reason=piece.reason
                )
            else:
                explained.append(piece)
            seq = piece.last_seq + 1
    return explained


def _reason_at(seq: int, last: int, declared: Sequence[SeqGap], damaged_until_seq: int) -> SeqGap:
    """The longest piece from `seq` to at most `last` that has one reason."""
    for index, gap in enumerate(declared):
        if gap.first_seq <= seq <= gap.last_seq:
            end = min(last, gap.last_seq)
            # An earlier declaration takes over where it begins.
            starts = [one.first_seq for one in declared[:index] if seq < one.first_seq <= end]
            return SeqGap(
                first_seq=seq, last_seq=min([end, *[at - 1 for at in starts]]), reason=gap.reason
            )
    end = min([last, *[one.first_seq - 1 for one in declared if seq < one.first_seq <= last]])
    if seq <= damaged_until_seq:
        return SeqGap(
            first_seq=seq, last_seq=min(end, damaged_until_seq), reason=int(GapReason.LOG_DAMAGED)
        )
    return SeqGap(first_seq=seq, last_seq=end, reason=int(GapReason.UNEXPLAINED))
