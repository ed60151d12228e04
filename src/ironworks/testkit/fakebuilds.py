"""A builderd for tests of clients: what it is told it remembers, and builds nothing."""

# ruff: noqa: ARG002, D102 - handlers of the API: their contract is in the proto

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from typing import Any, Protocol

from protobuf import Message

from ironworks.gen.ironworks.builderd.v1 import build_pb, policy_pb
from ironworks.gen.ironworks.builderd.v1.build_connect import BuildService
from ironworks.model.errors import FailedPrecondition, InvalidRequest, NotFound, Unavailable

REFUSED_IMAGE = "docker.io/library/refused"
FAILING_IMAGE = "docker.io/library/failing"
CANCELLED_IMAGE = "docker.io/library/cancelled"
MADE_ID = "bld_01j00000000000000000000made"


class _Asked(Protocol):
    def ask(self, method: str, request: Message[Any], *, after: bool = False) -> None: ...


class FakeBuilds(BuildService):
    """Builds, policies, uploads and credentials in memory."""

    def __init__(self, api: _Asked) -> None:
        self._api = api
        self.made: dict[str, build_pb.Build] = {}
        self.policies: dict[bool, tuple[policy_pb.Policy, int]] = {}
        self.credentials: dict[str, build_pb.RegistryCredential] = {}
        self.image_uploads: dict[str, bytes] = {}
        self.cut_uploads = 0
        """Streams that are still to break after their first chunk."""

    async def create_build(
        self, request: build_pb.CreateBuildRequest, ctx: Any
    ) -> build_pb.CreateBuildResponse:
        self._api.ask("CreateBuild", request)
        made = build_pb.Build(
            build_id=MADE_ID, image=request.image, state=build_pb.BuildState.COMPLETED
        )
        if request.image == FAILING_IMAGE:
            made.state = build_pb.BuildState.FAILED
            made.failure = build_pb.BuildFailure(
                code="not_found", message=f"There is no image {request.image}."
            )
        elif request.image == CANCELLED_IMAGE:
            made.state = build_pb.BuildState.CANCELLED
        self.made[MADE_ID] = made
        return build_pb.CreateBuildResponse(build=made)

    async def watch_build(
        self, request: build_pb.WatchBuildRequest, ctx: Any
    ) -> AsyncIterator[build_pb.WatchBuildResponse]:
        self._api.ask("WatchBuild", request)
        for state in (build_pb.BuildState.QUEUED, build_pb.BuildState.COMPLETED):
            build = build_pb.Build(build_id=request.build_id, state=state)
            yield build_pb.WatchBuildResponse(build=build)

    async def cancel_build(
        self, request: build_pb.CancelBuildRequest, ctx: Any
    ) -> build_pb.CancelBuildResponse:
        self._api.ask("CancelBuild", request)
        build = build_pb.Build(build_id=request.build_id, state=build_pb.BuildState.CANCELLED)
        return build_pb.CancelBuildResponse(build=build)

    async def delete_build(
        self, request: build_pb.DeleteBuildRequest, ctx: Any
    ) -> build_pb.DeleteBuildResponse:
        self._api.ask("DeleteBuild", request)
        return build_pb.DeleteBuildResponse()

    async def get_build_stats(
        self, request: build_pb.GetBuildStatsRequest, ctx: Any
    ) -> build_pb.GetBuildStatsResponse:
        self._api.ask("GetBuildStats", request)
        return build_pb.GetBuildStatsResponse(completed_count=7, reused_count=3)

    async def get_tenant_quota(
        self, request: build_pb.GetTenantQuotaRequest, ctx: Any
    ) -> build_pb.GetTenantQuotaResponse:
        self._api.ask("GetTenantQuota", request)
        return build_pb.GetTenantQuotaResponse(max_running_builds=2, running_builds=1)

    # --- policies ---------------------------------------------------------------------------------

    async def get_policy(
        self, request: policy_pb.GetPolicyRequest, ctx: Any
    ) -> policy_pb.GetPolicyResponse:
        self._api.ask("GetPolicy", request)
        policy, revision = self.policies.get(request.platform, (policy_pb.Policy(), 0))
        return policy_pb.GetPolicyResponse(
            policy=policy, effective_policy=policy, revision=revision
        )

    async def set_policy(
        self, request: policy_pb.SetPolicyRequest, ctx: Any
    ) -> policy_pb.SetPolicyResponse:
        self._api.ask("SetPolicy", request)
        revision = request.expected_revision + 1
        self.policies[request.platform] = (request.policy or policy_pb.Policy(), revision)
        return policy_pb.SetPolicyResponse(revision=revision)

    async def evaluate_policy(
        self, request: policy_pb.EvaluatePolicyRequest, ctx: Any
    ) -> policy_pb.EvaluatePolicyResponse:
        self._api.ask("EvaluatePolicy", request)
        outcome = policy_pb.PolicyOutcome.PASSED
        if request.image == REFUSED_IMAGE:
            outcome = policy_pb.PolicyOutcome.REFUSED
        line = policy_pb.PolicyLine(rule="setuid_files", outcome=outcome, message="2 files.")
        report = policy_pb.PolicyReport(outcome=outcome, lines=[line])
        return policy_pb.EvaluatePolicyResponse(report=report, image_digest="sha256:x")

    # --- uploads ----------------------------------------------------------------------------------

    async def get_image_upload(
        self, request: build_pb.GetImageUploadRequest, ctx: Any
    ) -> build_pb.GetImageUploadResponse:
        self._api.ask("GetImageUpload", request)
        if request.idempotency_key not in self.image_uploads:
            raise NotFound("There is no upload with this key.")
        there = self.image_uploads[request.idempotency_key]
        return build_pb.GetImageUploadResponse(offset_bytes=len(there))

    async def upload_image(
        self, request: AsyncIterator[build_pb.UploadImageRequest], ctx: Any
    ) -> build_pb.UploadImageResponse:
        start: build_pb.UploadImageStart | None = None
        async for message in request:
            if message.part is None:
                raise InvalidRequest("An empty message.")
            if message.part.field == "start":
                start = message.part.value
                there = self.image_uploads.setdefault(start.idempotency_key, b"")
                if start.offset_bytes != len(there):
                    raise FailedPrecondition(f"{len(there)} bytes are here.")
            elif start is not None:
                self.image_uploads[start.idempotency_key] += message.part.value
                if self.cut_uploads:
                    self.cut_uploads -= 1
                    raise Unavailable("The stream is cut.")
        if start is None:
            raise InvalidRequest("No start.")
        there = self.image_uploads[start.idempotency_key]
        if hashlib.sha256(there).hexdigest() != start.sha256:
            raise InvalidRequest("These are other bytes.")
        return build_pb.UploadImageResponse(image="upload:upl_" + "0" * 26)

    # --- credentials ------------------------------------------------------------------------------

    async def set_registry_credential(
        self, request: build_pb.SetRegistryCredentialRequest, ctx: Any
    ) -> build_pb.SetRegistryCredentialResponse:
        self._api.ask("SetRegistryCredential", request)
        stored = build_pb.RegistryCredential(scope=request.scope, username=request.username)
        self.credentials[request.scope] = stored
        return build_pb.SetRegistryCredentialResponse(credential=stored)

    async def list_registry_credentials(
        self, request: build_pb.ListRegistryCredentialsRequest, ctx: Any
    ) -> build_pb.ListRegistryCredentialsResponse:
        self._api.ask("ListRegistryCredentials", request)
        return build_pb.ListRegistryCredentialsResponse(credentials=[*self.credentials.values()])

    async def delete_registry_credential(
        self, request: build_pb.DeleteRegistryCredentialRequest, ctx: Any
    ) -> build_pb.DeleteRegistryCredentialResponse:
        self._api.ask("DeleteRegistryCredential", request)
        self.credentials.pop(request.scope, None)
        return build_pb.DeleteRegistryCredentialResponse()
