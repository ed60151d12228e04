"""Who may call builderd."""

from __future__ import annotations

from collections.abc import Mapping

from ironworks.runtime.access.rule import ADMINS, READERS, WRITERS, Access

_SERVICE = "ironworks.builderd.v1.BuildService"
_GATEWAY = frozenset({"gatewayd"})

ACCESS: Mapping[str, Access] = {
    f"{_SERVICE}/CreateBuild": Access(services=_GATEWAY, roles=WRITERS),
    f"{_SERVICE}/GetBuild": Access(services=_GATEWAY, roles=READERS),
    f"{_SERVICE}/ListBuilds": Access(services=_GATEWAY, roles=READERS),
    f"{_SERVICE}/WatchBuild": Access(services=_GATEWAY, roles=READERS),
    f"{_SERVICE}/StreamBuildLogs": Access(services=_GATEWAY, roles=READERS),
    f"{_SERVICE}/CancelBuild": Access(services=_GATEWAY, roles=WRITERS),
    f"{_SERVICE}/DeleteBuild": Access(services=_GATEWAY, roles=WRITERS),
    f"{_SERVICE}/GetBuildStats": Access(services=_GATEWAY, roles=READERS),
    f"{_SERVICE}/GetTenantQuota": Access(services=_GATEWAY, roles=READERS),
    f"{_SERVICE}/EvaluatePolicy": Access(services=_GATEWAY, roles=WRITERS),
    f"{_SERVICE}/GetPolicy": Access(services=_GATEWAY, roles=READERS),
    f"{_SERVICE}/SetPolicy": Access(services=_GATEWAY, roles=ADMINS),
    f"{_SERVICE}/UploadImage": Access(services=_GATEWAY, roles=WRITERS),
    f"{_SERVICE}/GetImageUpload": Access(services=_GATEWAY, roles=WRITERS),
    f"{_SERVICE}/SetRegistryCredential": Access(services=_GATEWAY, roles=ADMINS),
    f"{_SERVICE}/ListRegistryCredentials": Access(services=_GATEWAY, roles=ADMINS),
    f"{_SERVICE}/DeleteRegistryCredential": Access(services=_GATEWAY, roles=ADMINS),
}
