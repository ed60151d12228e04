"""Leases: taken before bytes are touched, renewed, given back, expired; and what they let place."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

import structlog
from sqlalchemy import Connection

from ironworks.assetmanagerd import lease_store, store
from ironworks.assetmanagerd.bytes.backend import AssetBytes
from ironworks.assetmanagerd.bytes.place import open_below, place, split_below
from ironworks.assetmanagerd.decide import (
    acquired,
    check_file_name,
    check_lease_id,
    check_lease_request,
    lease_seconds,
    let_go,
    renewed,
    unknown_asset,
    unknown_lease,
)
from ironworks.assetmanagerd.types import (
    MAX_LEASED_ASSETS,
    MAX_RENEWED_LEASES,
    Asset,
    AssetSettings,
    Lease,
    LeaseFilter,
    LeaseState,
    Placed,
    Who,
)
from ironworks.model.errors import FailedPrecondition, InvalidRequest, NotFound
from ironworks.model.ids import new_id
from ironworks.model.pages import PageSpec
from ironworks.model.units import NS_PER_SECOND
from ironworks.runtime.clock import Clock, Entropy
from ironworks.storage.sql import Database

_BATCH = 500
_CLOCK_SLACK_NS = NS_PER_SECOND
_HELD_UP_NS = 5 * NS_PER_SECOND
_log = structlog.stdlib.get_logger()


class Leasing:
    """Use cases over leases."""

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
        self._seen_ns = (clock.now_ns(), clock.monotonic_ns())
        self._was_held_up = False

    async def acquire(
        self,
        who: Who,
        asset_ids: Sequence[str],
        *,
        holder: str,
        purpose: str,
        ttl_seconds: int,
        key: str,
    ) -> tuple[Lease, list[Asset]]:
        """A lease on all of the assets, and the assets as they are then.

        Raises:
            NotFound: one of them is none that the caller may know of.
            FailedPrecondition: one of them cannot be leased.
        """
        wanted = tuple(asset_ids)
        check_lease_request(wanted, holder, purpose)
        seconds = lease_seconds(ttl_seconds, self._settings.lease_ttl_seconds)
        now_ns = self._clock.now_ns()
        fresh = Lease(
            lease_id=new_id("lse", self._clock, self._entropy),
            tenant_id=who.tenant_id,
            asset_ids=wanted,
            owner=who.actor,
            holder=holder,
            purpose=purpose,
            state=LeaseState.ACTIVE,
            created_at_ns=now_ns,
            expires_at_ns=now_ns + seconds * NS_PER_SECOND,
            ttl_ns=seconds * NS_PER_SECOND,
        )

        def work(connection: Connection) -> tuple[Lease, list[Asset]]:
            claimed = lease_store.claim(
                connection,
                scope=f"{who.tenant_id}:{who.actor}:acquire",
                key=key,
                request="\n".join((*wanted, holder, purpose, str(seconds))).encode(),
                resource_id=fresh.lease_id,
                now_ns=now_ns,
            )
            if claimed != fresh.lease_id:
                known = lease_store.read_lease(connection, claimed)
                if known is not None:
                    return known, _in_order(connection, known.asset_ids)
            changes = [(one, acquired(one, now_ns)) for one in _leasable(connection, who, wanted)]
            lease_store.insert_lease(connection, fresh)
            store.use_assets(connection, changes, reason=f"Leased for {holder}.", actor=who.actor)
            return fresh, [after for _, after in changes]

        return await self._database.write(work)

    async def renew(
        self, who: Who, lease_ids: Sequence[str], ttl_seconds: int
    ) -> tuple[list[Lease], list[str]]:
        """Leases that are kept, and ids of those that are lost."""
        if not 1 <= len(lease_ids) <= MAX_RENEWED_LEASES:
            raise InvalidRequest(f"1 to {MAX_RENEWED_LEASES} leases are renewed at once.")
        seconds = lease_seconds(ttl_seconds, self._settings.lease_ttl_seconds)
        now_ns = self._clock.now_ns()

        def work(connection: Connection) -> list[Lease]:
            kept = [
                renewed(lease, now_ns, seconds)
                for lease in lease_store.read_leases(connection, lease_ids)
                if _holds(who, lease) and lease.state is LeaseState.ACTIVE
            ]
            lease_store.renew_leases(connection, kept)
            return kept

        kept = await self._database.write(work)
        lost = set(lease_ids) - {lease.lease_id for lease in kept}
        return kept, sorted(lost)

    async def release(self, who: Who, lease_id: str) -> Lease:
        """A lease, ended.

        Raises:
            NotFound: it is not known, or another service's.
        """
        now_ns = self._clock.now_ns()

        def work(connection: Connection) -> Lease:
            lease = _own_lease(connection, who, lease_id)
            if lease.state is not LeaseState.ACTIVE:
                return lease
            return self._end(connection, lease, LeaseState.RELEASED, who.actor, now_ns)

        return await self._database.write(work)

    def _end(
        self, connection: Connection, lease: Lease, state: LeaseState, actor: str, now_ns: int
    ) -> Lease:
        lease_store.end_lease(connection, lease.lease_id, state, now_ns)
        store.use_assets(
            connection,
            [
                (asset, let_go(asset, now_ns))
                for asset in store.read_assets(connection, lease.asset_ids).values()
            ],
            reason=f"The last lease, of {lease.holder}, was {state.value}.",
            actor=actor,
        )
        return replace(lease, state=state, ended_at_ns=now_ns)

    async def leases(self, who: Who, query: LeaseFilter, page: PageSpec) -> list[Lease]:
        """A page of leases, and one more if there is one more."""
        owner = who.actor if who.is_service else ""
        return await self._database.read(
            lambda connection: lease_store.list_leases(
                connection, replace(query, owner=owner), page
            )
        )

    async def expire_leases(self) -> int:
        """End leases whose time is over; answers how many.

        None is, right after the database was away: nobody could renew.
        """
        began_ns = self._clock.monotonic_ns()
        was_held_up, self._was_held_up = self._was_held_up, True
        await self._follow_clock()
        if was_held_up:
            await self.grace()
        now_ns = self._clock.now_ns()

        def work(connection: Connection) -> int:
            over = lease_store.expired_leases(connection, now_ns, _BATCH)
            for lease in over:
                self._end(connection, lease, LeaseState.EXPIRED, "expiry", now_ns)
            return len(over)

        ended = count = await self._database.write(work)
        while count == _BATCH:
            count = await self._database.write(work)
            ended += count
        self._was_held_up = self._clock.monotonic_ns() - began_ns > _HELD_UP_NS
        return ended

    async def _follow_clock(self) -> None:
        """Move the ends of leases by as much as somebody has set the clock: none may end early."""
        wall_ns, monotonic_ns = self._clock.now_ns(), self._clock.monotonic_ns()
        jump_ns = (wall_ns - self._seen_ns[0]) - (monotonic_ns - self._seen_ns[1])
        self._seen_ns = (wall_ns, monotonic_ns)
        if jump_ns > _CLOCK_SLACK_NS:
            count = await self._database.write(
                lambda connection: lease_store.postpone(connection, jump_ns)
            )
            _log.warning("clock_was_set", forward_ns=jump_ns, leases_postponed=count)

    async def grace(self) -> int:
        """Give owners time to renew, who could not while this or the database was away."""
        now_ns = self._clock.now_ns()
        return await self._database.write(lambda connection: lease_store.grace(connection, now_ns))

    # --- placing ----------------------------------------------------------------------------------

    async def prepare(
        self, who: Who, lease_id: str, directory: str, files: Sequence[tuple[str, str]]
    ) -> list[Placed]:
        """Place leased assets, as (asset id, file name), in a directory.

        Raises:
            NotFound: the lease is not the caller's, or does not hold the asset.
            FailedPrecondition: the lease has ended, or a file of that name is there.
            PermissionDenied: the directory is below none of the roots.
            DataLoss: stored bytes are gone.
        """
        if not 1 <= len(files) <= MAX_LEASED_ASSETS:
            raise InvalidRequest(f"1 to {MAX_LEASED_ASSETS} files are placed at once.")
        for _, name in files:
            check_file_name(name, "file_name")
        root, parts = split_below(directory, self._settings.roots())
        assets = await self._database.read(
            lambda connection: self._held(connection, who, lease_id, [file[0] for file in files])
        )

        fd = await asyncio.to_thread(open_below, root, parts)
        try:
            return [await self._place(assets[asset_id], name, fd) for asset_id, name in files]
        finally:
            os.close(fd)

    def _held(
        self, connection: Connection, who: Who, lease_id: str, asset_ids: Sequence[str]
    ) -> Mapping[str, Asset]:
        lease = _own_lease(connection, who, lease_id)
        if lease.state is not LeaseState.ACTIVE:
            raise FailedPrecondition(
                f"Lease {lease_id} was {lease.state.value}.", hint="Acquire a new one."
            )
        for asset_id in asset_ids:
            if asset_id not in lease.asset_ids:
                raise NotFound(f"Lease {lease_id} does not hold asset {asset_id[:64]!r}.")
        return store.read_assets(connection, asset_ids)

    async def _place(self, asset: Asset, name: str, directory_fd: int) -> Placed:
        async with self._files.kept.local(asset.stored_as, asset.size_bytes) as path:
            method = await asyncio.to_thread(
                place,
                path,
                sha256=asset.sha256,
                size_bytes=asset.size_bytes,
                directory_fd=directory_fd,
                file_name=name,
            )
        return Placed(
            asset_id=asset.asset_id, file_name=name, method=method, size_bytes=asset.size_bytes
        )


def _in_order(connection: Connection, asset_ids: Sequence[str]) -> list[Asset]:
    known = store.read_assets(connection, asset_ids)
    return [known[asset_id] for asset_id in asset_ids if asset_id in known]


def _holds(who: Who, lease: Lease) -> bool:
    return lease.owner == who.actor and who.tenant_id in ("", lease.tenant_id)


def _own_lease(connection: Connection, who: Who, lease_id: str) -> Lease:
    found = lease_store.read_lease(connection, check_lease_id(lease_id))
    if found is None or not _holds(who, found):
        raise unknown_lease(lease_id)
    return found


def _leasable(connection: Connection, who: Who, asset_ids: Sequence[str]) -> list[Asset]:
    known = store.visible_assets(connection, who, asset_ids)
    for asset_id in asset_ids:
        if asset_id not in known:
            raise unknown_asset(asset_id)
    return [known[asset_id] for asset_id in asset_ids]
