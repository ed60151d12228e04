"""What can be asked of the registry: read, archive, restore, delete, verify, collect."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

from sqlalchemy import Connection

from ironworks.assetmanagerd import lease_store, store
from ironworks.assetmanagerd.bytes.backend import AssetBytes
from ironworks.assetmanagerd.bytes.locks import DigestLocks
from ironworks.assetmanagerd.decide import (
    Event,
    check_owned,
    judge,
    next_state,
    sees,
    unknown_asset,
)
from ironworks.assetmanagerd.types import (
    MAX_VERDICTS,
    MIN_UNUSED_SECONDS,
    Asset,
    AssetEvent,
    AssetFilter,
    AssetSettings,
    AssetState,
    Verdict,
    Who,
)
from ironworks.model.errors import InvalidRequest, NotFound
from ironworks.model.ids import new_id
from ironworks.model.pages import PageSpec
from ironworks.model.units import NS_PER_SECOND
from ironworks.runtime.clock import Clock, Entropy
from ironworks.storage.sql import Database

_BATCH = 500
_MAX_REASON_CHARS = 256


class Registry:
    """Use cases over assets that have been taken in."""

    def __init__(
        self,
        *,
        database: Database,
        files: AssetBytes,
        locks: DigestLocks,
        settings: AssetSettings,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._database = database
        self._files = files
        self._locks = locks
        self._settings = settings
        self._clock = clock
        self._entropy = entropy

    # --- reading ----------------------------------------------------------------------------------

    async def get(self, who: Who, asset_id: str) -> Asset:
        """One asset.

        Raises:
            NotFound: there is none that the caller may know of.
        """
        asset = await self._database.read(lambda connection: store.read_asset(connection, asset_id))
        if asset is None or not sees(who, asset):
            raise unknown_asset(asset_id)
        return asset

    async def page(self, who: Who, query: AssetFilter, page: PageSpec) -> list[Asset]:
        """A page of assets, and one more if there is one more."""
        return await self._database.read(
            lambda connection: store.list_assets(connection, who, query, page)
        )

    async def query(self, who: Who, query: AssetFilter) -> tuple[Asset, str, int]:
        """The asset to use, how it was chosen, and from how many.

        Raises:
            NotFound: none satisfies the filter.
        """
        own, platforms, count = await self._database.read(
            lambda connection: store.newest_assets(connection, who, query)
        )
        if own is not None:
            return own, f"Newest of the tenant's own; {count} satisfied the filter.", count
        if platforms is not None:
            return platforms, f"Newest of the platform's; {count} satisfied the filter.", count
        raise NotFound(
            "No available asset satisfies this.", hint="List the assets to see what there is."
        )

    async def events(self, who: Who, asset_id: str, page: PageSpec) -> list[AssetEvent]:
        """A page of one asset's history, and one more if there is one more."""
        await self.get(who, asset_id)
        return await self._database.read(
            lambda connection: store.list_events(connection, asset_id, page)
        )

    # --- lifecycle by hand ------------------------------------------------------------------------

    async def archive(self, who: Who, asset_id: str, reason: str, key: str) -> Asset:
        """Put an asset away.

        Raises:
            NotFound: there is none that the caller may know of.
            FailedPrecondition: it is not AVAILABLE.
        """
        return await self._by_hand(who, asset_id, Event.ARCHIVED, reason or "Archived.", key)

    async def restore(self, who: Who, asset_id: str, key: str) -> Asset:
        """Make an archived asset usable again.

        Raises:
            NotFound: there is none that the caller may know of.
            FailedPrecondition: it is not ARCHIVED.
        """
        return await self._by_hand(who, asset_id, Event.RESTORED, "Restored.", key)

    async def delete(self, who: Who, asset_id: str, reason: str, key: str) -> Asset:
        """Delete an archived or failed asset.

        Raises:
            NotFound: there is none that the caller may know of.
            FailedPrecondition: it is in another state.
        """
        asset = await self._by_hand(who, asset_id, Event.DELETED, reason or "Deleted.", key)
        await self.remove_doomed()
        return asset

    async def _by_hand(self, who: Who, asset_id: str, event: Event, reason: str, key: str) -> Asset:
        if len(reason) > _MAX_REASON_CHARS:
            raise InvalidRequest(f"reason has at most {_MAX_REASON_CHARS} characters.")
        now_ns = self._clock.now_ns()
        ticket = new_id("evt", self._clock, self._entropy)

        def work(connection: Connection) -> Asset:
            asset = check_owned(who, store.read_asset(connection, asset_id), asset_id)
            first = lease_store.claim(
                connection,
                scope=f"{who.tenant_id}:{event.value}",
                key=key,
                request=f"{asset_id}\n{reason}".encode(),
                resource_id=ticket,
                now_ns=now_ns,
            )
            is_done = event is Event.DELETED and asset.state is AssetState.DELETED
            if first != ticket or is_done:
                return asset
            return self._change(connection, asset, event, reason, who.actor, now_ns)

        return await self._database.write(work)

    def _change(
        self,
        connection: Connection,
        asset: Asset,
        event: Event,
        reason: str,
        actor: str,
        now_ns: int,
    ) -> Asset:
        after = replace(asset, state=next_state(asset, event))
        after = store.change_asset(
            connection, asset, after, reason=reason, actor=actor, now_ns=now_ns
        )
        if after.state is AssetState.DELETED:
            store.doom_if_orphaned(connection, asset.sha256, now_ns)
        return after

    # --- bytes and garbage ------------------------------------------------------------------------

    async def verify(self, who: Who, asset_id: str) -> tuple[Asset, str]:
        """An asset, and what is wrong with its stored bytes; empty if nothing.

        Raises:
            NotFound: there is none that the caller may know of.
        """
        asset = await self.get(who, asset_id)
        if asset.state in (AssetState.DELETED, AssetState.FAILED, AssetState.REGISTERED):
            return asset, f"It is {asset.state.value}; there are no bytes to verify."
        problem = await self._files.kept.problem(asset.sha256, asset.size_bytes)
        if problem == asset.damage:
            return asset, problem
        now_ns = self._clock.now_ns()

        def work(connection: Connection) -> Asset:
            present = store.read_asset(connection, asset_id) or asset
            after = replace(present, damage=problem)
            return store.change_asset(
                connection, present, after, reason=problem, actor=who.actor, now_ns=now_ns
            )

        return await self._database.write(work), problem

    # --- garbage ----------------------------------------------------------------------------------

    async def collect(
        self, *, dry_run: bool, unused_seconds: int = 0, actor: str = "gc"
    ) -> list[Verdict]:
        """One pass of garbage collection: what was looked at, and what was done with it."""
        if unused_seconds and unused_seconds < MIN_UNUSED_SECONDS:
            raise InvalidRequest(f"unused_seconds is 0 or at least {MIN_UNUSED_SECONDS}.")
        ttl_seconds = unused_seconds or self._settings.asset_ttl_seconds
        now_ns = self._clock.now_ns()

        def work(connection: Connection) -> list[Verdict]:
            needed = store.needed_by_platform(connection)
            verdicts: list[Verdict] = []
            for asset in store.garbage_candidates(connection, MAX_VERDICTS):
                verdict = judge(
                    asset,
                    now_ns=now_ns,
                    ttl_seconds=ttl_seconds,
                    failed_ttl_seconds=self._settings.failed_asset_ttl_seconds,
                    needed=asset.asset_id in needed,
                )
                if verdict.collected and not dry_run:
                    self._change(connection, asset, Event.COLLECTED, verdict.reason, actor, now_ns)
                    if store.sha256_in_use(connection, asset.sha256):
                        verdict = replace(verdict, freed_bytes=0)
                verdicts.append(verdict)
            return verdicts

        # The leases are counted in the transaction that deletes: there is no moment between.
        verdicts = await (self._database.read if dry_run else self._database.write)(work)
        if not dry_run:
            await self.remove_doomed()
        return sorted(verdicts, key=lambda verdict: not verdict.collected)

    async def remove_doomed(self) -> int:
        """Remove bytes that nothing stands for any more; answers how many."""
        listed = await self._database.read(lambda connection: store.doomed(connection, _BATCH))
        removed = 0
        for sha256 in listed:
            async with self._locks.held(sha256):
                in_use = await self._database.read(
                    lambda connection, sha256=sha256: store.sha256_in_use(connection, sha256)
                )
                if not in_use:
                    await self._files.kept.remove(sha256)
                    removed += 1
                await self._database.write(
                    lambda connection, sha256=sha256: store.undoom(connection, sha256)
                )
        return removed

    async def sweep(self) -> Mapping[str, int]:
        """Forget what is old: ended leases, idempotency keys; clean the staging area."""
        now_ns = self._clock.now_ns()
        day_ns = 86400 * NS_PER_SECOND

        def work(connection: Connection) -> tuple[int, int, frozenset[str]]:
            leases = lease_store.forget_leases(connection, now_ns - day_ns)
            keys = lease_store.forget_keys(connection, now_ns)
            kept = store.staged_names(connection) | lease_store.upload_names(connection)
            return leases, keys, kept

        leases, keys, kept = await self._database.write(work)
        staged = await asyncio.to_thread(self._files.staging.names)
        stale = [
            name for name, at_ns in staged.items() if name not in kept and at_ns < now_ns - day_ns
        ]
        for name in stale:
            await asyncio.to_thread(self._files.staging.discard, name)
        return {"leases": leases, "keys": keys, "staged": len(stale)}

    async def usage(self) -> Mapping[str, tuple[int, int]]:
        """State → number of assets and their bytes."""
        return await self._database.read(store.bytes_by_state)
