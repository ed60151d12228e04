"""A network namespace with a pair of interfaces."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest


def ip(*words: str, given: str = "") -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, input=given.encode())


@pytest.fixture
def namespace() -> Iterator[str]:
    """Its name; what is sent on `iwb` arrives on `iwa`, and the other way round."""
    name = f"iwtest{os.getpid()}"
    ip("netns", "add", name)
    try:
        ip("-n", name, "link", "add", "iwa", "type", "veth", "peer", "name", "iwb")
        ip("-n", name, "link", "set", "iwa", "up")
        ip("-n", name, "link", "set", "iwb", "up")
        yield name
    finally:
        ip("netns", "del", name)
