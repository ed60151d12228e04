"""`iron vm`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from protobuf import Oneof

from ironworks.gen.ironworks.metald.v1 import vm_pb
from ironworks.testkit.fakenouns import CONSOLE, VM_ID

if TYPE_CHECKING:
    from conftest import Iron


async def test_list(iron: Iron) -> None:
    done = await iron("vm", "list", "--deployment", "dep_x")
    assert VM_ID in done.out
    assert "qemu (tcg)" in done.out
    assert "198.18.0.2" in done.out
    listed = (await iron("vm", "list", "--json")).json
    assert listed["vms"][0]["state"] == "VM_STATE_RUNNING"
    assert listed["next_page_token"] == ""


async def test_get_shows_steps_history_and_drift(iron: Iron) -> None:
    done = await iron("vm", "get", VM_ID)
    for shown in ("vmm.spawn", "45 ms", "running", "2 vCPU, 256.0 MiB"):
        assert shown in done.out
    assert "Its tap is gone." in done.err
    for shown in ("The application exited with status 3.", "Exit status 3,", "no such table"):
        assert shown in done.out
    assert (await iron("vm", "get", VM_ID, "--json")).json["id"] == VM_ID


async def test_network_shows_addresses_rules_and_what_was_refused(iron: Iron) -> None:
    done = await iron("vm", "network", VM_ID)
    for shown in (
        "198.18.0.2",
        "203.0.113.0/24 port 80-90/tcp",
        "40000 to 80/tcp",
        "egress",
        "420",
    ):
        assert shown in done.out
    listed = (await iron("vm", "network", VM_ID, "--json")).json
    assert listed["denied"] == [{"rule": "egress", "packets": "7", "bytes": "420"}]


async def test_a_vm_of_nobody_is_66(iron: Iron) -> None:
    done = await iron("vm", "get", "vm_none", status=66)
    assert done.err == "iron: There is no VM vm_none.\n"


async def test_the_console_is_handed_on_byte_by_byte_where_no_terminal_reads_it(
    iron: Iron,
) -> None:
    done = await iron("vm", "console", VM_ID, "--lines", "7")
    assert done.out == b"".join(CONSOLE).decode()
    request = iron.api.asked["StreamConsole"][-1]
    assert isinstance(request, vm_pb.StreamConsoleRequest)
    assert request.start == Oneof("tail_lines", 7)


async def test_a_terminal_is_not_steered_by_a_guest(iron: Iron) -> None:
    iron.patch.setattr("sys.stdout.isatty", lambda: True)
    done = await iron("vm", "console", VM_ID)
    assert "\x1b" not in done.out
    assert "ready" in done.out
    raw = await iron("vm", "console", VM_ID, "--raw")
    assert "\x1b" in raw.out


@pytest.mark.parametrize(
    ("words", "method", "shown"),
    [
        (("boot", "--ready-within", "5"), "BootVm", "running"),
        (("pause",), "PauseVm", "paused"),
        (("resume",), "ResumeVm", "running"),
        (("reboot", "--grace", "5"), "RebootVm", "runs again"),
        (("stop", "--grace", "7", "--reason", "night"), "ShutdownVm", "stopped: night"),
        (("stop", "--force"), "ShutdownVm", "stopped"),
        (("delete", "--force"), "DeleteVm", "deleted"),
    ],
)
async def test_a_vm_is_steered(iron: Iron, words: tuple[str, ...], method: str, shown: str) -> None:
    verb, *options = words
    done = await iron("vm", verb, VM_ID, *options)
    assert shown in done.out
    request = iron.api.asked[method][-1]
    assert getattr(request, "vm_id", "") == VM_ID
    assert getattr(request, "idempotency_key", "") != ""
    if {"--grace", "--ready-within"} & {*options}:
        assert getattr(request, "timeout_seconds", 0) == float(options[1])
    assert getattr(request, "force", False) is ("--force" in options)
    await iron("vm", verb, "vm_none", status=66)


async def test_a_watch_prints_each_change(iron: Iron) -> None:
    done = await iron("vm", "watch", "--deployment", "dep_x")
    assert [line.split("  ")[2] for line in done.out.splitlines()] == ["booting", "running, ready"]
    assert (await iron("vm", "watch", "--json")).json["sequence"] == "8"
    request = iron.api.asked["WatchVms"][0]
    assert isinstance(request, vm_pb.WatchVmsRequest)
    assert request.filter == vm_pb.VmFilter(deployment_id="dep_x")
