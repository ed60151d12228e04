"""Whatever is done in whatever order, registry, leases and bytes agree; `test_model`: at once."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ironworks.assetmanagerd import store
from ironworks.assetmanagerd.types import Asset, AssetState, Who
from ironworks.model.errors import FailedPrecondition, InvalidRequest, IronError, NotFound
from ironworks.testkit.assets import ACME, METALD, AssetWorld, asset_world, squashfs

BODIES = [squashfs(bytes([number])) for number in range(3)]
STEP = st.tuples(
    st.sampled_from(
        ["register", "acquire", "release", "renew", "archive", "restore", "delete", "wait",
         "expire", "collect", "prepare"]
    ),
    st.integers(0, 2),
    st.integers(0, 5),
)  # fmt: skip


@dataclass
class Run:
    world: AssetWorld
    assets: list[str] = field(default_factory=list[str])
    leases: list[str] = field(default_factory=list[str])
    jails: int = 0

    def asset(self, index: int) -> str:
        return self.assets[index % len(self.assets)] if self.assets else "ast_none"

    def lease(self, index: int) -> str:
        return self.leases[-1 - index % len(self.leases)] if self.leases else "lse_none"

    async def register(self, which: int, number: int) -> None:
        body = BODIES[which]
        asset = await self.world.asset(body, ACME if number % 2 else OTHER)
        if asset.asset_id not in self.assets:
            self.assets.append(asset.asset_id)

    async def acquire(self, which: int, number: int) -> None:
        taken, _ = await self.world.leasing.acquire(
            METALD,
            [self.asset(which + number)],
            holder="vm",
            purpose="",
            ttl_seconds=30 * (1 + number),
            key="",
        )
        self.leases.append(taken.lease_id)

    async def release(self, which: int, number: int) -> None:
        await self.world.leasing.release(METALD, self.lease(which + number))

    async def renew(self, which: int, number: int) -> None:
        await self.world.leasing.renew(METALD, [self.lease(which)], 1 + number)

    async def archive(self, which: int, number: int) -> None:
        await self.world.registry.archive(ACME, self.asset(which + number), "", "")

    async def restore(self, which: int, number: int) -> None:
        await self.world.registry.restore(ACME, self.asset(which + number), "")

    async def delete(self, which: int, number: int) -> None:
        await self.world.registry.delete(ACME, self.asset(which + number), "", "")

    async def wait(self, which: int, number: int) -> None:
        await self.world.clock.advance(number * (60, 3600, 86_400)[which])

    async def expire(self, which: int, number: int) -> None:
        await self.world.leasing.expire_leases()

    async def collect(self, which: int, number: int) -> None:
        await self.world.registry.collect(dry_run=which == 0)

    async def prepare(self, which: int, number: int) -> None:
        self.jails += 1
        jail = self.world.jail(f"vm{self.jails}")
        lease_id = self.lease(which)
        file = [(self.asset(which + number), "rootfs")]
        await self.world.leasing.prepare(METALD, lease_id, str(jail), file)
        assert (jail / "rootfs").read_bytes() in BODIES

    async def step(self, name: str, which: int, number: int) -> None:
        do: Callable[[int, int], Awaitable[None]] = getattr(self, name)
        try:
            await do(which, number)
        except (FailedPrecondition, InvalidRequest, NotFound):
            pass  # refused with a reason: what must hold is checked after each step
        except IronError as error:
            assert error.retryable, error  # noqa: PT017 - nothing else may come out of a race


OTHER = Who(actor="builderd", tenant_id="tnt_other", is_service=True)


async def check(world: AssetWorld) -> None:
    def read(connection: object) -> list[Asset]:
        return [
            asset
            for state in AssetState
            for asset in store.in_state(connection, state, 1000)  # type: ignore[arg-type]
        ]

    assets = await world.database.read(read)
    for asset in assets:
        assert (asset.state is AssetState.IN_USE) == (asset.lease_count > 0), asset
    live = {
        asset.sha256
        for asset in assets
        if asset.state not in (AssetState.FAILED, AssetState.DELETED)
    }
    assert set(await world.kept()) == live
    owned = Counter(
        (asset.tenant_id, asset.sha256)
        for asset in assets
        if asset.state not in (AssetState.FAILED, AssetState.DELETED)
    )
    assert max(owned.values(), default=1) == 1


async def one_after_another(steps: list[tuple[str, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        async with asset_world(Path(directory)) as world:
            run = Run(world)
            for step in steps:
                await run.step(*step)
                await check(world)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(STEP, min_size=10, max_size=60))
def test_one_after_another(steps: list[tuple[str, int, int]]) -> None:
    asyncio.run(one_after_another(steps))
