"""`iron usage`."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from ironworks.cli.demo_story import meter_name, people_quantity
from ironworks.cli.options import DEFAULTS, Options
from ironworks.cli.output import when
from ironworks.cli.tenant import tenant_id_of
from ironworks.cli.times import interval
from ironworks.gen.ironworks.aggregatord.v1 import usage_pb
from ironworks.runtime.clock import SystemClock

StepName = Literal["whole", "minute", "hour", "day"]


async def command(
    *,
    begin: Annotated[str, Parameter(name="--from")] = "",
    end: Annotated[str, Parameter(name="--to")] = "now",
    step: StepName = "whole",
    by_vm: bool = False,
    vm: tuple[str, ...] = (),
    deployment: str = "",
    tenant: str = "",
    options: Options = DEFAULTS,
) -> None:
    """What was used, and how complete that knowledge is.

    Args:
        begin: First instant: 2026-11-23, 2026-11-23T11:30:00Z, 90m, 24h, 7d; default: the first of
            this month. Times are UTC.
        end: First instant that is not counted; default: now.
        step: In pieces of this length; default: in one piece.
        by_vm: A row for each VM.
        vm: Only this VM; may be given more than once.
        deployment: Only VMs of this deployment, `dep_…`.
        tenant: For operators: id or name of the tenant.
    """
    from_ns, to_ns = interval(begin, end, SystemClock().now_ns())
    wanted = usage_pb.Step["UNSPECIFIED" if step == "whole" else step.upper()]
    async with options.client() as client:
        answer = await client.usage.get(
            from_ns=from_ns,
            to_ns=to_ns,
            step=wanted,
            by_vm=by_vm,
            tenant_id=await tenant_id_of(client, tenant),
            vm_ids=vm,
            deployment_id=deployment,
        )
    out = options.output()
    if options.json:
        out.line(answer)
        return
    out.table(
        ("FROM", "VM", "METER", "QUANTITY"),
        [
            (
                when((row.interval or usage_pb.Interval()).from_ns),
                row.vm_id or "all",
                meter_name(row.meter),
                people_quantity(row.quantity, row.unit),
            )
            for row in answer.rows
        ],
    )
    out.say(completeness_sentence(answer.completeness or usage_pb.Completeness()))


def completeness_sentence(completeness: usage_pb.Completeness) -> str:
    """How complete, in words: `Samples: 590 of 600 received, 10 missing.`."""
    sentence = (
        f"Samples: {completeness.received} of {completeness.expected} received, "
        f"{completeness.missing} missing"
    )
    if completeness.quarantined:
        sentence += f" ({completeness.quarantined} in quarantine)"
    if completeness.partial:
        sentence += f"; {completeness.partial} lack a reading"
    return f"{sentence}."
