"""`iron doctor`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ironworks.cli.output import Output
from ironworks.machine.doctor import Finding, checks, probe
from ironworks.model.errors import FailedPrecondition
from ironworks.model.units import format_bytes
from ironworks.runtime.settings import DEFAULT_DATA_DIR, Settings, load


async def doctor(*, data_dir: Path = DEFAULT_DATA_DIR, json: bool = False) -> None:
    """Say whether this machine can run VMs, with which driver and acceleration, and why.

    Ends with a status other than 0 if it cannot. The first run of a boot of the machine may take
    some seconds: whether KVM boots a guest is found out by booting one.

    Args:
        data_dir: Where the platform keeps its data; default: /var/lib/ironworks.
        json: End with one line of JSON, for programs.
    """
    out = Output(json=json)
    found = checks(data_dir, load(Settings).guest_dir)
    host = await probe(data_dir)
    answer = {"checks": [asdict(one) for one in found], "host": host}
    if json:
        out.line(answer)
    else:
        _for_people(out, found, host)
    bad = [one.check for one in found if one.problem]
    if bad or not host["ready"]:
        raise FailedPrecondition(
            "This machine cannot run VMs yet.",
            hint="See above what is missing.",
        )


def _for_people(out: Output, found: list[Finding], host: dict[str, Any]) -> None:
    out.table(
        ("CHECK", "RESULT"),
        [(one.check, "ok" if not one.problem else f"{one.problem} {one.hint}") for one in found],
    )
    out.table(
        ("DRIVER", "AVAILABLE", "ACCELERATION", "WHY"),
        [
            (
                one["kind"] + (" *" if one["kind"] == host["driver"] else ""),
                "yes" if one["available"] else "no",
                one["acceleration"],
                one["sentence"],
            )
            for one in host["drivers"]
        ],
    )
    capacity = host["capacity"]
    out.plain(
        f"New VMs get the driver with the *. Capacity: {capacity['vms']} VMs, "
        f"{capacity['vcpus']} vCPU, {format_bytes(capacity['memory_bytes'])} memory, "
        f"{format_bytes(capacity['disk_bytes'])} disk. cgroups: {host['cgroups']}."
    )
