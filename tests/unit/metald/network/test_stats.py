from typing import Any

from ironworks.metald.network.naming import names_of
from ironworks.metald.network.stats import denied, denied_by_fabric


def test_refusals_of_both_families_are_one_count_of_the_slot() -> None:
    one, two = names_of("abc123", 1), names_of("abc123", 2)
    answers: list[dict[str, Any]] = [
        {"metainfo": {}},
        {
            "set": {
                "elem": [
                    {"elem": {"val": str(one.address), "counter": {"packets": 2, "bytes": 120}}},
                    str(two.address),
                ]
            }
        },
        {
            "set": {
                "elem": [
                    {"elem": {"val": str(one.address_v6), "counter": {"packets": 1, "bytes": 80}}}
                ]
            }
        },
        {"set": {}},
    ]
    found = denied_by_fabric(answers)
    assert {slot: (one.packets, one.bytes) for slot, one in found.items()} == {1: (3, 200)}


def test_every_rule_is_told_of_also_those_that_refused_nothing() -> None:
    own: list[dict[str, Any]] = [
        {"counter": {"name": "spoofed_mac", "packets": 4, "bytes": 240}},
        {"metainfo": {}},
    ]
    lines = {line.rule: line.packets for line in denied(own, {}, 1)}
    assert lines == {
        "egress": 0,
        "host": 0,
        "metadata": 0,
        "peer": 0,
        "spoofed-address": 0,
        "spoofed-mac": 4,
    }
