"""What is true of a bucket alone: a store that is down, slow or lies; and the cache before it."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ironworks.assetmanagerd.bytes.bucket import BucketBackend
from ironworks.assetmanagerd.bytes.cache import HostCache
from ironworks.assetmanagerd.types import AssetState
from ironworks.model.errors import (
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    ResourceExhausted,
    Unavailable,
)
from ironworks.runtime.clock import SystemClock
from ironworks.storage.objects import Bucket, ObjectStore
from ironworks.testkit.assets import ACME, EVIL, METALD, AssetWorld, asset_world, facts, squashfs
from ironworks.testkit.lyingstore import Lie, LyingStore, lying_store
from ironworks.testkit.seaweed import Seaweed

BODY = squashfs(os.urandom(300_000))
SHA256 = hashlib.sha256(BODY).hexdigest()
CACHE_BYTES = 2_000_000


async def nothing_is_leased() -> frozenset[str]:
    return frozenset()


def backend(bucket: Bucket, cache_dir: Path) -> BucketBackend:
    """A bucket's bytes, with a cache of its own."""
    clock = SystemClock()
    cache = HostCache(cache_dir, limit_bytes=CACHE_BYTES, leased=nothing_is_leased, clock=clock)
    return BucketBackend(ObjectStore(bucket, clock), cache)


@pytest.fixture
async def proxy(s3: Seaweed) -> AsyncIterator[LyingStore]:
    async with lying_store(s3.endpoint) as made:
        yield made


@pytest.fixture
async def kept(s3: Seaweed, proxy: LyingStore, tmp_path: Path) -> BucketBackend:
    made = backend(s3.bucket(endpoint=proxy.endpoint, timeout_seconds=0.5), tmp_path / "cache")
    await made.open()
    return made


@pytest.fixture
async def world(kept: BucketBackend, tmp_path: Path) -> AsyncIterator[AssetWorld]:
    async with asset_world(tmp_path / "data", kept) as made:
        yield made


def staged(directory: Path, body: bytes = BODY) -> Path:
    path = directory / "staged"
    path.write_bytes(body)
    return path


WRITING = [
    (Lie.OTHER_ETAG, DataLoss, "did not keep"),
    (Lie.SHORT_BODY, DataLoss, "did not keep"),
    (Lie.FLIPPED_BYTE, DataLoss, "did not keep"),
    (Lie.KEEPS_NOTHING, DataLoss, "did not keep"),
    (Lie.CUT_BODY, Unavailable, "does not work"),
    (Lie.FAILS, Unavailable, "does not work"),
    (Lie.HANGS_UP, Unavailable, "does not work"),
    (Lie.STALLS, DeadlineExceeded, "in time|within"),
]


@pytest.mark.parametrize(
    ("lie", "error", "message"), WRITING, ids=lambda one: getattr(one, "name", None)
)
async def test_what_a_store_lies_about_is_not_registered(
    world: AssetWorld, proxy: LyingStore, lie: Lie, error: type[Exception], message: str
) -> None:
    first = await world.asset(squashfs(b"makes the bucket"))
    proxy.lie = lie
    name = world.stage(BODY)
    with pytest.raises(error, match=message):
        await world.intake.register(ACME, facts(BODY), name, "key")
    # The record says that it is not validated, and its bytes wait: it is taken up again.
    assert name in world.files.staging.names()
    proxy.lie = Lie.NONE
    asset, existed = await world.intake.register(ACME, facts(BODY), name, "key")
    assert asset.state is AssetState.AVAILABLE
    assert not existed
    assert await world.files.kept.problem(asset.stored_as, len(BODY)) == ""
    assert world.files.staging.names() == {}
    assert await world.kept() == sorted([first.sha256, SHA256])


READING = [
    (Lie.SHORT_BODY, DataLoss, "damaged"),
    (Lie.FLIPPED_BYTE, DataLoss, "damaged"),
    (Lie.CUT_BODY, Unavailable, "does not work"),
    (Lie.FAILS, Unavailable, "does not work"),
    (Lie.HANGS_UP, Unavailable, "does not work"),
    (Lie.STALLS, DeadlineExceeded, "in time|within"),
]


@pytest.mark.parametrize(("lie", "error", "message"), READING, ids=str)
async def test_nothing_wrong_enters_the_cache(
    s3: Seaweed, proxy: LyingStore, tmp_path: Path, lie: Lie, error: type[Exception], message: str
) -> None:
    bucket = s3.bucket(endpoint=proxy.endpoint, timeout_seconds=0.5)
    await backend_with(bucket, tmp_path / "other").keep(staged(tmp_path), SHA256, len(BODY))
    here = backend_with(bucket, tmp_path / "cache")
    proxy.lie = lie
    with pytest.raises(error, match=message):
        async with here.local(SHA256, len(BODY)):
            pass
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []
    proxy.lie = Lie.NONE
    async with here.local(SHA256, len(BODY)) as path:
        assert path.read_bytes() == BODY


def backend_with(bucket: Bucket, cache_dir: Path) -> BucketBackend:
    """As `backend`, with the directories of its cache."""
    for name in ("sha256", "partial"):
        (cache_dir / name).mkdir(parents=True)
    return backend(bucket, cache_dir)


async def test_a_store_that_fails_is_left_alone_for_a_while(
    kept: BucketBackend, proxy: LyingStore, tmp_path: Path
) -> None:
    path = staged(tmp_path)
    proxy.lie = Lie.FAILS
    for _ in range(5):
        with pytest.raises(Unavailable, match="does not work"):
            await kept.check(SHA256, len(BODY))
    asked = len(proxy.requests)
    assert asked == 5 * 4  # each is repeated three times
    with pytest.raises(Unavailable, match="paused"):
        await kept.keep(path, SHA256, len(BODY))
    assert len(proxy.requests) == asked
    assert path.exists()


async def test_a_store_that_is_down_keeps_no_vm_from_what_is_in_the_cache(
    world: AssetWorld, proxy: LyingStore
) -> None:
    asset = await world.asset(BODY)
    proxy.lie = Lie.HANGS_UP
    lease, _ = await world.leasing.acquire(
        METALD, [asset.asset_id], holder="vm_1", purpose="", ttl_seconds=0, key=""
    )
    jail = world.jail()
    files = [(asset.asset_id, "rootfs")]
    await world.leasing.prepare(METALD, lease.lease_id, str(jail), files)
    assert (jail / "rootfs").read_bytes() == BODY
    # What cannot be asked is not known to be damaged.
    with pytest.raises(Unavailable):
        await world.registry.verify(ACME, asset.asset_id)
    assert (await world.registry.get(ACME, asset.asset_id)).damage == ""


async def test_many_who_want_the_same_fetch_it_once(
    s3: Seaweed, proxy: LyingStore, tmp_path: Path
) -> None:
    bucket = s3.bucket(endpoint=proxy.endpoint)
    await backend_with(bucket, tmp_path / "other").keep(staged(tmp_path), SHA256, len(BODY))
    here = backend_with(bucket, tmp_path / "cache")
    proxy.requests.clear()

    async def want() -> int:
        async with here.local(SHA256, len(BODY)) as path:
            return path.stat().st_ino

    assert len(set(await asyncio.gather(*(want() for _ in range(20))))) == 1
    assert [one.split()[0] for one in proxy.requests] == ["GET"]


async def test_two_tenants_with_the_same_bytes_are_treated_alike(
    world: AssetWorld, proxy: LyingStore
) -> None:
    seen: list[list[str]] = []
    for who in (ACME, EVIL):
        proxy.requests.clear()
        await world.asset(BODY, who)
        seen.append([one.split()[0] for one in proxy.requests])
    assert seen[0] == seen[1]
    assert await world.kept() == [SHA256]


async def test_a_cache_that_leases_fill_refuses_and_evicts_nothing(
    s3: Seaweed, tmp_path: Path
) -> None:
    clock, held = SystemClock(), set[str]()

    async def leased() -> frozenset[str]:
        return frozenset(held)

    cache = HostCache(tmp_path / "cache", limit_bytes=250_000, leased=leased, clock=clock)
    kept = BucketBackend(ObjectStore(s3.bucket(), clock), cache)
    await kept.open()
    bodies = [os.urandom(100_000) for _ in range(4)]
    names = [hashlib.sha256(body).hexdigest() for body in bodies]
    for body, name in zip(bodies, names, strict=True):
        await kept.keep(staged(tmp_path, body), name, len(body))
    assert cache.names() == names[2:]
    held.update(names[2:])
    with pytest.raises(ResourceExhausted, match="cache"):
        async with kept.local(names[0], 100_000):
            pass
    assert cache.names() == names[2:]
    held.remove(names[2])
    async with kept.local(names[0], 100_000) as path:
        assert path.read_bytes() == bodies[0]
    assert cache.names() == [names[3], names[0]]


async def test_credentials_and_bucket_that_are_not_right_are_said_and_not_shown(
    s3: Seaweed, tmp_path: Path
) -> None:
    wrong = Bucket(
        name="assets", endpoint=s3.endpoint, access_key_id="ironworks", secret_access_key="hidden!"
    )
    assert "hidden!" not in repr(wrong)
    with pytest.raises(FailedPrecondition, match="credentials") as caught:
        await backend(wrong, tmp_path).check(SHA256, 1)
    assert "hidden!" not in f"{caught.value}{caught.value.context}"
    with pytest.raises(FailedPrecondition, match="bucket does not exist"):
        await backend(s3.bucket("never-written-to"), tmp_path).check(SHA256, 1)
