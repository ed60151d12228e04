import subprocess

import pytest

from ironworks.metald.network.naming import names_of
from ironworks.metald.network.rules import DENIED_COUNTERS, ruleset


def test_every_counter_of_refused_packets_is_declared_and_used() -> None:
    text = ruleset(names_of("abc123", 1))
    for name in DENIED_COUNTERS:
        assert f"counter {name} {{ }}" in text
        assert f"counter name {name} drop" in text


def test_the_guests_chains_refuse_by_default() -> None:
    text = ruleset(names_of("abc123", 1))
    for chain in ("from_guest", "forward", "input"):
        body = text[text.index(f"chain {chain} ") :].split("}\n")[0]
        assert "policy drop" in body


@pytest.mark.root
def test_nft_takes_the_rules() -> None:
    # The device is not there in this namespace, so the table on it cannot be checked here.
    text = ruleset(names_of("abc123", 1))
    text = text[text.index("table ip iw ") :]
    done = subprocess.run(
        ["nft", "--check", "-f", "-"], input=text.encode(), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
