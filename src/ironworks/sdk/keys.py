"""API keys."""

from __future__ import annotations

from collections.abc import Sequence

from ironworks.gen.ironworks.common.v1 import common_pb
from ironworks.gen.ironworks.gatewayd.v1 import api_keys_pb, roles_pb
from ironworks.gen.ironworks.gatewayd.v1.api_keys_connect import ApiKeyServiceClient
from ironworks.sdk.resource import DEFAULT_LIMIT, Page, Resource, present, walk


class Keys(Resource):
    """API keys of a tenant, or of operators."""

    async def create(
        self,
        name: str,
        *,
        roles: Sequence[roles_pb.Role] = (roles_pb.Role.DEVELOPER,),
        tenant_id: str = "",
        expires_at_ns: int = 0,
        idempotency_key: str = "",
    ) -> api_keys_pb.CreateApiKeyResponse:
        """Make a key. Its `secret` is in this answer and nowhere else.

        Args:
            name: For people.
            roles: What it may do.
            tenant_id: For operators: the tenant it acts for; empty: an operator's key.
            expires_at_ns: When it ends, UTC nanoseconds; 0: never.
            idempotency_key: Made if empty.
        """
        request = api_keys_pb.CreateApiKeyRequest(
            name=name,
            roles=[*roles],
            tenant_id=tenant_id,
            expires_at_ns=expires_at_ns,
            idempotency_key=idempotency_key,
        )
        return await self._connection.call(
            ApiKeyServiceClient, ApiKeyServiceClient.create_api_key, request
        )

    async def list(
        self,
        *,
        tenant_id: str = "",
        include_ended: bool = False,
        limit: int = DEFAULT_LIMIT,
        page_token: str = "",
    ) -> Page[api_keys_pb.ApiKey]:
        """Keys, newest first, without secrets."""

        async def ask(page: common_pb.PageRequest) -> api_keys_pb.ListApiKeysResponse:
            request = api_keys_pb.ListApiKeysRequest(
                page=page, tenant_id=tenant_id, include_ended=include_ended
            )
            return await self._connection.call(
                ApiKeyServiceClient, ApiKeyServiceClient.list_api_keys, request
            )

        return await walk(ask, lambda a: a.api_keys, limit=limit, page_token=page_token)

    async def revoke(self, api_key_id: str, *, idempotency_key: str = "") -> api_keys_pb.ApiKey:
        """End a key at once; its tokens end within ten minutes."""
        request = api_keys_pb.RevokeApiKeyRequest(
            api_key_id=api_key_id, idempotency_key=idempotency_key
        )
        answer = await self._connection.call(
            ApiKeyServiceClient, ApiKeyServiceClient.revoke_api_key, request
        )
        return present(answer.api_key)
