"""`iron quarantine`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ironworks.gen.ironworks.aggregatord.v1 import batch_pb

if TYPE_CHECKING:
    from conftest import Iron


async def test_what_is_not_believed_is_listed_with_its_reason(iron: Iron) -> None:
    iron.as_operator()
    done = await iron("quarantine", "list", "--vm", "vm_a")
    assert "lies in the future" in done.out
    assert "010101010101" in done.out
    request = iron.api.asked["ListQuarantinedWindows"][-1]
    assert isinstance(request, batch_pb.ListQuarantinedWindowsRequest)
    assert (request.vm_id, request.state) == ("vm_a", batch_pb.QuarantineState.OPEN)
    assert len((await iron("quarantine", "list", "--state", "all", "--json")).json["windows"]) == 2


async def test_a_window_is_released_or_rejected_with_a_note(iron: Iron) -> None:
    iron.as_operator()
    done = await iron("quarantine", "release", "win_a", "--note", "the clock was right")
    assert "released" in done.out
    await iron("quarantine", "reject", "win_a", "--note", "no", "--content", "0202")
    request = iron.api.asked["ResolveQuarantinedWindow"][-1]
    assert isinstance(request, batch_pb.ResolveQuarantinedWindowRequest)
    assert request.state is batch_pb.QuarantineState.REJECTED
    assert request.content_sha256 == bytes([2] * 32)
    assert request.idempotency_key
    await iron("quarantine", "reject", "win_a", status=2)
    refused = await iron(
        "quarantine", "reject", "win_a", "--note", "x", "--content", "ff", status=65
    )
    assert "0 of the newest" in refused.err
