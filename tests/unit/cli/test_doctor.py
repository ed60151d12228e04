"""`iron doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ironworks.cli import doctor
from ironworks.machine.doctor import Finding

if TYPE_CHECKING:
    from conftest import Iron

HOST: dict[str, Any] = {
    "cgroups": "v2",
    "capacity": {"vms": 10, "vcpus": 8, "memory_bytes": 1 << 30, "disk_bytes": 1 << 31},
    "driver": "qemu",
    "ready": True,
    "drivers": [
        {
            "kind": "qemu",
            "available": True,
            "acceleration": "tcg",
            "version": "7.2",
            "sentence": "KVM boots no guest here.",
        }
    ],
}


def examined(iron: Iron, *problems: str, ready: bool = True) -> None:
    found = [Finding(check="disk", problem=one, hint="Free some.") for one in problems or ("",)]

    def checks(data_dir: Path, guest_dir: Path) -> list[Finding]:
        del data_dir, guest_dir
        return found

    async def probe(data_dir: Path) -> dict[str, Any]:
        del data_dir
        return {**HOST, "ready": ready}

    iron.patch.setattr(doctor, "checks", checks)
    iron.patch.setattr(doctor, "probe", probe)


async def test_a_machine_that_can_says_how_and_why(iron: Iron) -> None:
    examined(iron)
    done = await iron("doctor")
    for shown in ("qemu *", "tcg", "KVM boots no guest here.", "ok", "10 VMs, 8 vCPU"):
        assert shown in done.out
    assert (await iron("doctor", "--json")).json["host"]["driver"] == "qemu"


async def test_a_machine_that_cannot_ends_with_a_status(iron: Iron) -> None:
    examined(iron, "The disk is full.")
    done = await iron("doctor", status=68)
    assert "The disk is full. Free some." in done.out
    assert "cannot run VMs yet" in done.err
    examined(iron, ready=False)
    await iron("doctor", status=68)
