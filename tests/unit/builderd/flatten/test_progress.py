"""Progress is told when a step begins and now and then; each step says how much there is to do."""

from __future__ import annotations

from typing import Any

from ironworks.builderd.flatten.progress import Progress

MIB = 1 << 20


def test_it_is_told_at_the_beginning_and_every_16_mib() -> None:
    told: list[dict[str, Any]] = []
    progress = Progress(told.append)
    progress.begin("unpacking", 64 * MIB)
    for _ in range(40):
        progress.add(MIB)
    progress.begin("looking")
    assert [(one["step"], one["done_bytes"] // MIB, one["total_bytes"] // MIB) for one in told] == [
        ("unpacking", 0, 64),
        ("unpacking", 16, 64),
        ("unpacking", 32, 64),
        ("looking", 0, 0),
    ]
