"""The guest's build: from Debian's package to an initrd, cached, and each failure a sentence."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ironworks.metald.guest import build
from ironworks.metald.guest.build import (
    DEFAULT_DIR,
    Guest,
    build_now,
    default_source_dir,
    find,
    inputs_sha256,
)
from ironworks.model.errors import FailedPrecondition, IronError, Unavailable


@pytest.fixture(scope="session")
def host_guest() -> Guest:
    """The guest of this machine; `./iron test` has built it."""
    result = build_now(DEFAULT_DIR)
    if isinstance(result, IronError):
        raise result
    return result


@pytest.fixture
def packages(tmp_path: Path, host_guest: Guest) -> Path:
    """A guest directory that has the kernel's package and nothing else."""
    directory = tmp_path / "guest"
    (directory / "packages").mkdir(parents=True)
    for package in (DEFAULT_DIR / "packages").glob("*.deb"):
        shutil.copyfile(package, directory / "packages" / package.name)
    return directory


def members(archive: Path) -> set[str]:
    done = subprocess.run(
        ["cpio", "-it", "--quiet"], input=archive.read_bytes(), capture_output=True, check=True
    )
    return set(done.stdout.decode().split())


def never_run(*_: object, **__: object) -> None:
    pytest.fail("a program was run")


async def test_a_build_is_the_same_everywhere_and_is_found_again(
    packages: Path, host_guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = await build.build(packages)
    assert guest.initrd == host_guest.initrd
    assert guest.directory.parent == packages
    assert guest.directory.name.startswith(f"{guest.kernel_version}-")
    assert {path.name for path in packages.iterdir()} == {
        ".lock",
        "packages",
        guest.directory.name,
    }
    listing = members(guest.initrd_path)
    assert {"init", "dev/console", "modules.list", "modules/virtio_blk.ko"} <= listing
    monkeypatch.setattr(build, "run", never_run)
    assert await build.build(packages) == guest


def test_an_initrd_is_found_for_the_very_sources_only(tmp_path: Path, host_guest: Guest) -> None:
    guest = host_guest
    sources = tmp_path / "sources"
    shutil.copytree(default_source_dir(), sources)
    assert inputs_sha256(sources) == guest.inputs_sha256
    (sources / "README.md").write_text("changed")
    assert find(DEFAULT_DIR, source_dir=sources) == guest
    with (sources / "init.c").open("a") as file:
        file.write("\n")
    assert find(DEFAULT_DIR, source_dir=sources) is None


def test_the_newest_whole_guest_is_found(tmp_path: Path, host_guest: Guest) -> None:
    whole = host_guest
    for version in ("6.1.0-9", "6.1.0-10", "6.1.0-11"):
        directory = tmp_path / version
        shutil.copytree(whole.directory, directory)
        manifest = json.loads((directory / "manifest.json").read_text())
        (directory / "manifest.json").write_text(
            json.dumps({**manifest, "kernel_version": version})
        )
    (tmp_path / "6.1.0-11/initrd.img").write_bytes(b"torn")
    found = find(tmp_path)
    assert found is not None
    assert found.kernel_version == "6.1.0-10"
    (tmp_path / "6.1.0-10/manifest.json").write_text("{")
    again = find(tmp_path)
    assert again is not None
    assert again.kernel_version == "6.1.0-9"


async def test_the_oldest_guests_go(
    packages: Path, host_guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "MAX_GUESTS", 2)
    for name in ("older", "old"):
        shutil.copytree(host_guest.directory, packages / name)
    os.utime(packages / "older/manifest.json", (1, 1))
    guest = await build.build(packages, refresh=False)
    assert guest.directory.name == "old"
    sources = packages / "sources"
    shutil.copytree(default_source_dir(), sources)
    with (sources / "init.c").open("a") as file:
        file.write("\n")
    guest = await build.build(packages, source_dir=sources)
    found = {path.parent.name for path in packages.glob("*/manifest.json")}
    assert found == {"old", guest.directory.name}


def test_nothing_is_found_where_nothing_is(tmp_path: Path) -> None:
    assert find(tmp_path / "none") is None


async def test_a_compiler_that_is_missing_is_named(
    packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_COMPILER", "no-such-musl-gcc")
    with pytest.raises(FailedPrecondition, match="apt-get install musl-tools"):
        await build.build(packages)
    assert {path.name for path in packages.iterdir()} == {".lock", "packages"}


async def test_sources_that_do_not_compile_are_said_to(packages: Path, tmp_path: Path) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    with pytest.raises(FailedPrecondition, match="whole checkout"):
        await build.build(packages, source_dir=sources)
    (sources / "init.c").write_text("int main(void) { return nothing; }\n")
    with pytest.raises(FailedPrecondition, match="does not compile"):
        await build.build(packages, source_dir=sources)


async def test_too_little_disk_is_said(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "MIN_FREE_BYTES", 1 << 60)
    with pytest.raises(FailedPrecondition, match="MiB free"):
        await build.build(packages)


async def test_a_directory_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FailedPrecondition, match="cannot be written"):
        await build.build(tmp_path / "file" / "guest")


def put_program(directory: Path, name: str, script: str) -> None:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(f"#!/bin/sh\n{script}\n")
    (directory / name).chmod(0o755)


async def test_a_network_that_is_down_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    put_program(programs, "apt-cache", "echo '  Depends: linux-image-6.1.0-1-cloud-amd64'")
    put_program(programs, "apt-get", "echo 'no network' >&2; exit 100")
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    with pytest.raises(Unavailable, match="could not be downloaded") as caught:
        await build.build(tmp_path / "guest")
    assert caught.value.context["stderr"] == "no network"


async def test_package_lists_that_are_missing_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    put_program(programs, "apt-cache", "exit 100")
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    with pytest.raises(FailedPrecondition, match="apt-get update"):
        await build.build(tmp_path / "guest")
