"""What Firecracker's exit statuses mean."""

import signal

import pytest

from ironworks.metald.drivers.driver import ExitKind
from ironworks.metald.drivers.firecracker.status import tale, vmm_status


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (148, ExitKind.SECCOMP, "filter forbids"),
        (149, ExitKind.CRASHED, "SIGBUS, mostly because"),
        (150, ExitKind.CRASHED, "SIGSEGV"),
        (151, ExitKind.CRASHED, "SIGXFSZ: it wrote more"),
        (152, ExitKind.CRASHED, "refused its configuration"),
        (153, ExitKind.CRASHED, "refused its command line"),
        (154, ExitKind.CRASHED, "SIGXCPU"),
        (155, ExitKind.CRASHED, "SIGPIPE"),
        (156, ExitKind.CRASHED, "SIGHUP"),
        (157, ExitKind.CRASHED, "SIGILL"),
    ],
)
def test_each_is_a_sentence(status: int, kind: ExitKind, words: str) -> None:
    told = tale(status)
    assert told is not None
    assert told[0] is kind
    assert words in told[1]
    assert told[1].endswith(".")
    assert vmm_status(status) == status


@pytest.mark.parametrize(
    ("keeper", "status"),
    [(None, None), (0, 0), (1, 1), (137, -signal.SIGKILL), (139, -signal.SIGSEGV)],
)
def test_the_others_are_as_the_keeper_tells(keeper: int | None, status: int | None) -> None:
    assert vmm_status(keeper) == status
    assert status is None or tale(status) is None
