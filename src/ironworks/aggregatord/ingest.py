"""Take batches in: validate, store, enter in the ledger, answer."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog

from ironworks.aggregatord import decode, metering, store, validate
from ironworks.aggregatord.store import AcceptedWindow, LedgerBatch, RefusedWindow
from ironworks.aggregatord.types import (
    AggregatordSettings,
    Baseline,
    Finding,
    Summary,
    VmEpoch,
    Window,
)
from ironworks.aggregatord.warehouse import Refused, Warehouse
from ironworks.gen.ironworks.aggregatord.v1 import batch_pb as pb
from ironworks.model.errors import AlreadyExists
from ironworks.runtime.clock import Clock
from ironworks.storage.sql import Database

_log = structlog.stdlib.get_logger()


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What became of a batch."""

    duplicate: bool = False
    accepted: list[AcceptedWindow] = field(default_factory=list[AcceptedWindow])
    windows_duplicate: int = 0
    refused: list[Refused] = field(default_factory=list[Refused])


class Ingest:
    """The only writer of samples and ledger."""

    def __init__(
        self,
        *,
        database: Database,
        warehouse: Warehouse,
        clock: Clock,
        settings: AggregatordSettings,
    ) -> None:
        self._database = database
        self._warehouse = warehouse
        self._clock = clock
        self._settings = settings
        self._turn = asyncio.Lock()
        self.samples_accepted = 0
        self.windows_quarantined = 0

    async def submit(self, request: pb.SubmitBatchRequest) -> Outcome:
        """Store a batch; everything is durable when this returns.

        Raises:
            InvalidRequest: the batch cannot be read.
            AlreadyExists: its id is known with other content.
            Unavailable: a store is.
        """
        payload = await asyncio.to_thread(decode.payload_of, request)
        # One batch at a time: a window is judged by those that are stored before it.
        async with self._turn:
            known = await self._database.read(lambda c: store.get_batch(c, request.batch_id))
            if known is not None and known.content_sha256 == request.content_sha256:
                return Outcome(duplicate=True)
            if known is not None:
                await self._refuse_conflict(request, payload)
            outcome = await self._judge(request, payload)
            await self._store(request, payload, outcome)
        for one in outcome.refused:
            _log.error(
                "window_quarantined",
                window_id=one.window.window_id,
                vm_id=one.window.vm_id,
                reason=one.window.finding.reason.name,
                detail=one.window.finding.detail,
            )
        self.windows_quarantined += len(outcome.refused)
        self.samples_accepted += sum(len(one.window) for one in outcome.accepted)
        return outcome

    async def _refuse_conflict(
        self, request: pb.SubmitBatchRequest, payload: pb.BatchPayload
    ) -> None:
        finding = Finding(
            reason=pb.QuarantineReason.CONFLICT,
            detail="The batch's id is known with other content.",
        )
        refused = [_refused(request.batch_id, window, finding) for window in payload.windows]
        now_ns = self._clock.now_ns()
        await self._warehouse.put_quarantine(refused, now_ns)
        await self._database.write(
            lambda c: store.put_refused(
                c, [one.window for one in refused], request.batch_id, now_ns
            )
        )
        _log.error("batch_conflict", batch_id=request.batch_id, host_id=request.host_id)
        raise AlreadyExists(
            f"Batch {request.batch_id} is known with other content; this one is quarantined.",
            hint="An operator must look at both; see ListQuarantinedWindows.",
        )

    async def _judge(self, request: pb.SubmitBatchRequest, payload: pb.BatchPayload) -> Outcome:
        outcome = Outcome()
        ids = [window.window_id for window in payload.windows]
        known = await self._database.read(lambda c: store.known_windows(c, ids))
        readable: list[tuple[pb.Window, Window]] = []
        seen: set[str] = set()
        for raw in payload.windows:
            window = decode.window_of(raw)
            finding = window if isinstance(window, Finding) else None
            if isinstance(window, Window):
                if known.get(window.window_id) == window.content_sha256:
                    outcome.windows_duplicate += 1
                    continue
                if window.window_id in known or window.window_id in seen:
                    finding = Finding(
                        reason=pb.QuarantineReason.CONFLICT,
                        detail="The window's id is known with other content.",
                    )
                else:
                    finding = validate.check_window(
                        window, self._clock.now_ns(), self._settings.usage_raw_days
                    )
                    if finding is None:
                        readable.append((raw, window))
                seen.add(window.window_id)
            if finding is not None:
                decoded = window if isinstance(window, Window) else None
                outcome.refused.append(_refused(request.batch_id, raw, finding, decoded))
        await self._judge_beside_others(request.batch_id, readable, outcome)
        return outcome

    async def _judge_beside_others(
        self, batch_id: str, readable: Sequence[tuple[pb.Window, Window]], outcome: Outcome
    ) -> None:
        """Windows of one epoch are judged one after the other, of different epochs together."""
        queues: dict[VmEpoch, list[tuple[pb.Window, Window]]] = {}
        for raw, window in sorted(readable, key=lambda pair: pair[1].first_seq):
            queues.setdefault(window.key, []).append((raw, window))
        owners = await self._owners(queues)
        local: dict[VmEpoch, Baseline] = {}
        taken: dict[VmEpoch, int] = {}
        while queues:
            turn = [queue.pop(0) for queue in queues.values()]
            queues = {key: queue for key, queue in queues.items() if queue}
            around = await self._warehouse.around(
                {window.key: (window.first_seq, window.last_seq) for _, window in turn}
            )
            free = await self._database.read(
                lambda c, turn=turn: {
                    window.window_id: store.free_in(
                        c, window.key, window.first_seq, window.last_seq
                    )
                    for _, window in turn
                }
            )
            for raw, window in turn:
                summary = metering.summarise(window)
                before, after = around.get(window.key, (Baseline(), {}))
                if window.key in local:
                    before = _merged(before, local[window.key])
                interval_free = free[window.window_id]
                if taken.get(window.key, -1) >= window.first_seq:
                    interval_free = 0
                finding = validate.check_neighbours(
                    window,
                    summary,
                    validate.Neighbours(
                        tenant_id=owners.get(window.key.vm_id, ""),
                        before=before,
                        after=after,
                        interval_free=interval_free,
                    ),
                )
                if finding is not None:
                    outcome.refused.append(_refused(batch_id, raw, finding, window))
                    continue
                owners.setdefault(window.key.vm_id, window.tenant_id)
                local[window.key] = metering.after(before, summary)
                taken[window.key] = window.last_seq
                outcome.accepted.append(AcceptedWindow(window=window, summary=summary))

    async def _owners(
        self, queues: dict[VmEpoch, list[tuple[pb.Window, Window]]]
    ) -> dict[str, str]:
        vm_ids = sorted({key.vm_id for key in queues})
        return await self._database.read(lambda c: store.tenants_of(c, vm_ids))

    async def _store(
        self, request: pb.SubmitBatchRequest, payload: pb.BatchPayload, outcome: Outcome
    ) -> None:
        """Data first, then the claim: a crash between leaves rows that the repeat replaces."""
        now_ns = self._clock.now_ns()
        windows = [one.window for one in outcome.accepted]
        summaries: list[Summary] = [one.summary for one in outcome.accepted]
        await self._warehouse.put_windows(windows, summaries)
        await self._warehouse.put_events(payload.events)
        await self._warehouse.put_quarantine(outcome.refused, now_ns)
        batch = LedgerBatch(
            batch_id=request.batch_id,
            host_id=request.host_id,
            content_sha256=request.content_sha256,
            accepted_at_ns=now_ns,
            windows_accepted=len(windows),
            windows_quarantined=len(outcome.refused),
            samples_accepted=sum(len(window) for window in windows),
        )
        refused = [one.window for one in outcome.refused]
        await self._database.write(lambda c: store.put_batch(c, batch, outcome.accepted, refused))


def _merged(stored: Baseline, local: Baseline) -> Baseline:
    """The later of two baselines of one epoch, counter by counter."""

    def later(one: int | None, other: int | None) -> int | None:
        if one is None or other is None:
            return other if one is None else one
        return max(one, other)

    newer = local
    if local.memory_last_us is None or (stored.memory_last_us or 0) > local.memory_last_us:
        newer = stored
    return Baseline(
        last_us=later(stored.last_us, local.last_us),
        memory_last_us=newer.memory_last_us,
        memory_last_bytes=newer.memory_last_bytes,
        last={
            name: later(stored.last.get(name), local.last.get(name))
            for name in {*stored.last, *local.last}
        },
    )


def _refused(
    batch_id: str, raw: pb.Window, finding: Finding, window: Window | None = None
) -> Refused:
    content = raw.to_binary()
    return Refused(
        window=RefusedWindow(
            window_id=raw.window_id[: decode.MAX_ID_CHARS] or "unnamed",
            vm_id=raw.vm_id[: decode.MAX_ID_CHARS],
            tenant_id=raw.tenant_id[: decode.MAX_ID_CHARS],
            content_sha256=hashlib.sha256(content).digest(),
            finding=finding,
            window=window,
        ),
        batch_id=batch_id,
        content=content,
    )
