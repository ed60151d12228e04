"""Root in a booted guest attacks the host and other tenants; one VM for all that it can survive.

The workload is a shell that the test speaks to over the network, and `attack.c` beside this file.
On QEMU here; on Firecracker, which needs a KVM, in the machine of `tests/vm/nested`.
"""

import asyncio
import contextlib
import hashlib
import os
import re
import shutil
import socket
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import pytest
import pytest_asyncio

from ironworks.metald.cgroup.groups import GroupLimits, HostGroups
from ironworks.metald.drivers.driver import (
    Driver,
    DriverError,
    DriverKind,
    Evidence,
    ExitKind,
    GuestConfig,
    GuestNetwork,
    Handle,
    VmmSpec,
)
from ironworks.metald.drivers.firecracker import FirecrackerDriver
from ironworks.metald.drivers.firecracker.files import VmFiles as FirecrackerFiles
from ironworks.metald.drivers.qemu import QemuDriver
from ironworks.metald.drivers.qemu.files import VmFiles
from ironworks.metald.guest.build import DEFAULT_DIR
from ironworks.metald.guest.build import Guest as BuiltGuest
from ironworks.metald.guest.control import MAX_CONNECTION_BYTES
from ironworks.metald.jail_directories import JailDirectories
from ironworks.metald.network import naming
from ironworks.metald.network.naming import first_slot
from ironworks.metald.network.plan import Plan
from ironworks.metald.network.slots import HostNetwork
from ironworks.metald.steps import NoSteps
from ironworks.metald.types import EgressRule, NetworkSpec
from ironworks.model.ids import derived_id
from ironworks.model.units import MIB
from ironworks.runtime.cgroup_layout import read_layout
from ironworks.runtime.clock import SystemClock
from ironworks.runtime.settings import tag_of
from ironworks.testkit.metald.frames import REFUSED
from ironworks.testkit.metald.guests import Guest, answers, own_addresses
from ironworks.testkit.rooms import build_program, make_rootfs

pytestmark = [pytest.mark.vm, pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]
UID = 1_900_400
SHELL_PORT, PAGE_PORT = 9000, 80
NESTED = "IRONWORKS_NESTED" in os.environ
"""Within the machine of tests/vm/nested, which has a KVM that works, and is slow."""
BOOT_SECONDS, SHELL_SECONDS, WAIT_MS = (300.0, 300.0, "20000") if NESTED else (90.0, 60.0, "2500")
CONSOLE_BYTES = 256 * 1024
PIDS = 96
HOST_BRIDGES = {"29c0", "2918", "2930"}
"""PCI's, ISA's and SMBus' of q35."""
MMDS = "169.254.169.254"
"""Where Firecracker itself answers each guest with that guest's own name, and nothing else."""
VIRTIO_MMIO = {"0x0001", "0x0002", "0x0004", "0x0013"}
"""Network, block, entropy, vsock: Firecracker has no PCI."""
VIRTIO = {"1000", "1001", "1003", "1041", "1042", "1043"}
"""Network, block, console; before and since version 1."""
EVERYWHERE = NetworkSpec(egress=(EgressRule(cidr="0.0.0.0/0"), EgressRule(cidr="::/0")))
"""What a VM's own rules allow makes no difference to the host, metadata and other tenants."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What differs between drivers for an attacker.

    Attributes:
        root: The VMM's root directory, or what it has of the VM's files in it.
        files: Names there.
        opened: Of those, what it may have open while the guest runs.
        config: Where the disk with the VM's environment is on the host.
        filters: Of system calls, at least.
    """

    kind: DriverKind
    make: Callable[[Path], Driver]
    root: str
    files: frozenset[str]
    opened: frozenset[str]
    config: Callable[[VmmSpec, Evidence], Path]
    filters: int


def _qemu(state_dir: Path) -> Driver:
    return QemuDriver(SystemClock(), NoSteps(), guest_dir=DEFAULT_DIR, state_dir=state_dir)


def _firecracker(state_dir: Path) -> Driver:
    return FirecrackerDriver(
        SystemClock(), NoSteps(), guest_dir=DEFAULT_DIR, state_dir=state_dir, probe_seconds=120.0
    )


def _firecracker_config(spec: VmmSpec, evidence: Evidence) -> Path:
    files = FirecrackerFiles(spec.jail_dir, spec.vm_id, evidence.details["program"])
    return files.root / "config"


QEMU = Kind(
    kind=DriverKind.QEMU,
    make=_qemu,
    root="vm",
    files=frozenset({"kernel", "initrd", "rootfs", "config"}),
    opened=frozenset({f"/vm/{name}" for name in ("kernel", "initrd", "rootfs", "config")}),
    config=lambda spec, _: VmFiles(spec.jail_dir).config,
    # The jail's, and QEMU's own.
    filters=2,
)
FIRECRACKER = Kind(
    kind=DriverKind.FIRECRACKER,
    make=_firecracker,
    root="",
    files=frozenset(
        {"kernel", "initrd", "rootfs", "config", "metrics.fifo", "log.fifo", "api.sock", "vmm"}
        | {"vsock.sock", "vsock.sock_1024", "dev", "run"}
    ),
    opened=frozenset({"/rootfs", "/config", "/metrics.fifo", "/log.fifo", "/dev/kvm"}),
    config=_firecracker_config,
    # Firecracker's own begin with the guest, where it was built with any.
    filters=1,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attacker:
    """A VM whose root is hostile, a neighbour of another tenant and one of its own."""

    kind: Kind
    spec: VmmSpec
    handle: Handle
    driver: Driver
    network: HostNetwork
    groups: HostGroups
    slot: int
    address: str
    neighbour: Guest
    sibling: Guest

    async def sh(self, script: str) -> str:
        """What a script that root runs in the guest has to say."""
        async with asyncio.timeout(SHELL_SECONDS):
            reader, writer = await self._opened()
            writer.write(script.encode() + b"\nexit\n")
            said = await reader.read()
            writer.close()
        return said.decode(errors="replace")

    async def _opened(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while True:
            try:
                return await asyncio.open_connection(self.address, SHELL_PORT)
            except ConnectionRefusedError:
                # Ready is who was started; a moment later it listens.
                await asyncio.sleep(0.05)

    async def connects(self, *targets: tuple[str, int]) -> set[str]:
        """Whom of these the guest reaches, all tried at once."""
        words = " ".join(f"{address} {port}" for address, port in targets)
        said = (await self.sh(f"/bin/attack connect {words}")).splitlines()
        assert len(said) == len(targets), said
        return {line.split()[1] for line in said if line.startswith("reached ")}

    async def counts(self) -> Counter[str]:
        """Rule → packets that it has refused."""
        stats = await self.network.stats(self.slot)
        return Counter({one.rule: one.packets for one in stats.denied})

    async def assert_others_live(self) -> None:
        """The neighbour is still served, and the attacker's own VM answers."""
        assert await asyncio.to_thread(answers, str(self.neighbour.names.address), PAGE_PORT)
        assert await self.sh("echo alive") == "alive\n"


def _rootfs(directory: Path) -> Path:
    built = os.environ.get("ATTACK_BIN")
    source = Path(__file__).with_name("attack.c")
    attack = Path(built) if built else build_program(source, directory)
    return make_rootfs(directory, programs=(attack,))


def _spec(jail: Path, netns: str, join_paths: tuple[Path, ...]) -> VmmSpec:
    return VmmSpec(
        vm_id=jail.name,
        vcpus=1,
        memory_bytes=192 * MIB,
        kernel_path=jail / "kernel",
        initrd_path=jail / "initrd",
        rootfs_path=jail / "rootfs",
        rootfs_format="squashfs",
        guest=GuestConfig(
            hostname="attacker",
            argv=("/bin/attack", "shell", str(SHELL_PORT)),
            env=(("WAIT_MS", WAIT_MS),),
            network=GuestNetwork(
                address_v6=str(naming.GUEST_ADDRESS_V6), gateway_v6=str(naming.GATEWAY_ADDRESS_V6)
            ),
        ),
        jail_dir=jail,
        uid=UID,
        gid=UID,
        netns=netns,
        tap=naming.TAP,
        mac=naming.GUEST_MAC,
        cgroup_join_paths=join_paths,
        pids_max=PIDS,
        console_max_bytes=CONSOLE_BYTES,
    )


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=[
        pytest.param(QEMU, marks=pytest.mark.skipif(NESTED, reason="QEMU is attacked outside")),
        pytest.param(
            FIRECRACKER,
            marks=pytest.mark.skipif(
                not NESTED, reason="Firecracker needs a KVM: tests/vm/nested has these run there"
            ),
        ),
    ],
    ids=lambda kind: kind.kind.value,
)
async def attacker(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, guest: BuiltGuest
) -> AsyncGenerator[Attacker]:
    kind: Kind = request.param
    scratch = tmp_path_factory.mktemp("attacks")
    tag, vm_id = tag_of(scratch), derived_id("vm", "attacker")
    network, groups = HostNetwork(tag), HostGroups(read_layout(), tag, SystemClock())
    jails = JailDirectories(scratch / "jails", scratch / "consoles", MIB)
    slot = first_slot(tag)
    names = await network.create(slot, UID, Plan(tenant_id="tnt_evil", network=EVERYWHERE))
    others = [
        await network.create(slot + number, UID + number, Plan(tenant_id=tenant))
        for number, tenant in ((1, "tnt_good"), (2, "tnt_evil"))
    ]
    limits = GroupLimits(memory_bytes=480 * MIB, cpus=1, cpu_weight=100, pids=PIDS)
    group = await groups.create(vm_id, limits)
    (scratch / "jails").mkdir()
    jail = await jails.create(vm_id, UID)
    files = {"kernel": guest.kernel_path, "initrd": guest.initrd_path, "rootfs": _rootfs(scratch)}
    for name, source in files.items():
        shutil.copy(source, jail / name)
        (jail / name).chmod(0o444)
    driver = kind.make(tmp_path_factory.getbasetemp())
    handle = await driver.create(_spec(jail, names.netns, group.join_paths))
    with ExitStack() as stack:
        neighbour, sibling = [Guest(one) for one in others]
        stack.callback(neighbour.close)
        stack.callback(sibling.close)
        stack.enter_context(neighbour.serves(PAGE_PORT))
        stack.enter_context(sibling.serves(PAGE_PORT))
        await handle.boot()
        async with asyncio.timeout(BOOT_SECONDS):
            await handle.wait_ready()
        yield Attacker(
            kind=kind,
            spec=_spec(jail, names.netns, group.join_paths),
            handle=handle,
            driver=driver,
            network=network,
            groups=groups,
            slot=slot,
            address=str(names.address),
            neighbour=neighbour,
            sibling=sibling,
        )
    await handle.close()
    await driver.destroy(jail, handle.evidence)
    await groups.remove(vm_id)
    for one in await network.present():
        await network.remove(one)
    await network.drain()


async def test_the_kernel_says_that_the_vmm_is_confined(attacker: Attacker) -> None:
    pid = attacker.handle.evidence.pid
    process = Path(f"/proc/{pid}")
    status = dict(
        line.split(":\t", 1)
        for line in (process / "status").read_text().splitlines()
        if ":\t" in line
    )
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {str(UID)}
    assert status["Groups"].strip() == ""
    kind = attacker.kind
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(status[name], 16) == 0, name
    # The jailer leaves the bound as it is: without new privileges nothing can be gained from it.
    assert int(status["CapBnd"], 16) == 0 or kind is FIRECRACKER
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert int(status["Seccomp_filters"]) >= kind.filters
    for space in ("mnt", "pid", "ipc", "uts", "net", "cgroup"):
        assert (process / "ns" / space).readlink() != Path(f"/proc/self/ns/{space}").readlink()
    lines = (process / "limits").read_text().splitlines()
    limits = {line[:26].strip(): line[26:].split() for line in lines}
    expected = {"Max core file size": "0", "Max open files": "1024", "Max msgqueue size": "0"}
    for name, most in expected.items():
        assert limits[name][:2] == [most, most], name
    opened = {str(one.readlink()) for one in (process / "fd").iterdir()}
    harmless = ("socket:[", "pipe:[", "anon_inode:", "/memfd:")
    strange = {one for one in opened if not one.startswith(harmless)}
    assert strange <= {"/dev/null", "/dev/net/tun", *kind.opened}
    inside = {path.name for path in (process / "root" / kind.root).iterdir()}
    # The jailer's: the program that it starts, and its pid.
    assert {name for name in inside if not name.startswith("firecracker-")} <= kind.files
    assert {"kernel", "rootfs", "config"} <= inside


async def test_its_own_tenant_is_reached_and_nobody_else(attacker: Attacker) -> None:
    before = await attacker.counts()
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as service:
        port = service.getsockname()[1]
        assert await asyncio.to_thread(_connects, str(naming.HOST_ADDRESS), port)
        sibling, neighbour = attacker.sibling.names, attacker.neighbour.names
        reached = await attacker.connects(
            *((str(one), PAGE_PORT) for one in (sibling.address, sibling.address_v6)),
            *((str(one), PAGE_PORT) for one in (neighbour.address, neighbour.address_v6)),
            # The nested machine is a guest too, and has the address of all guests.
            *((one, port) for one in own_addresses() - {str(naming.GUEST_ADDRESS)}),
            *((str(one), port) for one in (naming.HOST_ADDRESS, naming.HOST_ADDRESS_V6)),
            *((str(one), port) for one in (naming.GATEWAY_ADDRESS, naming.GATEWAY_ADDRESS_V6)),
            *((str(one), port) for one in (naming.ROUTER_ADDRESS, naming.ROUTER_ADDRESS_V6)),
            *((one, 80) for one in (MMDS, "169.254.170.2", "fd00:ec2::254")),
        )
    if attacker.kind is FIRECRACKER:
        reached.discard(MMDS)
    assert reached == {str(sibling.address), str(sibling.address_v6)}
    refused = await attacker.counts() - before
    assert {"host", "metadata", "peer"} <= refused.keys()


def _connects(address: str, port: int) -> bool:
    with socket.create_connection((address, port), timeout=5):
        return True


async def test_every_forged_frame_is_refused_and_counted(attacker: Attacker) -> None:
    await attacker.network.apply(attacker.slot, Plan(tenant_id="tnt_evil"))
    for what, rule, sent in REFUSED:
        if attacker.kind is FIRECRACKER and IPv4Address(MMDS).packed in sent:
            continue
        before = await attacker.counts()
        assert await attacker.sh(f"/bin/attack frame {sent.hex()}") == ""
        assert await attacker.counts() - before == {rule: 1}, what
    await attacker.assert_others_live()


async def test_under_another_name_nobody_is_reached(attacker: Attacker) -> None:
    sibling = attacker.sibling.names
    try_it = f"/bin/attack connect {sibling.address} {PAGE_PORT} {sibling.address_v6} {PAGE_PORT}"
    before = await attacker.counts()
    said = await attacker.sh(
        "(sleep 0.3; ip link set eth0 down; ip link set eth0 address 06:00:ac:10:00:77;"
        " ip link set eth0 up; ip route add default via 172.16.0.1;"
        f" {try_it} >/tmp/mac; ip link set eth0 down; ip link set eth0 address {naming.GUEST_MAC};"
        " ip link set eth0 up; ip addr add 172.16.0.1/24 dev eth0;"
        " ip addr del 172.16.0.2/30 dev eth0;"
        f" ip route add default dev eth0; {try_it} >/tmp/ip;"
        " ip addr flush dev eth0; ip addr add 172.16.0.2/30 dev eth0;"
        " ip route add default via 172.16.0.1; ip -6 addr add"
        f" {naming.GUEST_ADDRESS_V6}/64 dev eth0; ip -6 route add default via"
        f" {naming.GATEWAY_ADDRESS_V6}; touch /tmp/done) >/dev/null 2>&1 &"
    )
    assert said == ""
    said = ""
    async with asyncio.timeout(SHELL_SECONDS):
        while not said:
            await asyncio.sleep(0.5)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2):
                    said = await attacker.sh("cat /tmp/done && cat /tmp/mac /tmp/ip")
    assert "reached" not in said
    assert said.count("held") == 4
    refused = await attacker.counts() - before
    assert {"spoofed-mac", "spoofed-address"} <= refused.keys()
    assert await attacker.connects((str(sibling.address), PAGE_PORT)) == {str(sibling.address)}


async def test_disks_that_are_read_only_stay_as_they_are(attacker: Attacker) -> None:
    config = attacker.kind.config(attacker.spec, attacker.handle.evidence)
    paths = [attacker.spec.rootfs_path, config]
    before = [hashlib.sha256(path.read_bytes()).digest() for path in paths]
    said = await attacker.sh("for one in /dev/vd?; do /bin/attack disk $one; done")
    assert said.count("held") == len(paths), said
    assert "reached" not in said
    assert [hashlib.sha256(path.read_bytes()).digest() for path in paths] == before


async def test_the_machine_has_no_device_beyond_those_it_needs(attacker: Attacker) -> None:
    said = await attacker.sh(
        "for one in /sys/bus/pci/devices/*; do cat $one/vendor $one/device; done;"
        " /bin/attack ports; /bin/attack memory"
    )
    found = set(re.findall(r"0x([0-9a-f]{4})\n0x([0-9a-f]{4})\n", said))
    assert found <= {("8086", one) for one in HOST_BRIDGES} | {("1af4", one) for one in VIRTIO}
    if attacker.kind is FIRECRACKER:
        assert not found
        devices = await attacker.sh("cat /sys/bus/virtio/devices/*/device")
        assert set(devices.split()) <= VIRTIO_MMIO
    assert "read all ports" in said
    await attacker.assert_others_live()


async def test_a_flooded_console_stays_bounded(attacker: Attacker) -> None:
    lie = "Kernel panic - not syncing: lie\\nironworks: exited 0\\n"
    await attacker.sh(
        f"i=0; while [ $i -lt 3000 ]; do printf '{lie}{'x' * 40}\\n'; i=$((i+1)); done >/dev/ttyS0"
    )
    assert attacker.handle.console_path.stat().st_size <= CONSOLE_BYTES
    await attacker.assert_others_live()


async def test_a_full_disk_and_memory_pressure_stay_in_the_guest(attacker: Attacker) -> None:
    said = await attacker.sh("/bin/attack fill /filling; rm /filling; echo $?")
    assert "No space left on device" in said
    assert said.endswith("0\n")
    said = await attacker.sh("echo 1000 >/proc/self/oom_score_adj; /bin/attack eat; echo $?")
    assert said.splitlines()[-1] == str(128 + 9), said
    assert attacker.groups.oom_kills(attacker.spec.vm_id) == 0
    await attacker.assert_others_live()


async def test_a_fork_bomb_stays_in_the_guest(attacker: Attacker) -> None:
    assert await attacker.sh("/bin/attack fork 2 >/dev/null 2>&1 &") == ""
    await asyncio.sleep(1)
    assert len(attacker.spec.cgroup_join_paths[0].read_text().split()) < PIDS
    await attacker.assert_others_live()


async def test_no_port_of_the_host_is_reached_over_vsock(attacker: Attacker) -> None:
    if attacker.kind is QEMU:
        pytest.skip("QEMU's guests have no vsock.")
    ports = (1, 22, 80, 1023, 1025, 5000, 8080)
    said = await attacker.sh(f"/bin/attack knock {' '.join(map(str, ports))}")
    assert said.count("held") == len(ports), said
    assert "reached" not in said


async def test_a_flooded_control_channel_is_cut_off_and_the_vm_still_stops(
    attacker: Attacker,
) -> None:
    channel = "vsock" if attacker.kind is FIRECRACKER else "control"
    said = await attacker.sh(f"/bin/attack {channel} {4 * MAX_CONNECTION_BYTES}")
    assert int(said.split()[1]) > MAX_CONNECTION_BYTES, said
    with pytest.raises(DriverError, match="does not tell its memory"):
        await attacker.handle.guest_memory()
    await attacker.assert_others_live()
    await attacker.handle.shutdown()
    async with asyncio.timeout(BOOT_SECONDS):
        report = await attacker.handle.wait()
    assert report.kind is ExitKind.WORKLOAD
    assert attacker.handle.evidence.kind is attacker.kind.kind
