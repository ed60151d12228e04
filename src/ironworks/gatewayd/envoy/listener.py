"""The listener: TLS, then for the API: tokens, roles, rate limits. Pure.

Order of the filters, each sees only what the one before let through: forged headers are removed,
a small body is awaited, the token is verified (401), its roles are compared with the access table
(403), its tenant's bucket is drained (429), the request is routed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ironworks.gatewayd.envoy.rates import tenant_rates
from ironworks.gatewayd.envoy.routes import REST_PREFIX, ROUTES_NAME, SMALL_BODY_BYTES
from ironworks.gatewayd.envoy.types import Edge
from ironworks.runtime.identity.tokens import CLOCK_SKEW_SECONDS, USER_AUDIENCE

REST_METHODS = {
    f"{REST_PREFIX}/deployments": "ironworks.gatewayd.v1.DeploymentService/CreateDeployment",
    f"{REST_PREFIX}/jobs": "ironworks.gatewayd.v1.JobService/GetJob",
}
"""Plain HTTP paths → the method whose roles they need; gatewayd decides by the method again."""

_EXT = "type.googleapis.com/envoy.extensions"
_FILTERS = f"{_EXT}.filters.http"
_UNAVAILABLE = 503
_ANSWERS = (
    (401, "unauthenticated", "This call needs a valid token. Exchange an API key for a new one."),
    (403, "permission_denied", "The roles of this credential do not allow this method."),
    (429, "resource_exhausted", "Too many requests. Wait a second, then repeat the call."),
    (
        _UNAVAILABLE,
        "unavailable",
        "The service behind this call is not reachable. Repeat the call later.",
    ),
    (504, "deadline_exceeded", "The service behind this call did not answer in time."),
)


def _typed(kind: str, **fields: object) -> dict[str, Any]:
    return {"@type": kind, **fields}


def _filter_of(name: str, typed: dict[str, Any]) -> dict[str, Any]:
    return {"name": f"envoy.filters.http.{name}", "typed_config": typed}


def _filter(name: str, kind: str, **fields: object) -> dict[str, Any]:
    return _filter_of(name, _typed(f"{_FILTERS}.{kind}", **fields))


def _remove_forged() -> dict[str, Any]:
    """`x-ironworks-…` is ours: whatever a client sends under it is a forgery."""
    remove = {"remove_on_match": {"key_matcher": {"prefix": "x-ironworks-"}}}
    return _filter(
        "header_mutation",
        "header_mutation.v3.HeaderMutation",
        mutations={"request_mutations": [remove]},
    )


def _whole_body() -> dict[str, Any]:
    """A body is read before a call is judged; see `routes.SMALL_BODY_BYTES`."""
    return _typed(f"{_FILTERS}.buffer.v3.Buffer", max_request_bytes=SMALL_BODY_BYTES)


def _tokens(edge: Edge) -> dict[str, Any]:
    anonymous = [
        {"match": {"path": f"/{method}"}}
        for method, rule in sorted(edge.access.items())
        if rule.anonymous
    ]
    provider = {
        "issuer": edge.issuer,
        "audiences": [USER_AUDIENCE],
        "local_jwks": {"inline_string": edge.jwks_json},
        "from_headers": [{"name": "authorization", "value_prefix": "Bearer "}],
        # The service behind verifies the token again, so it must get it.
        "forward": True,
        "payload_in_metadata": "claims",
        "require_expiration": True,
        "clock_skew_seconds": CLOCK_SKEW_SECONDS,
    }
    needed = {"match": {"prefix": "/"}, "requires": {"provider_name": "ironworks"}}
    return _filter(
        "jwt_authn",
        "jwt_authn.v3.JwtAuthentication",
        providers={"ironworks": provider},
        rules=[*anonymous, needed],
    )


def _has_role(role: str) -> dict[str, Any]:
    matcher = {
        "filter": "envoy.filters.http.jwt_authn",
        "path": [{"key": "claims"}, {"key": "roles"}],
        "value": {"list_match": {"one_of": {"string_match": {"exact": role}}}},
    }
    return {"sourced_metadata": {"metadata_matcher": matcher, "metadata_source": "DYNAMIC"}}


def _on_paths(paths: Iterable[str]) -> list[dict[str, Any]]:
    return [{"url_path": {"path": {"exact": path}}} for path in sorted(paths)]


def _roles(edge: Edge) -> dict[str, Any]:
    """One policy for each set of roles: the paths that it opens, and who may take them."""
    by_roles: dict[tuple[str, ...], set[str]] = {}
    anonymous: set[str] = set()
    for method, rule in edge.access.items():
        if rule.anonymous:
            anonymous.add(f"/{method}")
        elif rule.roles:
            by_roles.setdefault(tuple(sorted(rule.roles)), set()).add(f"/{method}")
    policies: dict[str, Any] = {
        "anonymous": {
            "permissions": [{"or_rules": {"rules": _on_paths(anonymous)}}],
            "principals": [{"any": True}],
        }
    }
    for roles, paths in sorted(by_roles.items()):
        policies["-".join(roles)] = {
            "permissions": [{"or_rules": {"rules": _on_paths(paths)}}],
            "principals": [{"or_ids": {"ids": [_has_role(role) for role in roles]}}],
        }
    for path, method in REST_METHODS.items():
        if method in edge.access:
            roles = sorted(edge.access[method].roles | {"viewer", "operator"})
            policies[f"rest{path.replace('/', '-')}"] = {
                "permissions": [{"url_path": {"path": {"prefix": path}}}],
                "principals": [{"or_ids": {"ids": [_has_role(role) for role in roles]}}],
            }
    return _filter("rbac", "rbac.v3.RBAC", rules={"action": "ALLOW", "policies": policies})


def _answers() -> dict[str, Any]:
    """What Envoy itself answers, in the form that every other error of the API has."""
    mappers: list[dict[str, Any]] = []
    for status, code, message in _ANSWERS:
        value = {"default_value": status, "runtime_key": f"edge.answer_{status}"}
        found: dict[str, Any] = {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}
        if status == _UNAVAILABLE:
            # Only what Envoy met with on its way: a route that answers 503 says itself why.
            found = {"and_filter": {"filters": [found, {"response_flag_filter": {}}]}}
        mappers.append(
            {
                "filter": found,
                "body_format_override": {"json_format": {"code": code, "message": message}},
            }
        )
    return {"mappers": mappers}


def _access_log() -> list[dict[str, Any]]:
    """Failures of ours, a line of JSON each, without addresses' query and without credentials."""
    line = {
        "event": "edge_request",
        "at": "%START_TIME%",
        "method": "%REQ(:METHOD)%",
        "path": "%PATH(NQ)%",
        "host": "%REQ(:AUTHORITY)%",
        "status": "%RESPONSE_CODE%",
        "flags": "%RESPONSE_FLAGS%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "milliseconds": "%DURATION%",
        "request_id": "%REQ(X-REQUEST-ID)%",
    }
    value = {"default_value": 500, "runtime_key": "edge.log_from_status"}
    return [
        {
            "name": "envoy.access_loggers.stderr",
            "filter": {"status_code_filter": {"comparison": {"op": "GE", "value": value}}},
            "typed_config": _typed(
                f"{_EXT}.access_loggers.stream.v3.StderrAccessLog",
                log_format={"json_format": line},
            ),
        }
    ]


def _connection_manager(edge: Edge, rds: dict[str, Any]) -> dict[str, Any]:
    return _typed(
        f"{_EXT}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="edge",
        codec_type="AUTO",
        rds={"route_config_name": ROUTES_NAME, "config_source": rds},
        http_filters=[
            _remove_forged(),
            # Only on the routes that ask for it.
            {"name": "envoy.filters.http.buffer", "disabled": True, "typed_config": _whole_body()},
            _tokens(edge),
            _roles(edge),
            _filter_of("local_ratelimit", tenant_rates(edge)),
            _filter("router", "router.v3.Router"),
        ],
        # The address that we see is the client's: what it says of itself is not believed.
        use_remote_address=True,
        server_name="ironworks",
        generate_request_id=True,
        # The SDK's id is in the client's hands and in our logs; services check its form.
        preserve_external_request_id=True,
        always_set_request_id_in_response=True,
        normalize_path=True,
        common_http_protocol_options={
            "idle_timeout": "3600s",
            # Some servers take `x_user` for `x-user`; whose application wants one is not refused.
            "headers_with_underscores_action": "DROP_HEADER",
        },
        http2_protocol_options={"max_concurrent_streams": 1000},
        stream_idle_timeout="3600s",
        request_headers_timeout="30s",
        local_reply_config=_answers(),
        access_log=_access_log(),
    )


def compile_listener(edge: Edge, rds: dict[str, Any]) -> dict[str, Any]:
    """The one listener.

    Args:
        edge: The state.
        rds: Where the routes are read from.
    """
    certificate = {
        "certificate_chain": {"inline_string": edge.certificate_pem},
        "private_key": {"inline_string": edge.private_key_pem},
    }
    tls = _typed(
        f"{_EXT}.transport_sockets.tls.v3.DownstreamTlsContext",
        common_tls_context={
            "alpn_protocols": ["h2", "http/1.1"],
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
            "tls_certificates": [certificate],
        },
    )
    manager = {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": _connection_manager(edge, rds),
    }
    return {
        "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
        "name": "edge",
        "address": {"socket_address": {"address": edge.host, "port_value": edge.port}},
        # By default two Envoys can share a port, and each gets some of the other's connections: a
        # second platform on this machine must fail to bind, not answer for the first.
        "enable_reuse_port": False,
        "per_connection_buffer_limit_bytes": 1024 * 1024,
        "filter_chains": [
            {
                "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
                "filters": [manager],
            }
        ],
    }
