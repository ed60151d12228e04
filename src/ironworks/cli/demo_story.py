"""What `iron demo` tells: steps as they happen, tables, and the one line of JSON at the end."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal

from rich.console import Console
from rich.table import Table

from ironworks.cli.output import printable
from ironworks.gen.ironworks.aggregatord.v1 import invoice_pb, usage_pb
from ironworks.model.money import Money
from ironworks.model.units import GIB, NS_PER_SECOND, format_bytes

STEPS = 7
WIDTH = 100
"""Columns where the output is not a terminal."""
_NS = Decimal(NS_PER_SECOND)


@dataclass(slots=True, kw_only=True)
class Facts:
    """The line of JSON: what has been established so far; None is not known."""

    ok: bool = False
    image: str = ""
    digest: str | None = None
    vmm: str | None = None
    accel: str | None = None
    build_ms: int | None = None
    boot_ms: int | None = None
    http_status: int | None = None
    samples_expected: int | None = None
    samples_received: int | None = None
    cost: str | None = None
    currency: str | None = None
    leaks: int | None = None
    total_seconds: float = 0.0
    error: str | None = None

    def line(self) -> str:
        """As JSON; `error` only where there is one."""
        known = asdict(self)
        if self.error is None:
            del known["error"]
        return json.dumps(known)


class Story:
    """Writes for a person."""

    def __init__(self, console: Console | None = None) -> None:
        width = None if sys.stdout.isatty() else WIDTH
        self._console = console or Console(highlight=False, width=width)

    def step(self, number: int, text: str) -> None:
        """A new step begins."""
        self._console.print(f"\n[bold]{number}/{STEPS}  {text}[/bold]")

    def say(self, text: str) -> None:
        """A line within a step; nothing in it is markup."""
        self._console.print(f"     {text}", markup=False, soft_wrap=True)

    def page(self, body: str) -> None:
        """What the VM answered."""
        for line in body.strip().splitlines():
            self._console.print(f"     │ {printable(line)}", markup=False, soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table; every column but the first is aligned to the right."""
        table = Table(title=title, title_justify="left", title_style="bold")
        for number, column in enumerate(columns):
            table.add_column(column, justify="left" if number == 0 else "right")
        for row in rows:
            table.add_row(*row)
        self._console.print(table)


def people_quantity(quantity: str, unit: usage_pb.Unit) -> str:
    """A usage quantity in units that people read."""
    exact = Decimal(quantity)
    if unit is usage_pb.Unit.VCPU_NANOSECOND:
        return f"{exact / _NS:.3f} vCPU s"
    if unit is usage_pb.Unit.BYTE_NANOSECOND:
        return f"{exact / _NS / GIB:.4f} GiB s"
    if unit is usage_pb.Unit.BYTE:
        return format_bytes(int(exact))
    return f"{quantity} bit/s"


def meter_name(meter: usage_pb.Meter) -> str:
    """`vcpu used` for METER_VCPU_USED."""
    return meter.name.lower().replace("_", " ")


def completeness_rows(
    vms: Sequence[usage_pb.VmCompleteness], names: dict[str, str]
) -> list[list[str]]:
    """Rows of the table of samples."""
    rows: list[list[str]] = []
    for vm in vms:
        counted = vm.completeness or usage_pb.Completeness()
        numbers = [counted.expected, counted.received, counted.missing]
        rows.append([names.get(vm.vm_id, vm.vm_id), *(str(number) for number in numbers)])
    return rows


def usage_rows(rows: Sequence[usage_pb.UsageRow]) -> list[list[str]]:
    """Rows of the table of usage, one a meter."""
    return [[meter_name(row.meter), people_quantity(row.quantity, row.unit)] for row in rows]


def cost_rows(invoice: invoice_pb.Invoice) -> list[list[str]]:
    """Rows of the table of costs: line, quantity, price with its version, amount."""
    rows: list[list[str]] = []
    for line in invoice.lines:
        amount = line.amount
        if amount is None:
            continue
        price = Money(line.unit_price_nanos, amount.currency)
        rows.append(
            [
                meter_name(line.meter),
                people_quantity(line.quantity, line.unit),
                f"{price} / {line.unit_name} (v{line.price_version})",
                str(Money(amount.nanos, amount.currency)),
            ]
        )
    return rows
