"""`iron usage`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ironworks.cli.usage import completeness_sentence
from ironworks.gen.ironworks.aggregatord.v1 import usage_pb
from ironworks.model.units import NS_PER_DAY, NS_PER_HOUR

if TYPE_CHECKING:
    from pathlib import Path

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
    # Whole hours, whenever "now" is.
    assert request.interval.from_ns % NS_PER_HOUR == request.interval.to_ns % NS_PER_HOUR == 0
    assert 0 <= request.interval.to_ns - request.interval.from_ns - NS_PER_DAY <= NS_PER_HOUR
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


async def test_gaps_are_listed_with_their_reasons(iron: Iron) -> None:
    done = await iron("usage", "--from", "1d", "--gaps")
    assert "agent down" in done.out
    assert (await iron("usage", "--gaps", "--json")).json["gap"]["vm_id"] == "vm_a"


async def test_what_is_used_now_is_shown_as_it_comes(iron: Iron) -> None:
    done = await iron("usage", "--live", "--meter", "vcpu-used")
    assert done.out.count("7.000 vCPU s") == 2
    request = iron.api.asked["StreamUsage"][-1]
    assert isinstance(request, usage_pb.StreamUsageRequest)
    assert request.filter is not None
    assert request.filter.meters == [usage_pb.Meter.VCPU_USED]


async def test_an_export_is_a_file(iron: Iron, tmp_path: Path) -> None:
    file = tmp_path / "usage.csv"
    done = await iron("usage", "--from", "1d", "--export", str(file))
    assert file.read_bytes() == b"from,to\r\n1,2\r\n"
    assert "14 bytes" in done.err
    assert [one.name for one in tmp_path.iterdir() if one.name.endswith(".part")] == []
    nowhere = await iron("usage", "--export", str(tmp_path / "no" / "usage.csv"), status=65)
    assert "cannot be written: No such file" in nowhere.err
    refused = await iron("usage", "--export", str(tmp_path / "usage.xls"), status=65)
    assert ".parquet" in refused.err


async def test_a_meter_that_is_none(iron: Iron) -> None:
    done = await iron("usage", "--meter", "coffee", status=65)
    assert "network-out-p95" in done.err


def test_quarantine_is_told() -> None:
    some = usage_pb.Completeness(expected=9, received=4, missing=5, quarantined=3)
    assert completeness_sentence(some) == ("Samples: 4 of 9 received, 5 missing (3 in quarantine).")


async def test_operators_have_days_computed_anew(iron: Iron) -> None:
    iron.as_operator()
    done = await iron("usage", "--recompute", "--from", "30h")
    assert done.err == "7 hours of VMs were computed anew.\n"
    request = iron.api.asked["RecomputeUsage"][-1]
    assert isinstance(request, usage_pb.RecomputeUsageRequest)
    assert request.interval is not None
    assert request.interval.from_ns % NS_PER_DAY == request.interval.to_ns % NS_PER_DAY == 0
    assert request.tenant_id == ""


async def test_completeness_of_each_vm(iron: Iron) -> None:
    done = await iron("usage", "--completeness", "--from", "1d")
    assert "agent down 10" in done.out
    assert "590 of 600 received" in done.err
    assert (await iron("usage", "--completeness", "--json")).json["vms"][0]["vm_id"] == "vm_a"


async def test_one_thing_instead_of_sums_at_a_time(iron: Iron) -> None:
    done = await iron("usage", "--live", "--export", "usage.csv", status=2)
    assert "--live" in done.err
    assert "--export" in done.err
    await iron("usage", "--gaps", "--live", status=2)
    assert "StreamUsage" not in iron.api.asked


async def test_of_what_there_is_not_nothing_is_shown_as_it_comes(iron: Iron) -> None:
    done = await iron("usage", "--live", "--vm", "vm_nobody", status=66)
    assert "vm_nobody" in done.err
    await iron("usage", "--deployment", "nothing", status=66)
    iron.as_operator()
    await iron("usage", "--live", "--tenant", "tnt_01k5x0s8g9q2v7c4m3n6b1d0fa", status=66)
    assert "StreamUsage" not in iron.api.asked
