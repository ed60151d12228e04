"""Verify and decompress one layer.

The blob is read once: its digest, the digest of what is in it, and the bounds are checked on the
way. The tar lands in a file without a name, so a killed process leaves nothing.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Protocol, cast

from isal import isal_zlib

from ironworks.builderd.flatten.plan import Layer, Limits, Plan
from ironworks.builderd.flatten.progress import Progress
from ironworks.model.errors import InvalidRequest, ResourceExhausted

_CHUNK_BYTES = 1 << 20
_CHECK_BYTES = 64 << 20
_MAX_WINDOW_BYTES = 1 << 27
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_THREADS_PER_PROCESSOR = 4
_KNOWN_OTHERS = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x04\x22\x4d\x18": "lz4"}


class Budget:
    """Decompressed bytes that an image may still have; shared by its layers."""

    def __init__(self, limits: Limits, scratch: str) -> None:
        self._left = limits.unpacked_bytes
        self._limit = limits.unpacked_bytes
        self._free_bytes = limits.free_bytes
        self._scratch = scratch
        self._until_check = 0

    def spend(self, count: int) -> None:
        """Take `count` bytes.

        Raises:
            InvalidRequest: the image unpacks to more than it may.
            ResourceExhausted: the disk would get too full.
        """
        self._left -= count
        if self._left < 0:
            raise InvalidRequest(
                f"The image unpacks to more than {self._limit} bytes.",
                hint="Make it smaller, or ask the operator for a higher limit.",
            )
        self._until_check -= count
        if self._until_check < 0:
            self._until_check = _CHECK_BYTES
            stats = os.statvfs(self._scratch)
            if stats.f_bavail * stats.f_frsize < self._free_bytes:
                raise no_room()


def no_room() -> ResourceExhausted:
    """The disk is full."""
    return ResourceExhausted(
        "There is no room on the disk to build this image.",
        hint="Free space in the data directory, then deploy again.",
    )


class _Blob:
    """A blob that is hashed as it is read, and ends one byte after the length it should have."""

    def __init__(self, file: io.FileIO, size_bytes: int, progress: Progress) -> None:
        self._file = file
        self._progress = progress
        self._digest = hashlib.sha256()
        self._left = size_bytes + 1
        self.read_bytes = 0

    def read(self, count: int = _CHUNK_BYTES) -> bytes:
        chunk = self._file.read(min(count, self._left))
        self._left -= len(chunk)
        self.read_bytes += len(chunk)
        self._digest.update(chunk)
        self._progress.add(len(chunk))
        return chunk

    def digest(self) -> str:
        return f"sha256:{self._digest.hexdigest()}"


def _pieces(blob: _Blob, digest: str) -> Iterator[bytes]:
    """What is in a blob, in pieces of at most 1 MiB."""
    head = blob.read()
    if head.startswith(_GZIP):
        yield from _gunzip(blob, head, digest)
    elif head.startswith(_ZSTD):
        yield from _unzstd(blob, head, digest)
    else:
        for magic, name in _KNOWN_OTHERS.items():
            if head.startswith(magic):
                raise InvalidRequest(
                    f"Layer {digest} is compressed with {name}, which images may not be.",
                    hint="Use gzip, zstd or no compression.",
                )
        while head:
            yield head
            head = blob.read()


def _damaged(digest: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"Layer {digest} is damaged: {reason}.", hint="Push the image again.")


class _Inflater(Protocol):
    """As `zlib.decompressobj`."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    @property
    def unconsumed_tail(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


_INFLATE_ERROR = cast("type[Exception]", isal_zlib.error)


def _new_inflater() -> _Inflater:
    # isal takes half the time of zlib; its stubs leave types out.
    return cast("_Inflater", isal_zlib.decompressobj(wbits=31))  # pyright: ignore[reportUnknownMemberType]


def _gunzip(blob: _Blob, chunk: bytes, digest: str) -> Iterator[bytes]:
    member = _new_inflater()
    while chunk:
        if member.eof:
            if not chunk.strip(b"\0"):  # padding after the last member
                chunk = blob.read()
                continue
            member = _new_inflater()
        try:
            piece = member.decompress(chunk, _CHUNK_BYTES)
        except _INFLATE_ERROR as error:
            raise _damaged(digest, str(error)) from error
        chunk = (member.unused_data if member.eof else member.unconsumed_tail) or blob.read()
        if piece:
            yield piece
    if not member.eof:
        raise _damaged(digest, "it is cut off")


def _unzstd(blob: _Blob, head: bytes, digest: str) -> Iterator[bytes]:
    import zstandard  # noqa: PLC0415 - most images are gzip, and the process is short

    source = cast("IO[bytes]", _Rewound(blob, head))
    context = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
    # A reader, since it alone bounds what a few bytes of input may expand to at once.
    with context.stream_reader(source, read_across_frames=True) as reader:
        try:
            while piece := reader.read(_CHUNK_BYTES):
                yield piece
        except zstandard.ZstdError as error:
            raise _damaged(digest, str(error)) from error


class _Rewound(io.RawIOBase):
    """A blob of which the head has been read already."""

    def __init__(self, blob: _Blob, head: bytes) -> None:
        super().__init__()
        self._blob = blob
        self._head = head

    def read(self, size: int = -1, /) -> bytes:
        if self._head:
            chunk, self._head = self._head[:size], self._head[size:]
            return chunk
        return self._blob.read(size if size > 0 else _CHUNK_BYTES)


def unpack_all(plan: Plan, budget: Budget, progress: Progress) -> list[tuple[int, int]]:
    """`unpack` for each layer of a plan, several at once.

    Raises:
        InvalidRequest, ResourceExhausted: as `unpack`, of the first layer that fails.
    """

    def work(layer: Layer) -> tuple[int, int]:
        return unpack(layer, plan.scratch, budget, progress)

    # More threads than processors: else the last layers leave processors idle.
    count = min(max(1, len(plan.layers)), _THREADS_PER_PROCESSOR * plan.processors)
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, plan.layers))


def unpack(layer: Layer, scratch: str, budget: Budget, progress: Progress) -> tuple[int, int]:
    """A descriptor of the layer's tar, and its length; the caller closes it.

    Raises:
        InvalidRequest: the blob is not what its digest says, is cut off, or is no known format.
        ResourceExhausted: the disk is full.
    """
    target = os.open(scratch, os.O_TMPFILE | os.O_RDWR, 0o600)
    try:
        size = _unpack_into(target, layer, budget, progress)
    except OSError as error:
        os.close(target)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise no_room() from error
        raise
    except BaseException:
        os.close(target)
        raise
    return target, size


def _unpack_into(target: int, layer: Layer, budget: Budget, progress: Progress) -> int:
    tar = hashlib.sha256()
    tar_bytes = 0
    with open(layer.path, "rb", buffering=0) as file:  # noqa: PTH123 - unbuffered
        blob = _Blob(file, layer.size_bytes, progress)
        for piece in _pieces(blob, layer.digest):
            budget.spend(len(piece))
            tar.update(piece)
            _write(target, piece)
            tar_bytes += len(piece)
        while blob.read():
            continue
    if blob.read_bytes != layer.size_bytes or blob.digest() != layer.digest:
        raise InvalidRequest(
            f"The bytes of layer {layer.digest} are not what the manifest says.",
            hint="Push the image again, or pull it again.",
        )
    if f"sha256:{tar.hexdigest()}" != layer.diff_id:
        raise InvalidRequest(
            f"What is in layer {layer.digest} is not what the image's configuration says.",
            hint="Push the image again.",
        )
    return tar_bytes


def _write(target: int, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(target, view) :]
