"""What tenants and the operator choose: policies, and credentials for registries."""

from __future__ import annotations

import re

import structlog
from sqlalchemy import Connection

from ironworks.builderd import policy as policies
from ironworks.builderd import store, tenants
from ironworks.builderd.decide import parse_image
from ironworks.builderd.policy import Policy
from ironworks.builderd.tenants import PLATFORM, Credential
from ironworks.builderd.types import PolicyReport
from ironworks.builderd.vault import Vault
from ironworks.builderd.worker import Worker
from ironworks.model.errors import InvalidRequest, IronError
from ironworks.runtime.clock import Clock
from ironworks.storage.sql import Database

_log = structlog.stdlib.get_logger()
MAX_SCOPE_CHARS = 256
MAX_USERNAME_CHARS = 256
MAX_PASSWORD_CHARS = 8192
_SCOPE = re.compile(
    r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?(?::[0-9]{1,5})?(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*"
)


class Choices:
    """Use cases over policies and credentials."""

    def __init__(self, *, database: Database, worker: Worker, vault: Vault, clock: Clock) -> None:
        self._database = database
        self._worker = worker
        self._vault = vault
        self._clock = clock

    # --- policies ---------------------------------------------------------------------------------

    async def policy(self, tenant_id: str, *, platform: bool) -> tuple[Policy, Policy, int]:
        """A policy as declared, what is in force, and the revision."""

        def work(connection: Connection) -> tuple[Policy, Policy, int]:
            declared, revision = tenants.read_policy(
                connection, PLATFORM if platform else tenant_id
            )
            if platform:
                return declared, declared, revision
            return declared, tenants.effective_policy(connection, tenant_id), revision

        return await self._database.read(work)

    async def in_force(self, tenant_id: str) -> Policy:
        """What is in force for a tenant."""
        return await self._database.read(
            lambda connection: tenants.effective_policy(connection, tenant_id)
        )

    async def set_policy(
        self, tenant_id: str, policy: Policy, expected_revision: int, key: str, *, platform: bool
    ) -> int:
        """Replace a policy; answers its revision.

        Raises:
            InvalidRequest: it is no policy.
            Aborted: another revision is in force than the expected one.
        """
        policies.check(policy)
        owner, now_ns = PLATFORM if platform else tenant_id, self._clock.now_ns()
        request = f"{policies.encode(policy)}.{expected_revision}"

        def work(connection: Connection) -> int:
            wanted = f"{expected_revision + 1}.{now_ns}"
            claimed = store.claim(
                connection,
                scope=f"{owner}:policy",
                key=key,
                request=request.encode(),
                resource_id=wanted,
                now_ns=now_ns,
            )
            if claimed != wanted:
                return int(claimed.partition(".")[0])
            return tenants.write_policy(connection, owner, policy, expected_revision, now_ns)

        return await self._database.write(work)

    async def evaluate(
        self, tenant_id: str, image: str, policy: Policy | None
    ) -> tuple[PolicyReport, str]:
        """What a policy finds in an image, and the image's digest.

        Raises:
            InvalidRequest: it is no policy, or no image.
            IronError: the image cannot be had.
        """
        parse_image(image)
        if policy is not None:
            policies.check(policy)
        return await self._worker.evaluate(tenant_id, image, policy)

    # --- credentials ------------------------------------------------------------------------------

    async def set_credential(
        self, tenant_id: str, scope: str, username: str, password: str
    ) -> Credential:
        """Store a credential, in place of one with the same scope.

        Raises:
            InvalidRequest: something is out of bounds.
            ResourceExhausted: the tenant has too many.
        """
        if not 1 <= len(username) <= MAX_USERNAME_CHARS or ":" in username:
            raise InvalidRequest(
                f"username must have 1 to {MAX_USERNAME_CHARS} characters, and no colon."
            )
        if not 1 <= len(password) <= MAX_PASSWORD_CHARS:
            raise InvalidRequest(f"password must have 1 to {MAX_PASSWORD_CHARS} characters.")
        scope = check_scope(scope)
        credential = Credential(
            tenant_id=tenant_id,
            scope=scope,
            username=username,
            secret=self._vault.encrypt(tenant_id, scope, password),
            updated_at_ns=self._clock.now_ns(),
        )
        await self._database.write(
            lambda connection: tenants.set_credential(connection, credential)
        )
        return credential

    async def credentials(self, tenant_id: str) -> list[Credential]:
        """A tenant's credentials, by scope."""
        return await self._database.read(
            lambda connection: tenants.list_credentials(connection, tenant_id)
        )

    async def delete_credential(self, tenant_id: str, scope: str) -> None:
        """Remove a credential; one that is not there stays away."""
        scope = check_scope(scope)
        await self._database.write(
            lambda connection: tenants.delete_credential(connection, tenant_id, scope)
        )

    async def encrypt_again(self) -> int:
        """Encrypt with the first key what is encrypted with another; answers how many."""
        known = await self._database.read(
            lambda connection: tenants.list_credentials(connection, "")
        )
        count = 0
        for credential in known:
            try:
                secret = self._vault.renewed(credential)
            except IronError as error:
                _log.warning("credential_lost", scope=credential.scope, error=str(error))
                continue
            if secret == credential.secret:
                continue
            await self._database.write(
                lambda connection, credential=credential, secret=secret: tenants.encrypt_again(
                    connection, credential, secret
                )
            )
            count += 1
        return count


def check_scope(scope: str) -> str:
    """The registry, and repository prefix, that a credential is for.

    Raises:
        InvalidRequest: it cannot be one.
    """
    if len(scope) > MAX_SCOPE_CHARS or not _SCOPE.fullmatch(scope):
        raise InvalidRequest(
            f"{scope[:80]!r} is not a registry.", hint="Write it like ghcr.io or ghcr.io/acme."
        )
    return "docker.io" if scope in ("index.docker.io", "registry-1.docker.io") else scope
