"""What bytes are: magic numbers and superblocks of kernels, initrds, root file systems, snapshots.

Sources: Linux `Documentation/arch/x86/boot.rst` (bzImage), `arch/arm64/booting.rst`, the ELF
specification, `Documentation/driver-api/early-userspace/buffer-format.rst` (cpio), Linux
`fs/squashfs/squashfs_fs.h`, `Documentation/filesystems/ext4/super.rst`, QEMU `migration/savevm.h`.

These are checks that the bytes can be what they are claimed to be, on bytes that nobody trusts: no
parser here follows a pointer out of them.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import zstandard

from ironworks.assetmanagerd.bytes import state_file
from ironworks.assetmanagerd.types import KIND_OF_FORMAT, AssetFormat, AssetKind, Facts
from ironworks.model.errors import InvalidRequest

HEAD_BYTES = 64 * 1024
"""How much of the beginning the checks need."""

_CPIO = (b"070701", b"070702")
_GZIP = b"\x1f\x8b\x08"
_ZSTD = b"\x28\xb5\x2f\xfd"
_ELF_MACHINES = {62: "amd64", 183: "arm64"}
_SQUASHFS_COMPRESSORS = {1: "gzip", 2: "lzma", 3: "lzo", 4: "xz", 5: "lz4", 6: "zstd"}
_MIN_BLOCK_LOG, _MAX_BLOCK_LOG = 12, 20
_QEMU, _QEMU_VERSION = b"QEVM", b"\0\0\0\3"
_QEMU_FIRST = (0x01, 0x07)  # a section of a device, or the configuration of the machine
_BZIMAGE_MIN_PROTOCOL = 0x020C  # the first with xloadflags, Linux 3.8
_XLF_KERNEL_64 = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What the bytes are.

    Attributes:
        format: Which format.
        architecture: Empty where they do not tell.
        has_sum: They end with a sum of all of them, which is to be compared.
    """

    format: AssetFormat
    architecture: str = ""
    has_sum: bool = False


def examine_file(path: Path, head: bytes, facts: Facts, host_architecture: str) -> Found:
    """What a file is, if it is what `facts` claims; reads it, if it has a sum in it.

    Raises:
        InvalidRequest: it is not; says what is wrong with it.
    """
    found = examine(head, facts.size_bytes, facts, host_architecture)
    if found.has_sum:
        state_file.check_sum(path.read_bytes())
    return found


def examine(head: bytes, size_bytes: int, facts: Facts, host_architecture: str) -> Found:
    """What the bytes are, if they are what `facts` claims.

    Args:
        head: The first `HEAD_BYTES` of them, or all.
        size_bytes: How many they are.
        facts: The claim.
        host_architecture: What the machines of this platform run.

    Raises:
        InvalidRequest: they are not; says what is wrong with them.
    """
    found = _detect(head, size_bytes)
    if found is None:
        raise InvalidRequest(
            f"These bytes are no {facts.kind.value} of a format that is known here.",
            hint=f"Formats of a {facts.kind.value}: {_formats_of(facts.kind)}.",
        )
    check_claim(facts, found)
    if facts.kind is AssetKind.KERNEL and found.architecture != host_architecture:
        raise InvalidRequest(
            f"This kernel is for {found.architecture}; machines here are {host_architecture} and "
            "cannot boot it."
        )
    return found


def check_claim(facts: Facts, found: Found) -> None:
    """Compare a claim with what the bytes are.

    Raises:
        InvalidRequest: they are something else.
    """
    if facts.format is not None and found.format is not facts.format:
        raise InvalidRequest(f"These bytes are {found.format.value}, not {facts.format.value}.")
    if KIND_OF_FORMAT[found.format] is not facts.kind:
        raise InvalidRequest(f"These bytes are {found.format.value}: not a {facts.kind.value}.")
    if facts.architecture and found.architecture not in ("", facts.architecture):
        raise InvalidRequest(f"This is for {found.architecture}, not for {facts.architecture}.")


def _formats_of(kind: AssetKind) -> str:
    return ", ".join(known.value for known, its in KIND_OF_FORMAT.items() if its is kind)


def _detect(head: bytes, size_bytes: int) -> Found | None:
    for detect in (_squashfs, _ext4, _bzimage, _elf, _arm64, _initrd, _snapshot):
        found = detect(head, size_bytes)
        if found is not None:
            return found
    return None


def _squashfs(head: bytes, size_bytes: int) -> Found | None:
    if head[:4] != b"hsqs":
        return None
    if len(head) < 96:  # noqa: PLR2004 - length of the superblock
        raise InvalidRequest("The squashfs ends within its superblock.")
    inodes, _, block_bytes, _, compressor, block_log = struct.unpack_from("<IIIIHH", head, 4)
    major, minor = struct.unpack_from("<HH", head, 28)
    _, used_bytes, *tables = struct.unpack_from("<8Q", head, 32)
    if (major, minor) != (4, 0):
        raise InvalidRequest(f"This is squashfs {major}.{minor}; Linux mounts 4.0.")
    if compressor not in _SQUASHFS_COMPRESSORS or inodes == 0:
        raise InvalidRequest("The squashfs superblock is damaged.")
    if not _MIN_BLOCK_LOG <= block_log <= _MAX_BLOCK_LOG or block_bytes != 1 << block_log:
        raise InvalidRequest("The squashfs has an impossible block size.")
    if used_bytes > size_bytes:
        raise InvalidRequest(f"The squashfs is cut off: it has {size_bytes} of {used_bytes} bytes.")
    absent = (1 << 64) - 1
    if any(table > used_bytes for table in tables if table != absent):
        raise InvalidRequest("A table of the squashfs lies behind its end.")
    return Found(format=AssetFormat.SQUASHFS)


def _ext4(head: bytes, size_bytes: int) -> Found | None:
    at = 1024
    if len(head) < at + 1024 or head[at + 56 : at + 58] != b"\x53\xef":
        return None
    inodes, blocks_low = struct.unpack_from("<II", head, at)
    (block_log,) = struct.unpack_from("<I", head, at + 24)
    (incompatible,) = struct.unpack_from("<I", head, at + 96)
    (blocks_high,) = struct.unpack_from("<I", head, at + 336)
    is_64bit, has_extents = incompatible & 0x80, incompatible & 0x40
    if block_log > 6 or inodes == 0 or not has_extents:  # noqa: PLR2004 - 64 KiB is the largest
        raise InvalidRequest("The ext4 superblock is damaged, or it is ext2 or ext3.")
    blocks = blocks_low | (blocks_high << 32 if is_64bit else 0)
    wanted = blocks << (10 + block_log)
    if wanted > size_bytes:
        raise InvalidRequest(f"The ext4 is cut off: it has {size_bytes} of {wanted} bytes.")
    return Found(format=AssetFormat.EXT4)


def _bzimage(head: bytes, size_bytes: int) -> Found | None:
    if len(head) < 0x264 or head[0x1FE:0x200] != b"\x55\xaa" or head[0x202:0x206] != b"HdrS":  # noqa: PLR2004 - offsets of boot.rst
        return None
    sectors = head[0x1F1] or 4
    (paragraphs,) = struct.unpack_from("<I", head, 0x1F4)
    (protocol,) = struct.unpack_from("<H", head, 0x206)
    (flags,) = struct.unpack_from("<H", head, 0x236)
    if protocol < _BZIMAGE_MIN_PROTOCOL or not flags & _XLF_KERNEL_64:
        raise InvalidRequest("This kernel has no 64-bit entry point; it is too old to boot here.")
    wanted = (sectors + 1) * 512 + paragraphs * 16
    if wanted > size_bytes:
        raise InvalidRequest(f"The kernel is cut off: it has {size_bytes} of {wanted} bytes.")
    return Found(format=AssetFormat.BZIMAGE, architecture="amd64")


def _elf(head: bytes, size_bytes: int) -> Found | None:
    if head[:4] != b"\x7fELF":
        return None
    if len(head) < 64 or head[4] != 2 or head[5] != 1:  # noqa: PLR2004 - 64 bits, little endian
        raise InvalidRequest("This ELF file is not a 64-bit little-endian kernel.")
    kind, machine = struct.unpack_from("<HH", head, 16)
    entry, program_headers = struct.unpack_from("<QQ", head, 24)
    (header_count,) = struct.unpack_from("<H", head, 56)
    end = program_headers + header_count * 56
    if kind not in (2, 3) or entry == 0 or header_count == 0 or end > size_bytes:
        raise InvalidRequest("This ELF file cannot be booted.")
    if machine not in _ELF_MACHINES:
        raise InvalidRequest("This ELF file is for an architecture that Ironworks does not run on.")
    return Found(format=AssetFormat.ELF, architecture=_ELF_MACHINES[machine])


def _arm64(head: bytes, size_bytes: int) -> Found | None:
    if head[56:60] != b"ARM\x64":
        return None
    (image_bytes,) = struct.unpack_from("<Q", head, 16)
    if image_bytes == 0 or size_bytes < 64:  # noqa: PLR2004 - length of the header
        raise InvalidRequest("The arm64 kernel's header is damaged.")
    return Found(format=AssetFormat.ARM64_IMAGE, architecture="arm64")


def _initrd(head: bytes, _size_bytes: int) -> Found | None:
    if head[:6] in _CPIO:
        return Found(format=AssetFormat.CPIO)
    if head[:3] == _GZIP:
        inner, claimed = _gunzip_head(head), AssetFormat.CPIO_GZIP
    elif head[:4] == _ZSTD:
        inner, claimed = _unzstd_head(head), AssetFormat.CPIO_ZSTD
    else:
        return None
    if inner[:6] not in _CPIO:
        raise InvalidRequest("This is compressed, and what is inside is not a cpio archive.")
    return Found(format=claimed)


def _snapshot(head: bytes, size_bytes: int) -> Found | None:
    """A migration stream of QEMU, or the state file of Firecracker (its memory is another one)."""
    if head[:4] == _QEMU:
        if len(head) < 9 or head[4:8] != _QEMU_VERSION or head[8] not in _QEMU_FIRST:  # noqa: PLR2004 - magic, version, section
            raise InvalidRequest("This is no stream of a VM that QEMU 2.4 or newer wrote.")
        return Found(format=AssetFormat.VM_SNAPSHOT)
    header = state_file.read_header(head, size_bytes)
    if header is None:
        return None
    return Found(format=AssetFormat.VM_SNAPSHOT, architecture=header.architecture, has_sum=True)


def _gunzip_head(head: bytes) -> bytes:
    try:
        return zlib.decompressobj(wbits=31).decompress(head, 4096)
    except zlib.error:
        return b""


def _unzstd_head(head: bytes) -> bytes:
    try:
        with zstandard.ZstdDecompressor().stream_reader(head, read_across_frames=False) as reader:
            return reader.read(512)
    except zstandard.ZstdError:
        return b""
