"""What a metald leaves behind when it goes for good, and how it is removed."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from ironworks.metald.app import boot, create
from ironworks.metald.purge import purge
from ironworks.metald.settings import MetaldSettings
from ironworks.testkit.metald import TENANT, World, vm_spec, world

pytestmark = pytest.mark.root


@pytest.fixture
async def two(tmp_path: Path) -> AsyncGenerator[tuple[Path, Path]]:
    """Two data directories, purged whatever the test comes to."""
    directories = tmp_path / "mine", tmp_path / "other"
    yield directories
    for directory in directories:
        await purge(MetaldSettings(data_dir=directory))


async def booted(w: World) -> str:
    vm = await create.create_vm(
        w.context, tenant_id=TENANT, vm_id="", spec=vm_spec(), idempotency_key=""
    )
    return (await boot.boot_vm(w.context, vm, timeout_seconds=0, detach=False)).vm_id


async def test_a_purge_removes_its_own_platform_and_no_other(two: tuple[Path, Path]) -> None:
    mine_dir, other_dir = two
    async with world(mine_dir, real=True) as mine:
        await booted(mine)
        await booted(mine)
    async with world(other_dir, real=True) as other:
        kept = await booted(other)
        await purge(mine.context.settings)
        assert await mine.on_machine() == {}
        await purge(mine.context.settings)
        assert kept in other.context.handles
        assert (await other.on_machine()).keys() == {"networks", "cgroups", "jails"}
    await purge(other.context.settings)
    assert await other.on_machine() == {}
