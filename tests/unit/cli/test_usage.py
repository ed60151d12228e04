"""`iron usage`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ironworks.cli.usage import completeness_sentence
from ironworks.gen.ironworks.aggregatord.v1 import usage_pb
from ironworks.model.units import NS_PER_DAY

if TYPE_CHECKING:
    from conftest import Iron


async def test_what_was_used_and_what_is_missing(iron: Iron) -> None:
    done = await iron("usage", "--from", "1d", "--step", "hour", "--vm", "vm_a", "--vm", "vm_b")
    assert "vcpu used" in done.out
    assert "5.000 vCPU s" in done.out
    assert done.err == "Samples: 590 of 600 received, 10 missing; 2 lack a reading.\n"
    request = iron.api.asked["GetUsage"][-1]
    assert isinstance(request, usage_pb.GetUsageRequest)
    assert request.step is usage_pb.Step.HOUR
    assert request.interval is not None
    assert request.interval.to_ns - request.interval.from_ns == NS_PER_DAY
    assert request.filter is not None
    assert request.filter.vm_ids == ["vm_a", "vm_b"]


async def test_as_json_quantities_are_exact(iron: Iron) -> None:
    shown = (await iron("usage", "--json")).json
    assert shown["rows"][0]["quantity"] == "5000000000"
    assert shown["completeness"]["missing"] == "10"


async def test_an_interval_that_is_none(iron: Iron) -> None:
    done = await iron("usage", "--from", "now", status=65)
    assert "before it begins" in done.err


async def test_a_tenant_by_name_for_operators(iron: Iron) -> None:
    iron.as_operator()
    await iron("tenant", "create", "acme")
    await iron("usage", "--tenant", "acme")
    request = iron.api.asked["GetUsage"][-1]
    assert isinstance(request, usage_pb.GetUsageRequest)
    assert request.filter is not None
    assert request.filter.tenant_id == iron.api.tenants["acme"].tenant_id


def test_quarantine_is_told() -> None:
    some = usage_pb.Completeness(expected=9, received=4, missing=5, quarantined=3)
    assert completeness_sentence(some) == ("Samples: 4 of 9 received, 5 missing (3 in quarantine).")
