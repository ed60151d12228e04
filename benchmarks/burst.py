"""burst: 50 VMs created at once, against the bare kernel operations in a loop.

Ours is CreateVm through metald, all 50 calls at once: admission, store, lease, jail and the fake
VMM's process; the namespaces, taps, cgroups and jail directories are real. The reference makes the
same things of the kernel, one VM after the other, and nothing else: namespace, tap, veth pair,
addresses, routes, firewall, cgroups with their limits, jail directory, the VMM's process up to its
socket. Both are removed again, and the machine is searched for what is left. They alternate.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks.frame import Benchmark, Outcome, median, spread
from ironworks.cli.deploy import DeploySpec, deploy
from ironworks.gen.ironworks.gatewayd.v1 import roles_pb
from ironworks.gen.ironworks.metald.v1 import vm_pb
from ironworks.gen.ironworks.metald.v1.vm_connect import VmServiceClient
from ironworks.machine.inventory import Item, take
from ironworks.machine.platform import PlatformFile
from ironworks.machine.temporary import temporary_platform
from ironworks.metald.cgroup.groups import GroupLimits, HostGroups
from ironworks.metald.drivers import fake_guest
from ironworks.metald.network import namespace, naming, rules
from ironworks.metald.network.fabric import ROUTER_SYSCTLS
from ironworks.metald.network.links import LinkError, Links, make_tap, set_sysctls
from ironworks.metald.network.naming import SlotNames, names_of
from ironworks.metald.network.nft import Firewall
from ironworks.model.errors import DeadlineExceeded
from ironworks.model.ids import new_id
from ironworks.model.units import MIB, NS_PER_SECOND
from ironworks.runtime.cgroup_layout import read_layout
from ironworks.runtime.clock import SystemClock, SystemEntropy
from ironworks.runtime.identity import ServiceSigner
from ironworks.runtime.rpc.client import Clients
from ironworks.runtime.settings import Settings, tag_of
from ironworks.sdk import AsyncIronworks
from ironworks.testkit.images import build_sample_layout

GOAL_PER_SECOND = 15
GOAL_RATIO = 0.5
AT_ONCE = 50
UID_FIRST = 1_950_000
SETTLE_SECONDS = 60
_CLOCK = SystemClock()
_TENANT = "bench"


def _per_second(count: int, from_ns: int) -> float:
    return count * NS_PER_SECOND / (_CLOCK.monotonic_ns() - from_ns)


@asynccontextmanager
async def template(platform: PlatformFile) -> AsyncGenerator[tuple[str, vm_pb.VmSpec]]:
    """A tenant, and the spec of a VM that was deployed for it through the public API."""
    data_dir = Path(platform.data_dir)
    async with AsyncIronworks(data_dir=data_dir) as operator:
        tenant = await operator.tenants.create(_TENANT)
        roles = [roles_pb.Role.OWNER]
        key = await operator.keys.create(_TENANT, roles=roles, tenant_id=tenant.tenant_id)
        image = build_sample_layout(data_dir / "images" / "sample")
        async with AsyncIronworks(platform.api_url, key.secret, platform.ca_file) as api:
            done = await deploy(api, DeploySpec(image=image, memory_bytes=64 * MIB))
            vm = await operator.vms.get(done.vm_ids[0])
            await api.jobs.wait(await api.deployments.delete(done.deployment_id))
    spec = vm.spec or vm_pb.VmSpec()
    spec.deployment_id = ""
    yield tenant.tenant_id, spec


async def burst(vms: VmServiceClient, spec: vm_pb.VmSpec) -> tuple[float, float]:
    """Create all at once, then delete all at once; VMs a second of each."""
    ids = [new_id("vm", _CLOCK, SystemEntropy()) for _ in range(AT_ONCE)]
    requests = [
        vm_pb.CreateVmRequest(
            vm_id=vm_id,
            spec=vm_pb.VmSpec(
                name=vm_id.replace("_", "-"),
                vcpus=spec.vcpus,
                memory_bytes=spec.memory_bytes,
                assets=spec.assets,
                workload=spec.workload,
            ),
        )
        for vm_id in ids
    ]
    began_ns = _CLOCK.monotonic_ns()
    await asyncio.gather(*(vms.create_vm(request) for request in requests))
    created = _per_second(AT_ONCE, began_ns)
    began_ns = _CLOCK.monotonic_ns()
    deletions = [vm_pb.DeleteVmRequest(vm_id=vm_id, force=True) for vm_id in ids]
    await asyncio.gather(*(vms.delete_vm(request) for request in deletions))
    return created, _per_second(AT_ONCE, began_ns)


def start_fake(names: SlotNames, config: Path) -> subprocess.Popen[bytes]:
    """Start the fake VMM as its driver does."""
    words = [f"--net={names.netns_path}", "--", sys.executable, "-I", "-S", fake_guest.__file__]
    return subprocess.Popen(
        ["/usr/bin/nsenter", *words, str(config)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )


class Bare:
    """The kernel's part alone, for one VM after the other."""

    def __init__(self, directory: Path) -> None:
        """Work below `directory`, under a tag of its own."""
        self._directory = directory
        self._tag = tag_of(directory)
        self._groups = HostGroups(read_layout(), self._tag, _CLOCK)
        self._running: list[tuple[SlotNames, str, subprocess.Popen[bytes]]] = []

    async def make_all(self) -> float:
        """All of them; VMs a second."""
        began_ns = _CLOCK.monotonic_ns()
        for number in range(AT_ONCE):
            await self._make(number)
        return _per_second(AT_ONCE, began_ns)

    async def _make(self, number: int) -> None:
        names, vm_id = names_of(self._tag, number), f"vm_{number}"
        uid, jail = UID_FIRST + number, self._directory / f"vm_{number}"
        namespace.create(names.netns_path, lambda: self._inside(uid))
        with Links() as links:
            links.add_veth(
                names.veth, naming.INNER_VETH, names.netns_path, link_address=names.link_address
            )
            links.add_route(names.address, names.veth)
        namespace.run_in(names.netns_path, lambda: self._inside_again(names))
        limits = GroupLimits(memory_bytes=64 * MIB, cpus=1.25, cpu_weight=100, pids=128)
        group = await self._groups.create(vm_id, limits)
        jail.mkdir(mode=0o750, parents=True)
        os.chown(jail, 0, uid)
        config = {
            "hostname": vm_id,
            "uid": uid,
            "gid": uid,
            "cgroup_join_paths": [str(path) for path in group.join_paths],
            "socket": str(jail / "fake.sock"),
            "exit_file": str(jail / "fake.exit"),
            "port": 8080,
            "never_ready": False,
            "ready_after_seconds": 0,
            "exit_after_seconds": -1,
            "exit_status": 0,
            "ignore_shutdown": False,
        }
        (jail / "fake.json").write_text(json.dumps(config))
        process = start_fake(names, jail / "fake.json")
        self._running.append((names, vm_id, process))
        deadline_ns = _CLOCK.monotonic_ns() + SETTLE_SECONDS * NS_PER_SECOND
        while not (jail / "fake.sock").exists():
            if _CLOCK.monotonic_ns() > deadline_ns or process.poll() is not None:
                raise DeadlineExceeded("The fake VMM did not open its socket.")
            await asyncio.sleep(0.001)

    @staticmethod
    def _inside(uid: int) -> None:
        set_sysctls(ROUTER_SYSCTLS)
        make_tap(naming.TAP, uid)
        with Links() as links:
            links.up("lo")
            links.add_address(naming.TAP, naming.GATEWAY_ADDRESS, naming.GUEST_PREFIX_LENGTH)
            links.add_address(naming.TAP, naming.GATEWAY_ADDRESS_V6, naming.GUEST_PREFIX_LENGTH_V6)
            links.up(naming.TAP)

    @staticmethod
    def _inside_again(names: SlotNames) -> None:
        with Links() as links:
            links.up(naming.INNER_VETH)
            links.add_route(None, naming.INNER_VETH, gateway=naming.ROUTER_ADDRESS)
            links.add_route(None, naming.INNER_VETH, gateway=naming.ROUTER_ADDRESS_V6)
        with Firewall() as firewall:
            firewall.apply(rules.slot_rules(names))

    async def remove_all(self) -> None:
        """Whatever was made."""
        for names, vm_id, process in self._running:
            process.send_signal(signal.SIGKILL)
            process.wait()
            await self._groups.remove(vm_id)
            with Links() as links:
                try:
                    links.delete(names.veth)
                except LinkError as error:
                    print(error, file=sys.stderr)
            namespace.remove(names.netns_path)
        self._running.clear()
        shutil.rmtree(self._directory, ignore_errors=True)


async def reference(directory: Path) -> float:
    """The bare operations; VMs a second."""
    bare = Bare(directory)
    try:
        return await bare.make_all()
    finally:
        await bare.remove_all()


async def settled(data_dir: Path, before: frozenset[Item]) -> list[str]:
    """What is there that was not there before, once metald has had the time to put it away."""
    left: frozenset[Item] = frozenset()
    deadline_ns = _CLOCK.monotonic_ns() + SETTLE_SECONDS * NS_PER_SECOND
    while _CLOCK.monotonic_ns() < deadline_ns:
        left = await take(data_dir) - before
        # The pool makes new slots for those that VMs had: as many as it holds, and no VM's.
        pool = {item for item in left if item.kind == "namespace"}
        had = sum(1 for item in before if item.kind == "namespace")
        now = sum(1 for item in await take(data_dir) if item.kind == "namespace")
        left -= pool if now <= had else frozenset[Item]()
        if not left:
            break
        await asyncio.sleep(1)
    return [str(item) for item in sorted(left)]


def cpu_ms(pid: int) -> float:
    """CPU time that a process has used, in milliseconds."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) * 1000 / os.sysconf("SC_CLK_TCK")


async def measure(quick: bool) -> Outcome:  # noqa: FBT001 - the frame's signature
    """Bursts and the reference alternately."""
    ours: list[float] = []
    deletions: list[float] = []
    bare: list[float] = []
    left: list[str] = []
    env = {"IRONWORKS_DRIVER": "fake", "IRONWORKS_CPU_OVERCOMMIT": "100"}
    async with (
        temporary_platform("burst", env) as platform,
        template(platform) as (tenant_id, spec),
    ):
        data_dir = Path(platform.data_dir)
        settings = Settings(data_dir=data_dir, metald_url=platform.services["metald"])
        signer = ServiceSigner.load(data_dir, "gatewayd", settings.trust_domain, _CLOCK)
        clients = Clients(settings=settings, signer=signer)
        vms = clients.of(VmServiceClient, "metald", tenant_id=tenant_id, timeout_seconds=180)
        await asyncio.sleep(3)
        before = await take(data_dir)
        runs = 1 if quick else 5
        pids = {name: platform.pids[name] for name in ("metald", "assetmanagerd")}
        used = dict.fromkeys(pids, 0.0)
        for _ in range(runs):
            used = {name: used[name] - cpu_ms(pid) for name, pid in pids.items()}
            created, deleted = await burst(vms, spec)
            used = {name: used[name] + cpu_ms(pid) for name, pid in pids.items()}
            ours.append(created)
            deletions.append(deleted)
            left += await settled(data_dir, before)
            bare.append(await reference(data_dir / "reference"))
    ratio = median(ours) / median(bare)
    return Outcome(
        ours=median(ours),
        reference=median(bare),
        passed=median(ours) >= GOAL_PER_SECOND and ratio >= GOAL_RATIO and not left,
        details={
            "ours_spread": spread(ours),
            "reference_spread": spread(bare),
            "deleted_per_second": round(median(deletions), 1),
            "cpu_ms_per_vm": {name: round(ms / runs / AT_ONCE, 1) for name, ms in used.items()},
            "left_behind": left,
        },
    )


BENCHMARK = Benchmark(
    name="burst",
    unit="VM/s",
    goal=f">= {GOAL_PER_SECOND} VM/s, >= {GOAL_RATIO} x reference; every one removed again",
    measure=measure,
)
