"""Why a VMM ended, from what is left of it; pure but for reading two logs."""

import signal
from collections.abc import Callable
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
_LINES_BEFORE_PANIC = 4
_PANIC = "Kernel panic - not syncing: "
StatusTale = Callable[[int], tuple[ExitKind, str] | None]
"""Tells what an exit status of a VMM means; None if it means nothing special."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remains:
    """What is known of a VMM that has ended.

    Attributes:
        vmm: What people call it, for example `QEMU`.
        status: Its exit status, negative: the signal; None: not known.
        killed: Whether metald killed it.
        last_word: What init said over the control channel, if we heard it.
        console: Last lines of the console, oldest first.
        errors: Last lines of its own complaints.
        tale: What its exit statuses mean.
    """

    vmm: str = "QEMU"
    status: int | None
    killed: bool
    last_word: Ended | BootFailed | None
    console: tuple[str, ...]
    errors: tuple[str, ...]
    tale: StatusTale = lambda _: None


def _panic(report: ExitReport, console: tuple[str, ...]) -> ExitReport | None:
    """The report of a panic; its console begins before the reason: a long trace follows it."""
    for index, line in enumerate(console):
        _, found, reason = line.partition(_PANIC)
        if found:
            first = max(0, min(index - _LINES_BEFORE_PANIC, len(console) - CONSOLE_TAIL_LINES))
            return replace(
                report,
                kind=ExitKind.PANIC,
                sentence=f"The guest's kernel panicked: {reason.strip().rstrip('.')}.",
                console_tail=console[first : first + CONSOLE_TAIL_LINES],
            )
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
    return _panic(report, remains.console) or _explain_status(report, remains)


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
    if (told := remains.tale(status)) is not None:
        kind, sentence = told
        return replace(report, kind=kind, sentence=sentence)
    if status == -signal.SIGSYS:
        sentence = f"{remains.vmm} made a system call that its filter forbids, and was ended."
        return replace(report, kind=ExitKind.SECCOMP, sentence=sentence)
    if status < 0:
        sentence = f"{remains.vmm} was ended by {signal_name(-status)}, which metald did not send."
    else:
        why = f": {remains.errors[-1]}" if remains.errors else "."
        sentence = f"{remains.vmm} failed with status {status}{why}"
    return replace(report, kind=ExitKind.CRASHED, sentence=sentence)


def collect(
    *,
    vmm: str,
    status: int | None,
    killed: bool,
    last_word: Ended | BootFailed | None,
    console_path: Path,
    errors_path: Path,
    tale: StatusTale = lambda _: None,
) -> Remains:
    """Read the two logs of a VM beside what is known already."""
    return Remains(
        vmm=vmm,
        status=status,
        killed=killed,
        last_word=last_word,
        console=since_reboot(tail(console_path, SEARCHED_LINES)),
        errors=tail(errors_path),
        tale=tale,
    )
