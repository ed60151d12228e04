from __future__ import annotations

import contextvars
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest
from connectrpc.code import Code
from connectrpc.errors import ConnectError

from ironworks.gen.ironworks.metald.v1 import vm_pb
from ironworks.gen.ironworks.metald.v1.vm_connect import VmServiceClient
from ironworks.model.errors import DeadlineExceeded, InvalidRequest, NotFound, Unavailable
from ironworks.runtime.identity import ServiceSigner, Verifier, ensure_service_keys
from ironworks.runtime.identity.caller import request_id_var
from ironworks.runtime.rpc.client import Clients, ServiceCredentials, our_errors
from ironworks.runtime.rpc.interceptor import Context
from ironworks.runtime.settings import Settings
from ironworks.testkit.clock import FakeClock


@dataclass
class Call:
    """What the credentials see of a call."""

    request_headers: dict[str, str] = field(default_factory=dict[str, str])


@pytest.fixture
def signer(tmp_path: Path) -> ServiceSigner:
    ensure_service_keys(tmp_path)
    return ServiceSigner.load(tmp_path, "gatewayd", "test.local", FakeClock())


async def headers(signer: ServiceSigner, tenant_id: str | None = None) -> dict[str, str]:
    call = Call()
    await ServiceCredentials(signer, "metald", tenant_id).on_start(cast("Context", call))
    return call.request_headers


async def test_a_call_carries_a_token_for_its_callee_and_its_tenant(
    signer: ServiceSigner, tmp_path: Path
) -> None:
    verifier = Verifier(
        service="metald", data_dir=tmp_path, trust_domain="test.local", clock=FakeClock()
    )
    sent = await headers(signer, "tnt_1")
    caller = verifier.verify(sent["authorization"].removeprefix("Bearer "))
    assert (caller.subject, caller.tenant_id) == ("gatewayd", "tnt_1")
    assert set(sent) == {"authorization"}


def test_a_call_made_within_a_request_carries_its_id(signer: ServiceSigner) -> None:
    async def within() -> dict[str, str]:
        request_id_var.set("req_1")
        return await headers(signer)

    step = within()
    with pytest.raises(StopIteration) as caught:
        contextvars.copy_context().run(step.send, None)
    assert caught.value.value["x-request-id"] == "req_1"


def test_errors_of_the_callee_are_ours() -> None:
    with pytest.raises(NotFound, match=r"No VM\."), our_errors():
        raise ConnectError(Code.NOT_FOUND, "No VM.")


async def test_a_callee_that_is_down_is_unavailable_and_the_call_may_be_repeated(
    signer: ServiceSigner,
) -> None:
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        settings = Settings(metald_url=f"http://127.0.0.1:{taken.getsockname()[1]}")
        client = Clients(settings=settings, signer=signer).of(VmServiceClient, "metald")
        with pytest.raises(Unavailable):
            await client.get_vm(vm_pb.GetVmRequest(vm_id="x"))


async def test_a_callee_that_does_not_answer_in_time_exceeds_the_deadline(
    signer: ServiceSigner,
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        settings = Settings(metald_url=f"http://127.0.0.1:{silent.getsockname()[1]}")
        clients = Clients(settings=settings, signer=signer)
        client = clients.of(VmServiceClient, "metald", timeout_seconds=0.2)
        with pytest.raises(DeadlineExceeded):
            await client.get_vm(vm_pb.GetVmRequest(vm_id="x"))


def test_a_client_of_no_service_is_refused(signer: ServiceSigner) -> None:
    with pytest.raises(InvalidRequest, match="no service"):
        Clients(settings=Settings(), signer=signer).of(VmServiceClient, "nobody")
