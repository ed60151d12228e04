"""boot: from CreateVm to the first HTTP 200, against the same VMM started by hand.

Ours is CreateVm and BootVm through metald (lease, network, cgroup, jail, metering and all). The
reference is the same QEMU command line with the same kernel, initrd, root file system and config
disk, started in a network namespace that stands ready, without `-S`, jail or limits. Both are
polled from the host until the guest's port answers with 200. They alternate in one run.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from pyqwest import Client, HTTPTransport

from benchmarks.frame import Benchmark, Outcome, median, spread
from ironworks.cli.deploy import DeploySpec, deploy
from ironworks.gen.ironworks.gatewayd.v1 import roles_pb
from ironworks.gen.ironworks.metald.v1 import vm_pb
from ironworks.gen.ironworks.metald.v1.vm_connect import VmServiceClient
from ironworks.machine.platform import PlatformFile
from ironworks.machine.temporary import temporary_platform
from ironworks.metald.network.slots import HostNetwork
from ironworks.model.errors import DeadlineExceeded, NotFound
from ironworks.model.ids import new_id
from ironworks.model.units import MIB, NS_PER_MS
from ironworks.runtime.clock import SystemClock, SystemEntropy
from ironworks.runtime.identity import ServiceSigner
from ironworks.runtime.rpc.client import Clients
from ironworks.runtime.rpc.direct import DIRECT
from ironworks.runtime.settings import Settings, tag_of
from ironworks.sdk import AsyncIronworks
from ironworks.testkit.images import SAMPLE_PORT, build_sample_layout

GOAL_RATIO = 1.10
GOAL_SHARE_MS = 60
POLL_SECONDS = 0.005
BOOT_SECONDS = 120
REFERENCE_SLOT_OFFSET = 64
_OK = 200
_CLOCK = SystemClock()
_VMM_STEPS = {"vmm.spawn", "vmm.connect"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A VM that runs, to be made again and again."""

    tenant_id: str
    spec: vm_pb.VmSpec
    argv: tuple[str, ...]
    """Command line of its QEMU."""
    files: Path
    """Copies of what its QEMU opens."""


def _milliseconds(from_ns: int) -> float:
    return (_CLOCK.monotonic_ns() - from_ns) / NS_PER_MS


async def first_200(url: str) -> None:
    """Return at the first HTTP 200."""
    http = Client(HTTPTransport(proxy=DIRECT, connect_timeout=1.0, timeout=2.0))
    for _ in range(int(BOOT_SECONDS / POLL_SECONDS)):
        with contextlib.suppress(OSError, TimeoutError):
            if (await http.execute("GET", url)).status == _OK:
                return
        await asyncio.sleep(POLL_SECONDS)
    raise DeadlineExceeded(f"{url} did not answer within {BOOT_SECONDS} seconds.")


def qemu_pid(vm_id: str) -> int:
    """Pid of the QEMU of a VM: the process whose command line names it."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if f"guest={vm_id}".encode() in words and b"qemu-system" in words[0]:
                    return int(entry.name)
    raise NotFound(f"No QEMU runs {vm_id}.")


@asynccontextmanager
async def template(platform: PlatformFile) -> AsyncGenerator[Template]:
    """Deploy the sample image through the public API and take its VM as the template."""
    data_dir = Path(platform.data_dir)
    files = Path(tempfile.mkdtemp(prefix="boot-files-", dir=data_dir))
    async with AsyncIronworks(data_dir=data_dir) as operator:
        tenant = await operator.tenants.create("bench")
        key = await operator.keys.create(
            "bench", roles=[roles_pb.Role.OWNER], tenant_id=tenant.tenant_id
        )
        image = build_sample_layout(data_dir / "images" / "sample")
        async with AsyncIronworks(platform.api_url, key.secret, platform.ca_file) as api:
            done = await deploy(api, DeploySpec(image=image, memory_bytes=256 * MIB))
            vm = await operator.vms.get(done.vm_ids[0])
            process = Path(f"/proc/{qemu_pid(vm.id)}")
            argv = tuple(
                word.decode() for word in (process / "cmdline").read_bytes().split(b"\0")[:-1]
            )
            shutil.copytree(process / "root" / "vm", files / "vm")
            job_id = await api.deployments.delete(done.deployment_id)
            await api.jobs.wait(job_id)
    spec = vm.spec or vm_pb.VmSpec()
    yield Template(tenant_id=tenant.tenant_id, spec=spec, argv=argv, files=files)


@dataclass(frozen=True, slots=True)
class Ours:
    """One boot through metald."""

    total_ms: float
    share_ms: float


async def boot_ours(vms: VmServiceClient, made: Template) -> Ours:
    """CreateVm, BootVm, first 200; then delete."""
    vm_id = new_id("vm", _CLOCK, SystemEntropy())
    made.spec.name = f"bench-{vm_id[-8:]}"
    began_wall_ns, began_ns = _CLOCK.now_ns(), _CLOCK.monotonic_ns()
    vm = await vms.create_vm(vm_pb.CreateVmRequest(vm_id=vm_id, spec=made.spec))
    await vms.boot_vm(vm_pb.BootVmRequest(vm_id=vm_id, detach=True))
    address = vm.network.fabric_address if vm.network is not None else ""
    await first_200(f"http://{address}:{SAMPLE_PORT}/")
    total_ms = _milliseconds(began_ns)
    vm = await vms.get_vm(vm_pb.GetVmRequest(vm_id=vm_id))
    await vms.delete_vm(vm_pb.DeleteVmRequest(vm_id=vm_id, force=True))
    started = {timing.step: timing for timing in vm.timings}
    vmm_ns = sum(started[step].duration_ns for step in _VMM_STEPS if step in started)
    guest = started["guest.start"]
    until_guest_ns = guest.started_at_ns + guest.duration_ns - began_wall_ns
    return Ours(total_ms=total_ms, share_ms=(until_guest_ns - vmm_ns) / NS_PER_MS)


def by_hand(made: Template) -> list[str]:
    """The template's command line as a person would type it: files by their paths, tap by name."""
    argv: list[str] = []
    for word in made.argv:
        if word == "-S":
            continue
        words = word.replace("=/vm/", f"={made.files}/vm/")
        if words.startswith("/vm/"):
            words = f"{made.files}{words}"
        if words.startswith("tap,"):
            words = "tap,id=net,ifname=iwtap0,script=no,downscript=no"
        if words.startswith("socket,"):
            name = words.split("id=")[1].split(",")[0]
            words = f"socket,id={name},path={made.files}/{name}.sock,server=on,wait=off"
        argv.append(words)
    return argv


async def boot_reference(made: Template, network: HostNetwork, slot: int) -> float:
    """The same QEMU, by hand, in a namespace that stands ready."""
    names = await network.create(slot, 0)
    try:
        console = (made.files / "console.log").open("wb")
        began_ns = _CLOCK.monotonic_ns()
        process = await asyncio.create_subprocess_exec(
            *("ip", "netns", "exec", names.netns, *by_hand(made)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            env={"PATH": os.environ["PATH"]},
        )
        try:
            await first_200(f"http://{names.address}:{SAMPLE_PORT}/")
            return _milliseconds(began_ns)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            await process.wait()
            console.close()
    finally:
        await network.remove(slot)


async def measure(quick: bool) -> Outcome:  # noqa: FBT001 - the frame's signature
    """Boot ours and the reference alternately."""
    ours: list[Ours] = []
    reference: list[float] = []
    async with temporary_platform("bench") as platform, template(platform) as made:
        data_dir = Path(platform.data_dir)
        settings = Settings(data_dir=data_dir, metald_url=platform.services["metald"])
        signer = ServiceSigner.load(data_dir, "gatewayd", settings.trust_domain, _CLOCK)
        clients = Clients(settings=settings, signer=signer)
        vms = clients.of(VmServiceClient, "metald", tenant_id=made.tenant_id, timeout_seconds=180)
        # A tag of its own: metald's reconciler must not take this network for a leftover.
        network = HostNetwork(tag_of(data_dir / "reference"))
        for _ in range(2 if quick else 7):
            ours.append(await boot_ours(vms, made))
            reference.append(await boot_reference(made, network, REFERENCE_SLOT_OFFSET))
        await network.drain()
    totals = [one.total_ms for one in ours]
    shares = [one.share_ms for one in ours]
    ratio = median(totals) / median(reference)
    return Outcome(
        ours=median(totals),
        reference=median(reference),
        passed=ratio <= GOAL_RATIO and median(shares) <= GOAL_SHARE_MS,
        details={
            "ours_spread": spread(totals),
            "reference_spread": spread(reference),
            "metald_share_ms_p50": round(median(shares), 1),
            "metald_share_spread": spread(shares),
        },
    )


BENCHMARK = Benchmark(
    name="boot",
    unit="ms",
    goal=f"ratio <= {GOAL_RATIO}; metald's own share p50 <= {GOAL_SHARE_MS} ms",
    measure=measure,
)
