from __future__ import annotations

import hashlib

import pytest
import zstandard

from ironworks.aggregatord import decode
from ironworks.aggregatord.types import Finding, Window
from ironworks.gen.ironworks.aggregatord.v1 import batch_pb
from ironworks.gen.ironworks.aggregatord.v1.batch_pb import AbsenceRun, QuarantineReason
from ironworks.gen.ironworks.billaged.v1.samples_pb import AbsenceReason, Counter, GapReason
from ironworks.model.errors import InvalidRequest
from ironworks.model.units import GIB
from ironworks.testkit.metering import batch, reading, window


def decoded(raw: batch_pb.Window) -> Window:
    made = decode.window_of(raw)
    assert isinstance(made, Window)
    return made


def test_a_window_is_what_was_encoded() -> None:
    raw = window([5, 6, 9], gaps=[(7, 8, GapReason.SAMPLER_LATE)], offset_us=[3, -4, 2])
    made = decoded(raw)
    assert made.seq.tolist() == [5, 6, 9]
    assert made.offset_us.tolist() == [3, -4, 2]
    assert made.values["cpu_ns"].tolist() == [reading("cpu_ns", seq) for seq in (5, 6, 9)]
    assert made.time_us().tolist() == [500_003, 599_996, 900_002]
    assert made.gaps == ((7, 8, GapReason.SAMPLER_LATE),)
    assert made.content_sha256 == hashlib.sha256(raw.to_binary()).digest()
    assert (made.first_seq, made.last_seq, len(made)) == (5, 9, 3)


def test_a_reading_that_the_vm_has_no_source_for_makes_no_sample_partial() -> None:
    raw = window([1, 2, 3], absent_mask=[0b100, 0b101, 0b100])
    raw.absences = [
        AbsenceRun(
            counter=Counter.DISK_READ, reason=AbsenceReason.NO_SOURCE, first_seq=1, last_seq=3
        ),
        AbsenceRun(counter=Counter.CPU, reason=AbsenceReason.TIMEOUT, first_seq=2, last_seq=2),
    ]
    made = decoded(raw)
    assert made.partial_count == 1
    assert made.present("cpu_ns").tolist() == [True, False, True]
    assert made.present("disk_read_bytes").tolist() == [False, False, False]
    assert made.present("memory_bytes").all()


@pytest.mark.parametrize(
    "change",
    [
        {"window_id": ""},
        {"window_id": "x" * 65},
        {"vm_id": ""},
        {"tenant_id": ""},
        {"sample_count": 0},
        {"sample_count": 2},
        {"sample_count": 1201},
        {"vcpus": 0},
        {"vcpus": 33},
        {"memory_limit_bytes": 0},
        {"memory_limit_bytes": 65 * GIB},
        {"disk_limit_bytes": -1},
        {"boot_epoch": -1},
        {"tick_ns": 1},
        {"seq": b"short"},
        {"offset_us": b""},
        {"absent_mask": b"\0" * 9},
        {"cpu_ns": b"\0" * 7},
    ],
)
def test_a_malformed_window_is_a_finding_and_no_crash(change: dict[str, object]) -> None:
    raw = window([1, 2, 3])
    for name, value in change.items():
        setattr(raw, name, value)
    found = decode.window_of(raw)
    assert isinstance(found, Finding)
    assert found.reason is QuarantineReason.MALFORMED


def test_a_sound_batch_is_opened() -> None:
    assert [one.window_id for one in decode.payload_of(batch([window([1])])).windows]


@pytest.mark.parametrize(
    "change",
    [
        {"batch_id": ""},
        {"host_id": ""},
        {"schema_version": 3},
        {"encoding": batch_pb.PayloadEncoding.UNSPECIFIED},
        {"payload": b"not zstandard"},
        {"payload": zstandard.ZstdCompressor(write_content_size=False).compress(b"x")},
        {"payload": zstandard.ZstdCompressor().compress(b"other content")},
        {"content_sha256": b"\0" * 32},
    ],
)
def test_an_envelope_that_is_not_sound_is_refused(change: dict[str, object]) -> None:
    request = batch([window([1])])
    for name, value in change.items():
        setattr(request, name, value)
    with pytest.raises(InvalidRequest):
        decode.payload_of(request)


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    request = batch([])
    content = b"\0" * (decode.MAX_PAYLOAD_BYTES + 1)
    request.payload = zstandard.ZstdCompressor().compress(content)
    request.content_sha256 = hashlib.sha256(content).digest()
    with pytest.raises(InvalidRequest, match="too large"):
        decode.payload_of(request)


def test_garbage_with_a_right_checksum_is_refused() -> None:
    request = batch([])
    request.payload = zstandard.ZstdCompressor().compress(b"\xff\xff\xff")
    request.content_sha256 = hashlib.sha256(b"\xff\xff\xff").digest()
    with pytest.raises(InvalidRequest, match="not a batch"):
        decode.payload_of(request)


def test_too_many_windows_are_refused() -> None:
    request = batch([window([seq]) for seq in range(decode.MAX_WINDOWS + 1)])
    with pytest.raises(InvalidRequest, match="at most"):
        decode.payload_of(request)


def test_in_windows_of_the_first_schema_the_last_reading_is_absent() -> None:
    old = window([1, 2], absent_mask=[0, 0b10])
    old.network_internal_bytes = b""
    request = batch([old])
    request.schema_version = 1
    made = decode.window_of(decode.payload_of(request).windows[0])
    assert isinstance(made, Window)
    assert made.absent_mask.tolist() == [0b1000000, 0b1000010]
    assert not made.present("network_internal_bytes").any()
