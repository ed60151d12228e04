from __future__ import annotations

import io
import json

from rich.console import Console

from ironworks.cli.demo_story import (
    Facts,
    Story,
    completeness_rows,
    cost_rows,
    people_quantity,
    usage_rows,
)
from ironworks.gen.ironworks.aggregatord.v1 import invoice_pb, usage_pb
from ironworks.gen.ironworks.common.v1 import common_pb

SECOND_NS = 1_000_000_000
GIB = 1 << 30


def test_the_line_of_json_has_exactly_the_promised_keys() -> None:
    keys = (
        "ok image digest vmm accel build_ms boot_ms http_status samples_expected "
        "samples_received cost currency leaks total_seconds"
    )
    assert list(json.loads(Facts().line())) == keys.split()
    assert json.loads(Facts(error="why").line())["error"] == "why"


def test_quantities_for_people() -> None:
    unit = usage_pb.Unit
    assert people_quantity(str(5 * SECOND_NS // 2), unit.VCPU_NANOSECOND) == "2.500 vCPU s"
    assert people_quantity(str(GIB * SECOND_NS), unit.BYTE_NANOSECOND) == "1.0000 GiB s"
    assert people_quantity("1536", unit.BYTE) == "1.5 KiB"
    assert people_quantity("8", unit.BIT_PER_SECOND) == "8 bit/s"


def test_a_cost_names_its_price_and_the_price_its_version() -> None:
    line = invoice_pb.InvoiceLine(
        meter=usage_pb.Meter.VCPU_PROVISIONED,
        quantity=str(3600 * SECOND_NS),
        unit=usage_pb.Unit.VCPU_NANOSECOND,
        unit_price_nanos=21_000_000,
        unit_name="vCPU-hour",
        price_version=3,
        amount=common_pb.Money(nanos=21_000_000, currency="USD"),
    )
    (row,) = cost_rows(invoice_pb.Invoice(lines=[line]))
    assert row == [
        "vcpu provisioned",
        "3600.000 vCPU s",
        "0.021000000 USD / vCPU-hour (v3)",
        "0.021000000 USD",
    ]


def test_samples_and_usage_are_rows() -> None:
    counted = usage_pb.Completeness(expected=10, received=9, missing=1)
    vm = usage_pb.VmCompleteness(vm_id="vm_a", completeness=counted)
    assert completeness_rows([vm], {"vm_a": "web"}) == [["web", "10", "9", "1"]]
    row = usage_pb.UsageRow(meter=usage_pb.Meter.DISK_READ, quantity="300", unit=usage_pb.Unit.BYTE)
    assert usage_rows([row]) == [["disk read", "300 B"]]


def test_what_a_vm_answers_cannot_steer_the_terminal() -> None:
    written = io.StringIO()
    story = Story(Console(file=written, width=40))
    story.step(1, "Begin")
    story.page("a[bold]b\x1b[2Jc")
    story.table("T", ["x", "y"], [["1", "2"]])
    text = written.getvalue()
    assert "1/7  Begin" in text
    assert "a[bold]b" in text
    assert "\x1b[2J" not in text
