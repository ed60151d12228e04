from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from joserfc import jws, jwt
from joserfc.jwk import ECKey, KeySet

from ironworks.model.errors import Unauthenticated
from ironworks.runtime.identity import tokens
from ironworks.runtime.identity.caller import Caller
from ironworks.runtime.identity.keys import (
    ensure_host_key,
    ensure_service_keys,
    load_private_key,
    private_key_path,
    services_trust_path,
    users_trust_path,
    write_private,
)
from ironworks.runtime.identity.tokens import ServiceSigner, Verifier
from ironworks.testkit.clock import FakeClock

DOMAIN = "test.local"


def b64(content: object) -> str:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


@dataclass(frozen=True)
class World:
    """A platform's keys on disk, metald's verifier, and the issuer of user tokens."""

    data_dir: Path
    clock: FakeClock
    verifier: Verifier
    issuer_key: ECKey

    def signer(self, service: str) -> ServiceSigner:
        return ServiceSigner.load(self.data_dir, service, DOMAIN, self.clock)

    def service_key(self, service: str) -> ECKey:
        return load_private_key(private_key_path(self.data_dir, service))

    def trust_users(self, *keys: ECKey) -> None:
        jwks = KeySet(list(keys)).as_dict(private=False)
        write_private(users_trust_path(self.data_dir), json.dumps(jwks).encode())

    def claims(self, **changes: object) -> dict[str, object]:
        now_seconds = self.clock.now_ns() // 10**9
        claims: dict[str, object] = {
            "iss": f"https://{DOMAIN}",
            "sub": "key_1",
            "aud": "ironworks",
            "iat": now_seconds,
            "exp": now_seconds + 600,
            "tenant": "tnt_1",
            "roles": ["developer"],
        }
        claims.update(changes)
        return {name: value for name, value in claims.items() if value is not None}

    def user_token(self, **changes: object) -> str:
        kid = self.issuer_key.kid
        return jwt.encode({"alg": "ES256", "kid": kid}, self.claims(**changes), self.issuer_key)


@pytest.fixture
def world(tmp_path: Path) -> World:
    ensure_service_keys(tmp_path)
    clock = FakeClock()
    verifier = Verifier(service="metald", data_dir=tmp_path, trust_domain=DOMAIN, clock=clock)
    issuer_key = new_key("1")
    world = World(data_dir=tmp_path, clock=clock, verifier=verifier, issuer_key=issuer_key)
    world.trust_users(issuer_key)
    return world


def new_key(kid: str) -> ECKey:
    return ECKey.generate_key("P-256", {"kid": kid}, private=True)


def refused(world: World, token: str) -> bool:
    with pytest.raises(Unauthenticated):
        world.verifier.verify(token)
    return True


def test_a_service_token_proves_the_service_and_the_tenant_it_acts_for(world: World) -> None:
    signer = world.signer("gatewayd")
    assert world.verifier.verify(signer.token("metald")) == Caller(
        kind="service", subject="gatewayd"
    )
    assert world.verifier.verify(signer.token("metald", "tnt_1")).tenant_id == "tnt_1"


def test_a_user_token_proves_subject_tenant_and_roles(world: World) -> None:
    assert world.verifier.verify(world.user_token()) == Caller(
        kind="user", subject="key_1", tenant_id="tnt_1", roles=frozenset({"developer"})
    )


def test_a_token_without_tenant_or_roles_gives_none(world: World) -> None:
    caller = world.verifier.verify(world.user_token(tenant=None, roles=None))
    assert (caller.tenant_id, caller.roles) == (None, frozenset())
    assert world.verifier.verify(world.user_token(roles="operator")).roles == frozenset()
    assert world.verifier.verify(world.user_token(tenant=["tnt_1"])).tenant_id is None


async def test_a_token_ends_when_it_says_also_if_it_was_verified_before(world: World) -> None:
    service, user = world.signer("gatewayd").token("metald"), world.user_token()
    await world.clock.advance(59)
    world.verifier.verify(service)
    await world.clock.advance(1)
    refused(world, service)
    await world.clock.advance(539)
    world.verifier.verify(user)
    await world.clock.advance(1)
    refused(world, user)


def test_a_token_from_the_future_is_refused_but_for_a_little_skew(world: World) -> None:
    token = world.signer("gatewayd").token("metald")
    world.clock.jump(-5)
    world.verifier.verify(token)
    world.clock.jump(-1)
    refused(world, token)


def test_no_token_is_refused_with_what_to_do(world: World) -> None:
    with pytest.raises(Unauthenticated, match="API key"):
        world.verifier.verify("")


@pytest.mark.parametrize("audience", ["builderd", "", "ironworks", ["metald"], None, "METALD"])
def test_a_service_token_for_anyone_else_is_refused(world: World, audience: object) -> None:
    issuer = f"spiffe://{DOMAIN}/service/gatewayd"
    claims = world.claims(iss=issuer, aud=audience)
    refused(world, jwt.encode({"alg": "ES256"}, claims, world.service_key("gatewayd")))


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "metald"},
        {"aud": None},
        {"iat": None},
        {"exp": None},
        {"exp": "9999999999"},
        {"exp": 9999999999.5},
        {"iss": "https://elsewhere"},
        {"iss": None},
        {"iss": 7},
        {"iss": f"https://{DOMAIN}/"},
    ],
)
def test_a_user_token_with_other_claims_than_ours_is_refused(
    world: World, changes: dict[str, object]
) -> None:
    world.verifier.verify(world.user_token())
    claims = world.claims() | {name: value for name, value in changes.items() if value is not None}
    for name in (name for name, value in changes.items() if value is None):
        del claims[name]
    refused(world, signed_raw({"alg": "ES256", "kid": "1"}, claims, world.issuer_key))


def signed_raw(header: dict[str, object], claims: object, key: ECKey) -> str:
    """Signed as it is: the library would refuse to make some of these."""
    payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    return jws.serialize_compact(header, payload, key)


def test_one_service_cannot_speak_as_another(world: World) -> None:
    issuer = f"spiffe://{DOMAIN}/service/gatewayd"
    claims = world.claims(iss=issuer, sub=issuer, aud="metald")
    refused(world, jwt.encode({"alg": "ES256"}, claims, world.service_key("billaged")))


def test_a_service_cannot_make_user_tokens_nor_the_issuer_service_tokens(world: World) -> None:
    key = world.service_key("gatewayd")
    refused(world, jwt.encode({"alg": "ES256", "kid": "1"}, world.claims(), key))
    issuer = f"spiffe://{DOMAIN}/service/gatewayd"
    claims = world.claims(iss=issuer, aud="metald")
    refused(world, jwt.encode({"alg": "ES256", "kid": "1"}, claims, world.issuer_key))


@pytest.mark.parametrize("service", ["nobody", "", "gatewayd/../metald", "__class__"])
def test_an_unknown_service_is_refused(world: World, service: str) -> None:
    claims = world.claims(iss=f"spiffe://{DOMAIN}/service/{service}", aud="metald")
    refused(world, jwt.encode({"alg": "ES256"}, claims, world.service_key("gatewayd")))


def test_another_trust_domain_is_refused(world: World) -> None:
    signer = ServiceSigner(
        service="gatewayd",
        key=world.service_key("gatewayd"),
        trust_domain="other.local",
        clock=world.clock,
    )
    refused(world, signer.token("metald"))


def test_a_foreign_key_is_refused_whatever_key_id_it_claims(world: World) -> None:
    for kid in ("1", "2"):
        foreign = new_key(kid)
        refused(world, jwt.encode({"alg": "ES256", "kid": kid}, world.claims(), foreign))


def test_a_key_that_the_token_brings_itself_is_not_used(world: World) -> None:
    foreign = new_key("1")
    public = foreign.as_dict(private=False)
    for header in ({"jwk": public}, {"jwk": public, "kid": "1"}, {"jku": "http://x", "kid": "1"}):
        refused(world, signed_raw({"alg": "ES256", **header}, world.claims(), foreign))


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", ""])
def test_an_unsigned_token_is_refused(world: World, algorithm: str) -> None:
    head, body, signature = world.user_token().split(".")
    header = b64({"alg": algorithm, "kid": "1", "typ": "JWT"})
    for unsigned in (f"{header}.{body}.", f"{header}.{body}.{signature}", f"{head}.{body}."):
        refused(world, unsigned)


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
@pytest.mark.parametrize("form", ["pem", "jwk"])
def test_the_public_key_is_no_shared_secret(world: World, algorithm: str, form: str) -> None:
    key = world.issuer_key
    public = json.dumps(key.as_dict(private=False)).encode()
    secret = key.as_pem(private=False) if form == "pem" else public
    signed = f"{b64({'alg': algorithm, 'kid': '1'})}.{b64(world.claims())}"
    mac = hmac.new(secret, signed.encode(), getattr(hashlib, f"sha{algorithm[2:]}")).digest()
    refused(world, f"{signed}.{b64(mac)}")


def test_a_changed_body_or_signature_is_refused(world: World) -> None:
    head, _, signature = world.user_token().split(".")
    refused(world, f"{head}.{b64(world.claims(roles=['operator']))}.{signature}")
    body = b64(world.claims())
    refused(world, f"{head}.{body}.{b64(bytes(64))}")
    refused(world, f"{head}.{body}.{b64(b'')}")


@pytest.mark.parametrize(
    "header",
    [
        [],
        "text",
        {},
        {"alg": None, "kid": "1"},
        {"alg": ["ES256"], "kid": "1"},
        {"alg": {"a": 1}, "kid": "1"},
        {"alg": "ES256"},
        {"alg": "ES256", "kid": ["1"]},
        {"alg": "ES256", "kid": {"1": 1}},
        {"alg": "ES256", "kid": "1", "crit": ["b64"], "b64": False},
        {"alg": "ES256", "kid": "1", "crit": "x"},
        {"alg": "ES512", "kid": "1"},
    ],
)
def test_a_strange_header_is_refused_like_any_bad_token(world: World, header: object) -> None:
    _, body, signature = world.user_token().split(".")
    refused(world, f"{b64(header)}.{body}.{signature}")


@pytest.mark.parametrize("deep", [b"[" * 2500, b'{"a":' * 500])
def test_deep_nesting_is_refused_like_any_bad_token(world: World, deep: bytes) -> None:
    head, body, signature = world.user_token().split(".")
    refused(world, f"{head}.{b64(deep)}.{signature}"[:4096])
    refused(world, f"{b64(deep)}.{body}.{signature}"[:4096])


def test_an_endless_token_is_refused_unread(world: World) -> None:
    refused(world, world.user_token(padding="x" * 4096))


def test_without_the_files_of_trust_nobody_is_trusted(world: World) -> None:
    service, user = world.signer("gatewayd").token("metald"), world.user_token()
    services_trust_path(world.data_dir).unlink()
    users_trust_path(world.data_dir).unlink()
    refused(world, service)
    refused(world, user)


@pytest.mark.parametrize("content", [b"", b"[]", b"5", b'{"gatewayd": 5}', b'{"keys": 5}', b"\xff"])
def test_damaged_files_of_trust_trust_nobody(world: World, content: bytes) -> None:
    service, user = world.signer("gatewayd").token("metald"), world.user_token()
    write_private(services_trust_path(world.data_dir), content)
    write_private(users_trust_path(world.data_dir), content)
    refused(world, service)
    refused(world, user)


def test_keys_may_be_rotated_while_services_run(world: World) -> None:
    world.verifier.verify(world.user_token())
    second = new_key("2")
    world.trust_users(world.issuer_key, second)
    token = jwt.encode({"alg": "ES256", "kid": "2"}, world.claims(), second)
    assert world.verifier.verify(token).subject == "key_1"
    world.trust_users(second)
    refused(world, world.user_token(sub="key_other"))

    world.verifier.verify(world.signer("gatewayd").token("metald"))
    private_key_path(world.data_dir, "gatewayd").unlink()
    old = world.signer("billaged")
    ensure_service_keys(world.data_dir)
    assert world.verifier.verify(old.token("metald")).subject == "billaged"
    assert world.verifier.verify(world.signer("gatewayd").token("metald", "tnt_9")).tenant_id


async def test_a_signer_reuses_a_token_for_half_its_life(world: World) -> None:
    signer = world.signer("gatewayd")
    first = signer.token("metald")
    await world.clock.advance(29)
    assert signer.token("metald") == first
    await world.clock.advance(1)
    assert signer.token("metald") != first


def test_a_signer_keeps_callees_and_tenants_apart(world: World) -> None:
    signer = world.signer("gatewayd")
    made = {signer.token("metald"), signer.token("metald", "tnt_1"), signer.token("builderd")}
    assert len(made) == 3
    assert world.verifier.verify(signer.token("metald")).tenant_id is None


def test_a_clock_set_back_makes_a_signer_sign_anew(world: World) -> None:
    signer = world.signer("gatewayd")
    signer.token("metald")
    world.clock.jump(-3600)
    assert world.verifier.verify(signer.token("metald")).subject == "gatewayd"


def test_what_is_remembered_is_bounded_and_the_newest_stay(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "_CACHE_ENTRIES", 8)
    signer, decoded = world.signer("gatewayd"), list[str]()

    def decode(token: str, *arguments: object, **options: object) -> object:
        decoded.append(token)
        return real_decode(token, *arguments, **options)  # pyright: ignore[reportArgumentType]

    real_decode = jwt.decode
    monkeypatch.setattr(jwt, "decode", decode)
    made = [signer.token("metald", f"tnt_{number}") for number in range(20)]
    for token in made:
        world.verifier.verify(token)
    assert decoded == made
    for token in made[12:]:
        world.verifier.verify(token)
    assert decoded == made
    world.verifier.verify(made[0])
    assert decoded == [*made, made[0]]
    assert signer.token("metald", "tnt_19") == made[19]
    assert signer.token("metald", "tnt_0") != made[0]


def test_a_key_of_a_host_says_which_host_it_is(world: World) -> None:
    ensure_host_key(world.data_dir, "billaged", "hst_1")
    ensure_service_keys(world.data_dir)
    signer = ServiceSigner.load(world.data_dir, "billaged", DOMAIN, world.clock, host_id="hst_1")
    caller = world.verifier.verify(signer.token("metald"))
    assert (caller.subject, caller.host_id) == ("billaged", "hst_1")
    assert world.verifier.verify(world.signer("billaged").token("metald")).host_id is None


@pytest.mark.parametrize("claimed", ["hst_2", "hst_3"])
def test_no_key_may_claim_another_host(world: World, claimed: str) -> None:
    for host_id in ("hst_1", "hst_2"):
        ensure_host_key(world.data_dir, "billaged", host_id)
    for name in ("billaged", "billaged@hst_1"):
        liar = ServiceSigner(
            service="billaged",
            key=world.service_key(name),
            trust_domain=DOMAIN,
            clock=world.clock,
            host_id=claimed,
        )
        with pytest.raises(Unauthenticated):
            world.verifier.verify(liar.token("metald"))
