"""metald for real: processes on loopback, the real machine, the fake driver, generated clients."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from protobuf import Oneof
from pyqwest import Client, HTTPTransport

from ironworks.gen.ironworks.assetmanagerd.v1 import asset_pb
from ironworks.gen.ironworks.assetmanagerd.v1.asset_connect import AssetServiceClient
from ironworks.gen.ironworks.common.v1 import common_pb
from ironworks.gen.ironworks.metald.v1 import host_pb, vm_pb
from ironworks.gen.ironworks.metald.v1.host_connect import HostServiceClient
from ironworks.gen.ironworks.metald.v1.vm_connect import VmServiceClient
from ironworks.metald.purge import purge
from ironworks.metald.settings import MetaldSettings
from ironworks.model.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidRequest,
    IronError,
    NotFound,
    PermissionDenied,
    Unimplemented,
)
from ironworks.model.ids import derived_id
from ironworks.model.units import MIB
from ironworks.runtime.clock import SystemClock
from ironworks.runtime.identity import ServiceSigner, ensure_service_keys
from ironworks.runtime.rpc.client import Clients
from ironworks.runtime.settings import tag_of
from ironworks.testkit.rooms import make_rootfs

pytestmark = pytest.mark.root
TENANT, OTHER = derived_id("tnt", "one"), derived_id("tnt", "two")
STATE = vm_pb.VmState


def free_port() -> int:
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
        log = (self.settings.data_dir / f"{name}.log").open("ab")
        self.processes[name] = subprocess.Popen(
            [sys.executable, "-m", f"ironworks.{name}"], env=self.env, stderr=log
        )
        log.close()

    def stop(self, name: str, number: signal.Signals = signal.SIGTERM) -> int:
        process = self.processes.pop(name)
        process.send_signal(number)
        return process.wait(15)

    async def ready(self, name: str) -> None:
        client = Client(HTTPTransport(proxy=()))
        async with asyncio.timeout(60):
            while True:
                assert self.processes[name].poll() is None, self.log(name)
                try:
                    answer = await client.execute("GET", f"{self.settings.url_of(name)}/readyz")
                except OSError:
                    await asyncio.sleep(0.05)
                    continue
                if answer.status == 200:
                    return
                await asyncio.sleep(0.05)

    def log(self, name: str) -> str:
        return (self.settings.data_dir / f"{name}.log").read_text()[-3000:]

    def clients(self, service: str) -> Clients:
        settings = self.settings
        signer = ServiceSigner.load(
            settings.data_dir, service, settings.trust_domain, SystemClock()
        )
        return Clients(settings=settings, signer=signer)

    def vms(self, tenant_id: str | None = TENANT, service: str = "gatewayd") -> VmServiceClient:
        return self.clients(service).of(VmServiceClient, "metald", tenant_id=tenant_id)

    def assets(self) -> AssetServiceClient:
        clients = self.clients("builderd")
        return clients.of(AssetServiceClient, "assetmanagerd", tenant_id=TENANT)

    def left(self) -> dict[str, list[str]]:
        """What carries this platform's tag on the machine."""
        tag = tag_of(self.settings.data_dir)
        found = {
            "netns": [path.name for path in Path("/run/netns").glob(f"iw-{tag}-*")],
            "links": [name for _, name in socket.if_nameindex() if name.startswith(f"iw{tag}")],
            "cgroups": [str(path) for path in Path("/sys/fs/cgroup").rglob(f"ironworks/{tag}")],
            "jails": [path.name for path in self.settings.jails_dir.glob("*")],
        }
        return {name: what for name, what in found.items() if what}


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Platform]:
    ensure_service_keys(tmp_path)
    urls = {
        f"{name}_url": f"http://127.0.0.1:{free_port()}"
        for name in ("gatewayd", "metald", "billaged", "assetmanagerd")
    }
    env = {f"IRONWORKS_{name.upper()}": url for name, url in urls.items()}
    env |= {"IRONWORKS_DATA_DIR": str(tmp_path), "IRONWORKS_DRIVER": "fake"}
    platform = Platform(
        settings=MetaldSettings(data_dir=tmp_path, **urls),  # pyright: ignore[reportArgumentType]
        env={**os.environ, **env},
    )
    with ExitStack() as undo:
        undo.callback(lambda: asyncio.run(purge(platform.settings)))
        undo.callback(lambda: [platform.stop(name) for name in list(platform.processes)])
        platform.start("assetmanagerd")
        platform.start("metald")
        yield platform


@pytest.fixture
async def platform(started: Platform, tmp_path: Path) -> Platform:
    await started.ready("assetmanagerd")
    await started.ready("metald")
    data = await asyncio.to_thread(_staged_rootfs, tmp_path)
    answer = await started.assets().register_asset(
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
    assert answer.asset is not None
    started.rootfs_id = answer.asset.asset_id
    return started


def _staged_rootfs(directory: Path) -> bytes:
    made = directory / "made"
    made.mkdir()
    data = make_rootfs(made).read_bytes()
    staging = directory / "assets" / "staging"
    staging.mkdir(parents=True, exist_ok=True)
    (staging / "rootfs").write_bytes(data)
    return data


def spec(platform: Platform, **changes: object) -> vm_pb.VmSpec:
    base: dict[str, object] = {
        "name": "web",
        "vcpus": 1,
        "memory_bytes": 64 * MIB,
        "assets": vm_pb.VmAssets(rootfs_asset_id=platform.rootfs_id),
        "readiness": vm_pb.ReadinessCheck(probe=Oneof("tcp_port", 8080)),
    }
    return vm_pb.VmSpec(**{**base, **changes})  # pyright: ignore[reportArgumentType] - by name


async def running(platform: Platform, key: str = "") -> vm_pb.Vm:
    vms = platform.vms()
    request = vm_pb.CreateVmRequest(spec=spec(platform), idempotency_key=key)
    return await vms.boot_vm(vm_pb.BootVmRequest(vm_id=(await vms.create_vm(request)).id))


async def page(vm: vm_pb.Vm) -> bytes:
    assert vm.network is not None
    reader, writer = await asyncio.open_connection(vm.network.fabric_address, 8080)
    try:
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        return await reader.read()
    finally:
        writer.close()


async def leases(platform: Platform) -> list[asset_pb.Lease]:
    client = platform.clients("metald").of(AssetServiceClient, "assetmanagerd")
    request = asset_pb.ListLeasesRequest(state=asset_pb.LeaseState.ACTIVE)
    return list((await client.list_leases(request)).leases)


async def test_a_vm_lives_and_leaves_nothing(platform: Platform) -> None:
    vms = platform.vms()
    vm = await running(platform, key="k")
    assert (vm.state, vm.ready, vm.driver, vm.tenant_id) == (STATE.RUNNING, True, "fake", TENANT)
    assert b"200 OK" in await page(vm)
    (lease,) = await leases(platform)
    assert (lease.holder, lease.asset_ids) == (vm.id, [platform.rootfs_id])
    again = await vms.create_vm(vm_pb.CreateVmRequest(spec=spec(platform), idempotency_key="k"))
    assert again.id == vm.id
    listed = await vms.list_vms(vm_pb.ListVmsRequest())
    assert [one.id for one in listed.vms] == [vm.id]
    console = b"".join(
        [piece.data async for piece in vms.stream_console(vm_pb.StreamConsoleRequest(vm_id=vm.id))]
    )
    assert b"fake guest: ready" in console
    paused = await vms.pause_vm(vm_pb.PauseVmRequest(vm_id=vm.id))
    assert paused.state == STATE.PAUSED
    assert (await vms.resume_vm(vm_pb.ResumeVmRequest(vm_id=vm.id))).state == STATE.RUNNING
    stopped = await vms.shutdown_vm(vm_pb.ShutdownVmRequest(vm_id=vm.id))
    assert stopped.state == STATE.STOPPED
    assert stopped.exit is not None
    assert stopped.exit.workload_status == 0
    deleted = await vms.delete_vm(vm_pb.DeleteVmRequest(vm_id=vm.id))
    assert deleted.state == STATE.DELETED
    assert [line.to for line in deleted.history][-2:] == [STATE.DELETING, STATE.DELETED]
    assert platform.left() == {}
    assert await leases(platform) == []
    assert platform.stop("metald") == 0


async def test_killing_metald_kills_no_vm_and_forgets_none(platform: Platform) -> None:
    vm = await running(platform)
    for _ in range(2):
        platform.stop("metald", signal.SIGKILL)
        assert b"200 OK" in await page(vm)
        platform.start("metald")
        await platform.ready("metald")
        found = await platform.vms().get_vm(vm_pb.GetVmRequest(vm_id=vm.id))
        assert (found.state, found.boot_epoch, list(found.drift)) == (STATE.RUNNING, 1, [])
    await platform.vms().delete_vm(vm_pb.DeleteVmRequest(vm_id=vm.id, force=True))
    assert platform.left() == {}


async def test_an_orderly_end_of_metald_ends_no_vm_either(platform: Platform) -> None:
    vm = await running(platform)
    assert platform.stop("metald") == 0
    assert b"200 OK" in await page(vm)
    await purge(platform.settings)
    assert platform.left() == {}
    platform.start("metald")
    await platform.ready("metald")
    found = await platform.vms().get_vm(vm_pb.GetVmRequest(vm_id=vm.id))
    assert found.state == STATE.FAILED
    assert found.reason


async def test_a_vm_whose_process_is_killed_fails_with_a_sentence(platform: Platform) -> None:
    vm = await running(platform)
    tag = tag_of(platform.settings.data_dir)
    (procs, *_) = Path("/sys/fs/cgroup").rglob(f"ironworks/{tag}/{vm.id}/cgroup.procs")
    for pid in procs.read_text().split():
        os.kill(int(pid), signal.SIGKILL)
    async with asyncio.timeout(20):
        while True:
            found = await platform.vms().get_vm(vm_pb.GetVmRequest(vm_id=vm.id))
            if found.state == STATE.FAILED and not platform.left():
                break
            await asyncio.sleep(0.05)
    assert "SIGKILL" in found.reason
    assert found.exit is not None
    assert found.exit.vmm_status == -signal.SIGKILL
    assert "fake guest: ready" in list(found.exit.console_tail)


async def code_of(call: object) -> tuple[type[IronError], str]:
    with pytest.raises(IronError) as error:
        await call  # type: ignore[misc] # pyright: ignore[reportGeneralTypeIssues]
    return type(error.value), str(error.value)


async def test_bad_requests_get_a_clear_code_and_leave_nothing(platform: Platform) -> None:
    vms = platform.vms()

    async def refused(expected: type[IronError], word: str, **request: object) -> None:
        asked = vm_pb.CreateVmRequest(**request)  # pyright: ignore[reportArgumentType] - by name
        kind, sentence = await code_of(vms.create_vm(asked))
        assert (kind, word in sentence) == (expected, True), sentence

    ghost = vm_pb.VmAssets(rootfs_asset_id=derived_id("ast", "ghost"))
    await refused(NotFound, "", spec=spec(platform, assets=ghost))
    await refused(InvalidRequest, "spec is missing")
    await refused(InvalidRequest, "vCPUs", spec=spec(platform, vcpus=32))
    await refused(InvalidRequest, "vcpus", spec=spec(platform, vcpus=33))
    await refused(InvalidRequest, "memory", spec=spec(platform, memory_bytes=64 << 30))
    await refused(InvalidRequest, "multiple", spec=spec(platform, memory_bytes=(64 << 20) + 1))
    await refused(InvalidRequest, "name", spec=spec(platform, name="No_Name"))
    await refused(InvalidRequest, "vm_id", spec=spec(platform), vm_id="../../etc")
    await refused(Unimplemented, "disk", spec=spec(platform, disk_bytes=1))
    await refused(Unimplemented, "reservation", spec=spec(platform), reservation_id="r")
    made = await vms.create_vm(vm_pb.CreateVmRequest(spec=spec(platform)))
    await refused(AlreadyExists, made.id, spec=spec(platform, vcpus=2), vm_id=made.id)
    await vms.delete_vm(vm_pb.DeleteVmRequest(vm_id=made.id))
    kind, sentence = await code_of(vms.boot_vm(vm_pb.BootVmRequest(vm_id=made.id)))
    assert kind is FailedPrecondition
    assert "deleted" in sentence
    for bad in (float("nan"), float("inf"), -1.0, 601.0):
        request = vm_pb.ShutdownVmRequest(vm_id=made.id, timeout_seconds=bad)
        assert (await code_of(vms.shutdown_vm(request)))[0] is InvalidRequest
    token = vm_pb.ListVmsRequest(page=common_pb.PageRequest(page_token="x"))
    assert (await code_of(vms.list_vms(token)))[0] is InvalidRequest
    reboot = vms.reboot_vm(vm_pb.RebootVmRequest(vm_id=made.id))
    assert (await code_of(reboot))[0] is Unimplemented
    assert platform.left() == {}
    assert await leases(platform) == []


async def test_a_tenant_sees_its_own_vms_and_no_others(platform: Platform) -> None:
    vm = await running(platform)
    foreign = platform.vms(OTHER)
    ghost = derived_id("vm", "ghost")
    for vm_id in (vm.id, ghost):
        for call in (
            foreign.get_vm(vm_pb.GetVmRequest(vm_id=vm_id)),
            foreign.boot_vm(vm_pb.BootVmRequest(vm_id=vm_id)),
            foreign.shutdown_vm(vm_pb.ShutdownVmRequest(vm_id=vm_id)),
            foreign.delete_vm(vm_pb.DeleteVmRequest(vm_id=vm_id, force=True)),
            foreign.pause_vm(vm_pb.PauseVmRequest(vm_id=vm_id)),
        ):
            kind, sentence = await code_of(call)
            assert (kind, vm_id in sentence) == (NotFound, True)
    everyones = vm_pb.ListVmsRequest(filter=vm_pb.VmFilter(tenant_id=TENANT))
    assert list((await foreign.list_vms(everyones)).vms) == []
    assert len((await platform.vms(None).list_vms(vm_pb.ListVmsRequest())).vms) == 1
    unowned = platform.vms(None).create_vm(vm_pb.CreateVmRequest(spec=spec(platform)))
    assert (await code_of(unowned))[0] is PermissionDenied
    uncalled = platform.vms(service="builderd").get_vm(vm_pb.GetVmRequest(vm_id=vm.id))
    assert (await code_of(uncalled))[0] is PermissionDenied


async def test_the_host_tells_of_itself(platform: Platform) -> None:
    await running(platform)
    client = platform.clients("gatewayd").of(HostServiceClient, "metald")
    host = await client.get_host(host_pb.GetHostRequest())
    assert host.state == host_pb.HostState.ACTIVE
    assert host.allocated is not None
    assert host.capacity is not None
    assert (host.allocated.vcpus, host.allocated.vms) == (1, 1)
    assert host.capacity.vcpus >= 1
    chosen = [driver.kind for driver in host.drivers if driver.chosen]
    assert chosen == ["fake"]
    assert host.cgroup_layout in {"v2", "hybrid"}
    # The directory is down: the host serves all the same, and its reconciler says so.
    status = platform.log("metald").splitlines()
    assert any(json.loads(line).get("reconciler") == "host-directory" for line in status)
