"""Samples that look like those of real VMs, for the benchmarks of metering.

A quarter of the VMs is busy, half of them works now and then, a quarter is idle. CPU time grows by
nanoseconds that no codec can guess, disks by whole pages, network by frames; a sample is read some
tens of microseconds after its tick.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ironworks.aggregatord.types import READINGS
from ironworks.storage.native import Column, Runs

TICK_NS = 100_000_000
MEMORY_BYTES = 1 << 30
VCPUS = 2
_PAGE_BYTES = 4096
Matrix = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Samples of all VMs over some ticks: matrices of (VM, tick)."""

    first_seq: int
    start_at_ns: int
    offset_us: npt.NDArray[np.int32]
    values: dict[str, Matrix]

    @property
    def shape(self) -> tuple[int, int]:
        """VMs and ticks."""
        vms, ticks = self.offset_us.shape
        return vms, ticks


class Fleet:
    """VMs whose counters grow."""

    def __init__(self, vms: int, start_at_ns: int, seed: int = 1) -> None:
        self._random = np.random.default_rng(seed)
        self._start_at_ns = start_at_ns
        self._seq = 1
        self.vm_ids = [f"vm_{number:026d}" for number in range(vms)]
        self._busy = np.array([(0.9, 0.15, 0.15, 0.01)[one % 4] for one in range(vms)])
        self._last = {name: np.zeros(vms, np.uint64) for name in READINGS}
        self._last["memory_bytes"] += np.uint64(200 << 20)

    def _happens(self, ticks: int, share: float) -> npt.NDArray[np.bool_]:
        return self._random.random((len(self.vm_ids), ticks)) < (share * self._busy)[:, None]

    def _numbers(self, ticks: int, low: int, high: int) -> npt.NDArray[np.int64]:
        return self._random.integers(low, high, (len(self.vm_ids), ticks))

    def grow(self, ticks: int) -> Rows:
        """The next ticks."""
        grown = {
            "cpu_ns": np.where(
                self._happens(ticks, 1.0),
                self._numbers(ticks, 1_000_000, 90_000_000),
                self._numbers(ticks, 0, 2) * 41_500,
            ),
            "memory_bytes": self._happens(ticks, 0.3) * self._numbers(ticks, 0, 4) * _PAGE_BYTES,
            "disk_read_bytes": self._happens(ticks, 0.1)
            * self._numbers(ticks, 1, 64)
            * _PAGE_BYTES,
            "disk_write_bytes": self._happens(ticks, 0.2)
            * self._numbers(ticks, 1, 64)
            * _PAGE_BYTES,
            "network_receive_bytes": self._happens(ticks, 0.5) * self._numbers(ticks, 60, 15_000),
            "network_transmit_bytes": self._happens(ticks, 0.5) * self._numbers(ticks, 60, 15_000),
        }
        # A third of what is sent goes to other VMs.
        grown["network_internal_bytes"] = grown["network_transmit_bytes"] * (
            self._random.random(grown["network_transmit_bytes"].shape) < 1 / 3
        )
        values: dict[str, Matrix] = {}
        for name, steps in grown.items():
            values[name] = self._last[name][:, None] + np.cumsum(steps.astype(np.uint64), axis=1)
            self._last[name] = values[name][:, -1].copy()
        rows = Rows(
            first_seq=self._seq,
            start_at_ns=self._start_at_ns + self._seq * TICK_NS,
            offset_us=(40 + self._numbers(ticks, 0, 200)).astype(np.int32),
            values=values,
        )
        self._seq += ticks
        return rows


def columns(vm_ids: list[str], rows: Rows) -> list[Column]:
    """The same rows as `raw_samples` has them, VM after VM."""
    vms, ticks = rows.shape
    every = vms * ticks
    seq = np.tile(np.arange(rows.first_seq, rows.first_seq + ticks), vms)
    constants = {
        "boot_epoch": ("Int64", 1),
        "absent_mask": ("UInt8", 0),
        "vcpus": ("UInt16", VCPUS),
        "memory_limit_bytes": ("UInt64", MEMORY_BYTES),
        "disk_limit_bytes": ("UInt64", MEMORY_BYTES),
    }
    return [
        Column(name="tenant_id", kind="String", values=Runs(values=["tnt_bench"], counts=[every])),
        Column(name="vm_id", kind="String", values=Runs(values=vm_ids, counts=[ticks] * vms)),
        Column(name="seq", kind="Int64", values=seq),
        Column(
            name="tick_at_ns",
            kind="Int64",
            values=rows.start_at_ns + (seq - rows.first_seq) * TICK_NS,
        ),
        Column(name="offset_us", kind="Int32", values=rows.offset_us.reshape(every)),
        *[
            Column(name=name, kind="UInt64", values=rows.values[name].reshape(every))
            for name in READINGS
        ],
        *[
            Column(name=name, kind=kind, values=np.full(every, value))
            for name, (kind, value) in constants.items()
        ],
    ]
