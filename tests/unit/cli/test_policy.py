"""`iron policy`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ironworks.cli.policy import read_policy
from ironworks.gen.ironworks.builderd.v1 import policy_pb
from ironworks.model.errors import InvalidRequest
from ironworks.testkit.fakebuilds import REFUSED_IMAGE

if TYPE_CHECKING:
    from conftest import Iron

WRITTEN = """
allowed_sources = ["ghcr.io/acme"]
setuid_files = "strip"
max_unpacked_bytes = "2GiB"
non_root_required = true

[required_labels]
team = ""
"""


def test_a_file_declares_a_policy(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(WRITTEN)
    assert read_policy(path) == policy_pb.Policy(
        allowed_sources=["ghcr.io/acme"],
        setuid_files=policy_pb.PolicyAction.STRIP,
        max_unpacked_bytes=2 << 30,
        non_root_required=True,
        required_labels={"team": ""},
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("setuid_files = 'perhaps'", "allow, strip or refuse"),
        ("no_such_rule = 1", "something else than a policy"),
        ("max_file_count = 'many'", "something else than a policy"),
        ("=", "is not TOML"),
    ],
)
def test_what_is_no_policy(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(InvalidRequest, match=said):
        read_policy(path)


async def test_set_get_and_try(iron: Iron, tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(WRITTEN)
    assert "1" in (await iron("policy", "set", str(path))).out
    shown = await iron("policy", "get")
    for text in ("ghcr.io/acme", "strip", "yes", "team="):
        assert text in shown.out
    assert (await iron("policy", "get", "--json")).json["revision"] == "1"
    tried = await iron("policy", "try", "app:1", "--file", str(path))
    assert "setuid_files" in tried.out
    refused = await iron("policy", "try", REFUSED_IMAGE, status=68)
    assert "refuses the image" in refused.err
