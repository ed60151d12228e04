"""metald for real: processes on loopback, the real machine, the fake driver, generated clients."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from ironworks.gen.ironworks.common.v1 import common_pb
from ironworks.gen.ironworks.metald.v1 import host_pb, vm_pb
from ironworks.gen.ironworks.metald.v1.host_connect import HostServiceClient
from ironworks.metald.purge import purge
from ironworks.model.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidRequest,
    IronError,
    NotFound,
    PermissionDenied,
)
from ironworks.model.ids import derived_id
from ironworks.runtime.clock import SystemClock
from ironworks.runtime.settings import tag_of
from ironworks.testkit.metald.processes import (
    Platform,
    leases,
    page,
    running,
    spec,
    started_platform,
)

pytestmark = pytest.mark.root
TENANT, OTHER = derived_id("tnt", "one"), derived_id("tnt", "two")
STATE, CLOCK = vm_pb.VmState, SystemClock()


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Platform]:
    # No slots in store for VMs to come: what is there is of the VMs that there are.
    with started_platform(tmp_path, IRONWORKS_READY_SLOTS="0") as platform:
        yield platform


@pytest.fixture
async def platform(started: Platform) -> Platform:
    await started.serve_rootfs()
    return started


async def test_a_vm_lives_and_leaves_nothing(platform: Platform) -> None:
    vms = platform.vms()
    vm = await running(platform, key="k")
    assert (vm.state, vm.ready, vm.driver, vm.tenant_id) == (STATE.RUNNING, True, "fake", TENANT)
    assert b"200 OK" in await page(vm)
    (lease,) = await leases(platform)
    assert (lease.holder, lease.asset_ids) == (vm.id, [platform.rootfs_id])
    again = await vms.create_vm(vm_pb.CreateVmRequest(spec=spec(platform), idempotency_key="k"))
    assert again.id == vm.id
    listed = await vms.list_vms(vm_pb.ListVmsRequest())
    assert [(one.id, one.state) for one in listed.vms] == [(vm.id, STATE.RUNNING)]
    console = b"".join(
        [piece.data async for piece in vms.stream_console(vm_pb.StreamConsoleRequest(vm_id=vm.id))]
    )
    assert b"fake guest: ready" in console
    paused = await vms.pause_vm(vm_pb.PauseVmRequest(vm_id=vm.id))
    assert paused.state == STATE.PAUSED
    (now,) = (await vms.list_vms(vm_pb.ListVmsRequest())).vms
    assert (now.state, now.reason, len(now.history)) == (STATE.PAUSED, paused.reason, 0)
    assert (await vms.resume_vm(vm_pb.ResumeVmRequest(vm_id=vm.id))).state == STATE.RUNNING
    stopped = await vms.shutdown_vm(vm_pb.ShutdownVmRequest(vm_id=vm.id))
    assert stopped.state == STATE.STOPPED
    assert stopped.exit is not None
    assert stopped.exit.workload_status == 0
    deleted = await vms.delete_vm(vm_pb.DeleteVmRequest(vm_id=vm.id))
    assert deleted.state == STATE.DELETED
    assert [line.to for line in deleted.history][-2:] == [STATE.DELETING, STATE.DELETED]
    assert platform.left(with_fabric=False) == {}
    assert await leases(platform) == []
    assert platform.stop("metald") == 0
    assert platform.left() == {}


async def test_killing_metald_kills_no_vm_and_forgets_none(platform: Platform) -> None:
    vm = await running(platform)
    for _ in range(2):
        platform.stop("metald", signal.SIGKILL)
        assert b"200 OK" in await page(vm)
        platform.start("metald")
        await platform.ready("metald")
        found = await platform.vms().get_vm(vm_pb.GetVmRequest(vm_id=vm.id))
        assert (found.state, found.boot_epoch, list(found.drift)) == (STATE.RUNNING, 1, [])
    await platform.vms().delete_vm(vm_pb.DeleteVmRequest(vm_id=vm.id, force=True))
    assert platform.left(with_fabric=False) == {}


async def test_an_orderly_end_of_metald_ends_no_vm_either(platform: Platform) -> None:
    vm = await running(platform)
    assert platform.stop("metald") == 0
    assert b"200 OK" in await page(vm)
    await purge(platform.settings)
    assert platform.left() == {}
    platform.start("metald")
    await platform.ready("metald")
    found = await platform.vms().get_vm(vm_pb.GetVmRequest(vm_id=vm.id))
    assert found.state == STATE.FAILED
    assert found.reason


async def test_after_a_reboot_of_the_host_vms_are_what_their_policies_say(
    platform: Platform,
) -> None:
    vms = platform.vms()
    always = vm_pb.RestartPolicy(mode=vm_pb.RestartMode.ALWAYS, min_backoff_seconds=0.1)
    again = await running(platform, restart=always)
    gone, ended = await running(platform), await running(platform, restart=always)
    await vms.shutdown_vm(vm_pb.ShutdownVmRequest(vm_id=ended.id))
    await platform.lose_power()
    files_only = platform.left()
    assert set(files_only) == {"jails"}
    for name in ("assetmanagerd", "metald"):
        platform.start(name)
    await platform.ready("assetmanagerd")
    await platform.ready("metald")
    async with asyncio.timeout(60):
        while not (now := await vms.get_vm(vm_pb.GetVmRequest(vm_id=again.id))).ready:
            await CLOCK.sleep(0.05)
    assert again.network is not None
    assert now.network is not None
    assert (now.state, now.restarts, now.boot_epoch) == (STATE.RUNNING, 1, 2)
    assert now.network.fabric_address == again.network.fabric_address
    assert b"200 OK" in await page(now)
    failed = await vms.get_vm(vm_pb.GetVmRequest(vm_id=gone.id))
    assert failed.state == STATE.FAILED
    assert failed.reason == "The host was rebooted, and its VMM ended with it."
    stopped = await vms.get_vm(vm_pb.GetVmRequest(vm_id=ended.id))
    assert stopped.state == STATE.STOPPED
    assert [lease.holder for lease in await leases(platform)] == [again.id]
    for vm in (again, gone, ended):
        await vms.delete_vm(vm_pb.DeleteVmRequest(vm_id=vm.id, force=True))
    assert platform.left(with_fabric=False) == {}
    assert await leases(platform) == []


async def test_a_vm_whose_process_is_killed_fails_with_a_sentence(platform: Platform) -> None:
    vm = await running(platform)
    tag = tag_of(platform.settings.data_dir)
    (procs, *_) = Path("/sys/fs/cgroup").rglob(f"ironworks/{tag}/{vm.id}/cgroup.procs")
    for pid in procs.read_text().split():
        os.kill(int(pid), signal.SIGKILL)
    async with asyncio.timeout(20):
        while True:
            found = await platform.vms().get_vm(vm_pb.GetVmRequest(vm_id=vm.id))
            if found.state == STATE.FAILED and not platform.left(with_fabric=False):
                break
            await CLOCK.sleep(0.05)
    assert "SIGKILL" in found.reason
    assert found.exit is not None
    assert found.exit.vmm_status == -signal.SIGKILL
    assert "fake guest: ready" in list(found.exit.console_tail)


async def code_of(call: object) -> tuple[type[IronError], str]:
    with pytest.raises(IronError) as error:
        await call  # type: ignore[misc] # pyright: ignore[reportGeneralTypeIssues]
    return type(error.value), str(error.value)


async def test_bad_requests_get_a_clear_code_and_leave_nothing(platform: Platform) -> None:
    vms = platform.vms()

    async def refused(expected: type[IronError], word: str, **request: object) -> None:
        asked = vm_pb.CreateVmRequest(**request)  # pyright: ignore[reportArgumentType] - by name
        kind, sentence = await code_of(vms.create_vm(asked))
        assert (kind, word in sentence) == (expected, True), sentence

    ghost = vm_pb.VmAssets(rootfs_asset_id=derived_id("ast", "ghost"))
    await refused(NotFound, "", spec=spec(platform, assets=ghost))
    await refused(InvalidRequest, "spec is missing")
    await refused(InvalidRequest, "vCPUs", spec=spec(platform, vcpus=32))
    await refused(InvalidRequest, "vcpus", spec=spec(platform, vcpus=33))
    await refused(InvalidRequest, "memory", spec=spec(platform, memory_bytes=64 << 30))
    await refused(InvalidRequest, "multiple", spec=spec(platform, memory_bytes=(64 << 20) + 1))
    await refused(InvalidRequest, "name", spec=spec(platform, name="No_Name"))
    await refused(InvalidRequest, "vm_id", spec=spec(platform), vm_id="../../etc")
    await refused(InvalidRequest, "disk_bytes", spec=spec(platform, disk_bytes=-1))
    await refused(FailedPrecondition, "reservation", spec=spec(platform), reservation_id="r")
    made = await vms.create_vm(vm_pb.CreateVmRequest(spec=spec(platform)))
    await refused(AlreadyExists, made.id, spec=spec(platform, vcpus=2), vm_id=made.id)
    await vms.delete_vm(vm_pb.DeleteVmRequest(vm_id=made.id))
    kind, sentence = await code_of(vms.boot_vm(vm_pb.BootVmRequest(vm_id=made.id)))
    assert kind is FailedPrecondition
    assert "deleted" in sentence
    for bad in (float("nan"), float("inf"), -1.0, 601.0):
        request = vm_pb.ShutdownVmRequest(vm_id=made.id, timeout_seconds=bad)
        assert (await code_of(vms.shutdown_vm(request)))[0] is InvalidRequest
    token = vm_pb.ListVmsRequest(page=common_pb.PageRequest(page_token="x"))
    assert (await code_of(vms.list_vms(token)))[0] is InvalidRequest
    reboot = vms.reboot_vm(vm_pb.RebootVmRequest(vm_id=made.id))
    assert (await code_of(reboot))[0] is FailedPrecondition
    assert platform.left(with_fabric=False) == {}
    assert await leases(platform) == []


async def test_a_tenant_sees_its_own_vms_and_no_others(platform: Platform) -> None:
    vm = await running(platform)
    foreign = platform.vms(OTHER)
    ghost = derived_id("vm", "ghost")
    for vm_id in (vm.id, ghost):
        for call in (
            foreign.get_vm(vm_pb.GetVmRequest(vm_id=vm_id)),
            foreign.boot_vm(vm_pb.BootVmRequest(vm_id=vm_id)),
            foreign.shutdown_vm(vm_pb.ShutdownVmRequest(vm_id=vm_id)),
            foreign.delete_vm(vm_pb.DeleteVmRequest(vm_id=vm_id, force=True)),
            foreign.pause_vm(vm_pb.PauseVmRequest(vm_id=vm_id)),
        ):
            kind, sentence = await code_of(call)
            assert (kind, vm_id in sentence) == (NotFound, True)
    everyones = vm_pb.ListVmsRequest(filter=vm_pb.VmFilter(tenant_id=TENANT))
    assert list((await foreign.list_vms(everyones)).vms) == []
    assert len((await platform.vms(None).list_vms(vm_pb.ListVmsRequest())).vms) == 1
    unowned = platform.vms(None).create_vm(vm_pb.CreateVmRequest(spec=spec(platform)))
    assert (await code_of(unowned))[0] is PermissionDenied
    uncalled = platform.vms(service="builderd").get_vm(vm_pb.GetVmRequest(vm_id=vm.id))
    assert (await code_of(uncalled))[0] is PermissionDenied


async def test_the_host_tells_of_itself(platform: Platform) -> None:
    await running(platform)
    client = platform.clients("gatewayd").of(HostServiceClient, "metald")
    host = await client.get_host(host_pb.GetHostRequest())
    assert host.state == host_pb.HostState.ACTIVE
    assert host.allocated is not None
    assert host.capacity is not None
    assert (host.allocated.vcpus, host.allocated.vms) == (1, 1)
    assert host.capacity.vcpus >= 1
    chosen = [driver.kind for driver in host.drivers if driver.chosen]
    assert chosen == ["fake"]
    assert host.cgroup_layout in {"v2", "hybrid"}
    # The directory is down: the host serves all the same, and its reconciler says so.
    status = platform.log("metald").splitlines()
    assert any(json.loads(line).get("reconciler") == "host-directory" for line in status)
