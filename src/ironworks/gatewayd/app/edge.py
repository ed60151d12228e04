"""Publishing: from the store to Envoy's files."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import structlog
from sqlalchemy import Connection

from ironworks.gatewayd import decide
from ironworks.gatewayd.envoy.certificates import (
    Certificate,
    ensure_certificate,
    read_certificate,
)
from ironworks.gatewayd.envoy.plane import Plane, admin_socket, validate
from ironworks.gatewayd.envoy.types import Edge
from ironworks.gatewayd.issuer import Issuer
from ironworks.gatewayd.settings import GatewaydSettings
from ironworks.gatewayd.store import deployments as store
from ironworks.gatewayd.types import Endpoint
from ironworks.model.errors import DeadlineExceeded
from ironworks.runtime import access
from ironworks.runtime.clock import Clock
from ironworks.runtime.identity import SERVICES
from ironworks.storage.sql import Database

_log = structlog.stdlib.get_logger()
WITHDRAW_SECONDS = 10.0
SCHEME_PORTS = {"http": 80, "https": 443}


def _address_of(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or SCHEME_PORTS.get(parts.scheme, 80)


class EdgeApp:
    """Keeps Envoy's files equal to what the store says."""

    def __init__(
        self,
        *,
        database: Database,
        issuer: Issuer,
        clock: Clock,
        settings: GatewaydSettings,
    ) -> None:
        self._database = database
        self._issuer = issuer
        self._clock = clock
        self._settings = settings
        self._directory = settings.directory / "envoy"
        self._socket = admin_socket(settings.data_dir)
        self._publishing = asyncio.Lock()
        self.plane = Plane(directory=self._directory, admin=self._socket, clock=clock)
        self.endpoint_count = 0

    def url_of(self, host_label: str) -> str:
        """URL of a deployment."""
        return decide.endpoint_url(host_label, self._settings.domain, self._settings.edge_port)

    async def prepare(self) -> None:
        """At the start: let Envoy judge what we compile, then write it.

        Raises:
            FailedPrecondition: Envoy refuses it, or the operator's certificate is not usable.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        self._directory.chmod(0o700)
        # An Envoy that was killed leaves its socket; the next one makes it anew.
        self._socket.parent.mkdir(parents=True, exist_ok=True)
        self.plane.sweep()
        edge = await self._edge()
        await validate(edge)
        self.plane.write(edge)

    async def publish(self) -> bool:
        """Write what the store says now; answers whether anything had changed."""
        # One at a time: an older reading of the store must not be written over a newer one.
        async with self._publishing:
            before = self.plane.written
            written = self.plane.write(await self._edge())
            return before is None or before.versions != written.versions

    async def publish_and_wait(self) -> None:
        """Write, and return once Envoy works with it.

        Raises:
            DeadlineExceeded: Envoy did not take it over in time.
        """
        await self.publish()
        await self.plane.wait_applied(self._settings.edge_apply_timeout_seconds)

    async def withdraw(self) -> None:
        """Write, and give Envoy some time to work with it.

        An Envoy that does not answer routes nothing, and reads the new files when it starts: so
        nobody who takes something away has to wait for it for long.
        """
        await self.publish()
        try:
            await self.plane.wait_applied(WITHDRAW_SECONDS)
        except DeadlineExceeded as error:
            _log.warning("edge_silent", error=str(error))

    def _certificate(self) -> Certificate:
        chain, key = self._settings.edge_certificate_file, self._settings.edge_private_key_file
        if chain is not None and key is not None:
            return read_certificate(chain, key)
        return ensure_certificate(self._settings.data_dir, self._settings.domain, self._clock)

    async def _edge(self) -> Edge:
        endpoints = await self._database.read(_endpoints)
        self.endpoint_count = len(endpoints)
        certificate = self._certificate()
        settings = self._settings
        return Edge(
            directory=self._directory,
            admin_socket=self._socket,
            host=settings.edge_host,
            port=settings.edge_port,
            domain=settings.domain,
            issuer=self._issuer.name,
            jwks_json=self._issuer.jwks_json,
            certificate_pem=certificate.chain_pem,
            private_key_pem=certificate.private_key_pem,
            services={name: _address_of(settings.url_of(name)) for name in SERVICES},
            access=access.ACCESS,
            limits=settings.limits,
            endpoints=endpoints,
        )


def _endpoints(connection: Connection) -> tuple[Endpoint, ...]:
    found: list[Endpoint] = []
    for deployment in store.serving_deployments(connection):
        replicas = store.replicas_of(connection, deployment.deployment_id)
        endpoint = decide.endpoint_of(deployment, replicas)
        if endpoint is not None:
            found.append(endpoint)
    return tuple(sorted(found, key=lambda endpoint: endpoint.host_label))
