import os
from pathlib import Path

import pytest

from ironworks.metald.jail_directories import JailDirectories
from ironworks.model.errors import FailedPrecondition
from ironworks.model.ids import derived_id

VM = derived_id("vm", "one")


@pytest.fixture
def jails(tmp_path: Path) -> JailDirectories:
    return JailDirectories(tmp_path / "jails", tmp_path / "consoles", 10)


@pytest.mark.root
async def test_a_jail_is_its_groups_and_nobody_elses(jails: JailDirectories) -> None:
    path = await jails.create(VM, 1_234_567)
    status = path.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (0, 1_234_567, 0o750)
    assert path.parent.stat().st_mode & 0o7777 == 0o711


@pytest.mark.root
async def test_a_jail_is_made_empty_whatever_was_there(jails: JailDirectories) -> None:
    path = await jails.create(VM, 0)
    (path / "left").mkdir()
    (path / "left" / "over").write_text("x")
    assert list((await jails.create(VM, 0)).iterdir()) == []


@pytest.mark.root
async def test_removing_follows_no_link_out_of_the_jail(
    jails: JailDirectories, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    path = await jails.create(VM, 0)
    (path / "link").symlink_to(outside)
    await jails.remove(VM)
    await jails.remove(VM)
    assert not path.exists()
    path.symlink_to(outside)
    await jails.remove(VM)
    assert (outside / "kept").exists()


async def test_a_jail_that_cannot_be_made_says_what_is_needed(tmp_path: Path) -> None:
    (tmp_path / "jails").write_text("a file")
    jails = JailDirectories(tmp_path / "jails", tmp_path / "consoles", 10)
    with pytest.raises(FailedPrecondition, match="could not be made"):
        await jails.create(VM, 0)


async def test_the_end_of_a_console_is_kept_once_and_forgotten(
    jails: JailDirectories, tmp_path: Path
) -> None:
    console = tmp_path / "console.log"
    await jails.archive_console(VM, console)
    assert not jails.archived_console(VM).exists()
    console.write_bytes(b"0123456789abcde")
    await jails.archive_console(VM, console)
    console.write_bytes(b"other")
    await jails.archive_console(VM, console)
    assert jails.archived_console(VM).read_bytes() == b"56789abcde"
    assert await jails.present() == {VM}
    await jails.forget_console(VM)
    await jails.forget_console(VM)
    assert await jails.present() == set()


async def test_a_link_in_the_consoles_place_is_not_followed(
    jails: JailDirectories, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    console = tmp_path / "console.log"
    console.symlink_to(secret)
    await jails.archive_console(VM, console)
    console.unlink()
    os.mkfifo(console)
    await jails.archive_console(VM, console)
    assert not jails.archived_console(VM).exists()


async def test_only_vms_are_ours(jails: JailDirectories, tmp_path: Path) -> None:
    (tmp_path / "jails" / "lost+found").mkdir(parents=True)
    (tmp_path / "jails" / VM).mkdir()
    assert await jails.present() == {VM}
