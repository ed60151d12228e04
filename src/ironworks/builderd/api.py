"""Proto ↔ types, nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from connectrpc.request import RequestContext

from ironworks.builderd.app import Builds
from ironworks.builderd.assets import image_config_message
from ironworks.builderd.types import (
    Build,
    BuilderSettings,
    BuildFilter,
    BuildResult,
    BuildState,
    Progress,
    RootfsFormat,
)
from ironworks.gen.ironworks.builderd.v1 import build_pb as pb
from ironworks.gen.ironworks.builderd.v1.build_connect import BuildService
from ironworks.gen.ironworks.common.v1 import common_pb
from ironworks.model.pages import encode_token, read_page
from ironworks.runtime.identity.caller import current_caller, current_tenant_id

_Context = RequestContext[Any, Any]

_STATES: Mapping[BuildState, pb.BuildState] = {
    BuildState.QUEUED: pb.BuildState.QUEUED,
    BuildState.RESOLVING: pb.BuildState.RESOLVING,
    BuildState.PULLING: pb.BuildState.PULLING,
    BuildState.BUILDING: pb.BuildState.BUILDING,
    BuildState.VALIDATING: pb.BuildState.VALIDATING,
    BuildState.REGISTERING: pb.BuildState.REGISTERING,
    BuildState.COMPLETED: pb.BuildState.COMPLETED,
    BuildState.FAILED: pb.BuildState.FAILED,
    BuildState.CANCELLED: pb.BuildState.CANCELLED,
}
_STATES_IN = {value: key for key, value in _STATES.items()}
_FORMATS: Mapping[RootfsFormat, pb.RootfsFormat] = {
    RootfsFormat.SQUASHFS: pb.RootfsFormat.SQUASHFS,
    RootfsFormat.EXT4: pb.RootfsFormat.EXT4,
}
_FORMATS_IN = {value: key for key, value in _FORMATS.items()}


def _scope() -> str:
    """The tenant whose builds the caller may see; empty: an operator, who sees all."""
    caller = current_caller()
    if caller.is_operator and not caller.tenant_id:
        return ""
    return current_tenant_id()


def _result(result: BuildResult | None) -> pb.BuildResult | None:
    if result is None:
        return None
    return pb.BuildResult(
        asset_id=result.asset_id,
        sha256=result.sha256,
        size_bytes=result.size_bytes,
        unpacked_bytes=result.unpacked_bytes,
        file_count=result.file_count,
        layer_count=result.layer_count,
        image_config=image_config_message(result.image_config),
    )


def _build(build: Build, progress: Progress) -> pb.Build:
    failure = build.failure
    return pb.Build(
        build_id=build.build_id,
        tenant_id=build.tenant_id,
        image=build.image,
        image_digest=build.image_digest,
        index_digest=build.index_digest,
        platform=build.platform,
        format=_FORMATS[build.format],
        state=_STATES[build.state],
        progress=pb.BuildProgress(
            done_bytes=progress.done_bytes, total_bytes=progress.total_bytes, step=progress.step
        ),
        stages=[
            pb.BuildStage(
                state=_STATES[stage.state],
                started_at_ns=stage.started_at_ns,
                ended_at_ns=stage.ended_at_ns,
            )
            for stage in build.stages
        ],
        result=_result(build.result),
        failure=None
        if failure is None
        else pb.BuildFailure(
            code=failure.code, message=failure.message, state=_STATES[failure.state]
        ),
        reused_build_id=build.reused_build_id,
        builder_version=build.builder_version,
        labels=dict(build.labels),
        priority=pb.BuildPriority(build.priority),
        timeout_seconds=build.timeout_seconds,
        attempt_count=build.attempt_count,
        worker=build.worker,
        created_at_ns=build.created_at_ns,
        started_at_ns=build.started_at_ns,
        updated_at_ns=build.updated_at_ns,
        ended_at_ns=build.ended_at_ns,
        revision=build.revision,
    )


class Handlers(BuildService):
    """The RPC methods."""

    def __init__(self, builds: Builds, settings: BuilderSettings) -> None:
        self._builds = builds
        self._settings = settings

    def _message(self, build: Build) -> pb.Build:
        return _build(build, self._builds.progress(build.build_id))

    async def create_build(
        self, request: pb.CreateBuildRequest, ctx: _Context, /
    ) -> pb.CreateBuildResponse:
        build = await self._builds.create(
            current_tenant_id(),
            request.image,
            rootfs_format=_FORMATS_IN.get(request.format, RootfsFormat.SQUASHFS),
            labels=dict(request.labels),
            priority=int(request.priority) or int(pb.BuildPriority.NORMAL),
            timeout_seconds=request.timeout_seconds,
            force=request.force,
            key=request.idempotency_key,
        )
        return pb.CreateBuildResponse(build=self._message(build))

    async def get_build(self, request: pb.GetBuildRequest, ctx: _Context, /) -> pb.GetBuildResponse:
        build = await self._builds.get(_scope(), request.build_id)
        return pb.GetBuildResponse(build=self._message(build))

    async def list_builds(
        self, request: pb.ListBuildsRequest, ctx: _Context, /
    ) -> pb.ListBuildsResponse:
        query = BuildFilter(
            states=tuple(_STATES_IN[state] for state in request.states if state in _STATES_IN),
            labels=dict(sorted(request.labels.items())),
            image_digest=request.image_digest,
        )
        asked = request.page or common_pb.PageRequest()
        filters = (_scope(), query)
        page = read_page(asked.page_size, asked.page_token, filters)
        found = await self._builds.page(_scope(), query, page)
        builds, token = found[: page.size], ""
        if len(found) > page.size:
            token = encode_token((builds[-1].build_id,), filters)
        return pb.ListBuildsResponse(
            builds=[self._message(build) for build in builds],
            page=common_pb.PageInfo(next_page_token=token),
        )

    async def watch_build(  # pyright: ignore[reportIncompatibleMethodOverride] - a generator
        self, request: pb.WatchBuildRequest, ctx: _Context, /
    ) -> AsyncIterator[pb.WatchBuildResponse]:
        async for build in self._builds.watch(_scope(), request.build_id):
            yield pb.WatchBuildResponse(build=self._message(build))

    async def stream_build_logs(  # pyright: ignore[reportIncompatibleMethodOverride] - a generator
        self, request: pb.StreamBuildLogsRequest, ctx: _Context, /
    ) -> AsyncIterator[pb.StreamBuildLogsResponse]:
        async for line in self._builds.logs(
            _scope(),
            request.build_id,
            after=request.after_sequence,
            from_end=request.position is pb.LogPosition.END,
            follow=request.follow,
        ):
            yield pb.StreamBuildLogsResponse(
                sequence=line.sequence,
                at_ns=line.at_ns,
                state=_STATES[line.state],
                text=line.text,
            )

    async def cancel_build(
        self, request: pb.CancelBuildRequest, ctx: _Context, /
    ) -> pb.CancelBuildResponse:
        build = await self._builds.cancel(_scope(), request.build_id, request.idempotency_key)
        return pb.CancelBuildResponse(build=self._message(build))

    async def delete_build(
        self, request: pb.DeleteBuildRequest, ctx: _Context, /
    ) -> pb.DeleteBuildResponse:
        await self._builds.delete(_scope(), request.build_id)
        return pb.DeleteBuildResponse()

    async def get_build_stats(
        self, request: pb.GetBuildStatsRequest, ctx: _Context, /
    ) -> pb.GetBuildStatsResponse:
        stats = await self._builds.stats(_scope(), request.window_seconds)
        return pb.GetBuildStatsResponse(
            queued_count=stats.queued_count,
            running_count=stats.running_count,
            oldest_queued_age_ns=stats.oldest_queued_age_ns,
            completed_count=stats.completed_count,
            reused_count=stats.reused_count,
            failed_count=stats.failed_count,
            cancelled_count=stats.cancelled_count,
            median_duration_ns=stats.median_duration_ns,
            p95_duration_ns=stats.p95_duration_ns,
            written_bytes=stats.written_bytes,
        )

    async def get_tenant_quota(
        self, request: pb.GetTenantQuotaRequest, ctx: _Context, /
    ) -> pb.GetTenantQuotaResponse:
        running, queued = await self._builds.usage(current_tenant_id())
        limits = self._settings
        return pb.GetTenantQuotaResponse(
            max_running_builds=limits.max_builds_per_tenant,
            running_builds=running,
            max_queued_builds=limits.max_queued_builds_per_tenant,
            queued_builds=queued,
            max_timeout_seconds=limits.build_timeout_seconds,
            max_unpacked_bytes=limits.max_unpacked_bytes,
            max_file_count=limits.max_image_files,
        )
