"""Ids and names.

An id is a prefix that says what it names, an underscore, and 26 characters: a ULID in lower case
(48 bits of milliseconds, 80 random bits; Crockford base 32), so ids of one kind sort by birth.
Source: the ULID specification. A name is chosen by a person and can be a DNS label.
"""

from __future__ import annotations

import hashlib
import re
from typing import Literal, Protocol, get_args

from ironworks.model.errors import InvalidRequest

Prefix = Literal[
    "tnt", "key", "bld", "ast", "lse", "hst", "vm", "dep", "rep", "job", "bat", "win", "pln",
    "uln", "inv", "req", "upl", "tok", "evt",
]  # fmt: skip

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_BODY_CHARS = 26
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_ID = re.compile(rf"({'|'.join(get_args(Prefix))})_[{_ALPHABET}]{{{_BODY_CHARS}}}")
NAME_MAX_CHARS = 63


class _NowNs(Protocol):
    def now_ns(self) -> int: ...


class _TokenBytes(Protocol):
    def token_bytes(self, count: int) -> bytes: ...


def _encode(value: int) -> str:
    chars: list[str] = []
    for _ in range(_BODY_CHARS):
        value, digit = divmod(value, 32)
        chars.append(_ALPHABET[digit])
    return "".join(reversed(chars))


def new_id(prefix: Prefix, clock: _NowNs, entropy: _TokenBytes) -> str:
    """A fresh id, for example `vm_01jd8v3q6m5k8n0p2r4t6v8x0z`."""
    milliseconds = clock.now_ns() // 1_000_000
    return f"{prefix}_{_encode((milliseconds << 80) | int.from_bytes(entropy.token_bytes(10)))}"


def derived_id(prefix: Prefix, *parts: str) -> str:
    """The id that always follows from `parts`: for work that may be repeated after a crash."""
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    return f"{prefix}_{_encode(int.from_bytes(digest[:16]) >> 1)}"


def check_id(value: str, prefix: Prefix, field: str) -> str:
    """`value` if it is an id of this kind.

    Raises:
        InvalidRequest: it is not; `field` names it in the sentence.
    """
    if not value.startswith(prefix + "_") or not _ID.fullmatch(value):
        raise InvalidRequest(
            f"{field} is not an id of the form {prefix}_ and {_BODY_CHARS} characters.",
            hint=f"Give the id as it was answered when the {prefix} was made.",
        )
    return value


def check_name(value: str, field: str = "name") -> str:
    """`value` if it is a name: 1 to 63 of `a-z`, `0-9`, `-`, no dash at either end.

    Raises:
        InvalidRequest: it is not.
    """
    if not _NAME.fullmatch(value):
        raise InvalidRequest(
            f"{field} must be 1 to {NAME_MAX_CHARS} characters of a-z, 0-9 and -, and may neither "
            "begin nor end with a dash."
        )
    return value
