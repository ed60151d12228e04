from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from ironworks.assetmanagerd import lease_store, store
from ironworks.assetmanagerd.types import (
    Asset,
    AssetKind,
    AssetState,
    Lease,
    LeaseState,
    Upload,
)
from ironworks.storage.sql import Database
from ironworks.testkit.assets import ACME, EVIL, ensure_migrated, facts

ASSET = Asset(
    asset_id="ast_1",
    tenant_id="tnt_acme",
    kind=AssetKind.ROOTFS,
    format=None,
    state=AssetState.AVAILABLE,
    size_bytes=10,
    sha256="0" * 64,
)
LEASE = Lease(
    lease_id="lse_1",
    tenant_id="tnt_acme",
    asset_ids=("ast_2", "ast_1"),
    owner="metald",
    holder="vm_1",
    purpose="p",
    state=LeaseState.ACTIVE,
    created_at_ns=1,
    expires_at_ns=100,
)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    made = Database(database_url, order_by="asset_events")
    ensure_migrated(made.engine)
    yield made
    made.close()


async def with_lease(database: Database) -> None:
    for asset in (ASSET, replace(ASSET, asset_id="ast_2", sha256="1" * 64)):
        await database.write(lambda c, asset=asset: store.insert_asset(c, asset, "a"))
    await database.write(lambda c: lease_store.insert_lease(c, LEASE))


async def test_a_lease_comes_back_whole_with_its_assets_in_order(database: Database) -> None:
    await with_lease(database)
    assert await database.read(lambda c: lease_store.read_lease(c, "lse_1")) == LEASE
    assert await database.read(lambda c: lease_store.read_lease(c, "lse_x")) is None
    assert await database.read(lambda c: lease_store.read_leases(c, ["lse_1", "lse_x"])) == [LEASE]
    assert await database.read(lease_store.active_counts) == {"ast_1": 1, "ast_2": 1}
    assert await database.read(lease_store.leased_objects) == {"0" * 64, "1" * 64}


async def test_only_active_leases_expire_get_grace_and_are_postponed(database: Database) -> None:
    await with_lease(database)
    expired = await database.read(lambda c: lease_store.expired_leases(c, 99, 10))
    assert expired == []
    expired = await database.read(lambda c: lease_store.expired_leases(c, 100, 10))
    assert expired == [LEASE]
    renewed = replace(LEASE, expires_at_ns=200, ttl_ns=50)
    await database.write(lambda c: lease_store.renew_leases(c, [renewed]))
    await database.write(lambda c: lease_store.renew_leases(c, []))
    assert await database.write(lambda c: lease_store.grace(c, 150)) == 0
    assert await database.write(lambda c: lease_store.grace(c, 250)) == 1
    assert await database.write(lambda c: lease_store.postpone(c, 7)) == 1
    await database.write(lambda c: lease_store.end_lease(c, "lse_1", LeaseState.RELEASED, 5))
    assert await database.write(lambda c: lease_store.grace(c, 999)) == 0
    assert await database.write(lambda c: lease_store.postpone(c, 7)) == 0
    (ended,) = await database.read(lambda c: lease_store.read_leases(c, ["lse_1"]))
    assert ended == replace(renewed, state=LeaseState.RELEASED, expires_at_ns=307, ended_at_ns=5)
    assert await database.read(lambda c: lease_store.expired_leases(c, 9999, 10)) == []
    assert await database.read(lease_store.active_counts) == {}


async def test_only_ended_leases_are_forgotten(database: Database) -> None:
    await with_lease(database)
    assert await database.write(lambda c: lease_store.forget_leases(c, 10_000, 9)) == 0
    await database.write(lambda c: lease_store.end_lease(c, "lse_1", LeaseState.EXPIRED, 5))
    assert await database.write(lambda c: lease_store.forget_leases(c, 5, 9)) == 0
    assert await database.write(lambda c: lease_store.forget_leases(c, 6, 9)) == 1
    assert await database.read(lambda c: lease_store.read_leases(c, ["lse_1"])) == []


async def test_an_upload_comes_back_whole(database: Database) -> None:
    upload = Upload(
        upload_id="upl_1",
        tenant_id="tnt_acme",
        facts=facts(b"x"),
        idempotency_key="k",
        expires_at_ns=10,
    )
    await database.write(lambda c: lease_store.insert_upload(c, upload))
    assert await database.read(lambda c: lease_store.read_upload(c, ACME, "upl_1")) == upload
    assert await database.read(lambda c: lease_store.read_upload(c, EVIL, "upl_1")) is None
    assert await database.read(lambda c: lease_store.find_upload(c, "tnt_acme", "k")) == upload
    assert await database.read(lambda c: lease_store.find_upload(c, "tnt_evil", "k")) is None
    assert await database.read(lease_store.upload_names) == {"upl_1.part"}
    await database.write(
        lambda c: lease_store.touch_upload(c, "upl_1", expires_at_ns=20, asset_id="ast_1")
    )
    assert await database.read(lambda c: lease_store.expired_uploads(c, 19)) == []
    (old,) = await database.read(lambda c: lease_store.expired_uploads(c, 20))
    assert old.asset_id == "ast_1"
    await database.write(lambda c: lease_store.delete_upload(c, "upl_1"))
    assert await database.read(lease_store.upload_names) == frozenset()
