from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from ironworks.builderd.choices import check_scope
from ironworks.builderd.policy import Policy
from ironworks.model.errors import Aborted, AlreadyExists, InvalidRequest
from ironworks.testkit.builds import TENANT, BuildWorld, build_world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[BuildWorld]:
    async with build_world(tmp_path) as made:
        yield made


async def test_a_policy_is_set_once_for_one_key(world: BuildWorld) -> None:
    choices, own = world.choices, Policy(digest_required=True)
    for _ in range(2):
        assert await choices.set_policy(TENANT, own, 0, "k", platform=False) == 1
    with pytest.raises(AlreadyExists):
        await choices.set_policy(TENANT, Policy(), 0, "k", platform=False)
    with pytest.raises(Aborted):
        await choices.set_policy(TENANT, own, 0, "l", platform=False)
    await choices.set_policy("", Policy(max_file_count=9), 0, "k", platform=True)
    declared, force, revision = await choices.policy(TENANT, platform=False)
    assert (declared.max_file_count, force.max_file_count, revision) == (0, 9, 1)
    assert (await choices.policy("", platform=True))[2] == 1
    assert (await choices.in_force(TENANT)).digest_required


async def test_bad_policies_and_images_are_refused_at_once(world: BuildWorld) -> None:
    bad = Policy(max_file_count=-1)
    with pytest.raises(InvalidRequest):
        await world.choices.set_policy(TENANT, bad, 0, "", platform=False)
    with pytest.raises(InvalidRequest):
        await world.choices.evaluate(TENANT, world.image(), bad)
    with pytest.raises(InvalidRequest):
        await world.choices.evaluate(TENANT, "dir:/x", None)


async def test_credentials_are_checked_and_never_answered(world: BuildWorld) -> None:
    stored = await world.choices.set_credential(TENANT, "index.docker.io", "bot", "s3cret")
    assert stored.scope == "docker.io"
    assert "s3cret" not in repr(await world.choices.credentials(TENANT))
    assert await world.choices.credentials("tnt_evil") == []
    for username, password in (("", "x"), ("a:b", "x"), ("a", ""), ("a", "x" * 9000)):
        with pytest.raises(InvalidRequest):
            await world.choices.set_credential(TENANT, "registry.example", username, password)
    await world.choices.delete_credential(TENANT, "docker.io")
    assert await world.choices.credentials(TENANT) == []


async def test_what_an_old_key_encrypted_is_encrypted_again(tmp_path: Path) -> None:
    async with build_world(tmp_path) as world:
        await world.choices.set_credential(TENANT, "registry.example", "bot", "s3cret")
        assert await world.choices.encrypt_again() == 0
        keys = world.settings.key_file
    keys.write_bytes(Fernet.generate_key() + b"\n" + keys.read_bytes())
    async with build_world(tmp_path) as world:
        assert await world.choices.encrypt_again() == 1
        assert await world.choices.encrypt_again() == 0
    keys.write_bytes(Fernet.generate_key())
    async with build_world(tmp_path) as world:
        assert await world.choices.encrypt_again() == 0


@pytest.mark.parametrize(
    "scope",
    ["", "Registry.example", "registry.example/", "https://registry.example", "a b", "a/../b"],
)
def test_what_is_no_registry(scope: str) -> None:
    with pytest.raises(InvalidRequest, match="is not a registry"):
        check_scope(scope)
