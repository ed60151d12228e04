"""Which acceleration is chosen, why, and for how long that is remembered."""

from dataclasses import replace
from pathlib import Path

import pytest

from ironworks.metald.drivers.driver import Accel
from ironworks.metald.drivers.qemu import probe as module
from ironworks.metald.drivers.qemu.argv import Machine
from ironworks.metald.drivers.qemu.probe import Finding, boot_with_kvm, decide, probe
from ironworks.metald.guest.build import BuiltFile, Guest
from ironworks.model.errors import DeadlineExceeded
from ironworks.runtime.process import Completed

GUEST = Guest(
    directory=Path("/nowhere"),
    kernel_version="6.1",
    package="x.deb",
    inputs_sha256="i",
    kernel=BuiltFile(name="vmlinuz", size_bytes=1, sha256="k"),
    initrd=BuiltFile(name="initrd.img", size_bytes=1, sha256="r"),
    modules=(),
)


@pytest.mark.parametrize(
    ("failures", "accel", "machine"),
    [
        ({}, Accel.KVM, Machine.MICROVM),
        ({Machine.MICROVM: "spins"}, Accel.KVM, Machine.Q35),
        ({Machine.Q35: "spins"}, Accel.KVM, Machine.MICROVM),
        ({Machine.MICROVM: "spins", Machine.Q35: "spins"}, Accel.TCG, Machine.Q35),
    ],
)
async def test_a_probe_boot_decides(
    failures: dict[Machine, str], accel: Accel, machine: Machine
) -> None:
    async def boot(tried: Machine) -> str:
        return failures.get(tried, "")

    finding = await decide(kvm_exists=True, probe_boot=boot, version="7.2")
    assert (finding.accel, finding.machine, finding.version) == (accel, machine, "7.2")
    assert ("spins" in finding.sentence) == (accel is Accel.TCG)


async def test_without_kvm_nothing_is_booted() -> None:
    async def boot(tried: Machine) -> str:
        pytest.fail(f"booted {tried}")

    finding = await decide(kvm_exists=False, probe_boot=boot, version="")
    assert finding.accel is Accel.TCG
    assert "no /dev/kvm" in finding.sentence


def completed(status: int, stdout: bytes, stderr: bytes = b"") -> Completed:
    return Completed(argv=("qemu",), status=status, stdout=stdout, stderr=stderr)


@pytest.mark.parametrize(
    ("result", "failure"),
    [
        (completed(0, b"[1] x\nironworks: probe passed\n"), ""),
        (completed(0, b""), "QEMU ended with status 0"),
        (completed(-6, b"", b"qemu-system-x86_64: no MSR\nmore"), "no MSR"),
        (completed(1, b"ironworks: probe passed"), "QEMU ended with status 1"),
        (DeadlineExceeded("too long"), "nothing within 6 s"),
    ],
)
async def test_only_a_guest_that_reached_its_init_in_time_has_booted(
    monkeypatch: pytest.MonkeyPatch, result: Completed | DeadlineExceeded, failure: str
) -> None:
    async def run(*_: object, **__: object) -> Completed:
        if isinstance(result, DeadlineExceeded):
            raise result
        return result

    monkeypatch.setattr(module, "run", run)
    assert await boot_with_kvm(GUEST, Machine.Q35) == failure


async def test_the_finding_is_remembered_until_something_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def version() -> str:
        return "7.2"

    async def found(**_: object) -> Finding:
        asked.append(module.boot_id())
        return Finding(accel=Accel.KVM, machine=Machine.MICROVM, sentence="It works.", version="7")

    monkeypatch.setattr(module, "qemu_version", version)
    monkeypatch.setattr(module, "decide", found)
    first = await probe(GUEST, tmp_path / "state")
    assert await probe(GUEST, tmp_path / "state") == first
    assert len(asked) == 1
    monkeypatch.setattr(module, "boot_id", lambda: "another boot")
    await probe(GUEST, tmp_path / "state")
    changed = replace(GUEST, initrd=replace(GUEST.initrd, sha256="other"))
    await probe(changed, tmp_path / "state")
    (tmp_path / "state/qemu-probe.json").write_text("{}")
    await probe(changed, tmp_path / "state")
    (tmp_path / "state/qemu-probe.json").write_text("torn")
    assert await probe(changed, tmp_path / "state") == first
    assert len(asked) == 5
