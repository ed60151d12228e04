"""`iron host`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ironworks.gen.ironworks.metald.v1 import host_pb

if TYPE_CHECKING:
    from conftest import Iron


async def test_list(iron: Iron) -> None:
    iron.as_operator()
    done = await iron("host", "list", "--zone", "az-1a")
    for shown in ("qemu (tcg)", "0 of 8 vCPU", "ready", "az-1a"):
        assert shown in done.out
    assert (await iron("host", "list", "--json")).json["hosts"][0]["name"] == "one"


async def test_the_host_is_shown_with_its_drivers_and_why(iron: Iron) -> None:
    iron.as_operator()
    done = await iron("host", "show")
    for shown in ("qemu *", "No KVM here.", "10 VMs, 8 vCPU, 8.0 GiB memory", "active"):
        assert shown in done.out
    assert (await iron("host", "show", "--json")).json["allocated"]["vms"] == 2


async def test_a_host_is_cordoned_and_drained(iron: Iron) -> None:
    iron.as_operator()
    assert "cordoned: disks" in (await iron("host", "cordon", "--reason", "disks")).out
    assert "active" in (await iron("host", "uncordon")).out
    drained = await iron("host", "drain", "--reason", "kernel", "--grace", "9")
    assert "draining: kernel" in drained.out
    assert "2 of 5 VMs are left" in drained.err
    assert "vm_x: it hangs" in drained.err
    request = iron.api.asked["DrainHost"][-1]
    assert isinstance(request, host_pb.DrainHostRequest)
    assert request.timeout_seconds == 9


async def test_a_quota_is_shown_and_changed_in_part(iron: Iron) -> None:
    iron.as_operator()
    await iron("host", "quota", "tnt_x", "--vms", "3", "--memory", "8GiB")
    assert "3 VMs" in (await iron("host", "quota", "tnt_x")).out
    done = await iron("host", "quota", "tnt_x", "--vcpus", "4")
    assert "3 VMs, 4 vCPU, 8.0 GiB memory" in done.out
    assert len(iron.api.asked["SetTenantQuota"]) == 2
