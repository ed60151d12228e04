"""From samples to quantities: pure and integer, so that every sum is exact.

A window is summarised once. What a window adds to usage is what its counters have grown since the
windows before it; so the usage of any set of consecutive windows telescopes to last minus first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from ironworks.aggregatord.types import (
    CUMULATIVE,
    MEMORY_HOLD_US,
    READINGS,
    Baseline,
    Block,
    Growth,
    Quantities,
    Summary,
    Window,
)
from ironworks.gen.ironworks.aggregatord.v1.usage_pb import Meter
from ironworks.model.units import NS_PER_US

METER_OF = {
    "cpu_ns": Meter.VCPU_USED,
    "disk_read_bytes": Meter.DISK_READ,
    "disk_write_bytes": Meter.DISK_WRITE,
    "network_receive_bytes": Meter.NETWORK_IN,
    "network_transmit_bytes": Meter.NETWORK_OUT,
    "network_internal_bytes": Meter.NETWORK_OUT_INTERNAL,
}
_MEMORY_BIT = 1 << READINGS.index("memory_bytes")
_BITS = tuple(1 << READINGS.index(name) for name in CUMULATIVE)
Edges = Mapping[str, tuple[int | None, int | None]]


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
    return _summary(
        window,
        first_us=int(time_us[0]),
        last_us=int(time_us[-1]),
        memory=(
            used_byte_us,
            int(memory_us[0]) if len(memory) else None,
            int(memory_us[-1]) if len(memory) else None,
            int(memory[-1]) if len(memory) else None,
        ),
        edges=edges,
    )


def _summary(
    window: Window,
    *,
    first_us: int,
    last_us: int,
    memory: tuple[int, int | None, int | None, int | None],
    edges: Edges,
) -> Summary:
    """The summary, from `memory` (byte_us, first_us, last_us, last_bytes) and edges of counters."""
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
        end_at_ns=window.end_at_ns,
        vcpus=window.vcpus,
        memory_limit_bytes=window.memory_limit_bytes,
        disk_limit_bytes=window.disk_limit_bytes,
        first_us=first_us,
        last_us=last_us,
        memory_byte_us=memory[0],
        memory_first_us=memory[1],
        memory_last_us=memory[2],
        memory_last_bytes=memory[3],
        first={name: edge[0] for name, edge in edges.items()},
        last={name: edge[1] for name, edge in edges.items()},
    )


def summarise_all(block: Block) -> list[Summary]:
    """`summarise` of every window of a block, all at once.

    What refused windows are summarised to means nothing.
    """
    if not block.windows:
        return []
    starts, ends = block.starts, block.ends
    time_us = block.time_us()
    some = np.bitwise_or.reduceat(block.absent_mask, starts)
    every = np.bitwise_and.reduceat(block.absent_mask, starts)
    memory = block.values["memory_bytes"].astype(np.int64)
    held_us = np.zeros(len(time_us), np.int64)
    held_us[:-1] = np.minimum(np.diff(time_us), MEMORY_HOLD_US)
    held_us[ends] = 0
    used_byte_us = np.add.reduceat(memory * held_us, starts).tolist()
    edges = {
        name: (block.values[name][starts].tolist(), block.values[name][ends].tolist())
        for name in CUMULATIVE
    }
    first_us, last_us = time_us[starts].tolist(), time_us[ends].tolist()
    memory_last = memory[ends].tolist()
    found: list[Summary] = []
    for index, (window, mask) in enumerate(zip(block.windows, some.tolist(), strict=True)):
        if mask != every[index]:
            # Readings come and go within the window: one by one.
            found.append(summarise(window))
            continue
        seen = not mask & _MEMORY_BIT
        found.append(
            _summary(
                window,
                first_us=first_us[index],
                last_us=last_us[index],
                memory=(
                    used_byte_us[index] if seen else 0,
                    first_us[index] if seen else None,
                    last_us[index] if seen else None,
                    memory_last[index] if seen else None,
                ),
                edges={
                    name: (None, None) if mask & bit else (low[index], high[index])
                    for (name, (low, high)), bit in zip(edges.items(), _BITS, strict=True)
                },
            )
        )
    return found


def growth(summary: Summary, before: Baseline) -> Growth:
    """What a window adds to the windows of its epoch before it."""
    since_us = summary.first_us if before.last_us is None else before.last_us
    grown: dict[str, int] = {}
    for name in CUMULATIVE:
        last, base = summary.last[name], before.last.get(name)
        base = summary.first[name] if base is None else base
        grown[name] = 0 if last is None or base is None else max(0, last - base)
    return Growth(
        elapsed_us=max(0, summary.last_us - since_us),
        held_byte_us=summary.memory_byte_us + _bridge(summary, before),
        grown=grown,
    )


def quantities(summary: Summary, grown: Growth) -> Quantities:
    """A window's growth in the units of the meters."""
    elapsed_ns = grown.elapsed_us * NS_PER_US
    return {
        Meter.VCPU_PROVISIONED: summary.vcpus * elapsed_ns,
        Meter.MEMORY_PROVISIONED: summary.memory_limit_bytes * elapsed_ns,
        Meter.DISK_PROVISIONED: summary.disk_limit_bytes * elapsed_ns,
        Meter.MEMORY_USED: grown.held_byte_us * NS_PER_US,
        **by_meter(grown.grown),
    }


def by_meter(grown: Mapping[str, int]) -> Quantities:
    """What counters have grown by, and what of the bytes sent did not go to VMs.

    That is a difference and no counter, so that it adds up however samples are cut. It is negative
    where bytes that nobody could tell apart, and so counted as internet, turn out to be internal.
    """
    found = {METER_OF[name]: quantity for name, quantity in grown.items()}
    if Meter.NETWORK_OUT in found:
        internal = found.get(Meter.NETWORK_OUT_INTERNAL, 0)
        found[Meter.NETWORK_OUT_INTERNET] = found[Meter.NETWORK_OUT] - internal
    return found


def window_usage(summary: Summary, before: Baseline) -> Quantities:
    """What a window adds to usage, after the windows of its epoch before it."""
    return quantities(summary, growth(summary, before))


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
    later = before.last_seq is None or summary.last_seq > before.last_seq
    return Baseline(
        last_seq=summary.last_seq if later else before.last_seq,
        end_at_ns=summary.end_at_ns if later else before.end_at_ns,
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
