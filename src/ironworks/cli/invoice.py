"""`iron invoice`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from ironworks.cli.demo_story import meter_name, people_quantity
from ironworks.cli.options import DEFAULTS, Options
from ironworks.cli.output import when
from ironworks.cli.tenant import tenant_id_of
from ironworks.cli.times import interval
from ironworks.cli.usage import completeness_sentence
from ironworks.gen.ironworks.aggregatord.v1 import invoice_pb, usage_pb
from ironworks.gen.ironworks.common.v1 import common_pb
from ironworks.model.money import Money
from ironworks.runtime.clock import SystemClock

app = App(name="invoice", help="What it costs.")


def money(amount: common_pb.Money | None) -> str:
    """An exact amount; a dash for none."""
    return "-" if amount is None else str(Money(amount.nanos, amount.currency))


def line_cells(line: invoice_pb.InvoiceLine) -> tuple[object, ...]:
    """One line of an invoice: what, how much, at which price, and what that comes to."""
    usage = line.kind in {
        invoice_pb.InvoiceLineKind.USAGE,
        invoice_pb.InvoiceLineKind.ADJUSTMENT,
    }
    price = ""
    if usage and line.amount is not None:
        unit_price = Money(line.unit_price_nanos, line.amount.currency)
        price = f"{unit_price} / {line.unit_name} (v{line.price_version})"
    return (
        meter_name(line.meter) if usage else line.description or line.kind.name.lower(),
        line.vm_id or "all",
        people_quantity(line.quantity, line.unit) if usage else "",
        price,
        money(line.amount),
    )


@app.command
async def preview(
    *,
    begin: Annotated[str, Parameter(name="--from")] = "",
    end: Annotated[str, Parameter(name="--to")] = "now",
    by_vm: bool = False,
    tenant: str = "",
    options: Options = DEFAULTS,
) -> None:
    """Price the usage of an interval; nothing is stored.

    Args:
        begin: First instant: 2026-11-23, 2026-11-23T11:30:00Z, 90m, 24h, 7d; default: the first of
            this month. Times are UTC.
        end: First instant that is not counted; default: now.
        by_vm: Lines for each VM.
        tenant: For operators: id or name of the tenant.
    """
    from_ns, to_ns = interval(begin, end, SystemClock().now_ns())
    async with options.client() as client:
        invoice = await client.invoices.preview(
            from_ns=from_ns,
            to_ns=to_ns,
            by_vm=by_vm,
            tenant_id=await tenant_id_of(client, tenant),
        )
    out = options.output()
    if options.json:
        out.line(invoice)
        return
    out.table(
        ("LINE", "VM", "QUANTITY", "PRICE", "AMOUNT"), [line_cells(line) for line in invoice.lines]
    )
    covered = invoice.interval or usage_pb.Interval()
    out.fields(
        invoice,
        {
            "Subtotal": money(invoice.subtotal),
            "Total": money(invoice.total),
            "Price plan": invoice.price_plan_name or "-",
            "Covers": f"{when(covered.from_ns)} to {when(covered.to_ns)} UTC",
        },
    )
    out.say(completeness_sentence(invoice.completeness or usage_pb.Completeness()))
