"""What metald asks of assetmanagerd, and the client that asks it."""

import asyncio
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ironworks.gen.ironworks.assetmanagerd.v1 import asset_pb as pb
from ironworks.gen.ironworks.assetmanagerd.v1.asset_connect import AssetServiceClient
from ironworks.metald.types import ImageDefaults
from ironworks.model.errors import FailedPrecondition, NotFound
from ironworks.runtime.rpc.client import Clients

LEASE_TTL_SECONDS = 60
MAX_RENEWED = 1000
TIMEOUT_SECONDS = 20.0
STAGING = Path("assets") / "staging"
"""Below the data directory; shared with assetmanagerd."""

_KINDS = {
    pb.AssetKind.KERNEL: "kernel",
    pb.AssetKind.INITRD: "initrd",
    pb.AssetKind.ROOTFS: "rootfs",
    pb.AssetKind.SNAPSHOT: "snapshot",
}
_FORMATS = {
    pb.AssetFormat.SQUASHFS: "squashfs",
    pb.AssetFormat.EXT4: "ext4",
    pb.AssetFormat.BZIMAGE: "bzimage",
    pb.AssetFormat.ELF: "elf",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasedAsset:
    """What is known of an asset that is held by a lease."""

    asset_id: str
    kind: str
    """`kernel`, `initrd`, `rootfs`, `snapshot`."""
    format: str
    """`squashfs`, `ext4`, `bzimage`, `elf`; empty for what needs no name here."""
    architecture: str
    """As OCI names it; empty if it does not matter."""
    size_bytes: int
    image: ImageDefaults = field(default_factory=ImageDefaults)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leased:
    """A lease and its assets, in the order asked."""

    lease_id: str
    assets: tuple[LeasedAsset, ...]


class Lessor(Protocol):
    """Leases assets out; assetmanagerd in production."""

    async def acquire(self, tenant_id: str, vm_id: str, asset_ids: Sequence[str]) -> Leased:
        """Lease all of them for a VM, or none. Repeatable: a VM has one lease.

        Raises:
            NotFound: one is not known to this tenant.
            FailedPrecondition: one cannot be used now.
            Unavailable: assetmanagerd does not answer.
        """
        ...

    async def prepare(
        self, tenant_id: str, lease_id: str, directory: Path, names: Mapping[str, str]
    ) -> None:
        """Place leased assets, asset id → file name, in an existing directory of this host."""
        ...

    async def renew(self, lease_ids: Sequence[str]) -> frozenset[str]:
        """Keep leases for another TTL; answers those that are lost."""
        ...

    async def release(self, tenant_id: str, vm_id: str) -> None:
        """Give back all leases that are held for a VM. Idempotent."""
        ...

    async def register_platform(self, path: Path, kind: str, sha256: str) -> str:
        """The id of the platform's asset with these bytes; registered first if need be."""
        ...


class AssetClient:
    """The real `Lessor`."""

    def __init__(self, clients: Clients, data_dir: Path) -> None:
        """Call through `clients`; stage the platform's own files below `data_dir`."""
        self._clients = clients
        self._staging = data_dir / STAGING

    def _client(self, tenant_id: str | None) -> AssetServiceClient:
        return self._clients.of(
            AssetServiceClient,
            "assetmanagerd",
            tenant_id=tenant_id,
            timeout_seconds=TIMEOUT_SECONDS,
        )

    async def acquire(self, tenant_id: str, vm_id: str, asset_ids: Sequence[str]) -> Leased:
        """See `Lessor`."""
        answer = await self._client(tenant_id).acquire_lease(
            pb.AcquireLeaseRequest(
                asset_ids=list(asset_ids),
                holder=vm_id,
                purpose="boot a VM",
                ttl_seconds=LEASE_TTL_SECONDS,
                idempotency_key="",
            )
        )
        if answer.lease is None:
            raise NotFound("assetmanagerd answered no lease.")
        return Leased(
            lease_id=answer.lease.lease_id, assets=tuple(_leased(one) for one in answer.assets)
        )

    async def prepare(
        self, tenant_id: str, lease_id: str, directory: Path, names: Mapping[str, str]
    ) -> None:
        """See `Lessor`."""
        files = [
            pb.PreparedFile(asset_id=asset_id, file_name=name) for asset_id, name in names.items()
        ]
        await self._client(tenant_id).prepare_assets(
            pb.PrepareAssetsRequest(lease_id=lease_id, directory=str(directory), files=files)
        )

    async def renew(self, lease_ids: Sequence[str]) -> frozenset[str]:
        """See `Lessor`."""
        lost: set[str] = set()
        for start in range(0, len(lease_ids), MAX_RENEWED):
            answer = await self._client(None).renew_lease(
                pb.RenewLeaseRequest(
                    lease_ids=list(lease_ids[start : start + MAX_RENEWED]),
                    ttl_seconds=LEASE_TTL_SECONDS,
                )
            )
            lost.update(answer.lost_lease_ids)
        return frozenset(lost)

    async def release(self, tenant_id: str, vm_id: str) -> None:
        """See `Lessor`."""
        client = self._client(tenant_id)
        # Asked by holder: a lease whose answer never reached us is given back too.
        held = await client.list_leases(
            pb.ListLeasesRequest(holder=vm_id, state=pb.LeaseState.ACTIVE)
        )
        for lease in held.leases:
            await client.release_lease(pb.ReleaseLeaseRequest(lease_id=lease.lease_id))

    async def register_platform(self, path: Path, kind: str, sha256: str) -> str:
        """See `Lessor`."""
        client = self._client(None)
        of_kind = pb.AssetKind.KERNEL if kind == "kernel" else pb.AssetKind.INITRD
        try:
            found = await client.query_asset(
                pb.QueryAssetRequest(filter=pb.AssetFilter(kind=of_kind, sha256=sha256))
            )
        except NotFound:
            pass
        else:
            if found.asset is not None:
                return found.asset.asset_id
        staged_name = f"metald-{kind}-{sha256}"
        size_bytes = await asyncio.to_thread(_stage, path, self._staging / staged_name)
        answer = await client.register_asset(
            pb.RegisterAssetRequest(
                facts=pb.AssetFacts(
                    kind=of_kind,
                    sha256=sha256,
                    size_bytes=size_bytes,
                    platform=True,
                    labels={"ironworks.dev/guest": "default"},
                ),
                staged_name=staged_name,
                idempotency_key=staged_name,
            )
        )
        if answer.asset is None:
            raise FailedPrecondition(f"assetmanagerd did not take the guest's {kind}.")
        return answer.asset.asset_id


def _stage(source: Path, target: Path) -> int:
    partial = target.with_name(target.name + f".{os.getpid()}.partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copyfile(source, partial)
        partial.replace(target)
    except FileNotFoundError as error:
        raise FailedPrecondition(
            f"The guest's file {error.filename} is missing.", hint="Run `./iron setup`."
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return target.stat().st_size


def _leased(asset: pb.Asset) -> LeasedAsset:
    config = asset.image_config
    image = ImageDefaults()
    if config is not None:
        image = ImageDefaults(
            entrypoint=tuple(config.entrypoint),
            cmd=tuple(config.cmd),
            env=tuple(config.env),
            user=config.user,
            working_directory=config.working_directory,
            stop_signal=config.stop_signal,
        )
    return LeasedAsset(
        asset_id=asset.asset_id,
        kind=_KINDS.get(asset.kind, ""),
        format=_FORMATS.get(asset.format, ""),
        architecture=asset.architecture,
        size_bytes=asset.size_bytes,
        image=image,
    )
