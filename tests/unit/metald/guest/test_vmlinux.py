"""Kernels out of their images: every compression that Debian and others use, and damaged ones."""

import bz2
import gzip
import lzma
import os
import struct
from pathlib import Path
from typing import Any, cast

import lz4.block  # pyright: ignore[reportMissingTypeStubs] - it has none
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from ironworks.metald.guest import vmlinux
from ironworks.metald.guest.build import DEFAULT_DIR, find
from ironworks.metald.guest.vmlinux import KernelError, is_elf, unpack, unpacked

ELF = b"\x7fELF\x02\x01\x01" + bytes(11) + struct.pack("<H", 62) + b"kernel" * 5000
ARM = ELF[:18] + struct.pack("<H", 183) + ELF[20:]


def lz4_legacy(data: bytes) -> bytes:
    block = cast("bytes", cast("Any", lz4.block).compress(data, store_size=False))
    return b"\x02\x21\x4c\x18" + struct.pack("<I", len(block)) + block


def bzimage(payload: bytes, *, version: int = 0x020F, sectors: int = 3) -> bytes:
    """An image whose header is where the boot protocol has it, as little as is read of it."""
    payload += struct.pack("<I", len(ELF))
    offset = 100
    image = bytearray(max(sectors + 1, 5) * 512 + offset)
    image[0x1F1] = sectors
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, version)
    struct.pack_into("<II", image, 0x248, offset, len(payload))
    start = ((sectors or 4) + 1) * 512 + offset
    return bytes(image[:start].ljust(start, b"\0")) + payload


@pytest.mark.parametrize(
    "payload",
    [
        gzip.compress(ELF),
        lzma.compress(ELF),
        lzma.compress(ELF, format=lzma.FORMAT_ALONE),
        bz2.compress(ELF),
        zstandard.compress(ELF),
        lz4_legacy(ELF),
        ELF,
    ],
    ids=["gzip", "xz", "lzma", "bzip2", "zstd", "lz4", "none"],
)
@pytest.mark.parametrize("sectors", [0, 3, 40])
def test_each_compression(payload: bytes, sectors: int) -> None:
    assert unpack(bzimage(payload, sectors=sectors))[: len(ELF)] == ELF


def test_an_elf_stays_as_it_is() -> None:
    assert unpack(ELF) == ELF
    assert not is_elf(ARM)
    assert not is_elf(ELF[:10])


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (b"", "neither a bzImage nor an ELF"),
        (b"#!/bin/sh\n" * 100, "neither a bzImage nor an ELF"),
        (ARM, "neither a bzImage nor an ELF"),
        (bzimage(gzip.compress(ELF), version=0x0207), "older than"),
        (bzimage(gzip.compress(ELF))[:-50], "cut off"),
        (bzimage(b"LZO!" * 100), "not known"),
        (bzimage(b"\x1f\x8b" + bytes(100)), "damaged"),
        (bzimage(b"\xfd7zXZ\x00" + bytes(100)), "damaged"),
        (bzimage(b"(\xb5/\xfd" + bytes(100)), "damaged"),
        (bzimage(gzip.compress(b"no kernel")), "no ELF"),
        (bzimage(lz4_legacy(b"no kernel")), "no ELF"),
    ],
)
def test_what_is_no_kernel_is_said(image: bytes, words: str) -> None:
    with pytest.raises(KernelError, match=words) as caught:
        unpack(image)
    assert str(caught.value).endswith(".")


@given(st.binary(max_size=600), st.integers(0, 2000))
def test_damage_is_an_error_and_nothing_else(noise: bytes, at: int) -> None:
    image = bytearray(bzimage(gzip.compress(ELF)))
    image[at : at + len(noise)] = noise
    try:
        kernel = unpack(bytes(image))
    except KernelError:
        return
    assert is_elf(kernel)


def test_it_is_unpacked_once_and_the_oldest_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vmlinux, "MAX_KEPT", 1)
    image = tmp_path / "vmlinuz"
    image.write_bytes(bzimage(gzip.compress(ELF)))
    first = unpacked(image, tmp_path / "elf")
    assert first.read_bytes() == ELF
    assert first.stat().st_mode & 0o777 == 0o444
    inode = first.stat().st_ino
    assert unpacked(image, tmp_path / "elf").stat().st_ino == inode
    os.utime(first, (1, 1))
    other = tmp_path / "other"
    other.write_bytes(bzimage(lzma.compress(ELF)))
    second = unpacked(other, tmp_path / "elf")
    assert list((tmp_path / "elf").iterdir()) == [second]


def test_an_elf_is_not_copied(tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinux"
    kernel.write_bytes(ELF)
    assert unpacked(kernel, tmp_path / "elf") == kernel
    assert not (tmp_path / "elf").exists()


def test_debians_kernel(tmp_path: Path) -> None:
    guest = find(DEFAULT_DIR)
    assert guest is not None, "`./iron test` builds it"
    kernel = unpacked(guest.kernel_path, tmp_path)
    with kernel.open("rb") as file:
        assert is_elf(file.read(64))
    assert kernel.stat().st_size > 3 * guest.kernel.size_bytes
