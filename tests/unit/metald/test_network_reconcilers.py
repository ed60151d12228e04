from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

import pytest

from ironworks.metald.app import boot, change, create
from ironworks.metald.app.context import Once
from ironworks.metald.network.plan import plan_of
from ironworks.metald.network_reconcilers import (
    POOL_A_PASS,
    NetworkReconciler,
    PoolReconciler,
    network_reconcilers,
)
from ironworks.metald.reconcilers import LeftoverReconciler
from ironworks.metald.types import EgressRule, NetworkSpec, PublishedPort, Vm, VmSpec, VmState
from ironworks.model.errors import AlreadyExists
from ironworks.testkit.metald import TENANT, World, vm_spec, world

NETWORK = NetworkSpec(egress=(EgressRule(cidr="203.0.113.0/24"),))


@pytest.fixture
async def w(tmp_path: Path) -> AsyncGenerator[World]:
    async with world(tmp_path) as made:
        yield made


async def created(w: World, spec: VmSpec | None = None) -> Vm:
    return await create.create_vm(
        w.context, tenant_id=TENANT, vm_id="", spec=spec or vm_spec(), idempotency_key=""
    )


async def fill(w: World) -> PoolReconciler:
    reconciler = PoolReconciler(w.context)
    while (await reconciler.activate()).counts["made"]:
        pass
    return reconciler


async def test_the_pool_is_filled_bit_by_bit_and_no_further(w: World) -> None:
    size = w.context.settings.ready_slots
    assert size > POOL_A_PASS
    reconciler = PoolReconciler(w.context)
    counts = (await reconciler.activate()).counts
    assert counts == {"ready": POOL_A_PASS, "made": POOL_A_PASS}
    await reconciler.activate()
    assert (await reconciler.activate()).counts == {"ready": size, "made": 0}


async def test_a_vm_gets_a_ready_slot_which_is_replaced(w: World) -> None:
    reconciler = await fill(w)
    ready = w.network.ready
    vm = await created(w, replace(vm_spec(), network=NETWORK))
    assert vm.slot == ready[0]
    assert w.network.plans[ready[0]] == plan_of(vm)
    assert (await reconciler.activate()).counts["made"] == 1
    other = await created(w)
    assert other.slot == ready[1]


async def test_what_waits_is_no_leftover_and_goes_at_the_end(w: World) -> None:
    await fill(w)
    assert (await LeftoverReconciler(w.context).activate()).counts["networks"] == 0
    await w.network.drain()
    assert await w.network.present() == frozenset()


async def test_slots_that_a_killed_metald_left_ready_are_taken_over(w: World) -> None:
    vm = await created(w)
    assert vm.slot is not None
    w.network.made |= {vm.slot + 5, vm.slot + 6}
    w.context.reaping_slots.add(vm.slot + 6)
    reconciler = PoolReconciler(w.context)
    await reconciler.activate()
    assert w.network.ready[0] == vm.slot + 5
    assert vm.slot not in w.network.ready
    assert vm.slot + 6 not in w.network.ready


async def test_a_slot_of_another_platform_does_not_stop_the_pool(w: World) -> None:
    first = PoolReconciler(w.context)
    await first.activate()
    w.network.foreign |= {max(w.network.ready) + 1, max(w.network.ready) + 2}
    await fill(w)
    assert len(w.network.ready) == w.context.settings.ready_slots
    assert not w.network.foreign & set(w.network.ready)


async def test_a_running_vms_network_is_mended_from_the_store(w: World) -> None:
    vm = await created(w, replace(vm_spec(), network=NETWORK))
    await boot.boot_vm(w.context, vm, timeout_seconds=0, detach=False)
    assert vm.slot is not None
    reconciler = NetworkReconciler(w.context)
    assert (await reconciler.activate()).counts == {"vms": 1, "mended": 0, "fabric": 0}
    w.network.made.clear()
    w.network.plans.clear()
    assert (await reconciler.activate()).counts["mended"] == 1
    assert w.network.plans[vm.slot] == plan_of(vm)


async def test_a_vm_whose_tap_was_removed_has_ended_whoever_sees_it_first(w: World) -> None:
    vm = await created(w)
    await boot.boot_vm(w.context, vm, timeout_seconds=0, detach=False)
    w.network.without_tap.add(vm.slot or 0)
    await NetworkReconciler(w.context).activate()
    ended = await w.context.read(vm.vm_id)
    assert ended.state is VmState.FAILED
    assert "somebody removed it" in ended.reason
    assert await w.left() == {}


async def test_a_new_policy_is_told_to_the_network(w: World) -> None:
    vm = await created(w)
    assert vm.slot is not None
    wanted = change.Change(network=NETWORK)
    vm = await change.update_vm(w.context, vm, wanted, once=Once(scope="", key="", request=b""))
    assert w.network.plans[vm.slot or 0].network == NETWORK


def published(host_port: int) -> VmSpec:
    ports = (PublishedPort(host_port=host_port, guest_port=80),)
    return replace(vm_spec(), network=NetworkSpec(published_ports=ports))


async def test_a_host_port_belongs_to_one_vm(w: World) -> None:
    vm = await created(w, published(0))
    chosen = vm.spec.network.published_ports[0].host_port
    assert chosen
    with pytest.raises(AlreadyExists, match=f"{chosen}/tcp"):
        await created(w, published(chosen))
    other = await created(w, published(0))
    assert other.spec.network.published_ports[0].host_port != chosen


async def test_repeating_a_creation_whose_port_was_chosen_is_no_other_vm(w: World) -> None:
    vm = await created(w, published(0))
    again = await create.create_vm(
        w.context, tenant_id=TENANT, vm_id=vm.vm_id, spec=published(0), idempotency_key=""
    )
    assert again.spec == vm.spec


def test_both_loops_are_there(w: World) -> None:
    assert [one.name for one in network_reconcilers(w.context)] == ["network-pool", "networks"]
