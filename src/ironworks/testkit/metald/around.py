"""What metald works with, in memory: assets, sampling, network, cgroups, faults."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from ironworks.metald.assets.lessor import Leased, LeasedAsset
from ironworks.metald.cgroup.groups import Group, GroupLimits
from ironworks.metald.drivers.driver import (
    DriverError,
)
from ironworks.metald.network.naming import SlotNames, names_of
from ironworks.metald.network.plan import Plan
from ironworks.metald.network.slots import TAP_LOST, SlotTakenError
from ironworks.metald.network.stats import Denied, NetworkStats
from ironworks.metald.sampling import VmSource
from ironworks.metald.steps import Step
from ironworks.metald.types import ImageDefaults
from ironworks.model.errors import FailedPrecondition, NotFound
from ironworks.model.ids import derived_id
from ironworks.testkit.metald.values import INITRD, KERNEL, ROOTFS


class MemoryLessor:
    """A `Lessor` whose assets are in memory; `held` is VM id → lease id."""

    def __init__(self) -> None:
        image = ImageDefaults(entrypoint=("/entry",), env=("A=1",))
        self.assets = {
            ROOTFS: LeasedAsset(
                asset_id=ROOTFS,
                kind="rootfs",
                format="squashfs",
                architecture="amd64",
                size_bytes=4,
                image=image,
            ),
            KERNEL: LeasedAsset(
                asset_id=KERNEL, kind="kernel", format="elf", architecture="", size_bytes=4
            ),
            INITRD: LeasedAsset(
                asset_id=INITRD, kind="initrd", format="", architecture="", size_bytes=4
            ),
        }
        self.held: dict[str, str] = {}
        self.lost: set[str] = set()
        self.down: Exception | None = None
        self._count = 0

    def _check(self) -> None:
        if self.down is not None:
            raise self.down

    async def acquire(self, tenant_id: str, vm_id: str, asset_ids: Sequence[str]) -> Leased:
        """See `Lessor`."""
        del tenant_id
        self._check()
        for asset_id in asset_ids:
            if asset_id not in self.assets:
                raise NotFound(f"Asset {asset_id} is not known here.")
        self._count += 1
        self.held[vm_id] = derived_id("lse", vm_id, str(self._count))
        return Leased(
            lease_id=self.held[vm_id],
            assets=tuple(self.assets[asset_id] for asset_id in asset_ids),
        )

    async def prepare(
        self, tenant_id: str, lease_id: str, directory: Path, names: Mapping[str, str]
    ) -> None:
        """See `Lessor`."""
        del tenant_id
        self._check()
        if lease_id not in self.held.values():
            raise NotFound(f"Lease {lease_id} is not known here.")
        for name in names.values():
            (directory / name).write_bytes(b"file")

    async def renew(self, lease_ids: Sequence[str]) -> frozenset[str]:
        """See `Lessor`."""
        self._check()
        return frozenset(self.lost.intersection(lease_ids))

    async def release(self, tenant_id: str, vm_id: str) -> None:
        """See `Lessor`."""
        del tenant_id
        self._check()
        self.held.pop(vm_id, None)

    async def register_platform(self, path: Path, kind: str, sha256: str) -> str:
        """See `Lessor`."""
        del path
        self._check()
        return derived_id("ast", kind, sha256)


class MemorySampler:
    """A `Sampler` that remembers; `events` tells in which order."""

    def __init__(self) -> None:
        self.attached: dict[str, VmSource] = {}
        self.events: list[tuple[str, str]] = []

    async def attach(self, vm: VmSource) -> None:
        """See `Sampler`."""
        self.attached[vm.vm_id] = vm
        self.events.append(("attach", vm.vm_id))

    async def detach(self, vm_id: str) -> None:
        """See `Sampler`."""
        if self.attached.pop(vm_id, None) is not None:
            self.events.append(("detach", vm_id))


class MemoryNetwork:
    """A `Network` of names; slots in `foreign` belong to another platform."""

    def __init__(self, tag: str) -> None:
        self._tag = tag
        self.made: set[int] = set()
        self.foreign: set[int] = set()
        self.without_tap: set[int] = set()
        self.plans: dict[int, Plan] = {}
        self.waiting: list[int] = []
        self.reserved: set[int] = set()

    def names(self, slot: int) -> SlotNames:
        """See `Network`."""
        return names_of(self._tag, slot)

    @property
    def ready(self) -> tuple[int, ...]:
        """See `Network`."""
        return tuple(self.waiting)

    @property
    def pooled(self) -> frozenset[int]:
        """See `Network`."""
        return frozenset(self.waiting) | self.reserved

    async def create(self, slot: int, owner_uid: int, plan: Plan | None = None) -> SlotNames:
        """See `Network`."""
        del owner_uid
        if slot in self.foreign or (slot in self.made and slot not in self.waiting):
            raise SlotTakenError(str(slot))
        if slot in self.waiting:
            self.waiting.remove(slot)
        self.made.add(slot)
        self.plans[slot] = plan or Plan()
        return self.names(slot)

    async def apply(self, slot: int, plan: Plan) -> None:
        """See `Network`."""
        self.plans[slot] = plan

    async def mend(self, slot: int, owner_uid: int, plan: Plan, pid: int | None) -> tuple[str, ...]:
        """See `Network`."""
        del owner_uid, pid
        gone = await self.drift(slot)
        if slot in self.without_tap:
            gone = (*gone, f"Its tap {TAP_LOST}.")
        self.without_tap.discard(slot)
        self.made.add(slot)
        self.plans[slot] = plan
        return gone

    async def mend_fabric(self) -> bool:
        """See `Network`."""
        return False

    async def remove(self, slot: int) -> None:
        """See `Network`."""
        if slot in self.waiting:
            self.waiting.remove(slot)
        self.made.discard(slot)
        self.plans.pop(slot, None)

    async def stats(self, slot: int) -> NetworkStats:
        """See `Network`."""
        if slot not in self.made:
            raise FailedPrecondition("The network of the VM is not there.")
        refused = (Denied(rule="egress", packets=2, bytes=120),)
        return NetworkStats(in_bytes=10, out_bytes=20, denied=refused)

    def reserve(self, slot: int) -> None:
        """See `Network`."""
        self.reserved.add(slot)

    async def prepare(self, slot: int, owner_uid: int) -> bool:
        """See `Network`."""
        del owner_uid
        self.reserved.discard(slot)
        if slot in self.foreign:
            return False
        self.made.add(slot)
        self.waiting.append(slot)
        return True

    async def drain(self) -> None:
        """See `Network`."""
        self.made -= set(self.waiting)
        self.waiting.clear()

    async def present(self) -> frozenset[int]:
        """See `Network`."""
        return frozenset(self.made)

    async def drift(self, slot: int) -> tuple[str, ...]:
        """See `Network`."""
        if slot in self.without_tap:
            return ("Its tap is gone.",)
        return () if slot in self.made else ("Its network is gone.",)


class MemoryGroups:
    """A `Groups` of names."""

    def __init__(self) -> None:
        self.made: dict[str, GroupLimits] = {}
        self.kills: defaultdict[str, int] = defaultdict(int)
        self.entered: list[tuple[str, int]] = []

    def group(self, vm_id: str) -> Group:
        """See `Groups`."""
        directory = Path("/nowhere") / vm_id
        return Group(
            directories=(directory,),
            cpu_file=directory / "cpu",
            memory_file=directory / "memory",
            oom_file=directory / "oom",
        )

    async def create(self, vm_id: str, limits: GroupLimits) -> Group:
        """See `Groups`."""
        self.made[vm_id] = limits
        return self.group(vm_id)

    async def enter(self, group: Group, pid: int) -> None:
        """See `Groups`."""
        self.entered.append((group.directories[0].name, pid))

    async def remove(self, vm_id: str) -> None:
        """See `Groups`."""
        self.made.pop(vm_id, None)

    async def present(self) -> frozenset[str]:
        """See `Groups`."""
        return frozenset(self.made)

    def missing(self, vm_id: str) -> tuple[str, ...]:
        """See `Groups`."""
        return () if vm_id in self.made else ("Its cgroup is gone.",)

    def oom_kills(self, vm_id: str) -> int:
        """See `Groups`."""
        return self.kills[vm_id]


class FailAt:
    """`Steps` that raise at one step, or stand still there until metald is ended."""

    def __init__(self) -> None:
        self.step: Step | None = None
        self.error: Exception = DriverError(Step.VMM_SPAWN, "It was made to fail.")
        self.seen: list[Step] = []
        self.stands_still = False
        self.reached = asyncio.Event()

    async def reach(self, step: Step, vm_id: str) -> None:
        """See `Steps`."""
        del vm_id
        self.seen.append(step)
        if step is not self.step:
            return
        self.reached.set()
        if self.stands_still:
            await asyncio.Event().wait()
        raise self.error
