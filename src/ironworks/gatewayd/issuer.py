"""The issuer: API keys' secrets, the signing key, the tokens, and the file others verify with.

The signing key (ES256) is made at the first start and kept in `<data>/gatewayd/issuer.json`, mode
0600. Its public half goes into `<data>/run/trust/users.json`, where every service and the compiler
of Envoy's configuration read it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import cast

from joserfc import jwt
from joserfc.jwk import ECKey

from ironworks.gatewayd.types import ApiKey
from ironworks.model.ids import new_id
from ironworks.model.units import NS_PER_SECOND
from ironworks.runtime.clock import Clock, Entropy
from ironworks.runtime.identity.keys import load_private_key, users_trust_path, write_private
from ironworks.runtime.identity.tokens import USER_AUDIENCE, USER_TOKEN_SECONDS, user_issuer

SECRET_PREFIX = "iwk_"  # noqa: S105 - a prefix, not a secret
_SECRET_BYTES = 32
_SECRET_CHARS = 43
_HINT_CHARS = len(SECRET_PREFIX) + 6
_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def new_secret(entropy: Entropy) -> str:
    """A secret for an API key: `iwk_` and 43 characters of base 62 that carry 256 random bits."""
    value = int.from_bytes(entropy.token_bytes(_SECRET_BYTES))
    chars: list[str] = []
    for _ in range(_SECRET_CHARS):
        value, digit = divmod(value, len(_BASE62))
        chars.append(_BASE62[digit])
    return SECRET_PREFIX + "".join(chars)


def hash_of(secret: str) -> str:
    """What is stored of a secret. SHA-256: 256 random bits need no slow hash; see `tables`."""
    return hashlib.sha256(secret.encode()).hexdigest()


def hint_of(secret: str) -> str:
    """What a person recognises a secret by; leaves 220 bits unknown."""
    return secret[:_HINT_CHARS]


class Issuer:
    """Signs tokens for users."""

    def __init__(self, *, key: ECKey, trust_domain: str, clock: Clock, entropy: Entropy) -> None:
        self.name = user_issuer(trust_domain)
        self._key = key
        self._clock = clock
        self._entropy = entropy

    @classmethod
    def open(cls, data_dir: Path, trust_domain: str, clock: Clock, entropy: Entropy) -> Issuer:
        """The issuer of this data directory; its key is made if there is none."""
        path = data_dir / "gatewayd" / "issuer.json"
        if not path.exists():
            key = ECKey.generate_key("P-256", private=True)
            write_private(path, json.dumps(key.as_dict(private=True)).encode())
        issuer = cls(
            key=load_private_key(path), trust_domain=trust_domain, clock=clock, entropy=entropy
        )
        write_private(users_trust_path(data_dir), issuer.jwks_json.encode(), mode=0o644)
        return issuer

    @property
    def jwks_json(self) -> str:
        """The JSON Web Key Set that verifies our tokens (RFC 7517)."""
        public = cast("dict[str, object]", self._key.as_dict(private=False))
        public |= {"kid": self._key.thumbprint(), "alg": "ES256", "use": "sig"}
        return json.dumps({"keys": [public]}, sort_keys=True)

    def token(self, key: ApiKey) -> tuple[str, int]:
        """A token of ten minutes for this key, and when it ends in UTC nanoseconds."""
        now_seconds = self._clock.now_ns() // NS_PER_SECOND
        expires_seconds = now_seconds + USER_TOKEN_SECONDS
        claims: dict[str, object] = {
            "iss": self.name,
            "aud": USER_AUDIENCE,
            "sub": key.api_key_id,
            "roles": list(key.roles),
            "jti": new_id("tok", self._clock, self._entropy),
            "iat": now_seconds,
            "exp": expires_seconds,
        }
        if key.tenant_id is not None:
            claims["tenant"] = key.tenant_id
        header = {"alg": "ES256", "kid": self._key.thumbprint()}
        return jwt.encode(header, claims, self._key), expires_seconds * NS_PER_SECOND
