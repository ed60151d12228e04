"""Several at once acquire, renew, release, expire, archive, restore, delete and collect: a model of
what was answered must agree with registry, leases, histories and bytes after each round.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import Connection

from ironworks.assetmanagerd import lease_store, store
from ironworks.assetmanagerd.decide import TRANSITIONS
from ironworks.assetmanagerd.types import Asset, AssetEvent, AssetState, LeaseState
from ironworks.model.errors import FailedPrecondition, InvalidRequest, IronError, NotFound
from ironworks.runtime.clock import SystemEntropy
from ironworks.testkit.assets import ACME, METALD, AssetWorld, asset_world, squashfs
from ironworks.testkit.clock import FakeEntropy

STEPS = 300
THOROUGH_STEPS = 10_000
AT_ONCE = 8
BODIES = [squashfs(bytes([number])) for number in range(4)]
LEGAL = {(before, after) for (before, _), after in TRANSITIONS.items()}
GONE = (AssetState.FAILED, AssetState.DELETED)
# What is done, and how often: most of all what leases do.
DEEDS = (
    *("acquire",) * 6,
    *("release",) * 4,
    *("renew",) * 2,
    *("expire",) * 2,
    *("archive",) * 2,
    *("restore",) * 2,
    *("delete",) * 2,
    *("collect",) * 2,
    "prepare",
    "register",
)


@dataclass
class Model:
    """What must be true, by what was answered."""

    world: AssetWorld
    seed: int
    entropy: FakeEntropy
    assets: list[str] = field(default_factory=list[str])
    promised_ns: dict[str, int] = field(default_factory=dict[str, int])
    """Lease that was answered and not given back → when it may expire at the earliest."""
    holds: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    released: set[str] = field(default_factory=set[str])
    at: dict[str, AssetState] = field(default_factory=dict[str, AssetState])
    """Asset → its state, by its history."""
    read_to: int = 0
    jails: int = 0
    done: int = 0
    refused: int = 0

    def choose(self, count: int) -> int:
        return int.from_bytes(self.entropy.token_bytes(4)) % count

    def asset(self) -> str:
        # The newest ones: the older have long been deleted.
        recent = self.assets[-6:]
        return recent[self.choose(len(recent))] if recent else "ast_none"

    def lease(self) -> str:
        recent = list(self.holds)[-6:]
        return recent[self.choose(len(recent))] if recent else "lse_none"

    async def do(self, deed: str) -> None:
        act: Callable[[], Awaitable[None]] = getattr(self, deed)
        try:
            await act()
            self.done += 1
        except (FailedPrecondition, InvalidRequest, NotFound):
            self.refused += 1
        except IronError as error:
            assert error.retryable, error  # noqa: PT017 - nothing else may come out of a race

    async def register(self) -> None:
        self.jails += 1
        body = BODIES[self.choose(len(BODIES))]
        asset = await self.world.asset(body, name=f"staged{self.jails}")
        if asset.asset_id not in self.assets:
            self.assets.append(asset.asset_id)

    async def acquire(self) -> None:
        wanted = tuple({self.asset(), self.asset()})
        ttl_seconds = 1 + self.choose(100)
        lease, assets = await self.world.leasing.acquire(
            METALD, wanted, holder="vm", purpose="", ttl_seconds=ttl_seconds, key=""
        )
        assert all(asset.state is AssetState.IN_USE for asset in assets)
        self.promised_ns[lease.lease_id] = lease.expires_at_ns
        self.holds[lease.lease_id] = wanted

    async def renew(self) -> None:
        kept, _ = await self.world.leasing.renew(METALD, [self.lease()], 1 + self.choose(100))
        for lease in kept:
            before = self.promised_ns[lease.lease_id]
            assert lease.expires_at_ns >= before
            self.promised_ns[lease.lease_id] = max(before, lease.expires_at_ns)

    async def release(self) -> None:
        lease = await self.world.leasing.release(METALD, self.lease())
        assert lease.state is not LeaseState.ACTIVE
        if lease.state is LeaseState.RELEASED:
            self.released.add(lease.lease_id)

    async def expire(self) -> None:
        await self.world.leasing.expire_leases()

    async def archive(self) -> None:
        await self.world.registry.archive(ACME, self.asset(), "", "")

    async def restore(self) -> None:
        await self.world.registry.restore(ACME, self.asset(), "")

    async def delete(self) -> None:
        await self.world.registry.delete(ACME, self.asset(), "", "")

    async def collect(self) -> None:
        await self.world.registry.collect(dry_run=self.choose(4) == 0)

    async def prepare(self) -> None:
        self.jails += 1
        jail = self.world.jail(f"vm{self.jails}")
        lease_id = self.lease()
        wanted = self.holds.get(lease_id, ("ast_none",))[0]
        await self.world.leasing.prepare(METALD, lease_id, str(jail), [(wanted, "rootfs")])
        assert (jail / "rootfs").read_bytes() in BODIES

    # --- what must hold ---------------------------------------------------------------------------

    async def check(self) -> None:
        await self.world.registry.remove_doomed()

        def read(
            connection: Connection,
        ) -> tuple[dict[str, Asset], dict[str, LeaseState], list[AssetEvent]]:
            leases = lease_store.read_leases(connection, list(self.holds))
            return (
                store.read_assets(connection, self.assets),
                {lease.lease_id: lease.state for lease in leases},
                [event for event, _ in store.events_after(connection, self.read_to, 100_000)],
            )

        assets, leases, events = await self.world.database.read(read)
        self._check_leases(leases)
        self._check_assets(assets, leases)
        self._check_histories(assets, events)
        self._forget(assets, leases)
        live = {asset.sha256 for asset in assets.values() if asset.state not in GONE}
        assert set(await self.world.kept()) == live, self.seed

    def _check_leases(self, leases: dict[str, LeaseState]) -> None:
        now_ns = self.world.clock.now_ns()
        for lease_id, state in leases.items():
            if lease_id in self.released:
                assert state is LeaseState.RELEASED, self.seed
            elif state is LeaseState.EXPIRED:
                assert self.promised_ns[lease_id] <= now_ns, f"expired early, seed {self.seed}"
            else:
                assert state is LeaseState.ACTIVE, self.seed

    def _check_assets(self, assets: dict[str, Asset], leases: dict[str, LeaseState]) -> None:
        active: dict[str, int] = {}
        for lease_id, state in leases.items():
            for asset_id in self.holds[lease_id] if state is LeaseState.ACTIVE else ():
                active[asset_id] = active.get(asset_id, 0) + 1
        for asset_id, asset in assets.items():
            assert asset.lease_count == active.get(asset_id, 0), self.seed
            assert (asset.state is AssetState.IN_USE) == (asset.lease_count > 0), self.seed

    def _check_histories(self, assets: dict[str, Asset], events: list[AssetEvent]) -> None:
        for event in events:
            assert event.from_state == self.at.get(event.asset_id), self.seed
            if event.from_state is not None:
                assert (event.from_state, event.to_state) in LEGAL, self.seed
            self.at[event.asset_id] = event.to_state
            self.read_to = event.sequence
        assert self.at == {one: asset.state for one, asset in assets.items()}, self.seed

    def _forget(self, assets: dict[str, Asset], leases: dict[str, LeaseState]) -> None:
        """What has ended is looked at no more; a lease of the newest is still released twice."""
        for lease_id, state in list(leases.items())[:-6]:
            if state is not LeaseState.ACTIVE:
                del self.holds[lease_id]
        for asset_id, asset in assets.items():
            if asset.state in GONE:
                self.assets.remove(asset_id)
                del self.at[asset_id]


async def walk(world: AssetWorld, steps: int, seed: int) -> Model:
    model = Model(world, seed, FakeEntropy(seed))
    await model.register()
    taken = 0
    while taken < steps:
        deeds = [DEEDS[model.choose(len(DEEDS))] for _ in range(1 + model.choose(AT_ONCE))]
        taken += len(deeds)
        await asyncio.gather(*(model.do(deed) for deed in deeds))
        await model.check()
        # Mostly seconds; now and then longer than anything may go unused.
        await world.clock.advance((1, 5, 30, 30, 90, 8 * 86_400)[model.choose(6)])
    return model


@pytest.mark.timeout(3600)
async def test_whatever_several_do_at_once_all_agrees(
    tmp_path: Path, database_url: str, *, thorough: bool
) -> None:
    seed = int.from_bytes(SystemEntropy().token_bytes(4))
    steps = THOROUGH_STEPS if thorough else STEPS
    async with asset_world(tmp_path, database_url=database_url) as world:
        model = await walk(world, steps, seed)
    logging.getLogger(__name__).info(
        "%d steps, seed %d: %d done, %d refused", steps, seed, model.done, model.refused
    )
    assert model.done > steps / 10
    assert model.refused > steps / 20
