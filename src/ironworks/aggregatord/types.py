"""Frozen values of aggregatord, and its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ironworks.gen.ironworks.aggregatord.v1.batch_pb import QuarantineReason
from ironworks.gen.ironworks.aggregatord.v1.usage_pb import Meter, Unit
from ironworks.model.units import NS_PER_DAY, NS_PER_HOUR, NS_PER_SECOND
from ironworks.runtime.settings import Settings

TICK_US = 100_000
MEMORY_HOLD_US = 1_000_000
"""A memory reading holds until the next, and no longer than this: nobody saw what came later."""

Ints = npt.NDArray[np.int64]
Counts = npt.NDArray[np.uint64]

CUMULATIVE = (
    "cpu_ns",
    "disk_read_bytes",
    "disk_write_bytes",
    "network_receive_bytes",
    "network_transmit_bytes",
    "network_internal_bytes",
)
"""Readings that only grow within a boot epoch."""
READINGS = ("cpu_ns", "memory_bytes", *CUMULATIVE[1:])
"""All readings, in the order of `ironworks.billaged.v1.Counter`: bit n of a sample's mask."""

UNITS: Mapping[Meter, Unit] = {
    Meter.VCPU_PROVISIONED: Unit.VCPU_NANOSECOND,
    Meter.VCPU_USED: Unit.VCPU_NANOSECOND,
    Meter.MEMORY_PROVISIONED: Unit.BYTE_NANOSECOND,
    Meter.MEMORY_USED: Unit.BYTE_NANOSECOND,
    Meter.DISK_READ: Unit.BYTE,
    Meter.DISK_WRITE: Unit.BYTE,
    Meter.DISK_PROVISIONED: Unit.BYTE_NANOSECOND,
    Meter.NETWORK_IN: Unit.BYTE,
    Meter.NETWORK_OUT: Unit.BYTE,
    Meter.NETWORK_OUT_INTERNET: Unit.BYTE,
    Meter.NETWORK_OUT_INTERNAL: Unit.BYTE,
}
"""The meters that are counted, with the unit in which their quantities are exact integers."""


class AggregatordSettings(Settings):
    """Settings of aggregatord."""

    clickhouse_url: str = Field(
        default="",
        description="ClickHouse server, `http://user:word@host:8123/database`; empty: in process.",
    )
    clickhouse_cluster: str = Field(
        default="",
        pattern="^[A-Za-z0-9_]*$",
        description="Cluster of that server whose shards hold the tables; empty: none.",
    )
    ledger_url: str = Field(
        default="", description="SQLAlchemy URL of the ledger's PostgreSQL; empty: SQLite."
    )
    usage_host_id: str = Field(
        default="",
        description="Host whose batches this machine's billaged may bring; empty: the first.",
    )
    usage_grace_hours: int = Field(
        default=48, ge=1, description="Hours after a UTC day until late usage is an adjustment."
    )
    usage_raw_days: int = Field(default=7, ge=1, description="Days that raw samples are kept.")
    usage_hourly_days: int = Field(
        default=90, ge=7, description="Days that window summaries and hourly usage are kept."
    )
    usage_daily_days: int = Field(default=730, ge=90, description="Days that daily usage is kept.")


class VmEpoch(NamedTuple):
    """One boot epoch of one VM."""

    vm_id: str
    boot_epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A window's samples, decoded. `absent_mask` bit n: reading n of `READINGS` is missing."""

    window_id: str
    tenant_id: str
    deployment_id: str
    key: VmEpoch
    vcpus: int
    memory_limit_bytes: int
    disk_limit_bytes: int
    attached_seq: int
    seq: Ints
    tick_at_ns: Ints
    offset_us: npt.NDArray[np.int32]
    values: Mapping[str, Counts]
    absent_mask: npt.NDArray[np.uint8]
    partial_count: int
    """Samples that lack a reading for which the VM has a source."""
    gaps: tuple[tuple[int, int, int], ...]
    """Missing samples: first, last, `GapReason`."""
    content_sha256: bytes

    @property
    def first_seq(self) -> int:
        """First sequence number."""
        return int(self.seq[0])

    @property
    def last_seq(self) -> int:
        """Last sequence number."""
        return int(self.seq[-1])

    @property
    def start_at_ns(self) -> int:
        """Grid instant of the first sample, UTC; usage counts at this time."""
        return int(self.tick_at_ns[0])

    @property
    def end_at_ns(self) -> int:
        """Grid instant of the last sample, UTC."""
        return int(self.tick_at_ns[-1])

    def __len__(self) -> int:
        return len(self.seq)

    def present(self, reading: str) -> npt.NDArray[np.bool_]:
        """Which samples have this reading."""
        bit = np.uint8(1 << READINGS.index(reading))
        return (self.absent_mask & bit) == 0

    def time_us(self) -> Ints:
        """When each sample was read, microseconds of the host's monotonic clock."""
        return self.seq * TICK_US + self.offset_us


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Windows whose columns lie one after the other in one array each: numpy takes them all.

    Window i has the rows from `starts[i]`, `counts[i]` of them; the windows' arrays are views.
    """

    windows: tuple[Window, ...]
    starts: Ints
    counts: Ints
    seq: Ints
    tick_at_ns: Ints
    offset_us: npt.NDArray[np.int32]
    absent_mask: npt.NDArray[np.uint8]
    values: Mapping[str, Counts]

    @property
    def ends(self) -> Ints:
        """Row of each window's last sample."""
        return self.starts + self.counts - 1

    def time_us(self) -> Ints:
        """When each sample was read, microseconds of the host's monotonic clock."""
        return self.seq * TICK_US + self.offset_us

    def pairs(self, flags: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """For each window whether any pair of its neighbouring rows has a flag.

        Args:
            flags: One for each pair of neighbouring rows of the block, one fewer than rows.
        """
        inner = np.concatenate((np.zeros(1, np.bool_), flags))
        inner[self.starts] = False
        return np.logical_or.reduceat(inner, self.starts)

    def rows(self, flags: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """For each window whether any of its rows has a flag."""
        return np.logical_or.reduceat(flags, self.starts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Why a window is quarantined."""

    reason: QuarantineReason
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a window says of usage; all that hours, days and invoices are computed from.

    Attributes:
        first_us: When its first sample was read, monotonic microseconds of the host.
        last_us: When its last one was.
        memory_byte_us: Memory in use times time, within the window.
        memory_first_us: When memory was first read; None if never.
        memory_last_us: When it was last read.
        memory_last_bytes: What was read then.
        first: First present value of each of `CUMULATIVE`; None if there is none.
        last: Last present value.
    """

    window_id: str
    tenant_id: str
    deployment_id: str
    key: VmEpoch
    first_seq: int
    last_seq: int
    sample_count: int
    partial_count: int
    start_at_ns: int
    end_at_ns: int
    vcpus: int
    memory_limit_bytes: int
    disk_limit_bytes: int
    first_us: int
    last_us: int
    memory_byte_us: int
    memory_first_us: int | None
    memory_last_us: int | None
    memory_last_bytes: int | None
    first: Mapping[str, int | None]
    last: Mapping[str, int | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """Where the windows before a time have left an epoch's counters; None: nothing known.

    `last_seq` and `end_at_ns` are number and grid instant of the newest sample.
    """

    last_seq: int | None = None
    end_at_ns: int | None = None
    last_us: int | None = None
    memory_last_us: int | None = None
    memory_last_bytes: int | None = None
    last: Mapping[str, int | None] = field(default_factory=dict[str, "int | None"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """What a window adds to the windows of its epoch before it.

    Attributes:
        elapsed_us: Time since the last sample before it.
        held_byte_us: Memory in use times time since the last reading before it.
        grown: What each of `CUMULATIVE` has grown by.
    """

    elapsed_us: int
    held_byte_us: int
    grown: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredWindow:
    """A window as its row says; `version` is the number of the batch that computed its growth."""

    summary: Summary
    growth: Growth
    version: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontier:
    """The end of an epoch: where its newest window has left it."""

    last_seq: int
    baseline: Baseline


Quantities = dict[Meter, int]
"""Exact quantities in canonical units."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRow:
    """One quantity of one VM in one interval; `vm_id` is empty where VMs are summed."""

    from_ns: int
    to_ns: int
    tenant_id: str
    vm_id: str
    meter: Meter
    quantity: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageFilter:
    """Whose usage."""

    tenant_id: str
    vm_ids: tuple[str, ...] = ()
    deployment_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A half-open interval, UTC nanoseconds."""

    from_ns: int
    to_ns: int

    def aligned_to(self, step_ns: int) -> bool:
        """Whether it is made of whole steps."""
        return self.from_ns % step_ns == 0 and self.to_ns % step_ns == 0


HOUR_NS = NS_PER_HOUR
DAY_NS = NS_PER_DAY
FIVE_MINUTES_NS = 300 * NS_PER_SECOND


@dataclass(frozen=True, slots=True, kw_only=True)
class VmCompleteness:
    """Samples of one VM: expected, received, and why the others are missing."""

    vm_id: str
    expected: int
    received: int
    quarantined: int
    partial: int
    watermark_ns: int
    gaps: Mapping[int, int]
    """`GapReason` → samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """`nanos` nano-units of currency buy `per_quantity` canonical units of `meter`."""

    meter: Meter
    nanos: int
    per_quantity: int
    unit_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceVersion:
    """An immutable set of prices, in force from `effective_at_ns`."""

    price_version_id: str
    price_plan_id: str
    plan_name: str
    currency: str
    version: int
    effective_at_ns: int
    prices: tuple[Price, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """Something to be rated: a quantity under a price."""

    price: Price
    version: PriceVersion
    vm_id: str
    interval: Interval
    quantity: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RatedLine:
    """A charge with its amount."""

    charge: Charge
    amount_nanos: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceDraft:
    """What a tenant owes for an interval."""

    tenant_id: str
    interval: Interval
    currency: str
    plan_name: str
    lines: tuple[RatedLine, ...]
    total_nanos: int
    completeness: tuple[VmCompleteness, ...]
    computed_at_ns: int


Row = list[Any]
"""A row as ClickHouse answers it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRecord:
    """Usage of one epoch of one VM in one hour or day."""

    tenant_id: str
    deployment_id: str
    key: VmEpoch
    start_ns: int
    quantities: Quantities


@dataclass(frozen=True, slots=True, kw_only=True)
class BillingRecord:
    """Priced usage of one epoch of one VM on one day, kept for ever."""

    usage: UsageRecord
    meter: Meter
    price_version_id: str
    price_nanos: int
    per_quantity: int
    currency: str
    amount_nanos: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjustment:
    """What a meter of an epoch gained on a day after the day was settled."""

    tenant_id: str
    deployment_id: str
    key: VmEpoch
    day_ns: int
    meter: Meter
    settled: int
    adjustment: int
    adjusted_at_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredGap:
    """Missing samples of one VM."""

    key: VmEpoch
    first_seq: int
    last_seq: int
    reason: int
    start_at_ns: int
    end_at_ns: int
