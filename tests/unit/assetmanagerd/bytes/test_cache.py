from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import pytest

from ironworks.assetmanagerd.bytes.cache import HostCache
from ironworks.model.errors import DataLoss, ResourceExhausted
from ironworks.testkit.clock import FakeClock

LIMIT_BYTES = 1000


class Source:
    """Where the bytes come from."""

    def __init__(self) -> None:
        self.fetched: list[str] = []
        self.broken = False
        self.slow = False

    def body(self, number: int, size_bytes: int = 300) -> bytes:
        return str(number).encode() * size_bytes

    def name(self, number: int, size_bytes: int = 300) -> str:
        return hashlib.sha256(self.body(number, size_bytes)).hexdigest()


class World:
    """A cache and what it is asked for."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = FakeClock()
        self.source = Source()
        self.held: set[str] = set()
        self.cache = self.made()

    def made(self) -> HostCache:
        return HostCache(
            self.directory, limit_bytes=LIMIT_BYTES, leased=self.leased, clock=self.clock
        )

    async def leased(self) -> frozenset[str]:
        await asyncio.sleep(0)
        return frozenset(self.held)

    async def want(self, number: int, size_bytes: int = 300) -> int:
        """Ask for a file; answers its inode."""
        body, name = self.source.body(number, size_bytes), self.source.name(number, size_bytes)

        async def fetch(path: Path) -> None:
            self.source.fetched.append(name)
            path.write_bytes(body[:100])
            await asyncio.sleep(0)
            if self.source.broken:
                raise DataLoss("broken")
            path.write_bytes(body)

        await self.clock.advance(1)
        async with self.cache.file(name, size_bytes, fetch) as path:
            await asyncio.sleep(0)
            assert path.read_bytes() == body
            return path.stat().st_ino

    def numbers(self) -> list[int]:
        """What is in the cache, least recently used first."""
        known = {self.source.name(number): number for number in range(20)}
        return [known[name] for name in self.cache.names()]


@pytest.fixture
async def world(tmp_path: Path) -> World:
    made = World(tmp_path / "cache")
    await made.cache.open()
    return made


async def test_the_least_recently_used_goes(world: World) -> None:
    for number in (1, 2, 3, 1, 4):
        await world.want(number)
    assert world.numbers() == [3, 1, 4]
    assert not world.cache.path(world.source.name(2)).exists()
    assert world.cache.size_bytes == 900
    assert len(world.source.fetched) == 4


async def test_what_is_leased_never_goes(world: World) -> None:
    for number in (1, 2, 3):
        await world.want(number)
    world.held = {world.source.name(1), world.source.name(2)}
    await world.want(4)
    assert world.numbers() == [1, 2, 4]
    world.held.add(world.source.name(4))
    with pytest.raises(ResourceExhausted, match="full of what VMs use"):
        await world.want(5)
    assert world.numbers() == [1, 2, 4]
    assert world.cache.size_bytes == 900


async def test_what_is_larger_than_the_cache_takes_nothing_away(world: World) -> None:
    await world.want(1)
    with pytest.raises(ResourceExhausted):
        await world.want(2, LIMIT_BYTES + 1)
    assert world.numbers() == [1]


async def test_many_who_want_the_same_fetch_it_once(world: World) -> None:
    inodes = await asyncio.gather(*(world.want(1) for _ in range(20)))
    assert len(set(inodes)) == 1
    assert len(world.source.fetched) == 1


async def test_many_who_want_others_never_exceed_the_limit(world: World) -> None:
    wanted = [number % 10 for number in range(60)]
    answers = await asyncio.gather(*map(world.want, wanted), return_exceptions=True)
    assert all(isinstance(one, int | ResourceExhausted) for one in answers)
    assert any(isinstance(one, int) for one in answers)
    assert world.cache.size_bytes <= LIMIT_BYTES
    there = [path for path in world.directory.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in there) == world.cache.size_bytes


async def test_what_did_not_come_leaves_nothing(world: World) -> None:
    world.source.broken = True
    with pytest.raises(DataLoss):
        await world.want(1)
    assert [path for path in world.directory.rglob("*") if path.is_file()] == []
    assert world.cache.size_bytes == 0
    world.source.broken = False
    await world.want(1)


async def test_a_restart_knows_what_is_there_and_in_which_order(world: World) -> None:
    for number in (1, 2, 3, 1):
        await world.want(number)
    (world.directory / "partial" / "x").write_bytes(b"interrupted")
    world.cache = world.made()
    await world.cache.open()
    assert world.numbers() == [2, 3, 1]
    assert list((world.directory / "partial").iterdir()) == []
    await world.want(4)
    assert world.numbers() == [3, 1, 4]


async def test_a_file_that_vanished_or_was_cut_is_fetched_again(world: World) -> None:
    await world.want(1)
    path = world.cache.path(world.source.name(1))
    path.unlink()
    await world.want(1)
    path.chmod(0o644)
    path.write_bytes(b"cut")
    path.chmod(0o444)
    await world.want(1)
    assert len(world.source.fetched) == 3


async def test_a_damaged_file_is_forgotten(world: World) -> None:
    await world.want(1)
    await world.want(2)
    path = world.cache.path(world.source.name(1))
    path.chmod(0o644)
    path.write_bytes(os.urandom(300))
    path.chmod(0o444)
    for number in (1, 2, 3):
        await world.cache.drop_if_damaged(world.source.name(number))
    assert world.numbers() == [2]


async def test_what_was_just_verified_is_taken_over_if_there_is_room(
    world: World, tmp_path: Path
) -> None:
    for number, size_bytes in ((1, 300), (2, LIMIT_BYTES + 1)):
        staged = tmp_path / "staged"
        staged.write_bytes(world.source.body(number, size_bytes))
        await world.cache.take(staged, world.source.name(number, size_bytes), size_bytes)
        assert not staged.exists()
    assert world.numbers() == [1]
    await world.want(1)
    assert world.source.fetched == []
    await world.cache.drop(world.source.name(1))
    await world.cache.drop(world.source.name(1))
    assert world.numbers() == []
    assert await world.cache.leftovers() == 0
