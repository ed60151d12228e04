"""assetmanagerd is killed at random moments while bytes come in and go out, garbage too.

After each restart registry, bytes and leases agree: what was acknowledged is there and intact, what
is there has a record, and nothing lies about that belongs to nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest
from protobuf import Oneof
from sqlalchemy import select, update

from ironworks.assetmanagerd import lease_store, store
from ironworks.assetmanagerd.bytes.disk import Hasher, digest
from ironworks.assetmanagerd.tables import ASSETS, DOOMED, LEASES
from ironworks.assetmanagerd.types import Asset, AssetState, LeaseState
from ironworks.gen.ironworks.assetmanagerd.v1 import asset_pb as pb
from ironworks.gen.ironworks.assetmanagerd.v1.asset_connect import AssetServiceClient
from ironworks.model.errors import FailedPrecondition, IronError, NotFound
from ironworks.model.units import MIB
from ironworks.runtime.clock import SystemClock, SystemEntropy
from ironworks.runtime.tasks import Tasks
from ironworks.storage.objects import ObjectStore
from ironworks.storage.sql import Database, sqlite_url
from ironworks.testkit.assets import squashfs
from ironworks.testkit.seaweed import Seaweed, bucket_env
from ironworks.testkit.services import Services, running

KILLS, THOROUGH_KILLS = {"directory": 4, "bucket": 2}, 100
TENANTS = ("tnt_acme", "tnt_evil")
UNUSED = (AssetState.AVAILABLE, AssetState.ARCHIVED, AssetState.DELETED)
CHUNK_BYTES = 256 * 1024
CHANCE = SystemEntropy()
_T = TypeVar("_T")


def any_of(items: list[_T]) -> _T:
    return items[int(CHANCE.uniform(0, len(items)))]


async def until_done(attempt: Callable[[], Awaitable[_T]]) -> _T:
    """Repeat what a kill interrupts, as every client does."""
    for _ in range(1200):
        try:
            return await attempt()
        except IronError as error:
            if not error.retryable:
                raise
        await asyncio.sleep(0.05)
    raise AssertionError("It never came to an end.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Vm:
    """What a VM was given."""

    lease_id: str
    asset_id: str
    sha256: str


@dataclass(kw_only=True)
class Acknowledged:
    """What the clients were told."""

    uploads: dict[tuple[str, str], str] = field(default_factory=dict[tuple[str, str], str])
    """(tenant, SHA-256) → asset."""
    vms: dict[Path, Vm] = field(default_factory=dict[Path, Vm])
    """File → what it is of, as long as its VM lives."""
    litter: dict[str, str] = field(default_factory=dict[str, str])
    """Asset that nobody will use → its tenant."""
    deleted: set[str] = field(default_factory=set[str])


class Workload:
    """Clients that go on from one request to the next while `going` is set."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.clients = services.clients("metald")
        self.known = Acknowledged()
        self.going = asyncio.Event()
        self.busy = 0
        self.idle = asyncio.Condition()
        self.count = 0
        self.bodies = [squashfs(os.urandom(size)) for size in (50_000, 900_000, 3 * MIB)]

    def client(self, tenant: str) -> AssetServiceClient:
        return self.clients.of(AssetServiceClient, "assetmanagerd", tenant_id=tenant)

    async def repeat(self, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await self.going.wait()
            self.busy += 1
            self.count += 1
            try:
                await work()
            finally:
                async with self.idle:
                    self.busy -= 1
                    self.idle.notify_all()

    async def quiet(self) -> None:
        """Let no client begin anything, and wait until none is at it."""
        self.going.clear()
        async with asyncio.timeout(60), self.idle:
            await self.idle.wait_for(lambda: self.busy == 0)

    # --- uploads --------------------------------------------------------------------------------

    async def upload(self) -> None:
        """New bytes, or bytes that somebody has uploaded before."""
        tenant, body = any_of(list(TENANTS)), any_of(self.bodies)
        if CHANCE.uniform(0, 1) < 0.5:
            body = squashfs(os.urandom(int(CHANCE.uniform(1000, 3 * MIB))))
        asset = await self.put(tenant, body)
        self.known.uploads[tenant, asset.sha256] = asset.asset_id

    async def put(self, tenant: str, body: bytes) -> pb.Asset:
        facts = pb.AssetFacts(
            kind=pb.AssetKind.ROOTFS,
            sha256=hashlib.sha256(body).hexdigest(),
            size_bytes=len(body),
        )
        client, key = self.client(tenant), f"upload-{self.count}"

        async def attempt() -> pb.UploadAssetResponse:
            try:
                there = await client.get_upload(pb.GetUploadRequest(idempotency_key=key))
                offset = there.offset_bytes
            except NotFound:
                offset = 0
            return await client.upload_asset(self.parts(facts, key, body, offset))

        done = await until_done(attempt)
        assert done.asset is not None
        assert done.asset.sha256 == facts.sha256
        return done.asset

    async def parts(
        self, facts: pb.AssetFacts, key: str, body: bytes, offset: int
    ) -> AsyncIterator[pb.UploadAssetRequest]:
        start = pb.UploadStart(facts=facts, idempotency_key=key, offset_bytes=offset)
        yield pb.UploadAssetRequest(part=Oneof("start", start))
        for at in range(offset, len(body), CHUNK_BYTES):
            yield pb.UploadAssetRequest(part=Oneof("chunk", body[at : at + CHUNK_BYTES]))
            await asyncio.sleep(0.002)

    # --- leases and files -----------------------------------------------------------------------

    async def boot(self) -> None:
        """Lease an asset and place it in a VM's directory, as metald does."""
        if not self.known.uploads:
            await asyncio.sleep(0.01)
            return
        (tenant, sha256), asset_id = any_of(list(self.known.uploads.items()))
        client, vm = self.client(tenant), f"vm-{self.count}"
        acquire = pb.AcquireLeaseRequest(
            asset_ids=[asset_id], holder=vm, ttl_seconds=3600, idempotency_key=vm
        )
        leased = await until_done(lambda: client.acquire_lease(acquire))
        assert leased.lease is not None
        lease_id = leased.lease.lease_id
        jail = self.services.settings.data_dir / "jails" / vm
        jail.mkdir(parents=True)
        prepare = pb.PrepareAssetsRequest(
            lease_id=lease_id,
            directory=str(jail),
            files=[pb.PreparedFile(asset_id=asset_id, file_name="rootfs")],
        )
        await until_done(lambda: client.prepare_assets(prepare))
        self.known.vms[jail / "rootfs"] = Vm(lease_id=lease_id, asset_id=asset_id, sha256=sha256)

    async def delete(self) -> None:
        """Remove a VM's directory, then give its lease back."""
        if not self.known.vms:
            await asyncio.sleep(0.01)
            return
        path = any_of(list(self.known.vms))
        vm = self.known.vms.pop(path)
        shutil.rmtree(path.parent)
        release = pb.ReleaseLeaseRequest(lease_id=vm.lease_id)
        client = self.clients.of(AssetServiceClient, "assetmanagerd")
        ended = await until_done(lambda: client.release_lease(release))
        assert ended.lease is not None
        assert ended.lease.state is pb.LeaseState.RELEASED

    # --- garbage ----------------------------------------------------------------------------------

    async def litter(self) -> None:
        """Upload what nobody will use."""
        tenant = any_of(list(TENANTS))
        asset = await self.put(tenant, squashfs(os.urandom(100_000)))
        self.known.litter[asset.asset_id] = tenant

    async def collect(self) -> None:
        """What is old goes; see `age`."""
        client = self.services.clients("gatewayd").of(AssetServiceClient, "assetmanagerd")
        done = await until_done(lambda: client.collect_garbage(pb.CollectGarbageRequest()))
        collected = {one.asset_id for one in done.verdicts if one.collected}
        assert collected <= set(self.known.litter)
        self.known.deleted |= collected
        await asyncio.sleep(0.01)

    async def discard(self) -> None:
        """Archive and delete by hand, unless garbage collection came first."""
        left = [one for one in self.known.litter if one not in self.known.deleted]
        if not left:
            await asyncio.sleep(0.01)
            return
        asset_id = any_of(left)
        tenant = self.known.litter[asset_id]
        clients = self.services.clients("gatewayd")
        client = clients.of(AssetServiceClient, "assetmanagerd", tenant_id=tenant)
        key = f"discard-{self.count}"
        archive = pb.ArchiveAssetRequest(asset_id=asset_id, idempotency_key=key)
        delete = pb.DeleteAssetRequest(asset_id=asset_id, idempotency_key=key)
        with contextlib.suppress(FailedPrecondition):
            await until_done(lambda: client.archive_asset(archive))
            await until_done(lambda: client.delete_asset(delete))
            self.known.deleted.add(asset_id)


def age(data_dir: Path, asset_ids: set[str]) -> None:
    """Let assets look as if nobody had used them for years."""
    database = Database(sqlite_url(data_dir / "assetmanagerd" / "assetmanagerd.db"))
    statement = update(ASSETS).where(ASSETS.c.asset_id.in_(asset_ids))
    try:
        with database.engine.execution_options(iw_write=True).begin() as connection:
            connection.execute(statement.values(created_at_ns=1, last_used_at_ns=1))
    finally:
        database.close()


# --- agreement ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What the store has."""

    assets: list[Asset]
    doomed: set[str]
    uploads: frozenset[str]
    leases: set[str]


def read_all(data_dir: Path) -> Found:
    """Records, bytes to be removed, names that uploads have staged, ACTIVE leases."""
    database = Database(sqlite_url(data_dir / "assetmanagerd" / "assetmanagerd.db"))
    active = select(LEASES.c.lease_id).where(LEASES.c.state == LeaseState.ACTIVE.value)
    try:
        with database.engine.connect() as connection:
            records = [store.in_state(connection, state, 100_000) for state in AssetState]
            return Found(
                assets=[asset for some in records for asset in some],
                doomed=set(connection.execute(select(DOOMED.c.object_name)).scalars()),
                uploads=lease_store.upload_names(connection),
                leases=set(connection.execute(active).scalars()),
            )
    finally:
        database.close()


async def settled(data_dir: Path) -> Found:
    """All of it, once interrupted registrations have been taken up."""
    async with asyncio.timeout(60):
        while True:
            found = await asyncio.to_thread(read_all, data_dir)
            if all(asset.state is not AssetState.REGISTERED for asset in found.assets):
                return found
            await asyncio.sleep(0.1)


def hashed(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


async def kept(data_dir: Path, objects: ObjectStore | None) -> dict[str, str]:
    """Name → SHA-256 of all that is kept, read again."""
    if objects is None:
        paths = list((data_dir / "assets" / "objects").glob("sha256/??/*"))
        assert not any(path.stat().st_mode & 0o222 for path in paths)
        return {path.name: hashed(path) for path in paths}
    found: dict[str, str] = {}
    async for key in objects.keys("sha256"):
        hasher = Hasher()
        await objects.read(key, 0, hasher.update)
        found[key.rpartition("/")[2]] = hasher.result().sha256
    return found


async def check(data_dir: Path, known: Acknowledged, objects: ObjectStore | None) -> None:
    """Registry, bytes, leases and VMs' directories agree with each other and with the clients."""
    found = await settled(data_dir)
    assets, doomed = found.assets, found.doomed
    live = {
        asset.stored_as
        for asset in assets
        if asset.state in (AssetState.AVAILABLE, AssetState.IN_USE, AssetState.ARCHIVED)
    }
    files = await kept(data_dir, objects)
    assert live <= set(files), "records without bytes"
    assert set(files) <= live | doomed, "bytes without a record"
    assert all(sha256 == digest(name) for name, sha256 in files.items())
    staged = {path.name for path in (data_dir / "assets" / "staging").iterdir()}
    assert staged <= found.uploads
    by_id = {asset.asset_id: asset for asset in assets}
    for asset in assets:
        assert (asset.state is AssetState.IN_USE) == (asset.lease_count > 0)
        assert not asset.damage
    for (tenant, sha256), asset_id in known.uploads.items():
        asset = by_id[asset_id]
        assert (asset.tenant_id, asset.sha256) == (tenant, sha256)
        assert asset.state in (AssetState.AVAILABLE, AssetState.IN_USE)
    for asset_id in known.deleted:
        assert by_id[asset_id].state is AssetState.DELETED
    for asset_id in known.litter:
        assert by_id[asset_id].state in UNUSED
    assert found.leases == {vm.lease_id for vm in known.vms.values()}
    for path, vm in known.vms.items():
        assert by_id[vm.asset_id].state is AssetState.IN_USE
        assert hashed(path) == vm.sha256
    there = {path for path in (data_dir / "jails").rglob("*") if path.is_file()}
    assert there == set(known.vms)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("backend", KILLS)
async def test_registry_bytes_and_leases_agree_after_every_kill(
    request: pytest.FixtureRequest, tmp_path: Path, backend: str, *, thorough: bool
) -> None:
    env = {"IRONWORKS_MIN_FREE_BYTES": "0"}
    objects: ObjectStore | None = None
    if backend == "bucket":
        server: Seaweed = request.getfixturevalue("s3")
        bucket = server.bucket()
        objects = ObjectStore(bucket, SystemClock())
        env |= bucket_env(bucket)
    async with running(tmp_path, ["assetmanagerd"], env) as services, Tasks() as tasks:
        workload = Workload(services)
        clients = [workload.upload] * 3 + [workload.boot] * 2 + [workload.delete]
        clients += [workload.litter, workload.collect, workload.discard]
        ends = [
            tasks.start(workload.repeat(work), name=f"client {number}")
            for number, work in enumerate(clients)
        ]
        kills = THOROUGH_KILLS if thorough else KILLS[backend]
        for number in range(10 * kills):
            if number >= kills and workload.known.deleted:
                break
            workload.going.set()
            await asyncio.sleep(CHANCE.uniform(0.0, 0.6))
            if number < kills:
                await services.end("assetmanagerd", signal.SIGKILL)
                await services.start("assetmanagerd")
            await workload.quiet()
            assert not [end for end in ends if end.done()], "a client was refused something"
            await check(tmp_path, workload.known, objects)
            await asyncio.to_thread(age, tmp_path, set(workload.known.litter))
        assert workload.known.deleted
        assert workload.known.uploads
