from __future__ import annotations

from pathlib import Path

import pytest
from obstore.exceptions import GenericError, PermissionDeniedError, UnauthenticatedError

from ironworks.model.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    IronError,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from ironworks.runtime.clock import SystemClock
from ironworks.storage.objects import Bucket, ObjectStore, explained
from ironworks.testkit.seaweed import free_ports


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (FileNotFoundError("404"), NotFound),
        (FileNotFoundError("404: <Code>NoSuchBucket</Code>"), FailedPrecondition),
        (GenericError("list: <Code>NoSuchBucket</Code>"), FailedPrecondition),
        (PermissionDeniedError("403"), FailedPrecondition),
        (UnauthenticatedError("401"), FailedPrecondition),
        (GenericError("507 <Code>XMinioStorageFull</Code>"), ResourceExhausted),
        (GenericError("400 <Code>QuotaExceeded</Code>"), ResourceExhausted),
        (GenericError("HTTP error: operation timed out"), DeadlineExceeded),
        (GenericError("HTTP error: error sending request"), Unavailable),
        (GenericError("500 Internal Server Error"), Unavailable),
    ],
)
def test_what_goes_wrong_says_what_to_do(error: Exception, meaning: type[IronError]) -> None:
    assert type(explained(error)) is meaning


def test_the_librarys_own_state_is_not_told() -> None:
    error = explained(GenericError("it failed\n\nDebug source:\nauthorization: AWS4 secret"))
    assert error.context == {"error": "it failed"}


def test_a_secret_is_not_shown() -> None:
    assert "hidden" not in repr(Bucket(name="b", access_key_id="a", secret_access_key="hidden"))


def test_settings_that_make_no_store() -> None:
    with pytest.raises(InvalidRequest, match="bucket"):
        ObjectStore(Bucket(name="b", prefix="../other"), SystemClock())


async def test_a_store_that_is_not_there(tmp_path: Path) -> None:
    bucket = Bucket(
        name="b",
        endpoint=f"http://127.0.0.1:{free_ports(1)[0]}",
        access_key_id="a",
        secret_access_key="s",
    )
    store = ObjectStore(bucket, SystemClock())
    (tmp_path / "f").write_bytes(b"x")
    for _ in range(5):
        with pytest.raises(Unavailable, match="does not work"):
            await store.put("k", tmp_path / "f", 1)
    with pytest.raises(Unavailable, match="paused"):
        await store.head("k")
