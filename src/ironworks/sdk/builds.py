"""Builds: image → root file system."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

from ironworks.gen.ironworks.builderd.v1 import build_pb
from ironworks.gen.ironworks.builderd.v1.build_connect import BuildServiceClient
from ironworks.gen.ironworks.common.v1 import common_pb
from ironworks.sdk.resource import DEFAULT_LIMIT, Page, Resource, present, walk


class Builds(Resource):
    """Builds of the caller's tenant."""

    async def create(
        self,
        image: str,
        *,
        labels: Mapping[str, str] | None = None,
        force: bool = False,
        idempotency_key: str = "",
    ) -> build_pb.Build:
        """Ask for a build; the same image is built once, however often it is asked for.

        Args:
            image: Registry reference, or layout or archive on the platform's machine.
            labels: For people and filters.
            force: Build even if the tenant has built this digest before.
            idempotency_key: Made if empty.
        """
        request = build_pb.CreateBuildRequest(
            image=image, labels=dict(labels or {}), force=force, idempotency_key=idempotency_key
        )
        answer = await self._connection.call(
            BuildServiceClient, BuildServiceClient.create_build, request
        )
        return present(answer.build)

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

    async def logs(
        self, build_id: str, *, after_sequence: int = 0, follow: bool = False
    ) -> AsyncGenerator[build_pb.StreamBuildLogsResponse]:
        """Lines of a build's log.

        Args:
            build_id: `bld_…`.
            after_sequence: Begin after this line; 0: with the first.
            follow: Stay until the build has ended.
        """
        request = build_pb.StreamBuildLogsRequest(
            build_id=build_id, after_sequence=after_sequence, follow=follow
        )
        async with aclosing(
            self._connection.stream(
                BuildServiceClient, BuildServiceClient.stream_build_logs, request
            )
        ) as messages:
            async for line in messages:
                yield line
