"""builderd, as the deployment workflow needs it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ironworks.gen.ironworks.builderd.v1 import build_pb
from ironworks.gen.ironworks.builderd.v1.build_connect import BuildServiceClient
from ironworks.model.units import NS_PER_MS
from ironworks.runtime.rpc.client import Clients

SERVICE = "builderd"


class BuildPhase(Enum):
    """What a build is at, as far as a deployment cares."""

    RESOLVING = "resolving"
    BUILDING = "building"
    COMPLETED = "completed"
    ENDED_BADLY = "ended_badly"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildView:
    """A build as it stands.

    Attributes:
        phase: Where it stands.
        step: What it does now, for people.
        image_digest: `sha256:…`; empty before it is resolved.
        rootfs_asset_id: Set once completed.
        exposed_ports: Of the image, for example `8080/tcp`; set once completed.
        entrypoint: Of the image; set once completed.
        cmd: Of the image; set once completed.
        build_ms: From its acceptance to its end.
        reused: Whether an earlier build's result is shared.
        code: Of the error, where it ended badly.
        message: Why it ended badly.
        done_bytes: Progress.
        total_bytes: Progress; 0 where not known.
    """

    phase: BuildPhase
    step: str
    image_digest: str
    rootfs_asset_id: str
    exposed_ports: tuple[str, ...]
    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    build_ms: int
    reused: bool
    code: str
    message: str
    done_bytes: int
    total_bytes: int


_STATE = build_pb.BuildState
_PHASES = {
    _STATE.QUEUED: BuildPhase.RESOLVING,
    _STATE.RESOLVING: BuildPhase.RESOLVING,
    _STATE.PULLING: BuildPhase.BUILDING,
    _STATE.BUILDING: BuildPhase.BUILDING,
    _STATE.VALIDATING: BuildPhase.BUILDING,
    _STATE.REGISTERING: BuildPhase.BUILDING,
    _STATE.COMPLETED: BuildPhase.COMPLETED,
}


def view_of_build(build: build_pb.Build) -> BuildView:
    """What a deployment reads from a build."""
    result, failure, progress = build.result, build.failure, build.progress
    config = result.image_config if result else None
    phase = _PHASES.get(build.state, BuildPhase.ENDED_BADLY)
    cancelled = build.state is _STATE.CANCELLED
    return BuildView(
        phase=phase,
        step=(progress.step if progress else "") or build.state.name.lower(),
        image_digest=build.image_digest,
        rootfs_asset_id=result.asset_id if result else "",
        exposed_ports=tuple(config.exposed_ports) if config else (),
        entrypoint=tuple(config.entrypoint) if config else (),
        cmd=tuple(config.cmd) if config else (),
        build_ms=max(0, build.ended_at_ns - build.created_at_ns) // NS_PER_MS,
        reused=bool(build.reused_build_id),
        code=(failure.code if failure else "") or ("aborted" if cancelled else "internal"),
        message=(failure.message if failure else "")
        or ("The build was cancelled." if cancelled else "The build failed."),
        done_bytes=progress.done_bytes if progress else 0,
        total_bytes=progress.total_bytes if progress else 0,
    )


class Builder:
    """Calls builderd for a tenant."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients

    def _client(self, tenant_id: str) -> BuildServiceClient:
        return self._clients.of(BuildServiceClient, SERVICE, tenant_id=tenant_id)

    async def start(self, tenant_id: str, image: str, idempotency_key: str) -> str:
        """Ask for a build of `image`; answers its id. Repeatable."""
        request = build_pb.CreateBuildRequest(image=image, idempotency_key=idempotency_key)
        answer = await self._client(tenant_id).create_build(request)
        return answer.build.build_id if answer.build else ""

    async def view(self, tenant_id: str, build_id: str) -> BuildView:
        """The build as it stands."""
        request = build_pb.GetBuildRequest(build_id=build_id)
        answer = await self._client(tenant_id).get_build(request)
        return view_of_build(answer.build or build_pb.Build())

    async def cancel(self, tenant_id: str, build_id: str) -> None:
        """Ask a build to stop."""
        request = build_pb.CancelBuildRequest(build_id=build_id)
        await self._client(tenant_id).cancel_build(request)
