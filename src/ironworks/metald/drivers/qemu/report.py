"""Why a QEMU ended, from what is left of it; pure but for reading two logs."""

import json
import signal
from dataclasses import dataclass, replace
from pathlib import Path

from ironworks.metald.drivers.driver import (
    CONSOLE_TAIL_LINES,
    ExitKind,
    ExitReport,
    signal_name,
)
from ironworks.metald.drivers.processes import since_reboot, tail
from ironworks.metald.guest.control import BootFailed, Ended, find_last_word

NOT_STARTED_STATUS = 127
"""`workload_status` of a workload that init could not start, as shells have it."""
SEARCHED_LINES = 200
_SIGNAL_BASE = 128
_PANIC = "Kernel panic - not syncing: "
_MAX_STATUS_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Remains:
    """What is known of a VMM that has ended.

    Attributes:
        status: Exit status of QEMU, negative: the signal; None: not known.
        killed: Whether metald killed it.
        last_word: What init said over the control channel, if we heard it.
        console: Last lines of the console, oldest first.
        errors: Last lines of QEMU's own complaints.
    """

    status: int | None
    killed: bool
    last_word: Ended | BootFailed | None
    console: tuple[str, ...]
    errors: tuple[str, ...]


def vmm_status(keeper_status: int | None) -> int | None:
    """Undo the shell's way of telling signals (128 + number), in which jail and keeper answer."""
    if keeper_status is not None and keeper_status > _SIGNAL_BASE:
        return _SIGNAL_BASE - keeper_status
    return keeper_status


def read_status_file(path: Path) -> tuple[int | None, int | None]:
    """Read what bubblewrap wrote: pid of the jailed program, and its exit code once it has one."""
    pid: int | None = None
    code: int | None = None
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_STATUS_BYTES).decode(errors="replace")
    except OSError:
        return None, None
    for line in text.splitlines():
        try:
            record = json.loads(line)
            pid = int(record.get("child-pid", pid or 0)) or None
            code = int(record["exit-code"]) if "exit-code" in record else code
        except (ValueError, TypeError, AttributeError):
            continue
    return pid, code


def _panic(console: tuple[str, ...]) -> str | None:
    for line in console:
        _, found, reason = line.partition(_PANIC)
        if found:
            return reason.strip()
    return None


def explain(remains: Remains) -> ExitReport:
    """Tell how a VMM ended. What the guest itself said of its workload goes before all else."""
    report = ExitReport(
        kind=ExitKind.LOST,
        sentence="The VM ended while metald was not watching; how is not known.",
        vmm_status=remains.status,
        console_tail=remains.console[-CONSOLE_TAIL_LINES:],
    )
    word = remains.last_word or find_last_word(remains.console)
    if isinstance(word, Ended):
        return replace(
            report, kind=ExitKind.WORKLOAD, sentence=word.sentence, workload_status=word.status
        )
    if isinstance(word, BootFailed):
        return replace(
            report,
            kind=ExitKind.WORKLOAD,
            sentence=word.sentence,
            workload_status=NOT_STARTED_STATUS,
        )
    if remains.killed:
        return replace(report, kind=ExitKind.KILLED, sentence="The VM was ended by force.")
    panic = _panic(remains.console)
    if panic is not None:
        return replace(
            report, kind=ExitKind.PANIC, sentence=f"The guest's kernel panicked: {panic}"
        )
    return _explain_status(report, remains)


def _explain_status(report: ExitReport, remains: Remains) -> ExitReport:
    status = remains.status
    if status is None:
        return report
    if status == 0:
        return replace(
            report,
            kind=ExitKind.POWEROFF,
            sentence="The guest powered off without telling how its workload ended.",
        )
    if status == -signal.SIGSYS:
        return replace(
            report,
            kind=ExitKind.SECCOMP,
            sentence="QEMU made a system call that its filter forbids, and was ended.",
        )
    if status < 0:
        sentence = f"QEMU was ended by {signal_name(-status)}, which metald did not send."
    else:
        why = f": {remains.errors[-1]}" if remains.errors else "."
        sentence = f"QEMU failed with status {status}{why}"
    return replace(report, kind=ExitKind.CRASHED, sentence=sentence)


def collect(
    *,
    status: int | None,
    killed: bool,
    last_word: Ended | BootFailed | None,
    console_path: Path,
    errors_path: Path,
) -> Remains:
    """Read the two logs of a VM beside what is known already."""
    return Remains(
        status=status,
        killed=killed,
        last_word=last_word,
        console=since_reboot(tail(console_path, SEARCHED_LINES)),
        errors=tail(errors_path),
    )
