"""What a guest may not send, frame by frame, sent by a test behind the tap: refused and counted."""

import asyncio

import pytest

from ironworks.metald.network.plan import Plan
from ironworks.metald.network.slots import HostNetwork
from ironworks.testkit.metald.frames import REFUSED
from ironworks.testkit.metald.guests import Guest

from .conftest import MakeGuest

pytestmark = pytest.mark.root


async def counts(network: HostNetwork, guest: Guest) -> dict[str, int]:
    stats = await network.stats(guest.names.slot)
    return {one.rule: one.packets for one in stats.denied}


@pytest.fixture
async def guest(make_guest: MakeGuest) -> Guest:
    guest = await make_guest(Plan(tenant_id="tnt_one"))
    with guest.serves(80):
        for _ in range(50):
            # The kernel drops what comes before it has noticed the tap's carrier.
            if await asyncio.to_thread(guest.reaches, "127.0.0.1", 80):
                break
    return guest


@pytest.mark.parametrize(("what", "rule", "sent"), REFUSED, ids=[one[0] for one in REFUSED])
async def test_what_a_guest_may_not_send_is_refused_and_counted(
    network: HostNetwork, guest: Guest, what: str, rule: str, sent: bytes
) -> None:
    del what
    before = await counts(network, guest)
    await asyncio.to_thread(guest.send_frame, sent)
    after = await counts(network, guest)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {rule}


async def test_what_a_kernel_says_by_itself_is_no_denied_traffic(
    network: HostNetwork, guest: Guest
) -> None:
    with guest.serves(80):
        assert await asyncio.to_thread(guest.reaches, str(guest.names.address), 80)
    assert (await counts(network, guest))["spoofed-mac"] == 0
    assert (await counts(network, guest))["spoofed-address"] == 0
