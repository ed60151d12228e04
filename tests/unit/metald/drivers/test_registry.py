from dataclasses import replace
from pathlib import Path

import pytest

from ironworks.metald.drivers.driver import Accel, Capabilities, DriverKind, Probe
from ironworks.metald.drivers.registry import choose, make_drivers
from ironworks.metald.steps import NoSteps
from ironworks.runtime.clock import SystemClock

FAKE, QEMU, FIRECRACKER = DriverKind.FAKE, DriverKind.QEMU, DriverKind.FIRECRACKER
CAPABILITIES = Capabilities(
    pause=True, graceful_shutdown=True, block_counters=True, boots_bzimage=True, max_vcpus=1
)


def probes(*kinds: DriverKind, working: frozenset[DriverKind]) -> dict[DriverKind, Probe]:
    probe = Probe(
        kind=QEMU,
        available=True,
        accel=Accel.KVM,
        version="",
        sentence="",
        capabilities=CAPABILITIES,
    )
    return {kind: replace(probe, kind=kind, available=kind in working) for kind in kinds}


@pytest.mark.parametrize(
    ("kinds", "working", "wanted", "chosen"),
    [
        ({FAKE, QEMU, FIRECRACKER}, {FAKE, QEMU, FIRECRACKER}, None, FIRECRACKER),
        ({FAKE, QEMU, FIRECRACKER}, {FAKE, QEMU}, None, QEMU),
        ({FAKE, QEMU}, {FAKE}, None, QEMU),
        ({FAKE, QEMU}, {FAKE, QEMU}, FAKE, FAKE),
        ({FAKE, QEMU}, {FAKE}, QEMU, QEMU),
        ({FAKE}, {FAKE}, None, FAKE),
    ],
)
def test_the_best_that_works_and_never_the_fake_by_itself(
    kinds: set[DriverKind],
    working: set[DriverKind],
    wanted: DriverKind | None,
    chosen: DriverKind,
) -> None:
    assert choose(probes(*kinds, working=frozenset(working)), wanted) is chosen


def test_every_driver_is_found_under_its_kind(tmp_path: Path) -> None:
    drivers = make_drivers(SystemClock(), NoSteps(), guest_dir=tmp_path, state_dir=tmp_path)
    assert {kind: driver.kind for kind, driver in drivers.items()} == {
        kind: kind for kind in DriverKind
    }
