"""gatewayd in a test: itself and Envoy as real processes, builderd and metald as stand-ins.

The stand-ins are real services on loopback (tokens, access table, errors), with memory in place of
machines. A VM's application is a small HTTP server on an address of its own below 127.0.0.0/8, so
Envoy's routes lead somewhere. Calls can be held at a point, to kill gatewayd just there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from connectrpc.request import RequestContext
from pyqwest import Client, HTTPTransport

from ironworks.gen.ironworks.builderd.v1 import build_pb
from ironworks.gen.ironworks.builderd.v1.build_connect import (
    BuildService,
    BuildServiceASGIApplication,
)
from ironworks.gen.ironworks.common.v1.common_pb import ImageConfig
from ironworks.gen.ironworks.gatewayd.v1 import hosts_pb
from ironworks.gen.ironworks.gatewayd.v1.hosts_connect import HostDirectoryServiceClient
from ironworks.gen.ironworks.metald.v1 import vm_pb
from ironworks.gen.ironworks.metald.v1.vm_connect import VmService, VmServiceASGIApplication
from ironworks.model.errors import NotFound
from ironworks.model.ids import derived_id
from ironworks.model.units import GIB
from ironworks.runtime.identity import current_tenant_id, ensure_service_keys
from ironworks.runtime.service import Chassis, Parts, make_chassis, run_service
from ironworks.runtime.settings import Settings
from ironworks.runtime.tasks import Tasks

_Context = RequestContext[Any, Any]
DIGEST = "sha256:" + "ab" * 32
HOST_ID = derived_id("hst", "one")
START_SECONDS = 60.0
LOOK_SECONDS = 0.05


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Holds:
    """Points at which calls can be held, and a count of how often each was passed."""

    def __init__(self) -> None:
        self.reached: dict[str, asyncio.Event] = {}
        self._released: dict[str, asyncio.Event] = {}
        self.passed: Counter[str] = Counter()

    def hold(self, point: str) -> None:
        """Hold the next calls that come to `point`."""
        self.reached[point] = asyncio.Event()
        self._released[point] = asyncio.Event()

    def release(self, point: str) -> None:
        """Let them go on."""
        self._released[point].set()

    async def at(self, point: str) -> None:
        """Called by the stand-ins where something has happened and nobody knows it yet."""
        self.passed[point] += 1
        if point in self.reached:
            self.reached[point].set()
            await self._released[point].wait()


class Builderd(BuildService):
    """Builds nothing, in two looks."""

    def __init__(self, holds: Holds, app_port: int) -> None:
        self._holds = holds
        self._app_port = app_port
        self._looks: Counter[str] = Counter()
        self.images: dict[str, str] = {}
        self.cancelled: set[str] = set()

    async def create_build(
        self, request: build_pb.CreateBuildRequest, ctx: _Context
    ) -> build_pb.CreateBuildResponse:
        """Accept a build; the same key gets the same build."""
        del ctx
        build_id = derived_id("bld", current_tenant_id(), request.idempotency_key)
        self.images[build_id] = request.image
        await self._holds.at("create_build")
        return build_pb.CreateBuildResponse(build=self._build(build_id))

    def _build(self, build_id: str) -> build_pb.Build:
        image = self.images[build_id]
        build = build_pb.Build(
            build_id=build_id, tenant_id=current_tenant_id(), image=image, created_at_ns=1_000_000
        )
        self._looks[build_id] += 1
        if build_id in self.cancelled:
            build.state = build_pb.BuildState.CANCELLED
        elif image.endswith("never"):
            build.state = build_pb.BuildState.PULLING
        elif image.endswith("absent"):
            build.state = build_pb.BuildState.FAILED
            build.failure = build_pb.BuildFailure(
                code="not_found", message="There is no such image in the registry."
            )
        elif self._looks[build_id] < 3:  # noqa: PLR2004 - accepted, then at work
            build.state = build_pb.BuildState.BUILDING
            build.image_digest = DIGEST
            build.progress = build_pb.BuildProgress(step="merging", done_bytes=1, total_bytes=2)
        else:
            build.state = build_pb.BuildState.COMPLETED
            build.image_digest = DIGEST
            build.ended_at_ns = 251_000_000
            config = ImageConfig(
                entrypoint=["/bin/app"], cmd=["serve"], exposed_ports=[f"{self._app_port}/tcp"]
            )
            build.result = build_pb.BuildResult(
                asset_id=derived_id("ast", build_id), image_config=config
            )
        return build

    async def get_build(
        self, request: build_pb.GetBuildRequest, ctx: _Context
    ) -> build_pb.GetBuildResponse:
        """The build as it stands."""
        del ctx
        if request.build_id not in self.images:
            raise NotFound("There is no such build.")
        await self._holds.at("get_build")
        return build_pb.GetBuildResponse(build=self._build(request.build_id))

    async def cancel_build(
        self, request: build_pb.CancelBuildRequest, ctx: _Context
    ) -> build_pb.CancelBuildResponse:
        """End a build."""
        del ctx
        self.cancelled.add(request.build_id)
        return build_pb.CancelBuildResponse(build=self._build(request.build_id))


class Metald(VmService):
    """VMs in memory; a running one serves HTTP."""

    def __init__(self, holds: Holds) -> None:
        self._holds = holds
        self.vms: dict[str, vm_pb.Vm] = {}
        self.created: Counter[str] = Counter()
        self.fail_boots = False
        self._servers: dict[str, asyncio.Server] = {}

    def living(self) -> list[str]:
        """VMs that are not deleted."""
        return [one.id for one in self.vms.values() if one.state is not vm_pb.VmState.DELETED]

    def _find(self, vm_id: str) -> vm_pb.Vm:
        if vm_id not in self.vms or self.vms[vm_id].tenant_id != current_tenant_id():
            raise NotFound("There is no such VM.")
        return self.vms[vm_id]

    async def create_vm(self, request: vm_pb.CreateVmRequest, ctx: _Context) -> vm_pb.Vm:
        """Create a VM, or answer the one with this id."""
        del ctx
        if request.vm_id not in self.vms:
            self.created[request.vm_id] += 1
            address = f"127.9.{len(self.vms) // 250}.{len(self.vms) % 250 + 1}"
            self.vms[request.vm_id] = vm_pb.Vm(
                id=request.vm_id,
                tenant_id=current_tenant_id(),
                spec=request.spec,
                state=vm_pb.VmState.CREATED,
                network=vm_pb.VmNetwork(fabric_address=address),
            )
        await self._holds.at("create_vm")
        return self.vms[request.vm_id]

    async def boot_vm(self, request: vm_pb.BootVmRequest, ctx: _Context) -> vm_pb.Vm:
        """Boot a VM: its application listens."""
        del ctx
        vm = self._find(request.vm_id)
        if self.fail_boots:
            vm.state = vm_pb.VmState.FAILED
            vm.reason = "The guest's kernel panicked."
        elif vm.state is vm_pb.VmState.CREATED:
            await self._serve(vm)
            vm.state = vm_pb.VmState.RUNNING
            vm.ready = True
        await self._holds.at("boot_vm")
        return vm

    async def _serve(self, vm: vm_pb.Vm) -> None:
        check = vm.spec.readiness if vm.spec else None
        address = vm.network.fabric_address if vm.network else ""
        port = check.probe.value if check and check.probe else 0
        port = port.port if isinstance(port, vm_pb.HttpProbe) else port

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                _, *lines = head.strip().split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in lines)
                body = json.dumps({"vm": vm.id, "headers": headers}).encode()
                writer.write(
                    b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: "
                    + str(len(body)).encode()
                    + b"\r\n\r\n"
                    + body
                )
                await writer.drain()
            writer.close()

        self._servers[vm.id] = await asyncio.start_server(answer, address, port)

    async def get_vm(self, request: vm_pb.GetVmRequest, ctx: _Context) -> vm_pb.Vm:
        """A VM as it stands."""
        del ctx
        return self._find(request.vm_id)

    async def list_vms(self, request: vm_pb.ListVmsRequest, ctx: _Context) -> vm_pb.ListVmsResponse:
        """All VMs, on one page."""
        del request, ctx
        return vm_pb.ListVmsResponse(vms=[self.vms[vm_id] for vm_id in self.living()])

    async def shutdown_vm(self, request: vm_pb.ShutdownVmRequest, ctx: _Context) -> vm_pb.Vm:
        """Stop a VM: its application listens no more."""
        del ctx
        vm = self._find(request.vm_id)
        vm.state = vm_pb.VmState.STOPPED
        vm.ready = False
        await self._end(vm.id)
        await self._holds.at("shutdown_vm")
        return vm

    async def delete_vm(self, request: vm_pb.DeleteVmRequest, ctx: _Context) -> vm_pb.Vm:
        """Remove a VM."""
        del ctx
        vm = self._find(request.vm_id)
        vm.state = vm_pb.VmState.DELETED
        await self._end(vm.id)
        await self._holds.at("delete_vm")
        return vm

    async def _end(self, vm_id: str) -> None:
        server = self._servers.pop(vm_id, None)
        if server is not None:
            server.close()

    async def close(self) -> None:
        """Stop every application."""
        for vm_id in list(self._servers):
            await self._end(vm_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: str

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class Edge:
    """gatewayd and Envoy as processes, the stand-ins in this one."""

    def __init__(self, settings: Settings, env: Mapping[str, str], app_port: int) -> None:
        self.settings = settings
        self.holds = Holds()
        self.builderd = Builderd(self.holds, app_port)
        self.metald = Metald(self.holds)
        self._env = {**os.environ, **env}
        self._log = (settings.data_dir / "processes.log").open("ab")
        self._gatewayd: subprocess.Popen[bytes] | None = None
        self._envoy: subprocess.Popen[bytes] | None = None
        self._http: Client | None = None

    @property
    def log_text(self) -> str:
        """What the processes wrote."""
        return (self.settings.data_dir / "processes.log").read_text(errors="replace")

    def _start(self, module: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", module], env=self._env, stdout=self._log, stderr=self._log
        )

    async def start(self) -> None:
        """Start both processes and wait until they are ready."""
        await self.start_gatewayd()
        self._envoy = self._start("ironworks.gatewayd.envoy")
        await self._wait_for("/readyz", 200)

    async def start_gatewayd(self) -> None:
        """Start gatewayd and wait until it answers."""
        self._gatewayd = self._start("ironworks.gatewayd")
        await self._wait_for("/healthz", 200)

    async def _wait_for(self, path: str, status: int) -> None:
        client = Client(HTTPTransport(proxy=()))
        async with asyncio.timeout(START_SECONDS):
            while True:
                with contextlib.suppress(Exception):
                    answer = await client.get(self.settings.gatewayd_url + path)
                    if answer.status == status:
                        return
                if self._gatewayd is not None and self._gatewayd.poll() is not None:
                    raise RuntimeError(f"gatewayd has ended: {self.log_text[-4000:]}")
                await asyncio.sleep(LOOK_SECONDS)

    async def kill_gatewayd(self) -> None:
        """Kill -9."""
        if self._gatewayd is not None:
            self._gatewayd.send_signal(signal.SIGKILL)
            await asyncio.to_thread(self._gatewayd.wait)

    async def stop(self) -> None:
        """End both processes."""
        for process in (self._gatewayd, self._envoy):
            if process is not None and process.poll() is None:
                process.terminate()
        for process in (self._gatewayd, self._envoy):
            if process is not None:
                try:
                    await asyncio.to_thread(process.wait, 20)
                except subprocess.TimeoutExpired:
                    process.kill()
        await self.metald.close()
        self._log.close()

    @property
    def operator_key(self) -> str:
        """The key that the first start made."""
        return (self.settings.data_dir / "gatewayd" / "operator.key").read_text().strip()

    async def send(
        self,
        verb: str,
        path: str,
        *,
        body: object = None,
        token: str = "",
        headers: Mapping[str, str] | None = None,
        host: str = "localhost",
    ) -> Answer:
        """One HTTPS request through Envoy, to the API or, with `host`, to an endpoint."""
        trust = ssl.create_default_context(cafile=self.settings.data_dir / "tls" / "ca.pem")
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.settings.edge_port, ssl=trust, server_hostname=host
        )
        content = b"" if body is None else json.dumps(body).encode()
        lines = {
            "host": f"{host}:{self.settings.edge_port}",
            "connection": "close",
            "content-length": str(len(content)),
            **({"content-type": "application/json"} if content else {}),
            **({"authorization": f"Bearer {token}"} if token else {}),
            **(headers or {}),
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        try:
            writer.write(f"{verb} {path} HTTP/1.1\r\n{head}\r\n".encode() + content)
            await writer.drain()
            return await _read_answer(reader)
        finally:
            writer.close()

    async def call(self, method: str, body: object = None, *, token: str = "") -> Answer:
        """One unary call, for example `JobService/GetJob`."""
        path = f"/ironworks.gatewayd.v1.{method}"
        return await self.send("POST", path, body={} if body is None else body, token=token)

    async def token(self, api_key: str) -> str:
        """The token for a key."""
        answer = await self.call("TokenService/ExchangeToken", {"apiKey": api_key})
        return str(answer.json()["token"])

    async def tenant(self, name: str, role: str = "ROLE_DEVELOPER") -> str:
        """A token of a tenant, which is made if there is none of that name."""
        operator = await self.token(self.operator_key)
        made = await self.call(
            "TenantService/CreateTenant", {"name": name, "idempotencyKey": name}, token=operator
        )
        tenant_id = made.json()["tenant"]["tenantId"]
        key = await self.call(
            "ApiKeyService/CreateApiKey",
            {"name": "test", "roles": [role], "tenantId": tenant_id},
            token=operator,
        )
        return await self.token(str(key.json()["secret"]))

    async def ended(self, job_id: str, token: str) -> dict[str, Any]:
        """The job, once it has ended."""
        async with asyncio.timeout(60):
            while True:
                answer = await self.call("JobService/GetJob", {"jobId": job_id}, token=token)
                if answer.status == 200:  # noqa: PLR2004 - HTTP's own number
                    job: dict[str, Any] = answer.json()["job"]
                    if "endedAtNs" in job:
                        return job
                await asyncio.sleep(LOOK_SECONDS)


async def _read_answer(reader: asyncio.StreamReader) -> Answer:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readline()
    else:
        body = await reader.read()
    return Answer(status=int(first.split()[1]), headers=headers, body=body.decode())


async def _announce(chassis: Chassis[Settings]) -> None:
    """Register the host and report it alive, for ever."""
    directory = chassis.clients.of(HostDirectoryServiceClient, "gatewayd")
    capacity = hosts_pb.HostResources(
        vcpus=16, memory_bytes=16 * GIB, disk_bytes=100 * GIB, vms=100
    )
    host = hosts_pb.Host(
        host_id=HOST_ID,
        name="one",
        zone="az-1",
        metald_url=chassis.settings.metald_url,
        capacity=capacity,
    )
    while True:
        with contextlib.suppress(Exception):
            await directory.register_host(hosts_pb.RegisterHostRequest(host=host))
        await asyncio.sleep(1)


@asynccontextmanager
async def edge(data_dir: Path, **settings_of_gatewayd: str) -> AsyncGenerator[Edge]:
    """Everything up, and down again."""
    urls = {f"{name}_url": f"http://127.0.0.1:{free_port()}" for name in ("gatewayd", "metald")}
    urls["builderd_url"] = f"http://127.0.0.1:{free_port()}"
    settings = Settings.model_validate({"data_dir": data_dir, "edge_port": free_port(), **urls})
    ensure_service_keys(data_dir)
    env = {f"IRONWORKS_{name.upper()}": url for name, url in urls.items()}
    env |= {f"IRONWORKS_{name.upper()}": value for name, value in settings_of_gatewayd.items()}
    env |= {
        "IRONWORKS_DATA_DIR": str(data_dir),
        "IRONWORKS_EDGE_PORT": str(settings.edge_port),
    }
    running = Edge(settings, env, free_port())
    stop = asyncio.Event()

    @asynccontextmanager
    async def builderd(chassis: Chassis[Settings]) -> AsyncGenerator[Parts]:
        yield Parts(
            applications=[chassis.application(BuildServiceASGIApplication, running.builderd)]
        )

    @asynccontextmanager
    async def metald(chassis: Chassis[Settings]) -> AsyncGenerator[Parts]:
        chassis.tasks.start(_announce(chassis), name="announce")
        yield Parts(applications=[chassis.application(VmServiceASGIApplication, running.metald)])

    async with Tasks() as tasks:
        serving = [
            tasks.start(run_service(make_chassis(name, settings), compose, stop), name=name)
            for name, compose in (("builderd", builderd), ("metald", metald))
        ]
        try:
            await running.start()
            yield running
        finally:
            await running.stop()
            stop.set()
            await asyncio.wait(serving, timeout=10)
