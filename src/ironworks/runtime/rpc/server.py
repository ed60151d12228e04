"""The server side of the chassis: one ASGI application in front of a service's RPC methods.

Every request, unary or stream, passes the same gate before any handler sees it: token, access
table, request id. (A gate made of RPC interceptors is easy to forget for streams.)
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias

import structlog
from connectrpc.server import ConnectASGIApplication
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from ironworks.model.errors import IronError, NotFound, Unauthenticated
from ironworks.model.ids import new_id
from ironworks.model.units import NS_PER_MS, NS_PER_SECOND
from ironworks.runtime import access
from ironworks.runtime.clock import Clock, Entropy
from ironworks.runtime.identity.caller import ANONYMOUS, Caller, caller_var, request_id_var
from ironworks.runtime.identity.tokens import Verifier
from ironworks.runtime.log import private
from ironworks.runtime.rpc.errors import http_status

Scope: TypeAlias = Mapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[dict[str, Any]]]
Send: TypeAlias = Callable[[dict[str, Any]], Awaitable[None]]
AsgiApplication: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]
Readiness: TypeAlias = Callable[[], Awaitable[Mapping[str, str]]]

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_BARE = {
    405: {"code": "unimplemented", "message": "Calls are POST requests, with the message as body."},
    415: {
        "code": "invalid_argument",
        "message": "The content type must be application/json or application/proto; of a stream, "
        "application/connect+json or application/connect+proto.",
    },
}
"""What the library answers without a word, and what is answered instead."""
_log = structlog.stdlib.get_logger()


async def answer(send: Send, status: int, body: bytes, content_type: str) -> None:
    """Send one whole HTTP response."""
    headers = [(b"content-type", content_type.encode()), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def answer_error(send: Send, error: IronError) -> None:
    """Send an error as the Connect protocol has it for unary calls."""
    body = json.dumps({"code": error.code, "message": str(error)}).encode()
    await answer(send, http_status(error), body, "application/json")


def _header(scope: Scope, name: bytes) -> str:
    values = [value for key, value in scope["headers"] if key.lower() == name]
    return values[0].decode("latin-1") if len(values) == 1 else ""


def bearer_token(scope: Scope) -> str:
    """The token of the Authorization header; empty if there is none, or more than one."""
    scheme, _, token = _header(scope, b"authorization").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


class RpcServer:
    """ASGI application of one service.

    Serves `/healthz` (the process lives), `/readyz` (it can do its work; else 503 with reasons),
    `/metrics` (Prometheus text), the given extra routes, and the RPC applications.
    """

    def __init__(
        self,
        *,
        applications: Sequence[ConnectASGIApplication[Any]],
        verifier: Verifier,
        clock: Clock,
        entropy: Entropy,
        ready: Readiness,
        registry: CollectorRegistry,
        routes: Mapping[str, AsgiApplication] | None = None,
    ) -> None:
        self._applications: dict[str, AsgiApplication] = {
            application.path: application for application in applications
        }
        self._routes = dict(routes or {})
        self._verifier = verifier
        self._clock = clock
        self._entropy = entropy
        self._ready = ready
        self._registry = registry
        self._requests = Counter(
            "ironworks_rpc_requests_total",
            "RPC requests by method and HTTP status.",
            ["method", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "ironworks_rpc_request_seconds",
            "Time to answer, by method.",
            ["method"],
            registry=registry,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        path: str = scope["path"]
        if path == "/healthz":
            await answer(send, 200, b"ok\n", "text/plain")
        elif path == "/readyz":
            await self._answer_ready(send)
        elif path == "/metrics":
            await answer(send, 200, generate_latest(self._registry), "text/plain; version=0.0.4")
        elif (route := self._route(path)) is not None:
            await route(scope, receive, send)
        else:
            await self._answer_rpc(scope, receive, send)

    def _route(self, path: str) -> AsgiApplication | None:
        for prefix, application in self._routes.items():
            if path == prefix or path.startswith(prefix.rstrip("/") + "/"):
                return application
        return None

    async def _answer_ready(self, send: Send) -> None:
        try:
            missing = {name: reason for name, reason in (await self._ready()).items() if reason}
        except IronError as error:
            missing = {"self": error.message}
        body = json.dumps({"ready": not missing, "missing": missing}).encode() + b"\n"
        await answer(send, 503 if missing else 200, body, "application/json")

    def identify(self, scope: Scope, method: str) -> Caller:
        """The caller of `method`, verified and allowed to call it.

        Raises:
            Unauthenticated: no valid token.
            PermissionDenied: the access table says no.
        """
        rule = access.ACCESS.get(method)
        if rule is not None and rule.anonymous:
            return ANONYMOUS
        caller = self._verifier.verify(bearer_token(scope))
        access.check(method, caller)
        return caller

    async def _answer_rpc(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        application = self._applications.get(path.rpartition("/")[0])
        method = path.removeprefix("/")
        known = application is not None and method in access.ACCESS
        request_id = _header(scope, b"x-request-id")
        # What a loop asks for by itself comes without an id, every few seconds: not worth a line.
        level = logging.INFO if request_id else logging.DEBUG
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = new_id("req", self._clock, self._entropy)
        began_ns = self._clock.monotonic_ns()
        status, caller = 500, ANONYMOUS

        async def counting_send(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", request_id.encode()),
                ]
                if status in _BARE:
                    message["headers"].append((b"content-type", b"application/json"))
            elif status in _BARE and not message.get("body"):
                message["body"] = json.dumps(_BARE[status]).encode()
            await send(message)

        request_id_var.set(request_id)
        structlog.contextvars.bind_contextvars(request_id=request_id)
        try:
            if application is None:
                raise NotFound(f"There is no method {path[:200]!r} here.")
            caller = self.identify(scope, method)
            caller_var.set(caller)
            await application(scope, receive, counting_send)
        except IronError as error:
            if not isinstance(error, Unauthenticated | NotFound):
                _log.warning("refused", method=method, code=error.code, **private(error))
            await answer_error(counting_send, error)
        finally:
            # Paths that callers invent must not become metric labels.
            label = method if known else "unknown"
            elapsed_ns = self._clock.monotonic_ns() - began_ns
            self._requests.labels(label, str(status)).inc()
            self._seconds.labels(label).observe(elapsed_ns / NS_PER_SECOND)
            _log.log(
                level,
                "request",
                method=label,
                status=status,
                caller=caller.subject,
                tenant_id=caller.tenant_id,
                duration_ms=elapsed_ns // NS_PER_MS,
            )
            structlog.contextvars.unbind_contextvars("request_id")
