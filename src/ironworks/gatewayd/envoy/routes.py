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
SMALL_BODY_BYTES = 65536
"""Bodies announced as no larger are read whole before a call is judged. An answer that overtakes
the body is followed by a reset of the stream, as HTTP/2 has it, which Debian 12's curl takes for a
failure of the call."""
_STREAM = r"application/(connect\+|grpc).*"
_GRPC = r"application/grpc(\+.*)?"
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
    """What a route says that answers by itself."""
    body = json.dumps({"code": code, "message": message})
    header = {"key": "content-type", "value": "application/json"}
    overwrite = "OVERWRITE_IF_EXISTS_OR_ADD"
    return {
        "direct_response": {"status": status, "body": {"inline_string": body}},
        "response_headers_to_add": [{"header": header, "append_action": overwrite}],
    }


def _with_content_type(regex: str) -> dict[str, Any]:
    return {"name": "content-type", "string_match": {"safe_regex": {"regex": regex}}}


def _unary(
    match: dict[str, Any], route: dict[str, Any], filters: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Routes of calls with one message: of small ones, and of all others."""
    buffer = {
        "@type": _FILTER,
        "config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.buffer.v3.BufferPerRoute",
            "buffer": {"max_request_bytes": SMALL_BODY_BYTES},
        },
    }
    small = {"name": "content-length", "range_match": {"start": 0, "end": SMALL_BODY_BYTES + 1}}
    gates = filters or {}
    return [
        {
            "match": {**match, "headers": [small]},
            "route": route,
            "typed_per_filter_config": {**gates, "envoy.filters.http.buffer": buffer},
        },
        {"match": match, "route": route, "typed_per_filter_config": gates},
    ]


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
    no_grpc = _json_answer(
        404,
        "unimplemented",
        "This API speaks Connect and gRPC-Web, not gRPC: choose one of them in your client.",
    )
    grpc = {"prefix": "/", "headers": [_with_content_type(_GRPC)]}
    compiled: list[dict[str, Any]] = [{"match": grpc, **no_grpc}]
    for method, rule in sorted(edge.access.items()):
        service = method.split(".")[1]
        if rule.anonymous and service in edge.services:
            gate = {"envoy.filters.http.local_ratelimit": address_rates()}
            compiled += _unary({"path": f"/{method}"}, _to(service, UNARY_TIMEOUT), gate)
    for prefix, service in _public_services(edge):
        # A stream lasts as long as both ends want; Envoy's timeout would cut it in the middle.
        stream_match = {"prefix": prefix, "headers": [_with_content_type(_STREAM)]}
        compiled.append(
            {"match": stream_match, "route": _to(service, "0s")},
        )
        compiled += _unary({"prefix": prefix}, _to(service, UNARY_TIMEOUT))
    compiled += _unary({"path_separated_prefix": REST_PREFIX}, _to("gatewayd", UNARY_TIMEOUT))
    nowhere = _json_answer(404, "not_found", "There is no such method here.")
    compiled.append({"match": {"prefix": "/"}, **nowhere})
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
        route |= _json_answer(
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
            "routes": [{"match": {"prefix": "/"}, **unknown}],
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
