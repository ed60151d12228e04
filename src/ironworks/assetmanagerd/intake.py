"""How bytes become assets: registration of staged files, and uploads.

The record is written REGISTERED, with the name of its staged file, before the file is touched;
`resume` takes up what a crash left in that state. While one SHA-256 is being worked on, no second
registration of it begins here. That bytes are removed disturbs no registration, in this process or
another: what is removed has a name that is never used again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace

import structlog
from sqlalchemy import Connection

from ironworks.assetmanagerd import lease_store, store
from ironworks.assetmanagerd.bytes.appender import Appender
from ironworks.assetmanagerd.bytes.backend import AssetBytes, object_name
from ironworks.assetmanagerd.bytes.disk import Hashed, Hasher, read_head
from ironworks.assetmanagerd.bytes.formats import Found, check_claim, examine_file
from ironworks.assetmanagerd.bytes.locks import DigestLocks
from ironworks.assetmanagerd.decide import (
    Event,
    check_facts,
    check_file_name,
    media_type,
    next_state,
    owner_of,
)
from ironworks.assetmanagerd.types import Asset, AssetSettings, AssetState, Facts, Upload, Who
from ironworks.model.errors import (
    Aborted,
    DataLoss,
    FailedPrecondition,
    InvalidRequest,
    IronError,
    NotFound,
)
from ironworks.model.ids import new_id
from ironworks.model.units import NS_PER_SECOND
from ironworks.runtime.architecture import host_architecture
from ironworks.runtime.clock import Clock, Entropy
from ironworks.storage.sql import Database

_log = structlog.stdlib.get_logger()
_MAX_KEY_CHARS = 128


class Intake:
    """Takes bytes in."""

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
        self._streams: set[str] = set()

    async def register(
        self, who: Who, facts: Facts, staged_name: str, key: str, hashed: Hashed | None = None
    ) -> tuple[Asset, bool]:
        """The asset of a staged file, validated; and whether it existed.

        Args:
            who: Who registers.
            facts: What the bytes are claimed to be; no SHA-256: what is read is taken for it.
            staged_name: Their file in the staging area.
            key: Idempotency key; may be empty.
            hashed: What was found when the file was written; None: it is read.

        Raises:
            InvalidRequest: the facts are out of bounds, or the bytes are not what they say.
            NotFound: nothing is staged under the name.
            FailedPrecondition: the owner has archived these bytes.
        """
        check_facts(facts, self._settings.max_asset_bytes, named=bool(facts.sha256))
        check_file_name(staged_name, "staged_name")
        owner, asked = owner_of(who, facts), lease_store.facts_bytes(facts)
        if not facts.sha256:
            facts, hashed = await self._named(owner, facts, staged_name, key)
        async with self._locks.held(facts.sha256):
            asset, mine = await self._claim(who, owner, facts, staged_name, key, asked)
            if mine:
                return await self._validate(asset, facts, who.actor, hashed), False
            if await self._lacks_bytes(asset):
                return await self._mend(asset, facts, staged_name, who.actor, hashed), True
            await asyncio.to_thread(self._files.staging.discard, staged_name)
            return _usable(asset, facts), True

    async def _named(
        self, owner: str, facts: Facts, staged_name: str, key: str
    ) -> tuple[Facts, Hashed | None]:
        """Facts with the SHA-256 of a staged file, which an earlier call may have taken already."""
        earlier = await self._database.read(
            lambda it: lease_store.registered(it, owner, key, facts)
        )
        if earlier is not None:
            return replace(facts, sha256=earlier), None
        hashed = await asyncio.to_thread(self._files.staging.read, staged_name)
        return replace(facts, sha256=hashed.sha256), hashed

    async def _claim(
        self, who: Who, owner: str, facts: Facts, staged_name: str, key: str, asked: bytes
    ) -> tuple[Asset, bool]:
        """The record for the bytes, and whether this call is the one that has to validate them."""
        now_ns = self._clock.now_ns()
        asset_id = new_id("ast", self._clock, self._entropy)
        fresh = Asset(
            asset_id=asset_id,
            tenant_id=owner,
            kind=facts.kind,
            format=facts.format,
            state=AssetState.REGISTERED,
            size_bytes=facts.size_bytes,
            sha256=facts.sha256,
            media_type=facts.media_type,
            architecture=facts.architecture,
            source_digest=facts.source_digest,
            build_id=facts.build_id,
            image_config=facts.image_config,
            labels=facts.labels,
            staged_name=staged_name,
            staged_by=self._files.staging.identity,
            object_name=object_name(facts.sha256, asset_id),
            created_at_ns=now_ns,
            updated_at_ns=now_ns,
        )

        def work(connection: Connection) -> tuple[Asset, bool]:
            live = store.find_live(connection, owner, facts.sha256, facts.image_config)
            resource_id = live.asset_id if live else fresh.asset_id
            claimed = lease_store.claim(
                connection,
                scope=f"{owner}:register",
                key=key,
                request=asked,
                resource_id=resource_id,
                now_ns=now_ns,
            )
            known = store.read_asset(connection, claimed)
            if known is not None and known.state is not AssetState.DELETED:
                # REGISTERED: an earlier call died within the validation, which is done again.
                return _taking(known, staged_name), known.state is AssetState.REGISTERED
            if live is not None:
                return _taking(live, staged_name), live.state is AssetState.REGISTERED
            shared = store.live_object(connection, facts.sha256)
            named = replace(fresh, object_name=shared) if shared else fresh
            store.insert_asset(connection, named, who.actor)
            return named, True

        return await self._database.write(work)

    async def _validate(
        self, asset: Asset, facts: Facts, actor: str, hashed: Hashed | None = None
    ) -> Asset:
        """Read the bytes, put them where assets are, and say what became of the record."""
        try:
            found = await self._take(asset, facts, hashed)
        except InvalidRequest as error:
            await self._settle(asset, Event.REFUSED, actor, reason=error.message)
            await asyncio.to_thread(self._files.staging.discard, asset.staged_name)
            raise
        except NotFound:
            await self._settle(asset, Event.REFUSED, actor, reason="Its bytes never arrived.")
            raise
        validated = replace(
            asset,
            format=found.format,
            architecture=facts.architecture or found.architecture,
            media_type=media_type(facts, found.format.value),
        )
        return await self._settle(asset, Event.VALIDATED, actor, changed=validated)

    async def _take(self, asset: Asset, facts: Facts, hashed: Hashed | None) -> Found:
        """Validate the staged file and make it the kept one."""
        kept, name = self._files.kept, asset.staged_name
        try:
            found = hashed or await asyncio.to_thread(self._files.staging.read, name)
        except NotFound:
            # It may have been taken just before a crash.
            if await kept.problem(asset.stored_as, asset.size_bytes):
                raise
            async with kept.local(asset.stored_as, asset.size_bytes) as path:
                head = await asyncio.to_thread(read_head, path)
                return await asyncio.to_thread(examine_file, path, head, facts, host_architecture())
        if found.size_bytes != asset.size_bytes:
            raise InvalidRequest(f"There are {found.size_bytes} bytes, not {asset.size_bytes}.")
        if found.sha256 != asset.sha256:
            raise InvalidRequest("The bytes have another SHA-256 than was claimed.")
        path = self._files.staging.path / name
        format_found = await asyncio.to_thread(
            examine_file, path, found.head, facts, host_architecture()
        )
        await kept.keep(path, asset.stored_as, found.size_bytes)
        return format_found

    async def _lacks_bytes(self, asset: Asset) -> bool:
        if asset.state not in (AssetState.AVAILABLE, AssetState.IN_USE):
            return False
        if asset.damage:
            return True
        try:
            await self._files.kept.check(asset.stored_as, asset.size_bytes)
        except DataLoss:
            return True
        return False

    async def _mend(
        self, asset: Asset, facts: Facts, staged_name: str, actor: str, hashed: Hashed | None
    ) -> Asset:
        """Give an asset whose stored bytes are damaged the same bytes again."""
        staged = replace(asset, staged_name=staged_name)
        await self._take(staged, facts, hashed)
        now_ns = self._clock.now_ns()

        def work(connection: Connection) -> Asset:
            present = store.read_asset(connection, asset.asset_id) or asset
            after = replace(present, damage="")
            return store.change_asset(
                connection, present, after, reason="Mended.", actor=actor, now_ns=now_ns
            )

        return await self._database.write(work)

    async def _settle(
        self,
        asset: Asset,
        event: Event,
        actor: str,
        *,
        reason: str = "",
        changed: Asset | None = None,
    ) -> Asset:
        now_ns = self._clock.now_ns()

        def work(connection: Connection) -> Asset:
            after = replace(
                changed or asset, state=next_state(asset, event), reason=reason, staged_name=""
            )
            return store.change_asset(
                connection,
                asset,
                after,
                reason=reason or "The bytes are what was claimed.",
                actor=actor,
                now_ns=now_ns,
            )

        return await self._database.write(work)

    async def resume(self) -> int:
        """Take up registrations that a crash interrupted; answers how many.

        Those of another assetmanagerd are its own, unless it has let them lie for longer than an
        upload may.
        """
        forsaken_ns = self._clock.now_ns() - self._settings.upload_ttl_seconds * NS_PER_SECOND
        found = await self._database.read(
            lambda connection: store.in_state(connection, AssetState.REGISTERED, 1000)
        )
        ours = ("", self._files.staging.identity)
        waiting = [one for one in found if one.staged_by in ours or one.updated_at_ns < forsaken_ns]
        for asset in waiting:
            async with self._locks.held(asset.sha256):
                present = await self._database.read(
                    lambda connection, asset_id=asset.asset_id: store.read_asset(
                        connection, asset_id
                    )
                )
                if present is None or present.state is not AssetState.REGISTERED:
                    continue
                try:
                    await self._validate(present, _facts_of(present), "assetmanagerd")
                except IronError as error:
                    _log.warning("registration_failed", asset=asset.asset_id, error=str(error))
        return len(waiting)

    # --- uploads ----------------------------------------------------------------------------------

    async def upload(
        self,
        who: Who,
        facts: Facts,
        *,
        upload_id: str,
        key: str,
        offset_bytes: int,
        chunks: AsyncIterator[bytes],
    ) -> tuple[Asset, bool]:
        """Take a stream of bytes from `offset_bytes` on, then register them.

        Raises:
            FailedPrecondition: the upload does not stand at `offset_bytes`.
            InvalidRequest: the stream ends short or goes on too long, or as `register`.
            Aborted: another stream of the same upload is under way.
        """
        check_facts(facts, self._settings.max_asset_bytes)
        if not 1 <= len(key) <= _MAX_KEY_CHARS:
            raise InvalidRequest(f"idempotency_key must have 1 to {_MAX_KEY_CHARS} characters.")
        owner = owner_of(who, facts)
        upload = await self._begin(owner, facts, upload_id, key)
        if upload.asset_id:
            return await self._finished(upload), True
        if upload.upload_id in self._streams:
            raise Aborted("Another stream of this upload is under way.")
        self._streams.add(upload.upload_id)
        try:
            hashed = await self._receive(upload, offset_bytes, chunks)
            asset, existed = await self.register(
                who, facts, upload.staged_name, upload.upload_id, hashed
            )
        except InvalidRequest:
            await self._database.write(
                lambda connection: lease_store.delete_upload(connection, upload.upload_id)
            )
            await asyncio.to_thread(self._files.staging.discard, upload.staged_name)
            raise
        finally:
            self._streams.discard(upload.upload_id)
        await self._touch(upload.upload_id, asset.asset_id)
        return asset, existed

    async def get_upload(self, who: Who, upload_id: str, key: str) -> Upload:
        """How far an upload has come.

        Raises:
            NotFound: there is none that the caller may know of.
        """

        def work(connection: Connection) -> Upload | None:
            if upload_id:
                return lease_store.read_upload(connection, who, upload_id)
            return lease_store.find_upload(connection, who.tenant_id, key)

        upload = await self._database.read(work)
        if upload is None:
            raise NotFound("This upload is not known here.", hint="Start it again from 0.")
        return await self._with_offset(upload)

    async def _with_offset(self, upload: Upload) -> Upload:
        """How far an upload is: at its end if its owner has the bytes, however that came."""
        facts = upload.facts
        live = await self._database.read(
            lambda connection: store.find_live(
                connection, upload.tenant_id, facts.sha256, facts.image_config
            )
        )
        if live is None or live.state is AssetState.REGISTERED or live.damage:
            # What it had become may be deleted or damaged by now: then it begins anew.
            name = upload.staged_name
            size_bytes = await asyncio.to_thread(self._files.staging.size_bytes, name)
            return replace(upload, asset_id="", offset_bytes=size_bytes)
        if live.asset_id != upload.asset_id:
            await self._touch(upload.upload_id, live.asset_id)
        return replace(upload, asset_id=live.asset_id, offset_bytes=facts.size_bytes)

    async def _begin(self, owner: str, facts: Facts, upload_id: str, key: str) -> Upload:
        now_ns = self._clock.now_ns()
        fresh = Upload(
            upload_id=new_id("upl", self._clock, self._entropy),
            tenant_id=owner,
            facts=facts,
            idempotency_key=key,
            expires_at_ns=now_ns + self._settings.upload_ttl_seconds * NS_PER_SECOND,
        )

        def work(connection: Connection) -> Upload:
            known = lease_store.find_upload(connection, owner, key)
            if known is None and upload_id:
                raise NotFound("This upload is not known here.", hint="Start it again from 0.")
            if known is None:
                lease_store.insert_upload(connection, fresh)
                return fresh
            if known.facts != facts or upload_id not in ("", known.upload_id):
                raise InvalidRequest("This idempotency_key was used for another upload.")
            return known

        upload = await self._database.write(work)
        # A registration that was taken up after a crash may be moving the very bytes just now.
        async with self._locks.held(facts.sha256):
            return await self._with_offset(upload)

    async def _receive(
        self, upload: Upload, offset_bytes: int, chunks: AsyncIterator[bytes]
    ) -> Hashed:
        """Write a stream to the staging area; answers what all of the upload is."""
        if offset_bytes != upload.offset_bytes:
            raise FailedPrecondition(
                f"This upload stands at {upload.offset_bytes} bytes, not at {offset_bytes}.",
                hint="Ask GetUpload, and begin there.",
            )
        staging, name, size_bytes = self._files.staging, upload.staged_name, upload.facts.size_bytes
        await asyncio.to_thread(staging.check_room, size_bytes - offset_bytes)
        hasher = Hasher()
        if offset_bytes:
            await asyncio.to_thread(staging.read, name, hasher)
        try:
            async with Appender(staging, name, hasher) as appender:
                async for chunk in chunks:
                    if appender.offset_bytes + len(chunk) > size_bytes:
                        raise InvalidRequest(f"The stream is longer than {size_bytes} bytes.")
                    await appender.take(chunk)
        finally:
            # A stream that breaks leaves what has come, so that the next one can go on.
            await asyncio.to_thread(staging.sync, name)
            # It only lives longer by that; a disk that is full is told by what was to be written.
            with suppress(IronError):
                await self._touch(upload.upload_id, "")
        hashed = hasher.result()
        if hashed.size_bytes != size_bytes:
            raise FailedPrecondition(
                f"The stream ended at {hashed.size_bytes} of {size_bytes} bytes.",
                hint="Ask GetUpload, and send the rest.",
            )
        return hashed

    async def _touch(self, upload_id: str, asset_id: str) -> None:
        expires_at_ns = self._clock.now_ns() + self._settings.upload_ttl_seconds * NS_PER_SECOND
        await self._database.write(
            lambda connection: lease_store.touch_upload(
                connection, upload_id, expires_at_ns=expires_at_ns, asset_id=asset_id
            )
        )

    async def _finished(self, upload: Upload) -> Asset:
        asset = await self._database.read(
            lambda connection: store.read_asset(connection, upload.asset_id)
        )
        if asset is None:
            raise NotFound("The asset of this upload is not known here any more.")
        return _usable(asset, upload.facts)

    async def forget_uploads(self) -> int:
        """Remove uploads that stood still for too long; answers how many."""
        now_ns = self._clock.now_ns()
        old = await self._database.read(
            lambda connection: lease_store.expired_uploads(connection, now_ns)
        )
        for upload in old:
            if upload.upload_id in self._streams:
                continue
            await asyncio.to_thread(self._files.staging.discard, upload.staged_name)
            await self._database.write(
                lambda connection, upload_id=upload.upload_id: lease_store.delete_upload(
                    connection, upload_id
                )
            )
        return len(old)


def _taking(asset: Asset, staged_name: str) -> Asset:
    """A registration under way takes the newest file that was staged for it."""
    return replace(asset, staged_name=staged_name) if asset.staged_name else asset


def _usable(asset: Asset, facts: Facts) -> Asset:
    """An asset that was registered before, if it can be used.

    Raises:
        FailedPrecondition: it is archived.
        InvalidRequest: it failed, or is something else than `facts` claim.
    """
    if asset.state is AssetState.ARCHIVED:
        raise FailedPrecondition(
            f"These bytes are archived as {asset.asset_id}.", hint="Restore that asset."
        )
    if asset.state is AssetState.FAILED:
        raise InvalidRequest(asset.reason)
    if asset.format is not None:
        check_claim(facts, Found(format=asset.format, architecture=asset.architecture))
    return asset


def _facts_of(asset: Asset) -> Facts:
    return Facts(
        kind=asset.kind,
        sha256=asset.sha256,
        size_bytes=asset.size_bytes,
        format=asset.format,
        media_type=asset.media_type,
        architecture=asset.architecture,
    )
