"""How complete samples are, and which are missing: computed from intervals of sequence numbers.

The ledger says which numbers windows have; what lies between them is missing, whoever said so or
not. What hosts have declared, and what is in quarantine, says why. What was declared missing and
came late after all is not missing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from sqlalchemy import Connection

from ironworks.aggregatord import decide, gap_store
from ironworks.aggregatord.decide import Missing
from ironworks.aggregatord.gap_store import Edge, EpochCounts, Refusal
from ironworks.aggregatord.types import (
    TICK_US,
    Interval,
    StoredGap,
    UsageFilter,
    VmCompleteness,
    VmEpoch,
)
from ironworks.aggregatord.warehouse import Warehouse
from ironworks.gen.ironworks.billaged.v1.samples_pb import GapReason
from ironworks.model.errors import InvalidRequest
from ironworks.model.units import NS_PER_US
from ironworks.runtime.clock import Clock
from ironworks.storage.sql import Database

MAX_DECLARED = 1_000_000
_TICK_NS = TICK_US * NS_PER_US
_QUARANTINED = int(GapReason.QUARANTINED)
_MAY_COME = {_QUARANTINED, int(GapReason.UNEXPLAINED)}
"""What is missing for these reasons may still arrive, or be released."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Epoch:
    """What is known of an epoch in an interval; `before_seq` is the number that it goes on after.

    `accepted` is None where all its windows are in quarantine.
    """

    key: VmEpoch
    accepted: EpochCounts | None
    quarantined: int
    before_seq: int
    last_seq: int

    @property
    def expected(self) -> int:
        return self.last_seq - self.before_seq

    @property
    def received(self) -> int:
        return self.accepted.samples if self.accepted else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """What the stores say of one epoch's holes."""

    edges: Sequence[Edge] = ()
    refusals: Sequence[Refusal] = ()
    declared: Sequence[tuple[StoredGap, int]] = ()
    """With the first number of the window that says so."""


def _epochs(connection: Connection, chosen: UsageFilter, interval: Interval) -> list[_Epoch]:
    accepted = {one.key: one for one in gap_store.accepted_counts(connection, chosen, interval)}
    refused = {one.key: one for one in gap_store.quarantined_counts(connection, chosen, interval)}
    found: list[_Epoch] = []
    for key in sorted({*accepted, *refused}):
        sides = [one for one in (accepted.get(key), refused.get(key)) if one is not None]
        first_seq = min(one.first_seq for one in sides)
        before = gap_store.last_seq_before(connection, key, first_seq)
        if before is None:
            before = min(one.attached_seq for one in sides) - 1
        found.append(
            _Epoch(
                key=key,
                accepted=accepted.get(key),
                quarantined=refused[key].samples if key in refused else 0,
                before_seq=min(before, first_seq - 1),
                last_seq=max(one.last_seq for one in sides),
            )
        )
    return found


def _holes(epoch: _Epoch, edges: Iterable[Edge]) -> list[tuple[int, int]]:
    """Numbers between an epoch's windows, before the first and after the last."""
    found: list[tuple[int, int]] = []
    for edge in edges:
        before_seq = epoch.before_seq if edge.before_seq is None else edge.before_seq
        if edge.first_seq > before_seq + 1:
            found.append((before_seq + 1, edge.first_seq - 1))
    until_seq = epoch.accepted.last_seq if epoch.accepted else epoch.before_seq
    if until_seq < epoch.last_seq:
        found.append((until_seq + 1, epoch.last_seq))
    return found


def _inside(told: _Told) -> list[Missing]:
    """Numbers that windows leave out within themselves, and no other window has."""
    nested = [
        Missing(one.first_seq, one.last_seq, 0)
        for one in told.edges
        if one.before_seq is not None and one.first_seq <= one.before_seq
    ]
    found: list[Missing] = []
    for gap, first_seq in told.declared:
        if gap.first_seq > first_seq:
            others = [one for one in nested if one.first_seq != first_seq]
            hole = Missing(gap.first_seq, gap.last_seq, gap.reason)
            found += decide.left_of([hole], others) if others else [hole]
    return found


def _missing(epoch: _Epoch, told: _Told) -> list[StoredGap]:
    """Every missing sample of an epoch with its reason, in order."""
    refused = [Missing(one.first_seq, one.last_seq, _QUARANTINED) for one in told.refusals]
    declared = [
        Missing(gap.first_seq, gap.last_seq, gap.reason)
        for gap, first_seq in told.declared
        if gap.first_seq < first_seq
    ]
    between = decide.explained(_holes(epoch, told.edges), [refused, declared])
    anchors = sorted(
        [(one.first_seq, one.start_at_ns) for one in (*told.edges, *told.refusals)]
        + [(gap.first_seq, gap.start_at_ns) for gap, _ in told.declared]
    )

    def at_ns(seq: int, near_seq: int) -> int:
        index = bisect_left(anchors, (near_seq, 0))
        anchor_seq, anchor_ns = anchors[min(index, len(anchors) - 1)]
        return anchor_ns + (seq - anchor_seq) * _TICK_NS

    return [
        StoredGap(
            key=epoch.key,
            first_seq=one.first_seq,
            last_seq=one.last_seq,
            reason=one.reason,
            start_at_ns=at_ns(one.first_seq, one.first_seq),
            end_at_ns=at_ns(one.last_seq, one.first_seq),
        )
        for one in sorted(between + _inside(told))
    ]


class Gaps:
    """Answers what is missing."""

    def __init__(
        self, *, database: Database, warehouse: Warehouse, clock: Clock, grace_hours: int
    ) -> None:
        self._database = database
        self._warehouse = warehouse
        self._clock = clock
        self._grace_hours = grace_hours

    async def listed(
        self, chosen: UsageFilter, interval: Interval, after: tuple[str, int, int]
    ) -> list[StoredGap]:
        """Missing intervals by VM, epoch and number, after the given ones.

        Raises:
            InvalidRequest: there are too many.
        """
        epochs = await self._database.read(lambda c: _epochs(c, chosen, interval))
        told = await self._told(chosen, interval, after[0])
        return [
            gap
            for epoch in epochs
            if epoch.key.vm_id >= after[0]
            for gap in _missing(epoch, told.get(epoch.key, _Told()))
            if (*gap.key, gap.first_seq) > after
        ]

    async def completeness(self, chosen: UsageFilter, interval: Interval) -> list[VmCompleteness]:
        """Samples expected, received and missing of each VM that has any, ordered by id."""
        declared = await self._warehouse.gap_counts(chosen, interval)
        epochs = await self._database.read(lambda c: _epochs(c, chosen, interval))
        by_vm = {vm_id: list(some) for vm_id, some in groupby(epochs, lambda one: one.key.vm_id)}
        found = [
            self._complete(vm_id, some, declared.get(vm_id, {})) for vm_id, some in by_vm.items()
        ]
        # Where what is declared is not what is missing, number by number says which of it is.
        doubtful = [one.vm_id for one in found if _is_doubtful(one)]
        if not doubtful:
            return found
        few = len(doubtful) <= gap_store.VARIABLES_AT_ONCE
        told = await self._told(
            replace(chosen, vm_ids=tuple(doubtful)) if few else chosen, interval, ""
        )
        return [
            self._in_doubt(one, by_vm[one.vm_id], told) if _is_doubtful(one) else one
            for one in found
        ]

    def _complete(
        self, vm_id: str, epochs: Sequence[_Epoch], gaps: Mapping[int, int]
    ) -> VmCompleteness:
        accepted = [one.accepted for one in epochs if one.accepted]
        return VmCompleteness(
            vm_id=vm_id,
            expected=sum(one.expected for one in epochs),
            received=sum(one.received for one in epochs),
            quarantined=sum(one.quarantined for one in epochs),
            partial=sum(one.partial for one in accepted),
            watermark_ns=max((one.end_at_ns for one in accepted), default=0),
            gaps=gaps,
        )

    def _in_doubt(
        self, one: VmCompleteness, epochs: Sequence[_Epoch], told: Mapping[VmEpoch, _Told]
    ) -> VmCompleteness:
        reasons: dict[int, int] = {}
        watermark_ns = one.watermark_ns
        for epoch in epochs:
            for gap in _missing(epoch, told.get(epoch.key, _Told())):
                samples = gap.last_seq - gap.first_seq + 1
                reasons[gap.reason] = reasons.get(gap.reason, 0) + samples
                if gap.reason in _MAY_COME and not self._is_over(gap.start_at_ns):
                    before_ns = gap.start_at_ns - _TICK_NS
                    watermark_ns = min(watermark_ns or before_ns, before_ns)
        return replace(one, gaps=reasons, watermark_ns=watermark_ns)

    def _is_over(self, at_ns: int) -> bool:
        return decide.is_settled(at_ns, self._clock.now_ns(), self._grace_hours)

    async def _told(
        self, chosen: UsageFilter, interval: Interval, from_vm: str
    ) -> dict[VmEpoch, _Told]:
        declared = await self._warehouse.declared(chosen, interval, from_vm, MAX_DECLARED + 1)
        if len(declared) > MAX_DECLARED:
            raise InvalidRequest(
                f"More than {MAX_DECLARED:,} gaps were declared.",
                hint="Ask for a shorter interval, or for fewer VMs.",
            )
        ids = sorted({window_id for _, window_id in declared})

        def read(
            connection: Connection,
        ) -> tuple[list[Edge], list[Refusal], dict[str, int]]:
            return (
                gap_store.edges(connection, chosen, interval, from_vm),
                gap_store.refusals(connection, chosen, interval, from_vm),
                gap_store.firsts(connection, ids),
            )

        edges, refusals, firsts = await self._database.read(read)
        found: dict[VmEpoch, tuple[list[Edge], list[Refusal], list[tuple[StoredGap, int]]]] = {}
        for edge in edges:
            found.setdefault(edge.key, ([], [], []))[0].append(edge)
        for refusal in refusals:
            found.setdefault(refusal.key, ([], [], []))[1].append(refusal)
        for gap, window_id in declared:
            # A window without claim, of a crash, says nothing.
            if window_id in firsts:
                found.setdefault(gap.key, ([], [], []))[2].append((gap, firsts[window_id]))
        return {
            key: _Told(edges=some[0], refusals=some[1], declared=some[2])
            for key, some in found.items()
        }


def _is_doubtful(one: VmCompleteness) -> bool:
    return (
        bool(one.quarantined)
        or bool(_MAY_COME & one.gaps.keys())
        or sum(one.gaps.values()) != one.expected - one.received
    )
