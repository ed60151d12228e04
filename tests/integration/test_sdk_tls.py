"""HTTPS with the platform's own CA: trusted when it is given, refused in a sentence when not."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import socket
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from granian.constants import HTTPModes, Interfaces
from granian.server.embed import Server

from ironworks.gen.ironworks.gatewayd.v1 import tokens_pb
from ironworks.model.errors import FailedPrecondition, InvalidRequest
from ironworks.runtime.tasks import Tasks
from ironworks.sdk import AsyncIronworks
from ironworks.sdk.configuration import config_file, discover, save

BEGIN = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
END = dt.datetime(2120, 1, 1, tzinfo=dt.UTC)


def name_of(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> Path:
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.write_bytes(pem)
    return path


def write_certificates(directory: Path) -> None:
    """`ca.pem`, and `server.pem` with `server.key` for loopback and endpoints."""
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    builder = x509.CertificateBuilder().not_valid_before(BEGIN).not_valid_after(END)
    ca = (
        builder.subject_name(name_of("Test CA"))
        .issuer_name(name_of("Test CA"))
        .public_key(ca_key.public_key())
        .serial_number(1)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    names = x509.SubjectAlternativeName(
        [
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
            x509.DNSName("*.ironworks.localhost"),
        ]
    )
    leaf = (
        builder.subject_name(name_of("Edge"))
        .issuer_name(name_of("Test CA"))
        .public_key(key.public_key())
        .serial_number(2)
        .add_extension(names, critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    (directory / "ca.pem").write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    (directory / "server.pem").write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
    write_key(directory / "server.key", key)


async def edge(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answers calls as the gateway does, and everything else as an endpoint would."""
    if scope["type"] != "http":
        return
    body, kind = f"{scope['http_version']} {scope['path']}".encode(), b"text/plain"
    if scope["path"].endswith("/ExchangeToken"):
        answer = tokens_pb.ExchangeTokenResponse(token="t", expires_at_ns=0)
        body, kind = answer.to_binary(), b"application/proto"
    elif scope["path"].endswith("/WhoAmI"):
        body = tokens_pb.WhoAmIResponse(subject=f"over {scope['http_version']}").to_binary()
        kind = b"application/proto"
    headers = [(b"content-type", kind)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[int]:
    write_certificates(tmp_path)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        server = Server(
            edge,
            address="127.0.0.1",
            port=port,
            interface=Interfaces.ASGINL,
            http=HTTPModes.auto,
            websockets=False,
            log_enabled=False,
            ssl_cert=tmp_path / "server.pem",
            ssl_key=tmp_path / "server.key",
        )
    async with Tasks() as tasks:
        serving = tasks.start(server.serve(), name="edge")
        for _ in range(500):
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.01)
            else:
                writer.close()
                break
        yield port
        server.stop()
        await asyncio.wait({serving}, timeout=5)


async def test_calls_and_endpoints_trust_the_platforms_ca_and_speak_http2(
    port: int, tmp_path: Path
) -> None:
    async with AsyncIronworks(f"https://127.0.0.1:{port}", "iwk_x", tmp_path / "ca.pem") as client:
        assert (await client.tenants.whoami()).subject == "over 2"
        endpoint = f"https://web-0123456789.ironworks.localhost:{port}/"
        answer = await client.endpoint_get(endpoint, "/page?a=b")
        assert (answer.status, answer.text) == (200, "2 /page")


async def test_another_ca_is_refused_in_a_sentence_and_not_tried_again(
    port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    async with AsyncIronworks(f"https://127.0.0.1:{port}", "iwk_x") as client:
        with pytest.raises(FailedPrecondition, match="--ca-file"):
            await client.tenants.whoami()


async def test_a_certificate_for_another_name_is_refused(port: int, tmp_path: Path) -> None:
    async with AsyncIronworks(f"https://localhost:{port}", "iwk_x", tmp_path / "ca.pem") as client:
        with pytest.raises(FailedPrecondition, match="certificate"):
            await client.tenants.whoami()


async def test_a_ca_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    async with AsyncIronworks("https://127.0.0.1:9", "iwk_x", tmp_path / "no.pem") as client:
        with pytest.raises(InvalidRequest, match=r"no\.pem cannot be read"):
            await client.tenants.whoami()


def test_a_saved_configuration_keeps_its_ca(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "IRONWORKS_DATA_DIR": str(tmp_path / "none")}
    given = discover("https://127.0.0.1:1", "iwk_x", tmp_path / "ca.pem", environ=environ)
    save(given, config_file(environ))
    assert discover(environ=environ) == given
