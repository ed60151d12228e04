"""Object storage: one bucket of an S3, through obstore.

Each request is repeated as the system description says (100, 200, 400 ms), each operation passes a
circuit breaker and has a deadline that grows with its bytes. Parts carry their SHA-256, which the
store checks; what a store says it has is not believed here: callers read it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from ironworks.model.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    IronError,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from ironworks.model.units import MIB
from ironworks.runtime.clock import Clock
from ironworks.runtime.resilience import Breaker, RetryPolicy, call

_T = TypeVar("_T")
PART_BYTES = 8 * MIB
"""Least length of a part; larger objects have larger parts."""
MAX_PARTS = 9_000
"""S3 takes 10,000."""
PARTS_AT_ONCE = 3
CHUNK_BYTES = 4 * MIB
"""About how much of an object is handed on at once as it is read."""
MIN_BYTES_PER_SECOND = MIB
"""A store that is slower than this, over a whole object, counts as one that does not answer."""
_ONCE = RetryPolicy(waits_seconds=())  # obstore repeats each request; a whole object is too much
_RETRIES = 3
_MAX_REASON_CHARS = 500
_FULL = ("QuotaExceeded", "StorageFull", "InsufficientStorage")
_TELL = "Tell the operator: the settings asset_bucket… or the bucket's policy have to change."


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Where objects are, and who we are there.

    Attributes:
        name: The bucket.
        endpoint: URL of the S3; empty: AWS, in the region.
        region: Region that requests are signed for.
        prefix: Before every key; empty: none.
        access_key_id: Who we are; empty: as AWS's chain finds out (environment, instance role).
        secret_access_key: Its secret; never shown.
        timeout_seconds: How long the store may be silent.
    """

    name: str
    endpoint: str = ""
    region: str = "us-east-1"
    prefix: str = ""
    access_key_id: str = ""
    secret_access_key: str = field(default="", repr=False)
    timeout_seconds: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What the store says of an object."""

    size_bytes: int
    etag: str


def _store(bucket: Bucket) -> S3Store:
    options: dict[str, str] = {}
    if bucket.endpoint:
        options["endpoint"] = bucket.endpoint
    if bucket.access_key_id:
        options["access_key_id"] = bucket.access_key_id
        options["secret_access_key"] = bucket.secret_access_key
    silence = timedelta(seconds=bucket.timeout_seconds)
    try:
        return S3Store(
            bucket.name,
            prefix=bucket.prefix or None,
            region=bucket.region,
            checksum_algorithm="SHA256",
            client_options={
                "allow_http": bucket.endpoint.startswith("http://"),
                "connect_timeout": silence,
                "read_timeout": silence,
                # Of one request; the deadline of a whole operation is ours.
                "timeout": timedelta(hours=24),
            },
            retry_config={
                "max_retries": _RETRIES,
                "backoff": {
                    "init_backoff": timedelta(milliseconds=100),
                    "max_backoff": timedelta(milliseconds=400),
                    "base": 2,
                },
                "retry_timeout": 4 * silence,
            },
            **options,  # pyright: ignore[reportArgumentType] - a TypedDict of the same keys
        )
    except (BaseError, ValueError) as error:
        raise InvalidRequest(
            "The settings of the bucket are not valid.", context={"error": _reason(error)}
        ) from None


def _reason(error: Exception) -> str:
    """The first lines: what follows is the library's own state."""
    return str(error).split("\n\nDebug source")[0][:_MAX_REASON_CHARS]


def explained(error: Exception) -> IronError:
    """What an error of obstore means to the caller."""
    reason = _reason(error)
    context = {"error": reason}
    if "NoSuchBucket" in reason:
        return FailedPrecondition("The bucket does not exist.", hint=_TELL, context=context)
    if isinstance(error, FileNotFoundError):
        return NotFound("There is no such object in the bucket.", context=context)
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return FailedPrecondition(
            "The object store refuses the platform's credentials.", hint=_TELL, context=context
        )
    if any(word in reason for word in _FULL):
        return ResourceExhausted(
            "The object store has no room.", hint="Free some, then repeat.", context=context
        )
    if "timed out" in reason or "TimedOut" in str(error):
        return DeadlineExceeded("The object store does not answer in time.", context=context)
    return Unavailable("The object store does not work.", hint="Repeat later.", context=context)


class ObjectStore:
    """Objects of one bucket. All methods raise what `explained` says, and `DeadlineExceeded`."""

    def __init__(self, bucket: Bucket, clock: Clock) -> None:
        self._store = _store(bucket)
        self._silence_seconds = bucket.timeout_seconds
        self._clock = clock
        self._breaker = Breaker()

    async def _call(self, attempt: Callable[[], Awaitable[_T]], size_bytes: int = 0) -> _T:
        """One operation on `size_bytes`, within its time."""
        seconds = 4 * self._silence_seconds + size_bytes / MIN_BYTES_PER_SECOND

        async def bounded() -> _T:
            try:
                async with asyncio.timeout(seconds):
                    return await attempt()
            except TimeoutError:
                raise DeadlineExceeded(
                    f"The object store was not done within {seconds:.0f} seconds.",
                    hint="Repeat later.",
                ) from None
            except (BaseError, FileNotFoundError) as error:
                raise explained(error) from None

        return await call(bounded, clock=self._clock, breaker=self._breaker, policy=_ONCE)

    async def put(self, key: str, path: Path, size_bytes: int) -> Stored:
        """Make a file of this host an object, in place of the one that is there."""
        part_bytes = max(PART_BYTES, -(-size_bytes // MAX_PARTS))

        async def attempt() -> Stored:
            done = await obstore.put_async(
                self._store, key, path, chunk_size=part_bytes, max_concurrency=PARTS_AT_ONCE
            )
            return Stored(size_bytes=size_bytes, etag=done["e_tag"] or "")

        return await self._call(attempt, size_bytes)

    async def head(self, key: str) -> Stored:
        """What the store says of an object.

        Raises:
            NotFound: there is none.
        """

        async def attempt() -> Stored:
            meta = await obstore.head_async(self._store, key)
            return Stored(size_bytes=meta["size"], etag=meta["e_tag"] or "")

        try:
            return await self._call(attempt)
        except NotFound:
            await self._check_bucket()
            raise

    async def read(self, key: str, size_bytes: int, take: Callable[[memoryview], None]) -> Stored:
        """Read an object to its end; `take` gets its bytes, in order, in a thread.

        Args:
            key: Which.
            size_bytes: How long it should be: decides how long it may take.
            take: Is called with each piece; what it raises ends the reading.

        Raises:
            NotFound: there is none.
        """

        async def attempt() -> Stored:
            answer = await obstore.get_async(self._store, key)
            count = 0
            async for piece in answer.stream(CHUNK_BYTES):
                view = memoryview(piece)
                count += len(view)
                await asyncio.to_thread(take, view)
            return Stored(size_bytes=count, etag=answer.meta["e_tag"] or "")

        try:
            return await self._call(attempt, size_bytes)
        except NotFound:
            await self._check_bucket()
            raise

    async def _check_bucket(self) -> None:
        """Tell an object that is not there from a bucket that is not there."""

        async def attempt() -> None:
            await obstore.list_with_delimiter_async(self._store, "-")  # pyright: ignore[reportUnknownMemberType] - of pyarrow, which we do not ask for

        await self._call(attempt)

    async def delete(self, key: str) -> None:
        """Remove an object, if it is there."""

        async def attempt() -> None:
            await obstore.delete_async(self._store, [key])

        await self._call(attempt)

    async def keys(self, prefix: str) -> AsyncGenerator[str]:
        """Keys below a prefix, in order, without the bucket's own prefix."""
        pages = aiter(_pages(self._store, prefix))

        async def attempt() -> list[str] | None:
            return await anext(pages, None)

        while (page := await self._call(attempt)) is not None:
            for key in page:
                yield key


async def _pages(store: S3Store, prefix: str) -> AsyncIterator[list[str]]:
    async for page in obstore.list(store, prefix, chunk_size=1000):  # pyright: ignore[reportUnknownMemberType] - see above
        yield [meta["path"] for meta in page]
