"""What bytes are, where they are kept, and where they may be placed."""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import struct
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import zstandard

from ironworks.assetmanagerd.bytes.appender import FLUSH_BYTES, Appender
from ironworks.assetmanagerd.bytes.disk import Hasher
from ironworks.assetmanagerd.bytes.formats import examine, examine_file
from ironworks.assetmanagerd.bytes.local import LocalBackend
from ironworks.assetmanagerd.bytes.place import open_below, place, split_below
from ironworks.assetmanagerd.bytes.staging import Staging
from ironworks.assetmanagerd.types import AssetFormat, AssetKind, Facts, PrepareMethod
from ironworks.model.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
)
from ironworks.testkit.assets import firecracker_state, squashfs

CPIO = b"070701" + b"0" * 506


def bzimage(protocol: int = 0x20F, flags: int = 1, paragraphs: int = 16) -> bytes:
    head = bytearray(5 * 512 + 256)
    head[0x1FE:0x200] = b"\x55\xaa"
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<I", head, 0x1F4, paragraphs)
    struct.pack_into("<H", head, 0x206, protocol)
    struct.pack_into("<H", head, 0x236, flags)
    return bytes(head)


def elf(machine: int = 62, entry: int = 0x1000, bits: int = 2) -> bytes:
    head = bytearray(64 + 56)
    head[:6] = b"\x7fELF" + bytes([bits, 1])
    struct.pack_into("<HH", head, 16, 2, machine)
    struct.pack_into("<QQ", head, 24, entry, 64)
    struct.pack_into("<H", head, 56, 1)
    return bytes(head)


def arm64() -> bytes:
    return bytes(16) + struct.pack("<Q", 4096) + bytes(32) + b"ARM\x64" + bytes(64)


def see(
    body: bytes, kind: AssetKind, claimed: AssetFormat | None = None, host: str = "amd64"
) -> tuple[str, str]:
    claim = Facts(kind=kind, sha256="", size_bytes=len(body), format=claimed)
    found = examine(body[:65536], len(body), claim, host)
    return found.format.value, found.architecture


def test_formats_are_found_out() -> None:
    kernel, initrd = AssetKind.KERNEL, AssetKind.INITRD
    assert see(bzimage(), kernel) == ("bzimage", "amd64")
    assert see(elf(), kernel) == ("elf", "amd64")
    assert see(elf(machine=183), kernel, host="arm64") == ("elf", "arm64")
    assert see(arm64(), kernel, host="arm64") == ("arm64_image", "arm64")
    assert see(CPIO, initrd) == ("cpio", "")
    assert see(gzip.compress(CPIO), initrd) == ("cpio_gzip", "")
    assert see(zstandard.ZstdCompressor().compress(CPIO), initrd) == ("cpio_zstd", "")
    assert see(squashfs(), AssetKind.ROOTFS) == ("squashfs", "")


def test_a_real_ext4_is_one(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["/sbin/mkfs.ext4", "-q", image], check=True)
    body = image.read_bytes()
    assert see(body, AssetKind.ROOTFS) == ("ext4", "")
    with pytest.raises(InvalidRequest, match="cut off"):
        see(body[:-4096], AssetKind.ROOTFS)


def test_a_real_snapshot_of_qemu_is_one(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    subprocess.run(
        [
            *("qemu-system-x86_64", "-S", "-M", "q35", "-accel", "tcg", "-m", "16"),
            *("-display", "none", "-nodefaults", "-monitor", "stdio"),
        ],
        input=f'migrate "exec:cat>{path}"\nquit\n'.encode(),
        stdout=subprocess.DEVNULL,
        timeout=60,
        check=True,
    )
    body = path.read_bytes()
    assert see(body, AssetKind.SNAPSHOT) == ("vm_snapshot", "")
    assert see(body, AssetKind.SNAPSHOT, AssetFormat.VM_SNAPSHOT) == ("vm_snapshot", "")
    with pytest.raises(InvalidRequest, match="not a rootfs"):
        see(body, AssetKind.ROOTFS)


@pytest.mark.parametrize("architecture", ["amd64", "arm64"])
def test_the_state_of_a_vm_of_firecracker_is_a_snapshot_of_its_architecture(
    tmp_path: Path, architecture: str
) -> None:
    body = firecracker_state(architecture)
    assert see(body, AssetKind.SNAPSHOT) == ("vm_snapshot", architecture)
    path = tmp_path / "state"
    for content, is_whole in ((body, True), (body[:-9] + b"?" + body[-8:], False)):
        path.write_bytes(content)
        claim = Facts(kind=AssetKind.SNAPSHOT, sha256="", size_bytes=len(content))
        with nullcontext() if is_whole else pytest.raises(InvalidRequest, match="CRC-64"):
            examine_file(path, content, claim, "amd64")


@pytest.mark.parametrize(
    ("body", "kind", "reason"),
    [
        (bytes(1 << 20), AssetKind.SNAPSHOT, "no snapshot"),
        (b"QEVM\0\0\0\2\1", AssetKind.SNAPSHOT, "QEMU 2.4"),
        (b"QEVM\0\0\0\3", AssetKind.SNAPSHOT, "QEMU 2.4"),
        (b"QEVM\0\0\0\3\xff", AssetKind.SNAPSHOT, "QEMU 2.4"),
        (firecracker_state()[:25], AssetKind.SNAPSHOT, "does not have 25 bytes"),
        (squashfs(), AssetKind.SNAPSHOT, "not a snapshot"),
        (b"", AssetKind.ROOTFS, "no rootfs"),
        (b"#!/bin/sh\n", AssetKind.KERNEL, "no kernel"),
        (squashfs()[:500], AssetKind.ROOTFS, "cut off"),
        (squashfs()[:50], AssetKind.ROOTFS, "superblock"),
        (b"hsqs" + bytes(200), AssetKind.ROOTFS, r"squashfs 0\.0"),
        (bzimage(protocol=0x203), AssetKind.KERNEL, "64-bit"),
        (bzimage(flags=0), AssetKind.KERNEL, "64-bit"),
        (bzimage(paragraphs=10_000), AssetKind.KERNEL, "cut off"),
        (elf(bits=1), AssetKind.KERNEL, "64-bit"),
        (elf(entry=0), AssetKind.KERNEL, "booted"),
        (elf(machine=8), AssetKind.KERNEL, "architecture"),
        (gzip.compress(b"not a cpio" * 100), AssetKind.INITRD, "not a cpio"),
        (b"\x28\xb5\x2f\xfdgarbage", AssetKind.INITRD, "not a cpio"),
        (squashfs(), AssetKind.KERNEL, "not a kernel"),
        (CPIO, AssetKind.ROOTFS, "not a rootfs"),
    ],
)
def test_bytes_that_are_not_what_they_should_be(body: bytes, kind: AssetKind, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        see(body, kind)


@pytest.mark.parametrize(
    ("kernel", "host"), [(bzimage(), "arm64"), (elf(), "arm64"), (arm64(), "amd64")]
)
def test_a_kernel_of_another_architecture_cannot_be_booted_here(kernel: bytes, host: str) -> None:
    with pytest.raises(InvalidRequest, match=f"machines here are {host} and cannot boot it"):
        see(kernel, AssetKind.KERNEL, host=host)


def test_a_false_claim_of_format_or_architecture() -> None:
    with pytest.raises(InvalidRequest, match="bzimage, not elf"):
        see(bzimage(), AssetKind.KERNEL, AssetFormat.ELF)
    claim = Facts(kind=AssetKind.KERNEL, sha256="", size_bytes=1, architecture="arm64")
    with pytest.raises(InvalidRequest, match="for amd64, not for arm64"):
        examine(bzimage(), len(bzimage()), claim, "arm64")


# --- keeping ------------------------------------------------------------------------------------


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    made = Staging(tmp_path / "staging", min_free_bytes=0)
    made.open()
    return made


@pytest.fixture
async def kept(tmp_path: Path) -> LocalBackend:
    made = LocalBackend(tmp_path)
    await made.open()
    return made


async def stored(kept: LocalBackend, staging: Staging, body: bytes = b"bytes") -> str:
    (staging.path / "x").write_bytes(body)
    hashed = staging.read("x")
    await kept.keep(staging.path / "x", hashed.sha256, hashed.size_bytes)
    return hashed.sha256


async def test_kept_bytes_are_named_by_what_they_are_and_read_only(
    kept: LocalBackend, staging: Staging
) -> None:
    sha256 = await stored(kept, staging)
    assert sha256 == hashlib.sha256(b"bytes").hexdigest()
    assert kept.path(sha256).stat().st_mode & 0o777 == 0o444
    assert staging.names() == {}


async def test_a_file_that_could_be_written_is_not_handed_out(
    kept: LocalBackend, staging: Staging
) -> None:
    sha256 = await stored(kept, staging)
    kept.path(sha256).chmod(0o644)
    with pytest.raises(FailedPrecondition, match="writable"):
        async with kept.local(sha256, 5):
            pass


async def test_damage_is_found(kept: LocalBackend, staging: Staging) -> None:
    sha256 = await stored(kept, staging)
    kept.path(sha256).write_bytes(b"bitez")
    assert "SHA-256" in await kept.problem(sha256, 5)
    kept.path(sha256).write_bytes(b"cut")
    assert "damaged" in await kept.problem(sha256, 5)


async def test_a_file_that_is_replaced_is_freed_later(kept: LocalBackend, staging: Staging) -> None:
    sha256 = await stored(kept, staging)
    before = kept.path(sha256).stat().st_ino
    await stored(kept, staging)
    await stored(kept, staging)
    assert kept.path(sha256).stat().st_ino != before
    assert await kept.leftovers() == 1
    assert await kept.leftovers() == 0
    assert await kept.problem(sha256, 5) == ""


def test_only_files_are_taken_from_the_staging_area(staging: Staging, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        staging.read("nothing")
    (tmp_path / "secret").write_text("secret")
    (staging.path / "link").symlink_to(tmp_path / "secret")
    (staging.path / "directory").mkdir()
    os.mkfifo(staging.path / "fifo")
    for name in ("link", "directory", "fifo"):
        with pytest.raises(InvalidRequest, match="not a file"):
            staging.read(name)


def test_uploads_are_written_where_they_belong(staging: Staging) -> None:
    staging.append("u", 0, [b"hel", b"lo "])
    staging.append("u", 6, [b"world"])
    staging.sync("u")
    staging.sync("absent")
    assert staging.size_bytes("u") == 11
    assert staging.size_bytes("absent") == 0
    assert staging.read("u").head == b"hello world"
    staging.discard("u")
    staging.discard("u")


def test_no_room(staging: Staging) -> None:
    staging.check_room(1)
    with pytest.raises(ResourceExhausted, match="no room"):
        staging.check_room(1 << 60)


async def test_what_is_appended_is_hashed_behind_the_stream(staging: Staging) -> None:
    body, hasher = os.urandom(3 * FLUSH_BYTES + 5), Hasher()
    async with Appender(staging, "u", hasher) as appender:
        for at in range(0, len(body), 1 << 20):
            await appender.take(body[at : at + (1 << 20)])
    assert hasher.result().sha256 == hashlib.sha256(body).hexdigest()
    assert staging.read("u") == hasher.result()


async def test_after_a_failure_a_file_holds_a_beginning_and_no_more(
    staging: Staging, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, pwrite = os.urandom(4 * FLUSH_BYTES), os.pwrite

    def full(fd: int, view: memoryview, at: int) -> int:
        if FLUSH_BYTES < at < 2 * FLUSH_BYTES:
            raise OSError(errno.ENOSPC, "full")
        return pwrite(fd, view, at)

    monkeypatch.setattr(os, "pwrite", full)

    async def append() -> None:
        async with Appender(staging, "u", Hasher()) as appender:
            for at in range(0, len(body), 1 << 20):
                await appender.take(body[at : at + (1 << 20)])

    with pytest.raises(ResourceExhausted, match="no room"):
        await append()
    there = (staging.path / "u").read_bytes()
    assert 0 < len(there) < len(body)
    assert body.startswith(there)


# --- placing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("directory", "error"),
    [
        ("/jails", PermissionDenied),
        ("/etc", PermissionDenied),
        ("/jailsx/vm", PermissionDenied),
        ("jails/vm", InvalidRequest),
        ("/jails/../etc", InvalidRequest),
        ("/jails/./vm", InvalidRequest),
        ("/jails//vm", InvalidRequest),
        ("/jails/vm/", InvalidRequest),
        ("/jails/v\0m", InvalidRequest),
        ("/jails/" + "x" * 5000, InvalidRequest),
        ("", InvalidRequest),
    ],
)
def test_directories_that_may_not_be_named(directory: str, error: type[Exception]) -> None:
    assert split_below("/jails/vm/root", [Path("/jails")]) == (Path("/jails"), ("vm", "root"))
    with pytest.raises(error):
        split_below(directory, [Path("/jails")])


def test_no_link_is_followed_on_the_way(tmp_path: Path) -> None:
    (tmp_path / "jails" / "vm").mkdir(parents=True)
    (tmp_path / "outside" / "root").mkdir(parents=True)
    (tmp_path / "jails" / "vm" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "jails" / "vm" / "file").touch()
    os.close(open_below(tmp_path / "jails", ("vm",)))
    for parts in (("vm", "link"), ("vm", "link", "root"), ("vm", "file"), ("vm", "absent")):
        with pytest.raises(FailedPrecondition):
            open_below(tmp_path / "jails", parts)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "jail").mkdir()
    return tmp_path / "jail"


def put(kept: LocalBackend, sha256: str, here: Path, size_bytes: int = 5) -> PrepareMethod:
    fd = open_below(here.parent, (here.name,))
    try:
        return place(
            kept.path(sha256),
            sha256=sha256,
            size_bytes=size_bytes,
            directory_fd=fd,
            file_name="rootfs",
        )
    finally:
        os.close(fd)


async def test_bytes_are_linked_not_copied(
    kept: LocalBackend, staging: Staging, here: Path
) -> None:
    sha256 = await stored(kept, staging)
    assert put(kept, sha256, here) is PrepareMethod.HARD_LINK
    assert (here / "rootfs").stat().st_ino == kept.path(sha256).stat().st_ino
    assert put(kept, sha256, here) is PrepareMethod.HARD_LINK
    await kept.remove(sha256)
    assert (here / "rootfs").read_bytes() == b"bytes"


OCCUPIED: list[Callable[[Path], object]] = [
    lambda path: path.write_bytes(b"other"),
    lambda path: path.symlink_to("/etc/passwd"),
    lambda path: path.mkdir(),
    os.mkfifo,
]


@pytest.mark.parametrize("occupy", OCCUPIED)
async def test_what_is_there_is_never_replaced(
    kept: LocalBackend, staging: Staging, here: Path, occupy: Callable[[Path], object]
) -> None:
    sha256 = await stored(kept, staging)
    occupy(here / "rootfs")
    before = (here / "rootfs").lstat().st_ino
    with pytest.raises(FailedPrecondition, match="another file"):
        put(kept, sha256, here)
    assert (here / "rootfs").lstat().st_ino == before


async def test_an_equal_copy_is_left_as_it_is(
    kept: LocalBackend, staging: Staging, here: Path
) -> None:
    sha256 = await stored(kept, staging)
    (here / "rootfs").write_bytes(b"bytes")
    put(kept, sha256, here)
    assert (here / "rootfs").read_bytes() == b"bytes"


async def test_bytes_that_are_gone(kept: LocalBackend, staging: Staging, here: Path) -> None:
    sha256 = await stored(kept, staging)
    with pytest.raises(DataLoss):
        put(kept, sha256, here, size_bytes=6)
    await kept.remove(sha256)
    with pytest.raises(DataLoss):
        put(kept, sha256, here)
    assert list(here.iterdir()) == []


async def test_another_file_system_gets_a_verified_copy(
    kept: LocalBackend, staging: Staging
) -> None:
    shared = Path("/dev/shm")
    if shared.stat().st_dev == staging.path.stat().st_dev:
        pytest.skip("there is no second file system here")
    here = shared / f"ironworks-test-{os.getpid()}"
    here.mkdir()
    try:
        sha256 = await stored(kept, staging, os.urandom(3_000_000))
        method = put(kept, sha256, here, size_bytes=3_000_000)
        assert method is PrepareMethod.COPY
        assert hashlib.sha256((here / "rootfs").read_bytes()).hexdigest() == sha256
        assert [path.name for path in here.iterdir()] == ["rootfs"]
        assert (here / "rootfs").stat().st_mode & 0o222 == 0
    finally:
        for path in here.iterdir():
            path.unlink()
        here.rmdir()
