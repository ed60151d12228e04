"""What PAX and GNU headers say of the entry that follows them.

Source: POSIX.1-2017 pax, "pax Header Block"; the GNU tar manual, "Storing Sparse Files".
"""

from __future__ import annotations

from ironworks.builderd.flatten.refusal import bad

MAX_EXTENDED_BYTES = 1 << 20
_XATTR = b"SCHILY.xattr."
_KEPT_XATTRS = (b"user.", b"trusted.", b"security.")
_SPARSE = b"GNU.sparse."
_MAX_XATTR_NAME_BYTES = 255
_MAX_XATTR_BYTES = 1 << 16
_MAX_DIGITS = 20


class Extended:
    """Records of one entry; later ones replace earlier ones.

    Attributes:
        records: Keyword → value.
        xattrs: Extended attributes of the kinds that file systems of images hold.
        sparse_runs: Offsets and lengths of GNU format 0.0, in their order.
        lost_xattrs: Names of the others.
    """

    def __init__(self) -> None:
        """Nothing is said yet."""
        self.records: dict[bytes, bytes] = {}
        self.xattrs: dict[bytes, bytes] = {}
        self.sparse_runs: list[bytes] = []
        self._left = MAX_EXTENDED_BYTES

    def spend(self, size_bytes: int) -> None:
        """Count a header that is about to be read.

        Raises:
            InvalidRequest: all of them together are too long.
        """
        self._left -= size_bytes
        if size_bytes < 0 or self._left < 0:
            raise bad("it has extended headers of more than 1 MiB")

    def add(self, kind: bytes, body: bytes) -> None:
        """Read one header.

        Raises:
            InvalidRequest: it is damaged.
        """
        if kind == b"L":
            self.records[b"path"] = body.split(b"\0", 1)[0]
        elif kind == b"K":
            self.records[b"linkpath"] = body.split(b"\0", 1)[0]
        elif kind == b"x":
            self._parse(body)
        # Global headers ("g") carry comments in practice, and other readers of images ignore them.

    def _parse(self, body: bytes) -> None:
        position = 0
        while position < len(body) and body[position]:
            space = body.find(b" ", position, position + _MAX_DIGITS)
            length = body[position:space]
            end = position + int(length) if space > 0 and length.isdigit() else -1
            equals = body.find(b"=", space, end)
            if not space < equals < end <= len(body) or body[end - 1 : end] != b"\n":
                raise bad("it has a damaged PAX header")
            self._record(body[space + 1 : equals], body[equals + 1 : end - 1])
            position = end

    def _record(self, key: bytes, value: bytes) -> None:
        if key.startswith(_XATTR):
            self._xattr(key[len(_XATTR) :], value)
        elif key in (_SPARSE + b"offset", _SPARSE + b"numbytes"):
            self.sparse_runs.append(value)
        else:
            self.records[key] = value

    def _xattr(self, name: bytes, value: bytes) -> None:
        if len(name) > _MAX_XATTR_NAME_BYTES or b"\0" in name:
            raise bad("it has an extended attribute with an impossible name")
        if len(value) > _MAX_XATTR_BYTES:
            raise bad(f"it has an extended attribute of more than {_MAX_XATTR_BYTES} bytes")
        # An empty value takes a record back (POSIX.1-2017, pax).
        if value and name.startswith(_KEPT_XATTRS):
            self.xattrs[name] = value

    def decimal(self, key: bytes, default: int) -> int:
        """A number among the records; `default` if it is absent or taken back.

        Raises:
            InvalidRequest: it is something else.
        """
        value = self.records.get(key)
        if value is None or value == b"":
            return default
        return number(value, key.decode(errors="replace"))


def number(text: bytes, what: str) -> int:
    """A decimal number of at most 64 bits.

    Raises:
        InvalidRequest: it is something else.
    """
    if not text.isdigit() or len(text) > _MAX_DIGITS:
        raise bad(f"its {what} is not a number")
    return int(text)
