"""Routes: the API by method, endpoints by host name. Pure.

The API's routes come from the access table: a service is reachable at the edge if a user may call
one of its methods. A host name below the domain that is no endpoint is answered here, with 404:
it never falls through to the API.
"""

from __future__ import annotations

import json
from typing import Any

from ironworks.gatewayd.envoy.clusters import endpoint_cluster_name, service_cluster_name
from ironworks.gatewayd.envoy.rates import address_rates
from ironworks.gatewayd.envoy.types import Edge
from ironworks.gatewayd.types import Endpoint

ROUTES_NAME = "edge"
UNARY_TIMEOUT = "660s"
"""Longer than any call's own bound (a boot may take 600 s): Envoy must not cut what still works."""
REST_PREFIX = "/v1"
_STREAM = r"application/(connect\+|grpc).*"
_FILTER = "type.googleapis.com/envoy.config.route.v3.FilterConfig"
_FORGED_HEADERS = (
    "x-forwarded-user",
    "x-forwarded-email",
    "x-forwarded-groups",
    "x-forwarded-preferred-username",
    "x-forwarded-client-cert",
    "x-tenant",
    "x-tenant-id",
    "x-user-id",
)
"""Headers in which other gateways carry identity. Nothing here reads them; nobody shall start."""

_RETRIES = {
    "retry_on": "connect-failure,refused-stream,reset-before-request",
    "num_retries": 3,
    "retry_back_off": {"base_interval": "0.1s", "max_interval": "0.4s"},
    "host_selection_retry_max_attempts": 3,
}
"""Only failures after which the callee cannot have begun: any method may be sent again then."""


def _json_answer(status: int, code: str, message: str) -> dict[str, Any]:
    body = json.dumps({"code": code, "message": message})
    return {"status": status, "body": {"inline_string": body}}


def _to(service: str, timeout: str) -> dict[str, Any]:
    cluster = service_cluster_name(service)
    return {"cluster": cluster, "timeout": timeout, "retry_policy": _RETRIES}


def _public_services(edge: Edge) -> list[tuple[str, str]]:
    """(path prefix, service) of every RPC service that a user may call."""
    found: set[tuple[str, str]] = set()
    for method, rule in edge.access.items():
        service = method.split(".")[1]
        if (rule.roles or rule.anonymous) and service in edge.services:
            found.add((f"/{method.rpartition('/')[0]}/", service))
    return sorted(found)


def _api_routes(edge: Edge) -> list[dict[str, Any]]:
    compiled: list[dict[str, Any]] = []
    for method, rule in sorted(edge.access.items()):
        service = method.split(".")[1]
        if rule.anonymous and service in edge.services:
            compiled.append(
                {
                    "match": {"path": f"/{method}"},
                    "route": _to(service, UNARY_TIMEOUT),
                    "typed_per_filter_config": {
                        "envoy.filters.http.local_ratelimit": address_rates()
                    },
                }
            )
    streaming = {
        "name": "content-type",
        "string_match": {"safe_regex": {"regex": _STREAM}},
    }
    for prefix, service in _public_services(edge):
        # A stream lasts as long as both ends want; Envoy's timeout would cut it in the middle.
        stream_match = {"prefix": prefix, "headers": [streaming]}
        compiled.append(
            {"match": stream_match, "route": _to(service, "0s")},
        )
        compiled.append({"match": {"prefix": prefix}, "route": _to(service, UNARY_TIMEOUT)})
    rest = _to("gatewayd", UNARY_TIMEOUT)
    compiled.append({"match": {"path_separated_prefix": REST_PREFIX}, "route": rest})
    nowhere = _json_answer(404, "not_found", "There is no such method here.")
    compiled.append({"match": {"prefix": "/"}, "direct_response": nowhere})
    return compiled


def _without_our_gates() -> dict[str, Any]:
    """An application's requests carry its own credentials: ours are neither wanted nor read."""
    return {
        name: {"@type": _FILTER, "disabled": True}
        for name in (
            "envoy.filters.http.jwt_authn",
            "envoy.filters.http.rbac",
            "envoy.filters.http.local_ratelimit",
        )
    }


def _endpoint_host(edge: Edge, endpoint: Endpoint) -> dict[str, Any]:
    route: dict[str, Any] = {"match": {"prefix": "/"}}
    if endpoint.addresses:
        route["route"] = {
            "cluster": endpoint_cluster_name(endpoint),
            "timeout": "0s",
            "idle_timeout": "3600s",
            "retry_policy": _RETRIES,
            "upgrade_configs": [{"upgrade_type": "websocket"}],
        }
    else:
        route["direct_response"] = _json_answer(
            503, "unavailable", "No replica of this deployment answers at the moment."
        )
    return {
        "name": f"endpoint-{endpoint.host_label}",
        "domains": [f"{endpoint.host_label}.{edge.domain}"],
        "routes": [route],
        "typed_per_filter_config": _without_our_gates(),
    }


def compile_routes(edge: Edge) -> dict[str, Any]:
    """The route table."""
    unknown = _json_answer(404, "not_found", "There is no deployment at this address.")
    hosts = [_endpoint_host(edge, endpoint) for endpoint in edge.endpoints]
    hosts.append(
        {
            "name": "no-endpoint",
            "domains": [f"*.{edge.domain}"],
            "routes": [{"match": {"prefix": "/"}, "direct_response": unknown}],
            "typed_per_filter_config": _without_our_gates(),
        }
    )
    hosts.append(
        {
            "name": "api",
            "domains": [f"api.{edge.domain}", edge.domain, "*"],
            "routes": _api_routes(edge),
            "request_headers_to_remove": list(_FORGED_HEADERS),
        }
    )
    return {
        "@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        "name": ROUTES_NAME,
        "ignore_port_in_host_matching": True,
        "validate_clusters": False,
        "virtual_hosts": sorted(hosts, key=lambda host: str(host["name"])),
    }
