"""How an end is told."""

import signal
from dataclasses import replace
from pathlib import Path

import pytest

from ironworks.metald.drivers.driver import CONSOLE_TAIL_LINES, ExitKind
from ironworks.metald.drivers.report import Remains, collect, explain
from ironworks.metald.guest.control import BootFailed, Ended

NOTHING = Remains(status=None, killed=False, last_word=None, console=(), errors=())
PANIC = "[ 1.0] Kernel panic - not syncing: VFS: Unable to mount root fs"


@pytest.mark.parametrize(
    ("remains", "kind", "sentence"),
    [
        (NOTHING, ExitKind.LOST, "how is not known"),
        (replace(NOTHING, status=0), ExitKind.POWEROFF, "powered off"),
        (replace(NOTHING, status=0, killed=True), ExitKind.KILLED, "by force"),
        (replace(NOTHING, status=-9), ExitKind.CRASHED, "SIGKILL"),
        (replace(NOTHING, status=-signal.SIGSYS), ExitKind.SECCOMP, "filter"),
        (replace(NOTHING, status=1), ExitKind.CRASHED, "status 1."),
        (replace(NOTHING, status=1, errors=("a", "qemu: no")), ExitKind.CRASHED, "1: qemu: no"),
        (replace(NOTHING, status=0, console=(PANIC,)), ExitKind.PANIC, "VFS: Unable to mount"),
        (
            replace(NOTHING, status=0, console=("ironworks: exited 3", "[1] Power down")),
            ExitKind.WORKLOAD,
            "status 3",
        ),
        (
            replace(NOTHING, status=0, last_word=Ended(status=0), console=("ironworks: exited 3",)),
            ExitKind.WORKLOAD,
            "status 0",
        ),
        (
            replace(NOTHING, status=0, last_word=BootFailed(sentence="No disk.")),
            ExitKind.WORKLOAD,
            "No disk.",
        ),
    ],
)
def test_what_is_left_tells_the_end(remains: Remains, kind: ExitKind, sentence: str) -> None:
    report = explain(remains)
    assert report.kind is kind
    assert sentence in report.sentence
    assert report.vmm_status == remains.status


def test_a_workload_that_never_ran_has_the_status_that_shells_give() -> None:
    report = explain(replace(NOTHING, last_word=BootFailed(sentence="No disk.")))
    assert report.workload_status == 127
    assert not report.clean


def test_the_console_is_cut_to_its_last_lines() -> None:
    console = tuple(f"line {number}" for number in range(100))
    assert explain(replace(NOTHING, console=console)).console_tail == console[-CONSOLE_TAIL_LINES:]


def test_the_console_of_a_panic_begins_before_its_reason() -> None:
    trace = tuple(f"trace {number}" for number in range(100))
    report = explain(replace(NOTHING, console=(*trace, "before", PANIC, *trace)))
    assert report.console_tail[3:6] == ("before", PANIC, "trace 0")
    assert len(report.console_tail) == CONSOLE_TAIL_LINES
    assert explain(replace(NOTHING, console=("before", PANIC))).console_tail == ("before", PANIC)


def test_the_logs_are_read(tmp_path: Path) -> None:
    (tmp_path / "console").write_text("one\r\n\n\x1b[1mtwo\n")
    remains = collect(
        vmm="QEMU",
        status=1,
        killed=False,
        last_word=None,
        console_path=tmp_path / "console",
        errors_path=tmp_path / "none",
    )
    assert remains.console == ("one", "[1mtwo")
    assert remains.errors == ()


def test_a_vmm_may_have_statuses_of_its_own() -> None:
    def tale(status: int) -> tuple[ExitKind, str] | None:
        return (ExitKind.SECCOMP, "It broke its filter.") if status == 148 else None

    remains = replace(NOTHING, vmm="Firecracker", tale=tale)
    assert explain(replace(remains, status=148)).kind is ExitKind.SECCOMP
    assert explain(replace(remains, status=1)).sentence == "Firecracker failed with status 1."
