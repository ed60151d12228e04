"""Frozen values of billaged, and its settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from pydantic import Field

from ironworks.model.units import MIB, NS_PER_SECOND
from ironworks.runtime.settings import Settings

TICK_NS = 100_000_000
WINDOW_NS = 60 * NS_PER_SECOND
RING_SAMPLES = 1_200
"""Two windows: one that fills, one that closes."""
COUNTERS = 7
"""Readings of a sample, in the order of `ironworks.billaged.v1.Counter` from 1."""
ABSENCE_BITS = 4
"""Bits of a reading's absence reason in a sample's `absent` word; 0 is present."""

ColumnName = Literal[
    "cpu_ns",
    "memory_bytes",
    "disk_read_bytes",
    "disk_write_bytes",
    "network_receive_bytes",
    "network_transmit_bytes",
    "network_internal_bytes",
]
COLUMNS: tuple[ColumnName, ...] = (
    "cpu_ns",
    "memory_bytes",
    "disk_read_bytes",
    "disk_write_bytes",
    "network_receive_bytes",
    "network_transmit_bytes",
    "network_internal_bytes",
)


class BillagedSettings(Settings):
    """Settings of billaged."""

    meter_segment_bytes: int = Field(
        default=8 * MIB, ge=4096, description="Size at which a segment of the log is closed."
    )
    meter_log_max_bytes: int = Field(
        default=1024 * MIB, ge=MIB, description="Log size at which ticks are refused."
    )
    meter_outbox_max_bytes: int = Field(
        default=8192 * MIB, ge=MIB, description="Waiting batches at which ticks are refused."
    )
    meter_grace_ticks: int = Field(
        default=20, ge=0, le=500, description="Ticks that a window waits for late ones."
    )
    meter_idle_seconds: float = Field(
        default=5.0, gt=0, description="Silence after which a past minute is closed."
    )
    meter_flush_seconds: float = Field(
        default=20.0, gt=0, description="How long FlushWindows waits for aggregatord."
    )


class VmKey(NamedTuple):
    """One boot epoch of one VM."""

    vm_id: str
    boot_epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Provision:
    """What a VM has and who pays: fixed within a window."""

    tenant_id: str
    deployment_id: str
    vcpus: int
    memory_bytes: int
    disk_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SeqGap:
    """Samples `first_seq` to `last_seq` are missing; `reason` is a `GapReason`."""

    first_seq: int
    last_seq: int
    reason: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedWindow:
    """A window that is in a batch on disk."""

    window_id: str
    vm_id: str
    boot_epoch: int
    first_seq: int
    last_seq: int
    sample_count: int
