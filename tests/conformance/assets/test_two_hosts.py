"""Two assetmanagerd over one PostgreSQL and one bucket: what one does never harms the other."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from protobuf import Oneof

from ironworks.assetmanagerd import garbage_store, store
from ironworks.assetmanagerd.bytes.bucket import BucketBackend
from ironworks.assetmanagerd.bytes.cache import HostCache
from ironworks.assetmanagerd.lease_store import facts_bytes
from ironworks.assetmanagerd.types import Asset, AssetState
from ironworks.gen.ironworks.assetmanagerd.v1 import asset_pb as pb
from ironworks.gen.ironworks.assetmanagerd.v1.asset_connect import AssetServiceClient
from ironworks.model.errors import FailedPrecondition, InvalidRequest, IronError, NotFound
from ironworks.runtime.clock import SystemClock, SystemEntropy
from ironworks.runtime.tasks import Tasks
from ironworks.storage.objects import Bucket, ObjectStore
from ironworks.testkit.assets import ACME, METALD, AssetWorld, asset_world, facts, squashfs
from ironworks.testkit.clock import FakeEntropy
from ironworks.testkit.seaweed import Seaweed, bucket_env
from ironworks.testkit.services import Services, running

STEPS, THOROUGH_STEPS = 60, 2_000
BODIES = [squashfs(bytes([number])) for number in range(3)]
USABLE = (AssetState.AVAILABLE, AssetState.IN_USE, AssetState.ARCHIVED)


async def nothing_is_leased() -> frozenset[str]:
    return frozenset()


class LateBackend(BucketBackend):
    """A bucket that is told to remove things, and does so when the test lets it."""

    def __init__(self, bucket: Bucket, cache_dir: Path) -> None:
        clock = SystemClock()
        cache = HostCache(cache_dir, limit_bytes=1 << 20, leased=nothing_is_leased, clock=clock)
        super().__init__(ObjectStore(bucket, clock), cache)
        self.is_late = False
        self.waiting: list[asyncio.Event] = []
        self.asked = asyncio.Event()

    async def remove(self, name: str) -> None:
        if self.is_late:
            told = asyncio.Event()
            self.waiting.append(told)
            self.asked.set()
            await told.wait()
        await super().remove(name)

    def let(self, count: int) -> None:
        """Do the first of what waits."""
        for told in self.waiting[:count]:
            told.set()
        del self.waiting[:count]


@dataclass(kw_only=True)
class Hosts:
    """Two worlds over the same registry and the same bytes."""

    one: AssetWorld
    other: AssetWorld

    @property
    def both(self) -> tuple[AssetWorld, AssetWorld]:
        return self.one, self.other

    async def advance(self, seconds: float) -> None:
        for world in self.both:
            await world.clock.advance(seconds)


def late(world: AssetWorld) -> LateBackend:
    kept = world.files.kept
    assert isinstance(kept, LateBackend)
    return kept


@pytest.fixture
async def hosts(s3: Seaweed, tmp_path: Path, postgres_url: str) -> AsyncIterator[Hosts]:
    bucket = s3.bucket()
    async with AsyncExitStack() as stack:
        one, other = [
            await stack.enter_async_context(
                asset_world(
                    tmp_path / name, LateBackend(bucket, tmp_path / name / "cache"), postgres_url
                )
            )
            for name in ("one", "other")
        ]
        yield Hosts(one=one, other=other)


async def deleted(world: AssetWorld, asset: Asset) -> None:
    await world.registry.archive(ACME, asset.asset_id, "", "")
    await world.registry.delete(ACME, asset.asset_id, "", "")


async def test_bytes_that_one_host_removes_late_are_not_those_that_the_other_registers(
    hosts: Hosts,
) -> None:
    asset = await hosts.one.asset()
    late(hosts.one).is_late = True
    async with Tasks() as tasks:
        removal = tasks.start(deleted(hosts.one, asset), name="removal")
        await late(hosts.one).asked.wait()
        # The one has looked, found that nobody needs them, and is about to remove them.
        again = await hosts.other.asset()
        assert again.asset_id != asset.asset_id
        late(hosts.one).let(1)
        await removal
    assert await hosts.other.registry.remove_doomed() == 0
    for world in hosts.both:
        assert (await world.registry.verify(ACME, again.asset_id))[1] == ""
    assert await hosts.one.kept() == [again.sha256]


async def test_what_one_host_is_validating_the_other_does_not_take_up(hosts: Hosts) -> None:
    begin = hosts.one.intake._claim  # pyright: ignore[reportPrivateUsage]
    name, said = hosts.one.stage(BODIES[0]), facts(BODIES[0])
    asset, _ = await begin(ACME, ACME.tenant_id, said, name, "", facts_bytes(said))
    assert await hosts.other.intake.resume() == 0
    assert await hosts.one.intake.resume() == 1
    assert (await hosts.other.registry.get(ACME, asset.asset_id)).state is AssetState.AVAILABLE


async def test_what_a_host_that_is_gone_was_validating_fails_in_the_end(hosts: Hosts) -> None:
    await hosts.other.asset(squashfs(b"makes the bucket"))
    begin = hosts.one.intake._claim  # pyright: ignore[reportPrivateUsage]
    said = facts(BODIES[0])
    asset, _ = await begin(ACME, ACME.tenant_id, said, "staged", "", facts_bytes(said))
    await hosts.advance(hosts.one.settings.upload_ttl_seconds + 1)
    assert await hosts.other.intake.resume() == 1
    assert (await hosts.other.registry.get(ACME, asset.asset_id)).state is AssetState.FAILED


# --- whatever comes in between ------------------------------------------------------------------


@dataclass
class Model:
    """Deeds on either host, while removals are on their way for any time."""

    hosts: Hosts
    entropy: FakeEntropy
    seed: int
    assets: list[str] = field(default_factory=list[str])
    leases: list[str] = field(default_factory=list[str])
    staged: int = 0
    done: int = 0

    def choose(self, count: int) -> int:
        return int.from_bytes(self.entropy.token_bytes(4)) % count

    def world(self) -> AssetWorld:
        return self.hosts.both[self.choose(2)]

    def asset(self) -> str:
        recent = self.assets[-5:]
        return recent[self.choose(len(recent))] if recent else "ast_none"

    async def register(self) -> None:
        self.staged += 1
        body = BODIES[self.choose(len(BODIES))]
        asset = await self.world().asset(body, name=f"staged{self.staged}")
        if asset.asset_id not in self.assets:
            self.assets.append(asset.asset_id)

    async def acquire(self) -> None:
        lease, _ = await self.world().leasing.acquire(
            METALD, [self.asset()], holder="vm", purpose="", ttl_seconds=60, key=""
        )
        self.leases.append(lease.lease_id)

    async def release(self) -> None:
        if self.leases:
            await self.world().leasing.release(METALD, self.leases.pop(0))

    async def expire(self) -> None:
        await self.world().leasing.expire_leases()

    async def delete(self) -> None:
        world, asset_id = self.world(), self.asset()
        await world.registry.archive(ACME, asset_id, "", "")
        await world.registry.delete(ACME, asset_id, "", "")

    async def collect(self) -> None:
        await self.world().registry.collect(dry_run=False)

    async def repair(self) -> None:
        await self.world().repair.run()

    async def resume(self) -> None:
        await self.world().intake.resume()

    async def do(self, deed: str) -> None:
        act: Callable[[], Awaitable[None]] = getattr(self, deed)
        try:
            await act()
            self.done += 1
        except (FailedPrecondition, InvalidRequest, NotFound):
            pass
        except IronError as error:
            assert error.retryable, error  # noqa: PT017 - nothing else may come out of a race

    async def check(self) -> None:
        """Every usable record has its bytes, whatever is being removed meanwhile."""
        assets = await self.hosts.one.database.read(
            lambda c: store.read_assets(c, self.assets[-20:])
        )
        for asset in assets.values():
            assert not asset.damage, self.seed
            assert (asset.state is AssetState.IN_USE) == (asset.lease_count > 0), self.seed
            if asset.state in USABLE:
                kept = self.world().files.kept
                problem = await kept.problem(asset.stored_as, asset.size_bytes)
                assert not problem, f"{problem} Seed {self.seed}."


DEEDS = (
    *("register",) * 5,
    *("acquire",) * 3,
    *("release",) * 3,
    *("delete",) * 4,
    *("collect",) * 2,
    *("expire", "repair", "resume"),
)


@pytest.mark.timeout(3600)
async def test_no_order_of_deeds_on_two_hosts_takes_bytes_from_a_record(
    hosts: Hosts, *, thorough: bool
) -> None:
    seed = int.from_bytes(SystemEntropy().token_bytes(4))
    model = Model(hosts, FakeEntropy(seed), seed)
    for world in hosts.both:
        late(world).is_late = True
    taken, steps = 0, THOROUGH_STEPS if thorough else STEPS
    async with Tasks() as tasks:
        under_way: list[asyncio.Task[None]] = []
        while taken < steps:
            deeds = [DEEDS[model.choose(len(DEEDS))] for _ in range(1 + model.choose(4))]
            taken += len(deeds)
            new = [tasks.start(model.do(deed), name=deed) for deed in deeds]
            under_way = [task for task in under_way + new if not task.done()]
            # Some of them wait for a removal that comes later, or for one that does.
            await asyncio.wait(new, timeout=0.2)
            for world in hosts.both:
                late(world).let(model.choose(3))
            await model.check()
            await hosts.advance((1, 30, 90, 8 * 86_400)[model.choose(4)])
        while under_way:
            for world in hosts.both:
                late(world).is_late = False
                late(world).let(len(late(world).waiting))
            await asyncio.wait(under_way, timeout=0.1)
            under_way = [task for task in under_way if not task.done()]
    await model.check()
    for world in hosts.both:
        await world.registry.remove_doomed()
    live = await hosts.one.database.read(lambda c: garbage_store.live_objects(c, "", 1000))
    kept = {name async for name in hosts.one.files.kept.objects()}
    doomed = await hosts.one.database.read(
        lambda c: garbage_store.doomed(c, "", 1000, hosts.one.clock.now_ns() + 10**18)
    )
    assert live.keys() <= kept <= live.keys() | set(doomed), seed
    assert model.done > steps / 4


# --- real processes -----------------------------------------------------------------------------


async def parts(body: bytes, key: str) -> AsyncIterator[pb.UploadAssetRequest]:
    claim = facts(body)
    start = pb.UploadStart(
        facts=pb.AssetFacts(
            kind=pb.AssetKind.ROOTFS, sha256=claim.sha256, size_bytes=claim.size_bytes
        ),
        idempotency_key=key,
    )
    yield pb.UploadAssetRequest(part=Oneof("start", start))
    yield pb.UploadAssetRequest(part=Oneof("chunk", body))


async def placed(client: AssetServiceClient, asset_id: str, jail: Path, body: bytes) -> str:
    """Lease an asset and place it, as metald does; answers the lease."""
    leased = await client.acquire_lease(pb.AcquireLeaseRequest(asset_ids=[asset_id], holder="vm"))
    assert leased.lease is not None
    jail.mkdir(parents=True)
    file = pb.PreparedFile(asset_id=asset_id, file_name="rootfs")
    await client.prepare_assets(
        pb.PrepareAssetsRequest(lease_id=leased.lease.lease_id, directory=str(jail), files=[file])
    )
    assert (jail / "rootfs").read_bytes() == body
    return leased.lease.lease_id


async def test_two_processes_share_registry_leases_and_bytes(
    s3: Seaweed, tmp_path: Path, postgres_url: str
) -> None:
    env = {
        "IRONWORKS_MIN_FREE_BYTES": "0",
        "IRONWORKS_ASSETMANAGERD_DATABASE_URL": postgres_url,
        **bucket_env(s3.bucket()),
    }

    def client(services: Services, tenant_id: str = ACME.tenant_id) -> AssetServiceClient:
        clients = services.clients("metald")
        return clients.of(
            AssetServiceClient, "assetmanagerd", tenant_id=tenant_id, timeout_seconds=60
        )

    async with AsyncExitStack() as stack:
        for name in ("one", "other"):
            (tmp_path / name).mkdir()
        # At the same time: one of them makes the tables, the other waits for it.
        starts = [running(tmp_path / name, ["assetmanagerd"], env) for name in ("one", "other")]
        one, other = await asyncio.gather(*map(stack.enter_async_context, starts))
        body = squashfs(os.urandom(300_000))
        # The same bytes, at the same time, of two tenants: each has its asset over one object.
        mine, theirs = await asyncio.gather(
            client(one).upload_asset(parts(body, "key")),
            client(other, "tnt_evil").upload_asset(parts(body, "key")),
        )
        assert mine.asset is not None
        assert theirs.asset is not None
        assert mine.asset.asset_id != theirs.asset.asset_id
        asset_id = mine.asset.asset_id
        lease_id = await placed(client(other), asset_id, tmp_path / "other" / "jails" / "vm", body)
        gateway = one.clients("gatewayd").of(
            AssetServiceClient, "assetmanagerd", tenant_id=ACME.tenant_id
        )
        with pytest.raises(FailedPrecondition, match="in_use"):
            await gateway.archive_asset(pb.ArchiveAssetRequest(asset_id=asset_id))
        await client(other).release_lease(pb.ReleaseLeaseRequest(lease_id=lease_id))
        await gateway.archive_asset(pb.ArchiveAssetRequest(asset_id=asset_id))
        await gateway.delete_asset(pb.DeleteAssetRequest(asset_id=asset_id))
        gone = await client(other).get_asset(pb.GetAssetRequest(asset_id=asset_id))
        assert gone.asset is not None
        assert gone.asset.state is pb.AssetState.DELETED
        verifier = other.clients("gatewayd").of(
            AssetServiceClient, "assetmanagerd", tenant_id="tnt_evil"
        )
        verified = await verifier.verify_asset(
            pb.VerifyAssetRequest(asset_id=theirs.asset.asset_id)
        )
        assert verified.intact, "the other tenant's record still stands for them"
