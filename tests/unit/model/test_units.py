from __future__ import annotations

import pytest

from ironworks.model.errors import InvalidRequest
from ironworks.model.units import GIB, KIB, MIB, format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("65536", 65536),
        ("300B", 300),
        ("1k", KIB),
        ("256MiB", 256 * MIB),
        ("256 mib", 256 * MIB),
        ("256M", 256 * MIB),
        (" 2GB ", 2 * GIB),
        ("1T", 1024 * GIB),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "M",
        "-1",
        "1.5G",
        "1P",
        "5i",
        "5iB",
        "1e3",
        "5M\u0131",
        "5\u212aB",
        "\u0665M",
        "9" * 16,
        "9" * 5000,
    ],
)
def test_what_is_no_size_is_refused_in_a_short_sentence(text: str) -> None:
    with pytest.raises(InvalidRequest, match="is not a size") as caught:
        parse_bytes(text)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536 * MIB, "1.5 GiB"),
        (2048 * GIB, "2.0 TiB"),
        (-KIB, "-1.0 KiB"),
    ],
)
def test_sizes_are_written_for_people(count: int, expected: str) -> None:
    assert format_bytes(count) == expected
