"""A slot's network on the real machine: made, found, mended, removed."""

import asyncio
import os
import socket
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from ironworks.metald.network import namespace, naming
from ironworks.metald.network.links import Links
from ironworks.metald.network.naming import SlotNames, fabric_of, first_slot
from ironworks.metald.network.plan import Plan
from ironworks.metald.network.slots import HostNetwork, SlotTakenError
from ironworks.metald.types import EgressRule, NetworkSpec, PublishedPort
from ironworks.runtime.settings import tag_of
from ironworks.testkit.metald.guests import answers, sh

from .conftest import UID, MakeGuest

pytestmark = pytest.mark.root
PLAN = Plan(
    tenant_id="tnt_one",
    network=NetworkSpec(
        egress=(EgressRule(cidr="203.0.113.0/24"),),
        published_ports=(PublishedPort(host_port=45_681, guest_port=80),),
    ),
)


def on_machine() -> tuple[set[str], str, str]:
    """Interfaces, routes and tables of the root namespace."""
    tables = subprocess.run(["nft", "list", "tables"], check=True, capture_output=True)
    routes = subprocess.run(["ip", "-6", "route"], check=True, capture_output=True)
    links = {name for _, name in socket.if_nameindex() if not name.startswith("iwtest")}
    return (
        {name for name in links if name.startswith("iw")},
        Path("/proc/net/route").read_text() + routes.stdout.decode(),
        tables.stdout.decode(),
    )


def ours(tag: str) -> list[str]:
    """What carries the platform's tag anywhere in it."""
    interfaces, routes, tables = on_machine()
    found = [name for name in interfaces if tag in name]
    found += [line for line in (routes + tables).splitlines() if tag in line]
    return found + [path.name for path in naming.NETNS_DIRECTORY.glob(f"iw-{tag}-*")]


async def test_a_slot_is_made_found_and_removed_without_a_trace(
    network: HostNetwork, tmp_path: Path
) -> None:
    tag = tag_of(tmp_path)
    slot = first_slot(tag)
    names = await network.create(slot, UID, PLAN)
    assert names.netns_path.exists()
    assert await network.present() == {slot}
    assert await network.drift(slot) == ()
    assert await HostNetwork("ffffff").present() == frozenset()
    assert ours(tag)
    await network.remove(slot)
    await network.remove(slot)
    assert await network.present() == frozenset()
    assert ours(tag) == []
    assert len(await network.drift(slot)) == 2


async def test_a_host_that_has_thousands_of_descriptors_goes_on_making_networks(
    network: HostNetwork, tmp_path: Path
) -> None:
    slot = first_slot(tag_of(tmp_path))
    with ExitStack() as crowd:
        for _ in range(2000):
            crowd.callback(os.close, os.dup(0))
        await network.create(slot, UID, PLAN)
        assert await network.drift(slot) == ()
        await network.remove(slot)
    assert ours(tag_of(tmp_path)) == []


async def test_another_metald_removes_what_the_first_has_made(
    network: HostNetwork, tmp_path: Path
) -> None:
    slot = first_slot(tag_of(tmp_path))
    await network.create(slot, UID, PLAN)
    await HostNetwork(tag_of(tmp_path)).remove(slot)
    assert ours(tag_of(tmp_path)) == []


async def test_a_slot_that_is_there_is_left_alone(network: HostNetwork, names: SlotNames) -> None:
    with pytest.raises(SlotTakenError):
        await network.create(names.slot, UID)
    assert await network.drift(names.slot) == ()


async def test_an_address_of_another_platform_is_not_touched(
    names: SlotNames, tmp_path: Path
) -> None:
    other_tag = tag_of(tmp_path / "other")
    other = HostNetwork(other_tag)
    before = on_machine()
    with pytest.raises(SlotTakenError):
        await other.create(names.slot, UID)
    assert await other.present() == frozenset()
    assert on_machine() == before
    assert ours(other_tag) == []


async def test_what_is_half_there_is_removed(network: HostNetwork, names: SlotNames) -> None:
    fabric = fabric_of(names.netns.split("-")[1])
    await asyncio.to_thread(namespace.run_in, fabric.netns_path, lambda: unlink(names.veth))
    assert await network.present() == {names.slot}
    gone = f"Its interface {names.veth} in the fabric is gone."
    assert await network.drift(names.slot) == (gone,)
    await network.remove(names.slot)
    assert await network.present() == frozenset()


def unlink(name: str) -> None:
    with Links() as links:
        assert links.delete(name)
        assert not links.delete(name)


async def test_only_the_owner_may_open_the_tap(names: SlotNames) -> None:
    code = (
        "import fcntl, os, struct, sys\n"
        "fd = os.open('/dev/net/tun', os.O_RDWR)\n"
        "os.setresgid(5, 5, 5); os.setresuid(*[int(sys.argv[1])] * 3)\n"
        "fcntl.ioctl(fd, 0x400454CA, struct.pack('16sH22x', b'iwtap0', 0x5002))\n"
    )

    async def attempt(uid: int) -> int | None:
        process = await asyncio.create_subprocess_exec(
            *("ip", "netns", "exec", names.netns, "/usr/bin/python3", "-c", code, str(uid)),
            stderr=asyncio.subprocess.DEVNULL,
        )
        return await process.wait()

    assert await attempt(UID) == 0
    assert await attempt(UID + 1) != 0


def flush(names: SlotNames) -> None:
    namespace.run_in(names.netns_path, lambda: sh("nft flush ruleset"))


def cut_the_slot(names: SlotNames) -> None:
    fabric = fabric_of(names.netns.split("-")[1])
    namespace.run_in(fabric.netns_path, lambda: unlink(names.veth))


def cut_the_uplink(names: SlotNames) -> None:
    unlink(fabric_of(names.netns.split("-")[1]).uplink)


def flush_the_fabric(names: SlotNames) -> None:
    fabric = fabric_of(names.netns.split("-")[1])
    namespace.run_in(fabric.netns_path, lambda: sh("nft flush ruleset"))


def remove_the_fabric(names: SlotNames) -> None:
    namespace.remove(fabric_of(names.netns.split("-")[1]).netns_path)


def drop_the_hosts_table(names: SlotNames) -> None:
    sh(f"nft delete table inet {fabric_of(names.netns.split('-')[1]).table}")


def forget_the_name(names: SlotNames) -> None:
    namespace.remove(names.netns_path)


@pytest.mark.parametrize(
    "destroy",
    [
        flush,
        cut_the_slot,
        cut_the_uplink,
        flush_the_fabric,
        remove_the_fabric,
        drop_the_hosts_table,
        forget_the_name,
    ],
)
@pytest.mark.parametrize("again", [False, True], ids=["same-metald", "another-metald"])
async def test_what_somebody_destroys_is_made_again_from_the_plan(
    network: HostNetwork,
    make_guest: MakeGuest,
    tmp_path: Path,
    destroy: Callable[[SlotNames], None],
    again: bool,
) -> None:
    guest, peer = await make_guest(PLAN), await make_guest(Plan(tenant_id="tnt_one"))
    plans = {guest.names: PLAN, peer.names: Plan(tenant_id="tnt_one")}
    mender = HostNetwork(tag_of(tmp_path)) if again else network
    keeper = await asyncio.create_subprocess_exec(
        *("ip", "netns", "exec", guest.names.netns, "sh", "-c", "echo in; exec sleep 60"),
        stdout=asyncio.subprocess.PIPE,
    )
    assert keeper.stdout is not None
    await keeper.stdout.readline()
    try:
        await asyncio.to_thread(destroy, guest.names)
        fabric = await mender.mend_fabric()
        found = [
            await mender.mend(names.slot, UID, plan, keeper.pid) for names, plan in plans.items()
        ]
        assert fabric or any(found)
        assert not await mender.mend_fabric()
        for names, plan in plans.items():
            assert await mender.mend(names.slot, UID, plan, keeper.pid) == ()
        with guest.serves(80):
            assert await asyncio.to_thread(answers, str(guest.names.address), 80)
            assert await asyncio.to_thread(answers, "127.0.0.1", 45_681)
            assert await asyncio.to_thread(peer.reaches, str(guest.names.address), 80)
            assert await asyncio.to_thread(peer.reaches, str(guest.names.address_v6), 80)
    finally:
        keeper.kill()
        await keeper.wait()
        if again:
            await mender.drain()


async def test_everything_is_made_again_after_a_reboot_of_the_host(
    network: HostNetwork, names: SlotNames, tmp_path: Path
) -> None:
    await network.remove(names.slot)
    assert ours(tag_of(tmp_path)) == []
    again = HostNetwork(tag_of(tmp_path))
    assert await again.mend(names.slot, UID, PLAN, None)
    assert await again.mend(names.slot, UID, PLAN, None) == ()
    assert await again.drift(names.slot) == ()
    await again.remove(names.slot)


async def test_a_ready_slot_is_given_out_and_another_metald_takes_it_over(
    network: HostNetwork, tmp_path: Path
) -> None:
    slot = first_slot(tag_of(tmp_path))
    for one in (slot, slot + 1):
        network.reserve(one)
        assert await network.prepare(one, UID)
    assert network.ready == (slot, slot + 1)
    again = HostNetwork(tag_of(tmp_path))
    again.reserve(slot + 1)
    assert again.pooled == {slot + 1}
    assert await again.prepare(slot + 1, UID)
    assert again.ready == (slot + 1,)
    await network.create(slot, UID, PLAN)
    assert await network.mend(slot, UID, PLAN, None) == ()
    await again.drain()
    assert await network.present() == {slot}
    assert not await again.prepare(slot + 1, UID)
    assert await network.present() == {slot}


async def test_a_slot_that_waits_and_was_tampered_with_is_not_taken_over(
    network: HostNetwork, names: SlotNames, tmp_path: Path
) -> None:
    await asyncio.to_thread(flush, names)
    again = HostNetwork(tag_of(tmp_path))
    again.reserve(names.slot)
    assert await again.prepare(names.slot, UID)
    assert await again.mend(names.slot, UID, Plan(), None) == ()
    await again.drain()
    assert ours(tag_of(tmp_path)) == []
