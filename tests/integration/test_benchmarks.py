"""The benchmark that needs no quiet machine: its figure is the same on all of them."""

from __future__ import annotations

from benchmarks.storage import measure


async def test_a_raw_sample_takes_as_few_bytes_as_is_promised() -> None:
    outcome = await measure(quick=True)
    assert outcome.passed, outcome
    assert outcome.details["rows"] == 10 * 600 * 128
