"""Blocks of ClickHouse's Native format, made from numpy arrays, and parameters of queries.

Neither pyarrow nor pandas is imported. Source of the format: ClickHouse, "Native format".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from ironworks.model.errors import Internal, InvalidRequest

_VARINT_MORE = 0x80
_ALPHABET = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """Strings that repeat: value i stands `counts[i]` times, one after the other."""

    values: Sequence[str]
    counts: Sequence[int]

    def __len__(self) -> int:
        return sum(self.counts)

    def __iter__(self) -> Iterator[str]:
        for value, count in zip(self.values, self.counts, strict=True):
            yield from repeat(value, count)


ColumnValues: TypeAlias = npt.NDArray[Any] | Sequence[str] | Sequence[int | None] | Runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a block.

    Attributes:
        name: Its name in the table.
        kind: ClickHouse type of the values: `String`, `UInt8` … `UInt64`, `Int32`, `Int64`,
            `Int128`, `FixedString(32)` or `Nullable` of a number. The server converts it to the
            table's type.
        values: A numpy array for numbers; strings (or runs of them), or integers and None, else.
    """

    name: str
    kind: str
    values: ColumnValues


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= _VARINT_MORE:
        out.append(value & (_VARINT_MORE - 1) | _VARINT_MORE)
        value >>= 7
    out.append(value)
    return bytes(out)


def _string(text: str) -> bytes:
    raw = text.encode()
    return _varint(len(raw)) + raw


_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r", "\0": "\\0"})
_WIDTHS = {
    "UInt8": "<u1", "UInt16": "<u2", "UInt32": "<u4", "UInt64": "<u8",
    "Int8": "<i1", "Int16": "<i2", "Int32": "<i4", "Int64": "<i8",
}  # fmt: skip
_INT128_BYTES = 16


def _strings(values: Sequence[str]) -> bytes:
    # Runs of one value are the rule: all rows of a window name the same VM.
    encoded: dict[str, bytes] = {value: _string(value) for value in set(values)}
    if len(encoded) == 1:
        return next(iter(encoded.values())) * len(values)
    return b"".join([encoded[value] for value in values])


def _numbers(kind: str, values: ColumnValues) -> bytes | memoryview:
    if kind == "Int128":
        whole = cast("Sequence[int]", values)
        return b"".join(
            [int(value).to_bytes(_INT128_BYTES, "little", signed=True) for value in whole]
        )
    return np.ascontiguousarray(values, dtype=_WIDTHS[kind]).data


def _body(kind: str, values: ColumnValues) -> bytes | memoryview:
    if isinstance(values, Runs):
        pairs = zip(values.values, values.counts, strict=True)
        return b"".join([_string(value) * count for value, count in pairs])
    if kind == "String":
        return _strings(cast("Sequence[str]", values))
    if kind.startswith("Nullable("):
        optional = cast("Sequence[int | None]", values)
        nulls = bytes([value is None for value in optional])
        return b"".join([nulls, _numbers(kind[9:-1], [value or 0 for value in optional])])
    return _numbers(kind, values)


def native_block(columns: Sequence[Column]) -> bytes:
    """One block of the Native format.

    Raises:
        InvalidRequest: columns of different length, or a kind that is not written here.
    """
    lengths = {len(column.values) for column in columns}
    if len(lengths) != 1:
        raise InvalidRequest("The columns of a block must be of one length.")
    parts: list[bytes | memoryview] = [_varint(len(columns)), _varint(lengths.pop())]
    for column in columns:
        try:
            body = _body(column.kind, column.values)
        except KeyError:
            raise InvalidRequest(f"Columns of type {column.kind} are not written.") from None
        parts += [_string(column.name), _string(column.kind), body]
    return b"".join(parts)


def _quoted(value: object) -> str:
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"'{escaped}'"
    return str(value)


def argument(value: object) -> object:
    """A parameter's value as the server parses it: arrays are written out, text is escaped."""
    if isinstance(value, list | tuple):
        items = cast("Sequence[object]", value)
        return "[" + ",".join(_quoted(item) for item in items) + "]"
    if isinstance(value, str):
        return value.translate(_ESCAPES)
    return value


def insert_into(table: str, columns: Sequence[Column]) -> str:
    """The statement that the block belongs to.

    Raises:
        Internal: a name that is none.
    """
    for name in (table, *(column.name for column in columns)):
        if not _ALPHABET.fullmatch(name):
            raise Internal(f"{name!r} is not the name of a table or column.")
    return f"INSERT INTO {table} ({', '.join(column.name for column in columns)})"
