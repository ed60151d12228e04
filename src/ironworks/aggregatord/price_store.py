"""Every SQL statement about price plans, their versions, and who has which."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from sqlalchemy import Connection, select

from ironworks.aggregatord import decide
from ironworks.aggregatord.tables import PRICE_ASSIGNMENTS, PRICE_PLANS, PRICE_VERSIONS
from ironworks.aggregatord.types import Interval, Price, PriceVersion
from ironworks.gen.ironworks.aggregatord.v1.usage_pb import Meter


def prices_to_json(prices: Iterable[Price]) -> str:
    """Prices as they are stored; quantities as text, since they exceed 64 bits."""
    return json.dumps(
        [
            {
                "meter": price.meter.name,
                "nanos": price.nanos,
                "per": str(price.per_quantity),
                "unit_name": price.unit_name,
            }
            for price in prices
        ]
    )


def prices_from(items: Iterable[Mapping[str, object]]) -> tuple[Price, ...]:
    """Prices from what a plan's file or the store says."""
    return tuple(
        Price(
            meter=Meter[str(item["meter"])],
            nanos=int(str(item["nanos"])),
            per_quantity=int(str(item["per"])),
            unit_name=str(item["unit_name"]),
        )
        for item in items
    )


def put_plan(connection: Connection, version: PriceVersion, description: str, now_ns: int) -> bool:
    """Enter the default plan with its first version, if there is no plan; answers whether so."""
    if connection.execute(select(PRICE_PLANS.c.price_plan_id).limit(1)).first() is not None:
        return False
    connection.execute(
        PRICE_PLANS.insert().values(
            price_plan_id=version.price_plan_id,
            name=version.plan_name,
            currency=version.currency,
            description=description,
            is_default=True,
            archived_at_ns=0,
            created_at_ns=now_ns,
        )
    )
    connection.execute(
        PRICE_VERSIONS.insert().values(
            price_version_id=version.price_version_id,
            price_plan_id=version.price_plan_id,
            version=version.version,
            effective_at_ns=version.effective_at_ns,
            prices=prices_to_json(version.prices),
            minimum_charge_nanos=0,
            commitment_nanos=0,
            created_at_ns=now_ns,
        )
    )
    return True


def assignments(connection: Connection, tenant_id: str) -> list[tuple[int, str]]:
    """From when the tenant has which plan, oldest first; the default plan before that."""
    default = connection.execute(
        select(PRICE_PLANS.c.price_plan_id).where(PRICE_PLANS.c.is_default)
    ).scalar_one()
    rows = connection.execute(
        select(PRICE_ASSIGNMENTS.c.effective_at_ns, PRICE_ASSIGNMENTS.c.price_plan_id)
        .where(PRICE_ASSIGNMENTS.c.tenant_id == tenant_id)
        .order_by(PRICE_ASSIGNMENTS.c.effective_at_ns)
    )
    return [(0, default), *[(row.effective_at_ns, row.price_plan_id) for row in rows]]


def versions_of(connection: Connection, price_plan_id: str) -> list[PriceVersion]:
    """The versions of a plan, oldest first."""
    rows = connection.execute(
        select(PRICE_VERSIONS, PRICE_PLANS.c.name, PRICE_PLANS.c.currency)
        .join(PRICE_PLANS, PRICE_PLANS.c.price_plan_id == PRICE_VERSIONS.c.price_plan_id)
        .where(PRICE_VERSIONS.c.price_plan_id == price_plan_id)
        .order_by(PRICE_VERSIONS.c.version)
    )
    return [
        PriceVersion(
            price_version_id=row.price_version_id,
            price_plan_id=row.price_plan_id,
            plan_name=row.name,
            currency=row.currency,
            version=row.version,
            effective_at_ns=row.effective_at_ns,
            prices=prices_from(json.loads(row.prices)),
        )
        for row in rows
    ]


def version_at(connection: Connection, tenant_id: str, at_ns: int) -> PriceVersion | None:
    """A tenant's prices at a time; None if there were none."""
    had = assignments(connection, tenant_id)
    versions = {plan: versions_of(connection, plan) for _, plan in had}
    return decide.version_at(at_ns, had, versions)


def timeline(
    connection: Connection, tenant_id: str, interval: Interval
) -> list[tuple[Interval, PriceVersion]]:
    """A tenant's prices over an interval, cut where they change."""
    had = assignments(connection, tenant_id)
    versions = {plan: versions_of(connection, plan) for _, plan in had}
    return decide.price_timeline(interval, had, versions)
