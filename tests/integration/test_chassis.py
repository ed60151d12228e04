"""The chassis for real: a server on loopback, tokens, streams, errors, request ids."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from pyqwest import Client, HTTPTransport

from ironworks.gen.ironworks.metald.v1 import vm_pb
from ironworks.gen.ironworks.metald.v1.vm_connect import (
    VmService,
    VmServiceASGIApplication,
    VmServiceClient,
)
from ironworks.model.errors import NotFound, PermissionDenied, Unauthenticated, Unimplemented
from ironworks.runtime import access
from ironworks.runtime.access import Access
from ironworks.runtime.identity import (
    ServiceSigner,
    current_caller,
    current_request_id,
    ensure_service_keys,
)
from ironworks.runtime.identity.caller import request_id_var
from ironworks.runtime.rpc.client import Clients
from ironworks.runtime.rpc.interceptor import Context
from ironworks.runtime.service import Chassis, Parts, make_chassis, run_service
from ironworks.runtime.settings import Settings
from ironworks.runtime.tasks import Tasks

SECRET = "the host's secret path"


class Handlers(VmService):
    """Answers with what it knows of its caller."""

    async def get_vm(self, request: vm_pb.GetVmRequest, ctx: Context, /) -> vm_pb.Vm:
        del ctx
        if request.vm_id == "absent":
            raise NotFound("VM absent is not known here.", context={"path": SECRET})
        if request.vm_id == "slow":
            await asyncio.sleep(30)
        if request.vm_id == "crash":
            raise ValueError(SECRET)
        caller = current_caller()
        return vm_pb.Vm(
            id=caller.subject,
            tenant_id=caller.tenant_id or "",
            reason=current_request_id(),
        )


@asynccontextmanager
async def compose(chassis: Chassis[Settings]) -> AsyncGenerator[Parts]:
    yield Parts(applications=[chassis.application(VmServiceASGIApplication, Handlers())])


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
async def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Settings]:
    only_gatewayd = Access(services=frozenset({"gatewayd"}))
    methods = ("GetVm", "PauseVm", "WatchVms")
    table = {f"ironworks.metald.v1.VmService/{method}": only_gatewayd for method in methods}
    monkeypatch.setattr(access, "ACCESS", table)
    ensure_service_keys(tmp_path)
    settings = Settings(data_dir=tmp_path, metald_url=f"http://127.0.0.1:{free_port()}")
    stop = asyncio.Event()
    async with Tasks() as tasks:
        serving = tasks.start(
            run_service(make_chassis("metald", settings), compose, stop), name="service"
        )
        await until_ready(settings)
        yield settings
        stop.set()
        await serving


async def until_ready(settings: Settings) -> None:
    for _ in range(200):
        try:
            status, _ = await get(f"{settings.metald_url}/readyz")
        except OSError:
            await asyncio.sleep(0.02)
        else:
            assert status == 200
            return
    pytest.fail("the service did not start")


async def get(url: str) -> tuple[int, bytes]:
    client = Client(HTTPTransport(proxy=()))
    response = await client.execute("GET", url)
    return response.status, bytes(response.content)


def clients(settings: Settings, service: str = "gatewayd") -> Clients:
    signer = ServiceSigner.load(
        settings.data_dir, service, settings.trust_domain, make_chassis(service, settings).clock
    )
    return Clients(settings=settings, signer=signer)


async def test_a_service_is_known_by_its_token_and_acts_for_the_tenant_in_it(
    settings: Settings,
) -> None:
    client = clients(settings).of(VmServiceClient, "metald", tenant_id="tnt_a")
    request_id_var.set("req-from-test")
    vm = await client.get_vm(vm_pb.GetVmRequest(vm_id="x"))
    assert (vm.id, vm.tenant_id, vm.reason) == ("gatewayd", "tnt_a", "req-from-test")


async def test_a_crowd_of_idle_connections_keeps_nobody_out(settings: Settings) -> None:
    url = urlsplit(settings.metald_url)
    async with AsyncExitStack() as crowd:
        for _ in range(300):
            _, writer = await asyncio.open_connection(url.hostname, url.port)
            crowd.callback(writer.close)
        async with asyncio.timeout(30):
            await clients(settings).of(VmServiceClient, "metald").get_vm(vm_pb.GetVmRequest())


async def test_errors_keep_their_class_and_lose_their_private_context(settings: Settings) -> None:
    client = clients(settings).of(VmServiceClient, "metald")
    with pytest.raises(NotFound, match="VM absent is not known here") as caught:
        await client.get_vm(vm_pb.GetVmRequest(vm_id="absent"))
    assert SECRET not in str(caught.value)
    with pytest.raises(Exception, match="Something went wrong") as crashed:
        await client.get_vm(vm_pb.GetVmRequest(vm_id="crash"))
    assert SECRET not in str(crashed.value)


async def test_a_call_that_is_cancelled_ends_as_cancelled(settings: Settings) -> None:
    client = clients(settings).of(VmServiceClient, "metald")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await client.get_vm(vm_pb.GetVmRequest(vm_id="slow"))


async def test_calls_ignore_the_proxy_of_the_environment(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    client = clients(settings).of(VmServiceClient, "metald")
    assert (await client.get_vm(vm_pb.GetVmRequest(vm_id="x"))).id == "gatewayd"


async def test_a_method_that_nobody_wrote_is_unimplemented(settings: Settings) -> None:
    client = clients(settings).of(VmServiceClient, "metald")
    with pytest.raises(Unimplemented):
        await client.pause_vm(vm_pb.PauseVmRequest(vm_id="x"))


async def test_a_service_that_is_not_on_the_list_is_refused(settings: Settings) -> None:
    client = clients(settings, "billaged").of(VmServiceClient, "metald")
    with pytest.raises(PermissionDenied):
        await client.get_vm(vm_pb.GetVmRequest(vm_id="x"))


async def test_streams_pass_the_same_gate(settings: Settings) -> None:
    client = VmServiceClient(settings.metald_url, http_client=Client(HTTPTransport(proxy=())))
    answers = client.watch_vms(vm_pb.WatchVmsRequest())
    with pytest.raises(Exception, match=r"(?i)unauthenticated|token"):
        await anext(answers)


@pytest.mark.parametrize(
    "header", ["", "Bearer x", "Bearer a.b.c", "Basic abc", "Bearer " + "x" * 9999]
)
async def test_no_call_without_a_token(settings: Settings, header: str) -> None:
    client = Client(HTTPTransport(proxy=()))
    response = await client.execute(
        "POST",
        f"{settings.metald_url}/ironworks.metald.v1.VmService/GetVm",
        headers={"authorization": header, "content-type": "application/json"},
        content=b"{}",
    )
    assert response.status == 401
    assert json.loads(bytes(response.content))["code"] == "unauthenticated"


async def test_a_token_for_another_service_is_refused(settings: Settings) -> None:
    signer = ServiceSigner.load(
        settings.data_dir,
        "gatewayd",
        settings.trust_domain,
        make_chassis("gatewayd", settings).clock,
    )
    verifier = make_chassis("metald", settings).verifier
    assert verifier.verify(signer.token("metald")).subject == "gatewayd"
    with pytest.raises(Unauthenticated):
        verifier.verify(signer.token("builderd"))


async def test_health_and_metrics_need_no_token(settings: Settings) -> None:
    assert (await get(f"{settings.metald_url}/healthz"))[0] == 200
    await get(f"{settings.metald_url}/made-up-{'x' * 50}")
    status, body = await get(f"{settings.metald_url}/metrics")
    assert status == 200
    assert b"ironworks_rpc_requests_total" in body
    assert b"made-up" not in body
