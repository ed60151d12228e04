"""ClickHouse: in this process (chDB) today; the same interface for a server later.

Rows go in as blocks of ClickHouse's Native format, made here from numpy arrays, and come out as
JSON; neither pyarrow nor pandas is imported. Source of the format: ClickHouse, "Native format".

chDB allows one process a path and one statement at a time, so all statements run in one thread.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib.machinery
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt

from ironworks.model.errors import FailedPrecondition, Internal, InvalidRequest, Unavailable

_T = TypeVar("_T")
_SETTINGS = {
    # What an idle billing service needs; a busy one merges a little slower.
    "background_pool_size": 2,
    "background_schedule_pool_size": 2,
    "background_common_pool_size": 2,
    "background_move_pool_size": 1,
    "background_fetches_pool_size": 1,
    # Made on demand. Each close of a connection leaves six behind, and a pool that is used up waits
    # for ever: a bound for leaks, not for work.
    "max_thread_pool_size": 512,
    "mark_cache_size": 16 << 20,
    "uncompressed_cache_size": 0,
    "max_threads": 2,
}
_RTLD_DEEPBIND = 8
_MADV_PAGEOUT = 21
_VARINT_MORE = 0x80
_ALPHABET = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

ColumnValues = npt.NDArray[Any] | Sequence[str] | Sequence[int | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a block.

    Attributes:
        name: Its name in the table.
        kind: ClickHouse type of the values: `String`, `UInt8` … `UInt64`, `Int32`, `Int64`,
            `Int128`, `FixedString(32)` or `Nullable` of a number. The server converts it to the
            table's type.
        values: A numpy array for numbers; strings, or integers and None, else.
    """

    name: str
    kind: str
    values: ColumnValues


class ClickHouse(Protocol):
    """What a service asks of ClickHouse."""

    async def execute(self, sql: str) -> None:
        """Run a statement that answers nothing."""
        ...

    async def insert(self, table: str, columns: Sequence[Column]) -> int:
        """Append rows as one block; they are on disk when this returns. Answers how many."""
        ...

    async def rows(
        self, sql: str, parameters: Mapping[str, object] | None = None
    ) -> list[list[Any]]:
        """Run a query. Parameters stand in it as `{name:Type}` and cannot break out of it."""
        ...


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


def _numbers(kind: str, values: ColumnValues) -> bytes:
    if kind == "Int128":
        whole = cast("Sequence[int]", values)
        return b"".join(
            [int(value).to_bytes(_INT128_BYTES, "little", signed=True) for value in whole]
        )
    return np.ascontiguousarray(values, dtype=_WIDTHS[kind]).tobytes()


def _body(kind: str, values: ColumnValues) -> bytes:
    if kind == "String":
        return _strings(cast("Sequence[str]", values))
    if kind.startswith("Nullable("):
        optional = cast("Sequence[int | None]", values)
        nulls = bytes([value is None for value in optional])
        return nulls + _numbers(kind[9:-1], [value or 0 for value in optional])
    return _numbers(kind, values)


def native_block(columns: Sequence[Column]) -> bytes:
    """One block of the Native format.

    Raises:
        InvalidRequest: columns of different length, or a kind that is not written here.
    """
    lengths = {len(column.values) for column in columns}
    if len(lengths) != 1:
        raise InvalidRequest("The columns of a block must be of one length.")
    parts = [_varint(len(columns)), _varint(lengths.pop())]
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


def _argument(value: object) -> object:
    """A parameter's value as the server parses it: arrays are written out, text is escaped."""
    if isinstance(value, list | tuple):
        items = cast("Sequence[object]", value)
        return "[" + ",".join(_quoted(item) for item in items) + "]"
    if isinstance(value, str):
        return value.translate(_ESCAPES)
    return value


def _load_engine() -> Any:
    """The extension module of chDB, without the package around it.

    `import chdb` also imports pyarrow and opens a second database in memory: 40 MiB for nothing.
    """
    loaded = sys.modules.get("chdb._chdb")
    if loaded is not None:
        return loaded
    package = importlib.util.find_spec("chdb")
    if package is None or not package.submodule_search_locations:
        raise FailedPrecondition("chDB is not installed.", hint="Run `./iron setup`.")
    path = Path(package.submodule_search_locations[0]) / "_chdb.abi3.so"
    # Its operator new must be its own allocator's, not libstdc++'s: as chdb/__init__ does.
    ctypes.CDLL(str(path), mode=sys.getdlopenflags() | _RTLD_DEEPBIND)
    loader = importlib.machinery.ExtensionFileLoader("chdb._chdb", str(path))
    spec = importlib.util.spec_from_file_location("chdb._chdb", path, loader=loader)
    if spec is None:
        raise FailedPrecondition("chDB cannot be loaded.", hint="Run `./iron setup` again.")
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    sys.modules["chdb._chdb"] = module
    return module


def _return_load_pages() -> None:
    """Give back the pages of the library: loading alone touches 140 MiB that nothing needs again.

    Clean pages of a file: what is needed again comes back from the page cache.
    """
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split()
        if fields[-1].endswith("_chdb.abi3.so") and "w" not in fields[1]:
            begin, end = (int(part, 16) for part in fields[0].split("-"))
            advise(begin, end - begin, _MADV_PAGEOUT)


class ChdbEngine:
    """ClickHouse in this process; its data are one directory that no other process may open."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="chdb")
        self._connection: Any = None
        self._used = False

    async def open(self) -> None:
        """Load the engine and open the directory.

        Raises:
            FailedPrecondition: chDB is not installed, or another process has the directory.
        """
        await self._run(self._open)

    def _open(self) -> None:
        engine = _load_engine()
        self._directory.mkdir(parents=True, exist_ok=True)
        query = "&".join(f"{name}={value}" for name, value in _SETTINGS.items())
        try:
            self._connection = engine.connect(f"{self._directory}?{query}")
        except RuntimeError as error:
            raise FailedPrecondition(
                "The usage store cannot be opened.",
                hint="Is another aggregatord running on this data directory?",
                context={"chdb_error": str(error)[:1000]},
            ) from None
        # Python's handlers of SIGTERM and SIGINT stay in force; crashes are not chDB's to report.
        engine.set_signal_handlers_enabled(False)

    async def rest(self) -> bool:
        """Give memory back if nothing ran since the last call; answers whether it did."""
        used, self._used = self._used, False
        if used:
            return False
        await asyncio.get_running_loop().run_in_executor(self._thread, _return_load_pages)
        return True

    async def execute(self, sql: str) -> None:
        """Run a statement that answers nothing."""
        await self._run(lambda: self._connection.query(sql, "Null"))

    async def insert(self, table: str, columns: Sequence[Column]) -> int:
        """Append rows as one block."""
        for name in (table, *(column.name for column in columns)):
            if not _ALPHABET.fullmatch(name):
                raise Internal(f"{name!r} is not the name of a table or column.")
        if not columns or not len(columns[0].values):
            return 0
        names = ", ".join(column.name for column in columns)
        return await self._run(lambda: self._insert(table, names, columns))

    def _insert(self, table: str, names: str, columns: Sequence[Column]) -> int:
        block = native_block(columns)
        handle = self._connection.send_insert(f"INSERT INTO {table} ({names})", "Native")
        try:
            self._connection.insert_append(handle, block)
        except BaseException:
            self._connection.insert_cancel(handle)
            raise
        return int(self._connection.insert_done(handle).rows_written())

    async def rows(
        self, sql: str, parameters: Mapping[str, object] | None = None
    ) -> list[list[Any]]:
        """Run a query; 64-bit and 128-bit numbers come back exact."""
        arguments = {name: _argument(value) for name, value in (parameters or {}).items()}

        def work() -> list[list[Any]]:
            settings = " SETTINGS output_format_json_quote_64bit_integers = 0"
            answer = self._connection.query(sql + settings, "JSONCompactEachRow", params=arguments)
            return [json.loads(line) for line in answer.bytes().splitlines()]

        return await self._run(work)

    async def _run(self, work: Callable[[], _T]) -> _T:
        def mapped() -> _T:
            try:
                return work()
            except RuntimeError as error:
                raise Unavailable(
                    "The usage store refused a statement.",
                    context={"chdb_error": str(error)[:2000]},
                ) from error

        self._used = True
        return await asyncio.get_running_loop().run_in_executor(self._thread, mapped)

    async def close(self) -> None:
        """Wait for what runs and close the directory."""

        def work() -> None:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

        await self._run(work)
        self._thread.shutdown()
