"""What bytes are, where they are kept, and where they may be placed."""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from ironworks.assetmanagerd.bytes.formats import examine
from ironworks.assetmanagerd.bytes.local import LocalBytes
from ironworks.assetmanagerd.bytes.place import open_below, place, split_below
from ironworks.assetmanagerd.types import AssetFormat, AssetKind, Facts, PrepareMethod
from ironworks.model.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
)
from ironworks.testkit.assets import squashfs

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


def see(body: bytes, kind: AssetKind, claimed: AssetFormat | None = None) -> tuple[str, str]:
    claim = Facts(kind=kind, sha256="", size_bytes=len(body), format=claimed)
    found = examine(body[:65536], len(body), claim)
    return found.format.value, found.architecture


def test_formats_are_found_out() -> None:
    kernel, initrd = AssetKind.KERNEL, AssetKind.INITRD
    assert see(bzimage(), kernel) == ("bzimage", "amd64")
    assert see(elf(), kernel) == ("elf", "amd64")
    assert see(elf(machine=183), kernel) == ("elf", "arm64")
    assert see(arm64(), kernel) == ("arm64_image", "arm64")
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


@pytest.mark.parametrize(
    ("body", "kind", "reason"),
    [
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


def test_a_false_claim_of_format_or_architecture() -> None:
    with pytest.raises(InvalidRequest, match="bzimage, not elf"):
        see(bzimage(), AssetKind.KERNEL, AssetFormat.ELF)
    claim = Facts(kind=AssetKind.KERNEL, sha256="", size_bytes=1, architecture="arm64")
    with pytest.raises(InvalidRequest, match="for amd64, not for arm64"):
        examine(bzimage(), len(bzimage()), claim)


# --- keeping ------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> LocalBytes:
    made = LocalBytes(tmp_path / "assets", min_free_bytes=0)
    made.open()
    return made


def stored(files: LocalBytes, body: bytes = b"bytes") -> str:
    (files.staging / "x").write_bytes(body)
    sha256, _, _ = files.read_staged("x")
    files.adopt("x", sha256)
    return sha256


def test_adopted_bytes_are_named_by_what_they_are_and_read_only(files: LocalBytes) -> None:
    sha256 = stored(files)
    assert sha256 == hashlib.sha256(b"bytes").hexdigest()
    assert files.path(sha256).stat().st_mode & 0o777 == 0o444
    assert files.staged() == {}
    assert list(files.objects()) == [sha256]
    assert files.problem(sha256, 5) == ""
    files.remove(sha256)
    files.remove(sha256)
    assert not files.has(sha256)
    assert "gone" in files.problem(sha256, 5)


def test_damage_is_found(files: LocalBytes) -> None:
    sha256 = stored(files)
    files.path(sha256).chmod(0o644)
    with pytest.raises(FailedPrecondition, match="writable"):
        files.check_link_source(sha256)
    files.path(sha256).write_bytes(b"bitez")
    assert "SHA-256" in files.problem(sha256, 5)
    files.path(sha256).write_bytes(b"cut")
    assert "damaged" in files.problem(sha256, 5)


def test_only_files_are_taken_from_the_staging_area(files: LocalBytes, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        files.read_staged("nothing")
    (tmp_path / "secret").write_text("secret")
    (files.staging / "link").symlink_to(tmp_path / "secret")
    (files.staging / "directory").mkdir()
    os.mkfifo(files.staging / "fifo")
    for name in ("link", "directory", "fifo"):
        with pytest.raises(InvalidRequest, match="not a file"):
            files.read_staged(name)


def test_uploads_are_written_where_they_belong(files: LocalBytes) -> None:
    files.append("u", 0, b"hello ")
    files.append("u", 6, b"world")
    files.sync("u")
    files.sync("absent")
    assert files.staged_size("u") == 11
    assert files.staged_size("absent") == 0
    assert files.read_staged("u")[2] == b"hello world"
    files.discard("u")
    files.discard("u")


def test_no_room(tmp_path: Path) -> None:
    files = LocalBytes(tmp_path, min_free_bytes=0)
    files.open()
    files.check_room(1)
    with pytest.raises(ResourceExhausted, match="no room"):
        files.check_room(1 << 60)


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


def put(files: LocalBytes, sha256: str, here: Path, size_bytes: int = 5) -> PrepareMethod:
    fd = open_below(here.parent, (here.name,))
    try:
        return place(
            files, sha256=sha256, size_bytes=size_bytes, directory_fd=fd, file_name="rootfs"
        )
    finally:
        os.close(fd)


def test_bytes_are_linked_not_copied(files: LocalBytes, here: Path) -> None:
    sha256 = stored(files)
    assert put(files, sha256, here) is PrepareMethod.HARD_LINK
    assert (here / "rootfs").stat().st_ino == files.path(sha256).stat().st_ino
    assert put(files, sha256, here) is PrepareMethod.HARD_LINK
    files.remove(sha256)
    assert (here / "rootfs").read_bytes() == b"bytes"


OCCUPIED: list[Callable[[Path], object]] = [
    lambda path: path.write_bytes(b"other"),
    lambda path: path.symlink_to("/etc/passwd"),
    lambda path: path.mkdir(),
    os.mkfifo,
]


@pytest.mark.parametrize("occupy", OCCUPIED)
def test_what_is_there_is_never_replaced(
    files: LocalBytes, here: Path, occupy: Callable[[Path], object]
) -> None:
    occupy(here / "rootfs")
    before = (here / "rootfs").lstat().st_ino
    with pytest.raises(FailedPrecondition, match="another file"):
        put(files, stored(files), here)
    assert (here / "rootfs").lstat().st_ino == before


def test_an_equal_copy_is_left_as_it_is(files: LocalBytes, here: Path) -> None:
    (here / "rootfs").write_bytes(b"bytes")
    put(files, stored(files), here)
    assert (here / "rootfs").read_bytes() == b"bytes"


def test_bytes_that_are_gone(files: LocalBytes, here: Path) -> None:
    sha256 = stored(files)
    with pytest.raises(DataLoss):
        put(files, sha256, here, size_bytes=6)
    files.remove(sha256)
    with pytest.raises(DataLoss):
        put(files, sha256, here)
    assert list(here.iterdir()) == []


def test_another_file_system_gets_a_verified_copy(files: LocalBytes) -> None:
    shared = Path("/dev/shm")
    if shared.stat().st_dev == files.staging.stat().st_dev:
        pytest.skip("there is no second file system here")
    here = shared / f"ironworks-test-{os.getpid()}"
    here.mkdir()
    try:
        sha256 = stored(files, os.urandom(3_000_000))
        method = put(files, sha256, here, size_bytes=3_000_000)
        assert method is PrepareMethod.COPY
        assert hashlib.sha256((here / "rootfs").read_bytes()).hexdigest() == sha256
        assert [path.name for path in here.iterdir()] == ["rootfs"]
        assert (here / "rootfs").stat().st_mode & 0o222 == 0
    finally:
        for path in here.iterdir():
            path.unlink()
        here.rmdir()
