"""The jail's filter, in a real process and without a jail around it."""

import struct
import subprocess

import pytest

from ironworks.metald.jail.bubblewrap import jail_argv
from ironworks.metald.jail.seccomp import REFUSED, filter_file, jail_filter

UID = 1_900_004
ASK = """
import ctypes, errno, os, threading
libc = ctypes.CDLL(None, use_errno=True)
for name, number in {numbers}.items():
    ctypes.set_errno(0)
    answer = libc.syscall(number, 0, 0, 0, 0, 0, 0)
    if (answer, ctypes.get_errno()) != (-1, errno.EPERM):
        print(name, answer, ctypes.get_errno())
for flag in (0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
    if libc.syscall(56, flag | 17, 0, 0, 0, 0) != -1:
        print("a new namespace", hex(flag))
thread = threading.Thread(target=print, args=("threads",))
thread.start()
thread.join()
print("forks", os.waitpid(os.fork() or os._exit(7), 0)[1] >> 8)
"""


def test_an_architecture_that_is_not_known_has_no_filter() -> None:
    assert jail_filter("riscv64") == b""


def test_the_filter_is_whole_instructions_and_ends_in_a_verdict() -> None:
    program = jail_filter("x86_64")
    assert len(program) % 8 == 0
    assert len(program) // 8 < 4096
    assert struct.unpack("=HBBI", program[-8:]) == (0x06, 0, 0, 0x7FFF0000)


@pytest.mark.root
def test_what_is_refused_is_refused_and_programs_run_all_the_same() -> None:
    with filter_file() as filter_of_jail:
        argv = jail_argv(
            ["/usr/bin/python3", "-I", "-c", ASK.format(numbers=REFUSED)],
            uid=UID,
            gid=UID,
            files={},
            seccomp_descriptor=filter_of_jail.fileno(),
        )
        done = subprocess.run(
            argv,
            pass_fds=(filter_of_jail.fileno(),),
            capture_output=True,
            check=False,
            text=True,
            timeout=30,
        )
    assert done.stdout.splitlines() == ["threads", "forks 7"], done.stderr
