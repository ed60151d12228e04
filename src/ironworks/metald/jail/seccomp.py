"""The jail's own filter of system calls, beneath whatever the VMM filters itself.

It takes away what no VMM needs and what kernel exploits begin with: namespaces, mounts, tracing,
modules, keys, BPF, io_uring. The rest is the VMM's own, narrower filter's affair (`-sandbox` of
QEMU). Numbers and offsets: linux/seccomp.h, linux/filter.h, asm/unistd_64.h.
"""

import os
import platform
import struct
from typing import BinaryIO

_LOAD_WORD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_X86_64 = 0xC000003E
_X32_BIT = 0x40000000
_CLONE, _CLONE3 = 56, 435
_NEW_NAMESPACES = 0x7E020080
"""Every CLONE_NEW… flag."""

REFUSED = {
    "ptrace": 101,
    "personality": 135,
    "vhangup": 153,
    "modify_ldt": 154,
    "pivot_root": 155,
    "adjtimex": 159,
    "chroot": 161,
    "acct": 163,
    "settimeofday": 164,
    "mount": 165,
    "umount2": 166,
    "swapon": 167,
    "swapoff": 168,
    "reboot": 169,
    "sethostname": 170,
    "setdomainname": 171,
    "iopl": 172,
    "ioperm": 173,
    "init_module": 175,
    "delete_module": 176,
    "quotactl": 179,
    "clock_settime": 227,
    "kexec_load": 246,
    "add_key": 248,
    "request_key": 249,
    "keyctl": 250,
    "migrate_pages": 256,
    "unshare": 272,
    "perf_event_open": 298,
    "name_to_handle_at": 303,
    "open_by_handle_at": 304,
    "clock_adjtime": 305,
    "setns": 308,
    "process_vm_readv": 310,
    "process_vm_writev": 311,
    "kcmp": 312,
    "finit_module": 313,
    "kexec_file_load": 320,
    "bpf": 321,
    "userfaultfd": 323,
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "pidfd_getfd": 438,
    "mount_setattr": 442,
}
"""Calls that are answered with EPERM, by their numbers on x86-64."""


def _statement(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def jail_filter(machine: str = "") -> bytes:
    """The filter as bubblewrap takes it: BPF instructions of the machine's byte order.

    Args:
        machine: As `uname -m` says; empty: this one.

    Returns:
        Nothing for an architecture whose numbers are not known here.
    """
    if (machine or platform.machine()) != "x86_64":
        return b""
    refuse = _statement(_RETURN, _ERRNO | _EPERM)
    program = [
        _statement(_LOAD_WORD, _ARCHITECTURE),
        # Another architecture's calls have other numbers: nothing of this machine needs them.
        _statement(_JUMP_EQUAL, _X86_64, if_true=1),
        _statement(_RETURN, _KILL_PROCESS),
        _statement(_LOAD_WORD, _NUMBER),
        _statement(_JUMP_GREATER_EQUAL, _X32_BIT, if_false=1),
        _statement(_RETURN, _KILL_PROCESS),
    ]
    for number in REFUSED.values():
        program += [_statement(_JUMP_EQUAL, number, if_false=1), refuse]
    program += [
        # Its flags are in memory, where a filter cannot look: C libraries fall back to clone.
        _statement(_JUMP_EQUAL, _CLONE3, if_false=1),
        _statement(_RETURN, _ERRNO | _ENOSYS),
        _statement(_JUMP_EQUAL, _CLONE, if_false=3),
        _statement(_LOAD_WORD, _FIRST_ARGUMENT),
        _statement(_JUMP_SET, _NEW_NAMESPACES, if_false=1),
        refuse,
        _statement(_RETURN, _ALLOW),
    ]
    return b"".join(program)


def filter_file() -> BinaryIO:
    """The filter in a file without a name, to be read from its beginning; close it."""
    file = os.fdopen(os.memfd_create("seccomp", os.MFD_CLOEXEC), "w+b")
    file.write(jail_filter())
    file.seek(0)
    return file
