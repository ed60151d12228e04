from collections.abc import Generator
from pathlib import Path

import pytest
from sqlalchemy import Connection

from ironworks.metald import capacity_store
from ironworks.metald.types import Reservation, Resources
from ironworks.storage.migrate import upgrade
from ironworks.storage.sql import make_engine, sqlite_url
from ironworks.testkit.metald import OTHER_TENANT, TENANT


@pytest.fixture
def connection(tmp_path: Path) -> Generator[Connection]:
    engine = make_engine(sqlite_url(tmp_path / "metald.db"))
    upgrade(engine, "ironworks.metald.migrations")
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def make(name: str, *, tenant_id: str = TENANT, expires_at_ns: int = 100) -> Reservation:
    return Reservation(
        reservation_id=name,
        tenant_id=tenant_id,
        resources=Resources(vcpus=1, memory_bytes=10, vms=1),
        committed=Resources(vcpus=1, memory_bytes=12, disk_bytes=3, vms=1),
        created_at_ns=1,
        expires_at_ns=expires_at_ns,
    )


def test_a_reservation_counts_until_it_expires(connection: Connection) -> None:
    kept = make("a")
    capacity_store.write_reservation(connection, kept)
    capacity_store.write_reservation(connection, make("b", tenant_id=OTHER_TENANT))
    assert capacity_store.find_reservation(connection, "a", 99) == kept
    assert capacity_store.reserved(connection, 99, TENANT) == kept.committed
    assert capacity_store.reserved(connection, 99) == kept.committed + kept.committed
    assert capacity_store.taken(connection, 99) == kept.committed + kept.committed
    assert capacity_store.find_reservation(connection, "a", 100) is None
    assert capacity_store.reserved(connection, 100) == Resources()
    assert capacity_store.drop_expired(connection, 100) == 2


def test_a_reservation_that_is_written_again_is_one(connection: Connection) -> None:
    capacity_store.write_reservation(connection, make("a"))
    capacity_store.write_reservation(connection, make("a", expires_at_ns=200))
    found = capacity_store.find_reservation(connection, "a", 150)
    assert found is not None
    assert capacity_store.reserved(connection, 150).vms == 1


def test_a_quota_is_kept_and_one_without_limits_is_none(connection: Connection) -> None:
    assert capacity_store.find_quota(connection, TENANT) == Resources()
    limit = Resources(vcpus=3, disk_bytes=7)
    capacity_store.write_quota(connection, TENANT, limit)
    capacity_store.write_quota(connection, TENANT, limit)
    assert capacity_store.find_quota(connection, TENANT) == limit
    capacity_store.write_quota(connection, TENANT, Resources())
    assert capacity_store.find_quota(connection, TENANT) == Resources()
