"""Whether Firecracker is used: decided from what is there, without a Firecracker."""

import json
from pathlib import Path

import pytest

from ironworks.metald.drivers.firecracker import probe as module
from ironworks.metald.drivers.firecracker.jailer import sealed_firecracker
from ironworks.metald.drivers.firecracker.machine import Version
from ironworks.metald.drivers.firecracker.probe import (
    Binaries,
    Finding,
    decide,
    filters_by_itself,
    find_binaries,
    probe,
    probe_config,
    version_of,
)
from ironworks.metald.guest.build import DEFAULT_DIR, Guest, find
from ironworks.model.errors import FailedPrecondition

NEW: Version = (1, 16, 1)


async def never() -> str:
    pytest.fail("a probe boot was asked for")


@pytest.mark.parametrize(
    ("version", "jailer", "kvm", "words"),
    [
        ((1, 6, 9), (1, 6, 9), True, "1.6.9 is older than 1.7.0"),
        (NEW, (1, 15, 0), True, "is 1.16.1 and its jailer 1.15.0"),
        (NEW, NEW, False, "no /dev/kvm, and Firecracker cannot emulate"),
    ],
)
async def test_what_is_in_the_way_is_said_without_a_boot(
    version: Version, jailer: Version, words: str, *, kvm: bool
) -> None:
    finding = await decide(
        kvm_exists=kvm, version=version, jailer=jailer, filters=True, probe_boot=never
    )
    assert not finding.works
    assert words in finding.sentence


@pytest.mark.parametrize("failure", ["", "nothing within 6 s"])
async def test_a_boot_decides(failure: str) -> None:
    async def boots() -> str:
        return failure

    finding = await decide(kvm_exists=True, version=NEW, jailer=NEW, filters=True, probe_boot=boots)
    assert finding.works is (not failure)
    assert failure in finding.sentence
    assert finding.version == "1.16.1"


async def test_a_build_without_a_filter_of_its_own_is_said(tmp_path: Path) -> None:
    async def boots() -> str:
        return ""

    finding = await decide(
        kvm_exists=True, version=NEW, jailer=NEW, filters=False, probe_boot=boots
    )
    assert finding.works
    assert "no filter of system calls of its own" in finding.sentence
    sealed = await sealed_firecracker(DEFAULT_DIR)
    assert filters_by_itself(sealed), "it is linked with musl"
    assert not filters_by_itself(Path("/usr/bin/busybox")), "it is linked with glibc"


def program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_programs_are_those_that_are_named_else_those_on_the_path(tmp_path: Path) -> None:
    for name in ("firecracker", "jailer", "other"):
        program(tmp_path / name, "exit 0")
    on_path = find_binaries({"PATH": str(tmp_path)})
    assert on_path == Binaries(firecracker=tmp_path / "firecracker", jailer=tmp_path / "jailer")
    named = {"PATH": str(tmp_path), "FIRECRACKER_BIN": str(tmp_path / "other")}
    assert find_binaries(named).firecracker == tmp_path / "other"
    with pytest.raises(FailedPrecondition, match=r"at /none, which JAILER_BIN names"):
        find_binaries({"PATH": str(tmp_path), "JAILER_BIN": "/none"})
    with pytest.raises(FailedPrecondition, match="no firecracker on the PATH"):
        find_binaries({"PATH": "/none"})


async def test_a_program_says_its_version(tmp_path: Path) -> None:
    good = program(tmp_path / "good", "echo Firecracker v1.16.1; echo; echo exiting")
    assert await version_of(good) == NEW
    with pytest.raises(FailedPrecondition, match="does not say which version"):
        await version_of(program(tmp_path / "bad", "exit 1"))


@pytest.fixture
def guest() -> Guest:
    found = find(DEFAULT_DIR)
    assert found is not None, "`./iron test` builds it"
    return found


def test_the_probe_ends_its_firecracker() -> None:
    config = json.dumps(probe_config(Path("/k"), Path("/i")))
    assert "reboot=k" in config
    assert "probe reboot" in config


@pytest.mark.parametrize(
    ("script", "failure"),
    [
        ("echo ironworks: probe passed", ""),
        ("echo no >&2; exit 1", "no"),
        ("exit 3", "it ended with status 3"),
        ("sleep 5", "nothing within 0.3 s"),
    ],
)
async def test_a_probe_boot_is_bounded_and_explained(
    tmp_path: Path, guest: Guest, script: str, failure: str
) -> None:
    binary = program(tmp_path / "firecracker", script)
    binaries = Binaries(firecracker=binary, jailer=binary)
    assert await module.boot_once(binaries, guest, tmp_path / "elf", 0.3) == failure


async def test_what_was_found_holds_until_something_changes(
    tmp_path: Path, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = program(tmp_path / "firecracker", "echo Firecracker v1.16.1")
    binaries = Binaries(firecracker=binary, jailer=binary)
    boots: list[str] = []

    async def boot(*_: object) -> str:
        boots.append("boot")
        return ""

    monkeypatch.setattr(module, "boot_once", boot)
    monkeypatch.setattr(module, "KVM", tmp_path)

    async def ask() -> Finding:
        return await probe(binaries, guest, state_dir=tmp_path, elf_dir=tmp_path)

    assert (await ask()).works
    assert (await ask()).works
    assert len(boots) == 1
    program(binary, "echo Firecracker v1.17.0")
    assert (await ask()).version == "1.17.0"
    assert len(boots) == 2
