"""Blocks of the Native format and parameters, without an engine; `test_clickhouse` has one."""

from __future__ import annotations

import numpy as np
import pytest

from ironworks.model.errors import Internal, InvalidRequest
from ironworks.storage.native import Column, Runs, argument, insert_into, native_block


def test_runs_are_what_they_stand_for() -> None:
    runs = Runs(values=["a", "", "ü"], counts=[2, 0, 1])
    assert len(runs) == 3
    assert list(runs) == ["a", "a", "ü"]
    as_runs = native_block([Column(name="s", kind="String", values=runs)])
    assert as_runs == native_block([Column(name="s", kind="String", values=["a", "a", "ü"])])


def test_columns_of_different_length_are_no_block() -> None:
    short = Column(name="a", kind="String", values=["x"])
    with pytest.raises(InvalidRequest, match="one length"):
        native_block([short, Column(name="b", kind="String", values=["x", "y"])])


@pytest.mark.parametrize("kind", ["Float64", "Nullable(String)", "", "Array(UInt8)"])
def test_kinds_that_are_not_written_are_refused(kind: str) -> None:
    with pytest.raises(InvalidRequest, match="are not written"):
        native_block([Column(name="a", kind=kind, values=[1])])


@pytest.mark.parametrize(
    ("kind", "value"), [("UInt8", 256), ("Int64", 1 << 63), ("UInt64", -1), ("Int128", 1 << 127)]
)
def test_a_number_that_does_not_fit_is_never_cut(kind: str, value: int) -> None:
    with pytest.raises((OverflowError, InvalidRequest)):
        native_block([Column(name="a", kind=kind, values=[value])])


def test_a_number_has_the_width_of_its_kind() -> None:
    block = native_block([Column(name="n", kind="UInt32", values=np.array([1, 2]))])
    assert block.endswith(b"\1\0\0\0\2\0\0\0")


@pytest.mark.parametrize(
    ("value", "text"),
    [(5, 5), ("a\tb\\", "a\\tb\\\\"), (["it's", 2], "['it\\'s',2]"), ((), "[]")],
)
def test_a_parameter_is_written_as_the_server_reads_it(value: object, text: object) -> None:
    assert argument(value) == text


@pytest.mark.parametrize("name", ["t; DROP TABLE t", "a b", "", "1a", "t\n"])
def test_names_are_names(name: str) -> None:
    good = Column(name="a", kind="String", values=["x"])
    with pytest.raises(Internal, match="not the name of"):
        insert_into(name, [good])
    with pytest.raises(Internal, match="not the name of"):
        insert_into("t", [Column(name=name, kind="String", values=["x"])])
    assert insert_into("t", [good, good]) == "INSERT INTO t (a, a)"
