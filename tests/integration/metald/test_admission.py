"""A hundred calls at once for a real metald: what it promises is never more than it has."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ironworks.gen.ironworks.metald.v1 import host_pb, vm_pb
from ironworks.gen.ironworks.metald.v1.host_connect import HostServiceClient
from ironworks.model.errors import ResourceExhausted
from ironworks.model.units import MIB
from ironworks.runtime.clock import SystemClock
from ironworks.runtime.tasks import Tasks
from ironworks.testkit.metald.processes import Platform, leases, spec, started_platform
from ironworks.testkit.metald.values import TENANT

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
CLOCK = SystemClock()
FIELDS = ("vcpus", "memory_bytes", "disk_bytes", "vms")


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    with started_platform(tmp_path, IRONWORKS_READY_SLOTS="0") as started:
        yield started


def beyond(host: host_pb.Host) -> list[str]:
    """Of what the host has given away more than it has."""
    has, given, held = (
        one or host_pb.HostResources() for one in (host.capacity, host.allocated, host.reserved)
    )
    return [
        field
        for field in FIELDS
        if getattr(given, field) + getattr(held, field) > getattr(has, field)
    ]


async def at_once(
    platform: Platform, hosts: HostServiceClient, calls: int, **size: object
) -> list[vm_pb.Vm]:
    """What so many creates at once make, while somebody watches what the host has given away."""
    wanted, vms = spec(platform, **size), platform.vms()
    made: list[vm_pb.Vm] = []
    refused: list[str] = []
    seen: list[str] = []

    async def watch() -> None:
        while True:
            seen.extend(beyond(await hosts.get_host(host_pb.GetHostRequest())))
            await CLOCK.sleep(0.01)

    async def create() -> None:
        try:
            made.append(await vms.create_vm(vm_pb.CreateVmRequest(spec=wanted)))
        except ResourceExhausted as error:
            refused.append(str(error))

    async with Tasks() as tasks:
        watcher = tasks.start(watch(), name="watch")
        await asyncio.gather(*(create() for _ in range(calls)))
        assert not watcher.done()
    assert seen == []
    assert len(made) + len(refused) == calls
    assert all(sentence.strip() for sentence in refused)
    # Who was refused has left nothing, not even a record.
    listed = await vms.list_vms(vm_pb.ListVmsRequest())
    assert {vm.id for vm in listed.vms} == {vm.id for vm in made}
    assert {lease.holder for lease in await leases(platform)} == {vm.id for vm in made}
    return made


async def delete(platform: Platform, made: list[vm_pb.Vm], hosts: HostServiceClient) -> None:
    for vm in made:
        await platform.vms().delete_vm(vm_pb.DeleteVmRequest(vm_id=vm.id, force=True))
    empty = await hosts.get_host(host_pb.GetHostRequest())
    assert empty.allocated is not None
    assert empty.allocated.vms == empty.allocated.memory_bytes == 0
    assert platform.left(with_fabric=False) == {}


async def reserve_and_create(platform: Platform, hosts: HostServiceClient, size: int) -> int:
    """How many of forty reservations and creates of so much memory were granted together."""
    granted: list[int] = []
    vms = platform.vms()

    async def take(number: int) -> None:
        with suppress(ResourceExhausted):
            if number % 2:
                wanted = spec(platform, memory_bytes=size)
                await vms.create_vm(vm_pb.CreateVmRequest(spec=wanted))
            else:
                amount = host_pb.HostResources(vcpus=1, memory_bytes=size)
                await hosts.reserve_capacity(
                    host_pb.ReserveCapacityRequest(reservation_id=f"r{number}", resources=amount)
                )
            granted.append(number)
            assert beyond(await hosts.get_host(host_pb.GetHostRequest())) == []

    await asyncio.gather(*(take(number) for number in range(40)))
    return len(granted)


async def test_a_hundred_calls_at_once_never_exceed_capacity_or_quota(platform: Platform) -> None:
    await platform.serve_rootfs()
    hosts = platform.clients("gatewayd").of(HostServiceClient, "metald", tenant_id=TENANT)
    host = await hosts.get_host(host_pb.GetHostRequest())
    assert host.capacity is not None
    seventh = host.capacity.memory_bytes // 7 // MIB * MIB
    made = await at_once(platform, hosts, 100, memory_bytes=seventh)
    assert len(made) == 7
    await delete(platform, made, hosts)
    quota = host_pb.HostResources(vms=3)
    await hosts.set_tenant_quota(host_pb.SetTenantQuotaRequest(tenant_id=TENANT, limit=quota))
    made = await at_once(platform, hosts, 40)
    assert len(made) == 3
    await delete(platform, made, hosts)
    await hosts.set_tenant_quota(host_pb.SetTenantQuotaRequest(tenant_id=TENANT))
    assert await reserve_and_create(platform, hosts, seventh) == 7
