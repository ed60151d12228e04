"""Who may call assetmanagerd."""

from __future__ import annotations

from collections.abc import Mapping

from ironworks.runtime.access.rule import OPERATORS, READERS, WRITERS, Access

_SERVICE = "ironworks.assetmanagerd.v1.AssetService"
_ALL = frozenset({"gatewayd", "metald", "builderd"})
_GATEWAY = frozenset({"gatewayd"})
_MAKERS = frozenset({"metald", "builderd"})
_LEASERS = frozenset({"metald", "builderd"})

ACCESS: Mapping[str, Access] = {
    # Names files in the staging area, which only services can write.
    f"{_SERVICE}/RegisterAsset": Access(services=_MAKERS),
    f"{_SERVICE}/UploadAsset": Access(services=_ALL, roles=WRITERS),
    f"{_SERVICE}/GetUpload": Access(services=_ALL, roles=WRITERS),
    f"{_SERVICE}/GetAsset": Access(services=_ALL, roles=READERS),
    f"{_SERVICE}/ListAssets": Access(services=_ALL, roles=READERS),
    f"{_SERVICE}/QueryAsset": Access(services=_ALL, roles=READERS),
    f"{_SERVICE}/ListAssetEvents": Access(services=_GATEWAY, roles=READERS),
    f"{_SERVICE}/ArchiveAsset": Access(services=_GATEWAY, roles=WRITERS),
    f"{_SERVICE}/RestoreAsset": Access(services=_GATEWAY, roles=WRITERS),
    f"{_SERVICE}/DeleteAsset": Access(services=_GATEWAY, roles=WRITERS),
    f"{_SERVICE}/CollectGarbage": Access(services=_GATEWAY, roles=OPERATORS),
    f"{_SERVICE}/RepairAssets": Access(services=_GATEWAY, roles=OPERATORS),
    f"{_SERVICE}/WatchAssets": Access(services=_ALL, roles=READERS),
    # Leases are between services: a person's laptop that sleeps must not hold bytes.
    f"{_SERVICE}/AcquireLease": Access(services=_LEASERS),
    f"{_SERVICE}/RenewLease": Access(services=_LEASERS),
    f"{_SERVICE}/ReleaseLease": Access(services=_LEASERS),
    f"{_SERVICE}/ListLeases": Access(services=_LEASERS, roles=OPERATORS),
    # Makes files on the host.
    f"{_SERVICE}/PrepareAssets": Access(services=frozenset({"metald"})),
    f"{_SERVICE}/VerifyAsset": Access(services=_GATEWAY, roles=OPERATORS),
}
