"""What a VM's firewall has counted, read from nftables' own answers; pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from ironworks.metald.network.naming import slot_of_address
from ironworks.metald.network.rules import DENIED_COUNTERS, PEER


@dataclass(frozen=True, slots=True, kw_only=True)
class Denied:
    """What one rule has refused."""

    rule: str
    packets: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkStats:
    """What a VM has sent and received, and what was refused to it; since its slot was made."""

    in_bytes: int
    out_bytes: int
    denied: tuple[Denied, ...]


def denied(
    own: Iterable[Mapping[str, Any]], fabric: Mapping[int, Denied], slot: int
) -> list[Denied]:
    """Every rule's count, also those that have refused nothing, in the order of their names.

    Args:
        own: Answer of `list counters` in the VM's namespace.
        fabric: From `denied_by_fabric`.
        slot: The VM's.
    """
    found = {str(one["counter"]["name"]): one["counter"] for one in own if "counter" in one}
    counts = [
        Denied(
            rule=name.replace("_", "-"),
            packets=int(found[name]["packets"]) if name in found else 0,
            bytes=int(found[name]["bytes"]) if name in found else 0,
        )
        for name in DENIED_COUNTERS
    ]
    counts.append(fabric.get(slot, Denied(rule=PEER, packets=0, bytes=0)))
    return sorted(counts, key=lambda one: one.rule)


def denied_by_fabric(answers: Iterable[Mapping[str, Any]]) -> dict[int, Denied]:
    """Slot → what the fabric has refused of it, from answers of `list set` of its sets."""
    total: dict[int, Denied] = {}
    for answer in answers:
        for element in cast("list[Any]", answer.get("set", {}).get("elem", [])):
            # An element that has counted nothing is its bare address.
            if not isinstance(element, dict):
                continue
            counted = cast("dict[str, dict[str, Any]]", element)["elem"]
            slot = slot_of_address(str(counted["val"]))
            before = total.get(slot, Denied(rule=PEER, packets=0, bytes=0))
            total[slot] = Denied(
                rule=PEER,
                packets=before.packets + int(counted["counter"]["packets"]),
                bytes=before.bytes + int(counted["counter"]["bytes"]),
            )
    return total
