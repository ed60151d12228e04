"""Sign service tokens; verify the tokens of services and users."""

from __future__ import annotations

import base64
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Generic, TypeVar, cast

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, KeySet

from ironworks.model.errors import Unauthenticated
from ironworks.model.units import NS_PER_SECOND
from ironworks.runtime.clock import Clock
from ironworks.runtime.identity.caller import Caller
from ironworks.runtime.identity.keys import (
    key_name,
    load_private_key,
    private_key_path,
    services_trust_path,
    users_trust_path,
)

SERVICE_TOKEN_SECONDS = 60
USER_TOKEN_SECONDS = 600
USER_AUDIENCE = "ironworks"
CLOCK_SKEW_SECONDS = 5
_MAX_TOKEN_CHARS = 4096
_CACHE_ENTRIES = 1024
_ALGORITHM = "ES256"
_T = TypeVar("_T")


def spiffe_id(trust_domain: str, service: str) -> str:
    """`spiffe://<trust-domain>/service/<name>`."""
    return f"spiffe://{trust_domain}/service/{service}"


def user_issuer(trust_domain: str) -> str:
    """The `iss` of user tokens of our own issuer."""
    return f"https://{trust_domain}"


class ServiceSigner:
    """Makes the tokens with which one service calls the others; reuses each for half its life."""

    def __init__(
        self, *, service: str, key: ECKey, trust_domain: str, clock: Clock, host_id: str = ""
    ) -> None:
        self.service = service
        self._host_id = host_id
        self._key = key
        self._issuer = spiffe_id(trust_domain, service)
        self._clock = clock
        self._made: OrderedDict[tuple[str, str | None], tuple[int, str]] = OrderedDict()

    @classmethod
    def load(
        cls, data_dir: Path, service: str, trust_domain: str, clock: Clock, *, host_id: str = ""
    ) -> ServiceSigner:
        """The signer with the service's key on this machine, or with its key for one host."""
        key = load_private_key(private_key_path(data_dir, key_name(service, host_id)))
        return cls(
            service=service, key=key, trust_domain=trust_domain, clock=clock, host_id=host_id
        )

    def token(self, callee: str, tenant_id: str | None = None) -> str:
        """A token for calls to `callee`, for a tenant or for the platform itself."""
        now_seconds = self._clock.now_ns() // NS_PER_SECOND
        cached = self._made.get((callee, tenant_id))
        # A clock that was set back must not keep a token that looks born in the future.
        if cached and 0 <= now_seconds - cached[0] < SERVICE_TOKEN_SECONDS // 2:
            return cached[1]
        claims: dict[str, object] = {
            "iss": self._issuer,
            "sub": self._issuer,
            "aud": callee,
            "iat": now_seconds,
            "exp": now_seconds + SERVICE_TOKEN_SECONDS,
        }
        if tenant_id is not None:
            claims["tenant"] = tenant_id
        if self._host_id:
            claims["host"] = self._host_id
        token = jwt.encode({"alg": _ALGORITHM}, claims, self._key)
        self._made[callee, tenant_id] = (now_seconds, token)
        while len(self._made) > _CACHE_ENTRIES:
            self._made.popitem(last=False)
        return token


def _unverified(token: str) -> tuple[str, str]:
    """`iss` and `host` that the token claims; only to choose the key that must have signed it."""
    try:
        body = token.split(".")[1]
        claims: object = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except (IndexError, ValueError, RecursionError):
        return "", ""
    if not isinstance(claims, dict):
        return "", ""
    said = cast("dict[str, object]", claims)
    return _text(said, "iss") or "", _text(said, "host") or ""


class _Reloaded(Generic[_T]):
    """The content of a file, read again when the file has been replaced."""

    def __init__(self, path: Path, parse: Callable[[bytes], _T]) -> None:
        self._path = path
        self._parse = parse
        self._read: tuple[tuple[int, int], _T] | None = None

    def get(self) -> _T:
        """The parsed content.

        Raises:
            OSError: the file cannot be read.
            ValueError: or whatever else the parser raises.
        """
        found = self._path.stat()
        version = (found.st_ino, found.st_mtime_ns)
        if self._read is None or self._read[0] != version:
            self._read = (version, self._parse(self._path.read_bytes()))
        return self._read[1]


def _service_keys(content: bytes) -> dict[str, ECKey]:
    stored: object = json.loads(content)
    if not isinstance(stored, dict):
        raise ValueError("not an object of keys")  # noqa: TRY004 - of the file, not of a caller
    named = cast("dict[str, dict[str, str | list[str]]]", stored)
    return {name: ECKey.import_key(key) for name, key in named.items()}


def _user_keys(content: bytes) -> KeySet:
    return KeySet.import_key_set(json.loads(content))


class Verifier:
    """Verifies every token that reaches this service."""

    def __init__(self, *, service: str, data_dir: Path, trust_domain: str, clock: Clock) -> None:
        self._service = service
        self._trust_domain = trust_domain
        self._clock = clock
        self._service_keys = _Reloaded(services_trust_path(data_dir), _service_keys)
        self._user_keys = _Reloaded(users_trust_path(data_dir), _user_keys)
        self._verified: OrderedDict[str, tuple[int, int, Caller]] = OrderedDict()

    def verify(self, token: str) -> Caller:
        """The caller that this token proves.

        Raises:
            Unauthenticated: absent, malformed, expired, for another audience, or not signed by a
                key that this platform trusts.
        """
        if not token or len(token) > _MAX_TOKEN_CHARS:
            raise Unauthenticated("This call needs a token.", hint="Log in, or give an API key.")
        now_seconds = self._clock.now_ns() // NS_PER_SECOND
        cached = self._verified.get(token)
        if cached is not None and cached[0] - CLOCK_SKEW_SECONDS <= now_seconds < cached[1]:
            self._verified.move_to_end(token)
            return cached[2]
        issued_at, expires_at, caller = self._verify(token, now_seconds)
        self._verified[token] = (issued_at, expires_at, caller)
        while len(self._verified) > _CACHE_ENTRIES:
            self._verified.popitem(last=False)
        return caller

    def _verify(self, token: str, now_seconds: int) -> tuple[int, int, Caller]:
        issuer, host_id = _unverified(token)
        prefix = spiffe_id(self._trust_domain, "")
        refused = Unauthenticated(
            "The token is not valid here.", hint="Get a new token and repeat the call."
        )
        try:
            if issuer.startswith(prefix):
                service = issuer.removeprefix(prefix)
                # The key decides which host it is: no other key may claim it.
                key = self._service_keys.get()[key_name(service, host_id)]
                claims = self._decode(token, key)
                audience, caller = self._service, _service_caller(service, claims)
            elif issuer == user_issuer(self._trust_domain):
                claims = self._decode(token, self._user_keys.get())
                audience, caller = USER_AUDIENCE, _user_caller(claims)
            else:
                raise refused
        except (JoseError, ValueError, TypeError, OSError, LookupError, RecursionError) as error:
            refused.context["error"] = str(error)
            raise refused from None
        issued_at, expires_at = claims.get("iat"), claims.get("exp")
        if claims.get("iss") != issuer or claims.get("aud") != audience:
            raise refused
        if not isinstance(issued_at, int) or not isinstance(expires_at, int):
            raise refused
        if not issued_at - CLOCK_SKEW_SECONDS <= now_seconds < expires_at:
            raise Unauthenticated("The token has expired.", hint="Get a new token.")
        return issued_at, expires_at, caller

    def _decode(self, token: str, key: ECKey | KeySet) -> Mapping[str, object]:
        return jwt.decode(token, key, algorithms=[_ALGORITHM]).claims


def _text(claims: Mapping[str, object], name: str) -> str | None:
    value = claims.get(name)
    return value if isinstance(value, str) and value else None


def _service_caller(service: str, claims: Mapping[str, object]) -> Caller:
    return Caller(
        kind="service",
        subject=service,
        tenant_id=_text(claims, "tenant"),
        host_id=_text(claims, "host"),
    )


def _user_caller(claims: Mapping[str, object]) -> Caller:
    raw = claims.get("roles")
    roles = cast("list[object]", raw) if isinstance(raw, list) else []
    return Caller(
        kind="user",
        subject=_text(claims, "sub") or "",
        tenant_id=_text(claims, "tenant"),
        roles=frozenset(role for role in roles if isinstance(role, str)),
    )
