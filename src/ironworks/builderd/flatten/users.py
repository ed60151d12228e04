"""Who a user is in the image's own `/etc/passwd`. Pure: bytes in, number out.

Source: passwd(5); as getpwnam(3) does, the first line with the name counts.
"""

from __future__ import annotations

_FIELDS = 3


def user_id(passwd: bytes | None, user: str) -> int | None:
    """The number of a user; None: nobody, or not a number that is meant as one.

    Args:
        passwd: The file; None: there is none.
        user: A name or a number, and maybe a group after a colon.
    """
    name = user.partition(":")[0].strip()
    if name.isdecimal():
        return int(name)
    for line in (passwd or b"").split(b"\n"):
        fields = line.split(b":")
        if len(fields) >= _FIELDS and fields[0] == name.encode():
            number = fields[2].strip()
            return int(number) if number.isdigit() else None
    return None
