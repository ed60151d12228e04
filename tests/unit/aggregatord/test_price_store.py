from __future__ import annotations

import dataclasses

from ironworks.aggregatord import price_store
from ironworks.aggregatord.app import default_plan
from ironworks.aggregatord.tables import PRICE_ASSIGNMENTS, PRICE_PLANS
from ironworks.aggregatord.types import Interval
from ironworks.testkit.aggregator import Aggregator
from ironworks.testkit.metering import EPOCH_AT_NS


async def test_the_default_plan_is_made_once(made: Aggregator) -> None:
    version, description = default_plan()
    assert not await made.database.write(lambda c: price_store.put_plan(c, version, description, 1))
    [stored] = await made.database.read(lambda c: price_store.versions_of(c, version.price_plan_id))
    assert stored == version
    assert (
        await made.database.read(lambda c: price_store.version_at(c, "tnt_a", EPOCH_AT_NS))
        == version
    )


async def test_a_tenant_has_the_plan_that_it_was_given(made: Aggregator) -> None:
    version, _ = default_plan()
    other = dataclasses.replace(version, price_plan_id="pln_x", price_version_id="pln_x1")

    async def give() -> None:
        await made.database.write(
            lambda c: c.execute(
                PRICE_PLANS.insert().values(
                    price_plan_id="pln_x",
                    name="x",
                    currency="USD",
                    description="",
                    is_default=False,
                    archived_at_ns=0,
                    created_at_ns=0,
                )
            )
        )
        await made.database.write(
            lambda c: c.execute(
                PRICE_ASSIGNMENTS.insert().values(
                    tenant_id="tnt_a", effective_at_ns=100, price_plan_id="pln_x", created_at_ns=0
                )
            )
        )

    await give()
    had = await made.database.read(lambda c: price_store.assignments(c, "tnt_a"))
    assert had == [(0, version.price_plan_id), (100, other.price_plan_id)]
    whole = Interval(from_ns=0, to_ns=200)
    pieces = await made.database.read(lambda c: price_store.timeline(c, "tnt_a", whole))
    assert [(piece.from_ns, piece.to_ns) for piece, _ in pieces] == [(0, 100)]
    elsewhere = await made.database.read(lambda c: price_store.timeline(c, "tnt_b", whole))
    assert [(piece.from_ns, piece.to_ns) for piece, _ in elsewhere] == [(0, 200)]
