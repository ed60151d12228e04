"""The error taxonomy on the wire: mapped here, in both directions, and nowhere else."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager

from connectrpc.code import Code
from connectrpc.errors import ConnectError

from ironworks.model.errors import IronError, Unavailable, kind_of

_HTTP_STATUS = {
    "invalid_argument": 400,
    "failed_precondition": 400,
    "unauthenticated": 401,
    "permission_denied": 403,
    "not_found": 404,
    "already_exists": 409,
    "aborted": 409,
    "resource_exhausted": 429,
    "unimplemented": 501,
    "unavailable": 503,
    "deadline_exceeded": 504,
}


def http_status(error: IronError) -> int:
    """HTTP status of an error answered outside of the Connect library; as Connect maps it."""
    return _HTTP_STATUS.get(error.code, 500)


def to_connect(error: IronError) -> ConnectError:
    """What goes over the wire: code, message and hint; never the context."""
    return ConnectError(Code(error.code), str(error))


def from_connect(error: ConnectError) -> IronError:
    """What a caller sees of an error that another service answered."""
    kind = kind_of(error.code.value)
    if error.code is Code.CANCELED:
        kind = Unavailable
    return kind(error.message or f"The call failed: {error.code.value}.")


@contextmanager
def our_errors(method: str = "") -> Generator[None]:
    """Turn Connect's errors within the block into ours."""
    del method
    try:
        yield
    except ConnectError as error:
        # The library turns a cancelled call into an error of its own. A task that is being
        # cancelled must not see one: it would repeat the call, and no time-out would ever fire.
        if isinstance(error.__cause__, asyncio.CancelledError):
            raise error.__cause__ from None
        raise from_connect(error) from None


@contextmanager
def cancellation_kept(method: str = "") -> Generator[None]:
    """Let a cancellation that the block has swallowed go on, however the block ended.

    Before Python 3.12 `asyncio.wait_for`, which the Connect library calls, drops a cancellation
    that comes in the same turn of the loop as the answer: a task that asks again and again would
    never end, and who stops it would wait forever.

    Raises:
        CancelledError: the task was cancelled within the block.
    """
    del method
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    error: Exception | None = None
    try:
        yield
    except Exception as caught:  # noqa: BLE001 - raised again below, if it still matters
        error = caught
    if task is asyncio.current_task() and task is not None and task.cancelling() > before:
        raise asyncio.CancelledError
    if error is not None:
        raise error
