import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import pytest

from ironworks.metald.app import boot, create, stop
from ironworks.metald.app.changes import (
    KEPT_EVENTS,
    MAX_WATCHERS,
    MAX_WATCHERS_OF_ONE,
    Changes,
    VmChange,
)
from ironworks.metald.app.watching import watch_vms
from ironworks.metald.types import Vm, VmFilter, VmState
from ironworks.model.errors import FailedPrecondition, InvalidRequest, ResourceExhausted
from ironworks.testkit.clock import FakeClock
from ironworks.testkit.metald import OTHER_TENANT, TENANT, World, vm_spec, world

S = VmState
ALL = VmFilter()


@pytest.fixture
async def w(tmp_path: Path) -> AsyncGenerator[World]:
    async with world(tmp_path) as made:
        yield made


async def created(w: World, tenant_id: str = TENANT, **spec: object) -> Vm:
    return await create.create_vm(
        w.context, tenant_id=tenant_id, vm_id="", spec=vm_spec(**spec), idempotency_key=""
    )


async def take(w: World, count: int, wanted: VmFilter = ALL, after: int = 0) -> list[VmChange]:
    """The first `count` events of a watch."""
    found: list[VmChange] = []
    async with asyncio.timeout(10), aclosing(watch_vms(w.context, wanted, after)) as events:
        async for event in events:
            found.append(event)
            if len(found) == count:
                return found
    return found


async def test_a_watch_begins_with_what_is_and_goes_on_with_what_changes(w: World) -> None:
    vms = [await created(w), await created(w)]
    present = await take(w, 2)
    assert [event.vm.vm_id for event in present] == [vm.vm_id for vm in vms]
    # Whoever is cut off before the last one begins anew.
    assert present[0].sequence == 0
    assert present[1].sequence > 0
    await boot.boot_vm(w.context, vms[0], timeout_seconds=0, detach=False)
    told = await take(w, 2, after=present[1].sequence)
    assert [(event.before, event.vm.state) for event in told] == [
        (S.CREATED, S.BOOTING),
        (S.BOOTING, S.RUNNING),
    ]
    assert told[0].sequence < told[1].sequence
    assert told[1].at_ns >= told[0].at_ns


async def test_a_watch_waits_for_what_comes(w: World) -> None:
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(take(w, 2))
        await asyncio.sleep(0.05)
        vm = await created(w)
    assert [(event.before, event.vm.state) for event in watching.result()] == [
        (None, S.CREATING),
        (S.CREATING, S.CREATED),
    ]
    assert {event.vm.vm_id for event in watching.result()} == {vm.vm_id}


async def test_a_filter_lets_the_event_through_with_which_a_vm_leaves_it(w: World) -> None:
    mine = await created(w, labels={"app": "a"}, deployment_id="")
    await created(w, OTHER_TENANT)
    running = VmFilter(states=(S.RUNNING,), tenant_id=TENANT, labels=(("app", "a"),), name="web")
    at = w.context.changes.last
    vm = await boot.boot_vm(w.context, mine, timeout_seconds=0, detach=False)
    await stop.delete_vm(w.context, vm, force=True)
    events = await take(w, 2, running, after=at)
    assert [event.vm.state for event in events] == [S.RUNNING, S.STOPPING]
    every = await take(w, 7, VmFilter(tenant_id=TENANT), after=at)
    assert every[-1].vm.state is S.DELETED


async def test_a_sequence_that_is_not_remembered_ends_the_watch(w: World) -> None:
    vm = await created(w)
    at = w.context.changes.last
    for sequence in (1, at + 3_600_000_000):
        with pytest.raises(FailedPrecondition, match="Begin anew"):
            await take(w, 1, after=sequence)
    for _ in range(KEPT_EVENTS + 1):
        w.context.changes.tell(vm, None)
    with pytest.raises(FailedPrecondition, match="anew"):
        await take(w, 1, after=at)
    with pytest.raises(InvalidRequest):
        await take(w, 1, after=-1)


async def test_sequences_grow_over_a_restart(tmp_path: Path) -> None:
    async with world(tmp_path) as before:
        await created(before)
        last = before.context.changes.last
    async with world(tmp_path, before=before) as after:
        assert after.context.changes.last > last
        with pytest.raises(FailedPrecondition):
            await take(after, 1, after=last)


async def test_watchers_are_bounded_and_leave_when_they_end(w: World) -> None:
    await created(w)
    for _ in range(MAX_WATCHERS):
        w.context.changes.enter(None)
    with pytest.raises(ResourceExhausted, match="this host"):
        await take(w, 1)
    w.context.changes.leave(None)
    for _ in range(3):
        await take(w, 1)


async def test_one_tenant_leaves_room_for_the_others(w: World) -> None:
    await created(w)
    await created(w, OTHER_TENANT)
    for _ in range(MAX_WATCHERS_OF_ONE):
        w.context.changes.enter(TENANT)
    with pytest.raises(ResourceExhausted, match="this tenant"):
        await take(w, 1, VmFilter(tenant_id=TENANT))
    await take(w, 1, VmFilter(tenant_id=OTHER_TENANT))
    w.context.changes.leave(TENANT)
    await take(w, 1, VmFilter(tenant_id=TENANT))


async def test_a_sequence_does_not_count_what_others_do(w: World) -> None:
    """With a clock that stands still only what had to be told apart is counted."""
    vm, clock = await created(w), FakeClock()
    changes = Changes(clock)
    changes.tell(vm, None)
    first = changes.last
    await clock.advance(1)
    for _ in range(5):
        changes.tell(vm, None)
    await clock.advance(1)
    changes.tell(vm, None)
    assert changes.last - first == 2_000_000
    assert [event.sequence for event in changes.since(changes.now)] == []
