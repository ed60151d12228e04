"""All drivers of this host, and which of them new VMs get."""

from collections.abc import Mapping
from pathlib import Path

from ironworks.metald.drivers.driver import Driver, DriverKind, Probe
from ironworks.metald.drivers.fake import FakeDriver
from ironworks.metald.drivers.firecracker import FirecrackerDriver
from ironworks.metald.drivers.qemu import QemuDriver
from ironworks.metald.steps import Steps
from ironworks.runtime.clock import Clock

_BEST_FIRST = (DriverKind.FIRECRACKER, DriverKind.QEMU)


def make_drivers(
    clock: Clock, steps: Steps, *, guest_dir: Path, state_dir: Path
) -> dict[DriverKind, Driver]:
    """One of each kind that this version has.

    Args:
        clock: What waiting is measured by.
        steps: Told of every step.
        guest_dir: Where the built guests are.
        state_dir: Where drivers remember what they found out about the host.
    """
    return {
        DriverKind.FAKE: FakeDriver(clock, steps),
        DriverKind.QEMU: QemuDriver(clock, steps, guest_dir=guest_dir, state_dir=state_dir),
        DriverKind.FIRECRACKER: FirecrackerDriver(
            clock, steps, guest_dir=guest_dir, state_dir=state_dir
        ),
    }


async def probe_all(drivers: Mapping[DriverKind, Driver]) -> dict[DriverKind, Probe]:
    """What each driver says of itself on this host."""
    return {kind: await driver.probe() for kind, driver in drivers.items()}


def choose(probes: Mapping[DriverKind, Probe], wanted: DriverKind | None) -> DriverKind:
    """The driver that new VMs get: the wanted one, else the best that works, else QEMU.

    The fake one is never chosen by itself. A driver that does not work may be the answer: its probe
    then says what to do, and CreateVm quotes it.
    """
    if wanted is not None and wanted in probes:
        return wanted
    known = [kind for kind in _BEST_FIRST if kind in probes]
    working = [kind for kind in known if probes[kind].available]
    return (working or known or list(probes))[0]
