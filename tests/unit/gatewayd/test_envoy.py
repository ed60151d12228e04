"""Envoy's configuration: what is compiled, what Envoy says to it, and its files."""

from __future__ import annotations

import asyncio
import http.server
import json
import re
import socketserver
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ironworks.gatewayd.envoy import clusters, configuration, listener, plane, rates, routes
from ironworks.gatewayd.envoy.certificates import (
    authority_path,
    ensure_certificate,
    read_certificate,
)
from ironworks.gatewayd.envoy.types import Edge
from ironworks.gatewayd.issuer import Issuer
from ironworks.gatewayd.types import Endpoint, TenantLimits
from ironworks.model.errors import DeadlineExceeded, FailedPrecondition, Unavailable
from ironworks.runtime.access import ACCESS, Access
from ironworks.runtime.clock import SystemClock, SystemEntropy
from ironworks.runtime.identity import SERVICES
from ironworks.testkit.clock import FakeClock

DOMAIN = "ironworks.localhost"
WEB = Endpoint(host_label="web-x", addresses=(("198.18.0.1", 80), ("198.18.0.2", 80)))
SILENT = Endpoint(host_label="silent-x", addresses=())


@pytest.fixture
def state(tmp_path: Path) -> Edge:
    certificate = ensure_certificate(tmp_path, DOMAIN, SystemClock())
    issuer = Issuer.open(tmp_path, "ironworks.local", SystemClock(), SystemEntropy())
    return Edge(
        directory=tmp_path,
        admin_socket=tmp_path / "envoy.sock",
        host="127.0.0.1",
        port=8443,
        domain=DOMAIN,
        issuer=issuer.name,
        jwks_json=issuer.jwks_json,
        certificate_pem=certificate.chain_pem,
        private_key_pem=certificate.private_key_pem,
        services={name: ("127.0.0.1", 8080 + place) for place, name in enumerate(SERVICES)},
        access=ACCESS,
        limits=TenantLimits(),
        tenant_limits={"tnt_x": TenantLimits(requests_per_second=5, request_burst=9)},
        endpoints=(SILENT, WEB),
    )


def hosts(edge: Edge) -> dict[str, Any]:
    return {host["name"]: host for host in routes.compile_routes(edge)["virtual_hosts"]}


# --- compile ------------------------------------------------------------------------------------


async def test_envoy_accepts_what_is_compiled(state: Edge) -> None:
    await plane.validate(state)
    await plane.validate(replace(state, endpoints=(), tenant_limits={}))
    assert not (state.directory / "validate.json").exists()


async def test_envoy_refuses_what_is_broken(state: Edge) -> None:
    with pytest.raises(FailedPrecondition) as error:
        await plane.validate(replace(state, private_key_pem="no key"))
    assert error.value.context["envoy"]


def test_the_same_state_compiles_to_the_same(state: Edge) -> None:
    assert configuration.compile_all(state) == configuration.compile_all(state)
    assert configuration.version(state) == configuration.version(replace(state))
    assert configuration.version(state) != configuration.version(replace(state, endpoints=()))
    before, after = (
        configuration.compile_all(state),
        configuration.compile_all(replace(state, endpoints=())),
    )
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"cds.json", "rds.json"}


def test_files_stand_after_what_they_refer_to(state: Edge) -> None:
    names = list(configuration.compile_all(state))
    assert names == ["cds.json", "rds.json", "lds.json", "bootstrap.json"]


def test_the_admin_interface_is_a_private_socket(state: Edge) -> None:
    pipe = configuration.bootstrap(state)["admin"]["address"]["pipe"]
    assert pipe == {"path": str(state.admin_socket), "mode": 0o600}


# --- routes -------------------------------------------------------------------------------------


def test_what_no_user_may_call_is_not_routed(state: Edge) -> None:
    only_service = {"ironworks.billaged.v1.MeterService/Stream": Access(services=frozenset({"x"}))}
    user = {"ironworks.metald.v1.VmService/GetVm": Access(roles=frozenset({"viewer"}))}
    api = hosts(replace(state, access={**only_service, **user}))["api"]["routes"]
    prefixes = {route["match"].get("prefix") for route in api}
    assert prefixes == {"/ironworks.metald.v1.VmService/", "/", None}


def test_streams_have_no_timeout_and_unary_calls_do(state: Edge) -> None:
    found = [
        route
        for route in hosts(state)["api"]["routes"]
        if route["match"].get("prefix") == "/ironworks.gatewayd.v1.JobService/"
    ]
    unary = routes.UNARY_TIMEOUT
    assert [route["route"]["timeout"] for route in found] == ["0s", unary, unary]
    assert [len(route["match"].get("headers", ())) for route in found] == [1, 1, 0]


def test_only_small_bodies_of_unary_calls_are_awaited(state: Edge) -> None:
    awaited = [
        route["match"]["headers"][0]
        for route in hosts(state)["api"]["routes"]
        if "envoy.filters.http.buffer" in route.get("typed_per_filter_config", {})
    ]
    assert awaited
    assert all(header["name"] == "content-length" for header in awaited)
    assert {header["range_match"]["end"] for header in awaited} == {routes.SMALL_BODY_BYTES + 1}


def test_grpc_is_told_what_the_api_speaks(state: Edge) -> None:
    first = hosts(state)["api"]["routes"][0]
    regex = first["match"]["headers"][0]["string_match"]["safe_regex"]["regex"]
    for kind, told in (
        ("application/grpc", True),
        ("application/grpc+proto", True),
        ("application/grpc-web", False),
        ("application/grpc-web+proto", False),
        ("application/connect+json", False),
        ("application/json", False),
    ):
        assert bool(re.fullmatch(regex, kind)) is told
    assert "gRPC-Web" in first["direct_response"]["body"]["inline_string"]


def test_endpoints_have_their_own_hosts_and_none_of_our_gates(state: Edge) -> None:
    web, silent = hosts(state)["endpoint-web-x"], hosts(state)["endpoint-silent-x"]
    assert web["domains"] == [f"web-x.{DOMAIN}"]
    assert web["routes"][0]["route"]["cluster"] == "endpoint-web-x"
    assert silent["routes"][0]["direct_response"]["status"] == 503
    disabled = web["typed_per_filter_config"]
    assert all(gate["disabled"] for gate in disabled.values())
    assert "envoy.filters.http.jwt_authn" in disabled
    api = hosts(state)["api"]
    assert "typed_per_filter_config" not in api
    unknown = hosts(state)["no-endpoint"]
    assert unknown["domains"] == [f"*.{DOMAIN}"]
    assert unknown["routes"][0]["direct_response"]["status"] == 404


# --- clusters -----------------------------------------------------------------------------------


def test_a_cluster_for_each_service_and_each_endpoint_that_answers(state: Edge) -> None:
    names = [cluster["name"] for cluster in clusters.compile_clusters(state)]
    assert names == sorted(["endpoint-web-x", *(f"service-{name}" for name in SERVICES)])
    for cluster in clusters.compile_clusters(state):
        assert cluster["common_lb_config"]["healthy_panic_threshold"] == {"value": 0}
        assert cluster["outlier_detection"]["max_ejection_percent"] == 100
        assert cluster["type"] == "STATIC"
    named = replace(state, services={"metald": ("metald.internal", 80)}, endpoints=())
    assert clusters.compile_clusters(named)[0]["type"] == "STRICT_DNS"


# --- rates --------------------------------------------------------------------------------------


def test_every_tenant_has_a_bucket_and_some_their_own(state: Edge) -> None:
    compiled = rates.tenant_rates(state)
    own, default = compiled["descriptors"]
    assert own["entries"] == [{"key": "tenant", "value": "tnt_x"}]
    assert own["token_bucket"]["max_tokens"] == 9
    assert default["entries"] == [{"key": "tenant"}]
    assert compiled["max_dynamic_descriptors"] == rates.MAX_BUCKETS
    by_address = rates.address_rates()["descriptors"]
    assert by_address[0]["entries"] == [{"key": "remote_address"}]


# --- listener -----------------------------------------------------------------------------------


def filters(edge: Edge) -> dict[str, Any]:
    compiled = listener.compile_listener(edge, {})
    manager = compiled["filter_chains"][0]["filters"][0]["typed_config"]
    return {one["name"].rpartition(".")[2]: one["typed_config"] for one in manager["http_filters"]}


def test_filters_stand_in_order(state: Edge) -> None:
    order = ["header_mutation", "buffer", "jwt_authn", "rbac", "local_ratelimit", "router"]
    assert list(filters(state)) == order


def test_tokens_are_needed_everywhere_but_where_none_can_be_had(state: Edge) -> None:
    *open_rules, last = filters(state)["jwt_authn"]["rules"]
    assert [rule["match"]["path"] for rule in open_rules] == [
        "/ironworks.gatewayd.v1.TokenService/ExchangeToken",
        "/ironworks.gatewayd.v1.TokenService/GetJwks",
    ]
    assert last == {"match": {"prefix": "/"}, "requires": {"provider_name": "ironworks"}}


# --- certificates -------------------------------------------------------------------------------


def test_the_leaf_serves_its_names_and_is_renewed_in_time(tmp_path: Path) -> None:
    clock = FakeClock(SystemClock().now_ns())
    first = ensure_certificate(tmp_path, DOMAIN, clock)
    assert ensure_certificate(tmp_path, DOMAIN, clock) == first
    leaf = x509.load_pem_x509_certificate(first.chain_pem.encode())
    authority = x509.load_pem_x509_certificate(authority_path(tmp_path).read_bytes())
    leaf.verify_directly_issued_by(authority)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", DOMAIN, f"*.{DOMAIN}"]
    assert (tmp_path / "tls" / "ca.key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "tls" / "edge.pem").stat().st_mode & 0o777 == 0o600
    clock.jump(366 * 86_400)
    assert ensure_certificate(tmp_path, DOMAIN, clock) == first
    clock.jump(2 * 86_400)
    renewed = ensure_certificate(tmp_path, DOMAIN, clock)
    assert renewed != first
    assert ensure_certificate(tmp_path, "other.example", clock) != renewed
    assert authority_path(tmp_path).read_bytes() == authority.public_bytes(encoding=_pem_encoding())


def _pem_encoding() -> Any:

    return Encoding.PEM


def test_a_damaged_leaf_is_replaced(tmp_path: Path) -> None:
    ensure_certificate(tmp_path, DOMAIN, SystemClock())
    (tmp_path / "tls" / "edge.pem").write_text("garbage")
    certificate = ensure_certificate(tmp_path, DOMAIN, SystemClock())
    assert certificate.private_key_pem.startswith("-----BEGIN PRIVATE KEY-----")


def test_an_operators_certificate_must_fit_its_key(tmp_path: Path) -> None:
    one = ensure_certificate(tmp_path / "one", DOMAIN, SystemClock())
    two = ensure_certificate(tmp_path / "two", DOMAIN, SystemClock())
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_text(one.chain_pem)
    key.write_text(one.private_key_pem)
    assert read_certificate(chain, key) == one
    key.write_text(two.private_key_pem)
    with pytest.raises(FailedPrecondition, match="does not belong"):
        read_certificate(chain, key)
    with pytest.raises(FailedPrecondition, match="cannot be read"):
        read_certificate(chain, tmp_path / "absent")


# --- plane --------------------------------------------------------------------------------------


class _Admin(http.server.BaseHTTPRequestHandler):
    versions: Mapping[str, str] = {"cds.json": "", "rds.json": "", "lds.json": ""}
    state = "LIVE"

    def do_GET(self) -> None:
        text = self.state + "\n"
        if self.path.startswith("/stats"):
            text = (
                f'cluster_manager.cds.version_text: "{self.versions["cds.json"]}"\n'
                f'http.edge.rds.edge.version_text: "{self.versions["rds.json"]}"\n'
                f'listener_manager.lds.version_text: "{self.versions["lds.json"]}"\n'
            )
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Say nothing."""

    def address_string(self) -> str:
        return "socket"


@contextmanager
def admin(path: Path) -> Generator[type[_Admin]]:
    """Envoy's admin interface, as far as the plane asks it."""

    class Handler(_Admin):
        pass

    with socketserver.ThreadingUnixStreamServer(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Handler
        server.shutdown()
        thread.join()


async def test_files_are_written_once_and_applied_when_envoy_says_so(
    state: Edge, tmp_path: Path
) -> None:
    data = plane.Plane(directory=tmp_path, admin=state.admin_socket, clock=SystemClock())
    assert await data.stale() == ["cds.json", "rds.json", "lds.json"]
    (tmp_path / ".rds.json.1").touch()
    data.sweep()
    assert not (tmp_path / ".rds.json.1").exists()
    written = data.write(state)
    paths = [tmp_path / name for name in written.versions]
    assert {path.stat().st_mode & 0o777 for path in paths} == {0o600}
    stamps = {path: path.stat().st_ino for path in paths}
    data.write(state)
    assert {path: path.stat().st_ino for path in paths} == stamps
    assert data.bootstrap_path in paths
    with admin(state.admin_socket) as envoy:
        assert await data.why_not_ready() != ""
        with pytest.raises(DeadlineExceeded):
            await data.wait_applied(0.05)
        envoy.versions = {**written.versions, "lds.json": "older"}
        await data.wait_applied(5)
        assert "listener" in await data.why_not_ready()
        envoy.versions = {**written.versions, "rds.json": "older"}
        assert "routes" in await data.why_not_ready()
        envoy.versions = written.versions
        assert await data.why_not_ready() == ""
        envoy.state = "DRAINING"
        assert "draining" in await data.why_not_ready()
    assert "admin socket" in await data.why_not_ready()
    with pytest.raises(Unavailable):
        await data.stale()


def test_a_path_too_long_for_a_socket_is_refused() -> None:
    assert plane.admin_socket(Path("/var/lib/ironworks")).name == "envoy.sock"
    with pytest.raises(FailedPrecondition, match="too long"):
        plane.admin_socket(Path("/") / ("x" * 100))


def test_the_command_names_the_bootstrap() -> None:
    argv = plane.envoy_argv(Path("/b.json"), 2)
    assert argv[1:5] == ["--config-path", "/b.json", "--concurrency", "2"]
    assert Path(argv[0]).exists()


async def test_written_files_are_json(state: Edge, tmp_path: Path) -> None:
    plane.Plane(directory=tmp_path, admin=state.admin_socket, clock=SystemClock()).write(state)
    for name in ("cds.json", "rds.json", "lds.json", "bootstrap.json"):
        json.loads(await asyncio.to_thread((tmp_path / name).read_bytes))
