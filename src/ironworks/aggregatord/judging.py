"""What windows add to usage, judged beside the windows that are stored already.

The windows of an epoch nearly always come in order: then the epoch's frontier in the ledger says
all that is needed. A late window is walked to its place among those that are stored; what it adds
is taken off the windows after it, whose rows are written anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ironworks.aggregatord import metering, store, validate
from ironworks.aggregatord.store import AcceptedWindow, Changes, Owner
from ironworks.aggregatord.types import (
    CUMULATIVE,
    Baseline,
    Finding,
    Frontier,
    Growth,
    StoredWindow,
    Summary,
    VmEpoch,
    Window,
)
from ironworks.aggregatord.warehouse import Warehouse
from ironworks.runtime.clock import Clock
from ironworks.storage.sql import Database

PAGE = 200
FIRST_PAGES = 5_000
"""Stored windows that are looked at together, before the late windows of a batch are judged."""
_UNKNOWN = Owner("", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A window that is sound by itself."""

    position: int
    window: Window
    summary: Summary


@dataclass(slots=True, kw_only=True)
class Judgement:
    """What became of windows, and what they change.

    `version` is that of all its rows: the number of the batch. A batch whose claim was lost in a
    crash left rows behind; those of later batches, and of its own repetition, count instead.
    """

    version: int = 1
    accepted: list[AcceptedWindow] = field(default_factory=list[AcceptedWindow])
    refused: list[tuple[Candidate, Finding]] = field(
        default_factory=list[tuple[Candidate, Finding]]
    )
    rewritten: list[tuple[Summary, Growth]] = field(default_factory=list[tuple[Summary, Growth]])
    ends: dict[VmEpoch, Frontier] = field(default_factory=dict[VmEpoch, Frontier])

    @property
    def changes(self) -> Changes:
        """What the ledger has to note beside the windows."""
        return Changes(ends=self.ends, rewritten=[summary for summary, _ in self.rewritten])

    def rows(self) -> list[StoredWindow]:
        """Rows of windows to be written."""
        new = [(one.summary, one.growth) for one in self.accepted]
        return [
            StoredWindow(summary=summary, growth=growth, version=self.version)
            for summary, growth in (*new, *self.rewritten)
        ]


class Judge:
    """Judges windows of one host; the caller lets one batch in at a time."""

    def __init__(self, database: Database, warehouse: Warehouse, clock: Clock) -> None:
        self._database = database
        self._warehouse = warehouse
        self._clock = clock

    async def judge(
        self, host_id: str, candidates: Sequence[Candidate], *, forced: bool = False
    ) -> Judgement:
        """Judge windows, each epoch's in the order of their first samples.

        Args:
            host_id: Whose windows these are.
            candidates: The windows.
            forced: An operator has decided that they are true: only what other windows have
                already is refused.
        """
        queues: dict[VmEpoch, list[Candidate]] = {}
        for one in sorted(candidates, key=lambda one: one.window.first_seq):
            queues.setdefault(one.window.key, []).append(one)
        vm_ids = sorted({key.vm_id for key in queues})
        owners = await self._database.read(lambda c: store.owners_of(c, vm_ids))
        frontiers = await self._database.read(lambda c: store.frontiers(c, list(queues)))
        generation = await self._database.read(lambda c: store.last_number(c, store.GENERATION))
        made = Judgement(version=generation + 1)
        late = await self._at(
            {
                key: queue[0].window.first_seq
                for key, queue in queues.items()
                if key in frontiers and queue[0].window.first_seq <= frontiers[key].last_seq
            }
        )
        free = await self._free([one for key in late for one in queues[key]])
        for key, queue in queues.items():
            frontier = frontiers.get(key)
            owner = owners.get(key.vm_id, _UNKNOWN)
            epoch = late.get(key) or _Epoch(
                before=frontier.baseline if frontier else Baseline(),
                taken_seq=frontier.last_seq if frontier else -1,
            )
            for one in queue:
                # No other window has its numbers, unless it comes late.
                untaken = free.get(one.position)
                if one.window.first_seq <= epoch.taken_seq:
                    untaken = 0
                await self._judge_one(one, epoch, made, (owner, host_id, untaken), forced=forced)
                if owner is _UNKNOWN and made.accepted and made.accepted[-1].window is one.window:
                    owner = owners[key.vm_id] = Owner(one.window.tenant_id, host_id)
            await self._finish(key, epoch, frontier, made)
        return made

    async def _at(self, places: Mapping[VmEpoch, int]) -> dict[VmEpoch, _Epoch]:
        """Epochs at the places of late windows: a batch after an outage has one of every VM."""
        if not places:
            return {}
        before = await self._warehouse.before(places)
        page = min(PAGE, max(1, FIRST_PAGES // len(places)))
        after = {key: first_seq - 1 for key, first_seq in places.items()}
        ahead = await self._warehouse.following(after, page)
        return {
            key: _Epoch(
                before=before[key], late=True, ahead=ahead[key], more=len(ahead[key]) == page
            )
            for key in places
        }

    async def _look_ahead(self, key: VmEpoch, epoch: _Epoch, after_seq: int) -> None:
        page = (await self._warehouse.following({key: after_seq}, PAGE))[key]
        epoch.ahead += page
        epoch.more = len(page) == PAGE

    async def _judge_one(
        self,
        one: Candidate,
        epoch: _Epoch,
        made: Judgement,
        place: tuple[Owner, str, int | None],
        *,
        forced: bool,
    ) -> None:
        window, (owner, host_id, free) = one.window, place
        while epoch.late:
            if not epoch.ahead and epoch.more:
                await self._look_ahead(window.key, epoch, epoch.passed_seq)
            if not epoch.ahead or epoch.ahead[0].summary.first_seq >= window.first_seq:
                break
            epoch.pass_one(made)
        around = validate.Neighbours(
            tenant_id=owner.tenant_id,
            host_id=owner.host_id,
            from_host_id=host_id,
            before=epoch.before,
            after=epoch.next_values(window),
            interval_free=free,
            ahead=epoch.next_place(window),
            now_ns=self._clock.now_ns(),
        )
        finding = validate.check_neighbours(window, one.summary, around)
        if forced and finding is not None:
            finding = validate.check_place(window, around)
        if finding is not None:
            made.refused.append((one, finding))
            return
        growth = metering.growth(one.summary, epoch.before)
        made.accepted.append(AcceptedWindow(window=window, summary=one.summary, growth=growth))
        epoch.take(one.summary)

    async def _free(self, late: Sequence[Candidate]) -> dict[int, int | None]:
        """Position → how many numbers of its interval no stored window has; None: it has all."""
        if not late:
            return {}
        intervals = [(one.window.key, one.window.first_seq, one.window.last_seq) for one in late]
        found = await self._database.read(lambda c: store.free_in(c, intervals))
        return {one.position: free for one, free in zip(late, found, strict=True)}

    async def _finish(
        self, key: VmEpoch, epoch: _Epoch, frontier: Frontier | None, made: Judgement
    ) -> None:
        """Go on over stored windows until what came late makes no difference any more."""
        if not epoch.new:
            return
        while epoch.late and epoch.open:
            if epoch.ahead:
                epoch.pass_one(made)
            elif epoch.more:
                await self._look_ahead(key, epoch, epoch.passed_seq)
            else:
                break
        baseline = frontier.baseline if frontier else Baseline()
        for summary in epoch.new:
            baseline = metering.after(baseline, summary)
        made.ends[key] = Frontier(last_seq=baseline.last_seq or 0, baseline=baseline)


@dataclass(slots=True, kw_only=True)
class _Epoch:
    """A place among the windows of an epoch.

    Attributes:
        before: Where the windows before it have left the counters.
        late: Stored windows may stand after it.
        ahead: The next of these, in order.
        more: Whether there are more than `ahead`.
        passed_seq: First number of the last stored window that was passed.
        taken_seq: Last number of the new windows before it.
        new: New windows, accepted.
        open: Readings whose baseline the new windows have changed for those ahead.
    """

    before: Baseline
    late: bool = False
    ahead: list[StoredWindow] = field(default_factory=list[StoredWindow])
    more: bool = False
    passed_seq: int = -1
    taken_seq: int = -1
    new: list[Summary] = field(default_factory=list[Summary])
    open: set[str] = field(default_factory=set[str])

    def pass_one(self, made: Judgement) -> None:
        """Go over the next stored window; what it adds may have changed."""
        stored = self.ahead.pop(0)
        self.passed_seq = stored.summary.first_seq
        growth = metering.growth(stored.summary, self.before)
        if self.new and growth != stored.growth:
            made.rewritten.append((stored.summary, growth))
        self.before = metering.after(self.before, stored.summary)
        self.open -= _seen(stored.summary)

    def take(self, summary: Summary) -> None:
        """A new window stands here."""
        # A row of it without a claim, of a crash: the window takes its own place.
        self.ahead = [one for one in self.ahead if one.summary.first_seq != summary.first_seq]
        self.before = metering.after(self.before, summary)
        self.taken_seq = max(self.taken_seq, summary.last_seq)
        self.new.append(summary)
        self.open |= _seen(summary)

    def next_place(self, window: Window) -> tuple[int, int] | None:
        """First number and beginning of the next stored window, as far as looked."""
        for stored in self.ahead:
            if stored.summary.first_seq != window.first_seq:
                return stored.summary.first_seq, stored.summary.start_at_ns
        return None

    def next_values(self, window: Window) -> Mapping[str, int | None]:
        """The first value of each counter in the stored windows ahead, as far as looked."""
        values: dict[str, int | None] = {}
        for stored in self.ahead:
            if stored.summary.first_seq == window.first_seq:
                continue
            for name, value in stored.summary.first.items():
                if values.get(name) is None:
                    values[name] = value
            if None not in values.values():
                break
        return values


def _seen(summary: Summary) -> set[str]:
    """What a window says something of; `time` always."""
    seen = {name for name in CUMULATIVE if summary.first[name] is not None}
    if summary.memory_first_us is not None:
        seen.add("memory")
    return seen | {"time"}
