"""Each driver, and a real place on this machine for one VM of it."""

import asyncio
import os
import shutil
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from ironworks.metald.cgroup.groups import GroupLimits, HostGroups
from ironworks.metald.drivers.driver import Driver, DriverKind, GuestConfig, VmmSpec
from ironworks.metald.drivers.fake import FakeDriver
from ironworks.metald.drivers.firecracker import FirecrackerDriver
from ironworks.metald.drivers.qemu import QemuDriver
from ironworks.metald.guest.build import DEFAULT_DIR, build_now
from ironworks.metald.jail_directories import JailDirectories
from ironworks.metald.network import naming
from ironworks.metald.network.naming import first_slot
from ironworks.metald.network.slots import HostNetwork
from ironworks.metald.steps import NoSteps, Steps
from ironworks.model.errors import IronError
from ironworks.model.ids import derived_id
from ironworks.model.units import MIB
from ironworks.runtime.cgroup_layout import read_layout
from ironworks.runtime.clock import SystemClock
from ironworks.runtime.settings import tag_of
from ironworks.testkit.rooms import make_rootfs

NESTED = "IRONWORKS_NESTED" in os.environ
"""Within the VM of tests/vm/nested, which has a KVM that works, and is slow."""
PROBE_SECONDS = 120.0 if NESTED else 6.0
VM_ID = derived_id("vm", "conformance")
UID = 1_900_100
SERVE = (
    "/bin/sh",
    "-c",
    "httpd -p 8080 -h /www; trap 'exit 0' TERM; while :; do sleep 0.1; done",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What differs between drivers for the suite."""

    kind: DriverKind
    make: Callable[[Steps, Path], Driver]
    serves: GuestConfig
    """Answers HTTP on port 8080 until it is asked to end, then ends with 0."""
    dies: GuestConfig
    """Ends before it is ready."""
    ends_by_itself: GuestConfig
    """Is ready, then ends with status 3."""


def _fake(steps: Steps, state_dir: Path) -> Driver:
    del state_dir
    return FakeDriver(SystemClock(), steps)


def _qemu(steps: Steps, state_dir: Path) -> Driver:
    return QemuDriver(
        SystemClock(),
        steps,
        guest_dir=DEFAULT_DIR,
        state_dir=state_dir.parent if NESTED else state_dir,
        probe_seconds=PROBE_SECONDS,
    )


def _firecracker(steps: Steps, state_dir: Path) -> Driver:
    return FirecrackerDriver(
        SystemClock(),
        steps,
        guest_dir=DEFAULT_DIR,
        state_dir=state_dir.parent,
        probe_seconds=PROBE_SECONDS,
    )


FAKE = Kind(
    kind=DriverKind.FAKE,
    make=_fake,
    serves=GuestConfig(hostname="web", argv=("/any",)),
    dies=GuestConfig(
        hostname="web",
        argv=("/any",),
        env=(
            ("IW_FAKE_NEVER_READY", "1"),
            ("IW_FAKE_EXIT_AFTER_SECONDS", "0.1"),
            ("IW_FAKE_EXIT_STATUS", "3"),
        ),
    ),
    ends_by_itself=GuestConfig(
        hostname="web",
        argv=("/any",),
        env=(("IW_FAKE_EXIT_AFTER_SECONDS", "0.3"), ("IW_FAKE_EXIT_STATUS", "3")),
    ),
)
QEMU = Kind(
    kind=DriverKind.QEMU,
    make=_qemu,
    serves=GuestConfig(hostname="web", argv=SERVE),
    dies=GuestConfig(hostname="web", argv=("/app/nothing",)),
    ends_by_itself=GuestConfig(hostname="web", argv=("/bin/sh", "-c", "sleep 0.5; exit 3")),
)


FIRECRACKER = replace(QEMU, kind=DriverKind.FIRECRACKER, make=_firecracker)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A network slot, a cgroup and a jail with assets."""

    kind: Kind
    spec: VmmSpec
    address: str
    groups: HostGroups
    state_dir: Path

    def driver(self, steps: Steps | None = None) -> Driver:
        """A driver as a fresh metald has it."""
        return self.kind.make(steps or NoSteps(), self.state_dir)

    def with_guest(self, guest: GuestConfig) -> VmmSpec:
        """The place's VM with another workload."""
        return replace(self.spec, guest=guest)

    def files(self) -> set[str]:
        """What is in the jail."""
        return {path.name for path in self.spec.jail_dir.iterdir()}

    def pids(self) -> set[int]:
        """Who is in the cgroup."""
        text = self.spec.cgroup_join_paths[0].read_text()
        return {int(pid) for pid in text.split()}


def _has_firecracker() -> bool:
    return NESTED and bool(os.environ.get("FIRECRACKER_BIN") and os.environ.get("JAILER_BIN"))


@pytest.fixture(
    params=[
        FAKE,
        pytest.param(QEMU, marks=pytest.mark.vm),
        pytest.param(
            FIRECRACKER,
            marks=[
                pytest.mark.vm,
                pytest.mark.skipif(
                    not _has_firecracker(),
                    reason="Firecracker is tested within the VM of tests/vm/nested, with "
                    "FIRECRACKER_BIN and JAILER_BIN set",
                ),
            ],
        ),
    ],
    ids=lambda one: one.kind,
)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_rootfs(tmp_path_factory.mktemp("rootfs"))


@pytest.fixture
async def place(kind: Kind, tmp_path: Path, rootfs: Path) -> AsyncGenerator[Place]:
    tag = tag_of(tmp_path)
    slot = first_slot(tag)
    network, groups = HostNetwork(tag), HostGroups(read_layout(), tag, SystemClock())
    jails = JailDirectories(tmp_path / "jails", tmp_path / "consoles", 1 * MIB)
    (tmp_path / "jails").mkdir()
    names = await network.create(slot, UID)
    limits = GroupLimits(memory_bytes=512 * MIB, cpus=2, cpu_weight=100, pids=128)
    group = await groups.create(VM_ID, limits)
    jail = await jails.create(VM_ID, UID)
    await asyncio.to_thread(_assets, kind, jail, rootfs)
    spec = VmmSpec(
        vm_id=VM_ID,
        vcpus=1,
        memory_bytes=192 * MIB,
        kernel_path=jail / "kernel",
        initrd_path=jail / "initrd",
        rootfs_path=jail / "rootfs",
        rootfs_format="squashfs",
        guest=kind.serves,
        jail_dir=jail,
        uid=UID,
        gid=UID,
        netns=names.netns,
        tap=naming.TAP,
        mac=naming.GUEST_MAC,
        cgroup_join_paths=group.join_paths,
        pids_max=128,
    )
    made = Place(
        kind=kind,
        spec=spec,
        address=str(names.address),
        groups=groups,
        state_dir=tmp_path,
    )
    yield made
    await made.driver().destroy(jail, None)
    await groups.remove(VM_ID)
    await network.remove(slot)


def _assets(kind: Kind, jail: Path, rootfs: Path) -> None:
    files = {"rootfs": rootfs}
    if kind.kind is not DriverKind.FAKE:
        guest = build_now(DEFAULT_DIR)
        if isinstance(guest, IronError):
            raise guest
        files |= {"kernel": guest.kernel_path, "initrd": guest.initrd_path}
    for name, source in files.items():
        shutil.copy(source, jail / name)
        (jail / name).chmod(0o444)
