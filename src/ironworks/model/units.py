"""Units: the constants, and how sizes are written by people."""

from __future__ import annotations

import re

from ironworks.model.errors import InvalidRequest

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
NS_PER_US = 1_000
NS_PER_MS = 1_000_000
NS_PER_SECOND = 1_000_000_000
NS_PER_HOUR = 3600 * NS_PER_SECOND
NS_PER_DAY = 24 * NS_PER_HOUR

_SIZE = re.compile(
    # ASCII: else IGNORECASE lets look-alikes of i and K through, which no table knows.
    r"(?P<number>[0-9]{1,15})\s*(?P<prefix>[KMGT]?)(?:(?<=[KMGT])i)?B?",
    re.IGNORECASE | re.ASCII,
)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_bytes(text: str) -> int:
    """Bytes from `256MiB`, `256M`, `1G`, `65536`; every prefix is binary.

    Raises:
        InvalidRequest: the text is none of these.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InvalidRequest(f"{text[:40]!r} is not a size.", hint="Write it like 256MiB or 2GiB.")
    return int(match["number"]) * KIB ** _POWERS[match["prefix"].lower()]


def format_bytes(count: int) -> str:
    """`count` bytes for people: `1.5 GiB`, `300 B`."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < KIB:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= KIB
    return f"{value:.1f} TiB"
