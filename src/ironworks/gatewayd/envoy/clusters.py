"""Clusters: our services, and the replicas of each deployment. Pure.

Envoy's breakers bound concurrency; its outlier detection is what opens on failure. Both are set so
that a callee which is down is refused at once (`healthy_panic_threshold` 0), and only failures of
the connection count: an application that answers 500 is up.
"""

from __future__ import annotations

import ipaddress
from typing import Any

from ironworks.gatewayd.envoy.types import Edge
from ironworks.gatewayd.types import Endpoint

CONNECT_TIMEOUT = "2s"
MAX_CONNECTIONS = 512
MAX_PENDING = 512
MAX_REQUESTS = 1024
MAX_RETRIES = 32
SERVICE_EJECTION = "10s"
REPLICA_EJECTION = "3s"
FAILURES = 5
_HTTP = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def service_cluster_name(service: str) -> str:
    """Name of the cluster of one of our services."""
    return f"service-{service}"


def endpoint_cluster_name(endpoint: Endpoint) -> str:
    """Name of the cluster of a deployment's replicas."""
    return f"endpoint-{endpoint.host_label}"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _member(host: str, port: int) -> dict[str, Any]:
    return {"endpoint": {"address": {"socket_address": {"address": host, "port_value": port}}}}


def _cluster(
    name: str, members: list[tuple[str, int]], *, ejection: str, protocol: dict[str, Any]
) -> dict[str, Any]:
    static = all(_is_address(host) for host, _ in members)
    return {
        "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
        "name": name,
        "type": "STATIC" if static else "STRICT_DNS",
        "connect_timeout": CONNECT_TIMEOUT,
        "lb_policy": "LEAST_REQUEST",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [_member(host, port) for host, port in members]}],
        },
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": MAX_CONNECTIONS,
                    "max_pending_requests": MAX_PENDING,
                    "max_requests": MAX_REQUESTS,
                    "max_retries": MAX_RETRIES,
                }
            ]
        },
        "outlier_detection": {
            "split_external_local_origin_errors": True,
            "consecutive_local_origin_failure": FAILURES,
            "enforcing_consecutive_local_origin_failure": 100,
            "enforcing_consecutive_5xx": 0,
            "enforcing_consecutive_gateway_failure": 0,
            "enforcing_success_rate": 0,
            "enforcing_local_origin_success_rate": 0,
            "interval": "1s",
            "base_ejection_time": ejection,
            "max_ejection_time": ejection,
            "max_ejection_percent": 100,
        },
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": _HTTP,
                "common_http_protocol_options": {"idle_timeout": "300s"},
                "explicit_http_config": protocol,
            }
        },
    }


def compile_clusters(edge: Edge) -> list[dict[str, Any]]:
    """All clusters, by name."""
    compiled = [
        _cluster(
            service_cluster_name(service),
            [address],
            ejection=SERVICE_EJECTION,
            protocol={"http2_protocol_options": {"max_concurrent_streams": 1000}},
        )
        for service, address in edge.services.items()
    ]
    compiled += [
        _cluster(
            endpoint_cluster_name(endpoint),
            list(endpoint.addresses),
            ejection=REPLICA_EJECTION,
            protocol={"http_protocol_options": {}},
        )
        for endpoint in edge.endpoints
        if endpoint.addresses
    ]
    return sorted(compiled, key=lambda cluster: str(cluster["name"]))
