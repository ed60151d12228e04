"""`iron usage`."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypedDict

from cyclopts import Group, Parameter
from cyclopts.validators import mutually_exclusive

from ironworks.cli.demo_story import meter_name, people_quantity
from ironworks.cli.options import DEFAULTS, Options
from ironworks.cli.output import when
from ironworks.cli.tenant import tenant_id_of
from ironworks.cli.times import interval
from ironworks.gen.ironworks.aggregatord.v1 import usage_pb
from ironworks.model.errors import InvalidRequest, PermissionDenied
from ironworks.model.units import NS_PER_DAY, NS_PER_HOUR, NS_PER_SECOND
from ironworks.runtime.clock import SystemClock
from ironworks.sdk import AsyncIronworks

StepName = Literal["whole", "minute", "five-minutes", "hour", "day"]
_STEPS_NS = {
    "whole": 1,
    "minute": 60 * NS_PER_SECOND,
    "five-minutes": 300 * NS_PER_SECOND,
    "hour": NS_PER_HOUR,
    "day": NS_PER_DAY,
}
_METERS = {one.name.lower().replace("_", "-"): one for one in usage_pb.Meter if one}
_FORMATS = {".csv": usage_pb.ExportFormat.CSV, ".parquet": usage_pb.ExportFormat.PARQUET}


_INSTEAD = Parameter(group=Group("Instead of sums, one of", validator=mutually_exclusive))


class _Whose(TypedDict):
    tenant_id: str
    vm_ids: tuple[str, ...]
    deployment_id: str


class _When(TypedDict):
    from_ns: int
    to_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What the command line asks for."""

    whose: _Whose
    when: _When
    step: usage_pb.Step
    by_vm: bool
    meters: tuple[usage_pb.Meter, ...]


def _whole(asked: tuple[int, int], step_ns: int) -> tuple[int, int]:
    """The interval of whole steps in which an interval lies."""
    return asked[0] // step_ns * step_ns, -(-asked[1] // step_ns) * step_ns


def _meters(names: Iterable[str]) -> tuple[usage_pb.Meter, ...]:
    try:
        return tuple(_METERS[name.lower()] for name in names)
    except KeyError as error:
        known = list(_METERS)
        raise InvalidRequest(
            f"There is no meter {error.args[0].lower()}.", hint=f"Meters: {', '.join(known)}."
        ) from None


async def command(  # noqa: PLR0913 - the options of the command
    *,
    begin: Annotated[str, Parameter(name="--from")] = "",
    end: Annotated[str, Parameter(name="--to")] = "now",
    step: StepName = "whole",
    by_vm: bool = False,
    vm: tuple[str, ...] = (),
    deployment: str = "",
    meter: tuple[str, ...] = (),
    tenant: str = "",
    gaps: Annotated[bool, _INSTEAD] = False,
    completeness: Annotated[bool, _INSTEAD] = False,
    live: Annotated[bool, _INSTEAD] = False,
    export: Annotated[Path | None, _INSTEAD] = None,
    recompute: Annotated[bool, _INSTEAD] = False,
    options: Options = DEFAULTS,
) -> None:
    """What was used, and how complete that knowledge is.

    Args:
        begin: First instant: 2026-11-23, 2026-11-23T11:30:00Z, 90m, 24h, 7d; default: the first of
            this month. Times are UTC.
        end: First instant that is not counted; default: now.
        step: In pieces of this length, whole UTC ones, so that the first may begin before --from
            and the last end after --to; default: in one piece.
        by_vm: A row for each VM.
        vm: Only this VM; may be given more than once.
        deployment: Only VMs of this deployment, by id or name.
        meter: Only this meter, for example network-out-p95; may be given more than once.
        tenant: For operators: id or name of the tenant.
        gaps: Samples that are missing, and why.
        completeness: How many samples of each VM came and why others are missing.
        live: What is used now, as it comes in, until Ctrl-C; times and steps are left out.
        export: Write the rows to this file, .csv or .parquet.
        recompute: For operators: compute hours and days of these days anew from what is kept;
            without --tenant, of all tenants.
    """
    piece = "day" if recompute else step
    from_ns, to_ns = _whole(interval(begin, end, SystemClock().now_ns()), _STEPS_NS[piece])
    name = "UNSPECIFIED" if step == "whole" else step.upper().replace("-", "_")
    async with options.client() as client:
        whose = await _whose(client, tenant, vm, deployment)
        asked = _Asked(
            whose=whose,
            when=_When(from_ns=from_ns, to_ns=to_ns),
            step=usage_pb.Step[name],
            by_vm=by_vm,
            meters=_meters(meter),
        )
        views = (
            (recompute, _recompute),
            (gaps, _gaps),
            (completeness, _completeness),
            (live, _live),
        )
        if export is not None:
            await _export(client, asked, export, options)
        else:
            await next((view for wanted, view in views if wanted), _show)(client, asked, options)


async def _whose(
    client: AsyncIronworks, tenant: str, vm_ids: tuple[str, ...], deployment: str
) -> _Whose:
    if deployment and not deployment.startswith("dep_"):
        deployment = (await client.deployments.get(deployment)).deployment_id
    tenant_id = await tenant_id_of(client, tenant)
    return _Whose(tenant_id=tenant_id, vm_ids=vm_ids, deployment_id=deployment)


async def _recompute(client: AsyncIronworks, asked: _Asked, options: Options) -> None:
    answer = await client.usage.recompute(tenant_id=asked.whose["tenant_id"], **asked.when)
    out = options.output()
    if options.json:
        out.line(answer)
    else:
        out.say(f"{answer.hours} hours of VMs were computed anew.")


async def _show(client: AsyncIronworks, asked: _Asked, options: Options) -> None:
    answer = await client.usage.get(
        **asked.whose, **asked.when, step=asked.step, by_vm=asked.by_vm, meters=asked.meters
    )
    if not answer.rows:
        await _exist(client, asked.whose)
    out = options.output()
    if options.json:
        out.line(answer)
        return
    out.table(("FROM", "VM", "METER", "QUANTITY"), [_cells(row) for row in answer.rows])
    out.say(completeness_sentence(answer.completeness or usage_pb.Completeness()))


async def _exist(client: AsyncIronworks, whose: _Whose) -> None:
    """Nothing was used by what there is not: that is said, unless the caller may not know."""
    with suppress(PermissionDenied):
        for vm_id in whose["vm_ids"]:
            await client.vms.get(vm_id)
        if whose["deployment_id"]:
            await client.deployments.get(whose["deployment_id"])
        if whose["tenant_id"]:
            await client.tenants.get(whose["tenant_id"])


async def _completeness(client: AsyncIronworks, asked: _Asked, options: Options) -> None:
    answer = await client.usage.completeness(**asked.whose, **asked.when)
    if not answer.vms:
        await _exist(client, asked.whose)
    out = options.output()
    if options.json:
        out.line(answer)
        return
    out.table(
        (
            "VM",
            "EXPECTED",
            "RECEIVED",
            "MISSING",
            "WHY",
            "QUARANTINED",
            "PARTIAL",
            "COMPLETE UNTIL",
        ),
        [_complete(one) for one in answer.vms],
    )
    out.say(completeness_sentence(answer.total or usage_pb.Completeness()))


def _complete(vm: usage_pb.VmCompleteness) -> tuple[str, ...]:
    of = vm.completeness or usage_pb.Completeness()
    counts = (of.expected, of.received, of.missing)
    why = ", ".join(f"{one.reason.name.lower().replace('_', ' ')} {one.samples}" for one in vm.gaps)
    more = (why or "-", str(of.quarantined), str(of.partial), when(vm.watermark_ns))
    return (vm.vm_id, *map(str, counts), *more)


def _cells(row: usage_pb.UsageRow) -> tuple[str, str, str, str]:
    return (
        when((row.interval or usage_pb.Interval()).from_ns),
        row.vm_id or "all",
        meter_name(row.meter),
        people_quantity(row.quantity, row.unit),
    )


async def _gaps(client: AsyncIronworks, asked: _Asked, options: Options) -> None:
    out = options.output()
    rows: list[tuple[str, str, str, str]] = []
    token = ""
    while True:
        answer = await client.usage.gaps(**asked.whose, **asked.when, page_token=token)
        for one in answer.gaps:
            gap, span = one.gap, one.interval or usage_pb.Interval()
            if options.json:
                out.line(one)
            elif gap is not None:
                missing = gap.last_seq - gap.first_seq + 1
                reason = gap.reason.name.lower().replace("_", " ")
                rows.append((when(span.from_ns), gap.vm_id, str(missing), reason))
        token = answer.page.next_page_token if answer.page else ""
        if not token:
            break
    if not rows:
        await _exist(client, asked.whose)
    if not options.json:
        out.table(("FROM", "VM", "SAMPLES", "WHY"), rows)


async def _live(client: AsyncIronworks, asked: _Asked, options: Options) -> None:
    await _exist(client, asked.whose)
    out = options.output()
    async with aclosing(client.usage.watch(**asked.whose, meters=asked.meters)) as rows:
        async for row in rows:
            if options.json:
                out.line(row)
            else:
                out.plain("  ".join(_cells(row)))


async def _export(client: AsyncIronworks, asked: _Asked, path: Path, options: Options) -> None:
    if path.suffix not in _FORMATS:
        raise InvalidRequest("The file's name must end in .csv or .parquet.")
    chunks = client.usage.export(
        **asked.whose,
        **asked.when,
        step=asked.step,
        by_vm=asked.by_vm,
        meters=asked.meters,
        file_format=_FORMATS[path.suffix],
    )
    # A file that broke off must not look whole.
    beside = path.with_name(f".{path.name}.part")
    size_bytes = 0
    try:
        async with aclosing(chunks):
            with beside.open("wb") as file:
                async for chunk in chunks:
                    size_bytes += file.write(chunk)
        beside.replace(path)
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be written: {error.strerror}.") from None
    options.output().say(f"{path}: {size_bytes:,} bytes.")


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
