"""The gate in front of every method, without a network: ASGI messages in, ASGI messages out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from ironworks.model.errors import IronError, Unavailable
from ironworks.runtime import access
from ironworks.runtime.access import Access
from ironworks.runtime.identity import (
    ServiceSigner,
    Verifier,
    current_caller,
    current_request_id,
    ensure_service_keys,
)
from ironworks.runtime.rpc.server import RpcServer, bearer_token
from ironworks.testkit.clock import FakeClock, FakeEntropy

SERVICE = "ironworks.metald.v1.VmService"


@dataclass
class Application:
    """Stands for a Connect application; notes for whom it was called."""

    path: str = f"/{SERVICE}"
    calls: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    status: int = 200
    body: bytes = b"done"

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        self.calls.append((current_caller().subject, current_request_id()))
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": self.body})


@dataclass
class Gate:
    server: RpcServer
    application: Application
    registry: CollectorRegistry
    signer: ServiceSigner
    reasons: dict[str, str]
    failure: list[IronError]

    async def post(self, path: str, *headers: tuple[str, str]) -> tuple[int, Any, dict[str, str]]:
        sent: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
        await self.server({"type": "http", "path": path, "headers": raw}, receive, send)
        start, body = sent
        names = {name.decode(): value.decode() for name, value in start["headers"]}
        return start["status"], body["body"], names

    def token(self, callee: str = "metald") -> tuple[str, str]:
        return ("authorization", f"Bearer {self.signer.token(callee)}")


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gate:
    table = {
        f"{SERVICE}/GetVm": Access(services=frozenset({"gatewayd"})),
        f"{SERVICE}/StopVm": Access(services=frozenset({"builderd"})),
        f"{SERVICE}/Exchange": Access(anonymous=True),
    }
    monkeypatch.setattr(access, "ACCESS", table)
    ensure_service_keys(tmp_path)
    clock, registry, application = FakeClock(), CollectorRegistry(), Application()
    reasons: dict[str, str] = {"store": "", "guest": ""}
    failure: list[IronError] = []

    async def ready() -> Mapping[str, str]:
        if failure:
            raise failure[0]
        return reasons

    async def route(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"route"})

    server = RpcServer(
        applications=[application],  # pyright: ignore[reportArgumentType] - stands for one
        verifier=Verifier(
            service="metald", data_dir=tmp_path, trust_domain="test.local", clock=clock
        ),
        clock=clock,
        entropy=FakeEntropy(),
        ready=ready,
        registry=registry,
        routes={"/objects/": route},
    )
    return Gate(
        server=server,
        application=application,
        registry=registry,
        signer=ServiceSigner.load(tmp_path, "gatewayd", "test.local", clock),
        reasons=reasons,
        failure=failure,
    )


async def test_a_caller_that_may_gets_through(gate: Gate) -> None:
    status, body, headers = await gate.post(
        f"/{SERVICE}/GetVm", gate.token(), ("x-request-id", "req-1")
    )
    assert (status, body, headers["x-request-id"]) == (200, b"done", "req-1")
    assert gate.application.calls == [("gatewayd", "req-1")]


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        (f"/{SERVICE}/StopVm", 403, "permission_denied"),
        (f"/{SERVICE}/NotInTheTable", 403, "permission_denied"),
        ("/nope.v1.Nope/Nope", 404, "not_found"),
        ("/", 404, "not_found"),
    ],
)
async def test_what_is_not_allowed_never_reaches_a_handler(
    gate: Gate, path: str, status: int, code: str
) -> None:
    answered, body, _ = await gate.post(path, gate.token())
    assert (answered, json.loads(body)["code"]) == (status, code)
    assert gate.application.calls == []


@pytest.mark.parametrize(("status", "said"), [(405, "POST"), (415, "application/json")])
async def test_what_the_library_refuses_without_a_word_is_explained(
    gate: Gate, status: int, said: str
) -> None:
    gate.application.status, gate.application.body = status, b""
    answered, body, headers = await gate.post(f"/{SERVICE}/GetVm", gate.token())
    assert (answered, headers["content-type"]) == (status, "application/json")
    assert said in json.loads(body)["message"]


async def test_without_a_token_nothing_is_told_of_the_table(gate: Gate) -> None:
    for method in ("GetVm", "StopVm", "NotInTheTable"):
        status, _, _ = await gate.post(f"/{SERVICE}/{method}")
        assert status == 401
    assert gate.application.calls == []


async def test_a_method_that_authenticates_by_itself_is_reached_by_nobody_in_particular(
    gate: Gate,
) -> None:
    status, _, _ = await gate.post(f"/{SERVICE}/Exchange", ("authorization", "Bearer junk"))
    assert status == 200
    assert [subject for subject, _ in gate.application.calls] == [""]


async def test_two_credentials_are_none(gate: Gate) -> None:
    status, _, _ = await gate.post(f"/{SERVICE}/GetVm", gate.token(), gate.token())
    assert status == 401


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "é", "a\nb"])
async def test_a_request_id_that_is_not_fit_for_a_log_is_replaced(gate: Gate, given: str) -> None:
    _, _, headers = await gate.post(f"/{SERVICE}/GetVm", gate.token(), ("x-request-id", given))
    assert headers["x-request-id"].startswith("req_")


async def test_a_refusal_carries_the_request_id_too(gate: Gate) -> None:
    _, _, headers = await gate.post(f"/{SERVICE}/GetVm", ("x-request-id", "req-2"))
    assert headers["x-request-id"] == "req-2"


async def test_ready_is_what_lacks_nothing(gate: Gate) -> None:
    assert (await gate.post("/readyz"))[0] == 200
    gate.reasons["guest"] = "no kernel"
    status, body, _ = await gate.post("/readyz")
    assert status == 503
    assert json.loads(body) == {"ready": False, "missing": {"guest": "no kernel"}}
    gate.failure.append(Unavailable("The store is down.", context={"path": "/secret"}))
    status, body, _ = await gate.post("/readyz")
    assert status == 503
    assert json.loads(body)["missing"] == {"self": "The store is down."}


async def test_a_process_that_is_not_ready_lives(gate: Gate) -> None:
    gate.reasons["guest"] = "no kernel"
    assert (await gate.post("/healthz"))[:2] == (200, b"ok\n")


async def test_paths_that_callers_invent_are_no_labels_of_metrics(gate: Gate) -> None:
    await gate.post(f"/{SERVICE}/GetVm", gate.token())
    for number in range(50):
        await gate.post(f"/{SERVICE}/Invented{number}", gate.token())
        await gate.post(f"/invented{number}")
    metrics = generate_latest(gate.registry).decode()
    assert f'method="{SERVICE}/GetVm",status="200"' in metrics
    assert "nvented" not in metrics


async def test_a_route_is_its_prefix_and_what_is_below_it(gate: Gate) -> None:
    assert (await gate.post("/objects/x"))[1] == b"route"
    assert (await gate.post("/objectsx"))[0] == 404


@pytest.mark.parametrize(
    ("headers", "token"),
    [
        ([(b"authorization", b"Bearer abc")], "abc"),
        ([(b"Authorization", b"bearer  abc ")], "abc"),
        ([(b"authorization", b"Basic abc")], ""),
        ([(b"authorization", b"abc")], ""),
        ([(b"authorization", b"Bearer")], ""),
        ([(b"authorization", b"Bearer a"), (b"authorization", b"Bearer a")], ""),
        ([], ""),
    ],
)
def test_the_token_is_the_one_bearer_credential(
    headers: list[tuple[bytes, bytes]], token: str
) -> None:
    assert bearer_token({"headers": headers}) == token
