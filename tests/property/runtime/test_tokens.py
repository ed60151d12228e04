"""No bytes that anyone can send make the verifier do anything but refuse."""

from __future__ import annotations

import base64
import json
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from ironworks.model.errors import Unauthenticated
from ironworks.runtime.identity import ServiceSigner, Verifier, ensure_service_keys
from ironworks.testkit.clock import FakeClock

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)
    ),
    max_leaves=6,
)
HEADERS = st.dictionaries(
    st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jwk", "jku", "x5c", "zip", "enc"]),
    st.one_of(JSON, st.sampled_from(["ES256", "none", "HS256", "RS256", "1"])),
)
CLAIMS = st.dictionaries(
    st.sampled_from(["iss", "sub", "aud", "iat", "exp", "tenant", "roles"]),
    st.one_of(
        JSON,
        st.sampled_from(["spiffe://d/service/gatewayd", "https://d", "metald", "ironworks"]),
    ),
)


def verifier() -> tuple[Verifier, ServiceSigner]:
    data_dir = Path(tempfile.mkdtemp(prefix="iw-test-"))
    ensure_service_keys(data_dir)
    clock = FakeClock()
    return (
        Verifier(service="metald", data_dir=data_dir, trust_domain="d", clock=clock),
        ServiceSigner.load(data_dir, "gatewayd", "d", clock),
    )


VERIFIER, SIGNER = verifier()


def b64(content: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")


def is_refused(token: str) -> bool:
    try:
        VERIFIER.verify(token)
    except Unauthenticated:
        return True
    return False


@given(st.text(max_size=200))
def test_text_is_refused(text: str) -> None:
    assert is_refused(text)


@given(st.one_of(HEADERS, JSON), st.one_of(CLAIMS, JSON), st.binary(max_size=80))
def test_whatever_is_not_signed_is_refused(header: object, claims: object, mac: bytes) -> None:
    signature = base64.urlsafe_b64encode(mac).decode().rstrip("=")
    assert is_refused(f"{b64(header)}.{b64(claims)}.{signature}")


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_token_with_any_byte_changed_is_refused(position: int, change: int) -> None:
    parts = [
        bytearray(base64.urlsafe_b64decode(part + "=="))
        for part in SIGNER.token("metald").split(".")
    ]
    part = parts[position % 3]
    part[position % len(part)] ^= change
    changed = ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)
    assert is_refused(changed)
