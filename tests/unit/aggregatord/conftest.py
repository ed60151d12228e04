from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ironworks.testkit.aggregator import Aggregator, aggregator


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Aggregator]:
    """An aggregatord whose clock stands a little after the first windows."""
    async with aggregator(tmp_path) as one:
        await one.clock.advance(120)
        yield one
