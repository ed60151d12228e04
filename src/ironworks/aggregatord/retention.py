"""Drops days that are older than they are kept, and that nothing needs any more.

A day of raw samples goes when its hours are computed and the samples say what its windows say; a
day that does not reconcile stays, and alarms. A day of windows goes when its hours are computed.
"""

from __future__ import annotations

from datetime import UTC, datetime

import structlog

from ironworks.aggregatord import store
from ironworks.aggregatord.schema import RECONCILED
from ironworks.aggregatord.types import DAY_NS, AggregatordSettings
from ironworks.aggregatord.warehouse import Warehouse
from ironworks.model.units import NS_PER_SECOND
from ironworks.runtime.clock import Clock
from ironworks.storage.sql import Database

_log = structlog.stdlib.get_logger()


def day_ns_of(partition: int) -> int:
    """Beginning of the UTC day that a partition (`yyyymmdd`) holds."""
    year, month, day = partition // 10_000, partition // 100 % 100, partition % 100
    return int(datetime(year, month, day, tzinfo=UTC).timestamp()) * NS_PER_SECOND


class Retention:
    """Ends the life of raw samples and windows."""

    def __init__(
        self,
        *,
        database: Database,
        warehouse: Warehouse,
        clock: Clock,
        settings: AggregatordSettings,
    ) -> None:
        self._database = database
        self._warehouse = warehouse
        self._clock = clock
        self._kept_days = {
            "raw_samples": settings.usage_raw_days,
            "windows": settings.usage_hourly_days,
        }
        self.days_unreconciled = 0

    async def sweep(self) -> dict[str, int]:
        """Drop what is due; answers days dropped and days that had to stay."""
        dropped = waiting = 0
        unreconciled = 0
        for table in RECONCILED:
            oldest_ns = self._clock.now_ns() - self._kept_days[table] * DAY_NS
            for partition in await self._warehouse.partitions(table):
                day_ns = day_ns_of(partition)
                if day_ns + DAY_NS > oldest_ns:
                    continue
                if await self._is_dirty(day_ns):
                    waiting += 1
                    continue
                if table == "raw_samples" and not await self._is_reconciled(day_ns):
                    unreconciled += 1
                    continue
                await self._warehouse.drop(table, partition)
                _log.info("day_expired", table=table, day=partition)
                dropped += 1
        self.days_unreconciled = unreconciled
        before_ns = self._clock.now_ns() - self._kept_days["windows"] * DAY_NS
        await self._database.write(lambda c: store.forget_epochs(c, before_ns))
        return {"dropped": dropped, "waiting": waiting, "unreconciled": unreconciled}

    async def _is_dirty(self, day_ns: int) -> bool:
        return await self._database.read(
            lambda c: store.has_dirty_hours(c, day_ns, day_ns + DAY_NS)
        )

    async def _is_reconciled(self, day_ns: int) -> bool:
        different = await self._warehouse.unreconciled(day_ns)
        if different:
            _log.error("raw_not_reconciled", day_ns=day_ns, epochs=different[:20])
        return not different
