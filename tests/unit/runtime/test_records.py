from __future__ import annotations

import pytest

from ironworks.model.errors import Internal, NotFound
from ironworks.runtime.records import JsonRecords


@pytest.mark.parametrize("value", [None, 1, "text", [1, {"a": None}], {"error": "of a caller"}])
def test_what_is_stored_comes_back(value: object) -> None:
    records = JsonRecords()
    assert records.deserialize(records.serialize(value)) == value


def test_errors_keep_their_class_and_foreign_ones_lose_theirs() -> None:
    records = JsonRecords()
    known = records.deserialize(records.serialize(NotFound("Gone.", hint="Look.")))
    assert (type(known), known.message, known.hint) == (NotFound, "Gone.", "Look.")
    foreign = records.deserialize(records.serialize(KeyError("secret")))
    assert isinstance(foreign, Internal)
    assert "secret" not in str(foreign)


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(ValueError, match="Out of range"):
        JsonRecords().serialize(float("nan"))
