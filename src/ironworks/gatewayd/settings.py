"""Settings of gatewayd."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from ironworks.gatewayd.types import TenantLimits
from ironworks.model.units import GIB
from ironworks.runtime.settings import Settings
from ironworks.storage.sql import sqlite_url


class GatewaydSettings(Settings):
    """Settings of gatewayd."""

    gatewayd_database_url: str = Field(
        default="", description="PostgreSQL URL; empty: a SQLite file in the data directory."
    )
    gatewayd_workflows_url: str = Field(
        default="", description="PostgreSQL URL of workflows; empty: a SQLite file."
    )
    gatewayd_executor_id: str = Field(
        default="local", description="Name of this gatewayd among several on one database."
    )
    edge_host: str = Field(
        default="127.0.0.1", description="Address that Envoy binds; 0.0.0.0 serves other machines."
    )
    edge_concurrency: int = Field(
        default=1, ge=1, le=64, description="Worker threads of Envoy; one per core at most."
    )
    edge_certificate_file: Path | None = Field(
        default=None, description="Certificate chain of your own for the edge, PEM."
    )
    edge_private_key_file: Path | None = Field(default=None, description="Its private key, PEM.")
    edge_apply_timeout_seconds: float = Field(
        default=30.0, gt=0, description="How long Envoy may take to take over new routes."
    )
    deployment_jobs: int = Field(
        default=16, ge=1, description="Deployment jobs at the same time, of all tenants."
    )
    deployment_build_timeout_seconds: float = Field(
        default=1500.0, gt=0, description="How long a deployment waits for its build."
    )
    tenant_requests_per_second: int = Field(default=100, ge=1)
    tenant_request_burst: int = Field(default=200, ge=1)
    tenant_deployments: int = Field(default=100, ge=0)
    tenant_vms: int = Field(default=200, ge=0)
    tenant_vcpus: int = Field(default=400, ge=0)
    tenant_memory_bytes: int = Field(default=512 * GIB, ge=0)
    tenant_concurrent_jobs: int = Field(default=4, ge=1)
    tenant_api_keys: int = Field(default=100, ge=1)

    @property
    def directory(self) -> Path:
        """All state of gatewayd."""
        return self.data_dir / "gatewayd"

    @property
    def database_url(self) -> str:
        """Where the store is."""
        return self.gatewayd_database_url or sqlite_url(self.directory / "gatewayd.db")

    @property
    def workflows_url(self) -> str:
        """Where DBOS keeps its records."""
        return self.gatewayd_workflows_url or sqlite_url(self.directory / "workflows.db")

    @property
    def limits(self) -> TenantLimits:
        """What applies to a tenant without limits of its own."""
        return TenantLimits(
            requests_per_second=self.tenant_requests_per_second,
            request_burst=self.tenant_request_burst,
            deployments=self.tenant_deployments,
            vms=self.tenant_vms,
            vcpus=self.tenant_vcpus,
            memory_bytes=self.tenant_memory_bytes,
            concurrent_jobs=self.tenant_concurrent_jobs,
            api_keys=self.tenant_api_keys,
        )
