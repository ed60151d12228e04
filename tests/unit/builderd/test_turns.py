from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from ironworks.builderd import store, turns
from ironworks.builderd.decide import move
from ironworks.builderd.types import Build, BuildState, RootfsFormat
from ironworks.storage.migrate import upgrade
from ironworks.storage.sql import Database


def build(number: int, tenant_id: str, priority: int = 2) -> Build:
    return Build(
        build_id=f"bld_{number:02}",
        tenant_id=tenant_id,
        image="app",
        format=RootfsFormat.SQUASHFS,
        state=BuildState.QUEUED,
        created_at_ns=1,
        updated_at_ns=1,
        timeout_seconds=60,
        priority=priority,
    )


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    made = Database(database_url)
    upgrade(made.engine, "ironworks.builderd.migrations")
    yield made
    made.close()


async def add(database: Database, *builds: Build) -> None:
    for one in builds:
        await database.write(lambda c, one=one: store.insert_build(c, one))


class Queue:
    """Takes turns, a nanosecond apart."""

    def __init__(self, database: Database, max_per_tenant: int = 9) -> None:
        self._database = database
        self._max_per_tenant = max_per_tenant
        self.now_ns = 100

    async def begin(self, turn: str, max_attempts: int = 9) -> Build | bool:
        self.now_ns += 1
        now_ns = self.now_ns
        return await self._database.write(
            lambda c: turns.begin(
                c,
                turn,
                "w",
                max_per_tenant=self._max_per_tenant,
                max_attempts=max_attempts,
                now_ns=now_ns,
            )
        )

    async def end(self, taken: Build) -> None:
        self.now_ns += 1
        now_ns = self.now_ns
        done = move(taken, BuildState.CANCELLED, now_ns)
        await self._database.write(lambda c: store.change_build(c, taken, done, now_ns))


async def test_tenants_take_turns_and_priorities_order_each_ones_builds(database: Database) -> None:
    many = [build(n, "tnt_a") for n in range(3)]
    await add(database, *many, build(3, "tnt_a", 3), build(4, "tnt_b"), build(5, "tnt_b", 1))
    queue, order = Queue(database), list[str]()
    for number in range(6):
        taken = await queue.begin(f"turn{number}")
        assert isinstance(taken, Build)
        order.append(taken.build_id)
        await queue.end(taken)
    assert order == ["bld_03", "bld_04", "bld_00", "bld_05", "bld_01", "bld_02"]
    assert await queue.begin("more") is False


async def test_who_has_as_many_as_it_may_waits(database: Database) -> None:
    await add(database, build(1, "tnt_a"), build(2, "tnt_a"))
    queue = Queue(database, max_per_tenant=1)
    taken = await queue.begin("one")
    assert isinstance(taken, Build)
    assert await queue.begin("two") is True
    await queue.end(taken)
    assert isinstance(await queue.begin("two"), Build)


async def test_a_turn_that_begins_again_has_its_own_build(database: Database) -> None:
    await add(database, build(1, "tnt_a"), build(2, "tnt_a"))
    queue = Queue(database)
    first = await queue.begin("one")
    again = await queue.begin("one")
    assert isinstance(first, Build)
    assert isinstance(again, Build)
    assert (again.build_id, again.attempt_count) == (first.build_id, 2)
    # It has been taken up too often: it fails, and the turn goes to another build.
    other = await queue.begin("one", max_attempts=2)
    assert isinstance(other, Build)
    assert other.build_id == "bld_02"
    failed = await database.read(lambda c: store.read_build(c, "bld_01"))
    assert failed is not None
    assert failed.failure is not None
    assert "died 2 times" in failed.failure.message


async def test_one_build_at_a_time_has_a_lock(database: Database) -> None:
    async def lock(holder: str, until_ns: int, now_ns: int) -> str:
        return await database.write(lambda c: turns.lock(c, "key", holder, until_ns, now_ns))

    assert await lock("bld_1", 10, 0) == "bld_1"
    assert await lock("bld_2", 10, 5) == "bld_1"
    assert await lock("bld_1", 20, 5) == "bld_1"
    assert await lock("bld_2", 30, 15) == "bld_1"
    await database.write(lambda c: turns.renew(c, "bld_1", 40))
    assert await lock("bld_2", 50, 35) == "bld_1"
    assert await lock("bld_2", 60, 41) == "bld_2"
    await database.write(lambda c: turns.unlock(c, "bld_1"))
    assert await lock("bld_1", 60, 42) == "bld_2"
    await database.write(lambda c: turns.unlock(c, "bld_2"))
    assert await lock("bld_1", 60, 43) == "bld_1"


async def test_waiting_counts_what_runs(database: Database) -> None:
    await add(database, build(1, "tnt_a"), build(2, "tnt_a"), build(3, "tnt_b"))
    taken = await Queue(database).begin("one")
    assert isinstance(taken, Build)
    found = await database.read(turns.waiting)
    assert [(one.build_id, one.running) for one in found] == [("bld_02", 1), ("bld_03", 0)]
    assert replace(found[0], served_at_ns=0) != found[0]
