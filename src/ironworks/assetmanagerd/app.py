"""What can be asked of the registry: read, archive, restore, delete, verify, collect."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from sqlalchemy import Connection

from ironworks.assetmanagerd import garbage_store, lease_store, store
from ironworks.assetmanagerd.bytes.backend import AssetBytes
from ironworks.assetmanagerd.decide import (
    Event,
    check_asset_id,
    check_filter,
    check_owned,
    check_text,
    judge,
    next_state,
    sees_use,
    unknown_asset,
)
from ironworks.assetmanagerd.types import (
    MIN_UNUSED_SECONDS,
    Asset,
    AssetEvent,
    AssetFilter,
    AssetSettings,
    AssetState,
    Collection,
    Rule,
    Verdict,
    Who,
)
from ironworks.model.errors import InvalidRequest, NotFound
from ironworks.model.ids import new_id
from ironworks.model.pages import PageSpec
from ironworks.model.units import NS_PER_DAY, NS_PER_SECOND
from ironworks.runtime.clock import Clock, Entropy
from ironworks.storage.sql import Database

_BATCH = 500
_TOGETHER = 32
"""Files that are removed at the same time."""
_MAX_REASON_CHARS = 256


class Registry:
    """Use cases over assets that have been taken in."""

    def __init__(
        self,
        *,
        database: Database,
        files: AssetBytes,
        settings: AssetSettings,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._database = database
        self._files = files
        self._settings = settings
        self._clock = clock
        self._entropy = entropy

    # --- reading ----------------------------------------------------------------------------------

    async def get(self, who: Who, asset_id: str) -> Asset:
        """One asset.

        Raises:
            NotFound: there is none that the caller may know of.
        """
        check_asset_id(asset_id)
        asset = await self._database.read(
            lambda connection: store.visible_asset(connection, who, asset_id)
        )
        if asset is None:
            raise unknown_asset(asset_id)
        return asset

    async def page(self, who: Who, query: AssetFilter, page: PageSpec) -> list[Asset]:
        """A page of assets, and one more if there is one more."""
        check_filter(query)
        return await self._database.read(
            lambda connection: store.list_assets(connection, who, query, page)
        )

    async def query(self, who: Who, query: AssetFilter) -> tuple[Asset, str, int]:
        """The asset to use, how it was chosen, and from how many.

        Raises:
            NotFound: none satisfies the filter.
        """
        check_filter(query)
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
        with_use = sees_use(who, (await self.get(who, asset_id)).tenant_id)
        return await self._database.read(
            lambda connection: store.list_events(connection, asset_id, page, with_use=with_use)
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
        check_text(reason, "reason", _MAX_REASON_CHARS)
        check_asset_id(asset_id)
        now_ns = self._clock.now_ns()
        ticket = new_id("evt", self._clock, self._entropy)

        def work(connection: Connection) -> Asset:
            asset = check_owned(who, store.visible_asset(connection, who, asset_id), asset_id)
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
            garbage_store.doom_if_orphaned(connection, asset.stored_as, now_ns)
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
        problem = await self._files.kept.problem(asset.stored_as, asset.size_bytes)
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
    ) -> Collection:
        """One pass of garbage collection over all there is: what was done, or would be, and why."""
        if unused_seconds and unused_seconds < MIN_UNUSED_SECONDS:
            raise InvalidRequest(f"unused_seconds is 0 or at least {MIN_UNUSED_SECONDS}.")
        rule = Rule(
            now_ns=self._clock.now_ns(),
            ttl_seconds=unused_seconds or self._settings.asset_ttl_seconds,
            failed_ttl_seconds=self._settings.failed_asset_ttl_seconds,
            needed=await self._database.read(store.needed_by_platform),
        )
        done, after = Collection(), ""
        while True:
            found = await self._database.read(
                lambda connection, after=after: store.after_id(connection, after, _BATCH)
            )
            verdicts = [judge(asset, rule) for asset in found]
            taken = [verdict.asset_id for verdict in verdicts if verdict.collected]
            if taken and not dry_run:
                verdicts = await self._take(taken, verdicts, rule, actor)
            done = done.plus(verdicts)
            if len(found) < _BATCH:
                break
            after = found[-1].asset_id
        if not dry_run:
            await self.remove_doomed()
        return done

    async def _take(
        self, asset_ids: Sequence[str], verdicts: list[Verdict], rule: Rule, actor: str
    ) -> list[Verdict]:
        """Delete what was judged to be garbage, if it still is; the verdicts that came of it."""

        def work(connection: Connection) -> Mapping[str, Verdict]:
            # Judged again in the transaction that deletes: a lease may have come meanwhile.
            now_needed = replace(rule, needed=store.needed_by_platform(connection))
            present = store.read_assets(connection, asset_ids)
            again = {asset.asset_id: judge(asset, now_needed) for asset in present.values()}
            gone = [present[one.asset_id] for one in again.values() if one.collected]
            orphaned = garbage_store.delete_assets(
                connection,
                gone,
                reasons={one.asset_id: one.reason for one in again.values()},
                actor=actor,
                now_ns=rule.now_ns,
            )
            for asset in gone:
                if asset.stored_as not in orphaned:
                    again[asset.asset_id] = replace(again[asset.asset_id], freed_bytes=0)
            return again

        again = await self._database.write(work)
        return [again.get(verdict.asset_id, verdict) for verdict in verdicts]

    async def remove_doomed(self) -> int:
        """Remove bytes that nothing stands for any more; answers how many."""
        removed, after, now_ns = 0, "", self._clock.now_ns()
        while True:
            listed = await self._database.read(
                lambda connection, after=after: garbage_store.doomed(
                    connection, after, _TOGETHER, now_ns
                )
            )
            outcomes = await asyncio.gather(*map(self._remove, listed), return_exceptions=True)
            for outcome in outcomes:
                if isinstance(outcome, BaseException):
                    raise outcome
                removed += outcome
            if len(listed) < _TOGETHER:
                return removed
            after = listed[-1]

    async def _remove(self, name: str) -> bool:
        # Nobody can begin to use it meanwhile, in no process: see `tables`.
        in_use = await self._database.read(
            lambda connection: garbage_store.in_use(connection, name)
        )
        if not in_use:
            await self._files.kept.remove(name)
        await self._database.write(lambda connection: garbage_store.undoom(connection, name))
        return not in_use

    async def sweep(self) -> Mapping[str, int]:
        """Forget what is old: ended leases, idempotency keys, tombstones, changes by leases."""
        now_ns = self._clock.now_ns()
        before_ns = now_ns - self._settings.asset_history_seconds * NS_PER_SECOND
        forgetters: Mapping[str, Callable[[Connection], int]] = {
            "leases": lambda it: lease_store.forget_leases(it, now_ns - NS_PER_DAY, _BATCH),
            "keys": lambda it: lease_store.forget_keys(it, now_ns),
            "events": lambda it: garbage_store.forget_events(it, before_ns, _BATCH),
            "tombstones": lambda it: garbage_store.forget_tombstones(it, before_ns, _BATCH),
        }
        swept: dict[str, int] = {}
        for name, forget in forgetters.items():
            swept[name] = count = await self._database.write(forget)
            # A little at a time, so that nobody's write waits for long.
            while count == _BATCH:
                count = await self._database.write(forget)
                swept[name] += count
        return swept

    async def usage(self) -> Mapping[str, tuple[int, int]]:
        """State → number of assets and their bytes."""
        return await self._database.read(store.bytes_by_state)
