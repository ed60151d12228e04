"""assetmanagerd and metald as processes on loopback, with the real machine and the fake driver."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Generator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from protobuf import Oneof

from ironworks.gen.ironworks.assetmanagerd.v1 import asset_pb
from ironworks.gen.ironworks.assetmanagerd.v1.asset_connect import AssetServiceClient
from ironworks.gen.ironworks.common.v1 import common_pb
from ironworks.gen.ironworks.metald.v1 import vm_pb
from ironworks.gen.ironworks.metald.v1.vm_connect import VmServiceClient
from ironworks.metald.cgroup.groups import HostGroups
from ironworks.metald.network.slots import HostNetwork
from ironworks.metald.settings import MetaldSettings
from ironworks.model.units import MIB
from ironworks.runtime.cgroup_layout import read_layout
from ironworks.runtime.clock import SystemClock
from ironworks.runtime.identity import ServiceSigner, ensure_service_keys
from ironworks.runtime.rpc.client import Clients
from ironworks.runtime.rpc.readiness import Readiness
from ironworks.runtime.settings import tag_of
from ironworks.testkit.metald.values import TENANT
from ironworks.testkit.rooms import make_rootfs

WORKLOAD_PORT = 8080
READY_SECONDS = 120
STOP_SECONDS = 60
_CLOCK = SystemClock()


def free_port() -> int:
    """A port of loopback that nobody has now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@dataclass(slots=True, kw_only=True)
class Platform:
    """assetmanagerd and metald as processes; the other services are down."""

    settings: MetaldSettings
    env: dict[str, str]
    processes: dict[str, subprocess.Popen[bytes]] = field(
        default_factory=dict[str, "subprocess.Popen[bytes]"]
    )
    rootfs_id: str = ""

    def start(self, name: str) -> None:
        """Start a service; its log goes to the data directory."""
        log = (self.settings.data_dir / f"{name}.log").open("ab")
        self.processes[name] = subprocess.Popen(
            [sys.executable, "-m", f"ironworks.{name}"], env=self.env, stderr=log
        )
        log.close()

    def stop(self, name: str, number: signal.Signals = signal.SIGTERM) -> int:
        """End a service with a signal; answers its exit status."""
        process = self.processes.pop(name)
        process.send_signal(number)
        return process.wait(STOP_SECONDS)

    async def ready(self, name: str) -> None:
        """Wait until a service says that it is ready."""
        readiness, url = Readiness(), self.settings.url_of(name)
        async with asyncio.timeout(READY_SECONDS):
            while not await readiness.of(url):
                assert self.processes[name].poll() is None, self.log(name)  # noqa: S101
                await _CLOCK.sleep(0.05)

    def log(self, name: str) -> str:
        """The end of a service's log."""
        return (self.settings.data_dir / f"{name}.log").read_text()[-3000:]

    def clients(self, service: str) -> Clients:
        """Clients that call as `service`."""
        settings = self.settings
        signer = ServiceSigner.load(settings.data_dir, service, settings.trust_domain, _CLOCK)
        return Clients(settings=settings, signer=signer)

    def vms(self, tenant_id: str | None = TENANT, service: str = "gatewayd") -> VmServiceClient:
        """A client of metald's VMs."""
        return self.clients(service).of(VmServiceClient, "metald", tenant_id=tenant_id)

    async def serve_rootfs(self) -> None:
        """Wait for both services and register the root file system that VMs boot from."""
        await self.ready("assetmanagerd")
        await self.ready("metald")
        data = await asyncio.to_thread(_staged_rootfs, self.settings.data_dir)
        answer = await self.assets().register_asset(
            asset_pb.RegisterAssetRequest(
                facts=asset_pb.AssetFacts(
                    kind=asset_pb.AssetKind.ROOTFS,
                    sha256=hashlib.sha256(data).hexdigest(),
                    size_bytes=len(data),
                    image_config=common_pb.ImageConfig(entrypoint=["/bin/httpd", "-f"]),
                ),
                staged_name="rootfs",
            )
        )
        assert answer.asset is not None  # noqa: S101 - a test's own claim
        self.rootfs_id = answer.asset.asset_id

    def assets(self) -> AssetServiceClient:
        """A client of assetmanagerd that may register."""
        clients = self.clients("builderd")
        return clients.of(AssetServiceClient, "assetmanagerd", tenant_id=TENANT)

    async def lose_power(self) -> None:
        """End and remove what a reboot of the host does: all but the files."""
        for name in list(self.processes):
            self.stop(name, signal.SIGKILL)
        tag = tag_of(self.settings.data_dir)
        groups, network = HostGroups(read_layout(), tag, _CLOCK), HostNetwork(tag)
        for vm_id in await groups.present():
            await groups.remove(vm_id)
        for slot in await network.present():
            await network.remove(slot)
        await network.drain()
        with closing(sqlite3.connect(self.settings.own_dir / "metald.db")) as store, store:
            # What started the VMMs was an earlier life of the host.
            store.execute("UPDATE vms SET evidence = json_set(evidence, '$.boot_id', 'before')")

    def left(self, *, with_fabric: bool = True) -> dict[str, list[str]]:
        """What carries this platform's tag on the machine.

        Args:
            with_fabric: Also what all VMs share, which stays as long as metald runs.
        """
        tag = tag_of(self.settings.data_dir)
        fabric = set[str]() if with_fabric else {f"iw-{tag}-fabric", f"iw{tag}up"}
        netns = {path.name for path in Path("/run/netns").glob(f"iw-{tag}-*")}
        links = {name for _, name in socket.if_nameindex() if name.startswith(f"iw{tag}")}
        found = {
            "netns": sorted(netns - fabric),
            "links": sorted(links - fabric),
            "cgroups": [str(path) for path in Path("/sys/fs/cgroup").rglob(f"ironworks/{tag}")],
            "jails": [path.name for path in self.settings.jails_dir.glob("*")],
        }
        return {name: what for name, what in found.items() if what}


def _staged_rootfs(directory: Path) -> bytes:
    made = directory / "made"
    made.mkdir()
    data = make_rootfs(made).read_bytes()
    staging = directory / "assets" / "staging"
    staging.mkdir(parents=True, exist_ok=True)
    (staging / "rootfs").write_bytes(data)
    return data


def _purge(platform: Platform) -> None:
    # As a process of its own: whoever leaves the context may have a running loop.
    argv = [sys.executable, "-m", "ironworks.metald.purge"]
    subprocess.run(argv, env=platform.env, check=True, timeout=STOP_SECONDS)


@contextmanager
def started_platform(directory: Path, **env: str) -> Generator[Platform]:
    """Both services, started and not waited for; ended, with all that they made, at the end.

    Args:
        directory: Data directory, of the test.
        env: Further variables of the services' environment.
    """
    ensure_service_keys(directory)
    urls = {
        f"{name}_url": f"http://127.0.0.1:{free_port()}"
        for name in ("gatewayd", "metald", "billaged", "assetmanagerd")
    }
    env |= {f"IRONWORKS_{name.upper()}": url for name, url in urls.items()}
    env |= {"IRONWORKS_DATA_DIR": str(directory), "IRONWORKS_DRIVER": "fake"}
    platform = Platform(
        settings=MetaldSettings(data_dir=directory, **urls),  # pyright: ignore[reportArgumentType] - by name
        env={**os.environ, **env},
    )
    with ExitStack() as undo:
        undo.callback(_purge, platform)
        undo.callback(lambda: [platform.stop(name) for name in list(platform.processes)])
        platform.start("assetmanagerd")
        platform.start("metald")
        yield platform


def spec(platform: Platform, **changes: object) -> vm_pb.VmSpec:
    """A small VM whose workload answers HTTP."""
    base: dict[str, object] = {
        "name": "web",
        "vcpus": 1,
        "memory_bytes": 64 * MIB,
        "assets": vm_pb.VmAssets(rootfs_asset_id=platform.rootfs_id),
        "readiness": vm_pb.ReadinessCheck(
            # As long as a test's machine may stand still.
            probe=Oneof("tcp_port", WORKLOAD_PORT),
            timeout_seconds=30,
        ),
    }
    return vm_pb.VmSpec(**{**base, **changes})  # pyright: ignore[reportArgumentType] - by name


async def running(platform: Platform, key: str = "", **changes: object) -> vm_pb.Vm:
    """A VM that runs and is ready."""
    vms = platform.vms()
    request = vm_pb.CreateVmRequest(spec=spec(platform, **changes), idempotency_key=key)
    return await vms.boot_vm(vm_pb.BootVmRequest(vm_id=(await vms.create_vm(request)).id))


async def page(vm: vm_pb.Vm) -> bytes:
    """What the VM's workload answers."""
    assert vm.network is not None  # noqa: S101 - a test's own claim
    reader, writer = await asyncio.open_connection(vm.network.fabric_address, WORKLOAD_PORT)
    try:
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        return await reader.read()
    finally:
        writer.close()


async def leases(platform: Platform) -> list[asset_pb.Lease]:
    """Leases that are held now."""
    client = platform.clients("metald").of(AssetServiceClient, "assetmanagerd")
    request = asset_pb.ListLeasesRequest(state=asset_pb.LeaseState.ACTIVE)
    return list((await client.list_leases(request)).leases)
