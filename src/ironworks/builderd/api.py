"""The RPC methods: who asks, for whom, and what is answered."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from connectrpc.request import RequestContext

from ironworks.builderd.app import Builds
from ironworks.builderd.choices import Choices
from ironworks.builderd.messages import (
    FORMATS_IN,
    STATES,
    STATES_IN,
    build_message,
    credential_message,
    policy_message,
    read_policy,
    report_message,
)
from ironworks.builderd.types import Build, BuilderSettings, BuildFilter, RootfsFormat
from ironworks.builderd.uploads import Start, Uploads
from ironworks.gen.ironworks.builderd.v1 import build_pb as pb
from ironworks.gen.ironworks.builderd.v1 import policy_pb
from ironworks.gen.ironworks.builderd.v1.build_connect import BuildService
from ironworks.gen.ironworks.common.v1 import common_pb
from ironworks.model.errors import InvalidRequest, PermissionDenied
from ironworks.model.pages import encode_token, read_page
from ironworks.runtime.identity.caller import current_caller, current_tenant_id

_Context = RequestContext[Any, Any]


def _scope() -> str:
    """The tenant whose builds the caller may see; empty: an operator, who sees all."""
    caller = current_caller()
    if caller.is_operator and not caller.tenant_id:
        return ""
    return current_tenant_id()


class Handlers(BuildService):
    """The RPC methods."""

    def __init__(
        self, builds: Builds, uploads: Uploads, choices: Choices, settings: BuilderSettings
    ) -> None:
        self._builds = builds
        self._uploads = uploads
        self._choices = choices
        self._settings = settings

    async def _message(self, build: Build) -> pb.Build:
        return build_message(build, await self._builds.progress(build))

    async def create_build(
        self, request: pb.CreateBuildRequest, ctx: _Context, /
    ) -> pb.CreateBuildResponse:
        build = await self._builds.create(
            current_tenant_id(),
            request.image,
            rootfs_format=FORMATS_IN.get(request.format, RootfsFormat.SQUASHFS),
            labels=dict(request.labels),
            priority=int(request.priority) or int(pb.BuildPriority.NORMAL),
            timeout_seconds=request.timeout_seconds,
            force=request.force,
            key=request.idempotency_key,
        )
        return pb.CreateBuildResponse(build=await self._message(build))

    async def get_build(self, request: pb.GetBuildRequest, ctx: _Context, /) -> pb.GetBuildResponse:
        build = await self._builds.get(_scope(), request.build_id)
        progress = await self._builds.progress(build)
        packages = await self._builds.packages(build)
        return pb.GetBuildResponse(build=build_message(build, progress, packages))

    async def list_builds(
        self, request: pb.ListBuildsRequest, ctx: _Context, /
    ) -> pb.ListBuildsResponse:
        query = BuildFilter(
            states=tuple(STATES_IN[state] for state in request.states if state in STATES_IN),
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
            builds=[await self._message(build) for build in builds],
            page=common_pb.PageInfo(next_page_token=token),
        )

    async def watch_build(  # pyright: ignore[reportIncompatibleMethodOverride] - a generator
        self, request: pb.WatchBuildRequest, ctx: _Context, /
    ) -> AsyncIterator[pb.WatchBuildResponse]:
        async for build in self._builds.watch(_scope(), request.build_id):
            yield pb.WatchBuildResponse(build=await self._message(build))

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
                state=STATES[line.state],
                text=line.text,
            )

    async def cancel_build(
        self, request: pb.CancelBuildRequest, ctx: _Context, /
    ) -> pb.CancelBuildResponse:
        build = await self._builds.cancel(_scope(), request.build_id, request.idempotency_key)
        return pb.CancelBuildResponse(build=await self._message(build))

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
        tenant_id, limits = current_tenant_id(), self._settings
        running, queued = await self._builds.usage(tenant_id)
        policy = await self._choices.in_force(tenant_id)
        return pb.GetTenantQuotaResponse(
            max_running_builds=limits.max_builds_per_tenant,
            running_builds=running,
            max_queued_builds=limits.max_queued_builds_per_tenant,
            queued_builds=queued,
            max_timeout_seconds=limits.build_timeout_seconds,
            max_unpacked_bytes=_least(policy.max_unpacked_bytes, limits.max_unpacked_bytes),
            max_file_count=_least(policy.max_file_count, limits.max_image_files),
            max_upload_bytes=limits.max_upload_bytes_per_tenant,
            upload_bytes=await self._uploads.used_bytes(tenant_id),
        )

    # --- policies ---------------------------------------------------------------------------------

    async def evaluate_policy(
        self, request: policy_pb.EvaluatePolicyRequest, ctx: _Context, /
    ) -> policy_pb.EvaluatePolicyResponse:
        policy = None if request.policy is None else read_policy(request.policy)
        report, digest = await self._choices.evaluate(current_tenant_id(), request.image, policy)
        return policy_pb.EvaluatePolicyResponse(report=report_message(report), image_digest=digest)

    async def get_policy(
        self, request: policy_pb.GetPolicyRequest, ctx: _Context, /
    ) -> policy_pb.GetPolicyResponse:
        tenant_id = _policy_owner(platform=request.platform, changing=False)
        declared, effective, revision = await self._choices.policy(
            tenant_id, platform=request.platform
        )
        return policy_pb.GetPolicyResponse(
            policy=policy_message(declared),
            effective_policy=policy_message(effective),
            revision=revision,
        )

    async def set_policy(
        self, request: policy_pb.SetPolicyRequest, ctx: _Context, /
    ) -> policy_pb.SetPolicyResponse:
        revision = await self._choices.set_policy(
            _policy_owner(platform=request.platform, changing=True),
            read_policy(request.policy),
            request.expected_revision,
            request.idempotency_key,
            platform=request.platform,
        )
        return policy_pb.SetPolicyResponse(revision=revision)

    # --- uploads ----------------------------------------------------------------------------------

    async def upload_image(
        self, request: AsyncIterator[pb.UploadImageRequest], ctx: _Context, /
    ) -> pb.UploadImageResponse:
        first = await anext(aiter(request), None)
        if first is None or first.part is None or first.part.field != "start":
            raise InvalidRequest("The first message of an upload must be its start.")
        said = first.part.value
        start = Start(
            sha256=said.sha256,
            size_bytes=said.size_bytes,
            offset_bytes=said.offset_bytes,
            key=said.idempotency_key,
        )
        upload = await self._uploads.receive(current_tenant_id(), start, _chunks(request))
        return pb.UploadImageResponse(
            image=f"upload:{upload.upload_id}", expires_at_ns=upload.expires_at_ns
        )

    async def get_image_upload(
        self, request: pb.GetImageUploadRequest, ctx: _Context, /
    ) -> pb.GetImageUploadResponse:
        upload, offset = await self._uploads.find(current_tenant_id(), request.idempotency_key)
        return pb.GetImageUploadResponse(
            upload_id=upload.upload_id,
            offset_bytes=offset,
            size_bytes=upload.size_bytes,
            expires_at_ns=upload.expires_at_ns,
        )

    # --- credentials ------------------------------------------------------------------------------

    async def set_registry_credential(
        self, request: pb.SetRegistryCredentialRequest, ctx: _Context, /
    ) -> pb.SetRegistryCredentialResponse:
        stored = await self._choices.set_credential(
            current_tenant_id(), request.scope, request.username, request.password
        )
        return pb.SetRegistryCredentialResponse(credential=credential_message(stored))

    async def list_registry_credentials(
        self, request: pb.ListRegistryCredentialsRequest, ctx: _Context, /
    ) -> pb.ListRegistryCredentialsResponse:
        known = await self._choices.credentials(current_tenant_id())
        return pb.ListRegistryCredentialsResponse(
            credentials=[credential_message(one) for one in known]
        )

    async def delete_registry_credential(
        self, request: pb.DeleteRegistryCredentialRequest, ctx: _Context, /
    ) -> pb.DeleteRegistryCredentialResponse:
        await self._choices.delete_credential(current_tenant_id(), request.scope)
        return pb.DeleteRegistryCredentialResponse()


def _policy_owner(*, platform: bool, changing: bool) -> str:
    """The tenant whose policy is meant; empty: the platform's.

    Raises:
        PermissionDenied: only operators set the platform's.
    """
    if not platform:
        return current_tenant_id()
    if changing and not current_caller().is_operator:
        raise PermissionDenied(
            "Only operators set the platform's policy.",
            hint="Set your tenant's own, which narrows it.",
        )
    return ""


async def _chunks(request: AsyncIterator[pb.UploadImageRequest]) -> AsyncIterator[bytes]:
    async for message in request:
        if message.part is None or message.part.field != "chunk":
            raise InvalidRequest("Every message of an upload but the first must be a chunk.")
        yield message.part.value


def _least(wanted: int, limit: int) -> int:
    return min(wanted or limit, limit)
