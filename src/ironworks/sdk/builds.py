"""Builds: image → root file system."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path

from protobuf import Oneof

from ironworks.gen.ironworks.builderd.v1 import build_pb
from ironworks.gen.ironworks.builderd.v1.build_connect import BuildServiceClient
from ironworks.gen.ironworks.common.v1 import common_pb
from ironworks.model.errors import IronError, NotFound
from ironworks.sdk.archives import Archive, open_archive
from ironworks.sdk.resource import DEFAULT_LIMIT, Page, Resource, present, walk

_ATTEMPTS = 5
"""Attempts to send on that bring an upload no further, until it is given up."""
_WAIT_SECONDS = 1.0


class Builds(Resource):
    """Builds of the caller's tenant."""

    async def create(
        self,
        image: str,
        *,
        rootfs_format: build_pb.RootfsFormat = build_pb.RootfsFormat.UNSPECIFIED,
        labels: Mapping[str, str] | None = None,
        priority: build_pb.BuildPriority = build_pb.BuildPriority.UNSPECIFIED,
        timeout_seconds: int = 0,
        force: bool = False,
        idempotency_key: str = "",
    ) -> build_pb.Build:
        """Ask for a build; the same image is built once, however often it is asked for.

        Args:
            image: Registry reference, layout or archive on the platform's machine, or what `upload`
                answered.
            rootfs_format: What to write; default: squashfs.
            labels: For people and filters.
            priority: Order among the tenant's builds.
            timeout_seconds: After which it fails; 0: the platform's limit.
            force: Build even if the tenant has built this digest before.
            idempotency_key: Made if empty.
        """
        request = build_pb.CreateBuildRequest(
            image=image,
            format=rootfs_format,
            labels=dict(labels or {}),
            priority=priority,
            timeout_seconds=timeout_seconds,
            force=force,
            idempotency_key=idempotency_key,
        )
        answer = await self._connection.call(
            BuildServiceClient, BuildServiceClient.create_build, request
        )
        return present(answer.build)

    async def upload(
        self, path: Path, *, progress: Callable[[int, int], None] | None = None
    ) -> str:
        """Send an image on this machine; answers its reference, for `create` and for deployments.

        What has arrived stays: a broken upload goes on where it stopped, and the same image is sent
        once.

        Args:
            path: An OCI or docker archive, or the directory of an OCI layout.
            progress: Is told bytes that have been sent, and bytes in all.

        Raises:
            InvalidRequest: it cannot be read, or is no image.
            ResourceExhausted: the tenant's uploads take too much room already.
        """
        archive = await asyncio.to_thread(open_archive, path)
        sha256 = await asyncio.to_thread(archive.sha256)
        attempts, reached = 0, -1
        while True:
            offset_bytes = await self._uploaded(sha256)
            attempts = 1 if offset_bytes > reached else attempts + 1
            reached = max(reached, offset_bytes)
            try:
                return await self._send(archive, sha256, offset_bytes, progress)
            except IronError as error:
                if not error.retryable or attempts >= _ATTEMPTS:
                    raise
            await self._connection.clock.sleep(_WAIT_SECONDS)

    async def _uploaded(self, key: str) -> int:
        request = build_pb.GetImageUploadRequest(idempotency_key=key)
        try:
            answer = await self._connection.call(
                BuildServiceClient, BuildServiceClient.get_image_upload, request
            )
        except NotFound:
            return 0
        return answer.offset_bytes

    async def _send(
        self,
        archive: Archive,
        sha256: str,
        offset_bytes: int,
        progress: Callable[[int, int], None] | None,
    ) -> str:
        async def messages() -> AsyncIterator[build_pb.UploadImageRequest]:
            start = build_pb.UploadImageStart(
                sha256=sha256,
                size_bytes=archive.size_bytes,
                offset_bytes=offset_bytes,
                idempotency_key=sha256,
            )
            yield build_pb.UploadImageRequest(part=Oneof("start", start))
            at, chunks = offset_bytes, archive.chunks(offset_bytes)
            while (chunk := await asyncio.to_thread(next, chunks, b"")) != b"":
                yield build_pb.UploadImageRequest(part=Oneof("chunk", chunk))
                at += len(chunk)
                if progress is not None:
                    progress(at, archive.size_bytes)

        answer = await self._connection.send(
            BuildServiceClient, BuildServiceClient.upload_image, messages
        )
        return answer.image

    async def get(self, build_id: str) -> build_pb.Build:
        """One build, with what it made."""
        request = build_pb.GetBuildRequest(build_id=build_id)
        answer = await self._connection.call(
            BuildServiceClient, BuildServiceClient.get_build, request
        )
        return present(answer.build)

    async def list(
        self,
        *,
        states: Sequence[build_pb.BuildState] = (),
        image_digest: str = "",
        limit: int = DEFAULT_LIMIT,
        page_token: str = "",
    ) -> Page[build_pb.Build]:
        """Builds, newest first."""

        async def ask(page: common_pb.PageRequest) -> build_pb.ListBuildsResponse:
            request = build_pb.ListBuildsRequest(
                page=page, states=[*states], image_digest=image_digest
            )
            return await self._connection.call(
                BuildServiceClient, BuildServiceClient.list_builds, request
            )

        return await walk(ask, lambda a: a.builds, limit=limit, page_token=page_token)

    async def watch(self, build_id: str) -> AsyncGenerator[build_pb.Build]:
        """The build as it is, then after every change, until it has ended."""
        request = build_pb.WatchBuildRequest(build_id=build_id)
        async with aclosing(
            self._connection.stream(BuildServiceClient, BuildServiceClient.watch_build, request)
        ) as messages:
            async for message in messages:
                yield present(message.build)

    async def cancel(self, build_id: str, *, idempotency_key: str = "") -> build_pb.Build:
        """End a build that has not ended."""
        request = build_pb.CancelBuildRequest(build_id=build_id, idempotency_key=idempotency_key)
        answer = await self._connection.call(
            BuildServiceClient, BuildServiceClient.cancel_build, request
        )
        return present(answer.build)

    async def delete(self, build_id: str, *, idempotency_key: str = "") -> None:
        """Delete the record and log of a build that has ended; its asset stays."""
        request = build_pb.DeleteBuildRequest(build_id=build_id, idempotency_key=idempotency_key)
        await self._connection.call(BuildServiceClient, BuildServiceClient.delete_build, request)

    async def stats(self, *, window_seconds: int = 0) -> build_pb.GetBuildStatsResponse:
        """Figures about builds of the last `window_seconds`; 0: of a day."""
        request = build_pb.GetBuildStatsRequest(window_seconds=window_seconds)
        return await self._connection.call(
            BuildServiceClient, BuildServiceClient.get_build_stats, request
        )

    async def quota(self) -> build_pb.GetTenantQuotaResponse:
        """The tenant's limits, and what it uses of them."""
        return await self._connection.call(
            BuildServiceClient,
            BuildServiceClient.get_tenant_quota,
            build_pb.GetTenantQuotaRequest(),
        )

    async def logs(
        self,
        build_id: str,
        *,
        after_sequence: int = 0,
        follow: bool = False,
        from_end: bool = False,
    ) -> AsyncGenerator[build_pb.StreamBuildLogsResponse]:
        """Lines of a build's log.

        Args:
            build_id: `bld_…`.
            after_sequence: Begin after this line; 0: with the first.
            follow: Stay until the build has ended.
            from_end: Begin with the next line that comes.
        """
        request = build_pb.StreamBuildLogsRequest(
            build_id=build_id,
            position=build_pb.LogPosition.END if from_end else build_pb.LogPosition.START,
            after_sequence=after_sequence,
            follow=follow,
        )
        async with aclosing(
            self._connection.stream(
                BuildServiceClient, BuildServiceClient.stream_build_logs, request
            )
        ) as messages:
            async for line in messages:
                yield line
