from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from joserfc.jwk import ECKey

from ironworks.model.errors import FailedPrecondition
from ironworks.runtime.identity.keys import (
    SERVICES,
    ensure_service_keys,
    load_private_key,
    private_key_path,
    services_trust_path,
    write_private,
)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_every_service_gets_a_key_that_only_its_owner_can_read(tmp_path: Path) -> None:
    ensure_service_keys(tmp_path)
    assert mode(tmp_path / "identity") == 0o700
    for service in SERVICES:
        path = private_key_path(tmp_path, service)
        assert mode(path) == 0o600
        assert load_private_key(path).is_private


def test_the_file_of_trust_has_all_public_keys_and_no_private_one(tmp_path: Path) -> None:
    ensure_service_keys(tmp_path)
    trust = json.loads(services_trust_path(tmp_path).read_bytes())
    assert set(trust) == set(SERVICES)
    for service, key in trust.items():
        assert "d" not in key
        own = load_private_key(private_key_path(tmp_path, service))
        assert own.as_dict(private=False)["x"] == key["x"]
    assert len({key["x"] for key in trust.values()}) == len(SERVICES)


def test_making_keys_again_changes_none_and_completes_what_is_missing(tmp_path: Path) -> None:
    ensure_service_keys(tmp_path)
    kept = private_key_path(tmp_path, "metald").read_bytes()
    lost = private_key_path(tmp_path, "billaged")
    before = lost.read_bytes()
    lost.unlink()
    services_trust_path(tmp_path).unlink()
    ensure_service_keys(tmp_path)
    assert private_key_path(tmp_path, "metald").read_bytes() == kept
    assert lost.read_bytes() != before
    assert set(json.loads(services_trust_path(tmp_path).read_bytes())) == set(SERVICES)


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"5",
        b"{}",
        b'{"kty": "EC"}',
        b'{"kty": "EC", "crv": "P-256", "x": "a", "y": "b"}',
        b'{"kty": "EC", "crv": "nope", "x": "a", "y": "b"}',
        b'{"kty": "EC", "crv": "P-256", "x": 1, "y": 2}',
        b'{"kty": "oct", "k": "AAAA"}',
    ],
)
def test_an_absent_or_damaged_key_is_said_with_what_to_do(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "metald.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FailedPrecondition, match=r"metald.json cannot be read.*iron up") as caught:
        load_private_key(path)
    assert str(tmp_path) not in str(caught.value)


def test_a_private_file_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "key.json"
    write_private(path, b"first, and longer")
    write_private(path, b"second")
    assert path.read_bytes() == b"second"
    assert [child.name for child in path.parent.iterdir()] == ["key.json"]


def test_a_key_round_trips_through_its_file(tmp_path: Path) -> None:
    key = ECKey.generate_key("P-256", private=True)
    write_private(tmp_path / "key", json.dumps(key.as_dict(private=True)).encode())
    assert (
        load_private_key(tmp_path / "key").as_dict(private=True)["d"]
        == key.as_dict(private=True)["d"]
    )
