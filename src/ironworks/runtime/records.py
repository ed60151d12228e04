"""What the workflow engine stores of answers and errors: JSON that a person can read."""

from __future__ import annotations

import json
from typing import Any, TypeAlias, cast

from ironworks.model.errors import Internal, IronError, kind_of

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
_ERROR_MARK = "\x00error"


def _encode_error(error: BaseException) -> dict[str, Json]:
    if not isinstance(error, IronError):
        error = Internal(f"A workflow failed: {type(error).__name__}.")
    return {_ERROR_MARK: error.code, "message": error.message, "hint": error.hint}


def _decode_error(record: dict[str, Json]) -> IronError:
    kind = kind_of(str(record[_ERROR_MARK]))
    return kind(str(record.get("message", "")), hint=str(record.get("hint", "")))


class JsonRecords:
    """How answers and errors are stored: JSON that a person can read, never pickles."""

    def serialize(self, data: Any) -> str:
        """`data`, or the error that it is, as text."""
        value: object = data
        if isinstance(value, BaseException):
            return json.dumps(_encode_error(value), separators=(",", ":"))
        return json.dumps(value, separators=(",", ":"), allow_nan=False)

    def deserialize(self, serialized_data: str) -> Any:
        """What `serialize` was given."""
        value: object = json.loads(serialized_data)
        if isinstance(value, dict):
            record = cast("dict[str, Json]", value)
            return _decode_error(record) if _ERROR_MARK in record else record
        return value

    def name(self) -> str:
        """Stands beside each record."""
        return "ironworks_json"
