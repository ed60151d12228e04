"""Who may call metald."""

from __future__ import annotations

from collections.abc import Mapping

from ironworks.runtime.access.rule import OPERATORS, READERS, WRITERS, Access

_VMS = "ironworks.metald.v1.VmService"
_HOST = "ironworks.metald.v1.HostService"
_GATEWAY = frozenset({"gatewayd"})

ACCESS: Mapping[str, Access] = {
    **{
        f"{_VMS}/{method}": Access(services=_GATEWAY, roles=WRITERS)
        for method in (
            "CreateVm",
            "BootVm",
            "PauseVm",
            "ResumeVm",
            "RebootVm",
            "ShutdownVm",
            "DeleteVm",
            "UpdateVm",
        )
    },
    **{
        f"{_VMS}/{method}": Access(services=_GATEWAY, roles=READERS)
        for method in ("ListVms", "WatchVms", "StreamConsole", "GetVmNetworkStats")
    },
    f"{_VMS}/GetVm": Access(services=_GATEWAY | {"aggregatord"}, roles=READERS),
    **{
        f"{_HOST}/{method}": Access(services=_GATEWAY, roles=OPERATORS)
        for method in (
            "GetHost",
            "WatchHost",
            "CordonHost",
            "UncordonHost",
            "DrainHost",
            "ReserveCapacity",
            "ReleaseReservation",
            "ListReservations",
            "SetTenantQuota",
            "GetTenantQuota",
        )
    },
}
