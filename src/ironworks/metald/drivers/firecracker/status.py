"""What the exit statuses of Firecracker and its jailer mean.

Source: Firecracker's `FcExitCode` in src/vmm/src/lib.rs.
"""

import signal

from ironworks.metald.drivers.driver import ExitKind, signal_name

_BAD_SYSCALL = 148
_SIGNALS = {
    149: signal.SIGBUS,
    150: signal.SIGSEGV,
    151: signal.SIGXFSZ,
    154: signal.SIGXCPU,
    155: signal.SIGPIPE,
    156: signal.SIGHUP,
    157: signal.SIGILL,
}
_SENTENCES = {
    152: "Firecracker refused its configuration.",
    153: "Firecracker refused its command line.",
}
_HINTS = {
    signal.SIGBUS: ", mostly because a file that it uses was cut off, or the disk is full",
    signal.SIGXFSZ: ": it wrote more to a file than its limit allows",
}
_SIGNAL_BASE = 128


def tale(status: int) -> tuple[ExitKind, str] | None:
    """See `report.StatusTale`."""
    if status == _BAD_SYSCALL:
        sentence = "Firecracker made a system call that its filter forbids, and was ended."
        return ExitKind.SECCOMP, sentence
    if status in _SIGNALS:
        number = _SIGNALS[status]
        sentence = f"Firecracker ended itself after {signal_name(number)}{_HINTS.get(number, '')}."
        return ExitKind.CRASHED, sentence
    if status in _SENTENCES:
        return ExitKind.CRASHED, _SENTENCES[status]
    return None


def vmm_status(keeper_status: int | None) -> int | None:
    """Undo the keeper's way of telling signals (128 + number), which Firecracker's own come near.

    149 to 157 would be signals 21 to 29, of which none ends a process that asks for none.
    """
    if keeper_status is None or tale(keeper_status) is not None:
        return keeper_status
    return _SIGNAL_BASE - keeper_status if keeper_status > _SIGNAL_BASE else keeper_status
