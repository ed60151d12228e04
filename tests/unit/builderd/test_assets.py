from __future__ import annotations

from typing import Any, cast

import pytest

from ironworks.builderd.assets import RemoteAssets, image_config_message
from ironworks.builderd.flatten.plan import Flattened
from ironworks.builderd.types import Build, BuildState, ImageConfig, RootfsFormat
from ironworks.gen.ironworks.assetmanagerd.v1 import asset_pb as pb
from ironworks.model.errors import Internal, NotFound
from ironworks.runtime.rpc.client import Clients

MADE = Flattened(size_bytes=7, unpacked_bytes=8, file_count=9)
CONFIG = ImageConfig(cmd=("/app",), labels={"x": "y"})
BUILD = Build(
    build_id="bld_1",
    tenant_id="tnt_acme",
    image="app",
    image_digest="sha256:1",
    format=RootfsFormat.SQUASHFS,
    state=BuildState.REGISTERING,
    created_at_ns=1,
    updated_at_ns=1,
    timeout_seconds=60,
    labels={"a": "b"},
)


class FakeClients:
    """Stands for the clients, and for the one client that they make."""

    def __init__(self, asset: pb.Asset | None) -> None:
        self.asset = asset
        self.tenants: list[str | None] = []
        self.registered: list[pb.RegisterAssetRequest] = []

    def of(self, kind: object, service: str, *, tenant_id: str | None, **more: Any) -> FakeClients:
        assert service == "assetmanagerd"
        self.tenants.append(tenant_id)
        return self

    async def get_asset(self, request: pb.GetAssetRequest) -> pb.GetAssetResponse:
        if self.asset is None:
            raise NotFound("gone")
        return pb.GetAssetResponse(asset=self.asset)

    async def register_asset(self, request: pb.RegisterAssetRequest) -> pb.RegisterAssetResponse:
        self.registered.append(request)
        return pb.RegisterAssetResponse(asset=self.asset)


def remote(fake: FakeClients) -> RemoteAssets:
    return RemoteAssets(cast("Clients", fake))


@pytest.mark.parametrize(
    ("asset", "usable"),
    [
        (pb.Asset(state=pb.AssetState.AVAILABLE), True),
        (pb.Asset(state=pb.AssetState.IN_USE), True),
        (pb.Asset(state=pb.AssetState.AVAILABLE, damage="rotten"), False),
        (pb.Asset(state=pb.AssetState.ARCHIVED), False),
        (pb.Asset(state=pb.AssetState.DELETED), False),
        (None, False),
    ],
)
async def test_what_can_be_leased_is_usable(asset: pb.Asset | None, *, usable: bool) -> None:
    fake = FakeClients(asset)
    assert await remote(fake).is_usable("tnt_acme", "ast_1") is usable
    assert fake.tenants == ["tnt_acme"]


async def test_bytes_are_handed_over_for_the_builds_tenant() -> None:
    found = pb.Asset(asset_id="ast_1", state=pb.AssetState.AVAILABLE, sha256="a" * 64)
    fake = FakeClients(found)
    asset = await remote(fake).register(BUILD, MADE, CONFIG, "staged")
    assert (asset.asset_id, asset.sha256) == ("ast_1", "a" * 64)
    (request,) = fake.registered
    facts = request.facts
    assert facts is not None
    assert fake.tenants == ["tnt_acme"]
    assert (request.staged_name, facts.platform) == ("staged", False)
    assert (facts.sha256, facts.size_bytes) == ("", 7)  # found out from the bytes
    assert (facts.source_digest, facts.build_id) == ("sha256:1", "bld_1")
    assert facts.labels == {"a": "b"}
    assert facts.image_config == image_config_message(CONFIG)


async def test_an_asset_that_is_not_available_completes_no_build() -> None:
    fake = FakeClients(pb.Asset(asset_id="ast_1", state=pb.AssetState.REGISTERED))
    with pytest.raises(Internal):
        await remote(fake).register(BUILD, MADE, CONFIG, "staged")
