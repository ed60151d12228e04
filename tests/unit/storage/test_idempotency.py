from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
from sqlalchemy import Connection, MetaData, create_engine, func, select

from ironworks.model.errors import AlreadyExists, InvalidRequest
from ironworks.storage.idempotency import KEEP_NS, MAX_KEY_CHARS, claim, forget, idempotency_table

METADATA = MetaData()
KEYS = idempotency_table(METADATA)
Claim = Callable[..., str]


@pytest.fixture
def connection() -> Iterator[Connection]:
    engine = create_engine("sqlite://")
    METADATA.create_all(engine)
    with engine.begin() as connection:
        yield connection
    engine.dispose()


@pytest.fixture
def claimed(connection: Connection) -> Claim:
    """`claim` with what most tests do not care about."""
    return partial(
        claim,
        connection,
        KEYS,
        scope="tnt_1/CreateVm",
        key="key",
        request=b"request",
        resource_id="vm_1",
        now_ns=0,
    )


def count(connection: Connection) -> int:
    return connection.execute(select(func.count()).select_from(KEYS)).scalar_one()


def test_a_repeated_request_is_about_what_the_first_one_made(claimed: Claim) -> None:
    assert claimed(resource_id="vm_1") == "vm_1"
    assert claimed(resource_id="vm_2") == "vm_1"


def test_a_key_is_not_for_another_request(claimed: Claim) -> None:
    claimed(request=b"small")
    with pytest.raises(AlreadyExists, match="new key"):
        claimed(request=b"large")
    assert claimed(request=b"small") == "vm_1"


def test_callers_and_methods_have_keys_of_their_own(claimed: Claim) -> None:
    assert claimed(scope="tnt_1/CreateVm", resource_id="vm_1") == "vm_1"
    assert claimed(scope="tnt_2/CreateVm", resource_id="vm_2", request=b"other") == "vm_2"
    assert claimed(scope="tnt_1/StopVm", resource_id="vm_3", request=b"other") == "vm_3"


def test_without_a_key_nothing_is_remembered(claimed: Claim, connection: Connection) -> None:
    assert claimed(key="", resource_id="vm_1") == "vm_1"
    assert claimed(key="", resource_id="vm_2") == "vm_2"
    assert count(connection) == 0


def test_a_key_is_bounded(claimed: Claim) -> None:
    claimed(key="x" * MAX_KEY_CHARS)
    with pytest.raises(InvalidRequest, match="at most 128"):
        claimed(key="x" * (MAX_KEY_CHARS + 1))


def test_keys_are_forgotten_a_day_after_the_first_use_and_not_before(
    claimed: Claim, connection: Connection
) -> None:
    claimed(key="old", now_ns=0)
    claimed(key="new", now_ns=1)
    assert forget(connection, KEYS, KEEP_NS) == 0
    assert forget(connection, KEYS, KEEP_NS + 1) == 1
    assert claimed(key="new", resource_id="vm_2") == "vm_1"
    assert claimed(key="old", resource_id="vm_2") == "vm_2"
