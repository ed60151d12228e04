"""Gets the uncompressed kernel (an ELF) out of a bzImage, for VMMs that boot nothing else.

A bzImage holds its kernel as a compressed payload, whose place the setup header tells. Source: the
kernel's Documentation/arch/x86/boot.rst, fields `setup_sects`, `payload_offset`, `payload_length`.
What comes out is kept by the SHA-256 of what went in, so that each kernel is unpacked once.
"""

import bz2
import hashlib
import lzma
import os
import struct
import tempfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import lz4.block  # pyright: ignore[reportMissingTypeStubs] - it has none
import zstandard

_lz4_block = cast("Any", lz4.block)

MAX_KERNEL_BYTES = 512 * 1024 * 1024
"""Of the kernel unpacked; Debian's has about 60 MiB."""
MAX_KEPT = 4
"""Unpacked kernels that are kept; the least lately made go first."""

_ELF_MAGIC = b"\x7fELF"
_ELF_64_LITTLE = b"\x02\x01"
_ELF_MACHINE_AT, _ELF_X86_64 = 18, 62
_HEADER_AT, _HEADER_MAGIC = 0x202, b"HdrS"
_SETUP_SECTORS_AT, _VERSION_AT, _PAYLOAD_AT = 0x1F1, 0x206, 0x248
_MIN_VERSION = 0x0208
"""Since this version of the boot protocol the header tells where the payload is."""
_SECTOR_BYTES = 512
_DEFAULT_SETUP_SECTORS = 4
_SIZE_BYTES = 4
"""The payload ends in its unpacked size."""
_LZ4_BLOCK_BYTES = 8 * 1024 * 1024


class KernelError(ValueError):
    """The file is no kernel that can be booted; the message is a sentence for people."""


def _gzip(data: bytes) -> bytes:
    return zlib.decompressobj(wbits=31).decompress(data, MAX_KERNEL_BYTES)


def _xz(data: bytes) -> bytes:
    return lzma.LZMADecompressor(format=lzma.FORMAT_XZ).decompress(data, MAX_KERNEL_BYTES)


def _lzma(data: bytes) -> bytes:
    return lzma.LZMADecompressor(format=lzma.FORMAT_ALONE).decompress(data, MAX_KERNEL_BYTES)


def _bzip2(data: bytes) -> bytes:
    return bz2.BZ2Decompressor().decompress(data, MAX_KERNEL_BYTES)


def _zstd(data: bytes) -> bytes:
    reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(data)
    return reader.read(MAX_KERNEL_BYTES)


def _lz4(data: bytes) -> bytes:
    """The legacy frame, which the kernel uses: blocks of 8 MiB, each behind its packed length."""
    parts: list[bytes] = []
    at, total = 4, 0
    while at + 4 <= len(data):
        (length,) = struct.unpack_from("<I", data, at)
        if length == 0 or at + 4 + length > len(data):
            break
        packed = data[at + 4 : at + 4 + length]
        parts.append(
            cast("bytes", _lz4_block.decompress(packed, uncompressed_size=_LZ4_BLOCK_BYTES))
        )
        total += len(parts[-1])
        at += 4 + length
        if total > MAX_KERNEL_BYTES:
            break
    return b"".join(parts)


_UNPACKERS: Mapping[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": _gzip,
    b"\xfd7zXZ\x00": _xz,
    b"(\xb5/\xfd": _zstd,
    b"\x02\x21\x4c\x18": _lz4,
    b"BZh": _bzip2,
    b"]\x00\x00": _lzma,
    _ELF_MAGIC: bytes,
}
"""How a payload begins → how it is unpacked."""


def is_elf(head: bytes) -> bool:
    """Whether a file that begins so is a 64-bit ELF for x86-64."""
    if not head.startswith(_ELF_MAGIC + _ELF_64_LITTLE) or len(head) < _ELF_MACHINE_AT + 2:
        return False
    return struct.unpack_from("<H", head, _ELF_MACHINE_AT)[0] == _ELF_X86_64


def _payload(image: bytes) -> bytes:
    if len(image) < _PAYLOAD_AT + 8 or image[_HEADER_AT : _HEADER_AT + 4] != _HEADER_MAGIC:
        raise KernelError("The kernel is neither a bzImage nor an ELF for x86-64.")
    (version,) = struct.unpack_from("<H", image, _VERSION_AT)
    if version < _MIN_VERSION:
        raise KernelError(
            "The kernel is a bzImage older than Linux 2.6.24, which is not supported."
        )
    sectors = image[_SETUP_SECTORS_AT] or _DEFAULT_SETUP_SECTORS
    offset, length = struct.unpack_from("<II", image, _PAYLOAD_AT)
    start = (sectors + 1) * _SECTOR_BYTES + offset
    if length <= _SIZE_BYTES or start + length > len(image):
        raise KernelError("The kernel is a bzImage that is cut off, or whose header is damaged.")
    return image[start : start + length]


def unpack(image: bytes) -> bytes:
    """The ELF in a bzImage; an ELF as it is.

    Raises:
        KernelError: it is neither, damaged, or compressed in a way that is not known.
    """
    if is_elf(image):
        return image
    payload = _payload(image)
    unpacker = next((how for magic, how in _UNPACKERS.items() if payload.startswith(magic)), None)
    if unpacker is None:
        raise KernelError("The kernel is compressed in a way that is not known (LZO?).")
    try:
        kernel = unpacker(payload)
    except (OSError, EOFError, ValueError, RuntimeError, zlib.error, lzma.LZMAError) as error:
        raise KernelError("The kernel's compressed part is damaged.") from error
    except (zstandard.ZstdError, MemoryError) as error:
        raise KernelError("The kernel's compressed part is damaged.") from error
    if not is_elf(kernel):
        raise KernelError("What the kernel's image holds is no ELF for x86-64.")
    return kernel


def unpacked(kernel: Path, directory: Path) -> Path:
    """A file with the ELF of a kernel, made at the first call; blocks.

    Args:
        kernel: A bzImage or an ELF, of at most `MAX_KERNEL_BYTES`.
        directory: Where unpacked kernels are kept, by the hash of what they were.

    Returns:
        `kernel` itself if it is an ELF.

    Raises:
        KernelError: it is no kernel.
        OSError: it cannot be read, or there is no room.
    """
    with kernel.open("rb") as file:
        if is_elf(file.read(64)):
            return kernel
        if os.fstat(file.fileno()).st_size > MAX_KERNEL_BYTES:
            raise KernelError("The kernel is larger than 512 MiB.")
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        target = directory / f"{digest}.elf"
        if target.exists():
            return target
        file.seek(0)
        content = unpack(file.read())
    directory.mkdir(parents=True, exist_ok=True)
    # Whole or not at all, and made by several at once without harm.
    with tempfile.NamedTemporaryFile(dir=directory, prefix=".unpack-", delete=False) as beside:
        try:
            beside.write(content)
            beside.flush()
            os.fsync(beside.fileno())
            Path(beside.name).chmod(0o444)
            Path(beside.name).replace(target)
        except BaseException:
            Path(beside.name).unlink(missing_ok=True)
            raise
    _forget_old(directory)
    return target


def _forget_old(directory: Path) -> None:
    kept = sorted(directory.glob("*.elf"), key=lambda path: path.stat().st_mtime_ns)
    for path in kept[: max(0, len(kept) - MAX_KEPT)]:
        path.unlink(missing_ok=True)
