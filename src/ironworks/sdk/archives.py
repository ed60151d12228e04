"""Images on the client's machine as one stream of bytes, for an upload that can be resumed.

An archive is its own bytes. An OCI layout becomes a tar: sorted, without times and owners, so that
the same layout is the same archive whenever and by whomever it is sent.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ironworks.model.errors import InvalidRequest
from ironworks.model.units import MIB

CHUNK_BYTES = MIB
MAX_LAYOUT_FILES = 100_000
_BLOCK = 512


@dataclass(frozen=True, slots=True)
class _Piece:
    """Bytes of the stream: `text`, or the first `size_bytes` of a file."""

    size_bytes: int
    text: bytes = b""
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class Archive:
    """The bytes of an image, in pieces."""

    pieces: tuple[_Piece, ...]

    @property
    def size_bytes(self) -> int:
        """Length of the whole."""
        return sum(piece.size_bytes for piece in self.pieces)

    def sha256(self) -> str:
        """SHA-256 of the whole, 64 hexadecimal digits. Blocks.

        Raises:
            InvalidRequest: a file cannot be read, or has changed.
        """
        digest = hashlib.sha256()
        for chunk in self.chunks(0):
            digest.update(chunk)
        return digest.hexdigest()

    def chunks(self, offset_bytes: int) -> Iterator[bytes]:
        """The bytes from an offset, at most `CHUNK_BYTES` at once. Blocks.

        Raises:
            InvalidRequest: a file cannot be read, or has changed.
        """
        for piece in self.pieces:
            if offset_bytes >= piece.size_bytes:
                offset_bytes -= piece.size_bytes
                continue
            yield from _read(piece, offset_bytes)
            offset_bytes = 0


def _read(piece: _Piece, offset: int) -> Iterator[bytes]:
    if piece.path is None:
        yield piece.text[offset:]
        return
    try:
        with piece.path.open("rb") as file:
            file.seek(offset)
            while offset < piece.size_bytes:
                chunk = file.read(min(CHUNK_BYTES, piece.size_bytes - offset))
                if not chunk:
                    raise InvalidRequest(f"{piece.path} has become shorter meanwhile.")
                offset += len(chunk)
                yield chunk
    except OSError as error:
        raise _unreadable(piece.path, error) from None


def _unreadable(path: Path, error: OSError) -> InvalidRequest:
    return InvalidRequest(f"{path} cannot be read: {error.strerror}.")


def open_archive(path: Path) -> Archive:
    """The image at `path`: an archive, or the directory of an OCI layout. Blocks.

    Raises:
        InvalidRequest: there is none, or it is neither.
    """
    try:
        if path.is_dir():
            return _pack(path)
        size = path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from None
    if not path.is_file() or size == 0:
        raise InvalidRequest(f"{path} is neither an archive nor a directory.")
    return Archive((_Piece(size, path=path),))


def _pack(root: Path) -> Archive:
    if not (root / "oci-layout").is_file() or not (root / "index.json").is_file():
        raise InvalidRequest(
            f"The directory {root} is not an OCI layout.",
            hint="It needs the files oci-layout and index.json; "
            "`skopeo copy docker-daemon:NAME oci:DIR` makes one.",
        )
    files = [root / "oci-layout", root / "index.json", root / "blobs"]
    files += [path for path in sorted((root / "blobs").glob("*")) if path.is_dir()]
    files += sorted((root / "blobs").glob("*/*"))
    if len(files) > MAX_LAYOUT_FILES:
        raise InvalidRequest(f"The layout {root} has more than {MAX_LAYOUT_FILES} files.")
    pieces: list[_Piece] = []
    for file in files:
        header = tarfile.TarInfo(file.relative_to(root).as_posix())
        if file.is_dir():
            # Readers make no directories by themselves.
            header.type, header.mode = tarfile.DIRTYPE, 0o755
            text = header.tobuf(tarfile.USTAR_FORMAT)
            pieces.append(_Piece(len(text), text=text))
            continue
        header.size = file.stat().st_size
        text = header.tobuf(tarfile.USTAR_FORMAT)
        pieces += [_Piece(len(text), text=text), _Piece(header.size, path=file)]
        padding = -header.size % _BLOCK
        pieces.append(_Piece(padding, text=bytes(padding)))
    pieces.append(_Piece(2 * _BLOCK, text=bytes(2 * _BLOCK)))
    return Archive(tuple(piece for piece in pieces if piece.size_bytes))
