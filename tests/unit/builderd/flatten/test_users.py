"""Users are who the image's own /etc/passwd says they are."""

from __future__ import annotations

import pytest

from ironworks.builderd.flatten.users import user_id

PASSWD = b"""root:x:0:0:root:/root:/bin/sh
toor:x:0:0::/root:/bin/sh
app:x:1000:1000::/:/bin/false
app:x:0:0::/:/bin/false
odd:x:zero:0::/:/bin/false
short:x
"""


@pytest.mark.parametrize(
    ("user", "found"),
    [
        ("root", 0),
        ("toor", 0),
        ("toor:app", 0),
        ("app", 1000),
        ("app:root", 1000),
        ("0", 0),
        ("00", 0),
        ("7:7", 7),
        ("odd", None),
        ("short", None),
        ("absent", None),
        ("", None),
    ],
)
def test_the_first_line_with_the_name_counts(user: str, found: int | None) -> None:
    assert user_id(PASSWD, user) == found


def test_without_the_file_only_numbers_are_known() -> None:
    assert user_id(None, "app") is None
    assert user_id(None, "9") == 9
