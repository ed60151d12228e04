"""However the log is damaged, what is read back was written, in order, and the rest is counted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ironworks.billaged.log import Kind, Scan, frame, read_frames

payloads = st.lists(st.binary(max_size=60), max_size=12)


def read(content: bytes) -> tuple[list[bytes], Scan]:
    scan = Scan()
    return [payload for _, payload, _ in read_frames(content, scan)], scan


def written(records: list[bytes]) -> bytes:
    return b"".join(frame(Kind.TICK, record) for record in records)


def is_subsequence(part: list[bytes], whole: list[bytes]) -> bool:
    remaining = iter(whole)
    return all(one in remaining for one in part)


@given(payloads)
def test_what_was_written_is_read(records: list[bytes]) -> None:
    found, scan = read(written(records))
    assert found == records
    assert (scan.records, scan.damaged) == (len(records), 0)


@given(payloads, st.data())
def test_a_log_cut_anywhere_gives_every_whole_record(
    records: list[bytes], data: st.DataObject
) -> None:
    content = written(records)
    cut = data.draw(st.integers(0, len(content)))
    whole = [count for count in range(len(records) + 1) if len(written(records[:count])) <= cut]
    found, scan = read(content[:cut])
    assert found == records[: whole[-1]]
    assert scan.damaged == 0


@given(payloads.filter(bool), st.data())
def test_a_flipped_bit_costs_one_record_at_most(records: list[bytes], data: st.DataObject) -> None:
    content = bytearray(written(records))
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= 1 << data.draw(st.integers(0, 7))
    found, _ = read(bytes(content))
    assert is_subsequence(found, records)
    assert len(found) >= len(records) - 1


@given(payloads, st.binary(max_size=80), st.data())
def test_garbage_between_records_is_skipped(
    records: list[bytes], garbage: bytes, data: st.DataObject
) -> None:
    where = data.draw(st.integers(0, len(records)))
    content = written(records[:where]) + garbage + written(records[where:])
    found, _ = read(content)
    assert is_subsequence(records, found) or b"IWL1" in garbage
