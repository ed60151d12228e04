"""metald's client of assetmanagerd, with the real service on loopback."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pyqwest import Client, HTTPTransport

from ironworks.assetmanagerd.service import compose
from ironworks.assetmanagerd.types import AssetSettings
from ironworks.gen.ironworks.assetmanagerd.v1 import asset_pb as pb
from ironworks.gen.ironworks.assetmanagerd.v1.asset_connect import AssetServiceClient
from ironworks.gen.ironworks.common.v1 import common_pb
from ironworks.metald.assets.lessor import AssetClient
from ironworks.metald.types import ImageDefaults
from ironworks.model.errors import FailedPrecondition, IronError, NotFound, Unavailable
from ironworks.model.ids import derived_id
from ironworks.runtime.clock import SystemClock
from ironworks.runtime.identity import ServiceSigner, ensure_service_keys
from ironworks.runtime.rpc.client import Clients
from ironworks.runtime.service import make_chassis, run_service
from ironworks.runtime.tasks import Tasks
from ironworks.testkit.rooms import make_rootfs

TENANT, OTHER = derived_id("tnt", "one"), derived_id("tnt", "two")
VM = derived_id("vm", "one")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """assetmanagerd, and metald's client of it."""

    settings: AssetSettings
    lessor: AssetClient

    def clients(self, service: str) -> Clients:
        settings = self.settings
        signer = ServiceSigner.load(
            settings.data_dir, service, settings.trust_domain, SystemClock()
        )
        return Clients(settings=settings, signer=signer)

    async def register(self, data: bytes, **facts: object) -> str:
        staging = self.settings.data_dir / "assets" / "staging"
        staging.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(data).hexdigest()
        (staging / name).write_bytes(data)
        client = self.clients("builderd").of(AssetServiceClient, "assetmanagerd", tenant_id=TENANT)
        claim = pb.AssetFacts(
            kind=pb.AssetKind.ROOTFS,
            sha256=name,
            size_bytes=len(data),
            **facts,  # pyright: ignore[reportArgumentType] - by name
        )
        answer = await client.register_asset(pb.RegisterAssetRequest(facts=claim, staged_name=name))
        assert answer.asset is not None
        return answer.asset.asset_id


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    ensure_service_keys(tmp_path)
    url = f"http://127.0.0.1:{free_port()}"
    settings = AssetSettings(data_dir=tmp_path, assetmanagerd_url=url, min_free_bytes=0)
    stop = asyncio.Event()
    async with Tasks() as tasks:
        serving = tasks.start(
            run_service(make_chassis("assetmanagerd", settings), compose, stop), name="service"
        )
        client = Client(HTTPTransport(proxy=()))
        async with asyncio.timeout(30):
            while True:
                try:
                    await client.execute("GET", f"{url}/readyz")
                except OSError:
                    await asyncio.sleep(0.02)
                else:
                    break
        signer = ServiceSigner.load(tmp_path, "metald", settings.trust_domain, SystemClock())
        clients = Clients(settings=settings, signer=signer)
        yield Service(settings=settings, lessor=AssetClient(clients, tmp_path))
        stop.set()
        await serving


@pytest.fixture
def rootfs(tmp_path: Path) -> bytes:
    made = tmp_path / "made"
    made.mkdir()
    return make_rootfs(made).read_bytes()


async def test_assets_are_leased_placed_kept_and_given_back(
    service: Service, rootfs: bytes, tmp_path: Path
) -> None:
    config = common_pb.ImageConfig(
        entrypoint=["/bin/httpd"],
        cmd=["-f"],
        env=["A=1"],
        user="app",
        working_directory="/www",
        stop_signal="SIGINT",
    )
    asset_id = await service.register(rootfs, image_config=config)
    leased = await service.lessor.acquire(TENANT, VM, [asset_id])
    (asset,) = leased.assets
    assert (asset.kind, asset.format, asset.size_bytes) == ("rootfs", "squashfs", len(rootfs))
    assert asset.image == ImageDefaults(
        entrypoint=("/bin/httpd",),
        cmd=("-f",),
        env=("A=1",),
        user="app",
        working_directory="/www",
        stop_signal="SIGINT",
    )
    jail = tmp_path / "jails" / VM
    jail.mkdir(parents=True)
    await service.lessor.prepare(TENANT, leased.lease_id, jail, {asset_id: "rootfs"})
    placed = jail / "rootfs"
    assert placed.read_bytes() == rootfs
    assert placed.stat().st_nlink > 1
    assert placed.stat().st_mode & 0o222 == 0
    assert await service.lessor.renew([leased.lease_id]) == frozenset()
    again = await service.lessor.acquire(TENANT, VM, [asset_id])
    await service.lessor.release(TENANT, VM)
    await service.lessor.release(TENANT, VM)
    lost = await service.lessor.renew([leased.lease_id, again.lease_id])
    assert lost == {leased.lease_id, again.lease_id}


async def test_another_tenants_asset_is_unknown(service: Service, rootfs: bytes) -> None:
    asset_id = await service.register(rootfs)
    with pytest.raises(NotFound):
        await service.lessor.acquire(OTHER, VM, [asset_id])
    with pytest.raises(NotFound):
        await service.lessor.acquire(TENANT, VM, [asset_id, derived_id("ast", "ghost")])


async def test_a_jail_elsewhere_is_refused(service: Service, rootfs: bytes, tmp_path: Path) -> None:
    asset_id = await service.register(rootfs)
    leased = await service.lessor.acquire(TENANT, VM, [asset_id])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with pytest.raises(IronError):
        await service.lessor.prepare(TENANT, leased.lease_id, elsewhere, {asset_id: "rootfs"})
    assert list(elsewhere.iterdir()) == []


async def test_the_hosts_kernel_becomes_the_platforms_once(
    service: Service, tmp_path: Path
) -> None:
    initrd = tmp_path / "initrd.img"
    initrd.write_bytes(b"070701" + os.urandom(1000))
    sha256 = hashlib.sha256(initrd.read_bytes()).hexdigest()
    first = await service.lessor.register_platform(initrd, "initrd", sha256)
    assert await service.lessor.register_platform(initrd, "initrd", sha256) == first
    leased = await service.lessor.acquire(OTHER, VM, [first])
    assert leased.assets[0].kind == "initrd"
    assert initrd.exists()
    staging = tmp_path / "assets" / "staging"
    assert list(staging.iterdir()) == []
    with pytest.raises(FailedPrecondition, match="missing"):
        await service.lessor.register_platform(tmp_path / "none", "initrd", "0" * 64)


async def test_nobody_there_is_worth_a_repeat(tmp_path: Path) -> None:
    ensure_service_keys(tmp_path)
    url = f"http://127.0.0.1:{free_port()}"
    settings = AssetSettings(data_dir=tmp_path, assetmanagerd_url=url)
    signer = ServiceSigner.load(tmp_path, "metald", settings.trust_domain, SystemClock())
    lessor = AssetClient(Clients(settings=settings, signer=signer), tmp_path)
    with pytest.raises(Unavailable):
        await lessor.renew(["lse_x"])
