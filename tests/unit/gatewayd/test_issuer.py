from __future__ import annotations

import json
from pathlib import Path

import pytest

from ironworks.gatewayd import issuer
from ironworks.gatewayd.types import ApiKey
from ironworks.model.errors import FailedPrecondition, Unauthenticated
from ironworks.model.ids import derived_id
from ironworks.model.units import NS_PER_SECOND
from ironworks.runtime.identity import Verifier
from ironworks.testkit.clock import FakeClock, FakeEntropy

TENANT_ID = derived_id("tnt", "one")
KEY = ApiKey(
    api_key_id=derived_id("key", "one"),
    tenant_id=TENANT_ID,
    name="one",
    roles=("developer", "viewer"),
    hint="",
    created_at_ns=0,
    expires_at_ns=0,
    revoked_at_ns=0,
    last_used_at_ns=0,
)


def opened(path: Path, clock: FakeClock) -> issuer.Issuer:
    return issuer.Issuer.open(path, "ironworks.local", clock, FakeEntropy())


def test_secrets_are_long_and_their_own() -> None:
    entropy = FakeEntropy()
    one, two = issuer.new_secret(entropy), issuer.new_secret(entropy)
    assert one != two
    assert len(one) == 47
    assert one.startswith("iwk_")
    assert one[4:].isalnum()
    assert issuer.hash_of(one) != issuer.hash_of(two)
    assert issuer.hint_of(one) == one[:10]


async def test_every_service_verifies_what_the_issuer_signs(tmp_path: Path) -> None:
    clock = FakeClock()
    token, expires_at_ns = opened(tmp_path, clock).token(KEY)
    verifier = Verifier(
        service="metald", data_dir=tmp_path, trust_domain="ironworks.local", clock=clock
    )
    caller = verifier.verify(token)
    assert (caller.kind, caller.tenant_id) == ("user", TENANT_ID)
    assert caller.roles == {"developer", "viewer"}
    assert expires_at_ns == clock.now_ns() + 600 * NS_PER_SECOND
    await clock.advance(600)
    with pytest.raises(Unauthenticated):
        verifier.verify(token)


def test_the_key_is_kept_and_private(tmp_path: Path) -> None:
    clock = FakeClock()
    first = opened(tmp_path, clock)
    path = tmp_path / "gatewayd" / "issuer.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert opened(tmp_path, clock).jwks_json == first.jwks_json
    published = json.loads((tmp_path / "run" / "trust" / "users.json").read_bytes())
    assert published == json.loads(first.jwks_json)
    assert "d" not in published["keys"][0]
    path.write_text("{")
    with pytest.raises(FailedPrecondition):
        opened(tmp_path, clock)
