"""`python -m ironworks.metald.doctor`: what this host can do for VMs, and why; one line of JSON.

Reads and probes only: it starts no service, and what a probe boots ends with it.
"""

import asyncio
import json
import sys

from ironworks.metald.drivers.registry import choose, make_drivers, probe_all
from ironworks.metald.settings import MetaldSettings, host_size
from ironworks.metald.steps import NoSteps
from ironworks.model.errors import IronError
from ironworks.runtime.cgroup_layout import read_layout
from ironworks.runtime.clock import SystemClock
from ironworks.runtime.settings import load


async def examine(settings: MetaldSettings) -> dict[str, object]:
    """What there is to tell of the host: layout of cgroups, size, drivers, the chosen one."""
    guest_dir = settings.guest_dir
    drivers = make_drivers(SystemClock(), NoSteps(), guest_dir=guest_dir, state_dir=guest_dir)
    probes = await probe_all(drivers)
    chosen = choose(probes, settings.driver)
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o711)
    limits = settings.limits(host_size(settings.data_dir))
    return {
        "cgroups": _cgroups(),
        "capacity": {
            "vcpus": limits.capacity.vcpus,
            "memory_bytes": limits.capacity.memory_bytes,
            "disk_bytes": limits.capacity.disk_bytes,
            "vms": limits.capacity.vms,
        },
        "driver": chosen.value,
        "ready": probes[chosen].available,
        "drivers": [
            {
                "kind": kind.value,
                "available": probe.available,
                "acceleration": probe.accel.value,
                "version": probe.version,
                "sentence": probe.sentence,
            }
            for kind, probe in probes.items()
        ],
    }


def _cgroups() -> str:
    try:
        return read_layout().name
    except IronError as error:
        return error.message


def main() -> None:
    """Entry point."""
    try:
        found = asyncio.run(examine(load(MetaldSettings)))
    except IronError as error:
        sys.stderr.write(f"metald doctor: {error}\n")
        sys.exit(error.exit_status)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
