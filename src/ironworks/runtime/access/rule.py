"""One row of the access table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["owner", "admin", "developer", "billing", "viewer", "operator"]

READERS: frozenset[str] = frozenset({"owner", "admin", "developer", "viewer", "operator"})
WRITERS: frozenset[str] = frozenset({"owner", "admin", "developer", "operator"})
ADMINS: frozenset[str] = frozenset({"owner", "admin", "operator"})
BILLING: frozenset[str] = frozenset({"owner", "admin", "billing", "operator"})
OPERATORS: frozenset[str] = frozenset({"operator"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who may call a method.

    Attributes:
        services: Services that may, with a service token.
        roles: User roles of which one is needed. The tenant's borders are the service's own check.
        anonymous: The method authenticates by itself (an API key is exchanged for a token).
    """

    services: frozenset[str] = frozenset()
    roles: frozenset[str] = frozenset()
    anonymous: bool = False
