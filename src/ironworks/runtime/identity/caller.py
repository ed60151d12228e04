"""The verified caller of the request that is being served."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

from ironworks.model.errors import Internal, PermissionDenied


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A verified identity.

    Attributes:
        kind: `service`, `user` or, where a method authenticates by itself, `anonymous`.
        subject: `metald` for a service; the id of the API key, or the issuer's subject, for a user.
        tenant_id: The tenant that the credential belongs to or, for a service, acts for.
        roles: Roles of a user; empty for services.
        host_id: The host that a service's key is bound to; None if it is not bound to any.
    """

    kind: Literal["service", "user", "anonymous"]
    subject: str
    tenant_id: str | None = None
    roles: frozenset[str] = frozenset()
    host_id: str | None = None

    @property
    def is_operator(self) -> bool:
        """Whether this is an operator of the platform."""
        return "operator" in self.roles


ANONYMOUS = Caller(kind="anonymous", subject="")
caller_var: ContextVar[Caller] = ContextVar("caller")
request_id_var: ContextVar[str] = ContextVar("request_id", default="")


def current_caller() -> Caller:
    """The caller of this request.

    Raises:
        Internal: called outside of a request: a fault of ours, never a guess.
    """
    try:
        return caller_var.get()
    except LookupError:
        raise Internal("There is no caller outside of a request.") from None


def current_tenant_id() -> str:
    """The tenant that this request is for.

    Raises:
        PermissionDenied: the credential belongs to no tenant and acts for none.
    """
    tenant_id = current_caller().tenant_id
    if tenant_id is None:
        raise PermissionDenied(
            "This call is for a tenant, and the credential belongs to none.",
            hint="Use an API key of the tenant.",
        )
    return tenant_id


def current_request_id() -> str:
    """The id that this request carries through all services; empty outside of a request."""
    return request_id_var.get()
