"""Plain HTTP for those who want no RPC: the same methods, as the system description draws them.

    POST /v1/deployments        → 202 {"deployment": …, "jobId": …}
    GET  /v1/deployments/{id}   → 200 {"deployment": …}
    GET  /v1/jobs/{id}          → 200 {"job": …}

A request is rewritten to the method's own and handed to the same application: same token, same
access table, same errors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from ironworks.model.errors import IronError, NotFound
from ironworks.model.ids import new_id
from ironworks.runtime import access
from ironworks.runtime.clock import Clock, Entropy
from ironworks.runtime.identity import Verifier
from ironworks.runtime.identity.caller import caller_var, request_id_var
from ironworks.runtime.rpc.server import (
    AsgiApplication,
    Receive,
    Scope,
    Send,
    answer_error,
    bearer_token,
)

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
PREFIX = "/v1"
_PACKAGE = "ironworks.gatewayd.v1"
_DEPLOYMENTS = f"{_PACKAGE}.DeploymentService"
_JOBS = f"{_PACKAGE}.JobService"
ACCEPTED = 202
OK = 200


class Rest:
    """ASGI application below `/v1`."""

    def __init__(
        self,
        *,
        applications: Mapping[str, AsgiApplication],
        verifier: Verifier,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._applications = applications
        self._verifier = verifier
        self._clock = clock
        self._entropy = entropy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        # Envoy gives every request an id and lets no client choose it.
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        known = _REQUEST_ID.fullmatch(given)
        request_id = given if known else new_id("req", self._clock, self._entropy)
        request_id_var.set(request_id)
        structlog.contextvars.bind_contextvars(request_id=request_id)
        try:
            method, body, status = _method_of(str(scope["method"]), str(scope["path"]))
            caller = self._verifier.verify(bearer_token(scope))
            access.check(method, caller)
            caller_var.set(caller)
            application = self._applications[method.partition("/")[0]]
            await application(
                _rewritten(scope, method),
                receive if body is None else _body(body, receive),
                _with_status(send, status),
            )
        except IronError as error:
            await answer_error(send, error)
        finally:
            structlog.contextvars.unbind_contextvars("request_id")


def _method_of(verb: str, path: str) -> tuple[str, bytes | None, int]:
    """(RPC method, body if the request's own is not it, status of success).

    Raises:
        NotFound: there is no such thing.
    """
    match (verb, *path.removeprefix(PREFIX).strip("/").split("/")):
        case ("POST", "deployments"):
            return f"{_DEPLOYMENTS}/CreateDeployment", None, ACCEPTED
        case ("GET", "deployments", deployment_id) if deployment_id:
            body = json.dumps({"deploymentId": deployment_id}).encode()
            return f"{_DEPLOYMENTS}/GetDeployment", body, OK
        case ("GET", "jobs", job_id) if job_id:
            return f"{_JOBS}/GetJob", json.dumps({"jobId": job_id}).encode(), OK
        case _:
            raise NotFound(f"There is no {verb[:10]} {path[:200]} here.")


def _rewritten(scope: Scope, method: str) -> dict[str, Any]:
    dropped = {b"content-type", b"connect-protocol-version", b"content-length"}
    headers = [(key, value) for key, value in scope["headers"] if key.lower() not in dropped]
    headers.append((b"content-type", b"application/json"))
    path = f"/{method}"
    return {
        **scope,
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": headers,
    }


def _body(content: bytes, original: Receive) -> Receive:
    """A request body of our own; after it, only the real client can disconnect."""
    messages = iter([{"type": "http.request", "body": content, "more_body": False}])

    async def receive() -> dict[str, Any]:
        for message in messages:
            return message
        while (message := await original())["type"] == "http.request":
            pass  # the real request has no body that matters
        return message

    return receive


def _with_status(send: Send, status: int) -> Callable[[dict[str, Any]], Any]:
    async def changed(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start" and message["status"] == OK:
            message = {**message, "status": status}
        await send(message)

    return changed
