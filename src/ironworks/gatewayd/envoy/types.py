"""What the compiler of Envoy's configuration needs to know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ironworks.gatewayd.types import Endpoint, TenantLimits
from ironworks.runtime.access import Access


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """All of the data plane's state, as values.

    Attributes:
        directory: Where the compiled files are.
        admin_socket: Unix socket of Envoy's admin interface.
        host: Address that the listener binds.
        port: Port that the listener binds.
        domain: Parent domain of endpoints.
        issuer: `iss` of user tokens.
        jwks_json: Keys that verify them.
        certificate_pem: Chain of the listener's certificate, leaf first.
        private_key_pem: Its key.
        services: Name of a service → host and port of its RPC.
        access: Who may call which method; what has no user role and is not anonymous is not routed.
        limits: What applies to a tenant without limits of its own.
        tenant_limits: Limits of tenants that have their own.
        endpoints: Routes of deployments.
    """

    directory: Path
    admin_socket: Path
    host: str
    port: int
    domain: str
    issuer: str
    jwks_json: str
    certificate_pem: str
    private_key_pem: str
    services: Mapping[str, tuple[str, int]]
    access: Mapping[str, Access]
    limits: TenantLimits
    tenant_limits: Mapping[str, TenantLimits] = field(default_factory=dict[str, TenantLimits])
    endpoints: tuple[Endpoint, ...] = ()
