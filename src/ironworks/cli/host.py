"""`iron host`."""

from __future__ import annotations

from cyclopts import App

from ironworks.cli.options import DEFAULTS, Options
from ironworks.cli.output import state_name, when
from ironworks.gen.ironworks.gatewayd.v1 import hosts_pb
from ironworks.gen.ironworks.metald.v1 import host_pb
from ironworks.model.units import format_bytes, parse_bytes

app = App(name="host", help="List, show and steer the machines that run VMs.")


def _use(host: hosts_pb.Host) -> str:
    has = host.capacity or hosts_pb.HostResources()
    used = host.allocated or hosts_pb.HostResources()
    memory = f"{format_bytes(used.memory_bytes)} of {format_bytes(has.memory_bytes)}"
    return f"{used.vcpus} of {has.vcpus} vCPU, {memory}"


@app.command(name="list")
async def list_(*, zone: str = "", limit: int = 100, options: Options = DEFAULTS) -> None:
    """List hosts by name. For operators.

    Args:
        zone: Only hosts of this zone.
        limit: How many at most; default: 100.
    """
    async with options.client() as client:
        page = await client.hosts.list(zone=zone, limit=limit)
    options.output().listing(
        "hosts",
        page,
        ("HOST", "NAME", "STATE", "ZONE", "DRIVER", "RESERVED", "LAST REPORT"),
        lambda one: (
            one.host_id,
            one.name,
            state_name(one.state),
            one.zone or "-",
            f"{one.driver} ({one.acceleration})",
            _use(one),
            when(one.last_heartbeat_at_ns),
        ),
    )


def _amount(amount: host_pb.HostResources | None) -> str:
    found = amount or host_pb.HostResources()
    return (
        f"{found.vms} VMs, {found.vcpus} vCPU, {format_bytes(found.memory_bytes)} memory, "
        f"{format_bytes(found.disk_bytes)} disk"
    )


def _show(host: host_pb.Host, options: Options) -> None:
    out = options.output()
    out.fields(
        host,
        {
            "Host": f"{host.id} ({host.name})",
            "State": state_name(host.state) + (f": {host.reason}" if host.reason else ""),
            "Capacity": _amount(host.capacity),
            "Allocated": _amount(host.allocated),
            "Reserved": _amount(host.reserved),
            "Largest VM": _amount(host.largest_vm),
            "Kernel": f"{host.kernel_version} ({host.architecture}), cgroups {host.cgroup_layout}",
        },
    )
    if options.json:
        return
    if host.drain is not None:
        drain = host.drain
        out.say(f"Drain: {drain.vms_left} of {drain.vms_at_start} VMs are left.")
        for problem in drain.problems:
            out.say(f"Not ended yet: {problem}")
    out.table(
        ("DRIVER", "AVAILABLE", "ACCELERATION", "WHY"),
        [
            (
                one.kind + (" *" if one.chosen else ""),
                "yes" if one.available else "no",
                one.accel,
                one.sentence,
            )
            for one in host.drivers
        ],
    )


@app.command
async def show(*, options: Options = DEFAULTS) -> None:
    """Show the host that the API runs on: capacity, what is taken, drivers. For operators."""
    async with options.client() as client:
        _show(await client.hosts.show(), options)


@app.command
async def cordon(*, reason: str = "", options: Options = DEFAULTS) -> None:
    """Take no new VMs on this host; those that it has run on. For operators.

    Args:
        reason: Told to whoever asks for a VM.
    """
    async with options.client() as client:
        _show(await client.hosts.cordon(reason), options)


@app.command
async def uncordon(*, options: Options = DEFAULTS) -> None:
    """Take VMs again on this host; ends a drain. For operators."""
    async with options.client() as client:
        _show(await client.hosts.uncordon(), options)


@app.command
async def drain(*, reason: str = "", grace: float = 0, options: Options = DEFAULTS) -> None:
    """End every VM of this host and take no new ones. For operators.

    Answers at once; `iron host show` tells how far it is.

    Args:
        reason: Kept with the host and with each VM.
        grace: Seconds that each guest may take before it is ended by force; default: 30.
    """
    async with options.client() as client:
        _show(await client.hosts.drain(reason, timeout_seconds=grace), options)


@app.command
async def quota(
    tenant: str,
    /,
    *,
    vms: int | None = None,
    vcpus: int | None = None,
    memory: str | None = None,
    disk: str | None = None,
    options: Options = DEFAULTS,
) -> None:
    """Show what a tenant may have on this host, or set it. For operators.

    Args:
        tenant: Id, `tnt_…`.
        vms: VMs at most; 0: no limit.
        vcpus: vCPUs at most; 0: no limit.
        memory: Memory at most, for example 8GiB; 0: no limit.
        disk: Disk at most; 0: no limit.
    """
    async with options.client() as client:
        found = await client.hosts.quota(tenant)
        if any(one is not None for one in (vms, vcpus, memory, disk)):
            now = found.limit or host_pb.HostResources()
            limit = host_pb.HostResources(
                vms=now.vms if vms is None else vms,
                vcpus=now.vcpus if vcpus is None else vcpus,
                memory_bytes=now.memory_bytes if memory is None else parse_bytes(memory),
                disk_bytes=now.disk_bytes if disk is None else parse_bytes(disk),
            )
            found = await client.hosts.set_quota(tenant, limit)
    options.output().fields(
        found,
        {
            "Tenant": found.tenant_id,
            "Limit (0: none)": _amount(found.limit),
            "Used": _amount(found.used),
        },
    )
