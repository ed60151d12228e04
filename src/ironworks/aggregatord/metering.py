"""From samples to quantities: pure and integer, so that every sum is exact.

A window is summarised once. What a window adds to usage is what its counters have grown since the
windows before it; so the usage of any set of consecutive windows telescopes to last minus first.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ironworks.aggregatord.types import (
    CUMULATIVE,
    MEMORY_HOLD_US,
    UNITS,
    Baseline,
    Quantities,
    Summary,
    Window,
)
from ironworks.gen.ironworks.aggregatord.v1.usage_pb import Meter
from ironworks.model.units import NS_PER_US

_METER_OF = {
    "cpu_ns": Meter.VCPU_USED,
    "disk_read_bytes": Meter.DISK_READ,
    "disk_write_bytes": Meter.DISK_WRITE,
    "network_receive_bytes": Meter.NETWORK_IN,
    "network_transmit_bytes": Meter.NETWORK_OUT,
}


def _edges(window: Window, name: str) -> tuple[int | None, int | None]:
    values = window.values[name][window.present(name)]
    return (int(values[0]), int(values[-1])) if len(values) else (None, None)


def summarise(window: Window) -> Summary:
    """What a window says of usage."""
    time_us = window.time_us()
    edges = {name: _edges(window, name) for name in CUMULATIVE}
    seen = window.present("memory_bytes")
    memory, memory_us = window.values["memory_bytes"][seen].astype(np.int64), time_us[seen]
    held_us = np.minimum(np.diff(memory_us), MEMORY_HOLD_US)
    # 81 GiB for a minute in microseconds stays below 2^63.
    used_byte_us = int((memory[:-1] * held_us).sum()) if len(memory) > 1 else 0
    return Summary(
        window_id=window.window_id,
        tenant_id=window.tenant_id,
        deployment_id=window.deployment_id,
        key=window.key,
        first_seq=window.first_seq,
        last_seq=window.last_seq,
        sample_count=len(window),
        partial_count=window.partial_count,
        start_at_ns=window.start_at_ns,
        end_at_ns=int(window.tick_at_ns[-1]),
        vcpus=window.vcpus,
        memory_limit_bytes=window.memory_limit_bytes,
        disk_limit_bytes=window.disk_limit_bytes,
        first_us=int(time_us[0]),
        last_us=int(time_us[-1]),
        memory_byte_us=used_byte_us,
        memory_first_us=int(memory_us[0]) if len(memory) else None,
        memory_last_us=int(memory_us[-1]) if len(memory) else None,
        memory_last_bytes=int(memory[-1]) if len(memory) else None,
        first={name: edge[0] for name, edge in edges.items()},
        last={name: edge[1] for name, edge in edges.items()},
    )


def window_usage(summary: Summary, before: Baseline) -> Quantities:
    """What a window adds to usage, after the windows of its epoch before it."""
    since_us = summary.first_us if before.last_us is None else before.last_us
    elapsed_ns = max(0, summary.last_us - since_us) * NS_PER_US
    usage: Quantities = dict.fromkeys(UNITS, 0)
    usage[Meter.VCPU_PROVISIONED] = summary.vcpus * elapsed_ns
    usage[Meter.MEMORY_PROVISIONED] = summary.memory_limit_bytes * elapsed_ns
    usage[Meter.DISK_PROVISIONED] = summary.disk_limit_bytes * elapsed_ns
    usage[Meter.MEMORY_USED] = (summary.memory_byte_us + _bridge(summary, before)) * NS_PER_US
    for name, meter in _METER_OF.items():
        last, base = summary.last[name], before.last.get(name)
        base = summary.first[name] if base is None else base
        if last is not None and base is not None:
            usage[meter] = max(0, last - base)
    return usage


def _bridge(summary: Summary, before: Baseline) -> int:
    """The last memory reading before the window holds until the first in it."""
    if (
        summary.memory_first_us is None
        or before.memory_last_us is None
        or before.memory_last_bytes is None
    ):
        return 0
    held_us = min(summary.memory_first_us - before.memory_last_us, MEMORY_HOLD_US)
    return before.memory_last_bytes * max(0, held_us)


def _larger(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return other if one is None else one
    return max(one, other)


def after(before: Baseline, summary: Summary) -> Baseline:
    """The baseline for what follows the window."""
    memory_newer = summary.memory_last_us is not None and (
        before.memory_last_us is None or summary.memory_last_us > before.memory_last_us
    )
    newest = summary if memory_newer else before
    return Baseline(
        last_us=_larger(before.last_us, summary.last_us),
        memory_last_us=newest.memory_last_us,
        memory_last_bytes=newest.memory_last_bytes,
        last={name: _larger(before.last.get(name), summary.last[name]) for name in CUMULATIVE},
    )


def usage_of(summaries: Iterable[Summary], before: Baseline) -> list[tuple[Summary, Quantities]]:
    """What each window of one epoch adds, in the order of their first samples."""
    out: list[tuple[Summary, Quantities]] = []
    for summary in sorted(summaries, key=lambda one: one.first_seq):
        out.append((summary, window_usage(summary, before)))
        before = after(before, summary)
    return out


def add(total: Quantities, more: Quantities) -> None:
    """Add quantities meter by meter."""
    for meter, quantity in more.items():
        total[meter] = total.get(meter, 0) + quantity
