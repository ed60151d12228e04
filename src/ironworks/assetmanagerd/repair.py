"""Whether registry, leases and bytes agree; what does not is mended or marked, and always told.

What is found is compared with both sides, and looked at once more under the lock of its SHA-256: a
registration under way is no fault. Bytes that no record stands for may be all that is left after an
old backup of the registry was restored: they stay for as long as an unused asset does.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, replace
from enum import StrEnum

import structlog
from sqlalchemy import Connection

from ironworks.assetmanagerd import garbage_store, lease_store, store
from ironworks.assetmanagerd.bytes.backend import AssetBytes
from ironworks.assetmanagerd.bytes.disk import digest
from ironworks.assetmanagerd.bytes.locks import DigestLocks
from ironworks.assetmanagerd.types import AssetSettings, AssetState
from ironworks.model.errors import DataLoss
from ironworks.model.units import NS_PER_DAY, NS_PER_SECOND
from ironworks.runtime.clock import Clock
from ironworks.storage.sql import Database

_log = structlog.stdlib.get_logger()
_PAGE = 1000
_CHECKED_AT_ONCE = 500
MAX_FINDINGS = 1000


class Fault(StrEnum):
    """How registry, leases and bytes can disagree."""

    STRAY = "bytes_without_row"
    ROW_WITHOUT_BYTES = "row_without_bytes"
    CAME_BACK = "bytes_came_back"
    PARTIAL_UPLOAD = "partial_upload"
    TEMPORARY_FILE = "temporary_file"
    LEFTOVER = "leftover"
    LEASE_COUNT = "lease_count"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One disagreement.

    Attributes:
        fault: Which.
        name: A SHA-256, an asset, or a file of the staging area.
        action: What was done about it, or would be.
        is_mended: It is no disagreement any more.
    """

    fault: Fault
    name: str
    action: str
    is_mended: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """All disagreements of one pass, counted, and the first of them."""

    at_ns: int = 0
    findings: tuple[Finding, ...] = ()
    counts: tuple[tuple[Fault, int], ...] = ()


class Repair:
    """Compares and mends."""

    def __init__(
        self,
        *,
        database: Database,
        files: AssetBytes,
        locks: DigestLocks,
        settings: AssetSettings,
        clock: Clock,
    ) -> None:
        self._database = database
        self._files = files
        self._locks = locks
        self._settings = settings
        self._clock = clock
        self._checked_to = ""
        self.last = Findings()

    async def run(self, *, dry_run: bool = False) -> Findings:
        """One pass.

        Raises:
            Unavailable: the bytes are behind a network that fails; nothing is concluded from that.
        """
        found: list[Finding] = []
        for part in (self._leases, self._bytes, self._rows, self._staging):
            found += await part(dry_run=dry_run)
        for one in found[:MAX_FINDINGS]:
            _log.warning("repair", fault=one.fault.value, name=one.name, action=one.action)
        counts = Counter(one.fault for one in found)
        result = Findings(
            at_ns=self._clock.now_ns(),
            findings=tuple(found[:MAX_FINDINGS]),
            counts=tuple(sorted(counts.items())),
        )
        if not dry_run:
            self.last = result
        return result

    # --- leases -----------------------------------------------------------------------------------

    async def _leases(self, *, dry_run: bool) -> list[Finding]:
        """Numbers of leases that are not what the leases say."""

        def work(connection: Connection) -> list[str]:
            active = lease_store.active_counts(connection)
            wrong = garbage_store.miscounted(connection, active)
            for asset_id in () if dry_run else wrong:
                count = active.get(asset_id, 0)
                before = store.read_assets(connection, [asset_id])[asset_id]
                after = replace(before, lease_count=count)
                if before.state in (AssetState.AVAILABLE, AssetState.IN_USE):
                    state = AssetState.IN_USE if count else AssetState.AVAILABLE
                    after = replace(after, state=state)
                store.change_asset(
                    connection,
                    before,
                    after,
                    reason=f"{count} leases hold it, not {before.lease_count}.",
                    actor="repair",
                    now_ns=self._clock.now_ns(),
                )
            return wrong

        wrong = await (self._database.read if dry_run else self._database.write)(work)
        return [
            Finding(
                fault=Fault.LEASE_COUNT, name=one, action="Counted again.", is_mended=not dry_run
            )
            for one in wrong
        ]

    # --- bytes ------------------------------------------------------------------------------------

    async def _bytes(self, *, dry_run: bool) -> list[Finding]:
        """Bytes that no record stands for."""
        found: list[Finding] = []
        page: list[str] = []
        async for name in self._files.kept.objects():
            page.append(name)
            if len(page) == _PAGE:
                found += await self._strays(page, dry_run=dry_run)
                page = []
        return found + await self._strays(page, dry_run=dry_run)

    async def _strays(self, names: list[str], *, dry_run: bool) -> list[Finding]:
        now_ns = self._clock.now_ns()
        strays = await self._database.read(
            lambda connection: garbage_store.without_record(connection, names, now_ns)
        )
        after_ns = now_ns + self._settings.asset_ttl_seconds * NS_PER_SECOND
        found: list[Finding] = []
        for name in strays:
            if not dry_run:
                await self._database.write(
                    lambda connection, name=name: garbage_store.doom_if_orphaned(
                        connection, name, after_ns
                    )
                )
            found.append(
                Finding(
                    fault=Fault.STRAY,
                    name=name,
                    action=f"Kept for {self._settings.asset_ttl_seconds} s, then removed.",
                )
            )
        return found

    # --- rows -------------------------------------------------------------------------------------

    async def _rows(self, *, dry_run: bool) -> list[Finding]:
        """Records whose bytes are gone or short: all that are not listed, some of the others."""
        listed = {name async for name in self._files.kept.objects()}
        found: list[Finding] = []
        after, checked = "", 0
        while True:
            page = await self._database.read(
                lambda connection, after=after: garbage_store.live_objects(connection, after, _PAGE)
            )
            for name, size_bytes in page.items():
                in_turn = name > self._checked_to and checked < _CHECKED_AT_ONCE
                if name not in listed or in_turn:
                    found += await self._row(name, size_bytes, dry_run=dry_run)
                if in_turn:
                    checked += 1
                    self._checked_to = name
            if len(page) < _PAGE:
                break
            after = max(page)
        if checked < _CHECKED_AT_ONCE:
            self._checked_to = ""
        marked = await self._database.read(garbage_store.damaged_objects)
        for name, size_bytes in marked.items():
            if name in listed:
                found += await self._came_back(name, size_bytes, dry_run=dry_run)
        return found

    async def _row(self, name: str, size_bytes: int, *, dry_run: bool) -> list[Finding]:
        async with self._locks.held(digest(name)):
            try:
                await self._files.kept.check(name, size_bytes)
            except DataLoss as error:
                problem = error.message
            else:
                return []
            asset_ids = await self._mark(name, problem, dry_run=dry_run)
        return [
            Finding(
                fault=Fault.ROW_WITHOUT_BYTES,
                name=asset_id,
                action=f"{problem} It gets no new leases until it is registered again.",
            )
            for asset_id in asset_ids
        ]

    async def _came_back(self, name: str, size_bytes: int, *, dry_run: bool) -> list[Finding]:
        async with self._locks.held(digest(name)):
            if await self._files.kept.problem(name, size_bytes):
                return []
            asset_ids = await self._mark(name, "", dry_run=dry_run)
        return [
            Finding(
                fault=Fault.CAME_BACK,
                name=asset_id,
                action="Its bytes are intact; it may be leased again.",
                is_mended=not dry_run,
            )
            for asset_id in asset_ids
        ]

    async def _mark(self, name: str, damage: str, *, dry_run: bool) -> list[str]:
        """Note on the records of an object what is wrong with it; answers which."""

        def work(connection: Connection) -> list[str]:
            assets = garbage_store.live_records(connection, name)
            for asset in () if dry_run else assets:
                if asset.damage != damage:
                    store.change_asset(
                        connection,
                        asset,
                        replace(asset, damage=damage),
                        reason=damage,
                        actor="repair",
                        now_ns=self._clock.now_ns(),
                    )
            return [asset.asset_id for asset in assets]

        return await (self._database.read if dry_run else self._database.write)(work)

    # --- staging ----------------------------------------------------------------------------------

    async def _staging(self, *, dry_run: bool) -> list[Finding]:
        """Files that nobody will take any more, and uploads that wait to be resumed."""
        now_ns = self._clock.now_ns()

        def work(connection: Connection) -> tuple[frozenset[str], frozenset[str]]:
            return store.staged_names(connection), lease_store.upload_names(connection)

        names = await asyncio.to_thread(self._files.staging.names)
        registered, uploads = await self._database.read(work)
        found: list[Finding] = []
        for name, at_ns in sorted(names.items()):
            if name in uploads:
                found.append(
                    Finding(fault=Fault.PARTIAL_UPLOAD, name=name, action="Waits to be resumed.")
                )
            elif name not in registered and at_ns < now_ns - NS_PER_DAY:
                if not dry_run:
                    await asyncio.to_thread(self._files.staging.discard, name)
                found.append(
                    Finding(
                        fault=Fault.TEMPORARY_FILE,
                        name=name,
                        action="Nobody has touched it for a day: removed.",
                        is_mended=not dry_run,
                    )
                )
        count = 0 if dry_run else await self._files.kept.leftovers()
        if count:
            action = f"{count} files of interrupted work removed."
            found.append(
                Finding(fault=Fault.LEFTOVER, name="kept bytes", action=action, is_mended=True)
            )
        return found
