"""Positions in the history, as those who watch are told them.

The history of all tenants has one count. A tenant that saw it could tell how much the others do, so
what leaves assetmanagerd is sealed: for the one who asks, and differently each time.
"""

from __future__ import annotations

import base64
import binascii

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ironworks.assetmanagerd.types import Who
from ironworks.model.errors import InvalidRequest
from ironworks.runtime.clock import Entropy

KEY_BYTES = 32
_NONCE_BYTES = 12
_NUMBER_BYTES = 8


class Positions:
    """Seals numbers of entries, and opens them.

    Args:
        key: 32 bytes; all assetmanagerd of one registry have the same.
        entropy: For nonces.
    """

    def __init__(self, key: bytes, entropy: Entropy) -> None:
        self._cipher = AESGCM(key)
        self._entropy = entropy

    def seal(self, who: Who, number: int) -> str:
        """A position that `who` can come back with: 48 characters of base64url."""
        nonce = self._entropy.token_bytes(_NONCE_BYTES)
        body = number.to_bytes(_NUMBER_BYTES, "big")
        sealed = nonce + self._cipher.encrypt(nonce, body, who.tenant_id.encode())
        return base64.urlsafe_b64encode(sealed).decode()

    def open(self, who: Who, text: str, field: str) -> int:
        """The number that was sealed for `who`.

        Raises:
            InvalidRequest: `text`, given as `field`, was not sealed here for this tenant.
        """
        try:
            sealed = base64.b64decode(text, altchars=b"-_", validate=True)
            nonce, body = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
            return int.from_bytes(self._cipher.decrypt(nonce, body, who.tenant_id.encode()), "big")
        except (binascii.Error, ValueError, InvalidTag):
            raise InvalidRequest(
                f"{field} is not a position that this tenant was told.",
                hint="Give it as it was answered, or leave it out.",
            ) from None
