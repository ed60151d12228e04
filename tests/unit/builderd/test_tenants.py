from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from ironworks.builderd import tenants
from ironworks.builderd.policy import Policy
from ironworks.builderd.tenants import PLATFORM, Credential, Upload
from ironworks.model.errors import Aborted, ResourceExhausted
from ironworks.storage.migrate import upgrade
from ironworks.storage.sql import Database

CREDENTIAL = Credential(
    tenant_id="tnt_a", scope="ghcr.io", username="bot", secret="x", updated_at_ns=1
)
UPLOAD = Upload(
    upload_id="upl_1",
    tenant_id="tnt_a",
    key="k",
    sha256="a" * 64,
    size_bytes=60,
    complete=False,
    expires_at_ns=100,
)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    made = Database(database_url)
    upgrade(made.engine, "ironworks.builderd.migrations")
    yield made
    made.close()


async def test_policies_have_revisions(database: Database) -> None:
    assert await database.read(lambda c: tenants.read_policy(c, "tnt_a")) == (Policy(), 0)
    own = Policy(digest_required=True)
    for revision in range(2):
        made = await database.write(
            lambda c, revision=revision: tenants.write_policy(c, "tnt_a", own, revision, 1)
        )
        assert made == revision + 1
    with pytest.raises(Aborted, match="revision 2, not 0"):
        await database.write(lambda c: tenants.write_policy(c, "tnt_a", own, 0, 1))
    platform = Policy(max_file_count=5)
    await database.write(lambda c: tenants.write_policy(c, PLATFORM, platform, 0, 1))
    force = await database.read(lambda c: tenants.effective_policy(c, "tnt_a"))
    assert (force.digest_required, force.max_file_count) == (True, 5)
    others = await database.read(lambda c: tenants.effective_policy(c, "tnt_b"))
    assert (others.digest_required, others.max_file_count) == (False, 5)


async def test_credentials_are_a_tenants_own_and_bounded(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await database.write(lambda c: tenants.set_credential(c, CREDENTIAL))
    again = replace(CREDENTIAL, username="other")
    await database.write(lambda c: tenants.set_credential(c, again))
    await database.write(lambda c: tenants.use_credential(c, again, 7))
    await database.write(lambda c: tenants.encrypt_again(c, again, "y"))
    (found,) = await database.read(lambda c: tenants.list_credentials(c, "tnt_a"))
    assert (found.username, found.last_used_at_ns, found.secret) == ("other", 7, "y")
    assert await database.read(lambda c: tenants.list_credentials(c, "tnt_b")) == []
    monkeypatch.setattr(tenants, "MAX_CREDENTIALS", 1)
    more = replace(CREDENTIAL, scope="docker.io")
    with pytest.raises(ResourceExhausted):
        await database.write(lambda c: tenants.set_credential(c, more))
    await database.write(lambda c: tenants.delete_credential(c, "tnt_a", "ghcr.io"))
    assert await database.read(lambda c: tenants.list_credentials(c, "")) == []


def test_the_longest_scope_fits() -> None:
    known = [replace(CREDENTIAL, scope=scope) for scope in ("ghcr.io", "ghcr.io/acme")]
    for source, scope in (
        ("ghcr.io/acme/app", "ghcr.io/acme"),
        ("ghcr.io/acme", "ghcr.io/acme"),
        ("ghcr.io/acmeevil/app", "ghcr.io"),
    ):
        found = tenants.fitting(known, source)
        assert found is not None
        assert found.scope == scope
    assert tenants.fitting(known, "ghcr.io.evil.com/app") is None


async def test_uploads_are_bounded_and_expire(database: Database) -> None:
    await database.write(lambda c: tenants.begin_upload(c, UPLOAD, 100))
    more = replace(UPLOAD, upload_id="upl_2", key="l")
    with pytest.raises(ResourceExhausted, match="60 are taken"):
        await database.write(lambda c: tenants.begin_upload(c, more, 100))
    await database.write(lambda c: tenants.begin_upload(c, replace(more, tenant_id="tnt_b"), 100))
    await database.write(lambda c: tenants.keep_upload(c, "upl_1", 200, complete=True))
    found = await database.read(lambda c: tenants.find_upload(c, "tnt_a", "k"))
    assert found == replace(UPLOAD, complete=True, expires_at_ns=200)
    assert await database.read(lambda c: tenants.read_upload(c, "tnt_b", "upl_1")) is None
    assert await database.read(lambda c: tenants.expired_uploads(c, 100, 9)) == ["upl_2"]
    await database.write(lambda c: tenants.drop_upload(c, "upl_1"))
    assert await database.read(lambda c: tenants.upload_bytes(c, "tnt_a")) == 0
