"""Who may call which method: one table an auditor can read; what is not in it is refused.

Each service's methods stand in a module of their own beside this file. Envoy's RBAC at the edge is
compiled from the same table, so the two cannot disagree.
"""

from __future__ import annotations

from collections.abc import Mapping

from ironworks.model.errors import PermissionDenied
from ironworks.runtime.access import (
    aggregatord,
    assetmanagerd,
    billaged,
    builderd,
    gatewayd,
    metald,
)
from ironworks.runtime.access.rule import Access as Access
from ironworks.runtime.identity.caller import Caller

ACCESS: Mapping[str, Access] = {
    **gatewayd.ACCESS,
    **builderd.ACCESS,
    **assetmanagerd.ACCESS,
    **metald.ACCESS,
    **billaged.ACCESS,
    **aggregatord.ACCESS,
}
"""`ironworks.metald.v1.VmService/CreateVm` → who may call it."""


def check(method: str, caller: Caller) -> None:
    """Return if `caller` may call `method`.

    Raises:
        PermissionDenied: not so; says what is needed.
    """
    rule = ACCESS.get(method, Access())
    if rule.anonymous:
        return
    if caller.kind == "service" and caller.subject in rule.services:
        return
    if caller.kind == "user" and caller.roles & rule.roles:
        return
    needed = ", ".join(sorted(rule.roles)) or "none: it is for the platform's own services"
    raise PermissionDenied(
        f"{method.rpartition('/')[2]} is not allowed for this credential.",
        hint=f"It needs one of these roles: {needed}.",
    )
