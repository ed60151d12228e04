from ipaddress import IPv4Address
from pathlib import Path

from ironworks.metald.network import naming
from ironworks.metald.network.naming import names_of, slot_of_netns, slot_of_veth
from ironworks.runtime.settings import tag_of


def test_names_follow_from_tag_and_slot_and_tell_both() -> None:
    names = names_of("abc123", 0x1F)
    assert names.netns == "iw-abc123-0001f"
    assert names.veth == "iwabc123v0001f"
    assert slot_of_netns("abc123", names.netns) == slot_of_veth("abc123", names.veth) == 0x1F


def test_what_is_another_platforms_is_not_ours() -> None:
    assert slot_of_netns("abc123", "iw-abc124-0001f") is None
    assert slot_of_veth("abc123", "iwabc124v0001f") is None
    for name in (
        "eth0",
        "iw",
        "iwabc123v",
        "iwabc123v0001f0",
        "iw-abc123-0001g",
        "xiw-abc123-0001f",
    ):
        assert slot_of_netns("abc123", name) is None
        assert slot_of_veth("abc123", name) is None


def test_interface_names_fit_the_kernel() -> None:
    last = names_of("ffffff", naming.USABLE_SLOTS - 1)
    for name in (last.veth, naming.TAP, naming.INNER_VETH):
        assert len(name) <= 15
        assert name.startswith("iw")


def test_addresses_are_the_slots_own_and_within_the_fabric() -> None:
    first, last = names_of("abc123", 0), names_of("abc123", naming.USABLE_SLOTS - 1)
    assert first.address == IPv4Address("198.18.0.2")
    assert first.address != naming.HOST_ADDRESS
    assert last.address in naming.FABRIC
    assert last.address < naming.FABRIC.broadcast_address


def test_a_tag_stands_for_a_directory(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert (
        tag_of(tmp_path / "a") == tag_of(tmp_path / "link") == tag_of(tmp_path / "b" / ".." / "a")
    )
    assert tag_of(tmp_path / "a") != tag_of(tmp_path / "b")
    assert 0 <= naming.first_slot("ffffff") < naming.USABLE_SLOTS
