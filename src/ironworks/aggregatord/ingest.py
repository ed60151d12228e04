"""Take batches in: validate, store, enter in the ledger, answer."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import structlog
from sqlalchemy import Connection

from ironworks.aggregatord import decide, decode, metering, quarantine_store, store, validate
from ironworks.aggregatord.judging import Candidate, Judge, Judgement
from ironworks.aggregatord.quarantine_store import Decision, RefusedWindow
from ironworks.aggregatord.store import AcceptedWindow, LedgerBatch, Owner
from ironworks.aggregatord.tenants import Tenants
from ironworks.aggregatord.types import AggregatordSettings, Finding, Summary, Window
from ironworks.aggregatord.vms import Claim, Vms
from ironworks.aggregatord.warehouse import Refused, Warehouse
from ironworks.gen.ironworks.aggregatord.v1 import batch_pb as pb
from ironworks.model.errors import AlreadyExists, FailedPrecondition, PermissionDenied
from ironworks.runtime.clock import Clock
from ironworks.runtime.identity import Caller
from ironworks.storage.sql import Database

_log = structlog.stdlib.get_logger()
_RESERVED_DAYS = 1
"""A window that is nearly as old as hours are kept could not be added up any more."""


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What became of a batch."""

    duplicate: bool = False
    accepted: list[AcceptedWindow] = field(default_factory=list[AcceptedWindow])
    windows_duplicate: int = 0
    windows_late: int = 0
    refused: list[Refused] = field(default_factory=list[Refused])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Content:
    """A batch, decoded: position → window with its summary, or why it is not true."""

    payload: pb.BatchPayload
    windows: dict[int, Window]
    summaries: dict[int, Summary]
    findings: dict[int, Finding]


class Ingest:
    """The only writer of samples and ledger."""

    def __init__(
        self,
        *,
        database: Database,
        warehouse: Warehouse,
        clock: Clock,
        settings: AggregatordSettings,
        tenants: Tenants | None = None,
        vms: Vms | None = None,
    ) -> None:
        self._database = database
        self._warehouse = warehouse
        self._clock = clock
        self._settings = settings
        self._tenants = tenants or Tenants(None, clock)
        self._vms = vms
        self._judge_of = Judge(database, warehouse, clock)
        self._turn = asyncio.Lock()
        self.samples_accepted = 0
        self.windows_quarantined = 0
        self.on_accepted: Callable[[Sequence[AcceptedWindow]], None] = _nothing
        """Called with windows that have just been stored."""

    # ── whose batch ────────────────────────────────────────────────────────────────────────────

    async def check_host(self, caller: Caller, host_id: str) -> None:
        """Refuse a caller that is not the billaged of this host.

        A credential that is bound to a host ships for that one. The one of this machine's own
        billaged is bound to the first host that it ships for, or to the one in the settings.

        Raises:
            PermissionDenied: it is another host's.
        """
        bound = caller.host_id or self._settings.usage_host_id
        if not bound:
            bound = await self._database.read(lambda c: store.host_of(c, caller.subject))
            if bound is None:
                await self._database.write(lambda c: store.bind_host(c, caller.subject, host_id))
                return
        if bound != host_id:
            _log.error("batch_of_another_host", caller_host_id=bound, host_id=host_id[:64])
            raise PermissionDenied(
                f"This is a batch of host {host_id[:64]}, and the caller ships for {bound}.",
                hint="Set usage_host_id if this machine's host has got another id.",
            )

    # ── batches ────────────────────────────────────────────────────────────────────────────────

    async def submit(self, request: pb.SubmitBatchRequest) -> Outcome:
        """Store a batch; everything is durable when this returns.

        Raises:
            InvalidRequest: the batch cannot be read.
            AlreadyExists: its id is known with other content.
            Unavailable: a store is.
        """
        content = await asyncio.to_thread(self._decode, request)
        content.findings.update(await self._strangers(request.host_id, content))
        # One batch at a time: a window is judged by those that are stored before it.
        async with self._turn:
            known = await self._database.read(lambda c: store.get_batch(c, request.batch_id))
            if known is not None and known.content_sha256 == request.content_sha256:
                return Outcome(duplicate=True)
            if known is not None:
                await self._refuse_conflict(request, content.payload)
            outcome, judgement = await self._judge(request, content)
            await self._store(request, content.payload, outcome, judgement)
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
        self.on_accepted(outcome.accepted)
        return outcome

    def _decode(self, request: pb.SubmitBatchRequest) -> _Content:
        """Everything that a batch says by itself; off the event loop, in numpy."""
        payload = decode.payload_of(request)
        block, findings = decode.block_of(payload.windows)
        positions = [index for index in range(len(payload.windows)) if index not in findings]
        now_ns = self._clock.now_ns()
        kept_days = self._settings.usage_hourly_days - _RESERVED_DAYS
        suspicious = validate.suspicious(block, now_ns, kept_days).tolist()
        for index, window, look in zip(positions, block.windows, suspicious, strict=True):
            if look:
                finding = validate.check_window(window, now_ns, kept_days)
                if finding is not None:
                    findings[index] = finding
        summaries = metering.summarise_all(block)
        return _Content(
            payload=payload,
            windows=dict(zip(positions, block.windows, strict=True)),
            summaries=dict(zip(positions, summaries, strict=True)),
            findings=findings,
        )

    async def _strangers(self, host_id: str, content: _Content) -> dict[int, Finding]:
        """Windows of tenants or VMs that do not exist, or that the batch's own events deny."""
        windows = content.windows
        told = {one.vm_id: one.tenant_id for one in content.payload.events}
        found = {
            index: _stranger("The host's events name another tenant for the VM.")
            for index, one in windows.items()
            if told.get(one.key.vm_id, one.tenant_id) != one.tenant_id
        }
        claims = {index: Claim(one.key.vm_id, one.tenant_id) for index, one in windows.items()}
        said = set(claims.values())
        if not self._tenants.unsure({one.tenant_id for one in said}) and self._vms is None:
            return found
        invented = await self._invented(host_id, said, await self._owners(said))
        found |= {
            index: _stranger(invented[claim])
            for index, claim in claims.items()
            if claim in invented
        }
        return found

    async def strangers(self, host_id: str, claims: Collection[Claim]) -> set[Claim]:
        """VMs of other tenants or hosts than the ledger has, and invented ones."""
        owners = await self._owners(claims)
        others = {
            one
            for one in claims
            if owners.get(one.vm_id, (one.tenant_id, host_id)) != (one.tenant_id, host_id)
        }
        return others | set(await self._invented(host_id, claims, owners))

    async def _owners(self, claims: Collection[Claim]) -> dict[str, Owner]:
        vm_ids = sorted({one.vm_id for one in claims})
        return await self._database.read(lambda c: store.owners_of(c, vm_ids))

    async def _invented(
        self, host_id: str, claims: Collection[Claim], owners: Mapping[str, Owner]
    ) -> dict[Claim, str]:
        """VMs without an owner here that tenants or hosts do not know, with what is wrong."""
        new = [one for one in claims if one.vm_id not in owners]
        nobody = await self._tenants.unknown({one.tenant_id for one in new})
        asked = [one for one in new if one.tenant_id not in nobody]
        nowhere = await self._vms.unknown(host_id, asked) if self._vms else set[Claim]()
        found = dict.fromkeys(
            nowhere, "The VM is new here, and its host's metald knows no such VM of the tenant."
        )
        for one in new:
            if one.tenant_id in nobody:
                found[one] = "The VM is new here, and gatewayd knows no such tenant."
        return found

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
            lambda c: quarantine_store.put_refused(
                c, [one.window for one in refused], request.batch_id, now_ns
            )
        )
        self.windows_quarantined += len(refused)
        _log.error("batch_conflict", batch_id=request.batch_id, host_id=request.host_id)
        raise AlreadyExists(
            f"Batch {request.batch_id} is known with other content; this one is quarantined.",
            hint="An operator must look at both; see ListQuarantinedWindows.",
        )

    async def _judge(
        self, request: pb.SubmitBatchRequest, content: _Content
    ) -> tuple[Outcome, Judgement]:
        outcome = Outcome()
        raws = content.payload.windows
        known = await self._database.read(
            lambda c: store.known_windows(c, [window.window_id for window in raws])
        )
        candidates: list[Candidate] = []
        seen: dict[str, bytes] = {}
        findings = dict(content.findings)
        for index, window in content.windows.items():
            before = known.get(window.window_id) or seen.get(window.window_id)
            seen.setdefault(window.window_id, window.content_sha256)
            if before == window.content_sha256:
                findings.pop(index, None)
                outcome.windows_duplicate += 1
            elif before is not None:
                findings[index] = Finding(
                    reason=pb.QuarantineReason.CONFLICT,
                    detail="The window's id is known with other content.",
                )
            elif index not in findings:
                summary = content.summaries[index]
                candidates.append(Candidate(position=index, window=window, summary=summary))
        judgement = await self._judge_of.judge(request.host_id, candidates)
        findings |= {one.position: finding for one, finding in judgement.refused}
        outcome.accepted = judgement.accepted
        outcome.refused = [
            _refused(request.batch_id, raws[index], finding, content.windows.get(index))
            for index, finding in sorted(findings.items())
        ]
        now_ns, grace_hours = self._clock.now_ns(), self._settings.usage_grace_hours
        outcome.windows_late = sum(
            decide.is_settled(one.window.start_at_ns, now_ns, grace_hours)
            for one in outcome.accepted
        )
        return outcome, judgement

    async def _store(
        self,
        request: pb.SubmitBatchRequest,
        payload: pb.BatchPayload,
        outcome: Outcome,
        judgement: Judgement,
    ) -> None:
        """Data first, then the claim: a crash between leaves rows that the repeat replaces."""
        now_ns = self._clock.now_ns()
        windows = [one.window for one in outcome.accepted]
        batch = LedgerBatch(
            batch_id=request.batch_id,
            host_id=request.host_id,
            content_sha256=request.content_sha256,
            accepted_at_ns=now_ns,
            windows_accepted=len(windows),
            windows_quarantined=len(outcome.refused),
            samples_accepted=sum(len(window) for window in windows),
            windows_late=outcome.windows_late,
        )
        await self._warehouse.put_windows(windows, judgement.rows())
        await self._warehouse.put_events(payload.events)
        await self._warehouse.put_quarantine(outcome.refused, now_ns)
        await self._warehouse.put_ledger(batch)
        refused = [one.window for one in outcome.refused]
        await self._database.write(
            lambda c: store.put_batch(c, batch, outcome.accepted, refused, judgement.changes)
        )

    # ── decisions ──────────────────────────────────────────────────────────────────────────────

    async def release(
        self, content: bytes, decision: Decision, batch_id: str, host_id: str
    ) -> None:
        """Store and bill a window that an operator has found to be true.

        Raises:
            FailedPrecondition: it cannot be read, or other windows have its samples.
        """
        window = decode.window_of(pb.Window.from_binary(content))
        if isinstance(window, Finding):
            raise FailedPrecondition(
                f"The window cannot be read: {window.detail}", hint="It can only be rejected."
            )
        async with self._turn:
            known = await self._database.read(lambda c: store.known_windows(c, [window.window_id]))
            one = Candidate(position=0, window=window, summary=metering.summarise(window))
            judgement = await self._judge_of.judge(host_id, [one], forced=True)
            if known or judgement.refused:
                raise FailedPrecondition(
                    "Other windows have the samples of this one, or its VM is another tenant's.",
                    hint="It can only be rejected.",
                )
            await self._warehouse.put_windows([window], judgement.rows())

            def enter(connection: Connection) -> None:
                store.put_windows(
                    connection, batch_id, host_id, judgement.accepted, judgement.changes
                )
                quarantine_store.put_decision(connection, decision)

            await self._database.write(enter)
        self.samples_accepted += len(window)
        self.on_accepted(judgement.accepted)


def _nothing(_: Sequence[AcceptedWindow]) -> None:
    """Until somebody listens."""


def _stranger(detail: str) -> Finding:
    return Finding(reason=pb.QuarantineReason.IDENTITY, detail=detail)


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
