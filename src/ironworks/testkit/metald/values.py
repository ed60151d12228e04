"""Values that tests of metald share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ironworks.metald.types import Limits, Resources, VmSpec, Workload
from ironworks.model.ids import derived_id
from ironworks.model.units import GIB, MIB

TENANT = derived_id("tnt", "one")
OTHER_TENANT = derived_id("tnt", "two")
ROOTFS = derived_id("ast", "rootfs")
KERNEL = derived_id("ast", "kernel")
INITRD = derived_id("ast", "initrd")
LIMITS = Limits(
    capacity=Resources(vcpus=16, memory_bytes=8 * GIB, disk_bytes=64 * GIB, vms=100),
    largest=Resources(vcpus=4, memory_bytes=4 * GIB, disk_bytes=64 * GIB, vms=1),
)


def vm_spec(**changes: Any) -> VmSpec:
    """A small specification that every driver takes."""
    spec = VmSpec(
        name="web",
        vcpus=1,
        memory_bytes=64 * MIB,
        rootfs_asset_id=ROOTFS,
        workload=Workload(argv=("/bin/server",)),
        cpu_weight=100,
    )
    return replace(spec, **changes)
