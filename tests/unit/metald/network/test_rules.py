from typing import Any

from ironworks.metald.network import rules
from ironworks.metald.network.naming import fabric_of, names_of, tenant_label
from ironworks.metald.network.rules import DENIED_COUNTERS
from ironworks.metald.types import EgressRule, NetworkSpec, Protocol, PublishedPort

ONE = names_of("abc123", 1)


def test_every_counter_of_refused_packets_is_declared_and_used() -> None:
    text = rules.slot_rules(ONE)
    for name in DENIED_COUNTERS:
        assert f"counter {name} {{ }}" in text
        assert f"counter name {name} drop" in text


def test_the_guests_chains_and_the_fabrics_refuse_by_default() -> None:
    for text, chains in (
        (rules.slot_rules(ONE), ("from_guest", "forward", "input")),
        (rules.fabric_rules(), ("forward", "input")),
    ):
        for chain in chains:
            body = text[text.index(f"chain {chain} ") :].split("}\n")[0]
            assert "policy drop" in body


def test_a_policy_is_written_rule_by_rule() -> None:
    network = NetworkSpec(
        egress=(
            EgressRule(cidr="203.0.113.0/24"),
            EgressRule(cidr="2001:db8::/32", first_port=80, last_port=90, protocol=Protocol.TCP),
            EgressRule(cidr="192.0.2.1", first_port=5, last_port=5),
            EgressRule(cidr="192.0.2.2/32", protocol=Protocol.UDP),
        ),
        nameservers=("192.0.2.53", "fd00::5"),
    )
    assert rules.policy_rules(network).splitlines() == [
        "flush chain inet iw egress",
        "add rule inet iw egress ip daddr 203.0.113.0/24 accept",
        "add rule inet iw egress ip6 daddr 2001:db8::/32 meta l4proto tcp th dport 80-90 accept",
        "add rule inet iw egress ip daddr 192.0.2.1 meta l4proto { tcp, udp } th dport 5 accept",
        "add rule inet iw egress ip daddr 192.0.2.2/32 meta l4proto udp accept",
        "add rule inet iw egress ip daddr 192.0.2.53 meta l4proto { tcp, udp } th dport 53 accept",
        "add rule inet iw egress ip6 daddr fd00::5 meta l4proto { tcp, udp } th dport 53 accept",
    ]
    (counted,) = [
        rules.rules_of(script)
        for table, script in rules.slot_scripts(ONE, network)
        if table == "inet iw"
    ]
    assert counted["egress"] == 6


def test_rules_are_counted_by_chain() -> None:
    text = """
table inet t {
  map m { type ipv4_addr : verdict; }
  chain one {
    type filter hook input priority 0; policy drop;
    # a comment
    ip saddr 192.0.2.1 accept
    meta l4proto { tcp, udp } drop
  }
  chain two {
  }
}
"""
    assert rules.rules_of(text) == {"one": 2, "two": 0}


def test_a_published_port_matches_the_hosts_own_addresses_only() -> None:
    text = rules.host_rules(fabric_of("abc123"), guarded=["eth0"])
    publish = text[text.index("chain publish") :].split("}\n")[0]
    assert publish.index("fib daddr type != local return") < publish.index("dnat")
    assert 'iifname "iwabc123up" return' in text
    assert 'iifname "eth0" oifname != "iw*" drop' in text
    assert "eth0" not in rules.host_rules(fabric_of("abc123"), guarded=[])


def test_published_ports_are_found_again_in_what_nftables_answers() -> None:
    element = [{"concat": ["udp", 5353]}, {"concat": [str(ONE.address), 53]}]
    other = [{"concat": ["tcp", 80]}, {"concat": ["198.18.9.9", 8080]}]
    answer: list[dict[str, Any]] = [{"metainfo": {}}, {"map": {"elem": [element, other]}}]
    assert rules.published_of(answer, str(ONE.address)) == [
        PublishedPort(protocol=Protocol.UDP, host_port=5353, guest_port=53)
    ]


def test_a_tenants_label_fits_nftables_and_is_found_again() -> None:
    label = tenant_label("tnt_" + "x" * 200)
    assert label != tenant_label("tnt_y")
    assert len(label) == 32
    assert rules.tenant_of(f"elements = {{ 198.18.0.3 : jump t4_{label} }}") == label
    assert rules.tenant_of("") == ""
