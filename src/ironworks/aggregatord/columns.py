"""Types as rows and columns of ClickHouse, and back; with what windows lack and do not say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ironworks.aggregatord.decide import Missing, left_of
from ironworks.aggregatord.types import (
    CUMULATIVE,
    READINGS,
    TICK_US,
    Growth,
    StoredWindow,
    Summary,
    UsageRecord,
    VmEpoch,
    Window,
)
from ironworks.gen.ironworks.aggregatord.v1.usage_pb import Meter
from ironworks.gen.ironworks.billaged.v1.samples_pb import GapReason
from ironworks.model.units import NS_PER_US
from ironworks.storage.native import Column, Runs

_UNEXPLAINED = int(GapReason.UNEXPLAINED)
EDGES = [f"{edge}_{name}" for name in CUMULATIVE for edge in ("first", "last")]
SUMMARY_NUMBERS = (
    "boot_epoch", "first_seq", "last_seq", "sample_count", "partial_count", "start_at_ns",
    "end_at_ns", "vcpus", "memory_limit_bytes", "disk_limit_bytes", "first_us", "last_us",
    "memory_byte_us",
)  # fmt: skip
SUMMARY_OPTIONAL = ("memory_first_us", "memory_last_us", "memory_last_bytes", *EDGES)
GROWTH_NUMBERS = ("elapsed_us", "held_byte_us", *(f"grown_{name}" for name in CUMULATIVE))
SUMMARY_TEXTS = ("tenant_id", "vm_id", "deployment_id", "window_id")


def numbers(kind: str, name: str, values: Sequence[int]) -> Column:
    """A column of small numbers."""
    return Column(name=name, kind=kind, values=np.array(values, np.int64))


def texts(name: str, values: Sequence[str]) -> Column:
    """A column of strings."""
    return Column(name=name, kind="String", values=values)


def _joined(kind: str, name: str, parts: Sequence[npt.NDArray[Any]]) -> Column:
    return Column(name=name, kind=kind, values=np.concatenate(parts))


def sample_columns(windows: Sequence[Window]) -> list[Column]:
    """Raw samples of windows, one row a sample."""
    counts = [len(window) for window in windows]

    def text(name: str, values: Sequence[str]) -> Column:
        return Column(name=name, kind="String", values=Runs(values=values, counts=counts))

    def each(kind: str, name: str, values: Sequence[int]) -> Column:
        return Column(name=name, kind=kind, values=np.repeat(np.array(values), counts))

    return [
        text("tenant_id", [one.tenant_id for one in windows]),
        text("vm_id", [one.key.vm_id for one in windows]),
        each("Int64", "boot_epoch", [one.key.boot_epoch for one in windows]),
        each("UInt16", "vcpus", [one.vcpus for one in windows]),
        each("UInt64", "memory_limit_bytes", [one.memory_limit_bytes for one in windows]),
        each("UInt64", "disk_limit_bytes", [one.disk_limit_bytes for one in windows]),
        _joined("Int64", "seq", [one.seq for one in windows]),
        _joined("Int64", "tick_at_ns", [one.tick_at_ns for one in windows]),
        _joined("Int32", "offset_us", [one.offset_us for one in windows]),
        _joined("UInt8", "absent_mask", [one.absent_mask for one in windows]),
        *[_joined("UInt64", name, [one.values[name] for one in windows]) for name in READINGS],
    ]


def window_columns(windows: Sequence[StoredWindow]) -> list[Column]:
    """Summaries with what they add to usage, one row a window."""
    rows = [_summary_values(one.summary) for one in windows]
    added = [
        (one.growth.elapsed_us, one.growth.held_byte_us, *one.growth.grown.values())
        for one in windows
    ]
    return [
        *[texts(name, [str(row[name]) for row in rows]) for name in SUMMARY_TEXTS],
        *[
            Column(name=name, kind="Int64", values=np.array([row[name] for row in rows], np.int64))
            for name in SUMMARY_NUMBERS
        ],
        *[
            Column(name=name, kind="Nullable(Int64)", values=[row[name] for row in rows])
            for name in SUMMARY_OPTIONAL
        ],
        *[
            numbers("Int64", name, [row[index] for row in added])
            for index, name in enumerate(GROWTH_NUMBERS)
        ],
        numbers("UInt64", "version", [one.version for one in windows]),
    ]


def _summary_values(one: Summary) -> dict[str, Any]:
    values: dict[str, Any] = {
        name: getattr(one, name)
        for name in (*SUMMARY_TEXTS, *SUMMARY_NUMBERS, *SUMMARY_OPTIONAL)
        if name not in EDGES and name not in {"vm_id", "boot_epoch"}
    }
    values["vm_id"], values["boot_epoch"] = one.key
    for name in CUMULATIVE:
        values[f"first_{name}"], values[f"last_{name}"] = one.first[name], one.last[name]
    return values


WINDOW_NAMES = (*SUMMARY_TEXTS, *SUMMARY_NUMBERS, *SUMMARY_OPTIONAL, *GROWTH_NUMBERS, "version")


def window_of(row: Sequence[Any]) -> StoredWindow:
    """A window from a row of `WINDOW_NAMES`."""
    values: dict[str, Any] = dict(zip(WINDOW_NAMES, row, strict=True))
    version = values.pop("version")
    elapsed_us, held_byte_us, *grown = [values.pop(name) for name in GROWTH_NUMBERS]
    return StoredWindow(
        summary=_summary_of(values),
        growth=Growth(
            elapsed_us=elapsed_us,
            held_byte_us=held_byte_us,
            grown=dict(zip(CUMULATIVE, grown, strict=True)),
        ),
        version=version,
    )


def _summary_of(values: Mapping[str, Any]) -> Summary:
    plain = {
        name: value
        for name, value in values.items()
        if name not in EDGES and name not in {"vm_id", "boot_epoch"}
    }
    return Summary(
        key=VmEpoch(values["vm_id"], values["boot_epoch"]),
        first={name: values[f"first_{name}"] for name in CUMULATIVE},
        last={name: values[f"last_{name}"] for name in CUMULATIVE},
        **plain,
    )


def gap_columns(windows: Sequence[Window]) -> list[Column]:
    """What windows say is missing, one row a gap."""
    rows = [(window, gap) for window in windows for gap in (*window.gaps, *_undeclared(window))]
    return [
        texts("tenant_id", [one.tenant_id for one, _ in rows]),
        texts("vm_id", [one.key.vm_id for one, _ in rows]),
        texts("deployment_id", [one.deployment_id for one, _ in rows]),
        texts("window_id", [one.window_id for one, _ in rows]),
        numbers("Int64", "boot_epoch", [one.key.boot_epoch for one, _ in rows]),
        numbers("Int64", "first_seq", [gap[0] for _, gap in rows]),
        numbers("Int64", "last_seq", [gap[1] for _, gap in rows]),
        numbers("UInt8", "reason", [gap[2] for _, gap in rows]),
        numbers("Int64", "start_at_ns", [_at_ns(one, gap[0]) for one, gap in rows]),
        numbers("Int64", "end_at_ns", [_at_ns(one, gap[1]) for one, gap in rows]),
        numbers("Int64", "window_at_ns", [one.start_at_ns for one, _ in rows]),
    ]


def _undeclared(window: Window) -> list[tuple[int, int, int]]:
    """Numbers between a window's samples that are missing, and it does not say so."""
    if window.last_seq - window.first_seq + 1 == len(window):
        return []
    after = np.flatnonzero(np.diff(window.seq) > 1)
    holes = [(int(window.seq[at]) + 1, int(window.seq[at + 1]) - 1) for at in after]
    said = [Missing(*gap) for gap in window.gaps]
    left = left_of([Missing(*hole, _UNEXPLAINED) for hole in holes], said)
    return [(one.first_seq, one.last_seq, one.reason) for one in left]


def _at_ns(window: Window, seq: int) -> int:
    """About when a sample that is missing was due."""
    return window.start_at_ns + (seq - window.first_seq) * TICK_US * NS_PER_US


def usage_columns(rows: Sequence[tuple[UsageRecord, Meter, int]], version: int) -> list[Column]:
    """Quantities of hours or days, one row a meter."""
    return [
        texts("tenant_id", [one.tenant_id for one, _, _ in rows]),
        texts("vm_id", [one.key.vm_id for one, _, _ in rows]),
        texts("deployment_id", [one.deployment_id for one, _, _ in rows]),
        numbers("Int64", "boot_epoch", [one.key.boot_epoch for one, _, _ in rows]),
        numbers("Int64", "start_ns", [one.start_ns for one, _, _ in rows]),
        numbers("UInt8", "meter", [int(meter) for _, meter, _ in rows]),
        Column(name="quantity", kind="Int128", values=[quantity for _, _, quantity in rows]),
        numbers("UInt64", "version", [version for _ in rows]),
    ]
