"""Networks of one platform on this machine, and guests in them."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path

import pytest

from ironworks.metald.network.naming import SlotNames, first_slot
from ironworks.metald.network.plan import Plan
from ironworks.metald.network.slots import HostNetwork
from ironworks.runtime.settings import tag_of
from ironworks.testkit.metald.guests import Guest

UID = 1_900_200
MakeGuest = Callable[[Plan], Awaitable[Guest]]


@pytest.fixture
async def network(tmp_path: Path) -> AsyncGenerator[HostNetwork]:
    network = HostNetwork(tag_of(tmp_path))
    yield network
    for slot in await network.present():
        await network.remove(slot)
    await network.drain()


@pytest.fixture
async def names(network: HostNetwork, tmp_path: Path) -> SlotNames:
    return await network.create(first_slot(tag_of(tmp_path)), UID)


@pytest.fixture
async def make_guest(network: HostNetwork, tmp_path: Path) -> AsyncGenerator[MakeGuest]:
    guests: list[Guest] = []

    async def make(plan: Plan) -> Guest:
        slot = first_slot(tag_of(tmp_path)) + 1 + len(guests)
        made = await network.create(slot, UID, plan)
        guests.append(await asyncio.to_thread(Guest, made))
        return guests[-1]

    yield make
    for guest in guests:
        await asyncio.to_thread(guest.close)
