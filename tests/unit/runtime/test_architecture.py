"""The architecture has OCI's name, whatever the kernel calls it."""

from __future__ import annotations

import platform

import pytest

from ironworks.runtime.architecture import host_architecture


@pytest.mark.parametrize(
    ("machine", "name"), [("x86_64", "amd64"), ("aarch64", "arm64"), ("riscv64", "riscv64")]
)
def test_it_has_the_name_that_images_have(
    monkeypatch: pytest.MonkeyPatch, machine: str, name: str
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert host_architecture() == name
