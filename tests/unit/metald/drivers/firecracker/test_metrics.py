"""Firecracker's metrics: deltas, twins, and torn lines."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ironworks.metald.drivers.driver import BlockCounters
from ironworks.metald.drivers.firecracker.metrics import (
    MAX_LINE_BYTES,
    Counters,
    CountersFile,
    MetricsReader,
    deltas_of,
)


def line(read: int, *, block: bool = True, received: int = 0) -> bytes:
    """One line in Firecracker's own shape, with the sums and their twins of each device."""
    disk = {"read_bytes": read, "write_bytes": 2 * read, "read_count": 1, "write_count": 2}
    net = {"rx_bytes_count": received, "tx_bytes_count": 0}
    content: dict[str, object] = {"utc_timestamp_ms": 1, "api_server": {"sync": 0}}
    content |= {"block": disk} if block else {}
    content |= {"block_rootfs": disk, "net": net, "net_eth0": net, "seccomp": {"num_faults": 0}}
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"


def test_deltas_are_added_up() -> None:
    reader = MetricsReader()
    reader.feed(line(10) + line(5, received=7))
    assert reader.counters.block == BlockCounters(
        read_bytes=15, written_bytes=30, read_operations=2, write_operations=4
    )
    assert reader.counters.received_bytes == 7
    assert (reader.lines, reader.torn) == (2, 0)


def test_devices_count_once() -> None:
    assert deltas_of(json.loads(line(10)))[0] == 10
    assert deltas_of(json.loads(line(10, block=False)))[0] == 10
    two = {"block_a": {"read_bytes": 1}, "block_b": {"read_bytes": 2}}
    assert deltas_of(two)[0] == 3
    assert deltas_of({"block": {"read_bytes": -3, "write_bytes": "x"}, "net": 4}) == (0,) * 6


def test_a_line_that_is_glued_to_a_torn_one_is_found() -> None:
    reader = MetricsReader()
    reader.feed(line(1) + line(100)[:40] + line(3) + line(4))
    assert reader.counters.read_bytes == 8
    assert (reader.lines, reader.torn) == (3, 1)


def test_a_torn_beginning_costs_itself_only() -> None:
    reader = MetricsReader()
    reader.feed(line(1)[30:] + line(3))
    assert (reader.counters.read_bytes, reader.torn) == (3, 1)


def test_what_is_no_line_takes_no_memory() -> None:
    reader = MetricsReader()
    for _ in range(5):
        reader.feed(b"x" * MAX_LINE_BYTES)
    reader.feed(line(2) + line(3))
    assert reader.counters.read_bytes == 5
    assert reader.torn >= 1


@pytest.mark.parametrize("junk", [b"[]\n", b"null\n", b"\n\n", b"{}\n", b"\xff\xfe\n"])
def test_junk_counts_nothing(junk: bytes) -> None:
    reader = MetricsReader()
    reader.feed(junk + line(1))
    assert reader.counters.read_bytes == 1


@given(st.lists(st.integers(0, 1000), max_size=8), st.lists(st.integers(1, 400), max_size=50))
def test_sums_do_not_depend_on_how_the_stream_was_cut(reads: list[int], cuts: list[int]) -> None:
    stream, reader = b"".join(line(read) for read in reads), MetricsReader()
    for cut in cuts:
        reader.feed(stream[:cut])
        stream = stream[cut:]
    reader.feed(stream)
    assert (reader.counters.read_bytes, reader.torn) == (sum(reads), 0)


def test_a_metald_that_restarts_goes_on_counting(tmp_path: Path) -> None:
    first = CountersFile(tmp_path / "counters")
    assert first.read() == Counters()
    reader = MetricsReader(first.read())
    reader.feed(line(10))
    first.write(reader.counters)
    first.close()
    first.close()
    second = CountersFile(tmp_path / "counters")
    reader = MetricsReader(second.read())
    reader.feed(line(5))
    second.close()
    assert reader.counters.read_bytes == 15


def test_a_link_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "counters").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic links"):
        CountersFile(tmp_path / "counters")
