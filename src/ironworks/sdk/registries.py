"""Credentials for private registries, from which builds pull."""

from __future__ import annotations

from ironworks.gen.ironworks.builderd.v1 import build_pb
from ironworks.gen.ironworks.builderd.v1.build_connect import BuildServiceClient
from ironworks.sdk.resource import Resource, present


class Registries(Resource):
    """The tenant's credentials; passwords go in and never come out."""

    async def login(
        self, scope: str, username: str, password: str, *, idempotency_key: str = ""
    ) -> build_pb.RegistryCredential:
        """Store a credential, in place of one with the same scope.

        Args:
            scope: Registry, and repository prefix if wanted: `ghcr.io`, `ghcr.io/acme`.
            username: User name.
            password: Password or token.
            idempotency_key: Made if empty.
        """
        request = build_pb.SetRegistryCredentialRequest(
            scope=scope, username=username, password=password, idempotency_key=idempotency_key
        )
        answer = await self._connection.call(
            BuildServiceClient, BuildServiceClient.set_registry_credential, request
        )
        return present(answer.credential)

    async def list(self) -> list[build_pb.RegistryCredential]:
        """All of them, by scope, without passwords."""
        answer = await self._connection.call(
            BuildServiceClient,
            BuildServiceClient.list_registry_credentials,
            build_pb.ListRegistryCredentialsRequest(),
        )
        return [*answer.credentials]

    async def logout(self, scope: str, *, idempotency_key: str = "") -> None:
        """Remove a credential; one that is not there stays away."""
        request = build_pb.DeleteRegistryCredentialRequest(
            scope=scope, idempotency_key=idempotency_key
        )
        await self._connection.call(
            BuildServiceClient, BuildServiceClient.delete_registry_credential, request
        )
