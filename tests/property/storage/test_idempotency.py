"""Repeats change nothing, another content is refused: whatever the order of requests."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import MetaData, create_engine

from ironworks.model.errors import AlreadyExists
from ironworks.storage.idempotency import claim, idempotency_table

METADATA = MetaData()
KEYS = idempotency_table(METADATA)


@dataclass(frozen=True)
class Request:
    scope: str
    key: str
    content: bytes


REQUESTS = st.builds(
    Request,
    scope=st.sampled_from(["tnt_1/CreateVm", "tnt_2/CreateVm", "tnt_1/StopVm"]),
    key=st.sampled_from(["", "a", "b"]),
    content=st.sampled_from([b"", b"x", b"y"]),
)


@given(st.lists(REQUESTS, max_size=30))
def test_a_key_stands_for_the_first_request_that_used_it(requests: list[Request]) -> None:
    engine = create_engine("sqlite://")
    METADATA.create_all(engine)
    first: dict[tuple[str, str], tuple[bytes, str]] = {}
    with engine.begin() as connection:
        for number, request in enumerate(requests):
            fresh = f"vm_{number}"
            content, expected = first.get((request.scope, request.key), (request.content, fresh))
            try:
                answered = claim(
                    connection,
                    KEYS,
                    scope=request.scope,
                    key=request.key,
                    request=request.content,
                    resource_id=fresh,
                    now_ns=number,
                )
            except AlreadyExists:
                assert content != request.content
                continue
            assert content == request.content
            assert answered == expected
            if request.key:
                first.setdefault((request.scope, request.key), (content, answered))
        stored = {
            (row.scope, row.key): row.resource_id for row in connection.execute(KEYS.select())
        }
    engine.dispose()
    assert stored == {name: resource_id for name, (_, resource_id) in first.items()}
