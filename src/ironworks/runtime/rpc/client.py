"""Clients of the other services: service token, request id, deadline, errors in our taxonomy."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from connectrpc.client import ConnectClient
from pyqwest import Client, HTTPTransport, HTTPVersion

from ironworks.runtime.identity.caller import request_id_var
from ironworks.runtime.identity.tokens import ServiceSigner
from ironworks.runtime.rpc.direct import DIRECT
from ironworks.runtime.rpc.errors import cancellation_kept, our_errors
from ironworks.runtime.rpc.interceptor import Around, Context
from ironworks.runtime.settings import Settings

DEFAULT_TIMEOUT_SECONDS = 30.0
_C = TypeVar("_C", bound=ConnectClient)


class ServiceCredentials:
    """Puts the service token and the request id on every call."""

    def __init__(self, signer: ServiceSigner, callee: str, tenant_id: str | None) -> None:
        self._signer = signer
        self._callee = callee
        self._tenant_id = tenant_id

    async def on_start(self, ctx: Context) -> None:
        """Before the request leaves."""
        headers = ctx.request_headers
        token = self._signer.token(self._callee, self._tenant_id)
        headers["authorization"] = f"Bearer {token}"
        if request_id := request_id_var.get():
            headers["x-request-id"] = request_id

    async def on_end(self, token: None, ctx: Context, error: Exception | None) -> None:
        """Nothing to do."""


class Clients:
    """Makes clients of the other services; all share one pool of connections."""

    def __init__(self, *, settings: Settings, signer: ServiceSigner) -> None:
        self._settings = settings
        self._signer = signer
        self._http = Client(
            HTTPTransport(
                http_version=HTTPVersion.HTTP2,
                proxy=DIRECT,
                connect_timeout=2.0,
                follow_redirects=False,
                enable_otel=False,
            )
        )

    def of(
        self,
        kind: Callable[..., _C],
        service: str,
        *,
        tenant_id: str | None = None,
        timeout_seconds: float | None = DEFAULT_TIMEOUT_SECONDS,
        url: str = "",
    ) -> _C:
        """A client of `service`, acting for the platform or for a tenant.

        Args:
            kind: Generated client class, for example `VmServiceClient`.
            service: Name of the service that is called.
            tenant_id: Goes into the signed token; the callee trusts it there, and only there.
            timeout_seconds: Of each call; None for streams that never end.
            url: Where this one answers, for services of which there are many (metald, billaged);
                empty: the one of the settings.
        """
        return kind(
            url or self._settings.url_of(service),
            timeout_ms=None if timeout_seconds is None else int(timeout_seconds * 1000),
            # Loopback and datacenter links are faster than gzip.
            send_compression=None,
            accept_compression=(),
            interceptors=[
                Around(cancellation_kept),
                Around(our_errors),
                ServiceCredentials(self._signer, service, tenant_id),
            ],
            http_client=self._http,
        )
