from __future__ import annotations

import json
import sys

import pytest
import structlog

from ironworks.model.errors import Internal
from ironworks.runtime import log


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    out, err = capsys.readouterr()
    assert out == ""
    return [json.loads(line) for line in err.splitlines()]


def test_a_line_is_one_json_object_with_the_service_and_the_request(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log.configure("metald")
    with structlog.contextvars.bound_contextvars(request_id="req_1"):
        structlog.get_logger().info("vm_created", vm_id="vm_1", text="two\nlines")
    (line,) = lines(capsys)
    assert line["message"] == "vm_created"
    assert (line["service"], line["request_id"]) == ("metald", "req_1")
    assert (line["vm_id"], line["text"], line["level"]) == ("vm_1", "two\nlines", "info")
    assert str(line["timestamp"]).endswith("Z")


def test_lines_below_the_level_are_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("metald", "WARNING")
    structlog.get_logger().info("quiet")
    structlog.get_logger().warning("loud")
    assert [line["message"] for line in lines(capsys)] == ["loud"]


def test_an_exception_is_part_of_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("metald")
    try:
        int("oops")
    except ValueError:
        structlog.get_logger().exception("crashed")
    (line,) = lines(capsys)
    assert "ValueError: invalid literal" in str(line["exception"])


def test_what_json_does_not_know_is_written_as_python_shows_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log.configure("metald")
    structlog.get_logger().info("odd", value=b"\xff", where=sys)
    (line,) = lines(capsys)
    assert line["value"] == repr(b"\xff")


def test_private_context_cannot_overwrite_what_a_line_says() -> None:
    error = Internal("broken", context={"event": 1, "error": 2})
    assert log.private(error) == {"ctx_event": 1, "ctx_error": 2}
