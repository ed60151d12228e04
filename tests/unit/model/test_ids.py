from __future__ import annotations

from typing import get_args

import pytest

from ironworks.model.errors import InvalidRequest
from ironworks.model.ids import Prefix, check_id, check_name, derived_id, new_id
from ironworks.testkit.clock import FakeClock, FakeEntropy


def test_an_id_says_what_it_names() -> None:
    value = new_id("vm", FakeClock(), FakeEntropy())
    assert value.startswith("vm_")
    assert len(value) == len("vm_") + 26
    assert check_id(value, "vm", "vm_id") == value


def test_the_time_part_is_a_ulid() -> None:
    # The example of the ULID specification: 01ARYZ6S41 is 1469918176385 ms.
    value = new_id("vm", FakeClock(now_ns=1_469_918_176_385_000_000), FakeEntropy())
    assert value[3:13] == "01aryz6s41"


def test_two_ids_of_the_same_moment_differ() -> None:
    clock, entropy = FakeClock(), FakeEntropy()
    assert new_id("job", clock, entropy) != new_id("job", clock, entropy)


def test_an_id_of_another_kind_is_refused_and_the_field_is_named() -> None:
    value = new_id("job", FakeClock(), FakeEntropy())
    with pytest.raises(InvalidRequest, match=r"vm_id is not an id of the form vm_"):
        check_id(value, "vm", "vm_id")


@pytest.mark.parametrize(
    "value",
    [
        "",
        "vm_",
        "vm",
        "vm_01JD8V3Q6M5K8N0P2R4T6V8X0Z",
        "vm_01jd8v3q6m5k8n0p2r4t6v8x0",
        "vm_01jd8v3q6m5k8n0p2r4t6v8x0zz",
        "vm_01jd8v3q6m5k8n0p2r4t6v8x0z\n",
        "vm_01jd8v3q6m5k8n0p2r4t6v8x0i",
        "vm_../../../../../../../../../",
        " vm_01jd8v3q6m5k8n0p2r4t6v8x0z",
    ],
)
def test_what_is_no_id_is_refused(value: str) -> None:
    with pytest.raises(InvalidRequest):
        check_id(value, "vm", "vm_id")


def test_no_prefix_is_the_beginning_of_another_id() -> None:
    prefixes = [f"{prefix}_" for prefix in get_args(Prefix)]
    assert not [a for a in prefixes for b in prefixes if a != b and a.startswith(b)]


def test_work_that_is_repeated_gets_the_same_id() -> None:
    assert derived_id("win", "vm_1", "7") == derived_id("win", "vm_1", "7")
    assert check_id(derived_id("win", "vm_1", "7"), "win", "window_id")


def test_parts_do_not_run_into_each_other() -> None:
    assert derived_id("win", "vm_1", "7") != derived_id("win", "vm_17")
    assert derived_id("win", "a", "bc") != derived_id("win", "ab", "c")


@pytest.mark.parametrize("value", ["a", "web", "web-1", "0", "a" * 63])
def test_names_are_dns_labels(value: str) -> None:
    assert check_name(value) == value


@pytest.mark.parametrize(
    "value", ["", "-web", "web-", "Web", "a_b", "a.b", "a" * 64, "web\n", "wéb", "-", "a b", "../x"]
)
def test_what_is_no_name_is_refused_and_the_field_is_named(value: str) -> None:
    with pytest.raises(InvalidRequest, match="hostname must be 1 to 63"):
        check_name(value, "hostname")
