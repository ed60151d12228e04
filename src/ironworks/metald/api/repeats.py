"""What requests have in common: idempotency keys, and numbers of seconds."""

import math
from typing import Protocol

from ironworks.metald.app.context import Once
from ironworks.model.errors import InvalidRequest


class Keyed(Protocol):
    """A request that carries a key."""

    idempotency_key: str

    def to_binary(self) -> bytes:
        """Its bytes on the wire."""
        ...


def once_of(request: Keyed, tenant_id: str) -> Once:
    """The key of a request with the request that it stands for.

    Args:
        request: With its key; equal requests have equal bytes.
        tenant_id: Keys of different tenants never meet. Empty for the host's own affairs.
    """
    key = request.idempotency_key
    request.idempotency_key = ""
    try:
        content = request.to_binary()
    finally:
        request.idempotency_key = key
    method = type(request).__name__.removesuffix("Request")
    return Once(scope=f"{tenant_id}/{method}", key=key, request=content)


def finite_seconds(value: float, field: str) -> float:
    """A number of seconds; 0 for the default.

    Raises:
        InvalidRequest: it is negative, or no number.
    """
    if not math.isfinite(value) or value < 0:
        raise InvalidRequest(f"{field} must be a number of seconds, 0 for the default.")
    return value
