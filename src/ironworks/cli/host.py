"""`iron host`."""

from __future__ import annotations

from cyclopts import App

from ironworks.cli.options import DEFAULTS, Options
from ironworks.cli.output import state_name, when
from ironworks.gen.ironworks.gatewayd.v1 import hosts_pb
from ironworks.model.units import format_bytes

app = App(name="host", help="List the machines that run VMs.")


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
