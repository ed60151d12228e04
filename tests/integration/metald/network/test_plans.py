"""What a VM may say on the network, and who may speak to it: real connections of real guests."""

import asyncio
import socket
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter_ns

import pytest

from ironworks.metald.network import namespace, naming
from ironworks.metald.network.plan import Plan
from ironworks.metald.network.slots import HostNetwork
from ironworks.metald.types import EgressRule, NetworkSpec, Protocol, PublishedPort
from ironworks.testkit.metald.guests import (
    INTERNET,
    Guest,
    answers,
    internet,
    own_addresses,
    serving,
)

from .conftest import MakeGuest

pytestmark = pytest.mark.root
HOST_PORT = 45_680


@pytest.fixture
async def outside() -> AsyncGenerator[Path]:
    with ExitStack() as stack:
        path = await asyncio.to_thread(stack.enter_context, internet("iwtestnet"))
        for port in (80, 81, HOST_PORT):
            stack.enter_context(serving(path, port))
        yield path


async def ask(work: Callable[[], bool]) -> bool:
    return await asyncio.to_thread(work)


def allowing(*rules: EgressRule, tenant_id: str = "tnt_one") -> Plan:
    return Plan(tenant_id=tenant_id, network=NetworkSpec(egress=rules))


async def test_vms_of_one_tenant_reach_each_other_and_no_others(
    network: HostNetwork, make_guest: MakeGuest
) -> None:
    one, two = await make_guest(Plan(tenant_id="tnt_a")), await make_guest(Plan(tenant_id="tnt_a"))
    other, nobodys = await make_guest(Plan(tenant_id="tnt_b")), await make_guest(Plan())
    with one.serves(80), two.serves(80), other.serves(80), nobodys.serves(80):
        for target in (two.names.address, two.names.address_v6):
            assert await ask(lambda target=target: one.reaches(str(target), 80))
        for target in (other.names, nobodys.names):
            assert not await ask(lambda target=target: one.reaches(str(target.address), 80))
            assert not await ask(lambda target=target: one.reaches(str(target.address_v6), 80))
        assert not await ask(lambda: other.reaches(str(one.names.address), 80))
        assert not await ask(lambda: nobodys.reaches(str(one.names.address), 80))
    stats = await network.stats(one.names.slot)
    peer = next(line for line in stats.denied if line.rule == "peer")
    assert peer.packets >= 4
    assert peer.bytes > 0


async def test_a_slot_that_goes_to_another_tenant_leaves_the_first_one(
    network: HostNetwork, make_guest: MakeGuest
) -> None:
    one, two = await make_guest(Plan(tenant_id="tnt_a")), await make_guest(Plan(tenant_id="tnt_a"))
    await network.apply(two.names.slot, Plan(tenant_id="tnt_b"))
    with two.serves(80):
        assert not await ask(lambda: one.reaches(str(two.names.address), 80))
        assert not await ask(lambda: one.reaches(str(two.names.address_v6), 80))


async def test_the_host_reaches_a_vm_and_no_vm_reaches_the_host(make_guest: MakeGuest) -> None:
    guest = await make_guest(allowing(EgressRule(cidr="0.0.0.0/0"), EgressRule(cidr="::/0")))
    with socket.create_server(("", 0)) as listener, guest.serves(80):
        port = listener.getsockname()[1]
        for address in (guest.names.address, guest.names.address_v6):
            assert await ask(lambda address=address: answers(str(address), 80))
        for address in {str(naming.HOST_ADDRESS), *own_addresses(), str(naming.ROUTER_ADDRESS)}:
            reached = await ask(lambda address=address: connects(guest, address, port))
            assert not reached, address


def connects(guest: Guest, address: str, port: int) -> bool:
    def attempt() -> bool:
        try:
            with socket.create_connection((address, port), timeout=1):
                return True
        except OSError:
            return False

    return guest.run(attempt)


async def test_a_vm_opens_what_its_rules_name_and_nothing_else(
    network: HostNetwork, make_guest: MakeGuest, outside: Path
) -> None:
    del outside
    rule = EgressRule(cidr="203.0.113.0/24", first_port=80, protocol=Protocol.TCP)
    guest, silent = await make_guest(allowing(rule)), await make_guest(Plan(tenant_id="tnt_one"))
    assert await ask(lambda: guest.reaches(INTERNET, 80))
    assert not await ask(lambda: guest.reaches(INTERNET, 81))
    assert not await ask(lambda: silent.reaches(INTERNET, 80))
    stats = await network.stats(guest.names.slot)
    assert next(one.packets for one in stats.denied if one.rule == "egress") >= 1
    assert stats.in_bytes > 0
    assert stats.out_bytes > 0


async def test_metadata_addresses_stay_blocked_whatever_the_rules_say(
    network: HostNetwork, make_guest: MakeGuest
) -> None:
    guest = await make_guest(allowing(EgressRule(cidr="0.0.0.0/0"), EgressRule(cidr="::/0")))
    assert not await ask(lambda: connects(guest, "169.254.169.254", 80))
    assert not await ask(lambda: connects(guest, "fd00:ec2::254", 80))
    stats = await network.stats(guest.names.slot)
    assert next(one.packets for one in stats.denied if one.rule == "metadata") >= 2


async def test_a_new_policy_binds_at_once_also_what_is_open_already(
    network: HostNetwork, make_guest: MakeGuest, outside: Path
) -> None:
    del outside
    guest = await make_guest(allowing(EgressRule(cidr="203.0.113.0/24")))
    connection = await asyncio.to_thread(
        guest.run, lambda: socket.create_connection((INTERNET, 80), timeout=2)
    )
    with connection:
        assert await asyncio.to_thread(connection.recv, 16) == b"hello"
        await network.apply(guest.names.slot, Plan(tenant_id="tnt_one"))
        after = before = await network.stats(guest.names.slot)
        connection.sendall(b"still there?")
        for _ in range(100):
            after = await network.stats(guest.names.slot)
            if after.denied != before.denied:
                break
            await asyncio.sleep(0.02)
        assert after.denied != before.denied
    await network.apply(guest.names.slot, allowing(EgressRule(cidr="203.0.113.9/32")))
    assert await ask(lambda: guest.reaches(INTERNET, 81))


async def test_a_name_server_is_allowed_on_its_port_only(
    make_guest: MakeGuest, outside: Path
) -> None:
    guest = await make_guest(
        Plan(tenant_id="tnt_one", network=NetworkSpec(nameservers=(INTERNET,)))
    )
    with serving(outside, 53):
        assert await ask(lambda: guest.reaches(INTERNET, 53))
        assert not await ask(lambda: guest.reaches(INTERNET, 80))


async def test_a_published_port_is_at_the_hosts_addresses_and_captures_nothing_else(
    network: HostNetwork, make_guest: MakeGuest, outside: Path
) -> None:
    published = (PublishedPort(host_port=HOST_PORT, guest_port=80),)
    rule = EgressRule(cidr="203.0.113.0/24")
    spec = NetworkSpec(egress=(rule,), published_ports=published)
    guest = await make_guest(Plan(tenant_id="tnt_one", network=spec))
    other = await make_guest(allowing(rule, tenant_id="tnt_two"))

    def from_outside(address: str, port: int) -> bool:
        return namespace.run_in(outside, lambda: answers(address, port))

    # Only the guest says hello on 80 of it; on the same port of the internet its host does.
    with guest.serves(80):
        assert await ask(lambda: answers("127.0.0.1", HOST_PORT))
        assert await ask(lambda: answers("203.0.113.1", HOST_PORT))
        assert await ask(lambda: from_outside("203.0.113.1", HOST_PORT))
        # Not by its fabric address, whose route somebody outside could guess.
        assert not await ask(lambda: from_outside(str(guest.names.address), 80))
        assert not await ask(lambda: other.reaches("203.0.113.1", HOST_PORT))
    assert not await ask(lambda: answers("203.0.113.1", HOST_PORT))
    # Neither the VM's own traffic nor another's nor the host's to that port elsewhere is captured.
    assert await ask(lambda: guest.reaches(INTERNET, HOST_PORT))
    assert await ask(lambda: other.reaches(INTERNET, HOST_PORT))
    assert await ask(lambda: answers(INTERNET, HOST_PORT))
    await network.remove(guest.names.slot)
    assert not await ask(lambda: answers("203.0.113.1", HOST_PORT))


def transfer(guest: Guest, megabytes: float, *, to_guest: bool) -> float:
    """Bytes a second of one connection between the host and a guest."""
    size = int(megabytes * 1_000_000)
    listener = guest.run(lambda: socket.create_server(("", 9000)))
    with listener, socket.create_connection((str(guest.names.address), 9000)) as host:
        inside, _ = listener.accept()
        with inside:
            source, target = (host, inside) if to_guest else (inside, host)
            source.settimeout(30)
            target.settimeout(30)
            began_ns = perf_counter_ns()
            left = size
            thread = threading.Thread(target=source.sendall, args=(bytes(size),))
            thread.start()
            while left > 0:
                left -= len(target.recv(65_536))
            thread.join()
            return size / ((perf_counter_ns() - began_ns) / 1e9)


@pytest.mark.parametrize("to_guest", [True, False], ids=["in", "out"])
async def test_a_rate_limit_holds_in_its_direction_only(
    network: HostNetwork, make_guest: MakeGuest, to_guest: bool
) -> None:
    limit = 1_000_000
    guest = await make_guest(
        Plan(
            tenant_id="tnt_one",
            in_bytes_per_second=limit if to_guest else 0,
            out_bytes_per_second=0 if to_guest else limit,
        )
    )
    limited = await asyncio.to_thread(transfer, guest, 1.0, to_guest=to_guest)
    free = await asyncio.to_thread(transfer, guest, 5.0, to_guest=not to_guest)
    assert limited < 1.3 * limit
    assert free > 2 * limit
    await network.apply(guest.names.slot, Plan(tenant_id="tnt_one"))
    assert await asyncio.to_thread(transfer, guest, 5.0, to_guest=to_guest) > 2 * limit
