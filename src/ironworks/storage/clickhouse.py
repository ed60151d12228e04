"""ClickHouse in this process (chDB), and what a service asks of any ClickHouse.

Rows go in as blocks of the Native format (`native`) and come out as JSON. A server stands behind
the same interface in `clickhouse_server`.

chDB allows one process a path and one statement at a time, so all statements run in one thread.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib.machinery
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ironworks.model.errors import FailedPrecondition, Unavailable
from ironworks.storage.native import Column, argument, insert_into, native_block

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
    "max_thread_pool_size": 10_000,
    "mark_cache_size": 16 << 20,
    "uncompressed_cache_size": 0,
    "max_threads": 2,
    # Rows of one key may stand beside each other until a merge; FINAL knows. Half of an insert.
    "optimize_on_insert": 0,
}
_RTLD_DEEPBIND = 8
_MADV_PAGEOUT = 21
JSON_SETTINGS = " SETTINGS output_format_json_quote_64bit_integers = 0"
"""64-bit and 128-bit numbers come back exact."""


class ClickHouse(Protocol):
    """What a service asks of ClickHouse.

    Every method raises `Unavailable` if the engine is not reachable or refuses; what it said stands
    in the error's context.
    """

    async def prepare(self, statements: Sequence[str]) -> None:
        """Run statements that make what is absent, now or as soon as the engine is reachable."""
        ...

    async def execute(self, sql: str, parameters: Mapping[str, object] | None = None) -> None:
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


class ClickHouseEngine(ClickHouse, Protocol):
    """An engine with its life."""

    async def rest(self) -> bool:
        """Give memory back if nothing ran since the last call; answers whether it did."""
        ...

    async def close(self) -> None:
        """Wait for what runs and close the engine."""
        ...


def load_engine() -> Any:
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
        engine = load_engine()
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

    async def prepare(self, statements: Sequence[str]) -> None:
        """Run statements that make what is absent."""
        for statement in statements:
            await self.execute(statement)

    async def execute(self, sql: str, parameters: Mapping[str, object] | None = None) -> None:
        """Run a statement that answers nothing."""
        arguments = {name: argument(value) for name, value in (parameters or {}).items()}
        await self._run(lambda: self._connection.query(sql, "Null", params=arguments))

    async def insert(self, table: str, columns: Sequence[Column]) -> int:
        """Append rows as one block."""
        statement = insert_into(table, columns)
        if not columns or not len(columns[0].values):
            return 0
        return await self._run(lambda: self._insert(statement, columns))

    def _insert(self, statement: str, columns: Sequence[Column]) -> int:
        block = native_block(columns)
        handle = self._connection.send_insert(statement, "Native")
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
        arguments = {name: argument(value) for name, value in (parameters or {}).items()}

        def work() -> list[list[Any]]:
            answer = self._connection.query(
                sql + JSON_SETTINGS, "JSONCompactEachRow", params=arguments
            )
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
