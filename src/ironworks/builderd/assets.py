"""assetmanagerd, as builderd needs it."""

from __future__ import annotations

from ironworks.builderd.flatten.plan import Flattened
from ironworks.builderd.types import Build, HealthCheck, ImageConfig, Registered, RootfsFormat
from ironworks.gen.ironworks.assetmanagerd.v1 import asset_pb
from ironworks.gen.ironworks.assetmanagerd.v1.asset_connect import AssetServiceClient
from ironworks.gen.ironworks.common.v1 import common_pb
from ironworks.model.errors import Internal, NotFound
from ironworks.runtime.architecture import host_architecture
from ironworks.runtime.rpc.client import Clients

_REGISTER_SECONDS = 600.0
_FORMATS = {
    RootfsFormat.SQUASHFS: asset_pb.AssetFormat.SQUASHFS,
    RootfsFormat.EXT4: asset_pb.AssetFormat.EXT4,
}
_USABLE = frozenset({asset_pb.AssetState.AVAILABLE, asset_pb.AssetState.IN_USE})


def image_config_message(config: ImageConfig) -> common_pb.ImageConfig:
    """How to run an image, as it goes over the wire."""
    return common_pb.ImageConfig(
        entrypoint=list(config.entrypoint),
        cmd=list(config.cmd),
        env=list(config.env),
        user=config.user,
        working_directory=config.working_directory,
        exposed_ports=list(config.exposed_ports),
        stop_signal=config.stop_signal,
        labels=dict(config.labels),
        health_check=_health_check_message(config.health_check),
    )


def _health_check_message(check: HealthCheck | None) -> common_pb.HealthCheck | None:
    if check is None:
        return None
    return common_pb.HealthCheck(
        test=list(check.test),
        interval_ns=check.interval_ns,
        timeout_ns=check.timeout_ns,
        start_period_ns=check.start_period_ns,
        retries=check.retries,
    )


class RemoteAssets:
    """Calls assetmanagerd on behalf of the build's tenant."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients

    def _client(self, tenant_id: str, timeout_seconds: float) -> AssetServiceClient:
        return self._clients.of(
            AssetServiceClient,
            "assetmanagerd",
            tenant_id=tenant_id,
            timeout_seconds=timeout_seconds,
        )

    async def is_usable(self, tenant_id: str, asset_id: str) -> bool:
        """Whether the asset can be leased."""
        request = asset_pb.GetAssetRequest(asset_id=asset_id)
        try:
            answer = await self._client(tenant_id, 10.0).get_asset(request)
        except NotFound:
            return False
        asset = answer.asset
        return asset is not None and asset.state in _USABLE and not asset.damage

    async def register(
        self, build: Build, made: Flattened, config: ImageConfig, staged_name: str
    ) -> Registered:
        """Hand bytes over; answers the asset, which is AVAILABLE then.

        What the bytes are is for assetmanagerd to find out: what wrote them had a tenant's image in
        its hands.
        """
        facts = asset_pb.AssetFacts(
            kind=asset_pb.AssetKind.ROOTFS,
            format=_FORMATS[build.format],
            size_bytes=made.size_bytes,
            architecture=host_architecture(),
            source_digest=build.image_digest,
            build_id=build.build_id,
            image_config=image_config_message(config),
            labels=dict(build.labels),
        )
        request = asset_pb.RegisterAssetRequest(
            facts=facts, staged_name=staged_name, idempotency_key=staged_name
        )
        answer = await self._client(build.tenant_id, _REGISTER_SECONDS).register_asset(request)
        if answer.asset is None or answer.asset.state not in _USABLE:
            raise Internal("assetmanagerd answered an asset that cannot be used.")
        return Registered(asset_id=answer.asset.asset_id, sha256=answer.asset.sha256)
