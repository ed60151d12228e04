"""Assets: kernels, initrds, root file systems, snapshots."""

from __future__ import annotations

from ironworks.gen.ironworks.assetmanagerd.v1 import asset_pb
from ironworks.gen.ironworks.assetmanagerd.v1.asset_connect import AssetServiceClient
from ironworks.gen.ironworks.common.v1 import common_pb
from ironworks.sdk.resource import DEFAULT_LIMIT, Page, Resource, present, walk


class Assets(Resource):
    """Assets of the caller's tenant and of the platform."""

    async def get(self, asset_id: str) -> asset_pb.Asset:
        """One asset."""
        request = asset_pb.GetAssetRequest(asset_id=asset_id)
        answer = await self._connection.call(
            AssetServiceClient, AssetServiceClient.get_asset, request
        )
        return present(answer.asset)

    async def list(
        self,
        *,
        chosen: asset_pb.AssetFilter | None = None,
        limit: int = DEFAULT_LIMIT,
        page_token: str = "",
    ) -> Page[asset_pb.Asset]:
        """Assets, newest first; without a filter all but deleted ones."""

        async def ask(page: common_pb.PageRequest) -> asset_pb.ListAssetsResponse:
            request = asset_pb.ListAssetsRequest(page=page, filter=chosen)
            return await self._connection.call(
                AssetServiceClient, AssetServiceClient.list_assets, request
            )

        return await walk(ask, lambda a: a.assets, limit=limit, page_token=page_token)

    async def leases(
        self,
        *,
        asset_id: str = "",
        state: asset_pb.LeaseState = asset_pb.LeaseState.UNSPECIFIED,
        limit: int = DEFAULT_LIMIT,
        page_token: str = "",
    ) -> Page[asset_pb.Lease]:
        """Leases, newest first. For operators."""

        async def ask(page: common_pb.PageRequest) -> asset_pb.ListLeasesResponse:
            request = asset_pb.ListLeasesRequest(asset_id=asset_id, state=state, page=page)
            return await self._connection.call(
                AssetServiceClient, AssetServiceClient.list_leases, request
            )

        return await walk(ask, lambda a: a.leases, limit=limit, page_token=page_token)
