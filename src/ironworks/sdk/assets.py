"""Assets: kernels, initrds, root file systems, snapshots."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from pathlib import Path

from protobuf import Oneof

from ironworks.gen.ironworks.assetmanagerd.v1 import asset_pb
from ironworks.gen.ironworks.assetmanagerd.v1.asset_connect import AssetServiceClient
from ironworks.gen.ironworks.common.v1 import common_pb
from ironworks.model.errors import Internal, InvalidRequest, IronError, NotFound, Unavailable
from ironworks.model.units import MIB
from ironworks.sdk.jobs import MAX_BROKEN_STREAMS
from ironworks.sdk.resource import DEFAULT_LIMIT, Page, Resource, present, walk

CHUNK_BYTES = MIB
VERIFY_TIMEOUT_SECONDS = 600.0
_ATTEMPTS = 5
"""Attempts to send on that bring an upload no further, until it is given up."""
_WAIT_SECONDS = 1.0
SILENCE_SECONDS = 60.0
"""A watch tells every 15 s how far it is: one that is silent for so long has broken."""
_MAX_WAIT_SECONDS = 5.0


def _read(path: Path, offset_bytes: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset_bytes)
        return file.read(CHUNK_BYTES)


def _hash(path: Path) -> tuple[str, int]:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
            return digest.hexdigest(), file.tell()
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}.") from None


class Assets(Resource):
    """Assets of the caller's tenant and of the platform."""

    async def get(self, asset_id: str) -> asset_pb.Asset:
        """One asset."""
        request = asset_pb.GetAssetRequest(asset_id=asset_id)
        answer = await self._connection.call(
            AssetServiceClient, AssetServiceClient.get_asset, request
        )
        return present(answer.asset)

    async def list(
        self,
        *,
        chosen: asset_pb.AssetFilter | None = None,
        limit: int = DEFAULT_LIMIT,
        page_token: str = "",
    ) -> Page[asset_pb.Asset]:
        """Assets, newest first; without a filter all but deleted ones."""

        async def ask(page: common_pb.PageRequest) -> asset_pb.ListAssetsResponse:
            request = asset_pb.ListAssetsRequest(page=page, filter=chosen)
            return await self._connection.call(
                AssetServiceClient, AssetServiceClient.list_assets, request
            )

        return await walk(ask, lambda a: a.assets, limit=limit, page_token=page_token)

    async def query(self, chosen: asset_pb.AssetFilter) -> asset_pb.QueryAssetResponse:
        """The newest usable asset that satisfies a filter, and how it was chosen."""
        request = asset_pb.QueryAssetRequest(filter=chosen)
        return await self._connection.call(
            AssetServiceClient, AssetServiceClient.query_asset, request
        )

    async def history(
        self, asset_id: str, *, limit: int = DEFAULT_LIMIT, page_token: str = ""
    ) -> Page[asset_pb.AssetEvent]:
        """What has happened to an asset, oldest first."""

        async def ask(page: common_pb.PageRequest) -> asset_pb.ListAssetEventsResponse:
            request = asset_pb.ListAssetEventsRequest(asset_id=asset_id, page=page)
            return await self._connection.call(
                AssetServiceClient, AssetServiceClient.list_asset_events, request
            )

        return await walk(ask, lambda a: a.events, limit=limit, page_token=page_token)

    async def watch(
        self, *, chosen: asset_pb.AssetFilter | None = None, after: str = ""
    ) -> AsyncGenerator[asset_pb.WatchAssetsResponse]:
        """Changes of state as they happen; without an end.

        A message without an event only says how far the watch has come. A stream that breaks, or
        is silent for too long, is taken up where it was left: no change is lost or told twice.

        Args:
            chosen: Only these; `states` applies to the state after the change.
            after: `position` of an earlier watch, to go on after it; empty: from now on.

        Raises:
            FailedPrecondition: the history no longer reaches back so far: list, then watch anew.
            Unavailable: the platform was away for longer than a restart takes.
        """
        broken, position = 0, after
        while True:
            failure: Exception | None = None
            try:
                async with aclosing(self._changes(chosen, position)) as messages:
                    is_first = True
                    async for message in messages:
                        if not is_first or message.event is not None:
                            broken = 0
                        is_first, position = False, message.position
                        yield message
            except IronError as error:
                # A service that is killed breaks the stream in its midst: that is no answer of its.
                if not error.retryable and not isinstance(error, Internal):
                    raise
                failure = error
            if broken >= MAX_BROKEN_STREAMS:
                raise Unavailable(
                    f"Changes of assets cannot be followed: {failure or 'every stream ends.'}",
                    hint=f"Watch again, after {position}." if position else "Watch again.",
                )
            broken += 1
            await self._connection.clock.sleep(min(0.1 * 2**broken, _MAX_WAIT_SECONDS))

    async def _changes(
        self, chosen: asset_pb.AssetFilter | None, after: str
    ) -> AsyncGenerator[asset_pb.WatchAssetsResponse]:
        """One stream of them; ends when nothing comes for so long that it must have broken."""
        request = asset_pb.WatchAssetsRequest(filter=chosen, after=after)
        async with aclosing(
            self._connection.stream(AssetServiceClient, AssetServiceClient.watch_assets, request)
        ) as messages:
            while True:
                try:
                    async with asyncio.timeout(SILENCE_SECONDS):
                        message = await anext(messages, None)
                except TimeoutError:
                    return
                if message is None:
                    return
                yield message

    async def archive(self, asset_id: str, *, reason: str = "") -> asset_pb.Asset:
        """Put an asset away: no new leases, and it is not collected."""
        request = asset_pb.ArchiveAssetRequest(asset_id=asset_id, reason=reason)
        answer = await self._connection.call(
            AssetServiceClient, AssetServiceClient.archive_asset, request
        )
        return present(answer.asset)

    async def restore(self, asset_id: str) -> asset_pb.Asset:
        """Make an archived asset usable again."""
        request = asset_pb.RestoreAssetRequest(asset_id=asset_id)
        answer = await self._connection.call(
            AssetServiceClient, AssetServiceClient.restore_asset, request
        )
        return present(answer.asset)

    async def delete(self, asset_id: str, *, reason: str = "") -> asset_pb.Asset:
        """Delete an archived or failed asset."""
        request = asset_pb.DeleteAssetRequest(asset_id=asset_id, reason=reason)
        answer = await self._connection.call(
            AssetServiceClient, AssetServiceClient.delete_asset, request
        )
        return present(answer.asset)

    async def collect_garbage(
        self, *, dry_run: bool = False, unused_seconds: int = 0
    ) -> asset_pb.CollectGarbageResponse:
        """Delete what nobody has used for its TTL, or say what would be. For operators."""
        request = asset_pb.CollectGarbageRequest(dry_run=dry_run, unused_seconds=unused_seconds)
        return await self._connection.call(
            AssetServiceClient, AssetServiceClient.collect_garbage, request, VERIFY_TIMEOUT_SECONDS
        )

    async def repair(self, *, dry_run: bool = False) -> asset_pb.RepairAssetsResponse:
        """Compare registry, leases and bytes, and mend them. For operators."""
        request = asset_pb.RepairAssetsRequest(dry_run=dry_run)
        return await self._connection.call(
            AssetServiceClient, AssetServiceClient.repair_assets, request, VERIFY_TIMEOUT_SECONDS
        )

    async def leases(
        self,
        *,
        asset_id: str = "",
        state: asset_pb.LeaseState = asset_pb.LeaseState.UNSPECIFIED,
        limit: int = DEFAULT_LIMIT,
        page_token: str = "",
    ) -> Page[asset_pb.Lease]:
        """Leases, newest first. For operators."""

        async def ask(page: common_pb.PageRequest) -> asset_pb.ListLeasesResponse:
            request = asset_pb.ListLeasesRequest(asset_id=asset_id, state=state, page=page)
            return await self._connection.call(
                AssetServiceClient, AssetServiceClient.list_leases, request
            )

        return await walk(ask, lambda a: a.leases, limit=limit, page_token=page_token)

    async def verify(self, asset_id: str) -> asset_pb.VerifyAssetResponse:
        """Let the platform read all bytes of an asset again, and compare. For operators."""
        request = asset_pb.VerifyAssetRequest(asset_id=asset_id)
        return await self._connection.call(
            AssetServiceClient, AssetServiceClient.verify_asset, request, VERIFY_TIMEOUT_SECONDS
        )

    async def upload(
        self,
        path: Path,
        kind: asset_pb.AssetKind,
        *,
        architecture: str = "",
        source_digest: str = "",
        labels: Mapping[str, str] | None = None,
        platform: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> asset_pb.UploadAssetResponse:
        """Make a file an asset. What has arrived stays: a broken upload goes on where it stopped.

        Args:
            path: The file; it must not change meanwhile.
            kind: What it is for.
            architecture: As OCI names it; empty: found out where the bytes tell.
            source_digest: What it was made from.
            labels: For people and filters.
            platform: For every tenant's use. For operators.
            progress: Is told bytes that have been sent, and bytes in all.

        Raises:
            InvalidRequest: the file cannot be read, or is not what it should be.
        """
        sha256, size_bytes = await asyncio.to_thread(_hash, path)
        facts = asset_pb.AssetFacts(
            kind=kind,
            sha256=sha256,
            size_bytes=size_bytes,
            architecture=architecture,
            source_digest=source_digest,
            labels=dict(sorted((labels or {}).items())),
            platform=platform,
        )
        # The same file with the same facts goes on with the same upload, also after a restart.
        said = (sha256, kind, architecture, source_digest, sorted(facts.labels.items()), platform)
        key = hashlib.sha256(repr(said).encode()).hexdigest()
        attempts, reached = 0, -1
        while True:
            offset_bytes = await self._uploaded(key)
            attempts = 1 if offset_bytes > reached else attempts + 1
            reached = max(reached, offset_bytes)
            try:
                return await self._send(path, facts, key, offset_bytes, progress)
            except IronError as error:
                if not error.retryable or attempts >= _ATTEMPTS:
                    raise
            await self._connection.clock.sleep(_WAIT_SECONDS)

    async def _uploaded(self, key: str) -> int:
        request = asset_pb.GetUploadRequest(idempotency_key=key)
        try:
            answer = await self._connection.call(
                AssetServiceClient, AssetServiceClient.get_upload, request
            )
        except NotFound:
            return 0
        return answer.offset_bytes

    async def _send(
        self,
        path: Path,
        facts: asset_pb.AssetFacts,
        key: str,
        offset_bytes: int,
        progress: Callable[[int, int], None] | None,
    ) -> asset_pb.UploadAssetResponse:
        async def messages() -> AsyncIterator[asset_pb.UploadAssetRequest]:
            start = asset_pb.UploadStart(
                facts=facts, idempotency_key=key, offset_bytes=offset_bytes
            )
            yield asset_pb.UploadAssetRequest(part=Oneof("start", start))
            at = offset_bytes
            while at < facts.size_bytes:
                chunk = await asyncio.to_thread(_read, path, at)
                if not chunk:
                    raise InvalidRequest(f"{path} has become shorter meanwhile.")
                yield asset_pb.UploadAssetRequest(part=Oneof("chunk", chunk))
                at += len(chunk)
                if progress is not None:
                    progress(at, facts.size_bytes)

        return await self._connection.send(
            AssetServiceClient, AssetServiceClient.upload_asset, messages
        )
